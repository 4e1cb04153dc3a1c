//! The NATS wire protocol as a pure codec: from bytes to commands, and back. It has no sockets and no
//! state beyond one unfinished command, and checks every length before it keeps anything.

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
