//! torch.save files from before PyTorch 1.6.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| d2o_fuzz::checkpoint(bytes));
