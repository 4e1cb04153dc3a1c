//! Who is there: every process announces itself each second, and is gone when it is not heard.
//!
//! Announcements are plain messages on `members.<role>.<id>`; nothing is written to disk. They
//! also carry a worker's counters, which only grow, so that whoever lost some messages is right
//! again with the next one. [`Table`] is pure: announcement and time in, members out.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::{Stream, StreamExt};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::{Queue, QueueError, Timestamp};

/// How often a member announces itself.
pub const ANNOUNCE_INTERVAL: Duration = Duration::from_secs(1);
/// A member that was not heard for so long is gone.
pub const SILENCE_MAX: Duration = Duration::from_secs(5);
/// Members that a table holds; announcements beyond that are ignored.
const MEMBERS_MAX: usize = 10_000;
/// Silent members whose counters are kept apart.
const SILENT_MAX: usize = 1_000;

/// What a process does for the system.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Serves HTTP.
    Api,
    /// Runs models.
    Worker,
}

/// What a process says of itself.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Announcement {
    /// Unique for the life of one process.
    pub id: String,
    /// What it does.
    pub role: Role,
    /// What it is about: `starting`, `ready`, `draining`.
    pub state: String,
    /// Its process id, for people.
    pub pid: u32,
    /// Sightline's version.
    pub version: String,
    /// When it began.
    pub started_at: Timestamp,
    /// Models that it can run.
    #[serde(default)]
    pub models: Vec<String>,
    /// Jobs in its hands.
    #[serde(default)]
    pub in_hand: u32,
    /// What it has done so far.
    #[serde(default)]
    pub totals: Totals,
}

/// Counters of a worker since its start, by model.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Totals {
    /// Finished attempts: model, outcome (`succeeded`, `failed`, `retried`, `superseded`, `unwritten`), count.
    pub outcomes: BTreeMap<String, BTreeMap<String, u64>>,
    /// Time by stage: model, stage (`queue`, `decode`, …), count and sum.
    pub stages: BTreeMap<String, BTreeMap<String, StageTotal>>,
}

/// How often a stage ran, and how long in all.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct StageTotal {
    /// Times.
    pub count: u64,
    /// Seconds in all.
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

    /// Adds what somebody else has counted.
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
pub fn new_id(role: Role) -> String {
    let letter = match role {
        Role::Api => 'a',
        Role::Worker => 'w',
    };
    let random = Uuid::new_v4().simple().to_string();
    format!("{letter}-{}", &random[..12])
}

/// The members that were heard lately.
#[derive(Debug, Default)]
pub struct Table {
    heard: BTreeMap<String, (Announcement, Instant)>,
    /// What members counted that are silent now; one that was only paused takes its own back.
    silent: BTreeMap<String, Totals>,
    /// The same of those that have been silent for so long that `silent` has no room for them.
    forgotten: Totals,
}

impl Table {
    /// Takes an announcement that came at `now`.
    pub fn hear(&mut self, announcement: Announcement, now: Instant) {
        if self.heard.len() < MEMBERS_MAX || self.heard.contains_key(&announcement.id) {
            self.silent.remove(&announcement.id);
            self.heard.insert(announcement.id.clone(), (announcement, now));
        }
    }

    /// Forgets who was not heard for [`SILENCE_MAX`], but not what they counted.
    pub fn expire(&mut self, now: Instant) {
        let gone = |at: Instant| now.saturating_duration_since(at) >= SILENCE_MAX;
        for (id, (announcement, _)) in self.heard.extract_if(.., |_, (_, at)| gone(*at)) {
            self.silent.insert(id, announcement.totals);
        }
        while self.silent.len() > SILENT_MAX
            && let Some((_, totals)) = self.silent.pop_first()
        {
            self.forgotten.add(&totals);
        }
    }

    /// Who is there, by id.
    pub fn members(&self) -> impl Iterator<Item = &Announcement> {
        self.heard.values().map(|(announcement, _)| announcement)
    }

    /// What all workers that were ever heard have counted.
    pub fn totals(&self) -> Totals {
        let mut totals = self.forgotten.clone();
        self.silent.values().for_each(|silent| totals.add(silent));
        self.members().for_each(|member| totals.add(&member.totals));
        totals
    }
}

impl Queue {
    /// Announces a member once.
    pub async fn announce(&self, announcement: &Announcement) {
        let role = serde_json::to_value(announcement.role).expect("a role is a string");
        let subject = format!("members.{}.{}", role.as_str().unwrap_or_default(), announcement.id);
        let payload = serde_json::to_vec(announcement).expect("an announcement holds strings and numbers");
        if let Err(error) = self.send(subject, Bytes::from(payload)).await {
            tracing::debug!(%error, "not announced");
        }
    }

    /// Announcements as they come; what cannot be read is left out.
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

#[cfg(test)]
mod tests {
    use super::*;

    fn member(id: &str, succeeded: u64) -> Announcement {
        let mut totals = Totals::default();
        (0..succeeded).for_each(|_| totals.count("cats", "succeeded"));
        Announcement {
            id: id.into(),
            role: Role::Worker,
            state: "ready".into(),
            pid: 1,
            version: "0".into(),
            started_at: Timestamp::from_millis(0),
            models: vec!["cats".into()],
            in_hand: 0,
            totals,
        }
    }

    #[test]
    fn silence_makes_a_member_go_but_not_its_counters() {
        let start = Instant::now();
        let after = |seconds| start + Duration::from_secs(seconds);
        let mut table = Table::default();
        table.hear(member("a", 2), after(0));
        table.hear(member("b", 5), after(3));
        table.hear(member("b", 7), after(4));
        table.expire(after(5));
        assert_eq!(table.members().map(|m| m.id.as_str()).collect::<Vec<_>>(), ["b"]);
        assert_eq!(table.totals().outcomes["cats"]["succeeded"], 9, "2 of the departed, 7 of the present");
        table.hear(member("a", 3), after(6));
        assert_eq!((table.members().count(), table.totals().outcomes["cats"]["succeeded"]), (2, 10));
    }
}
