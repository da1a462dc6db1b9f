//! npy headers and values, and images in an npy file.
#![no_main]

use std::path::Path;

use d2o_refs::{batch, npy};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let (file, mut rest) = (Path::new("x.npy"), bytes);
    if let Ok(header) = npy::read_header(&mut rest, file, "x") {
        let mut again = rest;
        let _ = npy::read_f64(&mut again, &header, file, "x");
        let _ = npy::read_integers::<u64>(&mut rest, &header, file, "x");
    }
    d2o_fuzz::with_file(bytes, |path| {
        if let Ok(mut source) = batch::open(path) {
            let end = source.len().min(4);
            let _ = source.read(0..end);
        }
    });
});
