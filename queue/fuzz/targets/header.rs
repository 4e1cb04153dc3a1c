//! See `queue::fuzz::header`.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| queue::fuzz::header(bytes));
