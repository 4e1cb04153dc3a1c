//! What a worker tells the supervisor that started it, one JSON line each on standard output.
//!
//! The supervisor learns from it when a worker is ready, and which jobs it had in hand when it
//! died, so that they are handed back at once instead of when their leases end.

use std::io::Write;

use queue::client::AckSubject;
use queue::{JobId, PartitionId};
use serde::{Deserialize, Serialize};

/// One thing that happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "lowercase")]
pub enum Report {
    /// The models are loaded, the queue is reached.
    Ready {
        /// The worker's member id.
        member: String,
    },
    /// A job is in hand.
    Took {
        /// Which.
        job: JobId,
        /// From where.
        partition: PartitionId,
        /// Where it is settled.
        ack_subject: AckSubject,
        /// How long it is the worker's without a renewal, milliseconds.
        lease_ms: u64,
    },
    /// It began to run.
    Running {
        /// Which.
        job: JobId,
        /// Counts from 1.
        attempt: u32,
    },
    /// Its lease was renewed.
    Renewed {
        /// Which.
        job: JobId,
    },
    /// Its record says how the attempt ended; its message is still there.
    Ended {
        /// Which.
        job: JobId,
    },
    /// It is out of hand.
    Settled {
        /// Which.
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

    /// Sends one report. A supervisor that is gone is not an error here: its pipe's end says so.
    pub fn send(self, report: &Report) {
        if self.supervised {
            let mut line = serde_json::to_vec(report).expect("a report holds strings and numbers");
            line.push(b'\n');
            let mut out = std::io::stdout().lock();
            drop(out.write_all(&line).and_then(|()| out.flush()));
        }
    }
}
