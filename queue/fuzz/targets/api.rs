//! See `queue::fuzz::api`.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| queue::fuzz::api(bytes));
