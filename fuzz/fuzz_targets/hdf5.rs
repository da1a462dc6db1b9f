//! HDF5 files of images, as every command opens them.
#![no_main]

use std::path::Path;

use d2o_refs::{batch, record};

fn read(path: &Path) {
    if let Ok(mut source) = batch::open(path) {
        let end = source.len().min(4);
        let _ = (source.labels().map(<[i64]>::len), source.label_problem().map(str::len), source.read(0..end));
    }
    let _ = record::read(path);
}

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| d2o_fuzz::with_file(bytes, read));
libfuzzer_sys::fuzz_mutator!(|bytes: &mut [u8], size: usize, room: usize, seed: u32| { d2o_fuzz::hdf5::mutate(bytes, size, room, seed) });
