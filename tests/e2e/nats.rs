//! The same with a NATS server in place of our broker and PostgreSQL in place of SQLite. Suites about images,
//! HTTP and clients, which say nothing about the queue, run on our broker only.

#[path = "../harness/mod.rs"]
pub(crate) mod harness;

/// What people type.
mod commands;
/// `/metrics`, health, members.
mod insight;
/// One job: accepted, looked at, waited for, refused.
mod jobs;
/// What strangers must never get.
mod doors;
/// Keys: who may do what, and what is whose.
mod keys;
/// What happens on an ordinary bad day.
mod ordinary;
/// Receivers that are told.
mod webhooks;
/// The API and its description.
mod openapi;
/// Many images in one body.
mod batches;
/// Jobs canceled, run again, followed, asked for twice.
mod lifecycle;
/// What has ended stays as it ended.
mod final_states;
/// What clients write, and where it goes.
mod texts;
/// More than one API process.
mod several;
/// A thousand uploads at once.
mod load;
/// Ten times too much.
mod overload;
/// Workers that come by hand, and models that users bring.
mod workers;
/// A model's files: bad ones, other ones, new ones.
mod models;
/// Topics, logs, dead letters.
mod topics;
/// Who gets what, who notices what is wrong, and what follows.
mod coordination;
/// A queue that another operator set up.
mod foreign_queue;

use harness::{damaged_jpeg, shared};
