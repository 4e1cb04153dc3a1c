//! Only HTTP in and only HTTP out, or a command line: what a user does, on real models.

#[path = "../harness/mod.rs"]
pub(crate) mod harness;

/// What people type.
mod commands;
/// Everything that is not an image, and images that are too much.
mod hostile;
/// Headers, hosts, pace: the server's edges.
mod http;
/// `/metrics`, health, members.
mod insight;
/// One job: accepted, looked at, waited for, refused.
mod jobs;
/// Clients that mean no good.
mod strangers;
/// Behind a proxy.
mod nginx;
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
/// The same, packed by people's tools.
mod archives;
/// Jobs canceled, run again, followed, asked for twice.
mod lifecycle;
/// What has ended stays as it ended.
mod final_states;
/// What clients write, and where it goes.
mod texts;
/// The README's commands.
mod readme;
/// More than one API process.
mod several;
/// Many uploads at once.
mod load;
/// Ten times too much.
mod overload;
/// The six photos give what they should, on both models.
mod recognition;
/// Workers that come by hand, and models that users bring.
mod workers;
/// A model's files: bad ones, other ones, new ones.
mod models;
/// Topics, logs, dead letters.
mod topics;
/// A queue that another operator set up.
mod foreign_queue;
/// Who gets what, who notices what is wrong, and what follows.
mod coordination;

use harness::{damaged_jpeg, shared};
