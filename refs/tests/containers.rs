//! Files that are missing, truncated or of another kind, and the memory of large sets.

#![allow(clippy::unwrap_used, clippy::print_stdout)]

use std::path::{Path, PathBuf};

use d2o_refs::batch::{self, ImageDims};
use d2o_refs::features::FeatureFile;
use d2o_refs::folder::Folder;
use d2o_refs::hdf5::{Hdf5Images, Hdf5Writer};
use d2o_refs::image_zip::{DatasetWriter, ImageZip};
use d2o_refs::npy::Dtype;
use d2o_refs::npz::{Npz, NpzWriter, Pack};
use d2o_refs::stats::ReferenceStats;
use fs_err as fs;
use ndarray::Array4;

const LFS: &[u8] = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 3\n";

/// The text of the error, as `{:#}` prints it.
fn text<T>(result: d2o_refs::Result<T>) -> String {
    format!("{:#}", result.err().expect("opens"))
}

fn images(n: usize) -> Array4<u8> {
    Array4::from_shape_fn((n, 4, 5, 3), |(i, y, x, c)| u8::try_from((i * 60 + y * 15 + x * 3 + c) % 256).unwrap())
}

fn png() -> Vec<u8> {
    let image = images(1).index_axis_move(ndarray::Axis(0), 0);
    d2o_refs::png(Path::new("x"), "x", image.view()).unwrap()
}

/// An npz with the array `x` of three images.
fn write_npz(dir: &Path) -> PathBuf {
    let path = dir.join("x.npz");
    let mut npz = NpzWriter::create(&path).unwrap();
    npz.start("x", Dtype::U8, &[3, 4, 5, 3]).unwrap();
    npz.raw(images(3).as_slice().unwrap()).unwrap();
    npz.finish().unwrap();
    path
}

#[test]
fn files_that_are_not_what_their_name_says_are_named_by_their_content() {
    let dir = tempfile::tempdir().unwrap();
    let path = write_npz(dir.path());
    let whole = fs::read(&path).unwrap();
    let mut tar = vec![0; 600];
    tar[..5].copy_from_slice(b"a.png");
    tar[257..262].copy_from_slice(b"ustar");
    let single = "(a set of images is a folder or an archive)";
    let cases: [(&[u8], &str); 15] = [
        (LFS, "a Git LFS pointer; `git lfs pull` fetches the file itself"),
        (b"\n\n<!DOCTYPE html><html>", "a web page or XML file, perhaps the login or error page of a server"),
        (b"\xef\xbb\xbf<?xml version", "an XML file, perhaps the error response of a server"),
        (b"<svg xmlns", "an SVG drawing"),
        (b"", "an empty file"),
        (&whole[..whole.len() / 2], "a zip archive, truncated"),
        (&whole[..whole.len() - 30], "a zip archive, truncated"),
        (&png(), &format!("a PNG image {single}")),
        (b"\xff\xd8\xff\xe0\0\x10JFIF", &format!("a JPEG image {single}")),
        (b"\x1f\x8b\x08\0", "a gzip file; unpack it first"),
        (&tar, "a tar archive; unpack it first"),
        (b"\x80\x04\x95", "a pickle"),
        (b"a,b,c\n1,2,3\n", "a text that begins with \"a,b,c\\n1,2,3\\n\""),
        (b"MATLAB 5.0 MAT-file", "a MATLAB 5 file"),
        (b"\x01\x02\x03\x04\x05", "a file that begins with [01, 02, 03, 04, 05]"),
    ];
    for (bytes, found) in cases {
        for name in ["s.npz", "s.h5", "s.npy", "s.zip", "s.bin"] {
            let path = dir.path().join(name);
            fs::write(&path, bytes).unwrap();
            let is = |kind: &str| format!("{}: expected {kind}, found {found}", path.display());
            assert_eq!(text(batch::open(&path)), is("an npz, npy, HDF5 or zip file, or a folder of images"));
            assert_eq!(text(Npz::open(&path)), is("an npz file"));
            assert_eq!(text(ReferenceStats::read(&path)), is("an npz file"));
            assert_eq!(text(Pack::open_npy(&path)), is("an npy file"));
            assert_eq!(text(ImageZip::open(&path)), is("a zip archive of images"));
            assert_eq!(text(Hdf5Images::open(&path)), is("an HDF5 file"));
            assert_eq!(text(FeatureFile::open(&path)), is("an HDF5 file"));
            let of = text(d2o_refs::record::read(&path));
            assert!(of.ends_with(&format!("found {found}")), "{of}");
        }
    }
    // A complete archive that a reader of another format gets.
    fs::write(dir.path().join("whole.h5"), &whole).unwrap();
    let of = text(Hdf5Images::open(&dir.path().join("whole.h5")));
    assert!(of.ends_with("expected an HDF5 file, found a zip archive"), "{of}");
    let folder = format!("{}: expected an npz file, found a folder", dir.path().display());
    assert_eq!(text(Npz::open(dir.path())), folder);
}

#[test]
fn cut_hdf5_files_are_said_to_be_cut_short() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.h5");
    let mut writer = Hdf5Writer::create(&path, 40, ImageDims { height: 4, width: 5, channels: 3 }).unwrap();
    writer.append(&images(40)).unwrap();
    writer.finish().unwrap();
    let bytes = fs::read(&path).unwrap();
    fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
    let expected = format!(
        "{}: expected an HDF5 file of {} bytes, found {} bytes, truncated",
        path.display(),
        bytes.len(),
        bytes.len() / 2
    );
    assert_eq!(text(batch::open(&path)), expected);
}

#[test]
fn missing_files_are_said_to_be_missing() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["nope.h5", "nope.npz", "nope.npy", "nope.zip", "nope"] {
        let path = dir.path().join(name);
        let expected = format!("`{}` does not exist", path.display());
        let found = [
            text(batch::open(&path)),
            text(Npz::open(&path)),
            text(Pack::open_npy(&path)),
            text(ReferenceStats::read(&path)),
            text(ImageZip::open(&path)),
            text(Hdf5Images::open(&path)),
            text(FeatureFile::open(&path)),
            text(d2o_refs::record::read(&path)),
            text(batch::container_sha256(&path)),
            text(Folder::open(&path)),
        ];
        assert!(found.iter().all(|f| *f == expected), "{found:?}");
    }
    let path = dir.path().join("shards/*.h5");
    for found in [text(batch::open(&path)), text(FeatureFile::open(&path))] {
        assert_eq!(found, format!("no file matches `{}`", path.display()));
    }
}

#[test]
fn what_was_left_out_of_a_set_without_images_is_counted() {
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(text(batch::open(dir.path())), format!("{}: contains no images", dir.path().display()));
    for i in 0..8 {
        fs::write(dir.path().join(format!("img{i}")), png()).unwrap();
    }
    fs::write(dir.path().join("x.npy"), b"x").unwrap();
    let end = "contains no images; skipped 9 files (8 without an extension, 1 .npy); images are recognised by their extension, such as .png or .jpg";
    assert_eq!(text(batch::open(dir.path())), format!("{}: {end}", dir.path().display()));
    let path = dir.path().join("x.zip");
    let mut zip = zip::ZipWriter::new(fs::File::create(&path).unwrap());
    for i in 0..8 {
        zip.start_file(format!("img{i}"), zip::write::SimpleFileOptions::default()).unwrap();
    }
    zip.start_file("a.txt", zip::write::SimpleFileOptions::default()).unwrap();
    zip.finish().unwrap();
    assert_eq!(text(batch::open(&path)), format!("{}: {}", path.display(), end.replace(".npy", ".txt")));
}

#[test]
fn a_wrong_crc_has_one_wording_however_an_array_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let path = write_npz(dir.path());
    let mut bytes = fs::read(&path).unwrap();
    bytes[200] ^= 1;
    fs::write(&path, &bytes).unwrap();
    let pack = text(batch::open(&path).and_then(|mut s| s.read(0..3)));
    assert!(pack.contains("x: expected data of CRC-32 ") && pack.ends_with(": damaged data"), "{pack}");
    assert_eq!(text(Npz::open(&path).and_then(|mut n| n.bytes("x"))), pack);
    let path = dir.path().join("x.zip");
    let mut zip = DatasetWriter::create(&path).unwrap();
    zip.append(&images(1), None).unwrap();
    zip.finish().unwrap();
    let mut bytes = fs::read(&path).unwrap();
    let at = bytes.windows(4).position(|w| w == b"IEND").unwrap();
    bytes[at + 5] ^= 1;
    fs::write(&path, &bytes).unwrap();
    let found = text(batch::open(&path).and_then(|mut s| s.read(0..1)));
    assert!(
        found.contains("img00000000.png: expected data of CRC-32 ") && found.ends_with(": damaged data"),
        "{found}"
    );
}

#[test]
fn causes_are_given_in_one_line_where_they_are_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.h5");
    fs::write(&path, b"\x89HDF\r\n\x1a\n broken").unwrap();
    let error = batch::open(&path).err().unwrap();
    let plain = error.to_string();
    assert!(plain.ends_with("x.h5: HDF5 error"), "{plain}");
    assert!(format!("{error:#}").starts_with(&format!("{plain}: H5Fopen()")), "{error:#}");
    fs::create_dir(dir.path().join("d")).unwrap();
    let mut broken = png();
    let at = broken.windows(4).position(|w| w == b"IDAT").unwrap();
    broken[at + 8] ^= 0x55;
    fs::write(dir.path().join("d/a.png"), broken).unwrap();
    let error = batch::open(&dir.path().join("d")).and_then(|mut s| s.read(0..1)).unwrap_err();
    assert!(error.to_string().ends_with("`a.png` is not a readable image"), "{error}");
    assert!(format!("{error:#}").len() > error.to_string().len() + 10, "{error:#}");
}

/// Writes sets of images, reads them as a zip and as a folder, and prints the peak memory of each process.
///
/// ```sh
/// cargo test -p d2o-refs --test containers -- --ignored --exact memory_of_a_large_set --nocapture
/// ```
#[cfg(target_os = "linux")]
#[test]
#[ignore = "a measurement"]
fn memory_of_a_large_set() {
    if let Ok(task) = std::env::var("D2O_MEMORY") {
        measured(&task);
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    for count in ["5000", "50000"] {
        for task in ["write", "zip", "folder"] {
            let exe = std::env::current_exe().unwrap();
            let arguments = ["--ignored", "--exact", "memory_of_a_large_set", "--nocapture"];
            let mut run = std::process::Command::new(exe);
            let task = format!("{task} {count} {}", dir.path().display());
            let out = run.args(arguments).env("D2O_MEMORY", &task).output().unwrap();
            let out = String::from_utf8_lossy(&out.stdout);
            println!("{}", out.lines().find(|l| l.contains("VmHWM")).unwrap_or(&out));
        }
    }
}

#[cfg(target_os = "linux")]
fn measured(task: &str) {
    let [task, count, dir] = task.splitn(3, ' ').collect::<Vec<_>>().try_into().unwrap();
    let (count, dir): (usize, PathBuf) = (count.parse().unwrap(), dir.into());
    let zip = dir.join(format!("{count}.zip"));
    let png = png();
    match task {
        "write" => {
            let mut writer = DatasetWriter::create(&zip).unwrap();
            for i in 0..count {
                writer.append_png(&png, Some((i % 10).into())).unwrap();
            }
            writer.finish().unwrap();
        }
        kind => {
            let source = if kind == "zip" { zip } else { dir.join("files") };
            if kind == "folder" {
                for i in 0..count {
                    let path = source.join(d2o_refs::image_zip::name_of(i));
                    fs::create_dir_all(path.parent().unwrap()).unwrap();
                    fs::write(path, &png).unwrap();
                }
            }
            let mut source = batch::open(&source).unwrap();
            for start in (0..count).step_by(64) {
                source.read(start..(start + 64).min(count)).unwrap();
            }
        }
    }
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let peak = status.lines().find(|l| l.starts_with("VmHWM")).unwrap();
    println!("{task} {count}: {peak}");
}
