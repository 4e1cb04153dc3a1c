//! One job, from its delivery to its settlement.
//!
//! The order makes each step safe to interrupt: `running` is written before the image is touched, and the terminal
//! record before the message is settled; for a failed job the order is record, dead letter, term. After a crash a
//! worker finds the last step that was done and continues from there; each step may be done twice.

use std::sync::Arc;
use std::time::{Duration, Instant};

use models::postprocess::Wishes;
use queue::client::{Delivery, Replaced, Revision, Stored};
use queue::members::Stage;
use queue::{JobError, JobSpec, QueueError, Record, SettleError, State, Timestamp, Topic, WorkerQueue};
use tokio::sync::{Mutex, OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

use crate::engine::{Engine, Request};
use crate::error::{RunError, WorkerError};
use crate::lease::LeaseKeeper;
use crate::outcome::{Outcome, Settlement, bury, decide};
use crate::peers::job_pause;
use crate::report::{Report, Reporter};
use crate::rounds::TopicPartition;
use crate::runs::Runs;
use crate::status::Status;

/// How long a run waits for a job that is being fetched.
const ARRIVAL_MAX: Duration = Duration::from_millis(100);

/// What all jobs of a worker need.
#[derive(Clone)]
pub(crate) struct JobContext {
    pub(crate) queue: WorkerQueue,
    pub(crate) engine: Engine,
    /// The worker's member id.
    pub(crate) member: String,
    pub(crate) status: Status,
    pub(crate) reporter: Reporter,
    /// Held by the one job that is being settled.
    pub(crate) settling: Arc<Semaphore>,
    /// Locked while a job is being fetched.
    pub(crate) arriving: Arc<Mutex<()>>,
    /// Jobs that have begun here, so that each can be canceled.
    pub(crate) runs: Runs,
    /// Canceled when unfinished runs must be given up, because this process is about to end.
    pub(crate) leaving: CancellationToken,
}

/// A job that this worker holds: its lease is renewed until this is dropped.
pub(crate) struct InHand {
    delivery: Delivery,
    topic: Arc<Topic>,
    /// The record as it was when the job was taken, until it is used. If it has changed since, the write that is based
    /// on it is refused.
    seen: Option<Stored>,
    _lease: LeaseKeeper,
    _held: Held,
}

/// Releases a job and reports that when it is dropped, however the job ended.
struct Held {
    job: queue::JobId,
    status: Status,
    reporter: Reporter,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.status.release(&self.job);
        self.reporter.send(&Report::Settled { job: self.job.clone() });
    }
}

/// How a job began.
enum Begun {
    /// This worker runs it.
    Running { record: Box<Record>, revision: Revision },
    /// There is nothing to run; this settles the message.
    Over(Settlement),
    /// Its message must be left alone: the lease is lost, or the queue does not answer.
    Left,
}

impl InHand {
    pub(crate) fn new(delivery: Delivery, topic: Arc<Topic>, bench: &JobContext) -> Self {
        bench.status.stage(&delivery.id, Stage::InHand);
        bench.reporter.send(&Report::Took {
            job: delivery.id.clone(),
            partition: delivery.partition,
            ack_subject: delivery.ack_subject.clone(),
            lease_ms: topic.settings.lease_ms,
        });
        let held = Held { job: delivery.id.clone(), status: bench.status.clone(), reporter: bench.reporter };
        Self { _lease: LeaseKeeper::start(&delivery, bench.reporter), _held: held, delivery, topic, seen: None }
    }

    /// Whether the job is for one of these models.
    pub(crate) fn is_for(&self, models: &[String]) -> bool {
        self.topic.settings.model.as_ref().is_some_and(|model| models.contains(model))
    }

    /// Reads the record in advance, while another job is in the model.
    pub(crate) async fn look(&mut self, bench: &JobContext) {
        // An error here is ignored: it is found again, and logged, when the job begins.
        self.seen = bench.queue.find_record(&self.delivery.id).await.ok().flatten();
    }

    /// The topic and partition that it came from.
    pub(crate) fn place(&self) -> TopicPartition {
        (self.topic.name().clone(), self.delivery.partition)
    }

    /// The job's spec, if it needs model files that only another worker has. `None` also for a job that has ended or
    /// cannot be read, since there is nothing to run.
    pub(crate) fn is_for_others(&self, bench: &JobContext) -> Option<JobSpec> {
        let spec = match (&self.seen, &self.delivery.spec) {
            (Some(seen), _) if seen.record.is_terminal() => return None,
            (Some(seen), _) => &seen.record.spec,
            (None, spec) => spec.as_ref().ok()?,
        };
        (!bench.engine.has(spec)).then(|| spec.clone())
    }

    /// How long to return the job for if it is for other workers: longer each time.
    pub(crate) fn pause(&self) -> Duration {
        job_pause(self.delivery.deliveries)
    }

    /// Returns the job to the queue for a while. It has not started, so this costs no attempt.
    pub(crate) async fn postpone(self, pause: Duration) {
        tracing::debug!(job_id = %self.delivery.id, ?pause, "job needs other model files");
        log_unsettled(&self.delivery, self.delivery.nak(pause).await);
    }

    /// Returns the job to the queue. It has not started, so this costs no attempt.
    pub(crate) async fn hand_back(self) {
        tracing::info!(job_id = %self.delivery.id, "handed back");
        log_unsettled(&self.delivery, self.delivery.nak(Duration::ZERO).await);
    }

    /// Runs the job and settles it. `slot` is the model's, and is released as soon as the model is free.
    ///
    /// # Errors
    /// [`WorkerError::Stuck`]: the job is settled, but this process must end.
    pub(crate) async fn execute(mut self, bench: &JobContext, slot: OwnedSemaphorePermit) -> Result<(), WorkerError> {
        let canceled = bench.runs.enter(&self.delivery.id);
        let (running, revision) = match self.begin(bench).await {
            Begun::Running { record, revision } => (record, revision),
            Begun::Over(settlement) => {
                self.settle(&settlement).await;
                return Ok(());
            }
            Begun::Left => return Ok(()),
        };
        bench.reporter.send(&Report::Running { job: self.delivery.id.clone(), attempt: running.attempts.len() as u32 });
        bench.status.stage(&self.delivery.id, Stage::Running);
        let request = self.request(&running);
        let model = request.model.clone();
        let timeout = request.timeout;
        // A run may kill this process. Its supervisor then returns the reported jobs to the queue; a job that is still
        // being fetched is not reported yet.
        drop(tokio::time::timeout(ARRIVAL_MAX, bench.arriving.lock()).await);
        let (run, stuck) = match bench.engine.run(request, canceled.canceled(), bench.leaving.cancelled()).await {
            // The record is already canceled, and the process that wrote it has removed the message.
            Ok(Err(RunError::Canceled)) => {
                bench.status.count(&running, &Err(RunError::Canceled), "canceled");
                return Ok(());
            }
            Ok(run) => (run, false),
            Err(_) => (Err(RunError::Timeout(timeout)), true),
        };
        // At most one job is settled while the next one is in the model.
        let settling = bench.settling.acquire().await;
        bench.status.stage(&self.delivery.id, Stage::Settling);
        // A stuck model stays occupied until the process ends.
        if stuck {
            slot.forget();
        } else {
            drop(slot);
        }
        let (retry, attempts_max) = (&self.topic.settings.retry, self.topic.settings.attempts_max);
        let outcome = decide(&running, &run, attempts_max, retry, rand::random(), Timestamp::now());
        let outcome = outcome.expect("a record that `begin` has set running may go anywhere from there");
        let ended = self.conclude(bench, &running, revision, outcome).await;
        bench.status.count(&running, &run, ended);
        drop(settling);
        if stuck { Err(WorkerError::Stuck { model }) } else { Ok(()) }
    }

    /// Writes `running`, unless the record shows that there is nothing to run.
    async fn begin(&mut self, bench: &JobContext) -> Begun {
        loop {
            match self.try_begin(bench).await {
                Ok(Some(begun)) => return begun,
                Ok(None) => tracing::debug!(job_id = %self.delivery.id, "record changed meanwhile; reading it again"),
                Err(error) => {
                    tracing::error!(job_id = %self.delivery.id, %error, "not settled; will be redelivered when the lease expires");
                    return Begun::Left;
                }
            }
        }
    }

    /// `None` if another process wrote the record meanwhile.
    async fn try_begin(&mut self, bench: &JobContext) -> Result<Option<Begun>, QueueError> {
        if !self.delivery.lease().is_held(Instant::now()) {
            return Ok(Some(Begun::Left));
        }
        let now = Timestamp::now();
        let stored = match self.seen.take() {
            // A job that had ended by then may have been retried since.
            Some(seen) if !seen.record.is_terminal() => Some(seen),
            _ => bench.queue.find_record(&self.delivery.id).await?,
        };
        let (record, revision) = match (stored, &self.delivery.spec) {
            (Some(Stored { record, revision }), _) => (record, revision),
            (None, Ok(spec)) => {
                let (partition, sequence) = (self.delivery.partition, self.delivery.sequence);
                (Record::queued(spec.clone(), partition, sequence), Revision::default())
            }
            (None, Err(problem)) => {
                let reason = format!("message_unreadable: {problem}");
                return Ok(Some(Begun::Over(Settlement::Bury { reason, attempts: Vec::new() })));
            }
        };
        // A client retried this job and has not written the record yet.
        let place = (self.delivery.partition, self.delivery.sequence);
        let record = match record.again(place.0, place.1) {
            Ok(again) if self.delivery.again == Some(revision) => again,
            _ => record,
        };
        // This message is from another request, which was not the first for this job. It can be removed: whatever
        // became of the job, its dead letter holds the job's own image.
        if (record.partition, record.sequence) != place {
            return Ok(Some(Begun::Over(Settlement::Ack)));
        }
        match &record.state {
            // A worker may have crashed between the record and its dead letter.
            State::Failed { .. } => return Ok(Some(Begun::Over(bury(&record)))),
            State::Succeeded { .. } | State::Canceled { .. } => return Ok(Some(Begun::Over(Settlement::Ack))),
            State::Queued { .. } | State::Running {} => {}
        }
        // Reading may have taken long, and another worker has the job once the lease expires.
        if !self.delivery.lease().is_held(Instant::now()) {
            return Ok(Some(Begun::Left));
        }
        let never_terminal = "its state was looked at just now";
        if record.tries() >= self.topic.settings.attempts_max {
            let failed = record.exhaust(None, now).expect(never_terminal);
            let written = bench.queue.replace(revision, &failed).await?;
            return Ok((written != Replaced::Refused).then(|| {
                bench.status.update(|member| member.totals.count(&failed.spec.model, "failed"));
                Begun::Over(bury(&failed))
            }));
        }
        if let Some(error) = record.overdue(now) {
            let failed = record.fail(error, now).expect(never_terminal);
            let written = bench.queue.replace(revision, &failed).await?;
            return Ok((written != Replaced::Refused).then(|| {
                bench.status.update(|member| member.totals.count(&failed.spec.model, "failed"));
                Begun::Over(bury(&failed))
            }));
        }
        // `look` may have read an earlier life of this job, which had ended.
        if !bench.engine.has(&record.spec) {
            return Ok(Some(Begun::Over(Settlement::Nak { delay: self.pause() })));
        }
        let running = record.start(&bench.member, now).expect(never_terminal);
        Ok(match bench.queue.replace(revision, &running).await? {
            Replaced::Done(revision) => Some(Begun::Running { record: Box::new(running), revision }),
            Replaced::Refused => None,
        })
    }

    fn request(&self, running: &Record) -> Request {
        let spec = &running.spec;
        let timeout = spec.options.timeout_ms.map(Duration::from_millis).unwrap_or(self.topic.run_timeout());
        Request {
            image: self.delivery.payload.clone(),
            model: spec.model.clone(),
            version: spec.model_version,
            wishes: Wishes { top_k: spec.options.top_k, threshold: spec.options.threshold },
            timeout,
        }
    }

    /// Writes the record of an outcome, then settles. Returns the name under which the attempt is
    /// counted.
    async fn conclude(
        self,
        bench: &JobContext,
        running: &Record,
        revision: Revision,
        outcome: Outcome,
    ) -> &'static str {
        match bench.queue.replace(revision, &outcome.record).await {
            Ok(Replaced::Done(_)) => {
                bench.reporter.send(&Report::Ended { job: self.delivery.id.clone() });
                self.settle(&outcome.settlement).await;
                outcome.settlement.name()
            }
            // Canceled, or redelivered because our lease expired. Either way, the job and its message are
            // no longer ours.
            Ok(Replaced::Refused) => {
                tracing::warn!(job_id = %self.delivery.id, "result dropped: another worker holds the job");
                "superseded"
            }
            // A result that does not fit into a record never will.
            Err(QueueError::TooLarge { .. }) if matches!(outcome.settlement, Settlement::Ack) => {
                let error = JobError::new("result_too_large", "the result is larger than the queue's server takes");
                let failed = running.fail(error, Timestamp::now()).expect("it runs");
                let settlement = bury(&failed);
                Box::pin(self.conclude(bench, running, revision, Outcome { record: failed, settlement })).await
            }
            Err(error) => {
                tracing::error!(job_id = %self.delivery.id, %error, "outcome not written; job will be redelivered when its lease expires");
                "unwritten"
            }
        }
    }

    async fn settle(&self, settlement: &Settlement) {
        let settled = match settlement {
            Settlement::Ack => self.delivery.ack().await,
            Settlement::Nak { delay } => self.delivery.nak(*delay).await,
            Settlement::Bury { reason, attempts } => match self.delivery.write_dead_letter(reason, attempts).await {
                Ok(()) => self.delivery.term().await,
                Err(error) => {
                    let job_id = &self.delivery.id;
                    return tracing::error!(%job_id, %error, "not settled; will be redelivered when the lease expires");
                }
            },
        };
        log_unsettled(&self.delivery, settled);
        // The next job of an ordered partition has waited for this.
        if self.topic.settings.ordered {
            self.delivery.wake_next().await;
        }
    }
}

fn log_unsettled(delivery: &Delivery, settled: Result<(), SettleError>) {
    if let Err(error) = settled {
        tracing::warn!(job_id = %delivery.id, %error, "job not settled; it will be redelivered when its lease expires");
    }
}
