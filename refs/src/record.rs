//! The record in outputs of d2o: JSON that describes the origin of the images in an npz, HDF5 file, dataset zip or
//! folder.

use std::path::Path;

use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;

use crate::archive::Archive;
use crate::error::{Error, Result};
use crate::hdf5::{Opened, is_hdf5};
use crate::image_zip::{LABEL_FILE, MAX_JSON};
use crate::kind::{self, whole};
use crate::npy::{self, Dtype};

/// Name of the array, dataset or JSON key.
pub const RECORD: &str = "d2o";
/// Longest record accepted, bytes. Parsed, it takes up to 24 times as much memory.
const MAX_BYTES: u64 = 16 << 20;

/// The record in the output at `path`, a file or a folder; `None` if there is no record.
///
/// # Errors
/// `Missing`; `Format` or `Hdf5` if `path` is not a container or is damaged; `Format` for a record that is not JSON or
/// larger than 16 MiB.
pub fn read(path: &Path) -> Result<Option<Value>> {
    if kind::metadata(path)?.is_dir() {
        let file = path.join(LABEL_FILE);
        if !file.exists() {
            return Ok(None);
        }
        return in_label_file(path, &whole(&file, path, LABEL_FILE, MAX_JSON)?);
    }
    const EXPECTED: &str = "an output of d2o: an npz, HDF5 or zip file, or a folder";
    let mut file = kind::open(path, EXPECTED)?;
    let ending = path.extension().map(|e| e.to_string_lossy().to_ascii_lowercase());
    if matches!(ending.as_deref(), Some("h5" | "hdf5")) || is_hdf5(&mut file)? {
        return in_hdf5(path);
    }
    let archive = Archive::of(path, file, EXPECTED)?;
    if let Some(bytes) = archive.file(&format!("{RECORD}.npy"), MAX_BYTES)? {
        let mut bytes = bytes.as_slice();
        let header = npy::read_header(&mut bytes, path, RECORD)?;
        if header.dtype != Dtype::U8 {
            return Err(Error::format(path, RECORD, "bytes", header.dtype.descr().to_owned()));
        }
        return parse_record(path, bytes).map(Some);
    }
    match archive.label_file()? {
        Some(json) => in_label_file(path, &json),
        None => Ok(None),
    }
}

/// The record in the `dataset.json` of `path`.
fn in_label_file(path: &Path, json: &[u8]) -> Result<Option<Value>> {
    /// The record as JSON text. Labels and other keys are not kept.
    #[derive(Deserialize)]
    struct Marked<'a> {
        #[serde(borrow, rename = "d2o")]
        record: Option<&'a RawValue>,
    }
    let found: Marked<'_> = parse(path, LABEL_FILE, json)?;
    found.record.map(|record| parse_record(path, record.get().as_bytes())).transpose()
}

fn parse_record(path: &Path, text: &[u8]) -> Result<Value> {
    if text.len() as u64 > MAX_BYTES {
        return Err(Error::format(path, RECORD, format!("at most {MAX_BYTES} bytes"), text.len().to_string()));
    }
    parse(path, RECORD, text)
}

fn in_hdf5(path: &Path) -> Result<Option<Value>> {
    let file = Opened::open(path)?;
    if !file.has(RECORD) {
        return Ok(None);
    }
    parse_record(path, &file.bytes(RECORD, MAX_BYTES)?).map(Some)
}

fn parse<'a, T: Deserialize<'a>>(path: &Path, place: &str, bytes: &'a [u8]) -> Result<T> {
    serde_json::from_slice(bytes).map_err(|e| Error::format(path, place, "JSON", e.to_string()))
}

#[cfg(test)]
mod tests {
    use fs_err as fs;
    use ndarray::Array4;
    use serde_json::json;

    use super::*;
    use crate::batch::ImageDims;
    use crate::hdf5::Hdf5Writer;
    use crate::image_zip::DatasetWriter;
    use crate::npz::NpzWriter;

    #[test]
    fn every_container_gives_its_record_back() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let (record, images) = (json!({"seeds": "0-2", "rng": null}), Array4::<u8>::zeros((1, 2, 2, 3)));
        let text = record.to_string();
        let mut npz = NpzWriter::create(&at("a.npz")).unwrap();
        npz.bytes(RECORD, text.as_bytes()).unwrap();
        npz.finish().unwrap();
        let mut h5 = Hdf5Writer::create(&at("a.h5"), 1, ImageDims { height: 2, width: 2, channels: 3 }).unwrap();
        h5.append(&images).unwrap();
        h5.values(RECORD, text.as_bytes()).unwrap();
        h5.finish().unwrap();
        let mut zip = DatasetWriter::create(&at("a.zip")).unwrap();
        zip.append(&images, None).unwrap();
        zip.finish_with(Some(&record)).unwrap();
        fs::create_dir(at("a")).unwrap();
        fs::write(at("a").join(LABEL_FILE), json!({"labels": null, "d2o": record}).to_string()).unwrap();
        fs::copy(at("a.h5"), at("a.bin")).unwrap();
        for name in ["a.npz", "a.h5", "a.bin", "a.zip", "a"] {
            assert_eq!(read(&at(name)).unwrap(), Some(record.clone()), "{name}");
        }
    }

    #[test]
    fn only_the_record_of_a_label_file_is_kept_and_it_is_short() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join(LABEL_FILE);
        let list = |bytes: usize| format!("[0{}]", ",0".repeat(bytes / 2));
        fs::write(&file, format!(r#"{{"labels": {}, "d2o": {{"a": 1}}}}"#, list(20 << 20))).unwrap();
        assert_eq!(read(dir.path()).unwrap(), Some(json!({"a": 1})));
        fs::write(&file, format!(r#"{{"d2o": {}}}"#, list(17 << 20))).unwrap();
        let text = read(dir.path()).unwrap_err().to_string();
        assert!(text.contains("d2o: expected at most 16777216 bytes"), "{text}");
    }

    #[test]
    fn outputs_of_others_have_none_and_damaged_ones_are_errors() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let mut npz = NpzWriter::create(&at("a.npz")).unwrap();
        npz.i64("seeds", &[1]).unwrap();
        npz.finish().unwrap();
        let mut zip = DatasetWriter::create(&at("a.zip")).unwrap();
        zip.append(&Array4::zeros((1, 2, 2, 3)), None).unwrap();
        zip.finish().unwrap();
        fs::create_dir(at("a")).unwrap();
        for name in ["a.npz", "a.zip", "a"] {
            assert_eq!(read(&at(name)).unwrap(), None, "{name}");
        }
        fs::write(at("a").join(LABEL_FILE), "{").unwrap();
        fs::write(at("b.zip"), "PK").unwrap();
        fs::write(at("b.h5"), "HDF").unwrap();
        let mut npz = NpzWriter::create(&at("b.npz")).unwrap();
        npz.bytes(RECORD, b"{").unwrap();
        npz.finish().unwrap();
        let mut npz = NpzWriter::create(&at("c.npz")).unwrap();
        npz.i64(RECORD, &[1]).unwrap();
        npz.finish().unwrap();
        for name in ["a", "b.zip", "b.h5", "b.npz", "c.npz", "missing"] {
            assert!(read(&at(name)).is_err(), "{name}");
        }
    }
}
