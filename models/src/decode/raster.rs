//! Decodes WebP, GIF and BMP with the `image` crate, and flattens them to opaque RGB.

use std::borrow::Cow;
use std::io::{Cursor, ErrorKind};

use image::codecs::{bmp::BmpDecoder, gif::GifDecoder, webp::WebPDecoder};
use image::{DynamicImage, ImageDecoder, RgbImage};

use super::layout::{FileLayout, Format};
use super::png::over_white;
use super::{Limits, corrupt};
use crate::ImageError;

pub(super) fn decode(bytes: &[u8], layout: &FileLayout, limits: &Limits) -> Result<RgbImage, ImageError> {
    let mut allowed = image::Limits::default();
    allowed.max_image_width = Some(limits.side_max);
    allowed.max_image_height = Some(limits.side_max);
    allowed.max_alloc = Some(limits.output_bytes_max);

    let format = layout.format;
    let bytes = mended(bytes, layout);
    let source = Cursor::new(&*bytes);
    let image = match format {
        Format::WebP => WebPDecoder::new(source).and_then(|decoder| limited(decoder, allowed)),
        Format::Gif => GifDecoder::new(source).and_then(|decoder| limited(decoder, allowed)),
        Format::Bmp | Format::Png | Format::Jpeg => {
            BmpDecoder::new(source).and_then(|decoder| limited(decoder, allowed))
        }
    };
    image.map(flatten).map_err(|error| refusal(format, &error))
}

/// Repairs what these decoders reject and others read: gives a GIF without a screen size one, and clears the flags of
/// metadata that a WebP announces but may lack.
fn mended<'a>(bytes: &'a [u8], layout: &FileLayout) -> Cow<'a, [u8]> {
    let screen = [layout.shown.0, layout.shown.1].map(|side| u16::try_from(side).unwrap_or(u16::MAX).to_le_bytes());
    match layout.format {
        Format::Gif if bytes.get(6..10).is_some_and(|stated| *stated != *screen.as_flattened()) => {
            let mut bytes = bytes.to_vec();
            bytes[6..10].copy_from_slice(screen.as_flattened());
            Cow::Owned(bytes)
        }
        Format::WebP if bytes.get(12..16) == Some(b"VP8X") && bytes.len() > 20 => {
            /// Flags of a colour profile, EXIF and XMP.
            const METADATA: u8 = 0b0010_1100;
            let mut bytes = bytes.to_vec();
            bytes[20] &= !METADATA;
            Cow::Owned(bytes)
        }
        _ => Cow::Borrowed(bytes),
    }
}

fn limited(mut decoder: impl ImageDecoder, allowed: image::Limits) -> image::ImageResult<DynamicImage> {
    decoder.set_limits(allowed)?;
    DynamicImage::from_decoder(decoder)
}

/// Blends transparent pixels over white, as a web page would.
fn flatten(image: DynamicImage) -> RgbImage {
    if !image.color().has_alpha() {
        return image.into_rgb8();
    }
    let image = image.into_rgba8();
    let (width, height) = image.dimensions();
    let pixels = image.pixels().flat_map(|p| [0, 1, 2].map(|i| over_white(p[i], p[3]))).collect();
    RgbImage::from_raw(width, height, pixels).expect("three bytes were made for each pixel")
}

fn refusal(format: Format, error: &image::ImageError) -> ImageError {
    match error {
        image::ImageError::IoError(io) if io.kind() == ErrorKind::UnexpectedEof => {
            ImageError::Truncated { format: format.name() }
        }
        _ => corrupt(format, error),
    }
}
