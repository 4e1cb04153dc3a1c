//! Batches: many images that are sent, watched, read and canceled together.

pub(crate) mod receive;
mod items;
mod room;
mod options;
pub(crate) mod list;
pub(crate) mod cancel;
pub(crate) mod verify;
pub(crate) mod results;
mod follow;
mod rates;
mod lookup;
mod wire;

pub(crate) use follow::Follower;
pub(crate) use lookup::find;
pub(crate) use rates::Rates;
pub(crate) use room::Memory;
pub(crate) use wire::document;
