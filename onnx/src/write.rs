//! Serialisation: equal graphs give equal bytes, and a file is complete or absent.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::io::Write;
use std::path::Path;

use d2o_files::{AtomicFile, hex};
use fs_err as fs;
use prost::Message as _;
use sha2::{Digest as _, Sha256};

use crate::error::{Error, Result, invalid};
use crate::graph::{Model, PRODUCER};
use crate::proto::{GraphProto, ModelProto, StringStringEntryProto, TensorProto};
use crate::read;

/// Size limit of protobuf for one message, bytes.
const MAX_MESSAGE: usize = i32::MAX as usize;
/// Total size of the weights above which large weights are stored in a side file, bytes.
const EXTERNAL_ABOVE: usize = 1_900_000_000;
/// Minimum size of a tensor in the side file, bytes.
const EXTERNAL_MIN: usize = 1024;
/// Alignment of tensors in the side file, bytes.
const ALIGN: usize = 4096;
/// Hexadecimal digits of the digest in the name of a side file.
const DIGEST: usize = 16;
/// `TensorProto.DataLocation.EXTERNAL`.
const EXTERNAL: i32 = 1;

/// The model as one message.
///
/// # Errors
/// `Graph` if the model is too large for protobuf (2 GiB). [`write()`] stores the weights of such models in a side
/// file.
pub fn to_bytes(model: &Model) -> Result<Vec<u8>> {
    let length = model.proto.encoded_len();
    if length > MAX_MESSAGE {
        return Err(too_large(model.proto.graph.as_ref().map_or("", |g| &g.name), length));
    }
    Ok(model.proto.encode_to_vec())
}

/// Writes `model` to `path`. If the weights have more than 1.9 GB in total, weights of at least 1 KiB are stored in a
/// side file in the same folder, which is named after the digest of its content.
///
/// The side file of a previous graph at `path` is removed last, so that the graph at `path` has its weights at any
/// time. Writing needs additional memory of up to twice the size of the largest tensor.
///
/// # Errors
/// `Graph` if the graph without these weights is too large for protobuf (2 GiB), or a side file is needed and the file
/// name is not UTF-8. `Io` if writing fails.
pub fn write(model: &Model, path: &Path) -> Result<()> {
    write_splitting(model, path, EXTERNAL_ABOVE)
}

/// Same as [`write()`], with a side file for weights of more than `external_above` bytes in total.
///
/// # Errors
/// Those of [`write()`].
pub fn write_splitting(model: &Model, path: &Path, external_above: usize) -> Result<()> {
    let Some(graph) = &model.proto.graph else { return atomic(path, |to| Ok(to.write_all(&to_bytes(model)?)?)) };
    let before = side_files(path);
    let weights: usize = graph.initializer.iter().map(|t| t.raw_data.len()).sum();
    let side = if weights <= external_above {
        atomic(path, |to| stream(&model.proto, graph, to))?;
        None
    } else {
        let side = write_side(graph, path)?;
        atomic(path, |to| stream(&model.proto, &light(graph, &side), to))?;
        Some(side)
    };
    for stale in before.into_iter().filter(|name| Some(name) != side.as_ref()) {
        // The graph does not refer to the file. If it cannot be removed, it only takes space.
        let _ = fs::remove_file(path.with_file_name(stale));
    }
    Ok(())
}

/// Names of the side files of the graph at `path`, if d2o wrote the graph and chose the names.
fn side_files(path: &Path) -> BTreeSet<String> {
    let found = read::scan(path).ok().filter(|found| found.producer == PRODUCER);
    let named = |text: Option<&OsStr>| text.and_then(OsStr::to_str).unwrap_or_default().to_owned();
    let (stem, whole) = (named(path.file_stem()), named(path.file_name()));
    let ours = |name: &String| {
        let digest = name.strip_prefix(&format!("{stem}.")).and_then(|rest| rest.strip_suffix(".data"));
        // Earlier versions named the side file `<file>.data`, without a digest.
        digest.is_some_and(|d| d.len() == DIGEST && d.bytes().all(|b| b.is_ascii_hexdigit()))
            || *name == format!("{whole}.data")
    };
    found.into_iter().flat_map(|found| found.external).map(|e| e.location).filter(ours).collect()
}

/// Writes the large weights of `graph` to a side file of `path`, and returns its name.
fn write_side(graph: &GraphProto, path: &Path) -> Result<String> {
    let Some(stem) = path.file_stem().and_then(OsStr::to_str) else {
        let found = format!("`{}`", path.display());
        return Err(invalid(&graph.name, "name of the side file".to_owned(), "a file name in UTF-8", found));
    };
    let name = |digest: &str| format!("{stem}.{digest}.data");
    let length = light(graph, &name(&"0".repeat(DIGEST))).encoded_len();
    if length > MAX_MESSAGE {
        return Err(too_large(&graph.name, length));
    }
    let mut file = AtomicFile::create(path)?;
    let (mut digest, mut at) = (Sha256::new(), 0_usize);
    for tensor in graph.initializer.iter().filter(|t| is_outside(t)) {
        let start = at.next_multiple_of(ALIGN);
        for bytes in [&vec![0; start - at], &tensor.raw_data] {
            digest.update(bytes);
            file.write_all(bytes)?;
        }
        at = start + tensor.raw_data.len();
    }
    let digest = hex(&digest.finalize()[..DIGEST / 2]);
    file.commit_as(&path.with_file_name(name(&digest)))?;
    Ok(name(&digest))
}

/// Whether a tensor is stored in the side file.
fn is_outside(tensor: &TensorProto) -> bool {
    tensor.raw_data.len() >= EXTERNAL_MIN
}

/// `graph` with references to the side file `location` in place of its large weights.
fn light(graph: &GraphProto, location: &str) -> GraphProto {
    let mut end = 0_usize;
    let initializer = graph.initializer.iter().map(|tensor| {
        if !is_outside(tensor) {
            return tensor.clone();
        }
        let length = tensor.raw_data.len();
        let start = end.next_multiple_of(ALIGN);
        end = start + length;
        let entry = |key: &str, value: String| StringStringEntryProto { key: key.to_owned(), value };
        TensorProto {
            dims: tensor.dims.clone(),
            data_type: tensor.data_type,
            name: tensor.name.clone(),
            raw_data: Vec::new(),
            external_data: vec![
                entry("location", location.to_owned()),
                entry("offset", start.to_string()),
                entry("length", length.to_string()),
            ],
            data_location: EXTERNAL,
        }
    });
    let initializer = initializer.collect();
    let GraphProto { node, name, input, output, .. } = graph;
    let (node, name, input, output) = (node.clone(), name.clone(), input.clone(), output.clone());
    GraphProto { node, name, initializer, input, output }
}

/// Writes the bytes of [`to_bytes`] for `model` with the graph `graph`, one initializer at a time.
fn stream(model: &ModelProto, graph: &GraphProto, to: &mut dyn Write) -> Result<()> {
    // Field 7 of ModelProto, length-delimited.
    const GRAPH_KEY: u8 = 7 << 3 | 2;
    let head = ModelProto {
        ir_version: model.ir_version,
        producer_name: model.producer_name.clone(),
        producer_version: model.producer_version.clone(),
        ..ModelProto::default()
    };
    let tail = ModelProto {
        opset_import: model.opset_import.clone(),
        metadata_props: model.metadata_props.clone(),
        ..ModelProto::default()
    };
    let length = graph.encoded_len();
    if length > MAX_MESSAGE {
        return Err(too_large(&graph.name, length));
    }
    let mut buffer = head.encode_to_vec();
    buffer.push(GRAPH_KEY);
    // Cannot fail: a Vec grows.
    let _ = prost::encode_length_delimiter(length, &mut buffer);
    let GraphProto { node, name, initializer, input, output } = graph;
    let before = GraphProto { node: node.clone(), name: name.clone(), ..GraphProto::default() };
    let after = GraphProto { input: input.clone(), output: output.clone(), ..GraphProto::default() };
    buffer.extend(before.encode_to_vec());
    to.write_all(&buffer)?;
    for tensor in initializer {
        let one = GraphProto { initializer: vec![tensor.clone()], ..GraphProto::default() };
        to.write_all(&one.encode_to_vec())?;
    }
    to.write_all(&after.encode_to_vec())?;
    Ok(to.write_all(&tail.encode_to_vec())?)
}

fn too_large(graph: &str, length: usize) -> Error {
    invalid(graph, "message".to_owned(), format!("at most {MAX_MESSAGE} bytes"), format!("{length}"))
}

fn atomic(path: &Path, fill: impl FnOnce(&mut dyn Write) -> Result<()>) -> Result<()> {
    let mut file = AtomicFile::create(path)?;
    fill(&mut file)?;
    Ok(file.commit()?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::{Dim, ElementType, GraphBuilder};
    use crate::metadata::{Kind, Metadata};

    #[test]
    fn a_streamed_file_is_the_message() {
        let dir = tempfile::tempdir().unwrap();
        let mut g = GraphBuilder::new("g");
        let x = g.input("x", ElementType::F32, &[Dim::Batch, Dim::Known(3)]).unwrap();
        let w = g.constant("w", &[2, 3], vec![0.5; 6]).unwrap();
        let b = g.constant("b", &[2], vec![1.0, -1.0]).unwrap();
        let y = g.linear(&x, &w, Some(&b)).unwrap();
        g.output("y", &y).unwrap();
        g.describe(&Metadata { kind: Some(Kind::Features), ..Metadata::default() });
        let model = g.finish().unwrap();
        let path = dir.path().join("m.onnx");
        write(&model, &path).unwrap();
        assert_eq!(fs::read(&path).unwrap(), to_bytes(&model).unwrap());
    }

    /// A graph whose weights are all `value`.
    fn filled(value: f32) -> Model {
        let mut g = GraphBuilder::new("g");
        let x = g.input("x", ElementType::F32, &[Dim::Batch, Dim::Known(64)]).unwrap();
        let w = g.constant("w", &[64, 64], vec![value; 64 * 64]).unwrap();
        let y = g.linear(&x, &w, None).unwrap();
        g.output("y", &y).unwrap();
        g.finish().unwrap()
    }

    fn names(dir: &Path) -> Vec<String> {
        let mut names: Vec<String> =
            fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort_unstable();
        names
    }

    #[test]
    fn a_graph_and_its_weights_belong_together_at_any_time() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("m.onnx");
        fs::write(dir.path().join("m.0123456789abcdef.data"), "of somebody else").unwrap();
        write_splitting(&filled(1.0), &path, 0).unwrap();
        let side = |path: &Path| read::scan(path).unwrap().external[0].location.clone();
        let first = side(&path);
        let (graph, weights) = (fs::read(&path).unwrap(), fs::read(dir.path().join(&first)).unwrap());
        assert_eq!(weights, 1.0_f32.to_le_bytes().repeat(64 * 64));
        // An interruption after the weights of the next graph: the first graph is still complete.
        let second = write_side(filled(2.0).proto.graph.as_ref().unwrap(), &path).unwrap();
        assert_eq!((fs::read(&path).unwrap(), fs::read(dir.path().join(&first)).unwrap()), (graph.clone(), weights));
        write_splitting(&filled(2.0), &path, 0).unwrap();
        assert_eq!(
            (side(&path), names(dir.path())),
            (second.clone(), {
                let mut all = vec!["m.0123456789abcdef.data".to_owned(), "m.onnx".to_owned(), second];
                all.sort_unstable();
                all
            })
        );
        // The same graph again, then the first.
        write_splitting(&filled(2.0), &path, 0).unwrap();
        write_splitting(&filled(1.0), &path, 0).unwrap();
        assert_eq!(fs::read(&path).unwrap(), graph);
        assert_eq!(names(dir.path()).len(), 3);
        // A graph without a side file replaces the previous side file. The side file of a graph of another program
        // stays.
        write(&filled(1.0), &path).unwrap();
        assert_eq!(names(dir.path()), ["m.0123456789abcdef.data", "m.onnx"]);
        let mut other = filled(3.0);
        other.proto.producer_name = "other".to_owned();
        write_splitting(&other, &path, 0).unwrap();
        write(&filled(1.0), &path).unwrap();
        assert_eq!(names(dir.path()).len(), 3);
    }

    #[cfg(unix)]
    #[test]
    fn file_names_that_a_graph_refers_to_are_utf8() {
        use std::os::unix::ffi::OsStrExt as _;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(OsStr::from_bytes(b"m\xff.onnx"));
        write(&filled(1.0), &path).unwrap();
        let text = write_splitting(&filled(2.0), &path, 0).unwrap_err().to_string();
        assert!(text.contains("expected a file name in UTF-8"), "{text}");
        assert_eq!(fs::read(&path).unwrap(), to_bytes(&filled(1.0)).unwrap());
    }

    #[cfg(unix)]
    #[test]
    fn permissions_are_those_of_any_new_file() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().unwrap();
        let mode = |name: &str| fs::metadata(dir.path().join(name)).unwrap().permissions().mode();
        fs::write(dir.path().join("plain"), "").unwrap();
        write(&filled(1.0), &dir.path().join("m.onnx")).unwrap();
        assert_eq!(mode("m.onnx"), mode("plain"));
    }
}
