//! HDF5 files on which libhdf5 does not return are refused, and valid files pass.
#![cfg(target_os = "linux")]
#![allow(missing_docs, clippy::unwrap_used, clippy::print_stdout, reason = "a test")]

use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use d2o::isolation::COMMAND;
use fs_err as fs;
use ndarray::Array4;

mod common;
use common::{attempt, d2o};

const SHAPE: (usize, usize, usize, usize) = (12, 8, 8, 3);

/// A virtual dataset with an object of 2^64 - 16 bytes in its global heap. With the header of 16 bytes its size wraps
/// to 0, so libhdf5 steps over it forever.
fn endless(path: &Path) {
    let file = hdf5::File::create(path).unwrap();
    file.new_dataset::<u8>().shape(SHAPE).create("part").unwrap().write(&Array4::<u8>::zeros(SHAPE)).unwrap();
    file.new_dataset::<u8>().shape(SHAPE).virtual_map(".", "part", SHAPE, .., SHAPE, ..).create("images").unwrap();
    drop(file);
    let mut bytes = fs::read(path).unwrap();
    let at = bytes.windows(4).position(|w| w == b"GCOL").unwrap() + 24;
    bytes[at..at + 8].copy_from_slice(&(u64::MAX - 15).to_le_bytes());
    fs::write(path, bytes).unwrap();
}

/// Held by one test at a time. libhdf5 opens files without close-on-exec, so a process that another test starts would
/// keep this test's file and its lock open.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

#[test]
fn files_on_which_libhdf5_does_not_return_are_refused() {
    let _alone = alone();
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    endless(&dir.join("x.h5"));
    let refused = |args: &[&str]| {
        let start = Instant::now();
        let outcome = attempt(dir, args);
        let text = "x.h5: expected an HDF5 file that libhdf5 can read, found one that needs more than 5 s";
        assert!(outcome.code == 2 && outcome.stderr.contains(text), "{args:?}: {outcome}");
        assert!(start.elapsed() < Duration::from_secs(60), "{args:?}: {:?}", start.elapsed());
    };
    std::thread::scope(|scope| {
        for args in [&["inspect", "x.h5"][..], &["evaluate", "x.h5", "--metrics", "is"]] {
            scope.spawn(move || refused(args));
        }
    });
}

#[test]
fn valid_files_pass() {
    let _alone = alone();
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let file = hdf5::File::create(dir.join("x.h5")).unwrap();
    let group = file.create_group("group").unwrap();
    let images = Array4::from_elem(SHAPE, 7_u8);
    group
        .new_dataset::<u8>()
        .shape(SHAPE)
        .chunk((1, 8, 8, 3))
        .deflate(4)
        .create("images")
        .unwrap()
        .write(&images)
        .unwrap();
    file.new_dataset::<f64>().shape((12, 3)).create("others").unwrap().write_raw(&[0.5; 36]).unwrap();
    drop((file, group));
    let start = Instant::now();
    d2o(dir, &["--version"]);
    let (started, start) = (start.elapsed(), Instant::now());
    d2o(dir, &[COMMAND, "--", "x.h5"]);
    println!("start {started:?}, start and look {:?}", start.elapsed());
    d2o(dir, &["dataset", "x.h5::group/images", "--out", "d.zip"]);
    assert!(d2o_refs::hdf5::walk(&dir.join("x.h5")));
}
