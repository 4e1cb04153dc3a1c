//! Jobs: taken in, looked at, called off, run again.

mod submit;
mod body;
mod form;
mod options;
mod status;
mod list;
mod events;
mod manage;
mod explain;
mod position;
mod wire;

pub(crate) use body::BODY_UNIT;
pub(crate) use events::events;
pub(crate) use list::list;
pub(crate) use manage::{cancel, image, retry};
pub(crate) use options::Options;
pub(crate) use status::status;
pub use submit::image_facts;
pub(crate) use submit::{find_model, find_topic, name_model, spec, submit};
pub(crate) use wire::Job;
