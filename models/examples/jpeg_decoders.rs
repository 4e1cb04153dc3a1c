//! Which JPEG decoder is faster on a file, at full size and at an eighth, and which of them
//! accepts a file that was cut off?
//!
//! `cargo run --release -p models --example jpeg_decoders -- FILE.jpg` decodes each way 21 times
//! in turn on one thread and prints medians, the ratio, and how many of 98 cut files pass.

use std::time::Instant;

use zune_core::bytestream::ZCursor;
use zune_core::options::DecoderOptions;

type Way = (&'static str, fn(&[u8]) -> bool);

const WAYS: [Way; 3] = [
    ("zune-jpeg, strict, full size", |bytes| {
        let options = DecoderOptions::new_fast().set_strict_mode(true);
        zune_jpeg::JpegDecoder::new_with_options(ZCursor::new(bytes), options).decode().is_ok()
    }),
    ("jpeg-decoder, full size", |bytes| jpeg_decoder::Decoder::new(bytes).decode().is_ok()),
    ("jpeg-decoder, an eighth", |bytes| {
        let mut decoder = jpeg_decoder::Decoder::new(bytes);
        decoder.scale(1, 1).is_ok() && decoder.decode().is_ok()
    }),
];

fn main() {
    let Some(file) = std::env::args().nth(1) else { return eprintln!("usage: jpeg_decoders FILE.jpg") };
    let bytes = match std::fs::read(&file) {
        Ok(bytes) => bytes,
        Err(error) => return eprintln!("{file}: {error}"),
    };
    let mut times = [const { Vec::new() }; 3];
    for _ in 0..21 {
        for ((_, decode), times) in WAYS.iter().zip(&mut times) {
            let start = Instant::now();
            std::hint::black_box(decode(&bytes));
            times.push(start.elapsed().as_secs_f64() * 1e3);
        }
    }
    let medians = times.map(|mut times| {
        times.sort_by(f64::total_cmp);
        times[times.len() / 2]
    });
    for ((name, decode), median) in WAYS.iter().zip(medians) {
        let passed = (2..100).filter(|percent| decode(&bytes[..bytes.len() * percent / 100])).count();
        let ratio = median / medians[0];
        println!("{name:30} {median:8.2} ms  {ratio:5.2} x  {passed} of 98 cut files pass");
    }
}
