//! Entry points for fuzzers: each function takes arbitrary bytes and must neither panic nor run without end.
//!
//! Behind the feature `fuzz`, for the targets in `queue/broker/fuzz`.

use bytes::{Bytes, BytesMut};

use crate::journal::entry::{Walk, WalkItem};
use crate::journal::segment::{Header, VERSION, segment_name};
use crate::journal::{Change, Journal, Release};
use crate::nats::{Command, HeaderBlock, Parser};
use crate::platform::memory::Memory;
use crate::server::fuzz_api;

const PAYLOAD_BYTES_MAX: usize = 1 << 16;

/// The protocol: input in one portion or in two yields the same commands.
pub fn protocol(bytes: &[u8]) {
    let parse = |portions: &[&[u8]]| {
        let (mut parser, mut buffer, mut commands) = (Parser::new(PAYLOAD_BYTES_MAX), BytesMut::new(), Vec::new());
        for portion in portions {
            buffer.extend_from_slice(portion);
            loop {
                match parser.next(&mut buffer) {
                    Ok(Some(command)) => commands.push(command),
                    Ok(None) => break,
                    Err(_) => return (commands, false),
                }
            }
        }
        (commands, true)
    };
    let whole = parse(&[bytes]);
    let (one, two) = bytes.split_at(bytes.len() / 2);
    assert_eq!(parse(&[one, two]), whole);
    for command in &whole.0 {
        if let Command::Publish(publication) = command {
            header(&publication.header);
        }
    }
}

/// Lookups in a header block.
pub fn header(bytes: &[u8]) {
    let block = HeaderBlock(bytes);
    for name in ["Nats-Msg-Id", "Nats-TTL", ""] {
        assert!(block.get(name).is_none() || block.has(name));
    }
}

/// API requests and messages, one after the other, on a new broker. Zeros separate them; in each, the
/// subject ends at the first line end and the body follows.
pub fn api(bytes: &[u8]) {
    fuzz_api(Memory::with([]), bytes.split(|byte| *byte == 0).map(request));
}

/// Walks and opens a journal segment whose entries are arbitrary bytes.
pub fn journal(bytes: &[u8]) {
    let mut at = 64;
    for step in Walk::new(64, bytes, None) {
        let (position, length) = match step {
            WalkItem::Entry { position, entry } => {
                drop(Change::decode(entry.kind, entry.body).map(|change| change.encode(&mut BytesMut::new())));
                (position, entry.bytes())
            }
            WalkItem::Gap { position, bytes } => (position, bytes.len()),
        };
        assert!(position >= at && length > 0, "a walk goes on");
        at = position + length as u64;
    }
    let header = Header { version: VERSION, base: 0, span: 64 + bytes.len() as u64 + 4096, salt: 7 };
    let file = [&header.encode().0[..], bytes].concat();
    let opened = Journal::<NoClient>::open(
        Memory::with([(segment_name(0), file)]),
        Some(1 << 16),
        Box::new(|_| {}),
        &mut |_, _| Ok(()),
    );
    if let Ok((journal, _)) = opened {
        assert!(journal.mark().0 <= at.max(64));
    }
}

/// No client waits for this journal.
struct NoClient;

impl Release for NoClient {
    fn release(self) {}
}

/// One request of the input: subject and body.
fn request(part: &[u8]) -> (Bytes, Bytes) {
    let end = part.iter().position(|byte| *byte == b'\n').unwrap_or(part.len());
    let body = part.get(end + 1..).unwrap_or_default();
    (Bytes::copy_from_slice(&part[..end]), Bytes::copy_from_slice(body))
}
