//! Webhook calls that are due: one message for each change of a job or batch that its webhook is notified about.
//! They are kept until they are delivered or given up, even if processes die meanwhile.

use std::fmt;
use std::time::Duration;

use async_nats::jetstream;
use async_nats::jetstream::consumer::{AckPolicy, PullConsumer, pull};
use async_nats::jetstream::message::PublishMessage;
use async_nats::jetstream::stream::{self, DiscardPolicy, RetentionPolicy, StorageType};
use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::connection::{Connection, Refusal, bounded, refusal, timestamp};
use super::role::role;
use crate::{JobId, QueueError, Timestamp};

const STREAM: &str = "hooks";
const SENDERS: &str = "senders";
/// How long a sender may hold a call before another one gets it.
const CALL_MAX: Duration = Duration::from_secs(90);
/// No bound on calls that are not acknowledged: postponed ones count as such, and must not keep others from
/// being made.
const UNDER_WAY_MAX: i64 = -1;
/// How long a second message for the same change is recognized as a duplicate.
const DUPLICATES: Duration = Duration::from_secs(2 * 60 * 60);

/// A call that is owed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hook {
    /// The job or batch.
    #[serde(flatten)]
    pub about: About,
    /// Its new state.
    pub state: String,
    /// Distinguishes two changes to the same state: for a job, the revision of its record; for a batch, its size.
    pub revision: u64,
    /// URL to call.
    pub url: String,
    /// Owner of the job or batch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<String>,
}

/// What a call is about.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum About {
    /// A job.
    Job(JobId),
    /// A batch, by its id.
    Batch(String),
}

impl About {
    /// Two tokens of a subject. No topic has a name that begins with `_`.
    fn tokens(&self) -> String {
        match self {
            Self::Job(job) => job.to_string(),
            Self::Batch(id) => format!("_batch.{id}"),
        }
    }
}

impl fmt::Display for About {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Job(job) => job.fmt(f),
            Self::Batch(id) => write!(f, "batch {id}"),
        }
    }
}

/// A call that a sender holds.
pub struct OwedCall {
    /// The call that is owed.
    pub hook: Hook,
    /// When it was noted.
    pub noted_at: Timestamp,
    raw: jetstream::Message,
}

impl OwedCall {
    /// Ends the call: it was delivered or given up.
    ///
    /// # Errors
    /// [`QueueError`]; it may be redelivered then.
    pub async fn done(&self) -> Result<(), QueueError> {
        let acked = bounded(self.raw.double_ack()).await.map_err(QueueError::unavailable("note a call"))?;
        acked.map_err(|error| QueueError::Unavailable { action: "note a call", problem: error.to_string() })
    }

    /// Postpones the call, to be retried after `delay`.
    ///
    /// # Errors
    /// [`QueueError`]; it is redelivered by itself then.
    pub async fn later(&self, delay: Duration) -> Result<(), QueueError> {
        let nak = self.raw.ack_with(jetstream::AckKind::Nak(Some(delay)));
        let sent = bounded(nak).await.map_err(QueueError::unavailable("postpone a call"))?;
        sent.map_err(|error| QueueError::Unavailable { action: "postpone a call", problem: error.to_string() })
    }
}

role! {
    /// Notes webhook calls that are owed, and hands them out to senders.
    Hooks
}

impl Hooks {
    /// Notes that a call is owed. May be repeated.
    ///
    /// # Errors
    /// [`QueueError`] when the outcome is unknown.
    pub async fn owe(&self, hook: &Hook) -> Result<(), QueueError> {
        const ACTION: &str = "note a call that is owed";
        self.ensure_hooks().await?;
        let Hook { about, state, revision, .. } = hook;
        let tokens = about.tokens();
        let payload = Bytes::from(serde_json::to_vec(hook).expect("a hook holds strings"));
        let message = PublishMessage::build().payload(payload).message_id(format!("{tokens}.{revision}.{state}"));
        let subject = format!("{STREAM}.{tokens}.{revision}");
        match self.publish_acked(subject, message).await {
            Ok(_) => Ok(()),
            Err(error) if refusal(&error) == Some(Refusal::AlreadyThere) => Ok(()),
            Err(error) => Err(QueueError::unavailable(ACTION)(error)),
        }
    }

    /// The next call that is due, if there is one.
    ///
    /// # Errors
    /// [`QueueError`] when the queue does not answer.
    pub async fn next_call(&self, senders: &PullConsumer) -> Result<Option<OwedCall>, QueueError> {
        let Some(raw) = Connection::fetch_one("ask for a call", senders).await? else { return Ok(None) };
        let info = raw.info().ok();
        let noted_at = info.map_or_else(Timestamp::now, |info| timestamp(info.published));
        match serde_json::from_slice(&raw.payload) {
            Ok(hook) => Ok(Some(OwedCall { hook, noted_at, raw })),
            Err(error) => {
                tracing::error!(%error, "unreadable webhook call dropped");
                drop(bounded(raw.double_ack()).await);
                Ok(None)
            }
        }
    }

    /// The consumer that all senders share.
    ///
    /// # Errors
    /// [`QueueError`] when the queue does not answer.
    pub async fn senders(&self) -> Result<PullConsumer, QueueError> {
        const ACTION: &str = "look for calls";
        self.ensure_hooks().await?;
        let config = pull::Config {
            durable_name: Some(SENDERS.into()),
            ack_policy: AckPolicy::Explicit,
            ack_wait: CALL_MAX,
            max_deliver: -1,
            max_ack_pending: UNDER_WAY_MAX,
            ..pull::Config::default()
        };
        let created = bounded(self.handle(STREAM).await?.create_consumer(config)).await;
        created.map_err(QueueError::unavailable(ACTION))?.map_err(QueueError::unavailable(ACTION))
    }

    async fn ensure_hooks(&self) -> Result<(), QueueError> {
        self.ensure_stream_once(stream::Config {
            name: STREAM.into(),
            subjects: vec![format!("{STREAM}.>")],
            retention: RetentionPolicy::WorkQueue,
            discard: DiscardPolicy::New,
            discard_new_per_subject: true,
            max_messages_per_subject: 1,
            duplicate_window: DUPLICATES,
            storage: StorageType::File,
            num_replicas: self.defaults.replicas,
            ..stream::Config::default()
        })
        .await
    }
}
