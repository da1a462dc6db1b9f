//! Reference statistics: the bytes as a whole file, or cut in two as `mu` and `sigma`.
#![no_main]

use std::path::Path;

use d2o_refs::stats::{self, ReferenceStats};

fn read(path: &Path) {
    let _ = (ReferenceStats::read(path), stats::meta(path));
}

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    if bytes.starts_with(b"PK") {
        d2o_fuzz::with_file(bytes, read);
    } else if let Some((cut, rest)) = bytes.split_first() {
        let (mu, sigma) = rest.split_at(rest.len().min(usize::from(*cut)));
        d2o_fuzz::with_file(&d2o_fuzz::stored_zip(&[("mu.npy", mu), ("sigma.npy", sigma)]), read);
    }
});
