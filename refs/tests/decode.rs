//! Decoding against Pillow 13.0.0. `data/decode.zip` contains images of every kind and the results of Pillow (its
//! generator is `data/gen/decode.py`). Pixels must be equal. What Pillow rejects must be rejected, by an error that
//! names the file.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::io::{Cursor, Read as _};
use std::path::Path;

use d2o_refs::decode::{self, Decoded};
use serde_json::Value;
use sha2::{Digest as _, Sha256};
use zip::ZipArchive;

/// (name, bytes) of all images, and their expected results.
fn cases() -> (Vec<(String, Vec<u8>)>, Value) {
    let bytes = fs_err::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/decode.zip")).unwrap();
    let mut archive = ZipArchive::new(Cursor::new(bytes)).unwrap();
    let mut files = Vec::new();
    for i in 0..archive.len() {
        let mut entry = archive.by_index(i).unwrap();
        let mut data = Vec::new();
        entry.read_to_end(&mut data).unwrap();
        files.push((entry.name().unwrap().into_owned(), data));
    }
    let (_, expected) = files.pop().unwrap();
    (files, serde_json::from_slice(&expected).unwrap())
}

fn sha256(bytes: impl Iterator<Item = u8>) -> String {
    d2o_files::hex(&Sha256::digest(bytes.collect::<Vec<_>>()))
}

fn mode(decoded: &Decoded) -> (&'static str, String) {
    match decoded {
        Decoded::Grey(a) => ("L", sha256(a.iter().copied())),
        Decoded::GreyAlpha(a) => ("LA", sha256(a.iter().copied())),
        Decoded::Rgb(a) => ("RGB", sha256(a.iter().copied())),
        Decoded::Rgba(a) => ("RGBA", sha256(a.iter().copied())),
    }
}

/// The deviation of `name` from the expected result, if there is one.
fn fault(name: &str, bytes: &[u8], expected: &Value) -> Option<String> {
    let file = Path::new("samples.zip");
    let read = decode::image(file, name, bytes);
    let refused = expected["refused"].as_str();
    if expected["error"].is_string() || refused.is_some() {
        return match read {
            Ok(decoded) => Some(format!("read as {:?}, but {expected}", decoded.dims())),
            Err(error) => {
                let text = error.to_string();
                let named = text.contains("samples.zip") && text.contains(name);
                (!named || !text.contains(refused.unwrap_or(""))).then_some(text)
            }
        };
    }
    let decoded = match read {
        Ok(decoded) => decoded,
        Err(error) => {
            let cause = std::error::Error::source(&error).map(ToString::to_string);
            return Some(format!("{error} ({cause:?})"));
        }
    };
    let size = |(h, w): (usize, usize)| serde_json::json!([h, w]);
    if size(decoded.dims()) != expected["size"] {
        return Some(format!("size {:?}, expected {}", decoded.dims(), expected["size"]));
    }
    if decode::dims(file, name, bytes).ok().flatten().map(size) != Some(expected["size"].clone()) {
        return Some(format!("dims() {:?}", decode::dims(file, name, bytes)));
    }
    let (mode, pixels) = mode(&decoded);
    let rgb = sha256(decode::rgb(file, name, bytes).unwrap().iter().copied());
    // Samples of damaged JPEG blocks overflow: the image of libjpeg-turbo depends on whether it uses SIMD instructions.
    if rgb == expected["rgb_without_simd"] {
        return None;
    }
    if rgb != expected["rgb"] {
        return Some(format!("RGB pixels differ ({mode})"));
    }
    if expected["mode"] != mode || expected["pixels"] != pixels.as_str() {
        return Some(format!("mode {mode}, expected {}", expected["mode"]));
    }
    None
}

/// Runs the cases of one folder.
fn check(folder: &str) {
    let (files, expected) = cases();
    let chosen: Vec<_> = files.iter().filter(|(name, _)| name.starts_with(folder)).collect();
    assert!(chosen.len() > 5, "{} images in {folder}", chosen.len());
    let faults: Vec<_> = chosen
        .iter()
        .filter_map(|(name, bytes)| fault(name, bytes, &expected[name]).map(|fault| format!("{name}: {fault}")))
        .collect();
    assert!(faults.is_empty(), "{} of {}:\n{}", faults.len(), chosen.len(), faults.join("\n"));
}

#[test]
fn jpeg_pixels_are_pillows() {
    check("jpeg/");
}

#[test]
fn jpeg2000_pixels_are_pillows() {
    check("jpeg2000/");
}

#[test]
fn png_pixels_are_pillows() {
    check("png/");
}

#[test]
fn gif_pixels_are_pillows() {
    check("gif/");
}

#[test]
fn bmp_pixels_are_pillows() {
    check("bmp/");
}

#[test]
fn netpbm_pixels_are_pillows() {
    check("pnm/");
}

#[test]
fn tga_pixels_are_pillows() {
    check("tga/");
}

#[test]
fn webp_pixels_are_pillows() {
    check("webp/");
}

#[test]
fn tiff_pixels_are_pillows() {
    check("tiff/");
}

#[test]
fn other_files_are_refused_by_name_and_endings_do_not_matter() {
    check("other/");
}

#[test]
fn a_prefix_gives_the_size_or_says_that_it_is_too_short() {
    let (files, expected) = cases();
    let file = Path::new("samples.zip");
    let mut early = BTreeSet::new();
    for (name, bytes) in files.iter().filter(|(name, _)| expected[name]["size"].is_array()) {
        let whole = decode::dims(file, name, bytes).unwrap();
        for length in (32..bytes.len()).step_by(7) {
            let part = decode::dims(file, name, &bytes[..length]).unwrap();
            assert!(part.is_none() || part == whole, "{name}: {part:?} in {length} bytes");
            if part.is_some() {
                early.insert(name.split('/').next().unwrap());
            }
        }
    }
    assert_eq!(
        early.into_iter().collect::<Vec<_>>(),
        ["bmp", "gif", "jpeg", "jpeg2000", "other", "png", "pnm", "tga", "tiff", "webp"]
    );
}

/// Images that would take gigabytes are rejected by their header, before the data are read.
#[test]
fn sizes_beyond_the_limits_are_refused_before_memory_is_taken() {
    let (files, _) = cases();
    let file = Path::new("samples.zip");
    let patched = |name: &str, patches: &[(usize, &[u8])]| {
        let mut bytes = files.iter().find(|(n, _)| n == name).unwrap().1.clone();
        for (at, patch) in patches {
            bytes[*at..at + patch.len()].copy_from_slice(patch);
        }
        bytes
    };
    let jpeg = files.iter().find(|(n, _)| n == "jpeg/2x2-47x33.jpg").unwrap().1.clone();
    let frame = jpeg.windows(2).position(|w| w == [0xff, 0xc0]).unwrap();
    let mut png = patched("png/RGB-7x5.png", &[(16, &[0x7f, 0xff, 0xff, 0xff])]);
    let mut crc = flate2::Crc::new();
    crc.update(&png[12..29]);
    png[29..33].copy_from_slice(&crc.sum().to_be_bytes());
    let cases = [
        ("a.png", png),
        ("b.jpg", patched("jpeg/2x2-47x33.jpg", &[(frame + 5, &[0x75, 0x30, 0x75, 0x30])])),
        ("c.gif", patched("gif/plain-7x5.gif", &[(6, &[0xff, 0x7f, 0xff, 0x7f])])),
        ("d.bmp", patched("bmp/RGB-7x5.bmp", &[(18, &[0, 0, 0, 1])])),
        ("e.tga", patched("tga/RGB-7x5.tga", &[(12, &[0xff, 0x7f, 0xff, 0x7f])])),
        ("f.ppm", b"P6 20000 20000 255\nabc".to_vec()),
        ("g.webp", patched("webp/lossless-RGB-7x5.webp", &[(21, &[0xff, 0xff, 0xff, 0x0f])])),
        ("j.j2k", patched("jpeg2000/RGB.j2k", &[(8, &[0, 1, 0, 0])])),
        ("h.ppm", b"P6 32769 1 255\nabc".to_vec()),
        ("i.pgm", b"P5 0 1 255\nabc".to_vec()),
    ];
    for (name, bytes) in cases {
        for error in [decode::rgb(file, name, &bytes).unwrap_err(), decode::dims(file, name, &bytes).unwrap_err()] {
            let text = error.to_string();
            assert!(text.contains(name) && (text.contains("at most") || text.contains("at least one")), "{text}");
        }
    }
}

/// Truncated and altered bytes are an image or an error. Nothing panics, and an image has the size in its header.
#[test]
fn damaged_bytes_are_an_image_or_an_error() {
    let (files, _) = cases();
    let file = Path::new("samples.zip");
    let mut seed = 1_u64;
    let mut random = |below: usize| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(seed >> 33).unwrap() % below
    };
    for (name, bytes) in files.iter().filter(|(_, bytes)| !bytes.is_empty()) {
        for round in 0..24 {
            let mut damaged = bytes.clone();
            if round % 3 == 0 {
                damaged.truncate(random(bytes.len()));
            } else {
                for _ in 0..round / 3 {
                    let at = if round % 3 == 1 { random(bytes.len().min(64)) } else { random(bytes.len()) };
                    damaged[at] = u8::try_from(random(256)).unwrap();
                }
            }
            let size = decode::dims(file, name, &damaged);
            if let Ok(decoded) = decode::image(file, name, &damaged) {
                assert_eq!(size.unwrap(), Some(decoded.dims()), "{name}, round {round}");
            }
        }
    }
}

#[test]
fn endings_are_pillows_in_either_case() {
    for name in ["a.JPG", "b/c.jfif", "d.jpe", "e.PGM", "f.tga", "g.dib", "h.apng", "i.jp2"] {
        assert!(decode::is_image(name), "{name}");
    }
    for name in ["dataset.json", "png", "a.png.txt", "a.npy"] {
        assert!(!decode::is_image(name), "{name}");
    }
}

#[test]
fn written_pngs_are_read_again_with_their_channels() {
    let file = Path::new("out.zip");
    for channels in 1..=4 {
        let pixels =
            ndarray::Array3::from_shape_fn((3, 5, channels), |(y, x, c)| u8::try_from(y * 60 + x * 9 + c).unwrap());
        let bytes = d2o_refs::png(file, "a.png", pixels.view()).unwrap();
        let read = match decode::image(file, "a.png", &bytes).unwrap() {
            Decoded::Grey(grey) => grey.insert_axis(ndarray::Axis(2)),
            Decoded::GreyAlpha(a) | Decoded::Rgb(a) | Decoded::Rgba(a) => a,
        };
        assert_eq!(read, pixels);
    }
    let five = ndarray::Array3::zeros((1, 1, 5));
    assert!(d2o_refs::png(file, "a.png", five.view()).unwrap_err().to_string().contains("1 to 4 channels"));
}
