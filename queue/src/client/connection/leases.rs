//! Lease records in the queue: reading them, and writing them by compare-and-set.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use async_nats::jetstream::stream::{self, DiscardPolicy, LastRawMessageErrorKind, StorageType};
use uuid::Uuid;

use super::messages::is_without_stream;
use super::{Connection, Replaced, Revision, bounded};
use crate::QueueError;
use crate::singleton::{Candidate, LeaseAction, LeaseRecord};

/// The stream of lease records.
pub(in crate::client) const LEASES: &str = "leases";

/// How long a lease lasts without a renewal.
const TERM: Duration = Duration::from_secs(6);
/// Pause between two attempts to get a lease for a short piece of work.
const TRY_PAUSE: Duration = Duration::from_millis(50);
/// How long to try: longer than a term, so that the lease of a killed process has expired.
const TRY_PATIENCE: Duration = Duration::from_secs(15);

/// A lease for one piece of work; given back when that is done.
#[derive(Debug)]
pub(crate) struct Exclusive {
    connection: Connection,
    name: String,
    candidate: Candidate,
    renewed: Instant,
}

impl Exclusive {
    /// Fails if the lease has expired: then nothing may be written any more.
    pub(crate) fn must_hold(&self) -> Result<(), QueueError> {
        if self.candidate.is_held(Instant::now()) {
            return Ok(());
        }
        let problem = "it took longer than the lease for it lasts".to_owned();
        Err(QueueError::Unavailable { action: "make the change", problem })
    }

    /// Renews the lease if half of it has elapsed; for work of many steps.
    pub(crate) async fn keep(&mut self) -> Result<(), QueueError> {
        if self.renewed.elapsed() > TERM / 2 {
            let candidate = Mutex::new(self.candidate.clone());
            self.connection.look_at_lease(&self.name, &candidate).await?;
            (self.candidate, self.renewed) = (candidate.into_inner().expect("no panic held this lock"), Instant::now());
        }
        self.must_hold()
    }

    pub(crate) async fn give_back(self) {
        let Some(revision) = self.candidate.revision() else { return };
        if let Err(error) = self.connection.write_lease(&self.name, revision, None).await {
            tracing::debug!(lease = self.name, %error, "lease not released; it will expire");
        }
    }
}

impl Connection {
    /// Waits until no other process holds the lease `name`.
    pub(crate) async fn exclusive(&self, name: &str) -> Result<Exclusive, QueueError> {
        let candidate = Mutex::new(candidate());
        let started = Instant::now();
        while started.elapsed() < TRY_PATIENCE {
            self.look_at_lease(name, &candidate).await?;
            if candidate.lock().expect("no panic holds this lock").is_held(Instant::now()) {
                let candidate = candidate.into_inner().expect("no panic held this lock");
                return Ok(Exclusive {
                    connection: self.clone(),
                    name: name.to_owned(),
                    candidate,
                    renewed: Instant::now(),
                });
            }
            tokio::time::sleep(TRY_PAUSE).await;
        }
        let problem = "another process is changing it".to_owned();
        Err(QueueError::Unavailable { action: "begin the change", problem })
    }

    /// Creates the stream of lease records, which shows that the server can store data at all.
    pub(in crate::client) async fn ensure_leases(&self) -> Result<(), QueueError> {
        self.ensure_stream(config(self.defaults.replicas)).await
    }

    /// Reads the record once, and writes it if it is this candidate's turn.
    pub(in crate::client) async fn look_at_lease(
        &self,
        name: &str,
        candidate: &Mutex<Candidate>,
    ) -> Result<(), QueueError> {
        let lock = || candidate.lock().expect("no panic holds this lock");
        let read = self.read_lease(name).await?;
        let step = lock().step(read, Instant::now());
        if let LeaseAction::Write(expected) = step {
            let (sent_at, id) = (Instant::now(), lock().id().to_owned());
            let outcome = self.write_lease(name, expected, Some(id)).await?;
            lock().wrote(outcome, sent_at);
        }
        Ok(())
    }

    async fn read_lease(&self, name: &str) -> Result<Option<(Revision, LeaseRecord)>, QueueError> {
        const ACTION: &str = "read a lease record";
        let stream = self.handle(LEASES).await?;
        let subject = subject(name);
        // From the leader: a replica that lags may show a previous holder.
        let read = || bounded(stream.get_last_raw_message_by_subject(&subject));
        let mut answer = read().await.map_err(QueueError::unavailable(ACTION))?;
        if answer.as_ref().is_err_and(|error| is_without_stream(error.kind())) {
            // The first process that wants a lease creates the stream.
            self.ensure_stream(config(self.defaults.replicas)).await?;
            answer = read().await.map_err(QueueError::unavailable(ACTION))?;
        }
        match answer {
            Ok(message) => {
                // An unreadable record would block the lease forever, so it counts as free.
                let record = serde_json::from_slice(&message.payload).unwrap_or_else(|error| {
                    tracing::error!(name, %error, "unreadable lease record; treating the lease as free");
                    LeaseRecord { holder: None }
                });
                Ok(Some((message.sequence.into(), record)))
            }
            Err(error) if error.kind() == LastRawMessageErrorKind::NoMessageFound => Ok(None),
            Err(error) => Err(QueueError::unavailable(ACTION)(error)),
        }
    }

    async fn write_lease(&self, name: &str, over: Revision, holder: Option<String>) -> Result<Replaced, QueueError> {
        self.write_over("write a lease record", subject(name), over, &LeaseRecord { holder }).await
    }
}

/// A new candidate for a lease.
pub(in crate::client) fn candidate() -> Candidate {
    Candidate::new(Uuid::new_v4().simple().to_string(), TERM)
}

fn subject(name: &str) -> String {
    format!("{LEASES}.{name}")
}

fn config(replicas: usize) -> stream::Config {
    stream::Config {
        name: LEASES.into(),
        subjects: vec![format!("{LEASES}.>")],
        discard: DiscardPolicy::Old,
        max_messages_per_subject: 1,
        storage: StorageType::File,
        num_replicas: replicas,
        ..stream::Config::default()
    }
}
