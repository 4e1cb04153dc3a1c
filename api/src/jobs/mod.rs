//! Jobs: taken in, looked at, called off, run again.

pub(crate) mod submit;
mod body;
mod form;
mod options;
pub(crate) mod status;
pub(crate) mod list;
pub(crate) mod events;
pub(crate) mod manage;
mod explain;
pub(crate) mod lane;
mod position;
mod wire;

pub(crate) use body::{BODY_UNIT, BUSY_PATIENCE};
pub(crate) use options::Options;
pub use submit::image_facts;
pub(crate) use submit::{find_model, find_topic, name_model, spec};
pub(crate) use wire::Job;
