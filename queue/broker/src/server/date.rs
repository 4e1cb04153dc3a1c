//! The date that was believed last, in a small file beside the journal.
//!
//! A clock that leaps writes its dates into the journal too, so the journal cannot tell after a restart what the
//! date was before. This can. Losing it costs nothing but that.

use std::io;

use crate::platform::storage::Storage;

const NAME: &str = "date";
/// Removed at a start, if a crash has left it.
const PARTIAL: &str = "date.partial";

/// The date, Unix time in ns; `None` if none was noted.
pub(super) fn read(storage: &dyn Storage) -> Option<i64> {
    let mut bytes = [0; 8];
    storage.open(NAME).ok()?.read_at(&mut bytes, 0).ok()?;
    Some(i64::from_le_bytes(bytes)).filter(|date| *date > 0)
}

/// Notes the date.
pub(super) fn write(storage: &dyn Storage, date: i64) -> io::Result<()> {
    let file = storage.create(PARTIAL, 0)?;
    file.write_at(&date.to_le_bytes(), 0)?;
    file.sync()?;
    storage.rename(PARTIAL, NAME)
}
