//! How a job reaches a worker and its result comes back, exactly as promised.
//!
//! It builds on JetStream through `async-nats`: an image is a message in a work queue, and the
//! job's state is one small [`Record`] that changes only by compare-and-set. Everything that
//! Sightline promises follows from these two; this package never looks into a payload.
//!
//! Follow one job: the API [submits](client::Jobs::submit) it, a worker
//! [fetches](client::Fetcher) it and gets a [`Delivery`](client::Delivery) with a [`Lease`], updates
//! its record with [`WorkerQueue::replace`], and
//! [settles](client::Delivery::ack) the delivery; waiting clients get a
//! [notification](client::Jobs::wait) and read the record.
//!
//! ```
//! use queue::{JobId, PartitionId, Priority, TopicName};
//!
//! let topic = TopicName::new("efficientnet-lite0").expect("a valid name");
//! let id = JobId::random(topic);
//! assert_eq!(id.to_string().parse(), Ok(id.clone()));
//! assert!(PartitionId::of_job(&id, None, 3, Priority::Normal).index() < 3);
//! ```

#![warn(clippy::print_stdout, clippy::print_stderr)]

pub mod job;
pub mod record;
pub mod topic;
pub mod client;
pub mod lease;
pub mod singleton;
pub mod watchdog;
pub mod balance;
pub mod members;
pub mod tasks;
mod calendar;
pub mod bench;
mod error;
mod timestamp;
#[cfg(test)]
mod stored;

pub use calendar::Calendar;
pub use client::{Queue, WorkerQueue};
pub use error::{ConnectError, FetchError, QueueError, SettleError, SubmitError, TopicError};
pub use job::{IdError, JobId, PartitionId, Priority, Sequence, TopicName};
pub use lease::Lease;
pub use record::{ImageFacts, JobError, JobOptions, JobSpec, Origin, Record, State, Timings, Webhook};
pub use timestamp::Timestamp;
pub use topic::Topic;
