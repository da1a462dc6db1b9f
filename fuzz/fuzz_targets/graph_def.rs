//! TensorFlow graphs.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| d2o_fuzz::checkpoint(bytes));
