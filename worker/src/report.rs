//! What a worker reports to the supervisor that started it: lines of JSON on standard output.
//!
//! The supervisor learns when a worker is ready, and which jobs it held when it died, so that they return to the queue
//! at once instead of when their leases expire.

use std::io::Write;

use queue::client::AckSubject;
use queue::{JobId, PartitionId};
use serde::{Deserialize, Serialize};

/// One event.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "lowercase")]
pub enum Report {
    /// The models are loaded and the queue is connected.
    Ready {
        /// The worker's member id.
        member: String,
    },
    /// The worker has taken a job.
    Took {
        /// The job's id.
        job: JobId,
        /// The partition that it came from.
        partition: PartitionId,
        /// The subject that settles it.
        ack_subject: AckSubject,
        /// How long the lease lasts without a renewal, milliseconds.
        lease_ms: u64,
    },
    /// A job began to run.
    Running {
        /// The job's id.
        job: JobId,
        /// Number of the attempt, from 1.
        attempt: u32,
    },
    /// A job's lease was renewed.
    Renewed {
        /// The job's id.
        job: JobId,
    },
    /// A job's record states how the attempt ended; its message is not settled yet.
    Ended {
        /// The job's id.
        job: JobId,
    },
    /// The worker no longer holds a job.
    Settled {
        /// The job's id.
        job: JobId,
    },
}

/// Sends reports, if a supervisor reads them.
#[derive(Debug, Clone, Copy)]
pub struct Reporter {
    supervised: bool,
}

impl Reporter {
    /// Reports on standard output.
    pub fn to_supervisor() -> Self {
        Self { supervised: true }
    }

    /// Reports nothing.
    pub fn silent() -> Self {
        Self { supervised: false }
    }

    /// Sends one report. A dead supervisor is not an error here: the worker's input pipe closes then.
    pub fn send(self, report: &Report) {
        if self.supervised {
            let mut line = serde_json::to_vec(report).expect("a report holds strings and numbers");
            line.push(b'\n');
            let mut out = std::io::stdout().lock();
            drop(out.write_all(&line).and_then(|()| out.flush()));
        }
    }
}
