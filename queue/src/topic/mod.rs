//! A topic: the queue of one model, or a plain log without a model; stored as a handful of streams.
//!
//! | stream | subjects | kind |
//! |---|---|---|
//! | `jobs_<topic>_<p>` | `jobs.<topic>.<p>.<uuid>` | work queue, one message per subject, refuses when full |
//! | the same, of a log topic | | keeps acknowledged messages, drops the oldest |
//! | `records_<topic>` | `records.<topic>.<uuid>` | the last message of each subject is the job's record |
//! | `dead_<topic>` | `dead.<topic>.<uuid>` | inputs of failed jobs, kept for some days |
//!
//! The streams are the registry; there is no separate list. A topic's settings are stored in the
//! metadata of its records stream, which is created last and deleted last: the topic exists
//! exactly while that stream does.

mod settings;
mod streams;

pub use settings::{Change, Defaults, Retention, RetryPolicy, Settings};
pub use streams::{
    WORKERS, dead_stream, dead_subject, job_subject, jobs_stream, record_subject, records_stream, topic_subject,
    wake_subject,
};
pub(crate) use streams::{
    dead_config, job_filter, jobs_config, records_config, set_settings, streams_of, workers_config,
};

use std::time::Duration;

use crate::{JobOptions, PartitionId, Priority, TopicName};

/// A topic that exists.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Topic {
    /// Its settings, as created or last changed.
    pub settings: Settings,
    /// Copies of its streams. With more than one, records are read from the leader.
    pub replicas: usize,
}

impl Topic {
    /// Its name.
    pub fn name(&self) -> &TopicName {
        &self.settings.topic
    }

    /// All its partitions: by priority, then by number.
    pub fn partitions(&self) -> impl Iterator<Item = PartitionId> + use<> {
        self.settings.partitions_of_all()
    }

    /// Whether it has partitions of this priority.
    pub fn has(&self, priority: Priority) -> bool {
        self.settings.has(priority)
    }

    /// Lease a worker holds on a job before it must renew.
    pub fn lease(&self) -> Duration {
        Duration::from_millis(self.settings.lease_ms)
    }

    /// Time limit of one attempt, unless the job sets one.
    pub fn run_timeout(&self) -> Duration {
        Duration::from_millis(self.settings.run_timeout_ms)
    }

    /// How long the record of a finished job is kept: as long as the job asked for, otherwise the topic's
    /// result TTL, and in a log at least as long as the input.
    pub fn record_ttl(&self, options: &JobOptions) -> Duration {
        if let Some(seconds) = options.result_ttl_secs {
            return Duration::from_secs(seconds);
        }
        let result = Duration::from_secs(self.settings.result_ttl_secs);
        match self.settings.retention {
            Retention::Work => result,
            Retention::Log { age_secs } => result.max(Duration::from_secs(age_secs)),
        }
    }
}
