//! The structure of a JPEG file, by ITU-T T.81.

use super::{Walked, be16};

/// Walks from marker to marker.
pub(super) fn walk(bytes: &[u8]) -> Option<Walked<'_>> {
    let mut frame = None;
    let mut unsupported = None;
    let mut passes = 0;
    let mut exif = None;
    let mut at = 2;
    let complete = loop {
        // A marker is FF, any number of fill bytes FF, and a code that is neither 00 nor FF.
        let Some(skip) = bytes.get(at..).and_then(|rest| rest.iter().position(|b| *b != 0xFF)) else { break false };
        let code = bytes[at + skip];
        if skip == 0 {
            // Not at a marker: stray bytes between segments. Continue at the next FF.
            let Some(next) = memchr::memchr(0xFF, &bytes[at..]) else { break false };
            at += next;
            continue;
        }
        at += skip + 1;
        match code {
            0xD9 => break true,
            0x00 | 0x01 | 0xD0..=0xD8 => continue,
            _ => {}
        }
        let Some(length) = be16(bytes, at) else { break false };
        let Some(segment) = bytes.get(at + 2..at + usize::from(length).max(2)) else { break false };
        match code {
            0xC0..=0xCF if !matches!(code, 0xC4 | 0xC8 | 0xCC) && frame.is_none() => {
                frame = Frame::read(code, segment);
                unsupported = frame.as_ref().and_then(Frame::unsupported);
            }
            0xDA => {
                let partial = frame.as_ref().and_then(|frame| frame.unsupported_scan(*segment.first().unwrap_or(&0)));
                unsupported = unsupported.or(partial);
            }
            0xE1 if exif.is_none() => exif = segment.strip_prefix(b"Exif\0\0"),
            _ => {}
        }
        at += usize::from(length).max(2);
        if code == 0xDA {
            passes += 1;
            // Entropy-coded data: FF 00 is a stuffed byte, FF D0..D7 a restart; any other marker ends the data.
            let data = &bytes[at..];
            at += memchr::memchr_iter(0xFF, data)
                .find(|i| !matches!(data.get(i + 1), Some(0x00 | 0xD0..=0xD7 | 0xFF)))
                .unwrap_or(data.len());
        }
    };
    let frame = frame?;
    let (announced, bytes_a_pixel) = (frame.sides, frame.bytes_a_pixel());
    Some(Walked { shown: announced, announced, bytes_a_pixel, passes, exif, complete, unsupported })
}

/// The fields of a frame header.
struct Frame {
    /// The second byte of its marker, which states how the frame is coded.
    code: u8,
    /// Bits per sample.
    precision: u8,
    sides: (u32, u32),
    /// Horizontal and vertical sampling factor of each component.
    sampling: Vec<(u8, u8)>,
}

impl Frame {
    fn read(code: u8, segment: &[u8]) -> Option<Self> {
        let sides = (u32::from(be16(segment, 3)?), u32::from(be16(segment, 1)?));
        let count = usize::from(*segment.get(5)?);
        let components = segment.get(6..)?.chunks_exact(3).take(count);
        let sampling = components.map(|component| (component[1] >> 4, component[1] & 0x0F)).collect();
        Some(Self { code, precision: segment[0], sides, sampling })
    }

    /// The frame's kind, if it is one that we do not decode.
    fn unsupported(&self) -> Option<&'static str> {
        if matches!(self.code, 0xC3 | 0xC5..=0xC7 | 0xCB | 0xCD..=0xCF) {
            return Some("of the lossless or hierarchical kind");
        }
        if self.precision != 8 {
            return Some("of other than 8 bits a sample");
        }
        let first = *self.sampling.first()?;
        if !matches!(self.sampling.len(), 1 | 3 | 4) {
            return Some("of other than one, three or four components");
        }
        // Brightness comes first, and its sampling factors must be whole multiples of each colour's.
        let fits = |&(h, v): &(u8, u8)| h > 0 && v > 0 && first.0.is_multiple_of(h) && first.1.is_multiple_of(v);
        (!self.sampling.iter().all(fits)).then_some("of a sampling that no common decoder reads")
    }

    /// The same for one of the frame's scans.
    fn unsupported_scan(&self, components: u8) -> Option<&'static str> {
        // A progressive frame is assembled from coefficients, whichever components its scans hold.
        let is_progressive = matches!(self.code, 0xC2 | 0xCA);
        let is_partial = components > 1 && usize::from(components) < self.sampling.len();
        (is_partial && !is_progressive).then_some("of scans that hold some of its components each")
    }

    /// Pixels and planes; a progressive frame adds its coefficients, 16 bits each.
    fn bytes_a_pixel(&self) -> u64 {
        let planes = self.sampling.len() as u64;
        3 + planes + if matches!(self.code, 0xC2 | 0xCA) { 2 * planes } else { 0 }
    }
}
