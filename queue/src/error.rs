//! One error type for each family of operations whose callers act differently.

use std::time::Duration;

use crate::TopicName;

/// The queue cannot be reached.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The address cannot be read.
    #[error("`{0}` is not a queue address; it must be nats://[TOKEN@]host:port, several of them comma-separated")]
    Address(String),
    /// No server answers, or the token is wrong.
    #[error("no queue at {address}: {problem}")]
    Unreachable {
        /// The address without its token.
        address: String,
        /// What the client said.
        problem: String,
    },
    /// The server has no JetStream.
    #[error("the server at {address} does not offer JetStream: {problem}")]
    NoJetStream {
        /// The address without its token.
        address: String,
        /// What the server said.
        problem: String,
    },
}

/// The queue did not do what it was asked, or did not say so in time.
#[derive(Debug, Clone, thiserror::Error)]
pub enum QueueError {
    /// No answer, or an answer that says it cannot now.
    #[error("the queue did not {action}: {problem}")]
    Unavailable {
        /// What was asked.
        action: &'static str,
        /// What came back.
        problem: String,
    },
    /// The server takes no message of this size.
    #[error("a record of {bytes} bytes exceeds max_payload ({max_payload}) of the queue's server")]
    TooLarge {
        /// The record's size.
        bytes: usize,
        /// The server's limit.
        max_payload: usize,
    },
    /// What is stored is not what this version writes.
    #[error("{what} cannot be read: {problem}")]
    Damaged {
        /// What was read.
        what: String,
        /// What the parser said.
        problem: String,
    },
}

impl QueueError {
    /// An [`QueueError::Unavailable`] made from whatever the client said; made for `map_err`.
    pub(crate) fn unavailable<E: std::error::Error>(action: &'static str) -> impl FnOnce(E) -> Self {
        move |error| Self::Unavailable { action, problem: chain(&error) }
    }

    /// Whether the same call may succeed later.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Unavailable { .. } => true,
            Self::TooLarge { .. } | Self::Damaged { .. } => false,
        }
    }
}

/// A topic could not be made, found or changed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum TopicError {
    /// There is none of this name.
    #[error("topic {0} does not exist; sightline topics list shows all topics")]
    Unknown(TopicName),
    /// There is one of this name.
    #[error("topic {0} already exists; change it with sightline topics alter")]
    Exists(TopicName),
    /// The settings make no sense.
    #[error("{0}")]
    Invalid(String),
    /// The queue's server cannot do this.
    #[error("the queue's server refused: {0}")]
    Refused(String),
    /// It is not known what became of it.
    #[error(transparent)]
    Queue(#[from] QueueError),
}

/// A job was not accepted.
#[derive(Debug, Clone, thiserror::Error)]
pub enum SubmitError {
    /// Its topic is gone, or has no model.
    #[error("topic {0} was deleted")]
    NoTopic(TopicName),
    /// The topic has one priority.
    #[error("topic {0} is ordered: all its jobs have normal priority")]
    OnePriority(TopicName),
    /// The partition has no room.
    #[error("the queue of {topic} is full")]
    Full {
        /// The topic.
        topic: String,
    },
    /// The message is above what the server takes.
    #[error("the image of {bytes} bytes exceeds max_payload ({max_payload}) of the queue's server")]
    TooLarge {
        /// The payload's size.
        bytes: usize,
        /// The server's limit.
        max_payload: usize,
    },
    /// It is not known whether the job is in the queue.
    #[error(transparent)]
    Queue(#[from] QueueError),
}

/// No answer to a request for a job.
#[derive(Debug, Clone, thiserror::Error)]
pub enum FetchError {
    /// The partition's stream or consumer is not there (yet, or any more).
    #[error("the partition does not exist")]
    NoPartition,
    /// No answer in time.
    #[error("no answer within {0:?}")]
    Silent(Duration),
    /// The connection is gone for good, or the server refused the request.
    #[error("the queue refused: {0}")]
    Refused(String),
}

/// A delivery could not be settled.
#[derive(Debug, Clone, thiserror::Error)]
pub enum SettleError {
    /// The lease has expired: another worker may have the job.
    #[error("the lease has expired")]
    LeaseLost,
    /// No answer.
    #[error("the queue did not confirm: {0}")]
    Unconfirmed(String),
}

/// An error and its causes in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let part = error.to_string();
        if !text.contains(&part) {
            text = format!("{text}: {part}");
        }
        cause = error.source();
    }
    text
}
