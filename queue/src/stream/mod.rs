//! Streams and consumers: what is true, without knowing where it is kept or who asks.
//!
//! A [`Stream`] first *decides*: it looks at a request and the time, and answers with a refusal or
//! with [changes](crate::journal::Change). Then it *applies* them, and applying is all that ever
//! changes it. Recovery applies the same changes, read from the journal; so what is rebuilt after a
//! crash is what was there.

pub(crate) mod config;
mod consumer;
mod dedupe;
mod messages;
mod refusal;
mod publish;
mod state;
mod schedule;
mod snapshot;
#[cfg(test)]
mod tests;

pub(crate) use config::{ConsumerConfig, StreamConfig};
pub(crate) use consumer::{Consumer, Handout, Waiting};
pub(crate) use messages::Message;
pub(crate) use publish::{Accepted, go_duration};
pub(crate) use refusal::Refusal;
pub(crate) use state::{Now, Stream};
