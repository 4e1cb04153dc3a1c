//! Members: every process announces itself each second, and counts as gone when it stops doing so.
//!
//! Announcements are plain messages on `members.<role>.<id>`; nothing is written to disk. They
//! also carry a worker's counters, which only grow, so that a receiver that missed some messages is
//! correct again after the next one. [`Table`] is pure: announcement and time in, members out.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::{Stream, StreamExt};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use crate::client::Connection;
use crate::{JobId, JobSpec, QueueError, Timestamp};

/// How often a member announces itself.
pub const ANNOUNCE_INTERVAL: Duration = Duration::from_secs(1);
/// A member that has not announced itself for this long counts as gone.
pub const SILENCE_MAX: Duration = Duration::from_secs(5);
/// The subject on which all members are asked to announce themselves.
const ASK_SUBJECT: &str = "members.ask";
/// How long to wait for answers: at least, after the last new member, and at most.
const ASK_MIN: Duration = Duration::from_millis(600);
const ASK_QUIET: Duration = Duration::from_millis(250);
const ASK_MAX: Duration = Duration::from_millis(2_500);
/// Members that a table holds; announcements beyond that are ignored.
const MEMBERS_MAX: usize = 10_000;
/// How long the end of a member is remembered: longer than a message may be in transit.
const GONE_MEMORY: Duration = Duration::from_secs(30);
/// Silent members whose counters are kept separately.
const SILENT_MAX: usize = 1_000;

/// Role of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Serves HTTP.
    Api,
    /// Runs models.
    Worker,
    /// Starts, watches and ends workers of its machine.
    Supervisor,
}

/// State of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MemberState {
    /// It is loading what it needs.
    Starting,
    /// It is doing its work.
    Ready,
    /// It finishes the work that it holds and takes no more.
    Draining,
    /// It has ended, as announced by itself or its supervisor.
    Gone,
    /// A state that only a newer version knows.
    #[serde(other)]
    Unknown,
}

impl fmt::Display for MemberState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Starting => "starting",
            Self::Ready => "ready",
            Self::Draining => "draining",
            Self::Gone => "gone",
            Self::Unknown => "unknown",
        })
    }
}

/// Stage of a job on a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// It waits for the one before it to leave the model.
    InHand,
    /// It is decoded, run, read.
    Running,
    /// Its outcome is being written.
    Settling,
}

/// A job on a worker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Work {
    /// Which.
    pub job: JobId,
    /// Its stage.
    pub stage: Stage,
}

/// Number of workers of a supervisor, and its bounds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Scale {
    /// Lower bound.
    pub min: usize,
    /// Upper bound.
    pub max: usize,
    /// Number that should run now.
    pub now: usize,
}

/// One version of a model on a worker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ModelFiles {
    /// The model's name.
    pub model: String,
    /// The version's number.
    pub version: u32,
    /// Equal digests give equal answers.
    pub digest: String,
}

impl ModelFiles {
    /// Whether these are the files that a job was accepted for.
    pub fn are_promised(&self, spec: &JobSpec) -> bool {
        (&self.model, self.version, &self.digest) == (&spec.model, spec.model_version, &spec.model_digest)
    }
}

/// A process's announcement of itself.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Announcement {
    /// Unique for the life of one process.
    pub id: String,
    /// What it does.
    pub role: Role,
    /// Its state: `starting`, `ready`, `draining`, `gone`.
    #[schema(value_type = String)]
    pub state: MemberState,
    /// Increases with each announcement, so that a late one is ignored.
    #[serde(default)]
    pub beat: u64,
    /// Its process id, for display only.
    pub pid: u32,
    /// Sightline's version.
    pub version: String,
    /// When it started.
    pub started_at: Timestamp,
    /// Models that it can run.
    #[serde(default)]
    pub models: Vec<String>,
    /// Digests of these models' files: a job runs on a worker that has the files it was accepted for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub files: Vec<ModelFiles>,
    /// Number of jobs it holds.
    #[serde(default)]
    pub in_hand: u32,
    /// The jobs it holds.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub work: Vec<Work>,
    /// For a supervisor: its number of workers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scale: Option<Scale>,
    /// Its counters since its start.
    #[serde(default)]
    pub totals: Totals,
}

impl Announcement {
    /// Whether this is a worker that has the files that a job was accepted for.
    pub fn can_run(&self, spec: &JobSpec) -> bool {
        self.role == Role::Worker && self.files.iter().any(|files| files.are_promised(spec))
    }

    /// A new member of this process, starting now.
    pub fn new(role: Role, models: &[String]) -> Self {
        Self {
            id: new_id(role),
            role,
            state: MemberState::Starting,
            beat: 0,
            pid: std::process::id(),
            version: env!("CARGO_PKG_VERSION").into(),
            started_at: Timestamp::now(),
            models: models.to_vec(),
            files: Vec::new(),
            in_hand: 0,
            work: Vec::new(),
            scale: None,
            totals: Totals::default(),
        }
    }
}

/// Counters of a worker since its start, by model.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Totals {
    /// Finished attempts: model, outcome (`succeeded`, `failed`, `retried`, `superseded`, `unwritten`), count.
    pub outcomes: BTreeMap<String, BTreeMap<String, u64>>,
    /// Time by stage: model, stage (`queue`, `decode`, …), count and sum.
    pub stages: BTreeMap<String, BTreeMap<String, StageTotal>>,
}

/// How often a stage ran, and its total time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct StageTotal {
    /// Times.
    pub count: u64,
    /// Total seconds.
    pub seconds: f64,
}

impl Totals {
    /// Counts one finished attempt.
    pub fn count(&mut self, model: &str, outcome: &str) {
        *self.outcomes.entry(model.to_owned()).or_default().entry(outcome.to_owned()).or_default() += 1;
    }

    /// Counts one run of a stage.
    pub fn time(&mut self, model: &str, stage: &str, seconds: f64) {
        let total = self.stages.entry(model.to_owned()).or_default().entry(stage.to_owned()).or_default();
        total.count += 1;
        total.seconds += seconds;
    }

    /// Average time that a worker needs for a job of a model, once measured.
    pub fn service(&self, model: &str) -> Option<Duration> {
        let stages = self.stages.get(model)?;
        let work = stages.iter().filter(|(stage, _)| *stage != "queue").map(|(_, total)| total.seconds).sum::<f64>();
        let count = stages.values().map(|total| total.count).max().filter(|count| *count > 0)?;
        Some(Duration::from_secs_f64(work / count as f64))
    }

    /// Adds another process's counters.
    pub fn add(&mut self, other: &Self) {
        for (model, outcomes) in &other.outcomes {
            let ours = self.outcomes.entry(model.clone()).or_default();
            outcomes.iter().for_each(|(outcome, count)| *ours.entry(outcome.clone()).or_default() += count);
        }
        for (model, stages) in &other.stages {
            let ours = self.stages.entry(model.clone()).or_default();
            for (stage, total) in stages {
                let sum = ours.entry(stage.clone()).or_default();
                sum.count += total.count;
                sum.seconds += total.seconds;
            }
        }
    }
}

/// A new member's id: the role's first letter and 12 random hexadecimal digits.
fn new_id(role: Role) -> String {
    let letter = match role {
        Role::Api => 'a',
        Role::Worker => 'w',
        Role::Supervisor => 's',
    };
    let random = Uuid::new_v4().simple().to_string();
    format!("{letter}-{}", &random[..12])
}

/// The members that have announced themselves recently.
#[derive(Debug, Default)]
pub struct Table {
    heard: BTreeMap<String, (Announcement, Instant)>,
    /// Counters of members that are silent now; a member that was only paused takes its own back.
    silent: BTreeMap<String, Totals>,
    /// Sum of the counters of silent members for which `silent` has no room.
    forgotten: Totals,
    /// Members whose end was announced recently; their messages in transit do not bring them back.
    gone: BTreeMap<String, Instant>,
}

impl Table {
    /// Takes an announcement that arrived at `now`.
    pub fn hear(&mut self, announcement: Announcement, now: Instant) {
        let id = announcement.id.clone();
        if announcement.state == MemberState::Gone {
            // A supervisor that announces a dead member does not know its counters.
            if let Some((last, _)) = self.heard.remove(&id) {
                self.silent.insert(id.clone(), last.totals);
            }
            self.gone.insert(id, now);
            return;
        }
        let known = self.heard.get(&id).map(|(known, _)| known.beat);
        let is_late = known.is_some_and(|known| announcement.beat < known) || self.gone.contains_key(&id);
        if !is_late && (known.is_some() || self.heard.len() < MEMBERS_MAX) {
            self.silent.remove(&id);
            self.heard.insert(id, (announcement, now));
        }
    }

    /// Whether this member is in the table.
    fn knows(&self, id: &str) -> bool {
        self.heard.contains_key(id)
    }

    /// Removes members that were silent for [`SILENCE_MAX`], but keeps their counters.
    pub fn expire(&mut self, now: Instant) {
        let gone = |at: Instant| now.saturating_duration_since(at) >= SILENCE_MAX;
        for (id, (announcement, _)) in self.heard.extract_if(.., |_, (_, at)| gone(*at)) {
            self.silent.insert(id, announcement.totals);
        }
        self.gone.retain(|_, at| now.saturating_duration_since(*at) < GONE_MEMORY);
        while self.silent.len() > SILENT_MAX
            && let Some((_, totals)) = self.silent.pop_first()
        {
            self.forgotten.add(&totals);
        }
    }

    /// All present members, by id.
    pub fn members(&self) -> impl Iterator<Item = &Announcement> {
        self.heard.values().map(|(announcement, _)| announcement)
    }

    /// Sum of the counters of all workers, including those that have ended.
    pub fn totals(&self) -> Totals {
        let mut totals = self.forgotten.clone();
        self.silent.values().for_each(|silent| totals.add(silent));
        self.members().for_each(|member| totals.add(&member.totals));
        totals
    }
}

/// Resolves when it is time for an announcement; see [`Connection::announcement_times`].
pub struct AnnouncementTimes {
    interval: tokio::time::Interval,
    asked: std::pin::Pin<Box<dyn Stream<Item = ()> + Send>>,
}

impl AnnouncementTimes {
    /// Waits for the next time. May be dropped and called again.
    pub async fn next(&mut self) {
        tokio::select! {
            _ = self.interval.tick() => {}
            Some(()) = self.asked.next() => {}
        }
    }
}

/// The next beat, for all members of this process.
static BEAT: AtomicU64 = AtomicU64::new(1);

impl Connection {
    /// Announces that a member has ended.
    pub async fn announce_gone(&self, mut member: Announcement) {
        member.state = MemberState::Gone;
        self.announce(&member).await;
    }

    /// Announces a member once.
    pub async fn announce(&self, announcement: &Announcement) {
        let announcement = &Announcement { beat: BEAT.fetch_add(1, Ordering::Relaxed), ..announcement.clone() };
        let role = serde_json::to_value(announcement.role).expect("a role is a string");
        let subject = format!("members.{}.{}", role.as_str().unwrap_or_default(), announcement.id);
        let payload = serde_json::to_vec(announcement).expect("an announcement holds strings and numbers");
        if let Err(error) = self.send(subject, Bytes::from(payload)).await {
            tracing::debug!(%error, "not announced");
        }
    }

    /// When a member is to announce itself: each second, and when asked.
    ///
    /// # Errors
    /// [`QueueError`] when the connection is closed.
    pub async fn announcement_times(&self) -> Result<AnnouncementTimes, QueueError> {
        let unavailable = |problem| QueueError::Unavailable { action: "listen for questions", problem };
        let asked = self.listen(ASK_SUBJECT.into()).await.map_err(unavailable)?;
        let mut interval = tokio::time::interval(ANNOUNCE_INTERVAL);
        interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        Ok(AnnouncementTimes { interval, asked: Box::pin(asked.map(|_| ())) })
    }

    /// Asks all members to announce themselves, and waits until no new member has answered for a while.
    ///
    /// # Errors
    /// [`QueueError`] when the queue does not answer.
    pub async fn ask_members(&self) -> Result<Table, QueueError> {
        let unavailable = |problem| QueueError::Unavailable { action: "ask for the members", problem };
        let mut heard = self.announcements().await?;
        self.send(ASK_SUBJECT.into(), Bytes::new()).await.map_err(unavailable)?;
        let (mut table, end) = (Table::default(), tokio::time::Instant::now() + ASK_MAX);
        // A regular announcement that comes first must not end the wait for the answers.
        let mut until = tokio::time::Instant::now() + ASK_MIN;
        while let Ok(Some(announcement)) = tokio::time::timeout_at(until.min(end), heard.next()).await {
            if !table.knows(&announcement.id) {
                until = until.max(tokio::time::Instant::now() + ASK_QUIET);
            }
            table.hear(announcement, Instant::now());
        }
        Ok(table)
    }

    /// Announcements as they arrive; unreadable ones are skipped.
    ///
    /// # Errors
    /// [`QueueError`] when the connection is closed.
    pub async fn announcements(&self) -> Result<impl Stream<Item = Announcement> + Unpin + use<>, QueueError> {
        let unavailable = |problem| QueueError::Unavailable { action: "listen to members", problem };
        let messages = self.listen("members.>".into()).await.map_err(unavailable)?;
        Ok(messages.filter_map(|message| std::future::ready(serde_json::from_slice(&message.payload).ok())))
    }

    /// Names of partitions that have a new job, as `(topic, partition)`; see [`crate::topic::wake_subject`].
    ///
    /// # Errors
    /// [`QueueError`] when the connection is closed.
    pub async fn wakes(
        &self,
    ) -> Result<impl Stream<Item = (crate::TopicName, crate::PartitionId)> + Unpin + use<>, QueueError> {
        let unavailable = |problem| QueueError::Unavailable { action: "listen for new jobs", problem };
        let messages = self.listen("wake.*.*".into()).await.map_err(unavailable)?;
        Ok(messages.filter_map(|message| {
            let mut tokens = message.subject.split('.').skip(1);
            let topic = tokens.next().and_then(|token| token.parse().ok());
            let partition = tokens.next().and_then(|token| token.parse().ok());
            std::future::ready(topic.zip(partition))
        }))
    }
}

/// A worker that has nothing to do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Idle {
    /// Which.
    pub member: String,
    /// Models that it could run.
    pub models: Vec<String>,
}

impl Connection {
    /// Orders to the member with this id, as they arrive.
    ///
    /// # Errors
    /// [`QueueError`] when the connection is closed.
    pub async fn orders(&self, member: &str) -> Result<impl Stream<Item = Bytes> + Unpin + use<>, QueueError> {
        let unavailable = |problem| QueueError::Unavailable { action: "listen for orders", problem };
        let messages = self.listen(format!("control.{member}")).await.map_err(unavailable)?;
        Ok(messages.map(|message| message.payload))
    }

    /// Sends an order to a member; a member that has ended does not receive it.
    pub async fn order(&self, member: &str, payload: Bytes) {
        if let Err(error) = self.send(format!("control.{member}"), payload).await {
            tracing::debug!(error, "scaling order not sent");
        }
    }

    /// Notifies all workers that this one is idle, so that a worker returns a job that it has prefetched and
    /// cannot start yet.
    pub async fn announce_idle(&self, idle: &Idle) {
        let payload = serde_json::to_vec(idle).expect("it holds strings");
        if let Err(error) = self.send("idle".into(), Bytes::from(payload)).await {
            tracing::debug!(%error, "not announced as idle");
        }
    }

    /// Workers that have just become idle.
    ///
    /// # Errors
    /// [`QueueError`] when the connection is closed.
    pub async fn idle_workers(&self) -> Result<impl Stream<Item = Idle> + Unpin + use<>, QueueError> {
        let unavailable = |problem| QueueError::Unavailable { action: "listen for idle workers", problem };
        let messages = self.listen("idle".into()).await.map_err(unavailable)?;
        Ok(messages.filter_map(|message| std::future::ready(serde_json::from_slice(&message.payload).ok())))
    }
}

#[cfg(test)]
mod tests;
