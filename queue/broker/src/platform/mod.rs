//! Access to the machine, which tests replace.

pub(crate) mod storage;
#[cfg(any(test, feature = "fuzz"))]
pub(crate) mod memory;
