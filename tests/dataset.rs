//! `d2o dataset` against the output of EDM's dataset_tool.py for the same sources, and its additional options.
#![allow(missing_docs, clippy::unwrap_used, clippy::cast_possible_truncation, reason = "a test")]

use std::io::Read as _;
use std::path::{Path, PathBuf};

use d2o_refs::decode::{self, Decoded};
use fs_err as fs;
use image::{DynamicImage, GrayImage, Rgb, RgbImage, Rgba, RgbaImage};
use ndarray::ArrayD;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tempfile::TempDir;
use test_support::{Outcome, run};

fn d2o(dir: &Path, args: &[&str]) -> Outcome {
    run(Path::new(env!("CARGO_BIN_EXE_d2o")), dir, &[&["dataset"], args].concat())
}

fn made(dir: &Path, args: &[&str]) -> Outcome {
    let outcome = d2o(dir, args);
    assert_eq!(outcome.code, 0, "{args:?}: {outcome}");
    outcome
}

fn refused(dir: &Path, args: &[&str], text: &str) {
    let outcome = d2o(dir, args);
    assert!(outcome.code == 2 && outcome.stderr.contains(text), "{args:?}: `{text}`: {outcome}");
}

/// Extracts the sources, see tests/data/gen/dataset.py, into a temporary folder.
fn sources() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let zip = fs::File::open(data().join("sources.zip")).unwrap();
    zip::ZipArchive::new(zip).unwrap().extract(dir.path()).unwrap();
    dir
}

fn data() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/dataset")
}

/// Files of a dataset, sorted by name.
fn files(path: &Path) -> Vec<(String, Vec<u8>)> {
    let mut files = Vec::new();
    if path.is_dir() {
        for found in d2o_refs::listing::files(path).unwrap().0 {
            files.push((found.name, fs::read(path.join(found.path)).unwrap()));
        }
    } else {
        let mut zip = zip::ZipArchive::new(fs::File::open(path).unwrap()).unwrap();
        for i in 0..zip.len() {
            let mut entry = zip.by_index(i).unwrap();
            let mut bytes = Vec::new();
            entry.read_to_end(&mut bytes).unwrap();
            files.push((entry.name().unwrap().into_owned(), bytes));
        }
        files.sort();
    }
    files
}

/// Images, `[H, W]` or `[H, W, 3]`, and labels of a dataset.
fn read(path: &Path) -> (Vec<ArrayD<u8>>, Value) {
    let mut images = Vec::new();
    let mut labels = Value::Null;
    for (i, (name, bytes)) in files(path).into_iter().enumerate() {
        if name == "dataset.json" {
            let json: Value = serde_json::from_slice(&bytes).unwrap();
            let rows = json["labels"].as_array().cloned().unwrap_or_default();
            for (i, row) in rows.iter().enumerate() {
                assert_eq!(row[0], format!("{:05}/img{i:08}.png", i / 1000));
            }
            labels = if json["labels"].is_null() { Value::Null } else { rows.iter().map(|r| r[1].clone()).collect() };
        } else {
            assert_eq!(name, format!("{:05}/img{i:08}.png", i / 1000));
            images.push(match decode::image(path, &name, &bytes).unwrap() {
                Decoded::Grey(grey) => grey.into_dyn(),
                Decoded::Rgb(rgb) => rgb.into_dyn(),
                other => panic!("{name}: {other:?}"),
            });
        }
    }
    (images, labels)
}

fn pixel(images: &[ArrayD<u8>], image: usize, y: usize, x: usize) -> [u8; 3] {
    [0, 1, 2].map(|c| images[image][[y, x, c]])
}

#[test]
fn equals_dataset_tool_on_every_source() {
    let (dir, sources) = (tempfile::tempdir().unwrap(), sources());
    let expected: Value = serde_json::from_slice(&fs::read(data().join("expected.json")).unwrap()).unwrap();
    // Case names, and the options that d2o needs in addition to those of dataset_tool.py.
    for (case, more) in [
        ("mixed", &[][..]),
        ("mixed enlarged", &[]),
        ("mixed, first three", &[]),
        ("classes", &[]),
        ("vectors", &[]),
        ("wide", &[]),
        ("stretched", &["--transform", "resize"]),
        ("grey", &["--grey"]),
        ("cifar", &[]),
        ("mnist", &["--grey"]),
        ("mnist resized", &[]),
        ("lmdb", &[]),
    ] {
        let expected = &expected[case];
        let source = sources.path().join(expected["source"].as_str().unwrap()).display().to_string();
        let options: Vec<&str> = expected["options"].as_array().unwrap().iter().map(|o| o.as_str().unwrap()).collect();
        for out in [format!("{case}.zip"), case.to_owned()] {
            made(dir.path(), &[&[&source, "--dest", &out], &options[..], more].concat());
            let (images, labels) = read(&dir.path().join(&out));
            let found: Vec<Value> = images
                .iter()
                .map(|a| json!([a.shape(), d2o_files::hex(&Sha256::digest(a.as_slice().unwrap()))]))
                .collect();
            assert_eq!(Value::from(found), expected["images"], "{case}");
            assert_eq!(labels, expected["labels"], "{case}");
        }
        assert_eq!(files(&dir.path().join(case)), files(&dir.path().join(format!("{case}.zip"))), "{case}");
    }
    let again = sources.path().join("mixed").display().to_string();
    made(dir.path(), &[&again, "--out", "again.zip", "--resolution", "32"]);
    let bytes = |name: &str| fs::read(dir.path().join(name)).unwrap();
    assert!(bytes("again.zip") == bytes("mixed.zip"), "--resolution alone crops; equal images give equal bytes");
}

#[test]
fn transparent_pixels_stand_on_the_background() {
    let dir = tempfile::tempdir().unwrap();
    let icons = dir.path().join("icons");
    fs::create_dir(&icons).unwrap();
    // Left half red, right half transparent black; the bottom right pixel is (200, 100, 0) with alpha 77.
    let mut icon = RgbaImage::from_fn(8, 8, |x, _| if x < 4 { Rgba([255, 0, 0, 255]) } else { Rgba([0, 0, 0, 0]) });
    icon.put_pixel(7, 7, Rgba([200, 100, 0, 77]));
    icon.save(icons.join("a.png")).unwrap();
    let svg = r##"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 10 10"><rect width="5" height="10" fill="#ff0000"/></svg>"##;
    fs::write(icons.join("b.svg"), svg).unwrap();
    made(dir.path(), &["icons", "--out", "blue.zip", "--resolution", "8", "--background", "0000ff"]);
    let (images, labels) = read(&dir.path().join("blue.zip"));
    assert_eq!((images.len(), labels), (2, Value::Null), "bitmaps and drawings of one folder");
    for image in 0..2 {
        assert_eq!((pixel(&images, image, 3, 1), pixel(&images, image, 3, 6)), ([255, 0, 0], [0, 0, 255]));
    }
    // Pillow: Image.new("RGB", (8, 8), (0, 0, 255)).paste(icon, mask=icon.getchannel("A")).
    assert_eq!(pixel(&images, 0, 7, 7), [60, 30, 178]);
    let without = made(dir.path(), &["icons", "--out", "none.zip", "--resolution", "8"]);
    assert!(without.stderr.contains("1 images have transparent pixels"), "{without}");
    let (images, _) = read(&dir.path().join("none.zip"));
    assert_eq!((pixel(&images, 0, 3, 6), pixel(&images, 1, 3, 6)), ([0, 0, 0], [255; 3]), "as convert(\"RGB\"); white");
}

#[test]
fn excluded_hidden_and_other_files_are_left_out() {
    let dir = tempfile::tempdir().unwrap();
    let photos = dir.path().join("photos");
    for (name, grey) in [("a.png", 10), ("b-dark.png", 20), ("dark/c.png", 30), ("._a.png", 40), ("d.png", 50)] {
        let file = photos.join(name);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        RgbImage::from_pixel(8, 8, Rgb([grey; 3])).save(file).unwrap();
    }
    fs::write(photos.join("e-dark.svg"), "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 1 1\"/>").unwrap();
    fs::write(photos.join("notes.txt"), "x").unwrap();
    let outcome = made(dir.path(), &["photos", "--out", "d.zip", "--resolution", "8", "--exclude", "dark"]);
    assert!(outcome.stderr.contains("--exclude skipped 3 of 5 images"), "{outcome}");
    assert!(outcome.stderr.contains("1 hidden, 1 .txt"), "{outcome}");
    let (images, labels) = read(&dir.path().join("d.zip"));
    assert_eq!([pixel(&images, 0, 0, 0), pixel(&images, 1, 0, 0)], [[10; 3], [50; 3]]);
    assert_eq!((images.len(), labels), (2, Value::Null));
    refused(
        dir.path(),
        &["photos", "--out", "e.zip", "--exclude", "a", "--exclude", "d"],
        "no images besides the excluded",
    );
}

#[test]
fn labels_come_from_where_the_user_says() {
    let dir = tempfile::tempdir().unwrap();
    let make = |folder: &str, names: &[&str]| {
        for name in names {
            let file = dir.path().join(folder).join(name);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            RgbImage::new(8, 8).save(file).unwrap();
        }
    };
    let labels = |args: &[&str]| {
        let outcome = made(dir.path(), &[args, &["--out", "x.zip", "--overwrite"]].concat());
        (read(&dir.path().join("x.zip")).1, outcome.stderr)
    };
    make("c", &["cat/1.png", "cat/2.png", "dog/1.png"]);
    let (found, notes) = labels(&["c"]);
    assert_eq!(found, json!([0, 0, 1]));
    assert!(notes.contains("2 classes from the top-level folders: 0 = `cat`, 1 = `dog`"), "{notes}");
    assert_eq!(labels(&["c", "--labels", "none"]).0, Value::Null);
    assert_eq!(labels(&["c", "--labels", "source"]).0, Value::Null);
    fs::write(dir.path().join("c/dataset.json"), r#"{"labels": null}"#).unwrap();
    assert_eq!(labels(&["c"]).0, Value::Null, "the file says that there are none");
    assert_eq!(labels(&["c", "--labels", "folders"]).0, json!([0, 0, 1]));
    fs::write(
        dir.path().join("c/dataset.json"),
        r#"{"labels": [["cat/1.png", 5], ["cat/2.png", 4], ["dog/1.png", 3]]}"#,
    )
    .unwrap();
    assert_eq!(labels(&["c"]).0, json!([5, 4, 3]));
    fs::write(dir.path().join("c/dataset.json"), r#"{"labels": [["cat/1.png", 5], ["cat/2.png", 4]]}"#).unwrap();
    refused(dir.path(), &["c", "--out", "y.zip"], "no label for `dog/1.png`");
    fs::write(dir.path().join("c/dataset.json"), r#"{"labels": [["cat/1.png", "tabby"]]}"#).unwrap();
    refused(
        dir.path(),
        &["c", "--out", "y.zip"],
        "`cat/1.png`: expected an integer or a list of numbers, found \"tabby\"",
    );
    make("n", &["00000/img00000000.png", "00001/img00001000.png"]);
    assert_eq!(labels(&["n"]).0, Value::Null, "folders that number images are not classes");
    // Like dataset_tool.py, with a note.
    make("p", &["1.jpg", "2.jpg", "2024-07/3.jpg"]);
    let (found, notes) = labels(&["p"]);
    assert_eq!(found, json!([0, 0, 1]));
    assert!(notes.contains("0 = `.`, 1 = `2024-07` (--labels none omits them)"), "{notes}");
    make("f", &["1.png", "2.png"]);
    refused(dir.path(), &["f", "--out", "y.zip", "--labels", "folders"], "requires several top-level folders");
    assert!(!dir.path().join("y.zip").exists());
}

#[test]
fn photographs_are_turned_on_request() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("p")).unwrap();
    // Left half dark, right half bright; EXIF asks for a turn by 90 degrees: dark at the top.
    let photo = RgbImage::from_fn(16, 16, |x, _| Rgb(if x < 8 { [10; 3] } else { [200; 3] }));
    let mut jpeg = Vec::new();
    DynamicImage::ImageRgb8(photo).write_to(&mut std::io::Cursor::new(&mut jpeg), image::ImageFormat::Jpeg).unwrap();
    let exif = b"\xff\xe1\x00\x22Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0";
    jpeg.splice(2..2, exif.iter().copied());
    fs::write(dir.path().join("p/a.jpg"), jpeg).unwrap();
    let outcome = made(dir.path(), &["p", "--out", "as-is.zip"]);
    assert!(outcome.stderr.contains("1 images have an EXIF orientation, which was not applied"), "{outcome}");
    let outcome = made(dir.path(), &["p", "--out", "turned.zip", "--apply-exif"]);
    assert!(!outcome.stderr.contains("EXIF"), "{outcome}");
    let bright = |file: &str, y, x| pixel(&read(&dir.path().join(file)).0, 0, y, x)[0] > 100;
    assert_eq!([bright("as-is.zip", 0, 15), bright("as-is.zip", 15, 0)], [true, false]);
    assert_eq!([bright("turned.zip", 0, 15), bright("turned.zip", 15, 0)], [false, true]);
}

#[test]
fn what_dataset_tool_refuses_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let folder = |name: &str, sizes: &[(u32, u32)]| {
        fs::create_dir(dir.path().join(name)).unwrap();
        for (i, (w, h)) in sizes.iter().enumerate() {
            RgbImage::new(*w, *h).save(dir.path().join(name).join(format!("{i}.png"))).unwrap();
        }
    };
    folder("mixed", &[(32, 32), (32, 32), (16, 16)]);
    folder("flat", &[(32, 16)]);
    folder("odd", &[(24, 24)]);
    folder("small", &[(30, 40)]);
    refused(dir.path(), &["mixed", "--out", "d.zip"], "`0.png` is 32×32, `2.png` is 16×16");
    refused(dir.path(), &["flat", "--out", "d.zip"], "expected square images, found 32×16 (`0.png`)");
    refused(dir.path(), &["odd", "--out", "d.zip"], "expected a power of two as width and height, found 24×24");
    refused(dir.path(), &["odd", "--out", "d.zip", "--resolution", "64x48"], "center-crop gives squares");
    refused(dir.path(), &["odd", "--out", "d.zip", "--transform", "resize"], "needs a resolution");
    refused(
        dir.path(),
        &["small", "--out", "d.zip", "--transform", "center-crop-wide", "--resolution", "32x24"],
        "all 1 images are smaller than the resolution",
    );
    refused(dir.path(), &["odd", "--out", "d.npz"], "expected a `.zip` file or a folder");
    refused(dir.path(), &["odd", "--out", "d.zip", "--resolution", "0"], "expected sides of 1 to 4096 pixels");
    assert!(!dir.path().join("d.zip").exists());
    made(dir.path(), &["flat", "--out", "d.zip", "--any-size"]);
    assert_eq!(read(&dir.path().join("d.zip")).0[0].shape(), [16, 32, 3]);
    RgbImage::from_pixel(32, 32, Rgb([1, 2, 3])).save(dir.path().join("mixed/1.png")).unwrap();
    refused(dir.path(), &["mixed", "--out", "g.zip", "--grey", "--max-images", "2"], "`1.png` is a colour image");
    GrayImage::new(32, 32).save(dir.path().join("mixed/1.png")).unwrap();
    made(dir.path(), &["mixed", "--out", "g.zip", "--grey", "--max-images", "2"]);
    assert_eq!(read(&dir.path().join("g.zip")).0[1].shape(), [32, 32]);
}

#[test]
fn outputs_that_exist_stay_unless_they_may_be_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    fs::create_dir(at("p")).unwrap();
    RgbImage::new(8, 8).save(at("p/a.png")).unwrap();
    for out in ["d.zip", "d"] {
        made(dir.path(), &["p", "--out", out]);
        refused(dir.path(), &["p", "--out", out], "exists");
        fs::write(at("p/dataset.json"), r#"{"labels": [["a.png", 7]]}"#).unwrap();
        made(dir.path(), &["p", "--out", out, "--overwrite"]);
        assert_eq!(read(&at(out)).1, json!([7]));
        fs::remove_file(at("p/dataset.json")).unwrap();
    }
    refused(dir.path(), &["p", "--out", "p", "--overwrite"], "contains the source");
    fs::create_dir(at("mine")).unwrap();
    fs::write(at("mine/thesis.tex"), "x").unwrap();
    refused(dir.path(), &["p", "--out", "mine", "--overwrite"], "so it is not a dataset");
    assert!(at("mine/thesis.tex").exists());
    fs::write(at("p/b.png"), "no image").unwrap();
    refused(dir.path(), &["p", "--out", "d", "--overwrite"], "b.png");
    refused(dir.path(), &["p", "--out", "e.zip"], "b.png");
    assert_eq!(read(&at("d")).1, json!([7]), "the old one is whole");
    let mut left: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    left.sort();
    assert_eq!(left, ["d", "d.zip", "mine", "p"], "nothing is left behind");
}

#[test]
fn a_broken_drawing_is_named() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("i")).unwrap();
    fs::write(dir.path().join("i/a.svg"), "<svg").unwrap();
    refused(dir.path(), &["i", "--out", "d.zip", "--resolution", "8"], "cannot render `a.svg`");
    refused(dir.path(), &["i", "--out", "d.zip"], "an SVG has no size in pixels");
}

#[test]
fn damaged_sources_are_errors() {
    let (dir, sources) = (tempfile::tempdir().unwrap(), sources());
    let at = |name: &str| dir.path().join(name);
    let cut = |name: &str, as_name: &str, keep: usize| {
        let bytes = fs::read(sources.path().join(name)).unwrap();
        fs::write(at(as_name), &bytes[..keep.min(bytes.len())]).unwrap();
    };
    let size = |name: &str| fs::metadata(sources.path().join(name)).unwrap().len() as usize;
    for (name, parts) in [("cifar-10-python.tar.gz", 7), ("train-images-idx3-ubyte.gz", 7)] {
        for part in 0..parts {
            cut(name, name, size(name) * part / parts);
            let outcome = d2o(dir.path(), &[name, "--out", "d.zip"]);
            assert!(outcome.code == 2 && outcome.stderr.starts_with("error: "), "{name} {part}: {outcome}");
        }
    }
    fs::create_dir(at("cat_lmdb")).unwrap();
    let whole = fs::read(sources.path().join("cat_lmdb/data.mdb")).unwrap();
    for keep in [0, 100, 4096, 4200, whole.len() / 2] {
        fs::write(at("cat_lmdb/data.mdb"), &whole[..keep]).unwrap();
        let outcome = d2o(dir.path(), &["cat_lmdb", "--out", "d.zip", "--resolution", "8"]);
        assert!(outcome.code == 2 && outcome.stderr.starts_with("error: "), "{keep}: {outcome}");
    }
    // No panic and no endless loop, whichever byte is wrong.
    for i in (0..whole.len()).step_by(whole.len() / 60) {
        let mut bytes = whole.clone();
        bytes[i] ^= 0xff;
        fs::write(at("cat_lmdb/data.mdb"), bytes).unwrap();
        let outcome = d2o(dir.path(), &["cat_lmdb", "--out", "d.zip", "--resolution", "8", "--overwrite"]);
        assert!(matches!(outcome.code, 0 | 2) && !outcome.stderr.contains("fault"), "{i}: {outcome}");
    }
    let _ = fs::remove_file(at("d.zip"));
    // Labels for another number of images.
    fs::copy(sources.path().join("train-images-idx3-ubyte.gz"), at("train-images-idx3-ubyte.gz")).unwrap();
    let mut labels = vec![0, 0, 8, 1, 0, 0, 0, 2];
    labels.extend([1, 2]);
    fs::write(at("train-labels-idx1-ubyte.gz"), labels).unwrap();
    refused(
        dir.path(),
        &["train-images-idx3-ubyte.gz", "--out", "d.zip"],
        "expected 3 labels, one for each image, found 2",
    );
    made(dir.path(), &["train-images-idx3-ubyte.gz", "--out", "d.zip", "--labels", "none"]);
}
