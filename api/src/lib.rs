//! HTTP in, HTTP out: the way to the queue and back for people and scripts.
//!
//! `router` lists the routes; each leads to a file that does one thing. The API keeps no state of its own about
//! jobs: a `POST` ends in [`queue::client::Jobs::submit`], a `GET` in [`queue::client::Jobs::wait`], and any API
//! process can answer for any job. Lists and batches come from the [`Index`], which follows the records.

#![warn(clippy::print_stdout, clippy::print_stderr)]

mod config;
pub mod serve;
mod router;
mod middleware;
mod incoming;
mod connections;
mod links;
mod path;
mod schema;
mod pace;
mod bodies;
mod webhooks;
mod keys;
mod admit;
mod jobs;
mod batches;
mod index;
mod catalog;
mod topics;
mod dead;
mod digest;
mod table;
mod json;
mod roster;
mod members;
mod watch;
mod health;
mod metrics;
mod scrape;
mod openapi;
mod state;
mod error;

pub use admit::image_facts;
pub use config::Config;
pub use index::{Index, IndexError};
pub use keys::{NewKey, adopt as adopt_keys, are_needed as are_keys_needed, create_local, list_local, revoke_local};
pub use router::description;
pub use serve::{Guards, ListenError, check_listen, serve};
pub use table::{best_of, table_row, unguarded};
