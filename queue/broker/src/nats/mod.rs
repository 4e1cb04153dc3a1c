//! The NATS wire as a pure codec: bytes in, commands out, and back. No sockets, no state beyond
//! one unfinished command, and every length is bounded before anything is kept.

mod parser;
mod frame;
mod header;
mod subject;
mod subject_tree;
#[cfg(test)]
mod proptests;

pub(crate) use frame::{Frame, err, info, status};
pub(crate) use header::{HEADER_START, HeaderBlock, block};
pub(crate) use parser::{Command, ParseError, Parser, Publication};
pub(crate) use subject::{covers, has_wildcards, is_literal, is_valid, matches, overlaps};
pub(crate) use subject_tree::SubjectTree;
