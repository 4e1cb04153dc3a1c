//! Decodes image bytes into upright RGB pixels, or refuses them with a clear reason.
//!
//! Nothing is decoded, and no buffer is sized, before `layout` has read the file's structure and the announced sides
//! have been checked against [`Limits`]: a 28-byte GIF can announce 17 GB. The same walk checks that the file reaches
//! its own end, because decoders fill the rest of a truncated file with grey and report success (the `image` crate's
//! JPEG decoder accepts 97 of 98 truncated files).
//!
//! Deliberately not done: colour profiles (ICC) are ignored, and only the first frame of an animation is decoded.

mod layout;
mod jpeg;
mod png;
mod raster;
mod strip;

use image::metadata::Orientation;

use layout::FileLayout;
pub use layout::{Format, ImageHeader};
pub use strip::without_metadata;

use crate::ImageError;

/// Most passes over an image. Progressive JPEGs have about ten; each pass costs as much as a decode, and a hostile file
/// may hold a hundred thousand.
const PASSES_MAX: u32 = 100;

/// Most passes times pixels: two seconds of work on a slow core. A decode cannot be stopped, so its cost is bounded
/// before it begins.
const WORK_MAX: u64 = 1_500_000_000;

/// Limits of an accepted image, checked on the header before any decode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Longest side, pixels.
    pub side_max: u32,
    /// Most pixels, width × height.
    pub pixels_max: u64,
    /// Most bytes that one decode may allocate, all buffers together.
    pub output_bytes_max: u64,
}

impl Default for Limits {
    /// 16,384 pixels per side, 2 to the power of 26 pixels in all (64-megapixel cameras produce a little over 64
    /// million), and 12 bytes for each of them.
    fn default() -> Self {
        Self { side_max: 16_384, pixels_max: 64 << 20, output_bytes_max: 12 * (64 << 20) }
    }
}

/// A decoded image: upright, opaque RGB, 8 bits a channel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// Width of `pixels`; less than the file's if it was decoded at reduced scale.
    pub width: u32,
    /// Height of `pixels`.
    pub height: u32,
    /// Rows from the top, red, green and blue of each pixel.
    pub pixels: Vec<u8>,
    /// Width of the upright image in the file, pixels.
    pub full_width: u32,
    /// Height of the upright image in the file, pixels.
    pub full_height: u32,
}

/// Checks kind, sides and completeness of an image from its structure alone.
///
/// Costs one pass over the bytes at memory speed and allocates nothing.
///
/// # Errors
/// Every [`ImageError`] except most cases of `Corrupt`: damage inside the compressed data shows only when
/// it is decoded.
pub fn inspect(bytes: &[u8], limits: &Limits) -> Result<ImageHeader, ImageError> {
    Ok(checked_layout(bytes, limits)?.header())
}

/// Decodes an image, turns it upright and blends transparency over white.
///
/// With `short_side`, a JPEG may be decoded at a half, a quarter or an eighth of its size, as long as its short side
/// stays at least twice `short_side`; this is for callers that shrink the image anyway.
///
/// # Errors
/// Those of [`inspect`], and `Corrupt` or `Truncated` from the decoder. Never panics.
pub fn decode(bytes: &[u8], limits: &Limits, short_side: Option<u32>) -> Result<Image, ImageError> {
    let layout = checked_layout(bytes, limits)?;
    let header = layout.header();
    // A panic in a decoder is our bug or its author's, but the worker must survive it.
    let decoded = std::panic::catch_unwind(|| match layout.format {
        Format::Jpeg => jpeg::decode(bytes, &layout, short_side),
        Format::Png => png::decode(bytes, limits),
        _ => raster::decode(bytes, &layout, limits),
    })
    .unwrap_or_else(|_| Err(corrupt(layout.format, "the decoder gave up")))?;
    let upright = turn_upright(decoded, layout.orientation);
    Ok(Image {
        width: upright.width(),
        height: upright.height(),
        pixels: upright.into_raw(),
        full_width: header.width,
        full_height: header.height,
    })
}

fn checked_layout(bytes: &[u8], limits: &Limits) -> Result<FileLayout, ImageError> {
    let layout = FileLayout::read(bytes)?;
    let (width, height) = layout.announced;
    let pixels = u64::from(width) * u64::from(height);
    if width.max(height) > limits.side_max
        || pixels > limits.pixels_max
        || pixels.saturating_mul(layout.bytes_a_pixel) > limits.output_bytes_max
    {
        return Err(ImageError::TooLarge { width, height, side_max: limits.side_max, pixels_max: limits.pixels_max });
    }
    if layout.passes > PASSES_MAX || u64::from(layout.passes).saturating_mul(pixels) > WORK_MAX {
        let problem =
            format!("it asks for {} passes over {width}x{height} pixels, more than is decoded", layout.passes);
        return Err(corrupt(layout.format, problem));
    }
    if width == 0 || height == 0 || layout.shown.0 == 0 || layout.shown.1 == 0 {
        return Err(corrupt(layout.format, "it announces a side of 0 pixels"));
    }
    if !layout.complete {
        return Err(ImageError::Truncated { format: layout.format.name() });
    }
    Ok(layout)
}

fn turn_upright(image: image::RgbImage, orientation: Orientation) -> image::RgbImage {
    if orientation == Orientation::NoTransforms {
        return image;
    }
    let mut image = image::DynamicImage::ImageRgb8(image);
    image.apply_orientation(orientation);
    image.into_rgb8()
}

fn corrupt(format: Format, problem: impl std::fmt::Display) -> ImageError {
    ImageError::Corrupt { format: format.name(), problem: problem.to_string() }
}

#[cfg(test)]
mod tests;
