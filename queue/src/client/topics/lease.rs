//! What every change of a topic begins with.

use crate::{TopicError, TopicName};

/// Copies that a server can keep.
const REPLICAS_MAX: usize = 5;

/// Refuses a number of copies that no server can keep.
pub(in crate::client) fn check_replicas(replicas: Option<usize>) -> Result<(), TopicError> {
    match replicas {
        Some(replicas) if !(1..=REPLICAS_MAX).contains(&replicas) => {
            Err(TopicError::Invalid(format!("replicas must be 1 to {REPLICAS_MAX}")))
        }
        _ => Ok(()),
    }
}

/// The lease under which a topic is changed.
pub(in crate::client) fn lease_name(topic: &TopicName) -> String {
    format!("topic-{topic}")
}
