//! What keeps a queue in order: repairs, checks, and the choice of the one who does them.

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
