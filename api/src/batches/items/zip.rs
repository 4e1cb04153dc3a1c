//! Reads a zip front to back: entry after entry, then the directory, which must not list more files than there
//! were.
//!
//! The layout is that of the .ZIP File Format Specification (APPNOTE) 6.3. Finder, Java and tools that write to a
//! pipe put an entry's length after it, in a data descriptor. Such an entry ends where its compressed data ends or,
//! if it is only stored, where a descriptor matches all the bytes before it.

use std::io::{self, BufRead, Read};

use bytes::Bytes;
use flate2::bufread::DeflateDecoder;
use queue::JobError;

use super::archive::{content, is_litter, skip, wait, wait_to_hand_over};
use super::{Bounds, Content, Sender, named};
use crate::batches::room::Room;
use crate::error::ApiError;

const LOCAL: u32 = 0x0403_4B50;
const CENTRAL: u32 = 0x0201_4B50;
const DESCRIPTOR: u32 = 0x0807_4B50;
const SIGNATURE: u32 = 0x0505_4B50;
const END_64: u32 = 0x0606_4B50;
const LOCATOR_64: u32 = 0x0706_4B50;
const END: u32 = 0x0605_4B50;
/// Begins an archive that might have been split but has only one part.
const ONE_PART: u32 = 0x3030_4B50;

const ENCRYPTED: u16 = 1;
const HAS_DESCRIPTOR: u16 = 1 << 3;
const STORED: u16 = 0;
const DEFLATED: u16 = 8;

/// Descriptors have 12, 16, 20 or 24 bytes.
const DESCRIPTOR_MAX: usize = 24;
/// If a file's end is known only once it is unpacked, it may be this many times larger than an image.
const UNPACKED_MAX: u64 = 4;

/// The upper half of code page 437, the encoding of names that are not UTF-8.
const CODE_PAGE: &str = "ÇüéâäàåçêëèïîìÄÅÉæÆôöòûùÿÖÜ¢£¥₧ƒáíóúñÑªº¿⌐¬½¼¡«»░▒▓│┤╡╢╖╕╣║╗╝╜╛┐└┴┬├─┼╞╟╚╔╩╦╠═╬╧╨╤╥╙╘╒╓╫╪┘┌█▄▌▐▀αßΓπΣσµτΦΘΩδ∞φε∩≡±≥≤⌠⌡÷≈°∙·√ⁿ²■\u{a0}";

/// Reads all files of a zip.
pub(super) fn read(reader: &mut dyn Read, bounds: &Bounds, send: &Sender) -> Result<(), ApiError> {
    let broken = |error: io::Error| ApiError::Archive(format!("the zip cannot be read to its end: {error}"));
    let mut source = Source::new(reader);
    if source.peek(1).map_err(broken)?.is_empty() {
        return Err(ApiError::Archive("the zip is empty".into()));
    }
    let mut files = 0_u64;
    let mut listed = 0_u64;
    loop {
        match source.u32().map_err(broken)? {
            LOCAL => {
                files += 1;
                let entry = ZipEntry::read(&mut source).map_err(broken)?;
                if !take(entry, &mut source, bounds, send).map_err(broken)? {
                    return Ok(());
                }
            }
            CENTRAL => {
                listed += 1;
                let head = source.array::<42>().map_err(broken)?;
                let more = [24, 26, 28].map(|at| u64::from(u16::from_le_bytes([head[at], head[at + 1]])));
                source.pass(more.iter().sum()).map_err(broken)?;
            }
            SIGNATURE => {
                let length = source.array().map(u16::from_le_bytes).map_err(broken)?;
                source.pass(length.into()).map_err(broken)?;
            }
            END_64 => {
                let length = source.array().map(u64::from_le_bytes).map_err(broken)?;
                source.pass(length).map_err(broken)?;
            }
            LOCATOR_64 => source.pass(16).map_err(broken)?,
            END if listed > files => {
                return Err(ApiError::Archive(format!("the zip lists {listed} files and holds {files}")));
            }
            END => {
                let head = source.array::<18>().map_err(broken)?;
                return source.pass(u16::from_le_bytes([head[16], head[17]]).into()).map_err(broken);
            }
            ONE_PART | DESCRIPTOR if files == 0 => {}
            _ => return Err(ApiError::Archive(format!("the zip is damaged behind its file number {files}"))),
        }
    }
}

/// The header before a file.
struct ZipEntry {
    name: String,
    flags: u16,
    method: u16,
    crc: u32,
    /// Its bytes in the archive; `None` if only a descriptor after it has the number.
    packed: Option<u64>,
}

impl ZipEntry {
    fn read(source: &mut Source<'_>) -> io::Result<Self> {
        let head = source.array::<26>()?;
        let short = |at: usize| u16::from_le_bytes([head[at], head[at + 1]]);
        let long = |at: usize| u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
        let name = source.bytes(short(22).into())?;
        let extra = source.bytes(short(24).into())?;
        let (flags, packed, unpacked) = (short(2), long(14), long(18));
        let packed = match u64::from(packed) {
            0 if flags & HAS_DESCRIPTOR != 0 => None,
            // The real lengths are in an extra field: first the unpacked one, if present.
            0xFFFF_FFFF => {
                let at = if unpacked == u32::MAX { 8 } else { 0 };
                let field = field(&extra, 1).and_then(|field| field.get(at..at + 8)?.try_into().ok());
                let packed = u64::from_le_bytes(field.ok_or_else(|| io::Error::other("a length is missing"))?);
                (packed != 0 || flags & HAS_DESCRIPTOR == 0).then_some(packed)
            }
            packed => Some(packed),
        };
        let name = String::from_utf8(name).unwrap_or_else(|error| of_code_page(error.as_bytes()));
        Ok(Self { name, flags, method: short(4), crc: long(10), packed })
    }
}

/// An extra field by its number.
fn field(mut extra: &[u8], wanted: u16) -> Option<&[u8]> {
    while let [a, b, c, d, rest @ ..] = extra {
        let length = usize::from(u16::from_le_bytes([*c, *d]));
        let data = rest.get(..length)?;
        if u16::from_le_bytes([*a, *b]) == wanted {
            return Some(data);
        }
        extra = &rest[length..];
    }
    None
}

fn of_code_page(name: &[u8]) -> String {
    let letter = |byte: &u8| match byte.checked_sub(0x80) {
        Some(upper) => CODE_PAGE.chars().nth(upper.into()).unwrap_or('_'),
        None => char::from(*byte),
    };
    name.iter().map(letter).collect()
}

/// Hands over one file, or the error why it is not usable; `false` once the receiver of items is dropped.
fn take(entry: ZipEntry, source: &mut Source<'_>, bounds: &Bounds, send: &Sender) -> io::Result<bool> {
    let is_file = !entry.name.ends_with('/') && !is_litter(&entry.name);
    let Some(room) = wait(bounds.rooms.lend(bounds.limit.min(entry.room())), send) else { return Ok(false) };
    let problem = match (entry.flags & ENCRYPTED != 0, entry.method) {
        (true, _) => Some(JobError::new("item_encrypted", "it is encrypted; pack it without a password")),
        (false, STORED | DEFLATED) => None,
        (false, method) => {
            let words = format!("it is compressed by method {method}, which is not read; pack it with Deflate");
            Some(JobError::new("item_compression", words))
        }
    };
    let (content, room) = match (problem, entry.packed) {
        (None, Some(packed)) => {
            let mut data = source.by_ref().take(packed);
            let read = if entry.method == DEFLATED {
                content(&mut DeflateDecoder::new(&mut data), room, bounds, send)
            } else {
                content(&mut data, room, bounds, send)
            };
            let left = data.limit();
            source.pass(left)?;
            if entry.flags & HAS_DESCRIPTOR != 0 {
                source.pass_descriptor(packed)?;
            }
            damage(read, entry.crc, bounds, send)?
        }
        (None, None) if entry.method == DEFLATED => {
            let mut data = DeflateDecoder::new(&mut *source);
            let (mut read, room) = content(&mut data, room, bounds, send)?;
            if read.is_err() {
                // Its length on the wire is known only once it is unpacked.
                let most = UNPACKED_MAX * bounds.limit as u64;
                if io::copy(&mut (&mut data).take(most), &mut io::sink())? == most {
                    return Err(io::Error::other(format!("`{}` is far larger than an image may be", entry.name)));
                }
            }
            let packed = data.total_in();
            let crc = source.pass_descriptor(packed)?;
            read = read.and_then(|bytes| whole(bytes, crc));
            (read, room)
        }
        (None, None) => {
            let (bytes, crc) = source.until_descriptor(bounds.limit, true)?;
            (whole(Bytes::from(bytes), crc), room)
        }
        (Some(problem), Some(packed)) => {
            source.pass(packed)?;
            if entry.flags & HAS_DESCRIPTOR != 0 {
                source.pass_descriptor(packed)?;
            }
            (Err(problem), room)
        }
        (Some(problem), None) => {
            source.until_descriptor(bounds.limit, false)?;
            (Err(problem), room)
        }
    };
    if !is_file {
        drop(room);
        return Ok(skip(send, &entry.name));
    }
    let (custom_id, content) = named(&entry.name, content);
    Ok(wait_to_hand_over(send, room, custom_id, content))
}

impl ZipEntry {
    /// Bytes that it certainly needs; unbounded if only a descriptor after it has its length.
    fn room(&self) -> usize {
        let known = self.packed.and_then(|packed| usize::try_from(packed).ok());
        known.unwrap_or(usize::MAX)
    }
}

/// Turns a file whose data cannot be unpacked into one bad item.
fn damage(read: io::Result<(Content, Room)>, crc: u32, bounds: &Bounds, send: &Sender) -> io::Result<(Content, Room)> {
    match read {
        Ok((content, room)) => Ok((content.and_then(|bytes| whole(bytes, crc)), room)),
        // An error of the body itself is of another kind, or shows up again at the next read.
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::InvalidInput | io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof
            ) =>
        {
            let gone = || io::Error::other("the receiver of items was dropped");
            let room = wait(bounds.rooms.lend(0), send).ok_or_else(gone)?;
            Ok((Err(JobError::new("item_damaged", format!("it cannot be unpacked: {error}"))), room))
        }
        Err(error) => Err(error),
    }
}

/// The bytes, if their checksum is that of the packed file.
fn whole(bytes: Bytes, crc: u32) -> Result<Bytes, JobError> {
    if crc32fast::hash(&bytes) == crc {
        return Ok(bytes);
    }
    Err(JobError::new("item_damaged", "its checksum in the zip is another one"))
}

/// The body, with the bytes that were read ahead.
struct Source<'a> {
    inner: &'a mut dyn Read,
    held: Vec<u8>,
    at: usize,
}

impl<'a> Source<'a> {
    const PIECE: usize = 64 << 10;

    fn new(inner: &'a mut dyn Read) -> Self {
        Self { inner, held: Vec::new(), at: 0 }
    }

    /// The next `count` bytes, or all that are left.
    fn peek(&mut self, count: usize) -> io::Result<&[u8]> {
        while self.held.len() - self.at < count {
            self.held.drain(..self.at);
            self.at = 0;
            let length = self.held.len();
            self.held.resize(length + count.max(Self::PIECE), 0);
            let read = self.inner.read(&mut self.held[length..]);
            self.held.truncate(length + *read.as_ref().unwrap_or(&0));
            if read? == 0 {
                break;
            }
        }
        let rest = &self.held[self.at..];
        Ok(&rest[..rest.len().min(count)])
    }

    fn array<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        let array = self.peek(N)?.try_into().map_err(|_| cut())?;
        self.at += N;
        Ok(array)
    }

    fn u32(&mut self) -> io::Result<u32> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    /// At most 64 KiB, since lengths of names are 16-bit numbers.
    fn bytes(&mut self, count: usize) -> io::Result<Vec<u8>> {
        let bytes = self.peek(count)?.to_vec();
        self.at += bytes.len();
        if bytes.len() < count { Err(cut()) } else { Ok(bytes) }
    }

    fn pass(&mut self, count: u64) -> io::Result<()> {
        let passed = io::copy(&mut self.by_ref().take(count), &mut io::sink())?;
        if passed < count { Err(cut()) } else { Ok(()) }
    }

    /// Reads the descriptor after a file of this many bytes and returns the checksum in it.
    fn pass_descriptor(&mut self, packed: u64) -> io::Result<u32> {
        let next = self.peek(DESCRIPTOR_MAX)?;
        let (length, crc) = descriptor(next, packed).ok_or_else(|| io::Error::other("a file's length is wrong"))?;
        self.at += length;
        Ok(crc)
    }

    /// Reads up to the first descriptor that matches; returns the bytes before it and their checksum. Only
    /// `is_stored` bytes must also match that checksum.
    fn until_descriptor(&mut self, limit: usize, is_stored: bool) -> io::Result<(Vec<u8>, u32)> {
        let mark = DESCRIPTOR.to_le_bytes();
        let mut searched = 0;
        loop {
            let wanted = searched + Self::PIECE;
            let ahead = self.peek(wanted)?;
            let is_end = ahead.len() < wanted;
            while let Some(found) = memchr::memmem::find(&ahead[searched..], &mark) {
                let length = searched + found;
                if !is_end && ahead.len() < length + DESCRIPTOR_MAX {
                    break;
                }
                if let Some((bytes, crc)) = descriptor(&ahead[length..], length as u64)
                    && (!is_stored || crc32fast::hash(&ahead[..length]) == crc)
                {
                    let data = ahead[..length].to_vec();
                    self.at += length + bytes;
                    return Ok((data, crc));
                }
                searched = length + 1;
            }
            if is_end {
                return Err(cut());
            }
            searched = searched.max(ahead.len().saturating_sub(DESCRIPTOR_MAX));
            if searched > limit {
                return Err(io::Error::other(format!("the end of a file in it was not found within {limit} bytes")));
            }
        }
    }
}

/// Length and checksum of the descriptor of a file with this many packed bytes.
fn descriptor(bytes: &[u8], packed: u64) -> Option<(usize, u32)> {
    let long = |at: usize| Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
    let longer = |at: usize| Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?));
    // Its mark is optional, and its lengths have four or eight bytes.
    let marked = if long(0) == Some(DESCRIPTOR) { 4 } else { 0 };
    [marked, 0].into_iter().find_map(|at| {
        let crc = long(at)?;
        let of_four = long(at + 4).map(u64::from) == Some(packed) && bytes.len() >= at + 12;
        let of_eight = longer(at + 4) == Some(packed) && bytes.len() >= at + 20;
        // Both match a short file that is followed by zeros; the next record, which begins with PK, decides.
        let next = |length: usize| bytes.get(at + length..at + length + 2).is_none_or(|next| next == b"PK");
        match (of_four, of_eight) {
            (true, true) if next(20) && !next(12) => Some((at + 20, crc)),
            (true, _) => Some((at + 12, crc)),
            (false, true) => Some((at + 20, crc)),
            (false, false) => None,
        }
    })
}

impl Read for Source<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let ahead = self.fill_buf()?;
        let count = ahead.len().min(buffer.len());
        buffer[..count].copy_from_slice(&ahead[..count]);
        self.consume(count);
        Ok(count)
    }
}

impl BufRead for Source<'_> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        self.peek(1)?;
        Ok(&self.held[self.at..])
    }

    fn consume(&mut self, count: usize) {
        self.at += count;
    }
}

fn cut() -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, "it is cut off")
}
