//! The seams to the machine that tests replace.

pub(crate) mod storage;
#[cfg(test)]
pub(crate) mod memory;
