//! See `queue::fuzz::protocol`.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| queue::fuzz::protocol(bytes));
