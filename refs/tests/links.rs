//! Pipes and files outside the folder of a file are not opened. This test has its own process: once a file was read,
//! the process cannot write external links.
#![cfg(unix)]

use std::path::Path;

use d2o_refs::features::FeatureFile;
use d2o_refs::{batch, record};
use ndarray::Array4;

const SHAPE: (usize, usize, usize, usize) = (2, 4, 5, 3);

fn failure(path: &Path) -> String {
    batch::open(path).err().expect("opens").to_string()
}

#[test]
fn nothing_outside_the_folder_and_no_pipe_is_opened() {
    let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let pipe = dir.path().join("pipe");
    assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let write = |path: &Path| {
        let file = hdf5::File::create(path).unwrap();
        file.new_dataset::<u8>().shape(SHAPE).create("x").unwrap().write(&Array4::<u8>::zeros(SHAPE)).unwrap();
    };
    let (elsewhere, beside) = (other.path().join("y.h5"), dir.path().join("y.h5"));
    write(&elsewhere);
    write(&beside);
    let create = |name: &str, target: &Path, fill: &dyn Fn(&hdf5::File, &str)| {
        let path = dir.path().join(name);
        let file = hdf5::File::create(&path).unwrap();
        fill(&file, target.to_str().unwrap());
        path
    };
    let links = |file: &hdf5::File, target: &str| {
        file.link_external(target, "/x", "images").unwrap();
        file.link_external(target, "/", "e").unwrap();
        file.link_soft("/e/x", "labels").unwrap();
    };
    let storage = |file: &hdf5::File, target: &str| {
        file.new_dataset::<u8>().external(target, 0, 120).shape(SHAPE).create("images").unwrap();
    };
    let parts = |file: &hdf5::File, target: &str| {
        let builder = file.new_dataset::<u8>().shape(SHAPE).virtual_map(target, "x", SHAPE, .., SHAPE, ..);
        builder.create("images").unwrap();
    };
    let mut linked = Vec::new();
    for (i, target) in [&elsewhere, &beside, &pipe].into_iter().enumerate() {
        linked.push(create(&format!("link{i}.h5"), target, &links));
    }
    for path in linked {
        assert!(failure(&path).contains("`images`, not a dataset"), "{}", failure(&path));
    }
    for (target, text) in [(&elsewhere, "found one in another folder"), (&pipe, "found a pipe, socket or device")] {
        for path in [create("storage.h5", target, &storage), create("parts.h5", target, &parts)] {
            assert!(failure(&path).contains(text), "{}", failure(&path));
        }
    }
    assert_eq!(
        batch::open(&create("parts.h5", &beside, &parts)).unwrap().read(0..2).unwrap(),
        Array4::<u8>::zeros(SHAPE)
    );
    for error in [record::read(&pipe).unwrap_err(), batch::container_sha256(&pipe).unwrap_err()] {
        assert!(error.to_string().contains("found a pipe, socket or device"), "{error}");
    }
    assert!(failure(&pipe).contains("a pipe, socket or device") && !FeatureFile::is_feature_file(&pipe));
}
