//! Which write of a record or document was read.

/// Which write of a record was read; 0 before the first.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Revision(u64);

impl From<u64> for Revision {
    fn from(sequence: u64) -> Self {
        Self(sequence)
    }
}

impl From<Revision> for u64 {
    fn from(revision: Revision) -> Self {
        revision.0
    }
}
