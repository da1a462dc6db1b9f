//! Bytes out: the same for the same graph; a file is complete or absent.

use std::io::Write as _;
use std::path::Path;

use fs_err as fs;
use prost::Message as _;

use crate::error::{Error, Result};
use crate::graph::Model;
use crate::proto::StringStringEntryProto;

/// protobuf's own limit for one message.
const MAX_MESSAGE: usize = i32::MAX as usize;
/// Where weights go to a side file of their own, bytes of all weights.
const EXTERNAL_ABOVE: usize = 1_900_000_000;
/// Smallest tensor put there, bytes.
const EXTERNAL_MIN: usize = 1024;
/// Alignment inside the side file.
const ALIGN: usize = 4096;
/// `TensorProto.DataLocation.EXTERNAL`.
const EXTERNAL: i32 = 1;

/// The model as one message.
///
/// # Errors
/// `Graph` if it is too large for protobuf (2 GiB); [`write()`] puts such weights in a side file.
pub fn to_bytes(model: &Model) -> Result<Vec<u8>> {
    let length = model.proto.encoded_len();
    if length > MAX_MESSAGE {
        let graph = model.proto.graph.as_ref().map(|g| g.name.clone()).unwrap_or_default();
        return Err(Error::Graph { graph, what: format!("{length} bytes are more than one message can hold") });
    }
    Ok(model.proto.encode_to_vec())
}

/// Writes `model` to `path`; weights above 1.9 GB go to `path` + `.data`.
///
/// # Errors
/// `Io`.
pub fn write(model: &Model, path: &Path) -> Result<()> {
    write_splitting(model, path, EXTERNAL_ABOVE)
}

/// [`write()`] with another limit.
///
/// # Errors
/// `Io`.
pub fn write_splitting(model: &Model, path: &Path, external_above: usize) -> Result<()> {
    let weights: usize = model.proto.graph.iter().flat_map(|g| &g.initializer).map(|t| t.raw_data.len()).sum();
    if weights <= external_above {
        return atomic(path, &to_bytes(model)?);
    }
    let mut split = model.clone();
    let mut side = Vec::new();
    let mut side_path = path.as_os_str().to_owned();
    side_path.push(".data");
    let location = Path::new(&side_path).file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    for tensor in split.proto.graph.iter_mut().flat_map(|g| &mut g.initializer) {
        if tensor.raw_data.len() < EXTERNAL_MIN {
            continue;
        }
        side.resize(side.len().next_multiple_of(ALIGN), 0);
        let entry = |key: &str, value: String| StringStringEntryProto { key: key.to_owned(), value };
        tensor.external_data = vec![
            entry("location", location.clone()),
            entry("offset", side.len().to_string()),
            entry("length", tensor.raw_data.len().to_string()),
        ];
        tensor.data_location = EXTERNAL;
        side.append(&mut tensor.raw_data);
    }
    atomic(Path::new(&side_path), &side)?;
    atomic(path, &to_bytes(&split)?)
}

fn atomic(path: &Path, bytes: &[u8]) -> Result<()> {
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    fs::create_dir_all(folder)?;
    let mut partial = tempfile::Builder::new().prefix(".d2o-").suffix(".partial").tempfile_in(folder)?;
    partial.write_all(bytes)?;
    partial.as_file().sync_all()?;
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt as _;
        fs::set_permissions(partial.path(), std::fs::Permissions::from_mode(0o644))?;
    }
    partial.persist(path).map_err(|e| e.error)?;
    Ok(())
}
