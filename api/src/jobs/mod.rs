//! Jobs: submit, inspect, cancel, retry.

pub(crate) mod submit;
mod body;
mod form;
mod options;
pub(crate) mod lane;
mod wait;
pub(crate) mod status;
pub(crate) mod list;
pub(crate) mod events;
pub(crate) mod cancel;
pub(crate) mod retry;
pub(crate) mod image;
mod explain;
mod position;
mod wire;

pub(crate) use body::check_encoding;
pub(crate) use options::Options;
pub(crate) use wire::Job;
