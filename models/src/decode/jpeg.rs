//! JPEG: every layout that `layout` lets through, pixel for pixel as libjpeg-turbo decodes it.
//!
//! `libjpeg-turbo-rs` follows that library bit by bit, which is what Pillow and most others decode with; held
//! against Pillow it gave the same pixels for all of some 3,200 encodings (sampling, scans, restarts, colour
//! transforms, sizes, arithmetic coding), and `tests.rs` keeps a matrix of them.

use image::RgbImage;
use libjpeg_turbo_rs::{Decoder, PixelFormat, ScalingFactor};

use super::corrupt;
use super::layout::{FileLayout, Format};
use crate::ImageError;

/// How much larger than wanted an image stays when it is decoded small. What is left is resampled by the model's
/// own filter; less, and the decoder's filter would show in the scores.
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

/// The largest of the reductions to a half, a quarter and an eighth that leaves enough of a side.
fn reduction(side: u32, wanted: u32) -> u32 {
    let needed = wanted.max(1).saturating_mul(OVERSAMPLING);
    [8, 4, 2].into_iter().find(|reduction| side / reduction >= needed).unwrap_or(1)
}
