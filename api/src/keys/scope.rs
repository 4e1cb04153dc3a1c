//! What a key allows.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// What a key allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Scope {
    /// To submit jobs and batches, and to call them off.
    Submit,
    /// To look at them, and at what there is.
    Read,
    /// To see how the system does: metrics, members, topics.
    Operate,
    /// Everything, of all owners.
    Admin,
}
