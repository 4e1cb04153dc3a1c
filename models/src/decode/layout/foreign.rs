//! Names the kind of an unsupported file, so that the sender knows what to do.

use crate::ImageError;

/// Why a file of none of our formats is refused.
pub(super) fn refusal(bytes: &[u8]) -> ImageError {
    name(bytes).map_or(ImageError::Unsupported, |name| ImageError::Foreign { name })
}

fn name(bytes: &[u8]) -> Option<&'static str> {
    let text = bytes.trim_ascii_start();
    let text = text.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(text);
    Some(match bytes {
        // ISO base media: the length of a box, `ftyp`, and a brand.
        [_, _, _, _, b'f', b't', b'y', b'p', brand @ ..] => match brand.get(..4)? {
            b"heic" | b"heix" | b"hevc" | b"hevx" | b"heim" | b"heis" | b"mif1" | b"msf1" => "a HEIC image",
            b"avif" | b"avis" => "an AVIF image",
            _ => "a video",
        },
        [b'I', b'I', b'*', 0, ..]
        | [b'M', b'M', 0, b'*', ..]
        | [b'I', b'I', b'+', 0, ..]
        | [b'M', b'M', 0, b'+', ..] => "a TIFF image or a camera's raw file",
        [0xFF, 0x0A, ..] | [0, 0, 0, 0x0C, b'J', b'X', b'L', b' ', ..] => "a JPEG XL image",
        [0, 0, 0, 0x0C, b'j', b'P', b' ', b' ', ..] | [0xFF, 0x4F, 0xFF, 0x51, ..] => "a JPEG 2000 image",
        [b'8', b'B', b'P', b'S', ..] => "a Photoshop document",
        [0, 0, 1, 0, count, 0, ..] if *count > 0 => "an icon file",
        [b'%', b'P', b'D', b'F', ..] => "a PDF document",
        [b'P', b'K', 3, 4, ..] => "a zip archive",
        [0x1F, 0x8B, ..] => "a gzip file",
        [0x1A, 0x45, 0xDF, 0xA3, ..] => "a video",
        _ if text.starts_with(b"<svg")
            || text.starts_with(b"<?xml") && memchr::memmem::find(text, b"<svg").is_some() =>
        {
            "an SVG drawing"
        }
        _ if text.get(..9).is_some_and(|start| start.eq_ignore_ascii_case(b"<!doctype")) => "an HTML page",
        _ if text.get(..5).is_some_and(|start| start.eq_ignore_ascii_case(b"<html")) => "an HTML page",
        _ => return None,
    })
}
