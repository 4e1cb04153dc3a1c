//! The structure of an image file: kind, announced sides, orientation, and whether the file is complete.
//!
//! Each walk follows the lengths that the file states, from marker to marker; compressed data is skipped, never read.
//! The walks follow the PNG specification (third edition), the GIF89a specification, RFC 9649 (WebP) and the Windows
//! BITMAPINFOHEADER page; JPEG has a file of its own.

mod foreign;
mod jpeg;

use image::metadata::Orientation;

use crate::ImageError;

/// An accepted image format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// JPEG, baseline or progressive.
    Jpeg,
    /// PNG.
    Png,
    /// WebP, lossy or lossless.
    WebP,
    /// GIF; only the first frame is decoded.
    Gif,
    /// Windows bitmap.
    Bmp,
}

impl Format {
    /// The format, judged by the first bytes, whatever the file's name or Content-Type.
    pub fn of(bytes: &[u8]) -> Option<Self> {
        match bytes {
            [0xFF, 0xD8, 0xFF, ..] => Some(Self::Jpeg),
            [0x89, b'P', b'N', b'G', 0x0D, 0x0A, 0x1A, 0x0A, ..] => Some(Self::Png),
            [b'R', b'I', b'F', b'F', _, _, _, _, b'W', b'E', b'B', b'P', ..] => Some(Self::WebP),
            [b'G', b'I', b'F', b'8', b'7' | b'9', b'a', ..] => Some(Self::Gif),
            [b'B', b'M', ..] => Some(Self::Bmp),
            _ => None,
        }
    }

    /// Like [`Format::of`], with an error for any other file.
    ///
    /// # Errors
    /// [`ImageError`] that names what was recognised instead.
    pub fn judge(bytes: &[u8]) -> Result<Self, ImageError> {
        if bytes.is_empty() {
            return Err(ImageError::Empty);
        }
        Self::of(bytes).ok_or_else(|| foreign::refusal(bytes))
    }

    /// The name that clients see.
    pub fn name(self) -> &'static str {
        match self {
            Self::Jpeg => "jpeg",
            Self::Png => "png",
            Self::WebP => "webp",
            Self::Gif => "gif",
            Self::Bmp => "bmp",
        }
    }
}

/// What a file's structure states about its image, read without decoding it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ImageHeader {
    /// The file's format, judged by its bytes.
    pub format: Format,
    /// Width of the upright image, pixels.
    pub width: u32,
    /// Height of the upright image, pixels.
    pub height: u32,
}

/// What one walk over a file found.
#[derive(Debug, Clone, Copy)]
pub(super) struct FileLayout {
    pub(super) format: Format,
    /// Width and height of the decoded image, before orientation.
    pub(super) shown: (u32, u32),
    /// The largest sides that any part of the file announces; a decoder may allocate as much.
    pub(super) announced: (u32, u32),
    /// About how many bytes decoding allocates per pixel, all buffers together.
    pub(super) bytes_a_pixel: u64,
    /// Passes over the image that the file asks for.
    pub(super) passes: u32,
    pub(super) orientation: Orientation,
    /// Whether the walk reached the file's own end.
    pub(super) complete: bool,
}

impl FileLayout {
    /// Walks the file.
    ///
    /// A file that ends before it announces its sides is `Truncated`.
    pub(super) fn read(bytes: &[u8]) -> Result<Self, ImageError> {
        let format = Format::judge(bytes)?;
        if format == Format::Png && bytes.get(12..16) == Some(b"CgBI") {
            let kind = "of Apple's own variant (CgBI)";
            return Err(ImageError::UnsupportedKind { format: format.name(), kind });
        }
        let walked = match format {
            Format::Jpeg => jpeg::walk(bytes),
            Format::Png => png(bytes),
            Format::WebP => webp(bytes),
            Format::Gif => gif(bytes),
            Format::Bmp => bmp(bytes),
        };
        let walked = walked.ok_or(ImageError::Truncated { format: format.name() })?;
        if let Some(kind) = walked.unsupported {
            return Err(ImageError::UnsupportedKind { format: format.name(), kind });
        }
        Ok(Self {
            format,
            shown: walked.shown,
            announced: walked.announced,
            bytes_a_pixel: walked.bytes_a_pixel,
            passes: walked.passes,
            orientation: walked.exif.and_then(Orientation::from_exif_chunk).unwrap_or(Orientation::NoTransforms),
            complete: walked.complete,
        })
    }

    /// What callers outside this module see: the sides of the upright image.
    pub(super) fn header(&self) -> ImageHeader {
        let (width, height) = self.shown;
        let lies_on_its_side = matches!(
            self.orientation,
            Orientation::Rotate90 | Orientation::Rotate270 | Orientation::Rotate90FlipH | Orientation::Rotate270FlipH
        );
        let (width, height) = if lies_on_its_side { (height, width) } else { (width, height) };
        ImageHeader { format: self.format, width, height }
    }
}

struct Walked<'a> {
    shown: (u32, u32),
    announced: (u32, u32),
    bytes_a_pixel: u64,
    passes: u32,
    exif: Option<&'a [u8]>,
    complete: bool,
    /// The file's kind, if it is one that we do not decode.
    unsupported: Option<&'static str>,
}

fn png(bytes: &[u8]) -> Option<Walked<'_>> {
    let announced = (be32(bytes, 16)?, be32(bytes, 20)?);
    let is_interlaced = bytes.get(28).is_some_and(|method| *method != 0);
    let mut exif = None;
    let mut at = 8;
    let complete = loop {
        let (Some(length), Some(kind)) = (be32(bytes, at), bytes.get(at + 4..at + 8)) else { break false };
        let data = at + 8;
        let next = data.saturating_add(length as usize).saturating_add(4);
        if next > bytes.len() {
            break false;
        }
        match kind {
            b"IEND" => break true,
            b"eXIf" => exif = bytes.get(data..data + length as usize),
            _ => {}
        }
        at = next;
    };
    // Rows become RGB one by one, but an interlaced image is first decoded as a whole; turning an image
    // upright takes a copy.
    let bytes_a_pixel = if is_interlaced { 7 } else { 6 };
    Some(Walked { shown: announced, announced, bytes_a_pixel, passes: 1, exif, complete, unsupported: None })
}

fn webp(bytes: &[u8]) -> Option<Walked<'_>> {
    let end = 8usize.saturating_add(le32(bytes, 4)? as usize);
    let mut shown = None;
    let mut announced = (0, 0);
    let mut exif = None;
    let mut at = 12;
    while at + 8 <= end.min(bytes.len()) {
        let kind = bytes.get(at..at + 4)?;
        let length = le32(bytes, at + 4)? as usize;
        let data = bytes.get(at + 8..)?;
        // A frame of an animation holds chunks of its own, after 16 bytes about the frame. Every chunk that announces
        // sides counts: the sides need not agree, and decoders trust the inner ones.
        let sides = match kind {
            b"ANMF" => webp_sides(data.get(16..20)?, data.get(24..)?),
            _ => webp_sides(kind, data),
        };
        if let Some((width, height)) = sides {
            shown = shown.or(sides);
            announced = (announced.0.max(width), announced.1.max(height));
        }
        if kind == b"EXIF" {
            exif = data.get(..length).map(|chunk| chunk.strip_prefix(b"Exif\0\0").unwrap_or(chunk));
        }
        // Chunks are padded to an even length.
        at = at.saturating_add(8).saturating_add(length).saturating_add(length & 1);
    }
    let complete = bytes.len() >= end && at >= end;
    Some(Walked { shown: shown?, announced, bytes_a_pixel: 7, passes: 1, exif, complete, unsupported: None })
}

/// The sides that one WebP chunk announces.
fn webp_sides(kind: &[u8], data: &[u8]) -> Option<(u32, u32)> {
    match kind {
        b"VP8X" => Some((le24(data, 4)? + 1, le24(data, 7)? + 1)),
        // After the frame tag and the start code: 14 bits per side.
        b"VP8 " => Some((u32::from(le16(data, 6)? & 0x3FFF), u32::from(le16(data, 8)? & 0x3FFF))),
        b"VP8L" => {
            let sides = le32(data, 1)?;
            Some(((sides & 0x3FFF) + 1, ((sides >> 14) & 0x3FFF) + 1))
        }
        _ => None,
    }
}

fn gif(bytes: &[u8]) -> Option<Walked<'_>> {
    let color_table = |flags: u8| if flags & 0x80 == 0 { 0 } else { 3 << ((flags & 7) + 1) };
    let mut screen = (u32::from(le16(bytes, 6)?), u32::from(le16(bytes, 8)?));
    // A frame is drawn on the screen, and the screen is what is shown.
    let walked = |shown, announced, complete| Walked {
        shown,
        announced,
        bytes_a_pixel: 11,
        passes: 1,
        exif: None,
        complete,
        unsupported: None,
    };
    let mut announced = screen;
    let mut at = 13 + color_table(*bytes.get(10)?);
    let mut frames = 0;
    let complete = loop {
        match bytes.get(at) {
            Some(0x3B) => break frames > 0,
            Some(0x21) => at += 2,
            Some(0x2C) => {
                let (Some(width), Some(height), Some(flags)) =
                    (le16(bytes, at + 5), le16(bytes, at + 7), bytes.get(at + 9))
                else {
                    break false;
                };
                if frames == 0 {
                    // Some writers omit the screen's size; then it is as large as the first frame needs.
                    let (Some(left), Some(top)) = (le16(bytes, at + 1), le16(bytes, at + 3)) else { break false };
                    if screen.0 == 0 {
                        screen.0 = u32::from(left) + u32::from(width);
                    }
                    if screen.1 == 0 {
                        screen.1 = u32::from(top) + u32::from(height);
                    }
                    announced = (screen.0.max(u32::from(width)), screen.1.max(u32::from(height)));
                }
                frames += 1;
                // Descriptor, local colour table, and the code size before the data.
                at += 10 + color_table(*flags) + 1;
            }
            // Many writers omit the trailer; if the file ends between two blocks, the first frame is complete.
            None => break frames > 0 && at == bytes.len(),
            Some(_) => break frames > 0,
        }
        // Sub-blocks: a length byte and this many bytes, until a length of 0.
        loop {
            match bytes.get(at) {
                Some(0) => break,
                Some(length) => at += 1 + usize::from(*length),
                None => return Some(walked(screen, announced, false)),
            }
        }
        at += 1;
    };
    Some(walked(screen, announced, complete))
}

fn bmp(bytes: &[u8]) -> Option<Walked<'_>> {
    let data_offset = u64::from(le32(bytes, 10)?);
    let header_bytes = le32(bytes, 14)?;
    let (announced, bits, compression) = if header_bytes == 12 {
        let sides = (u32::from(le16(bytes, 18)?), u32::from(le16(bytes, 20)?));
        (sides, le16(bytes, 24)?, 0)
    } else {
        // A negative height means rows from the top.
        let height = le32(bytes, 22)?.cast_signed().unsigned_abs();
        let width = u32::try_from(le32(bytes, 18)?.cast_signed()).unwrap_or(0);
        ((width, height), le16(bytes, 28)?, le32(bytes, 30)?)
    };
    // Rows are padded to four bytes. Run-length coded data (1, 2) is shorter; its decoder checks the length.
    let row = (u64::from(announced.0) * u64::from(bits)).div_ceil(32) * 4;
    let need = match compression {
        1 | 2 => data_offset,
        _ => data_offset.saturating_add(row.saturating_mul(u64::from(announced.1))),
    };
    let complete = bytes.len() as u64 >= need;
    Some(Walked { shown: announced, announced, bytes_a_pixel: 7, passes: 1, exif: None, complete, unsupported: None })
}

pub(super) fn be16(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..)?.first_chunk().map(|b| u16::from_be_bytes(*b))
}
pub(super) fn be32(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|b| u32::from_be_bytes(*b))
}
fn le16(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..)?.first_chunk().map(|b| u16::from_le_bytes(*b))
}
fn le24(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|[a, b, c]| u32::from_le_bytes([*a, *b, *c, 0]))
}
pub(super) fn le32(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|b| u32::from_le_bytes(*b))
}
