use std::io::Cursor;
use std::path::Path;

use image::{DynamicImage, ImageFormat, Rgb, RgbImage, Rgba, RgbaImage};

use super::*;

const LEFT: [u8; 3] = [200, 40, 30];
const RIGHT: [u8; 3] = [20, 60, 180];

/// 32 × 16, left half `LEFT`, right half `RIGHT`.
fn halves() -> RgbImage {
    RgbImage::from_fn(32, 16, |x, _| Rgb(if x < 16 { LEFT } else { RIGHT }))
}

fn encoded(image: impl Into<DynamicImage>, format: ImageFormat) -> Vec<u8> {
    let mut bytes = Cursor::new(Vec::new());
    image.into().write_to(&mut bytes, format).expect("encodes");
    bytes.into_inner()
}

fn file(relative: &str) -> Vec<u8> {
    std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join(relative)).expect(relative)
}

fn photo(name: &str) -> Vec<u8> {
    file(&format!("../tests/photos/{name}"))
}

fn good(bytes: &[u8]) -> Image {
    decode(bytes, &Limits::default(), None).expect("decodes")
}

fn error_of(bytes: &[u8]) -> ImageError {
    let error = decode(bytes, &Limits::default(), None).expect_err("must be refused");
    if !matches!(error, ImageError::Corrupt { .. }) {
        assert_eq!(inspect(bytes, &Limits::default()), Err(error.clone()), "the gate must say the same");
    }
    error
}

#[track_caller]
fn shows(image: &Image, at: (u32, u32), color: [u8; 3], tolerance: u8) {
    let start = 3 * (at.1 * image.width + at.0) as usize;
    let have = &image.pixels[start..start + 3];
    assert!(have.iter().zip(color).all(|(a, b)| a.abs_diff(b) <= tolerance), "{have:?} at {at:?}, wanted {color:?}");
}

#[track_caller]
fn shows_halves(bytes: &[u8], tolerance: u8) {
    let image = good(bytes);
    assert_eq!((image.width, image.height), (32, 16));
    shows(&image, (4, 8), LEFT, tolerance);
    shows(&image, (28, 8), RIGHT, tolerance);
}

#[test]
fn every_format_gives_its_colours() {
    for format in [ImageFormat::Png, ImageFormat::Gif, ImageFormat::Bmp, ImageFormat::WebP] {
        shows_halves(&encoded(halves(), format), 3);
    }
    shows_halves(&file("fixtures/progressive.jpg"), 6);
    shows_halves(&file("fixtures/cmyk.jpg"), 6);
    shows_halves(&file("fixtures/palette.png"), 3);
    shows_halves(&file("fixtures/lossy.webp"), 12);
}

#[test]
fn grey_and_sixteen_bit_become_rgb_of_eight() {
    let grey = good(&file("fixtures/grey.jpg"));
    shows(&grey, (4, 8), [87, 87, 87], 3);
    let deep = DynamicImage::ImageRgb8(halves()).into_rgb16();
    shows_halves(&encoded(deep, ImageFormat::Png), 1);
    let deep_grey = DynamicImage::ImageRgb8(halves()).into_luma16();
    shows(&good(&encoded(deep_grey, ImageFormat::Png)), (4, 8), [73, 73, 73], 3);
}

#[test]
fn alpha_lies_on_white() {
    let glass = RgbaImage::from_fn(4, 4, |x, _| if x < 2 { Rgba([255, 0, 0, 128]) } else { Rgba([9, 9, 9, 0]) });
    for bytes in [
        encoded(glass.clone(), ImageFormat::Png),
        encoded(glass.clone(), ImageFormat::WebP),
        encoded(DynamicImage::ImageRgba8(glass).into_rgba16(), ImageFormat::Png),
    ] {
        let image = good(&bytes);
        shows(&image, (0, 0), [255, 127, 127], 1);
        shows(&image, (3, 3), [255, 255, 255], 0);
    }
}

#[test]
fn of_an_animation_the_first_frame_counts() {
    let mut bytes = Vec::new();
    let mut encoder = image::codecs::gif::GifEncoder::new(&mut bytes);
    let second = RgbImage::from_pixel(32, 16, Rgb([0, 255, 0]));
    for frame in [halves(), second] {
        encoder.encode_frame(image::Frame::new(DynamicImage::ImageRgb8(frame).into_rgba8())).expect("encodes");
    }
    drop(encoder);
    shows_halves(&bytes, 3);
}

/// `china.jpg` with an EXIF block that holds `orientation`.
fn turned(orientation: u8) -> Vec<u8> {
    let mut exif = b"\xFF\xE1\x00\x22Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0".to_vec();
    exif.extend([orientation, 0, 0, 0, 0, 0, 0, 0]);
    let photo = photo("china.jpg");
    [&photo[..2], &exif, &photo[2..]].concat()
}

#[test]
fn all_eight_orientations_stand_upright() {
    let plain = DynamicImage::ImageRgb8({
        let image = good(&photo("china.jpg"));
        RgbImage::from_raw(image.width, image.height, image.pixels).expect("fits")
    });
    let wanted: [DynamicImage; 8] = [
        plain.clone(),
        plain.fliph(),
        plain.rotate180(),
        plain.flipv(),
        plain.rotate90().fliph(),
        plain.rotate90(),
        plain.rotate270().fliph(),
        plain.rotate270(),
    ];
    for (orientation, wanted) in (1..=8).zip(wanted) {
        let bytes = turned(orientation);
        let image = good(&bytes);
        assert_eq!((image.width, image.height), (wanted.width(), wanted.height()), "orientation {orientation}");
        assert!(image.pixels == wanted.into_rgb8().into_raw(), "orientation {orientation}");
        let header = inspect(&bytes, &Limits::default()).expect("good");
        assert_eq!((header.width, header.height), (image.full_width, image.full_height));
    }
}

#[test]
fn a_large_jpeg_is_decoded_small_and_still_shows_the_same() {
    let full = good(&photo("china.jpg"));
    let small = decode(&photo("china.jpg"), &Limits::default(), Some(50)).expect("decodes");
    assert_eq!((small.full_width, small.full_height), (full.width, full.height));
    assert_eq!(
        (small.width, small.height),
        (160, 107),
        "a quarter, since an eighth would be 54 high, less than twice 50"
    );
    for at in [(10, 10), (80, 50), (150, 100)] {
        let start = 3 * (at.1 * 4 * full.width + at.0 * 4) as usize;
        let color = [full.pixels[start], full.pixels[start + 1], full.pixels[start + 2]];
        shows(&small, at, color, 60);
    }
    let same = decode(&photo("china.jpg"), &Limits::default(), Some(150)).expect("decodes");
    assert_eq!(same.width, full.width, "not reduced below what was asked for");
}

#[test]
fn what_is_not_an_image_is_refused_by_name() {
    assert_eq!(error_of(b""), ImageError::Empty);
    for text in [&b"hello"[..], b"\0", b"{}"] {
        assert_eq!(error_of(text), ImageError::Unsupported);
    }
}

#[test]
fn a_file_cut_anywhere_is_never_taken_for_whole() {
    let files = [
        photo("china.jpg"),
        file("fixtures/progressive.jpg"),
        photo("chelsea.png"),
        encoded(halves(), ImageFormat::Gif),
        encoded(halves(), ImageFormat::Bmp),
        encoded(halves(), ImageFormat::WebP),
        file("fixtures/lossy.webp"),
    ];
    for bytes in files {
        let format = Format::of(&bytes).expect("known").name();
        let step = (bytes.len() / 200).max(1);
        for length in (13..bytes.len() - 1).step_by(step) {
            let error = error_of(&bytes[..length]);
            assert_eq!(error.code(), "image_truncated", "{format} cut at {length} of {}: {error}", bytes.len());
        }
    }
}

#[test]
fn any_changed_byte_gives_an_image_or_an_error_but_no_panic() {
    for mut bytes in
        [file("fixtures/progressive.jpg"), file("fixtures/palette.png"), encoded(halves(), ImageFormat::Gif)]
    {
        for at in 0..bytes.len() {
            bytes[at] ^= 0xA5;
            if let Ok(image) = decode(&bytes, &Limits::default(), Some(8)) {
                assert_eq!(image.pixels.len(), 3 * (image.width * image.height) as usize);
            }
            bytes[at] ^= 0xA5;
        }
    }
}

/// A PNG's first 33 bytes: signature and an IHDR that announces `width` × `height`.
fn png_header(width: u32, height: u32) -> Vec<u8> {
    let mut bytes = b"\x89PNG\r\n\x1A\n\0\0\0\x0DIHDR".to_vec();
    bytes.extend(width.to_be_bytes());
    bytes.extend(height.to_be_bytes());
    bytes.extend([8, 2, 0, 0, 0, 0, 0, 0, 0]);
    bytes
}

#[test]
fn what_is_announced_is_judged_before_anything_is_decoded() {
    let too_large = |bytes: &[u8]| assert_eq!(error_of(bytes).code(), "image_too_large");
    too_large(&png_header(32_000, 32_000));
    too_large(&png_header(16_385, 1));
    too_large(&png_header(9_500, 9_500));
    too_large(b"GIF89a\xFF\xFF\xFF\xFF\0\0\0,\0\0\0\0\xFF\xFF\xFF\xFF\0\x02\x02D\0;");
    // A small screen with a huge frame.
    too_large(b"GIF89a\x01\0\x01\0\0\0\0,\0\0\0\0\xFF\xFF\xFF\xFF\0\x02\x02D\0;");
    // A small canvas around a huge picture, alone and in an animation.
    let chunk = |kind: &[u8], data: &[u8]| [kind, &(data.len() as u32).to_le_bytes(), data].concat();
    let riff = |chunks: &[u8]| [&b"RIFF"[..], &(chunks.len() as u32 + 4).to_le_bytes(), b"WEBP", chunks].concat();
    let canvas = chunk(b"VP8X", &[0; 10]);
    let huge = chunk(b"VP8 ", &[0x10, 0, 0, 0x9D, 1, 0x2A, 0xFF, 0x3F, 0xFF, 0x3F]);
    too_large(&riff(&[canvas.clone(), huge.clone()].concat()));
    too_large(&riff(&[canvas, chunk(b"ANMF", &[&[0; 16][..], &huge].concat())].concat()));
    let mut bitmap = encoded(halves(), ImageFormat::Bmp);
    bitmap[18..22].copy_from_slice(&60_000_i32.to_le_bytes());
    too_large(&bitmap);
    assert_eq!(error_of(&png_header(0, 5)).code(), "image_corrupt");
}

#[test]
fn a_jpeg_that_asks_for_pass_after_pass_is_refused_unread() {
    let bytes = file("fixtures/progressive.jpg");
    let last_scan = bytes.windows(2).rposition(|pair| pair == [0xFF, 0xDA]).expect("it has scans");
    let (head, tail) = bytes.split_at(last_scan);
    let scan = &tail[..tail.len() - 2];
    let hostile = [head, &scan.repeat(5_000), b"\xFF\xD9"].concat();
    let error = error_of(&hostile);
    assert!(error.code() == "image_corrupt" && error.to_string().contains("passes"), "{error}");
}

#[test]
fn of_a_gif_the_screen_is_what_is_shown() {
    let mut bytes = encoded(halves(), ImageFormat::Gif);
    // A screen that is taller and narrower than its frame of 32 x 16.
    bytes[6..10].copy_from_slice(&[20, 0, 40, 0]);
    let image = good(&bytes);
    assert_eq!((image.width, image.height, image.full_width, image.full_height), (20, 40, 20, 40));
    shows(&image, (4, 8), LEFT, 3);
}

/// Names and bytes of the files in a zip fixture.
fn unpacked(archive: &str) -> Vec<(String, Vec<u8>)> {
    let mut archive = zip::ZipArchive::new(Cursor::new(file(archive))).expect("a zip");
    let count = archive.len();
    let read = |at| {
        let mut entry = archive.by_index(at).expect("there");
        let mut bytes = Vec::new();
        std::io::copy(&mut entry, &mut bytes).expect("whole");
        (entry.name().expect("a name").into_owned(), bytes)
    };
    (0..count).map(read).collect()
}

/// The largest difference between two samples.
fn difference(image: &Image, wanted: &RgbImage) -> u8 {
    assert_eq!((image.width, image.height), wanted.dimensions());
    image.pixels.iter().zip(wanted.as_raw()).map(|(a, b)| a.abs_diff(*b)).max().unwrap_or(0)
}

fn png_of(bytes: &[u8]) -> RgbImage {
    image::load_from_memory_with_format(bytes, ImageFormat::Png).expect("a PNG").into_rgb8()
}

#[test]
fn every_encoding_shows_the_pixels_that_pillow_reads_from_it() {
    let entries = unpacked("fixtures/encodings.zip");
    assert!(entries.len() > 400, "{}", entries.len());
    let mut wrong = Vec::new();
    for pair in entries.chunks_exact(2) {
        let ((name, bytes), (of, pixels)) = (&pair[0], &pair[1]);
        assert_eq!(of, &format!("{name}.png"));
        let wanted = png_of(pixels);
        let is_reduced = ["half-", "quarter-", "eighth-"].iter().any(|scale| name.starts_with(scale));
        // The decoder keeps at least twice the wanted side.
        let short_side = is_reduced.then(|| wanted.width().min(wanted.height()) / 2);
        match decode(bytes, &Limits::default(), short_side) {
            Ok(image) if (image.width, image.height) != wanted.dimensions() => wrong.push(format!("{name}: sides")),
            Ok(image) => {
                let difference = difference(&image, &wanted);
                if difference > 3 {
                    wrong.push(format!("{name}: {difference}"));
                }
            }
            Err(error) => wrong.push(format!("{name}: {error}")),
        }
    }
    assert!(wrong.is_empty(), "{} of {}: {wrong:#?}", wrong.len(), entries.len() / 2);
}

#[test]
fn kinds_that_are_not_decoded_are_refused_at_the_gate_and_named() {
    // The frame header alone decides; its data is not read.
    let frame = |code: u8, precision: u8, sampling: &[u8]| {
        let mut segment = vec![precision, 0, 16, 0, 16, sampling.len() as u8];
        sampling.iter().zip(1..).for_each(|(factors, id)| segment.extend([id, *factors, 0]));
        [&[0xFF, 0xD8, 0xFF, code], &(segment.len() as u16 + 2).to_be_bytes()[..], &segment, b"\xFF\xD9"].concat()
    };
    for (bytes, words) in [
        (frame(0xC5, 8, &[0x11]), "lossless or hierarchical"),
        (frame(0xC1, 12, &[0x11]), "8 bits a sample"),
        (frame(0xC0, 8, &[0x11, 0x11]), "components"),
        (frame(0xC0, 8, &[0x11, 0x21, 0x11]), "sampling"),
        (frame(0xC0, 8, &[0x31, 0x21, 0x11]), "sampling"),
        (file("../tests/cases/lossless_64.jpg"), "lossless"),
        (file("../tests/cases/cgbi.png"), "Apple"),
        (b"\0\0\0\x18ftypheic\0\0\0\0".to_vec(), "a HEIC image"),
        (b"\0\0\0\x18ftypavif\0\0\0\0".to_vec(), "an AVIF image"),
        (b"II*\0\x08\0\0\0".to_vec(), "a TIFF image"),
        (b"%PDF-1.7".to_vec(), "a PDF document"),
        (b" <svg xmlns=''/>".to_vec(), "an SVG drawing"),
    ] {
        let error = error_of(&bytes);
        assert_eq!(error.code(), "image_unsupported");
        assert!(error.to_string().contains(words) && error.to_string().contains("JPEG"), "{error}");
    }
}

#[test]
fn cases_of_a_trial_are_right() {
    let names = ["noninterleaved_420", "control_interleaved_420", "adobe_rgb_ids123_1200"];
    for name in names.into_iter().chain(["extra_bytes_64", "extra_bytes_1200"]) {
        let bytes = file(&format!("../tests/cases/{name}.jpg"));
        for short_side in [None, Some(8), Some(100)] {
            let image = decode(&bytes, &Limits::default(), short_side).expect(name);
            shows(&image, (image.width / 4, image.height / 2), [200, 60, 40], 3);
            shows(&image, (image.width * 3 / 4, image.height / 2), [40, 90, 200], 3);
        }
    }
    let [without, with] = ["0x0", "ok"].map(|kind| good(&file(&format!("../tests/cases/gif_screen_{kind}.gif"))));
    assert_eq!((without.width, without.height), (64, 64));
    assert_eq!(without, with);
}

#[test]
fn cameras_of_fifty_and_sixty_four_megapixels_are_let_in() {
    for (width, height) in [(8160, 6144), (8192, 6144), (9248, 6936)] {
        assert_eq!(error_of(&png_header(width, height)).code(), "image_truncated", "{width}x{height}");
    }
}

/// What must not be found in a stripped file.
const SECRETS: [&[u8]; 4] = [b"48 deg 51", b"a comment", b"Exif", b"another picture"];

/// `china.jpg` with a place, a comment, an EXIF block and a second picture after its end.
fn telling_jpeg(orientation: u8) -> Vec<u8> {
    let segment = |code: u8, data: &[u8]| {
        let length = u16::try_from(data.len() + 2).expect("short").to_be_bytes();
        [&[0xFF, code][..], &length, data].concat()
    };
    let photo = turned(orientation);
    let told = [segment(0xE1, b"http://ns.adobe.com/xap/1.0/\x0048 deg 51"), segment(0xFE, b"a comment")].concat();
    [&photo[..2], &told, &photo[2..], b"\xFF\xD8another picture"].concat()
}

#[test]
fn a_stripped_image_shows_the_same_and_tells_nothing() {
    for orientation in 1..=8 {
        let told = telling_jpeg(orientation);
        let stripped = without_metadata(&told).expect("an image");
        assert_eq!(good(&stripped), good(&told), "orientation {orientation}");
        // An orientation needs a block of its own, with nothing else in it.
        let secrets = if orientation == 1 { &SECRETS[..] } else { &[SECRETS[0], SECRETS[1], SECRETS[3]] };
        for secret in secrets {
            assert!(memchr::memmem::find(&stripped, secret).is_none(), "{}", String::from_utf8_lossy(secret));
        }
    }
    let png = encoded(DynamicImage::ImageRgb8(halves()), ImageFormat::Png);
    let chunk = |kind: &[u8], data: &[u8]| {
        let body = [kind, data].concat();
        [&u32::try_from(data.len()).expect("short").to_be_bytes()[..], &body, &crc32fast::hash(&body).to_be_bytes()]
            .concat()
    };
    let told = [
        &png[..33],
        &chunk(b"tEXt", b"Comment\0a comment"),
        &chunk(b"eXIf", b"II*\0\x08\0\0\0\0\0"),
        &png[33..],
        b"another picture",
    ]
    .concat();
    let stripped = without_metadata(&told).expect("an image");
    assert_eq!(stripped, png);
    let mut gif = Vec::new();
    image::codecs::gif::GifEncoder::new(&mut gif)
        .encode_frame(image::Frame::new(DynamicImage::ImageRgb8(halves()).into_rgba8()))
        .expect("encodes");
    let end = gif.len() - 1;
    let told = [&gif[..end], b"\x21\xFE\x09a comment\0", &gif[end..], b"another picture"].concat();
    assert_eq!(without_metadata(&told).expect("an image"), gif);
    let webp = encoded(DynamicImage::ImageRgb8(halves()), ImageFormat::WebP);
    let mut told = [&webp[..], b"EXIF\x0A\0\0\0Exif\0\0II*\0"].concat();
    let length = u32::try_from(told.len() - 8).expect("short").to_le_bytes();
    told[4..8].copy_from_slice(&length);
    assert_eq!(without_metadata(&told).expect("an image"), webp);
    for cut in [10, 100, png.len() / 2] {
        assert!(without_metadata(&png[..cut.min(png.len() - 1)]).is_err(), "what cannot be read is not passed on");
    }
}
