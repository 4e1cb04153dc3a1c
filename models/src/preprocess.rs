//! Turns pixels into the tensor that a manifest's `[input]` section describes.
//!
//! One resize both scales and crops: the part of the source that the model sees is resampled straight to the input's
//! size, together with the pixels around it that the filter reaches. [`Placement`] records which part that was, so that
//! a detector's boxes can be mapped back to the image.

use fast_image_resize::images::{Image as Target, ImageRef};
use fast_image_resize::{FilterType, PixelType, ResizeAlg, ResizeOptions, Resizer};

use crate::Image;
use crate::manifest::{Color, Filter, Geometry, Input, Layout};

/// A model's input: one image, f32.
#[derive(Debug, Clone, PartialEq)]
pub struct Tensor {
    /// `[1, 3, height, width]` or `[1, height, width, 3]`.
    pub shape: [usize; 4],
    /// Row-major values.
    pub data: Vec<f32>,
}

/// The area of the upright image that the model's input covers, in fractions of the image's sides.
///
/// The input's left edge is at `x`, its right edge at `x + width`; a letterboxed input is larger
/// than the image, a cropped one smaller.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Placement {
    /// Left edge.
    pub x: f32,
    /// Top edge.
    pub y: f32,
    /// Horizontal extent.
    pub width: f32,
    /// Vertical extent.
    pub height: f32,
}

/// The short side that `input` needs, for decoding at reduced scale.
///
/// Stretching may shrink one side more than the other, so the image's shorter side must still reach the
/// input's larger side.
pub fn short_side_needed(input: &Input) -> u32 {
    match input.geometry {
        Geometry::Crop { short_side } => short_side,
        Geometry::Stretch | Geometry::Letterbox { .. } => input.width.max(input.height),
    }
}

/// Resizes, normalises and lays out an image.
pub fn preprocess(image: &Image, input: &Input) -> (Tensor, Placement) {
    let fit = Fit::of(image, input);
    let pixels = resize(image, &fit, input.filter);
    (normalise(&pixels, &fit, input), fit.placement)
}

/// Which part of the source is placed where in the input.
struct Fit {
    /// Left, top, width, height in source pixels.
    source: (f64, f64, f64, f64),
    /// Left, top, width, height in input pixels.
    target: (u32, u32, u32, u32),
    fill: [u8; 3],
    placement: Placement,
}

impl Fit {
    fn of(image: &Image, input: &Input) -> Self {
        let (w, h) = (f64::from(image.width), f64::from(image.height));
        let (iw, ih) = (f64::from(input.width), f64::from(input.height));
        let whole = Self {
            source: (0.0, 0.0, w, h),
            target: (0, 0, input.width, input.height),
            fill: [0; 3],
            placement: Placement { x: 0.0, y: 0.0, width: 1.0, height: 1.0 },
        };
        match input.geometry {
            Geometry::Stretch => whole,
            Geometry::Crop { short_side } => {
                // As torchvision's `Resize` and `CenterCrop`: in whole pixels of the scaled image.
                let (short, long) = (f64::from(short_side), (f64::from(short_side) * w.max(h) / w.min(h)).trunc());
                let (sw, sh) = if w <= h { (short, long) } else { (long, short) };
                let (x, y) = (((sw - iw) / 2.0).round_ties_even(), ((sh - ih) / 2.0).round_ties_even());
                let placement = Placement {
                    x: (x / sw) as f32,
                    y: (y / sh) as f32,
                    width: (iw / sw) as f32,
                    height: (ih / sh) as f32,
                };
                Self { source: (x * w / sw, y * h / sh, iw * w / sw, ih * h / sh), placement, ..whole }
            }
            Geometry::Letterbox { fill } => {
                let scale = (iw / w).min(ih / h);
                let (tw, th) = ((w * scale).round().clamp(1.0, iw), (h * scale).round().clamp(1.0, ih));
                let (x, y) = (((iw - tw) / 2.0).floor(), ((ih - th) / 2.0).floor());
                let placement = Placement {
                    x: (-x / tw) as f32,
                    y: (-y / th) as f32,
                    width: (iw / tw) as f32,
                    height: (ih / th) as f32,
                };
                Self { target: (x as u32, y as u32, tw as u32, th as u32), fill, placement, ..whole }
            }
        }
    }
}

fn resize(image: &Image, fit: &Fit, filter: Filter) -> Vec<u8> {
    let (left, top, width, height) = fit.source;
    let (_, _, target_width, target_height) = fit.target;
    let algorithm = match filter {
        Filter::Nearest => ResizeAlg::Nearest,
        Filter::Bilinear => ResizeAlg::Convolution(FilterType::Bilinear),
        Filter::Bicubic => ResizeAlg::Convolution(FilterType::CatmullRom),
        Filter::Lanczos => ResizeAlg::Convolution(FilterType::Lanczos3),
    };
    let options = ResizeOptions::new().resize_alg(algorithm).crop(left, top, width, height);
    let source = ImageRef::new(image.width, image.height, &image.pixels, PixelType::U8x3)
        .expect("an Image's buffer fits its sides");
    let mut target = Target::new(target_width, target_height, PixelType::U8x3);
    Resizer::new()
        .resize(&source, &mut target, Some(&options))
        .expect("the crop lies inside the image and both have three 8-bit channels");
    target.into_vec()
}

fn normalise(pixels: &[u8], fit: &Fit, input: &Input) -> Tensor {
    let (width, height) = (input.width as usize, input.height as usize);
    let (left, top, target_width, _) = fit.target;
    let (left, top, target_width) = (left as usize, top as usize, target_width as usize);
    // Channel `c` of the tensor comes from colour `order[c]` of the pixels.
    let order = match input.color {
        Color::Rgb => [0, 1, 2],
        Color::Bgr => [2, 1, 0],
    };
    let factors = input.factors();
    let values: [[f32; 256]; 3] =
        std::array::from_fn(|c| std::array::from_fn(|value| (value as f32 - input.mean[c]) * factors[c]));
    // The layout's shape, and its strides for channel, row and column.
    let (shape, strides) = match input.layout {
        Layout::Nchw => ([1, 3, height, width], [height * width, width, 1]),
        Layout::Nhwc => ([1, height, width, 3], [1, width * 3, 3]),
    };
    let mut data = vec![0.0; 3 * width * height];
    for c in 0..3 {
        let table = &values[c];
        let color = order[c];
        if fit.target != (0, 0, input.width, input.height) {
            let fill = table[usize::from(fit.fill[color])];
            let channel = (0..height).flat_map(|y| (0..width).map(move |x| (y, x)));
            channel.for_each(|(y, x)| data[c * strides[0] + y * strides[1] + x * strides[2]] = fill);
        }
        for (y, row) in pixels.chunks_exact(3 * target_width).enumerate() {
            let start = c * strides[0] + (top + y) * strides[1] + left * strides[2];
            for (x, pixel) in row.chunks_exact(3).enumerate() {
                data[start + x * strides[2]] = table[usize::from(pixel[color])];
            }
        }
    }
    Tensor { shape, data }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An image of 8 × 4: left half red, right half blue.
    fn halves() -> Image {
        let row = [[255, 0, 0]; 4].into_iter().chain([[0, 0, 255]; 4]);
        let pixels = (0..4).flat_map(|_| row.clone().flatten()).collect();
        Image { width: 8, height: 4, pixels, full_width: 8, full_height: 4 }
    }

    fn input(geometry: Geometry, layout: Layout, color: Color) -> Input {
        let (mean, std) = ([10.0, 20.0, 30.0], Some([2.0, 4.0, 5.0]));
        let name = "x".into();
        Input { name, width: 4, height: 4, layout, color, geometry, filter: Filter::Nearest, mean, std, scale: None }
    }

    #[test]
    fn stretching_sees_the_whole_image_in_both_layouts_and_orders() {
        let (planes, placement) = preprocess(&halves(), &input(Geometry::Stretch, Layout::Nchw, Color::Rgb));
        assert_eq!(planes.shape, [1, 3, 4, 4]);
        assert_eq!(planes.data[..4], [122.5, 122.5, -5.0, -5.0]);
        assert_eq!(planes.data[32..36], [-6.0, -6.0, 45.0, 45.0]);
        assert_eq!(placement, Placement { x: 0.0, y: 0.0, width: 1.0, height: 1.0 });

        let (pixels, _) = preprocess(&halves(), &input(Geometry::Stretch, Layout::Nhwc, Color::Bgr));
        assert_eq!(pixels.shape, [1, 4, 4, 3]);
        // Blue first: a red pixel is (0 - 10) / 2, (0 - 20) / 4, (255 - 30) / 5.
        assert_eq!(pixels.data[..3], [-5.0, -5.0, 45.0]);
    }

    #[test]
    fn cropping_cuts_out_the_middle() {
        let (tensor, placement) =
            preprocess(&halves(), &input(Geometry::Crop { short_side: 4 }, Layout::Nchw, Color::Rgb));
        assert_eq!(tensor.data[..4], [122.5, 122.5, -5.0, -5.0]);
        assert_eq!(placement, Placement { x: 0.25, y: 0.0, width: 0.5, height: 1.0 });
    }

    #[test]
    fn the_middle_is_what_pillow_and_torchvision_cut_out() {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
        let archive = std::fs::File::open(folder.join("fixtures/recipes.zip")).expect("there");
        let mut archive = zip::ZipArchive::new(archive).expect("a zip");
        let mut packed = |name: &str| {
            let mut bytes = Vec::new();
            std::io::copy(&mut archive.by_name(name).ok()?, &mut bytes).expect("whole");
            Some(bytes)
        };
        let photos = ["astronaut.png", "chelsea.png", "china.jpg", "coffee.png", "flower.jpg", "rocket.jpg"];
        for name in photos.into_iter().chain(["50x61.png", "133x31.png"]) {
            let photo = folder.join("../tests/photos").join(name);
            let source = packed(name).unwrap_or_else(|| std::fs::read(photo).expect("a photo"));
            let image = crate::decode::decode(&source, &crate::decode::Limits::default(), None).expect("an image");
            for (filter, kind) in [(Filter::Bilinear, "bilinear"), (Filter::Bicubic, "bicubic")] {
                let wanted = packed(&format!("{name}.{kind}.png")).expect("there");
                let wanted = image::load_from_memory(&wanted).expect("a PNG").into_rgb8();
                let input = Input {
                    width: 56,
                    height: 56,
                    filter,
                    mean: [0.0; 3],
                    std: None,
                    scale: Some(1.0),
                    ..input(Geometry::Crop { short_side: 64 }, Layout::Nhwc, Color::Rgb)
                };
                let (tensor, _) = preprocess(&image, &input);
                let off: Vec<f32> =
                    tensor.data.iter().zip(wanted.as_raw()).map(|(a, b)| (a - f32::from(*b)).abs()).collect();
                // Pillow scales rows first and rounds in between; where a bicubic filter exceeds the range of a byte,
                // single pixels differ by more than one.
                let far = off.iter().filter(|off| **off > 1.0).count();
                assert!(far * 200 <= off.len(), "{name}, {kind}: {far} of {}", off.len());
                assert!(off.iter().sum::<f32>() / (off.len() as f32) < 0.2, "{name}, {kind}");
            }
        }
    }

    #[test]
    fn letterboxing_fills_above_and_below() {
        let geometry = Geometry::Letterbox { fill: [10, 20, 30] };
        let (tensor, placement) = preprocess(&halves(), &input(geometry, Layout::Nchw, Color::Rgb));
        assert_eq!(tensor.data[..4], [0.0; 4], "the filling, which is the mean here");
        assert_eq!(tensor.data[4..8], [122.5, 122.5, -5.0, -5.0]);
        assert_eq!(tensor.data[12..16], [0.0; 4]);
        assert_eq!(placement, Placement { x: 0.0, y: -0.5, width: 1.0, height: 2.0 });
    }
}
