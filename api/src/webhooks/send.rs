//! Sends webhook calls.

use std::sync::Arc;
use std::time::{Duration, Instant};

use queue::client::{About, Hook, OwedCall};
use queue::{Queue, QueueError, Timestamp};
use reqwest::StatusCode;
use serde_json::json;
use standardwebhooks::Webhook;
use tokio::task::JoinSet;

use super::deliveries::{Delivery, Outcome};
use super::guard;
use super::receivers::{CALLS_MAX, CallPermit, Receiver, Receivers};
use crate::batches;
use crate::index::{Index, IndexError};
use crate::jobs::Job;
use crate::metrics;

/// Pauses before the second and later attempts: eight hours in all.
const PAUSES: [Duration; 9] = [
    Duration::from_secs(5),
    Duration::from_secs(30),
    Duration::from_secs(2 * 60),
    Duration::from_secs(10 * 60),
    Duration::from_secs(30 * 60),
    Duration::from_secs(60 * 60),
    Duration::from_secs(60 * 60),
    Duration::from_secs(2 * 60 * 60),
    Duration::from_secs(3 * 60 * 60),
];
/// How long a receiver may take to answer.
const ANSWER_MAX: Duration = Duration::from_secs(20);
/// A call that is older than this is given up if its receiver has been failing for that long too.
const GIVE_UP_AFTER: Duration = Duration::from_secs(8 * 60 * 60);
/// Pause when the content of a call cannot be read.
const OWN_FAULT_PAUSE: Duration = Duration::from_secs(5);
/// Pause when nothing is due.
const LOOK_PAUSE: Duration = Duration::from_millis(250);

/// Delivers calls; clones share it.
#[derive(Clone)]
pub(crate) struct Sender {
    queue: Queue,
    index: Index,
    secret: Arc<str>,
    /// Hosts that may be called although they are not public.
    allowed: Arc<[String]>,
    receivers: Receivers,
}

impl Sender {
    pub(crate) fn new(queue: Queue, index: Index, secret: &str, allowed: &[String]) -> Self {
        // Fails only if a provider was installed before, which is the same one.
        drop(rustls::crypto::ring::default_provider().install_default());
        Self { queue, index, secret: secret.into(), allowed: allowed.into(), receivers: Receivers::default() }
    }

    /// Delivers due calls until the future is dropped.
    pub(crate) async fn keep(self) -> Result<(), QueueError> {
        let mut calls = JoinSet::new();
        loop {
            if let Err(error) = self.work(&mut calls).await {
                tracing::warn!(%error, "webhook calls wait until the queue answers");
            }
            tokio::time::sleep(LOOK_PAUSE).await;
        }
    }

    async fn work(&self, calls: &mut JoinSet<()>) -> Result<(), QueueError> {
        let senders = self.queue.hooks.senders().await?;
        loop {
            while calls.try_join_next().is_some() {}
            if calls.len() >= CALLS_MAX {
                drop(calls.join_next().await);
            }
            let Some(call) = self.queue.hooks.next_call(&senders).await? else {
                tokio::time::sleep(LOOK_PAUSE).await;
                continue;
            };
            // A URL that cannot be parsed fails in the call itself, which logs the reason.
            let receiver = receiver_of(&call.hook);
            match self.receivers.turn(&receiver, Instant::now()) {
                CallPermit::Now(place) => {
                    let sender = self.clone();
                    calls.spawn(async move {
                        sender.deliver(&call, &receiver).await;
                        drop(place);
                    });
                }
                CallPermit::Later(pause) if self.is_given_up(&call, &receiver) => {
                    let error = "its receiver has failed for eight hours".to_owned();
                    match self.attempt(&call).await {
                        Ok(attempt) => self.conclude(&call, attempt, Err(error), Outcome::GivenUp, None).await,
                        Err(_) => put_off(&call, pause).await,
                    }
                }
                CallPermit::Later(pause) => put_off(&call, pause).await,
            }
        }
    }

    /// Whether a call has waited for a failing receiver for as long as calls are retried.
    fn is_given_up(&self, call: &OwedCall, receiver: &Receiver) -> bool {
        let age = Duration::from_millis(Timestamp::now().millis_since(call.noted_at));
        age >= GIVE_UP_AFTER && self.receivers.failing_for(receiver, Instant::now()) >= GIVE_UP_AFTER
    }

    /// The number of this attempt, by the delivery log: a call that was put off is not an attempt.
    async fn attempt(&self, call: &OwedCall) -> Result<u32, IndexError> {
        let (hook, event) = (&call.hook, event(&call.hook));
        let made = self.index.deliveries(&hook.about).await?;
        let is_its = |made: &&Delivery| made.event == event && made.url == hook.url && made.at >= call.noted_at;
        Ok(made.iter().filter(is_its).count() as u32 + 1)
    }

    async fn deliver(&self, call: &OwedCall, receiver: &Receiver) {
        let hook = &call.hook;
        // The call's content and number of attempts. If they cannot be read, the receiver is not at fault.
        let known = async {
            let attempt = self.attempt(call).await.map_err(|error| error.to_string())?;
            let is_gone =
                self.index.is_gone(hook.owner.as_deref(), &hook.url).await.map_err(|error| error.to_string())?;
            Ok::<_, String>((attempt, is_gone, self.data(&hook.about).await?))
        };
        let (attempt, is_gone, data) = match known.await {
            Ok(known) => known,
            Err(problem) => {
                tracing::warn!(about = %hook.about, problem, "webhook call postponed");
                return put_off(call, OWN_FAULT_PAUSE).await;
            }
        };
        if is_gone {
            let error = "the receiver answered 410 before; calls to it are stopped".to_owned();
            return self.conclude(call, attempt, Err(error), Outcome::Disabled, None).await;
        }
        let answer = self.try_call(call, data).await;
        // If a receiver does not answer, or cannot take calls now, other calls to it would fail too.
        let is_well = answer.as_ref().is_ok_and(|status| !is_receivers_fault(*status));
        self.receivers.note(receiver, is_well, Instant::now());
        let pause = PAUSES.get(attempt.saturating_sub(1) as usize);
        let outcome = match &answer {
            Ok(status) if status.is_success() => Outcome::Delivered,
            Ok(StatusCode::GONE) => Outcome::Disabled,
            _ if pause.is_some() => Outcome::Retrying,
            _ => Outcome::GivenUp,
        };
        self.conclude(call, attempt, answer, outcome, pause.copied().filter(|_| outcome == Outcome::Retrying)).await;
    }

    /// Records how an attempt ended; `pause` is the time until the next one.
    async fn conclude(
        &self,
        call: &OwedCall,
        attempt: u32,
        answer: Result<StatusCode, String>,
        outcome: Outcome,
        pause: Option<Duration>,
    ) {
        let hook = &call.hook;
        let delivery = Delivery {
            event: event(hook),
            url: hook.url.clone(),
            attempt,
            at: Timestamp::now(),
            status: answer.as_ref().ok().map(|status| status.as_u16()),
            outcome,
            error: answer.err(),
        };
        metrics::called(outcome.name());
        tracing::debug!(about = %hook.about, outcome = outcome.name(), attempt, "webhook");
        if let Err(error) = self.index.log_delivery(&hook.about, &delivery).await {
            tracing::warn!(about = %hook.about, %error, "webhook call not written to the delivery log");
        }
        let settled = match pause {
            Some(pause) => call.later(pause.mul_f64(0.9 + 0.2 * rand::random::<f64>())).await,
            None => call.done().await,
        };
        if let Err(error) = settled {
            tracing::warn!(about = %hook.about, %error, "webhook call may be sent twice");
        }
    }

    /// The current state of the job or batch; only its id if its record has expired.
    async fn data(&self, about: &About) -> Result<serde_json::Value, String> {
        let words = |error: &dyn std::fmt::Display| error.to_string();
        match about {
            About::Job(job) => {
                let stored = self.queue.find_record(job).await.map_err(|error| words(&error))?;
                Ok(stored.map_or_else(|| json!({"id": job}), |stored| json!(Job::from(&stored.record))))
            }
            About::Batch(id) => {
                let Some((batch, _)) = self.queue.batches.get(id).await.map_err(|error| words(&error))? else {
                    return Ok(json!({"id": id}));
                };
                // Another process may have seen the end, with an index of its own.
                self.index.catch_up(&self.queue).await.map_err(|error| words(&error))?;
                let document = batches::document(&self.index, &batch).await.map_err(|error| words(&error))?;
                Ok(json!(document))
            }
        }
    }

    async fn try_call(&self, call: &OwedCall, data: serde_json::Value) -> Result<StatusCode, String> {
        let hook = &call.hook;
        let now = time::OffsetDateTime::now_utc().unix_timestamp();
        let body = json!({"type": event(hook), "timestamp": Timestamp::now(), "data": data});
        let body = body.to_string();
        // The same for all attempts of one call, so that the receiver can detect duplicates.
        let of = match &hook.about {
            About::Job(job) => job.uuid().simple().to_string(),
            About::Batch(id) => id.clone(),
        };
        let id = format!("msg_{of}_{}_{}", hook.revision, hook.state);
        let signer = Webhook::new(&self.secret).map_err(|error| error.to_string())?;
        let signature = signer.sign(&id, now, body.as_bytes()).map_err(|error| error.to_string())?;
        let url = reqwest::Url::parse(&hook.url).map_err(|error| error.to_string())?;
        let host = url.host_str().ok_or("it names no host")?.to_owned();
        let port = url.port_or_known_default().ok_or("it names no port")?;
        let address = guard::resolve(&host, port, &self.allowed).await?;
        let client = reqwest::Client::builder()
            .resolve(&host, address)
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            .timeout(ANSWER_MAX)
            .build()
            .map_err(|error| error.to_string())?;
        let request = client
            .post(url)
            .header("content-type", "application/json")
            .header("user-agent", concat!("sightline/", env!("CARGO_PKG_VERSION")))
            .header("webhook-id", id)
            .header("webhook-timestamp", now.to_string())
            .header("webhook-signature", signature)
            .body(body);
        let answer = request.send().await.map_err(|error| error.without_url().to_string())?;
        let status = answer.status();
        if status == StatusCode::GONE
            && let Err(error) = self.index.note_gone(hook.owner.as_deref(), &hook.url).await
        {
            tracing::warn!(%error, "receiver that answered 410 not stored");
        }
        Ok(status)
    }
}

/// Puts a call back into the queue for a while.
async fn put_off(call: &OwedCall, pause: Duration) {
    if let Err(error) = call.later(pause).await {
        tracing::debug!(about = %call.hook.about, %error, "webhook call not postponed; it will be redelivered");
    }
}

/// The receiver of a call.
fn receiver_of(hook: &Hook) -> Receiver {
    let url = reqwest::Url::parse(&hook.url).ok();
    let host = url.as_ref().and_then(|url| url.host_str()).unwrap_or_default().to_owned();
    let port = url.as_ref().and_then(reqwest::Url::port_or_known_default).unwrap_or_default();
    Receiver { owner: hook.owner.clone(), host, port }
}

/// Whether an answer means that the receiver can take no calls now, whatever they are about.
fn is_receivers_fault(status: StatusCode) -> bool {
    status.is_server_error() || matches!(status, StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS)
}

/// The event name of a call.
fn event(hook: &Hook) -> String {
    let kind = match hook.about {
        About::Job(_) => "job",
        About::Batch(_) => "batch",
    };
    format!("{kind}.{}", hook.state)
}
