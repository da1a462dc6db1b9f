//! Dataset zips: the bytes as a whole archive, or as an image or as the labels in a valid one.
#![no_main]

use std::path::Path;

use d2o_refs::batch;

fn read(path: &Path) {
    if let Ok(mut source) = batch::open(path) {
        let end = source.len().min(4);
        let _ = (source.labels().map(<[i64]>::len), source.read(0..end), source.name(0));
    }
}

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    if bytes.starts_with(b"PK") {
        d2o_fuzz::with_file(bytes, read);
    } else if bytes.starts_with(b"{") {
        d2o_fuzz::with_file(&d2o_fuzz::stored_zip(&[("00000/img00000000.png", PNG), ("dataset.json", bytes)]), read);
    } else {
        d2o_fuzz::with_file(&d2o_fuzz::stored_zip(&[("00000/img00000000.png", bytes)]), read);
    }
});

/// One grey pixel.
const PNG: &[u8] = &[
    0x89, b'P', b'N', b'G', 13, 10, 26, 10, 0, 0, 0, 13, b'I', b'H', b'D', b'R', 0, 0, 0, 1, 0, 0, 0, 1, 8, 0, 0, 0, 0, 0x3a, 0x7e, 0x9b, 0x55, 0, 0, 0,
    10, b'I', b'D', b'A', b'T', 0x78, 0x9c, 0x63, 0x68, 0, 0, 0, 0x82, 0, 0x81, 0x77, 0xcd, 0x72, 0xb6, 0, 0, 0, 0, b'I', b'E', b'N', b'D', 0xae, 0x42,
    0x60, 0x82,
];
