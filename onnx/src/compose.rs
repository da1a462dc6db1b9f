//! Concatenation of two graphs.

use std::collections::HashSet;
use std::path::Path;

use crate::check;
use crate::error::{Result, invalid};
use crate::graph::Model;
use crate::metadata::{Kind, Metadata};
use crate::proto::{GraphProto, ValueInfoProto};
use crate::read::written;

/// Connects the output `images` of the graph at `first` to the only input of the graph at `second`, which has the same
/// name. The result has the inputs of `first`. Its outputs are `images` and the outputs of `second`. Names inside
/// `second` get the prefix `features/`.
///
/// # Errors
/// `Format` if a file is not a model that d2o wrote with all weights in the file. `Graph` if the opsets differ, `first`
/// has no output `images`, `second` does not have exactly one input, or the two are incompatible. `Io` if a file cannot
/// be read.
pub fn chain(first: &Path, second: &Path, images: &str) -> Result<Model> {
    let (mut model, tail) = (written(first)?, written(second)?);
    let bad = |path: &Path, place: &str, expected: String, found: String| {
        invalid(&path.display().to_string(), place.to_owned(), expected, found)
    };
    if model.opset_import != tail.opset_import {
        let expected = format!("that of `{}`", first.display());
        return Err(bad(second, "opset", expected, "another".to_owned()));
    }
    let (Some(mut head), Some(tail)) = (model.graph.take(), tail.graph) else {
        return Err(bad(first, "model", "a graph".to_owned(), "none".to_owned()));
    };
    let Some(given) = head.output.iter().find(|o| o.name == images).cloned() else {
        return Err(bad(first, "outputs", format!("one called `{images}`"), "none".to_owned()));
    };
    let [taken] = tail.input.as_slice() else {
        return Err(bad(second, "inputs", "one".to_owned(), tail.input.len().to_string()));
    };
    if taken.name != images || !compatible(&given, taken) {
        let expected = format!("`{images}` of the type and shape in `{}`", first.display());
        return Err(bad(second, "input", expected, format!("`{}` of another name, type or shape", taken.name)));
    }
    let open: HashSet<String> = tail.output.iter().map(|o| o.name.clone()).chain([images.to_owned()]).collect();
    let inside = |name: &String| {
        if name.is_empty() || open.contains(name) { name.clone() } else { format!("features/{name}") }
    };
    for mut node in tail.node {
        node.name = format!("features/{}", node.name);
        node.input = node.input.iter().map(inside).collect();
        node.output = node.output.iter().map(inside).collect();
        head.node.push(node);
    }
    for mut tensor in tail.initializer {
        tensor.name = inside(&tensor.name);
        head.initializer.push(tensor);
    }
    head.output = std::iter::once(given).chain(tail.output).collect();
    prune(&mut head);
    model.graph = Some(head);
    model.metadata_props = Vec::new();
    check::check(&model)?;
    let version = env!("CARGO_PKG_VERSION").to_owned();
    let metadata = Metadata { version: Some(version), kind: Some(Kind::Fused), ..Metadata::default() };
    Ok(Model { proto: model, conv_heights: None }.with_metadata(&metadata))
}

/// Whether element types and ranks are equal, and all lengths that are known in both.
fn compatible(given: &ValueInfoProto, taken: &ValueInfoProto) -> bool {
    use crate::proto::DimensionValue::DimValue;
    let (Some(a), Some(b)) = (given.tensor(), taken.tensor()) else { return false };
    let dims = |t: &crate::proto::TensorTypeProto| t.shape.iter().flat_map(|s| s.dim.clone()).collect::<Vec<_>>();
    let (x, y) = (dims(a), dims(b));
    a.elem_type == b.elem_type
        && x.len() == y.len()
        && x.iter().zip(&y).all(|(p, q)| match (&p.value, &q.value) {
            (Some(DimValue(m)), Some(DimValue(n))) => m == n,
            _ => true,
        })
}

/// Removes nodes and initializers that no output depends on.
pub(crate) fn prune(graph: &mut GraphProto) {
    let mut needed: HashSet<String> = graph.output.iter().map(|o| o.name.clone()).collect();
    let mut kept: Vec<_> = std::mem::take(&mut graph.node)
        .into_iter()
        .rev()
        .filter(|node| {
            let wanted = node.output.iter().any(|o| needed.contains(o));
            if wanted {
                needed.extend(node.input.iter().cloned());
            }
            wanted
        })
        .collect();
    kept.reverse();
    graph.node = kept;
    graph.initializer.retain(|t| needed.contains(&t.name));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::{Dim, ElementType, GraphBuilder};
    use crate::write;

    fn write_scaled(path: &Path, input: &str, outputs: &[(&str, f64)], width: usize) {
        let mut g = GraphBuilder::new("g");
        let x = g.input(input, ElementType::F32, &[Dim::Batch, Dim::Known(width)]).unwrap();
        for (name, factor) in outputs {
            let y = g.scale(&x, *factor).unwrap();
            g.output(name, &y).unwrap();
        }
        write::write(&g.finish().unwrap(), path).unwrap();
    }

    #[test]
    fn graphs_are_chained_and_pruned() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        write_scaled(&path("a.onnx"), "latents", &[("images", 2.0), ("other", 5.0)], 3);
        write_scaled(&path("b.onnx"), "images", &[("features", 2.0)], 3);
        write_scaled(&path("wide.onnx"), "images", &[("features", 2.0)], 4);
        let model = chain(&path("a.onnx"), &path("b.onnx"), "images").unwrap();
        write::write(&model, &path("c.onnx")).unwrap();
        let info = crate::read::ModelInfo::open(&path("c.onnx")).unwrap();
        let names = |all: &[crate::read::ValueInfo]| all.iter().map(|v| v.name.clone()).collect::<Vec<_>>();
        assert_eq!(
            (names(&info.inputs), names(&info.outputs)),
            (vec!["latents".to_owned()], vec!["images".to_owned(), "features".to_owned()])
        );
        // Two scales and two outputs. The scale of `other` is removed with its factor. The equal factors of the two
        // graphs do not conflict.
        assert_eq!((info.nodes, info.parameters), (4, 2));
        for (second, images) in [("wide.onnx", "images"), ("b.onnx", "nothing"), ("b.onnx", "other")] {
            assert!(chain(&path("a.onnx"), &path(second), images).is_err(), "{second} {images}");
        }
    }

    /// [`written`] would lose parts of both: weights in a side file, and fields that another program may have written.
    #[test]
    fn weights_in_side_files_and_foreign_graphs_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        write_scaled(&path("a.onnx"), "latents", &[("images", 2.0)], 3);
        let mut g = GraphBuilder::new("g");
        let x = g.input("images", ElementType::F32, &[Dim::Batch, Dim::Known(3)]).unwrap();
        let w = g.constant("w", &[128, 3], vec![0.5; 384]).unwrap();
        let y = g.linear(&x, &w, None).unwrap();
        g.output("features", &y).unwrap();
        let mut model = g.finish().unwrap();
        write::write_splitting(&model, &path("split.onnx"), 0).unwrap();
        model.proto.producer_name = "pytorch".to_owned();
        write::write(&model, &path("foreign.onnx")).unwrap();
        for (second, text) in [
            ("split.onnx", "split.onnx: w: expected weights in the file itself, found a side file"),
            ("foreign.onnx", "foreign.onnx: producer: expected d2o, found `pytorch`"),
        ] {
            for (head, tail) in [("a.onnx", second), (second, "a.onnx")] {
                let error = chain(&path(head), &path(tail), "images").unwrap_err().to_string();
                assert!(error.ends_with(text), "{head}, {tail}: {error}");
            }
        }
    }
}
