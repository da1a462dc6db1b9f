//! npz files: the bytes as a whole file, or as the arrays in a valid one.
#![no_main]

use std::path::Path;

use d2o_refs::{batch, npz};

fn read(path: &Path) {
    if let Ok(mut npz) = npz::Npz::open(path) {
        for name in npz.names() {
            let _ = (npz.header(&name), npz.f64(&name), npz.f32(&name), npz.i64(&name));
        }
    }
    if let Ok(mut source) = batch::open(path) {
        let end = source.len().min(4);
        let _ = (source.labels().map(<[i64]>::len), source.read(0..end));
    }
}

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    if bytes.starts_with(b"PK") {
        d2o_fuzz::with_file(bytes, read);
    } else {
        d2o_fuzz::with_file(&d2o_fuzz::stored_zip(&[("arr_0.npy", bytes), ("arr_1.npy", bytes)]), read);
    }
});
