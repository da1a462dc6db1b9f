//! Bytes out: the same for the same graph; a file is complete or absent.

use std::io::Write;
use std::path::Path;

use fs_err as fs;
use prost::Message as _;

use crate::error::{Error, Result};
use crate::graph::Model;
use crate::proto::{GraphProto, ModelProto, StringStringEntryProto, TensorProto};

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

/// Writes `model` to `path`; weights above 1.9 GB go to `path` + `.data`. Needs memory for the largest tensor beside the model.
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
    let Some(graph) = &model.proto.graph else { return atomic(path, |to| Ok(to.write_all(&to_bytes(model)?)?)) };
    let weights: usize = graph.initializer.iter().map(|t| t.raw_data.len()).sum();
    if weights <= external_above {
        return atomic(path, |to| stream(&model.proto, graph, to));
    }
    let mut side_path = path.as_os_str().to_owned();
    side_path.push(".data");
    let location = Path::new(&side_path).file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    let (mut initializer, mut end) = (Vec::with_capacity(graph.initializer.len()), 0_usize);
    for tensor in &graph.initializer {
        let length = tensor.raw_data.len();
        if length < EXTERNAL_MIN {
            initializer.push(tensor.clone());
            continue;
        }
        let start = end.next_multiple_of(ALIGN);
        end = start + length;
        let entry = |key: &str, value: String| StringStringEntryProto { key: key.to_owned(), value };
        initializer.push(TensorProto {
            dims: tensor.dims.clone(),
            data_type: tensor.data_type,
            name: tensor.name.clone(),
            raw_data: Vec::new(),
            external_data: vec![
                entry("location", location.clone()),
                entry("offset", start.to_string()),
                entry("length", length.to_string()),
            ],
            data_location: EXTERNAL,
        });
    }
    atomic(Path::new(&side_path), |to| {
        let mut at = 0_usize;
        for tensor in graph.initializer.iter().filter(|t| t.raw_data.len() >= EXTERNAL_MIN) {
            let start = at.next_multiple_of(ALIGN);
            to.write_all(&vec![0; start - at])?;
            to.write_all(&tensor.raw_data)?;
            at = start + tensor.raw_data.len();
        }
        Ok(())
    })?;
    let GraphProto { node, name, input, output, .. } = graph;
    let (node, name, input, output) = (node.clone(), name.clone(), input.clone(), output.clone());
    let light = GraphProto { node, name, initializer, input, output };
    atomic(path, |to| stream(&model.proto, &light, to))
}

/// `model` with `graph` in place of its own, as [`to_bytes`] has it, one weight at a time.
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
        return Err(Error::Graph {
            graph: graph.name.clone(),
            what: format!("{length} bytes are more than one message can hold"),
        });
    }
    let mut buffer = head.encode_to_vec();
    buffer.push(GRAPH_KEY);
    // A Vec grows, so there is room.
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

fn atomic(path: &Path, fill: impl FnOnce(&mut dyn Write) -> Result<()>) -> Result<()> {
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    fs::create_dir_all(folder)?;
    let partial = tempfile::Builder::new().prefix(".d2o-").suffix(".partial").tempfile_in(folder)?;
    fill(&mut partial.as_file())?;
    partial.as_file().sync_all()?;
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt as _;
        fs::set_permissions(partial.path(), std::fs::Permissions::from_mode(0o644))?;
    }
    partial.persist(path).map_err(|e| e.error)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::{Dim, ElementType, GraphBuilder};

    #[test]
    fn a_streamed_file_is_the_message() {
        let dir = tempfile::tempdir().unwrap();
        let mut g = GraphBuilder::new("g");
        let x = g.input("x", ElementType::F32, &[Dim::Batch, Dim::Known(3)]).unwrap();
        let w = g.constant("w", &[2, 3], vec![0.5; 6]).unwrap();
        let b = g.constant("b", &[2], vec![1.0, -1.0]).unwrap();
        let y = g.linear(&x, &w, Some(&b)).unwrap();
        g.output("y", &y).unwrap();
        g.metadata("kind", "test");
        let model = g.finish().unwrap();
        let path = dir.path().join("m.onnx");
        write(&model, &path).unwrap();
        assert_eq!(fs::read(&path).unwrap(), to_bytes(&model).unwrap());
    }
}
