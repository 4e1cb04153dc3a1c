//! Parses what clients send, one command at a time, from bytes that arrive in any portions.

use bytes::{Buf, Bytes, BytesMut};
use memchr::memchr;

/// The longest control line, without its end.
const LINE_BYTES_MAX: usize = 4096;

/// A command of a client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Command {
    /// `CONNECT {json}`.
    Connect(Bytes),
    /// `PUB` and `HPUB`.
    Publish(Publication),
    /// `SUB <subject> [queue] <sid>`.
    Subscribe {
        subject: Bytes,
        queue: Option<Bytes>,
        sid: Bytes,
    },
    /// `UNSUB <sid> [max]`; 0 is at once.
    Unsubscribe {
        sid: Bytes,
        after: u64,
    },
    Ping,
    Pong,
}

/// A message that a client publishes. The parser only ensures that subjects are words, not empty and
/// without blanks; the caller checks that they are valid subjects.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Publication {
    pub(crate) subject: Bytes,
    pub(crate) reply: Option<Bytes>,
    /// The header block as received, or empty for a `PUB`.
    pub(crate) header: Bytes,
    pub(crate) payload: Bytes,
}

/// Why the connection must be closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ParseError {
    #[error("Unknown Protocol Operation")]
    UnknownOperation,
    #[error("maximum control line exceeded")]
    LineTooLong,
    #[error("Maximum Payload Violation")]
    PayloadTooLarge,
}

/// A parser for one connection. Bytes stay in the caller's buffer until a command is whole.
#[derive(Debug)]
pub(crate) struct Parser {
    payload_bytes_max: usize,
    /// How far the buffer was searched for a line's end.
    searched: usize,
    /// A publication whose line is read but whose payload is not complete yet.
    unfinished: Option<Unfinished>,
}

#[derive(Debug)]
struct Unfinished {
    subject: Bytes,
    reply: Option<Bytes>,
    header_bytes: usize,
    total_bytes: usize,
}

impl Parser {
    /// A parser that accepts at most this many bytes of header and payload together.
    pub(crate) fn new(payload_bytes_max: usize) -> Self {
        Self { payload_bytes_max, searched: 0, unfinished: None }
    }

    /// Changes this limit; it is small until the client has authenticated.
    pub(crate) fn set_payload_bytes_max(&mut self, bytes: usize) {
        self.payload_bytes_max = bytes;
    }

    /// Minimum of bytes still needed, so that the reader can allocate room for a payload once.
    pub(crate) fn missing(&self, buffered: usize) -> usize {
        self.unfinished.as_ref().map_or(1, |unfinished| (unfinished.total_bytes + 2).saturating_sub(buffered))
    }

    /// The next whole command, taken out of `buffer`.
    pub(crate) fn next(&mut self, buffer: &mut BytesMut) -> Result<Option<Command>, ParseError> {
        loop {
            if let Some(unfinished) = self.unfinished.take() {
                if buffer.len() < unfinished.total_bytes + 2 {
                    self.unfinished = Some(unfinished);
                    return Ok(None);
                }
                return finish(unfinished, buffer).map(|publication| Some(Command::Publish(publication)));
            }
            let Some(found) = memchr(b'\n', &buffer[self.searched..]) else {
                self.searched = buffer.len();
                let too_long = buffer.len() > LINE_BYTES_MAX + 1;
                return if too_long { Err(ParseError::LineTooLong) } else { Ok(None) };
            };
            let end = self.searched + found;
            self.searched = 0;
            if end > LINE_BYTES_MAX + 1 {
                return Err(ParseError::LineTooLong);
            }
            let mut line = buffer.split_to(end).freeze();
            buffer.advance(1);
            if line.last() == Some(&b'\r') {
                line.truncate(line.len() - 1);
            }
            if let Some(command) = self.line(&line)? {
                return Ok(Some(command));
            }
        }
    }

    /// One control line: a command, or `None` for the start of a publication.
    fn line(&mut self, line: &Bytes) -> Result<Option<Command>, ParseError> {
        let blank = |byte: &u8| matches!(byte, b' ' | b'\t');
        let verb_end = line.iter().position(blank).unwrap_or(line.len());
        let (verb, rest) = (&line[..verb_end], line.slice(verb_end..));
        let is = |name: &str| verb.eq_ignore_ascii_case(name.as_bytes());
        if is("PUB") || is("HPUB") {
            self.unfinished = Some(self.publication(&rest, is("HPUB"))?);
            return Ok(None);
        }
        let command = if is("SUB") {
            match words::<3>(&rest)? {
                ([subject, sid, _], 2) => Command::Subscribe { subject, queue: None, sid },
                ([subject, queue, sid], 3) => Command::Subscribe { subject, queue: Some(queue), sid },
                _ => return Err(ParseError::UnknownOperation),
            }
        } else if is("UNSUB") {
            match words::<2>(&rest)? {
                ([sid, _], 1) => Command::Unsubscribe { sid, after: 0 },
                ([sid, after], 2) => Command::Unsubscribe { sid, after: number(&after)? as u64 },
                _ => return Err(ParseError::UnknownOperation),
            }
        } else if is("PING") {
            Command::Ping
        } else if is("PONG") {
            Command::Pong
        } else if is("CONNECT") {
            let start = rest.iter().position(|byte| !blank(byte)).unwrap_or(rest.len());
            Command::Connect(rest.slice(start..))
        } else {
            return Err(ParseError::UnknownOperation);
        };
        Ok(Some(command))
    }

    fn publication(&self, rest: &Bytes, has_header: bool) -> Result<Unfinished, ParseError> {
        let (words, count) = words::<4>(rest)?;
        let sizes = if has_header { 2 } else { 1 };
        let [a, b, c, d] = words;
        let (subject, reply, sizes) = match (count, sizes) {
            (2, 1) => (a, None, [None, Some(b)]),
            (3, 1) => (a, Some(b), [None, Some(c)]),
            (3, 2) => (a, None, [Some(b), Some(c)]),
            (4, 2) => (a, Some(b), [Some(c), Some(d)]),
            _ => return Err(ParseError::UnknownOperation),
        };
        let [header, total] = sizes.map(|word| word.map_or(Ok(0), |word| number(&word)));
        let (header_bytes, total_bytes) = (header?, total?);
        if total_bytes > self.payload_bytes_max {
            return Err(ParseError::PayloadTooLarge);
        }
        if header_bytes > total_bytes {
            return Err(ParseError::UnknownOperation);
        }
        Ok(Unfinished { subject, reply, header_bytes, total_bytes })
    }
}

fn finish(unfinished: Unfinished, buffer: &mut BytesMut) -> Result<Publication, ParseError> {
    let Unfinished { subject, reply, header_bytes, total_bytes } = unfinished;
    let mut body = buffer.split_to(total_bytes + 2).freeze();
    if !body.ends_with(b"\r\n") {
        return Err(ParseError::UnknownOperation);
    }
    body.truncate(total_bytes);
    let header = body.split_to(header_bytes);
    Ok(Publication { subject, reply, header, payload: body })
}

/// Words of a line, at most `N`, and how many there are.
fn words<const N: usize>(line: &Bytes) -> Result<([Bytes; N], usize), ParseError> {
    let mut found = [const { Bytes::new() }; N];
    let mut count = 0;
    for word in line.split(|byte| matches!(byte, b' ' | b'\t')).filter(|word| !word.is_empty()) {
        *found.get_mut(count).ok_or(ParseError::UnknownOperation)? = line.slice_ref(word);
        count += 1;
    }
    Ok((found, count))
}

/// A decimal number of at most nine digits: any larger number exceeds every limit.
fn number(word: &[u8]) -> Result<usize, ParseError> {
    if word.is_empty() || word.len() > 9 || !word.iter().all(u8::is_ascii_digit) {
        return Err(ParseError::UnknownOperation);
    }
    Ok(word.iter().fold(0, |number, digit| number * 10 + usize::from(digit - b'0')))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(input: &[u8]) -> Result<Vec<Command>, ParseError> {
        let (mut parser, mut buffer) = (Parser::new(64), BytesMut::from(input));
        let mut commands = Vec::new();
        while let Some(command) = parser.next(&mut buffer)? {
            commands.push(command);
        }
        Ok(commands)
    }

    #[test]
    fn commands_are_read_as_clients_write_them() {
        let commands = parse(
            b"CONNECT  {\"a\":1}\r\nping\r\nSUB a.* q 7\r\nSub\ta 8\r\nUNSUB 7 3\r\n\
              PUB a 2\r\nhi\r\nHPUB a r 3 5\r\nabchi\r\nPONG\n",
        )
        .expect("parses");
        let publish = |reply: Option<&'static str>, header: &'static str| {
            Command::Publish(Publication {
                subject: "a".into(),
                reply: reply.map(Bytes::from),
                header: header.into(),
                payload: "hi".into(),
            })
        };
        let expected = [
            Command::Connect("{\"a\":1}".into()),
            Command::Ping,
            Command::Subscribe { subject: "a.*".into(), queue: Some("q".into()), sid: "7".into() },
            Command::Subscribe { subject: "a".into(), queue: None, sid: "8".into() },
            Command::Unsubscribe { sid: "7".into(), after: 3 },
            publish(None, ""),
            publish(Some("r"), "abc"),
            Command::Pong,
        ];
        assert_eq!(commands, expected);
    }

    #[test]
    fn what_cannot_be_read_ends_the_connection() {
        use ParseError::{LineTooLong, PayloadTooLarge, UnknownOperation};
        let long = [b'a'; LINE_BYTES_MAX + 3];
        for (input, error) in [
            (&b"GET / HTTP/1.1\r\n"[..], UnknownOperation),
            (b"\r\n", UnknownOperation),
            (b"PUB a -1\r\n", UnknownOperation),
            (b"PUB a 1 2 3\r\n", UnknownOperation),
            (b"PUB a 99999999999999999999\r\n", UnknownOperation),
            (b"PUB a 65\r\n", PayloadTooLarge),
            (b"HPUB a 5 3\r\n", UnknownOperation),
            (b"PUB a 2\r\nhi!\r\n", UnknownOperation),
            (b"SUB a\r\n", UnknownOperation),
            (&long, LineTooLong),
        ] {
            assert_eq!(parse(input), Err(error), "{:?}", String::from_utf8_lossy(input));
        }
    }
}
