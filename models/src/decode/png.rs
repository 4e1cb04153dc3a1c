//! Decodes PNG row by row, so that an image of 16 bits per channel never takes more memory than its opaque RGB.

use std::io::{Cursor, ErrorKind};

use image::RgbImage;
use png::{ColorType, DecodingError, Transformations};

use super::layout::Format;
use super::{Limits, corrupt};
use crate::ImageError;

pub(super) fn decode(bytes: &[u8], limits: &Limits) -> Result<RgbImage, ImageError> {
    let allowed = png::Limits { bytes: usize::try_from(limits.output_bytes_max).unwrap_or(usize::MAX) };
    let mut decoder = png::Decoder::new_with_limits(Cursor::new(bytes), allowed);
    // Expands palettes and low bit depths to 8 bits, turns transparent colours into alpha, and keeps the
    // upper 8 of 16 bits.
    decoder.set_transformations(Transformations::normalize_to_color8());
    let mut reader = decoder.read_info().map_err(refusal)?;
    let (width, height) = (reader.info().width, reader.info().height);
    let (color, _) = reader.output_color_type();
    let mut pixels = Vec::with_capacity(3 * width as usize * height as usize);
    if reader.info().interlaced {
        let size = reader.output_buffer_size().ok_or_else(|| corrupt(Format::Png, "its pixels take too much"))?;
        let mut whole = vec![0; size];
        reader.next_frame(&mut whole).map_err(refusal)?;
        push_rgb(&whole, color, &mut pixels);
    } else {
        while let Some(row) = reader.next_row().map_err(refusal)? {
            push_rgb(row.data(), color, &mut pixels);
        }
    }
    RgbImage::from_raw(width, height, pixels).ok_or_else(|| corrupt(Format::Png, "its pixels do not fill it"))
}

/// Appends samples as opaque RGB, with transparent ones blended over white.
fn push_rgb(samples: &[u8], color: ColorType, pixels: &mut Vec<u8>) {
    match color {
        ColorType::Rgb => pixels.extend_from_slice(samples),
        ColorType::Rgba => {
            let over = samples.chunks_exact(4).flat_map(|p| [p[0], p[1], p[2]].map(|color| over_white(color, p[3])));
            pixels.extend(over);
        }
        ColorType::GrayscaleAlpha => {
            pixels.extend(samples.chunks_exact(2).flat_map(|p| [over_white(p[0], p[1]); 3]));
        }
        // `Indexed` cannot occur, since palettes are expanded.
        ColorType::Grayscale | ColorType::Indexed => pixels.extend(samples.iter().flat_map(|grey| [*grey; 3])),
    }
}

/// Blends a colour over white.
pub(super) fn over_white(color: u8, alpha: u8) -> u8 {
    let (color, alpha) = (u32::from(color), u32::from(alpha));
    ((color * alpha + 255 * (255 - alpha) + 127) / 255) as u8
}

fn refusal(error: DecodingError) -> ImageError {
    match error {
        DecodingError::IoError(io) if io.kind() == ErrorKind::UnexpectedEof => {
            ImageError::Truncated { format: Format::Png.name() }
        }
        error => corrupt(Format::Png, error),
    }
}
