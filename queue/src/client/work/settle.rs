//! A delivery, and the ways to end it.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use async_nats::connection::State;
use async_nats::{Message, Subject};
use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::WorkerQueue;
use crate::client::connection::{Revision, bounded};
use crate::client::headers::{AGAIN_HEADER, SPEC_HEADER};
use crate::error::chain;
use crate::record::Attempt;
use crate::{FetchError, JobId, JobSpec, Lease, PartitionId, QueueError, Sequence, SettleError};

/// One hand-out of one job to this process.
#[derive(Debug, Clone)]
pub struct Delivery {
    /// The job.
    pub id: JobId,
    /// Partition of its message.
    pub partition: PartitionId,
    /// Position of its message.
    pub sequence: Sequence,
    /// Number of deliveries of its message, including this one.
    pub deliveries: u64,
    /// The specification in the message; an error if Sightline did not write it.
    pub spec: Result<JobSpec, String>,
    /// Set when a client retried a finished job: the revision of the record that this replaces.
    pub again: Option<Revision>,
    /// The image.
    pub payload: Bytes,
    /// Subject on which it is settled.
    pub ack_subject: AckSubject,
    /// The lease on the job; clones of a delivery share it.
    lease: Arc<Mutex<Lease>>,
    work: WorkerQueue,
}

/// Subject on which a delivery is settled. It can be passed to another process, which may then hand
/// the job back for a worker that has died.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct AckSubject(String);

impl Delivery {
    pub(in crate::client) async fn read(
        message: Message,
        lease: Lease,
        work: &WorkerQueue,
    ) -> Result<Self, FetchError> {
        let strange = |what: &str| FetchError::Refused(format!("not a job: {what}"));
        let (id, partition) = match JobId::from_subject(&message.subject) {
            Ok(found) => found,
            Err(error) => {
                // No worker could ever handle it, and it would be redelivered forever.
                if let Some(reply) = message.reply {
                    drop(work.send_settlement(&AckSubject(reply.into_string()), "+TERM".into()).await);
                }
                return Err(strange(&error.to_string()));
            }
        };
        let reply = message.reply.ok_or_else(|| strange("it cannot be acknowledged"))?;
        let (deliveries, sequence) = counts(&reply).ok_or_else(|| strange("its ack subject has no sequence"))?;
        let header = message.headers.as_ref().and_then(|headers| headers.get(SPEC_HEADER));
        let spec = header.map_or(Err(format!("it has no {SPEC_HEADER} header")), |json| {
            serde_json::from_str::<JobSpec>(json.as_str()).map_err(|error| error.to_string())
        });
        let spec = spec.and_then(|spec| if spec.id == id { Ok(spec) } else { Err("it describes another job".into()) });
        let again = message.headers.as_ref().and_then(|headers| headers.get(AGAIN_HEADER));
        let again = again.and_then(|revision| revision.as_str().parse::<u64>().ok()).map(Revision::from);
        let ack_subject = AckSubject(reply.into_string());
        let (payload, work, lease) = (message.payload, work.clone(), Arc::new(Mutex::new(lease)));
        Ok(Self { id, partition, sequence, deliveries, spec, again, payload, ack_subject, lease, work })
    }

    /// The lease on the job, as last renewed.
    pub fn lease(&self) -> Lease {
        *self.lease.lock().expect("no panic holds this lock")
    }

    /// The job is finished and its message may be removed.
    ///
    /// Not confirmed: if the ack is lost, the job is redelivered, found to be finished, and
    /// acknowledged then.
    ///
    /// # Errors
    /// [`SettleError`].
    pub async fn ack(&self) -> Result<(), SettleError> {
        self.settle("+ACK".into()).await
    }

    /// Wakes a worker for the next job of this partition, which waits for the end of this one.
    pub async fn wake_next(&self) {
        self.work.wake(&self.id, self.partition).await;
    }

    /// Another worker may get the job, after `delay`.
    ///
    /// # Errors
    /// [`SettleError`].
    pub async fn nak(&self, delay: Duration) -> Result<(), SettleError> {
        self.must_hold(Instant::now())?;
        self.work.nak_for(&self.id, self.partition, &self.ack_subject, delay).await
    }

    /// The job is never redelivered: its message is removed, whatever its state.
    ///
    /// # Errors
    /// [`SettleError`].
    pub async fn term(&self) -> Result<(), SettleError> {
        self.settle("+TERM".into()).await
    }

    /// Renews the lease, for all clones of this delivery, once the server has confirmed.
    ///
    /// # Errors
    /// [`SettleError`]; the lease is unchanged then.
    pub async fn renew(&self) -> Result<(), SettleError> {
        let sent_at = Instant::now();
        self.must_hold(sent_at)?;
        let subject = Subject::from(self.ack_subject.0.as_str());
        let answer = bounded(self.work.client().request(subject, Bytes::from_static(b"+WPI"))).await;
        let answer = answer.map_err(|error| SettleError::Unconfirmed(chain(&error)))?;
        answer.map_err(|error| SettleError::Unconfirmed(chain(&error)))?;
        self.lease.lock().expect("no panic holds this lock").renew(sent_at);
        Ok(())
    }

    /// Keeps the input of a job that failed as a dead letter, with the reason and every attempt. May be
    /// repeated.
    ///
    /// # Errors
    /// [`QueueError`] when it may not have been written.
    pub async fn write_dead_letter(&self, reason: &str, attempts: &[Attempt]) -> Result<(), QueueError> {
        self.work.keep_input(&self.id, self.spec.as_ref().ok(), self.payload.clone(), reason, attempts).await
    }

    async fn settle(&self, body: Bytes) -> Result<(), SettleError> {
        self.must_hold(Instant::now())?;
        self.work.send_settlement(&self.ack_subject, body).await
    }

    fn must_hold(&self, now: Instant) -> Result<(), SettleError> {
        if self.lease().is_held(now) { Ok(()) } else { Err(SettleError::LeaseLost) }
    }
}

impl WorkerQueue {
    /// Hands back a delivery of a process that is known to be dead, within its lease.
    ///
    /// # Errors
    /// [`SettleError::Unconfirmed`] when the connection is closed.
    pub async fn nak_for(
        &self,
        job: &JobId,
        partition: PartitionId,
        at: &AckSubject,
        delay: Duration,
    ) -> Result<(), SettleError> {
        self.send_settlement(at, nak_body(delay)).await?;
        if delay.is_zero() {
            self.wake(job, partition).await;
        }
        Ok(())
    }

    async fn send_settlement(&self, at: &AckSubject, body: Bytes) -> Result<(), SettleError> {
        // The client would keep it and send it after a reconnect, when the lease may have expired.
        if self.client().connection_state() != State::Connected {
            return Err(SettleError::Unconfirmed("no connection".into()));
        }
        self.send(at.0.clone(), body).await.map_err(SettleError::Unconfirmed)
    }
}

/// A delay of zero is left out: a server arms a timer for any delay that it is given.
fn nak_body(delay: Duration) -> Bytes {
    if delay.is_zero() {
        return Bytes::from_static(b"-NAK");
    }
    Bytes::from(format!(r#"-NAK {{"delay":{}}}"#, delay.as_nanos()))
}

/// Delivery count and position of a message, from `$JS.ACK.…`: nine tokens, or at least eleven with a domain.
fn counts(reply: &str) -> Option<(u64, Sequence)> {
    let tokens: Vec<&str> = reply.split('.').collect();
    let position = match tokens.len() {
        9 => 5,
        11.. => 7,
        _ => return None,
    };
    let number = |position: usize| tokens.get(position)?.parse::<u64>().ok();
    Some((number(position - 1)?, Sequence(number(position)?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_of_ack_subject_hold_the_sequence() {
        let v1 = "$JS.ACK.jobs_cats_0.workers.1.42.7.1795453200000000000.3";
        let v2 = "$JS.ACK._.hash.jobs_cats_0.workers.1.42.7.1795453200000000000.3.token";
        assert_eq!((counts(v1), counts(v2)), (Some((1, Sequence(42))), Some((1, Sequence(42)))));
        assert_eq!(counts("_INBOX.x"), None);
    }
}
