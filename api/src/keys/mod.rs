//! API keys: which client may do what, and how much of it.
//!
//! While no key exists, every client that reaches this server may do everything except create the first key: an
//! operator does that on the machine itself, through the data folder. Once a key exists, every request except those
//! for health and the API's description needs one. A key is shown once, when it is created; only its SHA-256 is
//! stored, which is enough for a secret of 244 random bits.
//!
//! Keys of one name belong to one owner, so that a key can be replaced by another. A job or batch of another owner
//! is not found (404); one place checks that for every route that takes an id.

mod guard;
mod strangers;
mod caller;
mod scope;
mod limits;
mod key;
mod keyring;
mod store;
pub(crate) mod create;
pub(crate) mod list;
pub(crate) mod revoke;

pub(crate) use caller::Caller;
pub use create::{NewKey, create_local};
pub(crate) use guard::guard;
pub(crate) use key::Key;
pub(crate) use keyring::Keys;
pub use keyring::{adopt, are_needed};
pub use list::list_local;
pub use revoke::revoke_local;
pub(crate) use scope::Scope;
