//! The first steps of every change of a topic.

use crate::{TopicError, TopicName};

/// Most replicas that servers can keep.
const REPLICAS_MAX: usize = 5;

/// Refuses a number of replicas that no servers can keep.
pub(in crate::client) fn check_replicas(replicas: Option<usize>) -> Result<(), TopicError> {
    match replicas {
        Some(replicas) if !(1..=REPLICAS_MAX).contains(&replicas) => {
            Err(TopicError::Invalid(format!("replicas must be 1 to {REPLICAS_MAX}")))
        }
        _ => Ok(()),
    }
}

/// Name of the lease under which a topic is changed.
pub(in crate::client) fn lease_name(topic: &TopicName) -> String {
    format!("topic-{topic}")
}
