//! JPEG, with two decoders, each where it is the better one.
//!
//! `zune-jpeg` is the faster one at full size (china.jpg, 640×427: 3.1 ms against 4.0), turns CMYK
//! and YCCK right, and in strict mode refuses all of 98 cut files. It cannot decode at reduced
//! scale; `jpeg-decoder` can (10.7 Mpx at an eighth: 31 ms against 42), and refuses the same files.
//! `cargo run --release -p models --example jpeg_decoders -- FILE.jpg` prints such figures.

use image::RgbImage;
use jpeg_decoder::PixelFormat;
use zune_core::bytestream::ZCursor;
use zune_core::colorspace::ColorSpace;
use zune_core::options::DecoderOptions;

use super::corrupt;
use super::layout::{FileLayout, Format};
use crate::ImageError;

/// Below half of the file's scale there is something to gain.
const REDUCTION_MIN: u32 = 2;

pub(super) fn decode(bytes: &[u8], layout: &FileLayout, short_side: Option<u32>) -> Result<RgbImage, ImageError> {
    let (width, height) = layout.announced;
    let reducible = short_side.filter(|wanted| width.min(height) / (*wanted).max(1) >= REDUCTION_MIN);
    if let Some(wanted) = reducible
        && let Some(image) = reduced(bytes, wanted, (width, height))?
    {
        return Ok(image);
    }
    full(bytes)
}

fn full(bytes: &[u8]) -> Result<RgbImage, ImageError> {
    let options = DecoderOptions::new_fast().jpeg_set_out_colorspace(ColorSpace::RGB).set_strict_mode(true);
    let mut decoder = zune_jpeg::JpegDecoder::new_with_options(ZCursor::new(bytes), options);
    let pixels = decoder.decode().map_err(|error| corrupt(Format::Jpeg, error))?;
    let (width, height) = decoder.dimensions().ok_or_else(|| corrupt(Format::Jpeg, "it has no frame"))?;
    let image = RgbImage::from_raw(u32_of(width), u32_of(height), pixels);
    image.ok_or_else(|| corrupt(Format::Jpeg, "its pixels do not fill its frame"))
}

/// Decodes at a half, a quarter or an eighth with a short side of at least `wanted`; `None` for
/// colour models that are left to the full decoder.
fn reduced(bytes: &[u8], wanted: u32, (width, height): (u32, u32)) -> Result<Option<RgbImage>, ImageError> {
    let refuse = |error: jpeg_decoder::Error| corrupt(Format::Jpeg, error);
    let mut decoder = jpeg_decoder::Decoder::new(bytes);
    decoder.read_info().map_err(refuse)?;
    // The short side decides; the long one follows in proportion, rounded down so that it never
    // asks for a larger scale than the short one does.
    let short = width.min(height);
    let request = |side: u32| u16::try_from(u64::from(side) * u64::from(wanted) / u64::from(short)).unwrap_or(u16::MAX);
    let (width, height) = decoder.scale(request(width), request(height)).map_err(refuse)?;
    let Some(info) = decoder.info() else { return Ok(None) };
    if !matches!(info.pixel_format, PixelFormat::RGB24 | PixelFormat::L8) {
        return Ok(None);
    }
    let pixels = decoder.decode().map_err(refuse)?;
    let pixels = match info.pixel_format {
        PixelFormat::L8 => pixels.into_iter().flat_map(|grey| [grey; 3]).collect(),
        _ => pixels,
    };
    Ok(RgbImage::from_raw(u32::from(width), u32::from(height), pixels))
}

fn u32_of(side: usize) -> u32 {
    u32::try_from(side).expect("a JPEG's sides are 16-bit numbers")
}
