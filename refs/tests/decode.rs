//! Decoding against Pillow 13.0.0: `data/decode.zip` holds images of every kind and what Pillow reads from them (its generator stands
//! beside it). Pixels must be equal; what Pillow refuses must be refused, by an error that names the file.

use std::io::{Cursor, Read as _};
use std::path::Path;

use d2o_refs::decode::{self, Decoded};
use serde_json::Value;
use sha2::{Digest as _, Sha256};
use zip::ZipArchive;

/// (name, bytes) of all images, and what is expected of them.
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
    use std::fmt::Write as _;
    let digest = Sha256::digest(bytes.collect::<Vec<_>>());
    digest.iter().fold(String::new(), |mut text, b| {
        let _ = write!(text, "{b:02x}");
        text
    })
}

fn mode(decoded: &Decoded) -> (&'static str, String) {
    match decoded {
        Decoded::Grey(a) => ("L", sha256(a.iter().copied())),
        Decoded::GreyAlpha(a) => ("LA", sha256(a.iter().copied())),
        Decoded::Rgb(a) => ("RGB", sha256(a.iter().copied())),
        Decoded::Rgba(a) => ("RGBA", sha256(a.iter().copied())),
    }
}

/// What is wrong with `name`, if anything.
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
    // Samples of damaged JPEG blocks overflow: libjpeg-turbo gives one of two images, with or without SIMD instructions.
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
