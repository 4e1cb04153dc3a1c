//! JPEG: decodes every layout that `layout` accepts, pixel for pixel as libjpeg-turbo does.
//!
//! `libjpeg-turbo-rs` matches that library bit for bit, and Pillow and most other tools decode with it. Compared with
//! Pillow, it gave the same pixels for all of some 3,200 encodings (sampling, scans, restarts, colour transforms,
//! sizes, arithmetic coding); `tests.rs` keeps a matrix of them.

use image::RgbImage;
use libjpeg_turbo_rs::{Decoder, PixelFormat, ScalingFactor};

use super::corrupt;
use super::layout::{FileLayout, Format};
use crate::ImageError;

/// An image that is decoded at reduced scale stays at least this many times larger than wanted. The model's own filter
/// does the rest; with less, the decoder's filter would show in the scores.
const OVERSAMPLING: u32 = 2;

pub(super) fn decode(bytes: &[u8], layout: &FileLayout, short_side: Option<u32>) -> Result<RgbImage, ImageError> {
    let refusal = |error: libjpeg_turbo_rs::JpegError| corrupt(Format::Jpeg, error);
    let mut decoder = Decoder::new(bytes).map_err(refusal)?;
    decoder.set_output_format(PixelFormat::Rgb);
    let (width, height) = layout.announced;
    let reduction = short_side.map_or(1, |wanted| reduction(width.min(height), wanted));
    decoder.set_scale(ScalingFactor::try_new(1, reduction).map_err(refusal)?);
    let image = decoder.decode_image().map_err(refusal)?;
    let sides = u32::try_from(image.width).ok().zip(u32::try_from(image.height).ok());
    sides
        .and_then(|(width, height)| RgbImage::from_raw(width, height, image.data))
        .ok_or_else(|| corrupt(Format::Jpeg, "its pixels do not fill its frame"))
}

/// The largest reduction, to a half, a quarter or an eighth, that keeps the side long enough; else 1.
fn reduction(side: u32, wanted: u32) -> u32 {
    let needed = wanted.max(1).saturating_mul(OVERSAMPLING);
    [8, 4, 2].into_iter().find(|reduction| side / reduction >= needed).unwrap_or(1)
}
