//! Webhooks: we POST an event to a client's server when its job or batch ends.
//!
//! The index follows the records. For each change with a webhook it stores a call that is due, before it stores
//! its own position. So no change is missed if a process dies, and a change stored twice is one message. Calls are
//! retried for hours, signed by Standard Webhooks (<https://www.standardwebhooks.com>), and each attempt is in the
//! delivery log.

mod owed;
mod target;
mod guard;
mod receivers;
mod send;
pub(crate) mod deliveries;
pub(crate) mod gone;

pub(crate) use deliveries::{Delivery, Outcome};
pub(crate) use gone::Gone;
pub(crate) use owed::owe;
pub(crate) use send::Sender;
pub(crate) use target::{check_target, checked};
