//! A topic: the queue of one model, as a handful of streams; or a plain log of none.
//!
//! | stream | subjects | kind |
//! |---|---|---|
//! | `jobs_<topic>_<p>` | `jobs.<topic>.<p>.<uuid>` | work queue, one message a subject, refuses when full; of a log topic: keeps what was acknowledged, drops the oldest |
//! | `records_<topic>` | `records.<topic>.<uuid>` | the last message of each subject is the job's record |
//! | `dead_<topic>` | `dead.<topic>.<uuid>` | inputs of failed jobs, for some days |
//!
//! The streams are the registry; there is no list beside them. A topic's settings stand in the
//! metadata of its records stream, which is created last and deleted last: where it exists, the
//! topic is there.

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
    /// What it was created with, or changed to.
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

    /// How long the record of a finished job is kept: as it asked for, or in a log as long as its input,
    /// at least.
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
