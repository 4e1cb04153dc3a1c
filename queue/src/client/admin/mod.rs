//! Maintenance of the queue: repairs, checks, and the election of the process that does them.

mod aged;
mod audit;
mod repair;
mod singleton;

pub use aged::Aged;
pub use audit::{Audit, Problem, Wrong};
pub use singleton::Singleton;

use super::role::role;

role! {
    /// Repairs and checks the queue.
    Admin
}
