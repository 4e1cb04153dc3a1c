//! The seams to the machine that tests replace.

pub(crate) mod storage;
#[cfg(any(test, feature = "fuzz"))]
pub(crate) mod memory;
