//! API keys: one document, which is always replaced as a whole.
//!
//! They are in a stream of their own, so that every API process sees the same ones, a copy of the queue
//! includes them, and deleting a database does not delete them. One document, because a decision about
//! one key depends on the others (the last admin's key stays), and compare-and-set works per subject.
//! The queue does not know what a key is.

use async_nats::jetstream::stream::{self, DiscardPolicy, StorageType};
use futures::{Stream, StreamExt};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::connection::{Replaced, Revision};
use super::role::role;
use crate::QueueError;

const STREAM: &str = "keys";
const SUBJECT: &str = "keys.all";

role! {
    /// Reads and writes the API keys.
    Keys
}

impl Keys {
    /// The document of all keys, and the revision that a change of it must name; `None` if it was never written.
    ///
    /// # Errors
    /// [`QueueError`] when the queue does not answer, or the document cannot be read.
    pub async fn read<T: DeserializeOwned>(&self) -> Result<Option<(T, Revision)>, QueueError> {
        self.read_document("read the keys", config(self.defaults.replicas), SUBJECT.into(), "the keys").await
    }

    /// Replaces exactly the document that was read as `over`, which is 0 if none exists yet.
    ///
    /// # Errors
    /// [`QueueError`] when the outcome is unknown.
    pub async fn write(&self, over: Revision, keys: &impl Serialize) -> Result<Replaced, QueueError> {
        self.ensure_stream_once(config(self.defaults.replicas)).await?;
        self.write_over("write the keys", SUBJECT.into(), over, keys).await
    }

    /// Yields an item whenever a process writes the keys or tries to.
    ///
    /// # Errors
    /// [`QueueError`] when the connection is closed.
    pub async fn rings(&self) -> Result<impl Stream<Item = ()> + Unpin + use<>, QueueError> {
        let unavailable = |problem| QueueError::Unavailable { action: "listen for keys", problem };
        let messages = self.listen(SUBJECT.into()).await.map_err(unavailable)?;
        Ok(messages.map(drop))
    }
}

fn config(replicas: usize) -> stream::Config {
    stream::Config {
        name: STREAM.into(),
        subjects: vec!["keys.*".into()],
        storage: StorageType::File,
        num_replicas: replicas,
        max_messages_per_subject: 1,
        discard: DiscardPolicy::Old,
        allow_direct: true,
        deny_delete: true,
        deny_purge: true,
        ..stream::Config::default()
    }
}
