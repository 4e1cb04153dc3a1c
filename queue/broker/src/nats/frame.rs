//! What a server sends.

use std::fmt::Write;

use bytes::{BufMut, Bytes, BytesMut};

/// A message to a subscriber: `MSG`, or `HMSG` when it has a header block.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Frame<'a> {
    pub(crate) subject: &'a [u8],
    pub(crate) sid: &'a [u8],
    pub(crate) reply: Option<&'a [u8]>,
    pub(crate) header_bytes: usize,
    pub(crate) payload_bytes: usize,
}

impl Frame<'_> {
    /// Writes the control line; header block, payload and a line end follow it.
    pub(crate) fn put(&self, out: &mut BytesMut) {
        let has_header = self.header_bytes > 0;
        out.put_slice(if has_header { b"HMSG " } else { b"MSG " });
        out.put_slice(self.subject);
        out.put_u8(b' ');
        out.put_slice(self.sid);
        out.put_u8(b' ');
        if let Some(reply) = self.reply {
            out.put_slice(reply);
            out.put_u8(b' ');
        }
        if has_header {
            put_number(out, self.header_bytes);
            out.put_u8(b' ');
        }
        put_number(out, self.header_bytes + self.payload_bytes);
        out.put_slice(b"\r\n");
    }
}

/// `INFO {json}`.
pub(crate) fn info(json: &str) -> Bytes {
    format!("INFO {json} \r\n").into()
}

/// `-ERR '<text>'`.
pub(crate) fn err(text: &str) -> Bytes {
    format!("-ERR '{text}'\r\n").into()
}

/// A header block that is a status, such as `404 No Messages`, with further lines.
pub(crate) fn status(line: &str, lines: &[(&str, String)]) -> Bytes {
    let mut block = format!("NATS/1.0 {line}\r\n");
    for (name, value) in lines {
        write!(block, "{name}: {value}\r\n").expect("strings take everything");
    }
    block.push_str("\r\n");
    block.into()
}

fn put_number(out: &mut BytesMut, number: usize) {
    let mut digits = [0; 20];
    let mut start = digits.len();
    let mut rest = number;
    loop {
        start -= 1;
        digits[start] = b'0' + (rest % 10) as u8;
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    out.put_slice(&digits[start..]);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_read_as_the_protocol_has_them() {
        let check = |reply, header_bytes, payload_bytes, expected: &str| {
            let mut out = BytesMut::new();
            Frame { subject: b"a.b", sid: b"9", reply, header_bytes, payload_bytes }.put(&mut out);
            assert_eq!(out, expected);
        };
        check(None, 0, 0, "MSG a.b 9 0\r\n");
        check(Some(&b"r"[..]), 0, 120, "MSG a.b 9 r 120\r\n");
        check(Some(&b"r"[..]), 12, 8, "HMSG a.b 9 r 12 20\r\n");
        assert_eq!(status("404 No Messages", &[]), "NATS/1.0 404 No Messages\r\n\r\n");
        assert_eq!(err("Invalid Subject"), "-ERR 'Invalid Subject'\r\n");
    }
}
