//! Where keys are stored, and what happens when they are lost.
//!
//! Keys are one document in the queue. Each process that has seen a key also keeps a witness: an empty file in its
//! data folder. Losing a file must never open an API that had keys: if a witness exists but no key does, every
//! request is refused until an operator creates a key on the machine itself.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use queue::client::{Replaced, Revision};
use queue::{Queue, QueueError, Timestamp};
use serde::{Deserialize, Serialize};

use super::key::Key;

/// Name of the witness in the data folder.
const WITNESS: &str = "keys.required";

/// All keys, in the order in which they were created.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Document {
    keys: Vec<Key>,
}

/// Reads all keys; empty if none was ever created.
pub(super) async fn read(queue: &Queue) -> Result<Vec<Key>, QueueError> {
    Ok(queue.keys.read::<Document>().await?.map(|(document, _)| document.keys).unwrap_or_default())
}

/// Lets `decide` change the current keys, and returns its result. Calls it again when another process was faster.
pub(super) async fn change<T, E: From<QueueError>>(
    queue: &Queue,
    decide: impl Fn(&mut Vec<Key>) -> Result<T, E>,
) -> Result<T, E> {
    loop {
        let (mut document, revision) =
            queue.keys.read::<Document>().await?.unwrap_or((Document::default(), Revision::default()));
        let decided = decide(&mut document.keys)?;
        if let Replaced::Done(_) = queue.keys.write(revision, &document).await? {
            return Ok(decided);
        }
    }
}

/// Imports keys that earlier versions stored in their database: missing keys, and revocations of known ones. Safe
/// to repeat, also in several processes.
pub(super) async fn adopt(queue: &Queue, old: Vec<Key>) -> Result<(), QueueError> {
    let known = read(queue).await?;
    let is_news = |key: &Key| {
        known
            .iter()
            .find(|other| other.id == key.id)
            .is_none_or(|other| other.revoked_at.is_none() && key.revoked_at.is_some())
    };
    if !old.iter().any(is_news) {
        return Ok(());
    }
    change(queue, |keys| {
        for key in &old {
            match keys.iter_mut().find(|other| other.id == key.id) {
                Some(known) => known.revoked_at = known.revoked_at.or(key.revoked_at),
                None => keys.push(key.clone()),
            }
        }
        Ok::<(), QueueError>(())
    })
    .await
}

/// Whether a valid admin key exists other than this one.
pub(super) fn has_admin_beside(keys: &[Key], id: &str) -> bool {
    let now = Timestamp::now();
    keys.iter().any(|key| key.is_admin(now) && key.id != id)
}

/// The witness that keys existed.
#[derive(Debug, Clone)]
pub(super) struct Witness(Option<PathBuf>);

impl Witness {
    /// The witness in a data folder; without a folder there is none.
    pub(super) fn of(folder: Option<&Path>) -> Self {
        Self(folder.map(|folder| folder.join(WITNESS)))
    }

    /// Whether this process, or an earlier one on its folder, has seen keys.
    ///
    /// # Errors
    /// When the folder cannot be read: then the API stays closed.
    pub(super) fn stands(&self) -> io::Result<bool> {
        self.0.as_deref().map_or(Ok(false), Path::try_exists)
    }

    /// Durability: it is on disk when this returns, before the first key is shown.
    pub(super) fn set(&self) -> io::Result<()> {
        let Some(path) = &self.0 else { return Ok(()) };
        if path.try_exists()? {
            return Ok(());
        }
        File::create(path)?.sync_all()?;
        match path.parent() {
            Some(folder) => File::open(folder)?.sync_all(),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What this and earlier versions have stored: it must still be readable, and be written back unchanged.
    const STORED: &str = r#"{"keys":[{"id":"0a1b2c3d4e5f","name":"ann","scopes":["submit","read"],"created_at":"2026-11-23T17:00:00.000Z","expires_at":"2027-02-21T17:00:00.000Z","revoked_at":"2026-12-01T00:00:00.000Z","limits":{"requests_per_second":50.0,"uploads":8,"priority":"high","queued_jobs":10000,"queued_bytes":500000000},"hash":"5d41402a"}]}"#;

    #[test]
    fn stored_keys_are_read_and_written_again_unchanged() {
        let read: Document = serde_json::from_str(STORED).expect("the stored format is read");
        assert_eq!(serde_json::to_string(&read).expect("JSON"), STORED);
        let least =
            r#"{"keys":[{"id":"a","name":"b","scopes":["admin"],"created_at":"2026-11-23T17:00:00.000Z","hash":"c"}]}"#;
        assert!(serde_json::from_str::<Document>(least).is_ok(), "fields that came later are optional");
    }
}
