//! The last date that the broker believed, in a small file beside the journal.
//!
//! A clock that jumps writes its wrong dates into the journal too, so after a restart the journal cannot show what
//! the date was before the jump. This file can. Losing it costs only that.

use std::io;

use crate::platform::storage::Storage;

const NAME: &str = "date";
/// Left over after a crash; removed at the next start.
const PARTIAL: &str = "date.partial";

/// The date, Unix time in ns; `None` if none was written.
pub(super) fn read(storage: &dyn Storage) -> Option<i64> {
    let mut bytes = [0; 8];
    storage.open(NAME).ok()?.read_at(&mut bytes, 0).ok()?;
    Some(i64::from_le_bytes(bytes)).filter(|date| *date > 0)
}

/// Writes the date.
pub(super) fn write(storage: &dyn Storage, date: i64) -> io::Result<()> {
    let file = storage.create(PARTIAL, 0)?;
    file.write_at(&date.to_le_bytes(), 0)?;
    file.sync()?;
    storage.rename(PARTIAL, NAME)
}
