//! Feature files: HDF5 with matrices, hashes and metadata of d2o.
#![no_main]

use std::path::Path;

use d2o_refs::features::{FeatureFile, MATRICES};

fn read(path: &Path) {
    let _ = FeatureFile::is_feature_file(path);
    let Ok(file) = FeatureFile::open(path) else { return };
    let _ = (file.labels().map(<[i64]>::len), file.digests().map(<[_]>::len), file.meta().is_some(), file.verify());
    for (name, width) in MATRICES.into_iter().filter_map(|m| Some((m, file.width(m)?))) {
        if let Ok(rows) = file.read(name, 0..file.len().min(4)) {
            assert_eq!(rows.ncols(), width, "{name}");
        }
    }
}

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| d2o_fuzz::with_file(bytes, read));
libfuzzer_sys::fuzz_mutator!(|bytes: &mut [u8], size: usize, room: usize, seed: u32| { d2o_fuzz::hdf5::mutate(bytes, size, room, seed) });
