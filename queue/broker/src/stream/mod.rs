//! Streams and consumers: pure state, independent of storage and connections.
//!
//! A [`Stream`] first *decides*: from a request and the time it returns a refusal or
//! [changes](crate::journal::Change). Then it *applies* them, and nothing else ever changes it.
//! Recovery applies the same changes from the journal, so it rebuilds the same state after a crash.

pub(crate) mod config;
mod consumer_config;
mod consumer;
mod waiting;
mod turn;
mod flow;
mod dedupe;
mod messages;
mod entries;
mod subjects;
mod refusal;
mod publish;
mod state;
mod schedule;
mod snapshot;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod consumer_tests;

pub(crate) use config::StreamConfig;
pub(crate) use consumer::{Consumer, Handout, Pending};
pub(crate) use consumer_config::{AckPolicy, ConsumerConfig, PriorityPolicy, unix_nanos};
pub(crate) use messages::{Found, Message};
pub(crate) use publish::{Accepted, go_duration};
pub(crate) use refusal::Refusal;
pub(crate) use snapshot::put_id;
pub(crate) use state::{MESSAGE_ID, Now, Stream};
pub(crate) use waiting::{Pin, Priority, Waiting};
