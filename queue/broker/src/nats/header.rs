//! A header block: `NATS/1.0`, then a line for each header, then an empty line.
//!
//! The core protocol passes it on unread; streams look up a few names.

use bytes::{BufMut, Bytes, BytesMut};

/// First line of a header block that is not a status.
pub(crate) const HEADER_START: &[u8] = b"NATS/1.0\r\n";

/// A view of a header block.
#[derive(Debug, Clone, Copy)]
pub(crate) struct HeaderBlock<'a>(pub(crate) &'a [u8]);

impl<'a> HeaderBlock<'a> {
    /// The first value of a header, without blanks around it. Names are case-sensitive, as in nats-server.
    pub(crate) fn get(&self, name: &str) -> Option<&'a str> {
        self.lines().find(|(found, _)| *found == name.as_bytes()).and_then(|(_, value)| std::str::from_utf8(value).ok())
    }

    /// Whether a header with this name exists.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.lines().any(|(found, _)| found == name.as_bytes())
    }

    fn lines(&self) -> impl Iterator<Item = (&'a [u8], &'a [u8])> + use<'a> {
        self.0.split(|byte| *byte == b'\n').skip(1).filter_map(|line| {
            let colon = memchr::memchr(b':', line)?;
            Some((&line[..colon], line[colon + 1..].trim_ascii()))
        })
    }
}

/// A header block of these lines.
pub(crate) fn block(lines: &[(&str, &str)]) -> Bytes {
    let bytes = lines.iter().map(|(name, value)| name.len() + value.len() + 4).sum::<usize>();
    let mut out = BytesMut::with_capacity(HEADER_START.len() + bytes + 2);
    out.put_slice(HEADER_START);
    for (name, value) in lines {
        out.put_slice(name.as_bytes());
        out.put_slice(b": ");
        out.put_slice(value.as_bytes());
        out.put_slice(b"\r\n");
    }
    out.put_slice(b"\r\n");
    out.freeze()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_found_by_their_exact_name() {
        let block = HeaderBlock(b"NATS/1.0\r\nNats-Msg-Id:  a b \r\nX: 1:2\r\nNo line\r\n\r\n");
        assert_eq!(block.get("Nats-Msg-Id"), Some("a b"));
        assert_eq!(block.get("X"), Some("1:2"));
        assert_eq!((block.get("x"), block.has("No line"), HeaderBlock(b"").get("X")), (None, false, None));
    }

    #[test]
    fn a_block_is_made_of_lines() {
        assert_eq!(block(&[("A", "1"), ("B", "2")]), "NATS/1.0\r\nA: 1\r\nB: 2\r\n\r\n");
    }
}
