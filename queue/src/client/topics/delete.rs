//! Deleting a topic.

use super::Topics;
use super::lease::lease_name;
use crate::client::connection::Exclusive;
use crate::topic::records_stream;
use crate::{TopicError, TopicName};

impl Topics {
    /// Deletes a topic with all that is in it.
    ///
    /// # Errors
    /// [`TopicError`]. After `Queue` it may be partly deleted; a repeated call completes it.
    pub async fn delete(&self, name: &TopicName) -> Result<(), TopicError> {
        let lease = self.exclusive(&lease_name(name)).await?;
        let result = self.delete_held(&lease, name).await;
        lease.give_back().await;
        self.announce_topic(name).await;
        result
    }

    async fn delete_held(&self, lease: &Exclusive, name: &TopicName) -> Result<(), TopicError> {
        self.existing_topic(name).await?;
        let records = records_stream(name);
        for stream in self.stream_names_of(name).await?.iter().filter(|stream| **stream != records) {
            lease.must_hold()?;
            self.delete_stream(stream).await?;
        }
        self.delete_stream(&records).await?;
        self.forget(name);
        tracing::info!(topic = %name, "topic deleted");
        Ok(())
    }
}
