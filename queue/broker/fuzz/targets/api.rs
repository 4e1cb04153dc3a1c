//! See `broker::fuzz::api`.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| broker::fuzz::api(bytes));
