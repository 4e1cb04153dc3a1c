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
        /// The client's error message.
        problem: String,
    },
    /// The server has no JetStream.
    #[error("the server at {address} does not offer JetStream: {problem}")]
    NoJetStream {
        /// The address without its token.
        address: String,
        /// The server's error message.
        problem: String,
    },
}

/// The queue did not do what it was asked, or did not confirm it in time.
#[derive(Debug, Clone, thiserror::Error)]
pub enum QueueError {
    /// The server did not answer, or cannot do this now.
    #[error("the queue did not {action}: {problem}")]
    Unavailable {
        /// What was asked.
        action: &'static str,
        /// What came back.
        problem: String,
    },
    /// The message is larger than the server accepts.
    #[error("a record of {bytes} bytes exceeds max_payload ({max_payload}) of the queue's server")]
    TooLarge {
        /// The record's size.
        bytes: usize,
        /// The server's limit.
        max_payload: usize,
    },
    /// The stored data does not have this version's format.
    #[error("{what} cannot be read: {problem}")]
    Damaged {
        /// What was read.
        what: String,
        /// The parser's error message.
        problem: String,
    },
}

impl QueueError {
    /// A [`QueueError::Unavailable`] from any error of the client; for use with `map_err`.
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

/// A topic could not be created, found or changed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum TopicError {
    /// It does not exist.
    #[error("topic {0} does not exist; sightline topics list shows all topics")]
    Unknown(TopicName),
    /// It already exists.
    #[error("topic {0} already exists; change it with sightline topics alter")]
    Exists(TopicName),
    /// The settings make no sense.
    #[error("{0}")]
    Invalid(String),
    /// The queue's server cannot do this.
    #[error("the queue's server refused: {0}")]
    Refused(String),
    /// The outcome is unknown.
    #[error(transparent)]
    Queue(#[from] QueueError),
}

/// A job was not accepted.
#[derive(Debug, Clone, thiserror::Error)]
pub enum SubmitError {
    /// Its topic was deleted, or has no model.
    #[error("topic {0} was deleted")]
    NoTopic(TopicName),
    /// The topic is ordered, so it has only one priority.
    #[error("topic {0} is ordered: all its jobs have normal priority")]
    OnePriority(TopicName),
    /// The partition is full.
    #[error("the queue of {topic} is full")]
    Full {
        /// The topic.
        topic: String,
    },
    /// The message is larger than the server accepts.
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

/// A request for a job failed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum FetchError {
    /// The partition's stream or consumer does not exist (yet, or any more).
    #[error("the partition does not exist")]
    NoPartition,
    /// No answer in time.
    #[error("no answer within {0:?}")]
    Silent(Duration),
    /// The connection is closed for good, or the server refused the request.
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
