//! Jobs: taken in, looked at.

mod submit;
mod body;
mod form;
mod options;
mod status;
mod explain;
mod wire;

pub(crate) use body::BODY_UNIT;
pub(crate) use status::status;
pub use submit::image_facts;
pub(crate) use submit::submit;
