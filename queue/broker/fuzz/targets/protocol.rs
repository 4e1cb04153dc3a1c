//! See `broker::fuzz::protocol`.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| broker::fuzz::protocol(bytes));
