//! See `broker::fuzz::header`.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| broker::fuzz::header(bytes));
