//! Python pickles of modules, and pickles by themselves.
#![no_main]

use std::path::Path;

use d2o_converters::checkpoint::pickle::Pickle;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let _ = Pickle::parse(bytes, Path::new("x.pkl"));
    d2o_fuzz::checkpoint(bytes);
});
