//! See `queue::fuzz::journal`.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| queue::fuzz::journal(bytes));
