//! Strips what an image file reveals besides its pixels: places, times, cameras, comments.
//!
//! Nothing is decoded or re-encoded: parts of the file are dropped. What is needed to show the pixels correctly stays:
//! colour profiles, and the orientation, which is rewritten in a block of its own.

use image::metadata::Orientation;

use super::layout::{FileLayout, Format, be16, be32, le32};
use crate::ImageError;

/// Returns the file without its metadata.
///
/// # Errors
/// [`ImageError`] if the bytes are not a complete image of a known format: what cannot be read is not passed on.
pub fn without_metadata(bytes: &[u8]) -> Result<Vec<u8>, ImageError> {
    let layout = FileLayout::read(bytes)?;
    let broken = ImageError::Truncated { format: layout.format.name() };
    let stripped = match layout.format {
        Format::Jpeg => jpeg(bytes, layout.orientation),
        Format::Png => png(bytes, layout.orientation),
        Format::WebP => webp(bytes, layout.orientation),
        Format::Gif => gif(bytes),
        Format::Bmp => bmp(bytes),
    };
    stripped.ok_or(broken)
}

/// An EXIF block that holds an orientation and nothing else.
fn exif_of(orientation: Orientation) -> Option<Vec<u8>> {
    if orientation == Orientation::NoTransforms {
        return None;
    }
    let mut exif = b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0".to_vec();
    exif.extend([orientation.to_exif(), 0, 0, 0, 0, 0, 0, 0]);
    Some(exif)
}

fn jpeg(bytes: &[u8], orientation: Orientation) -> Option<Vec<u8>> {
    /// Length of a JFIF segment without a thumbnail, including its two length bytes.
    const JFIF_BYTES: usize = 16;
    let mut kept = bytes.get(..2)?.to_vec();
    if let Some(exif) = exif_of(orientation) {
        let length = u16::try_from(exif.len() + 8).ok()?;
        kept.extend([0xFF, 0xE1]);
        kept.extend(length.to_be_bytes());
        kept.extend(b"Exif\0\0");
        kept.extend(exif);
    }
    let mut at = 2;
    loop {
        // Skip to the next marker; stray and fill bytes are dropped.
        at += memchr::memchr(0xFF, bytes.get(at..)?)?;
        at += bytes[at..].iter().position(|byte| *byte != 0xFF)?;
        let code = bytes[at];
        at += 1;
        match code {
            // Drop what follows the end: other pictures may be stored there, with metadata of their own.
            0xD9 => {
                kept.extend([0xFF, 0xD9]);
                return Some(kept);
            }
            0x00 | 0x01 | 0xD0..=0xD8 => continue,
            _ => {}
        }
        let length = usize::from(be16(bytes, at)?).max(2);
        let segment = bytes.get(at..at + length)?;
        let is_of = |name: &[u8]| segment.get(2..).is_some_and(|data| data.starts_with(name));
        let is_needed = match code {
            // Keep three APP segments: a colour profile, Adobe's colour transform, and JFIF without its thumbnail.
            0xE0 if is_of(b"JFIF\0") && segment.len() >= JFIF_BYTES => {
                kept.extend([0xFF, 0xE0, 0, JFIF_BYTES as u8]);
                kept.extend(&segment[2..JFIF_BYTES - 2]);
                kept.extend([0, 0]);
                false
            }
            0xEE => is_of(b"Adobe"),
            0xE2 => is_of(b"ICC_PROFILE\0"),
            0xE0..=0xEF | 0xFE => false,
            _ => true,
        };
        if is_needed {
            kept.extend([0xFF, code]);
            kept.extend(segment);
        }
        at += length;
        if code == 0xDA {
            let data = bytes.get(at..)?;
            let end = memchr::memchr_iter(0xFF, data)
                .find(|i| !matches!(data.get(i + 1), Some(0x00 | 0xD0..=0xD7 | 0xFF)))
                .unwrap_or(data.len());
            kept.extend(&data[..end]);
            at += end;
        }
    }
}

/// Chunks that are needed to show the pixels correctly.
const PNG_CHUNKS: [&[u8]; 15] = [
    b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND", b"gAMA", b"cHRM", b"sRGB", b"iCCP", b"cICP", b"sBIT", b"pHYs",
    b"acTL", b"fcTL", b"fdAT",
];
const WEBP_CHUNKS: [&[u8]; 7] = [b"VP8X", b"VP8 ", b"VP8L", b"ALPH", b"ANIM", b"ANMF", b"ICCP"];

fn png(bytes: &[u8], orientation: Orientation) -> Option<Vec<u8>> {
    let mut kept = bytes.get(..8)?.to_vec();
    let mut at = 8;
    loop {
        let length = be32(bytes, at)? as usize;
        let kind = bytes.get(at + 4..at + 8)?;
        let chunk = bytes.get(at..at.checked_add(length)?.checked_add(12)?)?;
        at += chunk.len();
        if !PNG_CHUNKS.contains(&kind) {
            continue;
        }
        kept.extend(chunk);
        if kind == b"IHDR"
            && let Some(exif) = exif_of(orientation)
        {
            kept.extend(u32::try_from(exif.len()).ok()?.to_be_bytes());
            let start = kept.len();
            kept.extend(b"eXIf");
            kept.extend(exif);
            let crc = crc32fast::hash(&kept[start..]);
            kept.extend(crc.to_be_bytes());
        }
        if kind == b"IEND" {
            return Some(kept);
        }
    }
}

fn webp(bytes: &[u8], orientation: Orientation) -> Option<Vec<u8>> {
    /// The bits of an extended header that announce EXIF and XMP chunks.
    const EXIF_AND_XMP: u8 = 0x0C;
    const EXIF: u8 = 0x08;
    let end = 8_usize.checked_add(le32(bytes, 4)? as usize)?.min(bytes.len());
    let exif = exif_of(orientation);
    let mut kept = bytes.get(..12)?.to_vec();
    let mut at = 12;
    while at + 8 <= end {
        let kind = bytes.get(at..at + 4)?;
        let length = le32(bytes, at + 4)? as usize;
        let chunk = bytes.get(at..at.checked_add(length)?.checked_add(8)?)?;
        at += chunk.len() + (length & 1);
        if !WEBP_CHUNKS.contains(&kind) {
            continue;
        }
        let start = kept.len();
        kept.extend(chunk);
        // Some writers omit the padding of the last chunk.
        kept.extend(vec![0; length & 1]);
        if kind == b"VP8X" {
            let flags = kept.get_mut(start + 8)?;
            *flags = (*flags & !EXIF_AND_XMP) | if exif.is_some() { EXIF } else { 0 };
        }
    }
    if let Some(exif) = exif {
        kept.extend(b"EXIF");
        kept.extend(u32::try_from(exif.len()).ok()?.to_le_bytes());
        kept.extend(&exif);
        kept.extend(vec![0; exif.len() & 1]);
    }
    let length = u32::try_from(kept.len() - 8).ok()?;
    kept[4..8].copy_from_slice(&length.to_le_bytes());
    Some(kept)
}

fn gif(bytes: &[u8]) -> Option<Vec<u8>> {
    /// The loop count of an animation, the one application block that is needed.
    const NETSCAPE: &[u8] = b"NETSCAPE2.0";
    let table = |flags: u8| if flags & 0x80 == 0 { 0 } else { 3 << ((flags & 7) + 1) };
    let head = 13 + table(*bytes.get(10)?);
    let mut kept = bytes.get(..head)?.to_vec();
    let mut at = head;
    // The end of the sub-blocks that begin at `at`.
    let end_of_blocks = |mut at: usize| loop {
        match *bytes.get(at)? {
            0 => break Some(at + 1),
            length => at += usize::from(length) + 1,
        }
    };
    loop {
        let start = at;
        // Many writers omit the trailer, or leave something after the pictures.
        let is_needed = match bytes.get(at).copied().unwrap_or(0x3B) {
            0x2C => {
                at = end_of_blocks(at + 11 + table(*bytes.get(at + 9)?))?;
                true
            }
            0x21 => {
                let label = *bytes.get(at + 1)?;
                at = end_of_blocks(at + 2)?;
                label == 0xF9 || (label == 0xFF && bytes.get(start + 3..start + 14) == Some(NETSCAPE))
            }
            _ => {
                kept.push(0x3B);
                return Some(kept);
            }
        };
        if is_needed {
            kept.extend(bytes.get(start..at)?);
        }
    }
}

/// The headers and the data, up to the length that the file states.
fn bmp(bytes: &[u8]) -> Option<Vec<u8>> {
    let length = (le32(bytes, 2)? as usize).min(bytes.len());
    // Some writers do not state the length.
    Some(bytes[..if length > 14 { length } else { bytes.len() }].to_vec())
}
