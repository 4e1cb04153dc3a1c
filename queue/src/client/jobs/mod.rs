//! Jobs from outside: submitted, read, waited for, canceled, redriven.

mod submit;
mod wait;
mod cancel;
mod dead;
mod follow;

pub use cancel::Canceled;
pub use dead::{DeadLetter, RedriveError, Redriven};
pub use submit::{Submitted, place};
pub use wait::Waited;

use super::role::role;

role! {
    /// Submits jobs and reads their state.
    Jobs
}
