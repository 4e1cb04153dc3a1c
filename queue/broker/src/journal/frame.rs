//! The frame of an entry; see [`entry`](super::entry).

/// Length of a frame.
pub(crate) const FRAME_BYTES: usize = 16;
