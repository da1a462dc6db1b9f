//! Two written graphs as one.

use std::collections::{HashMap, HashSet};
use std::path::Path;

use crate::check;
use crate::error::{Error, Result};
use crate::graph::Model;
use crate::proto::{GraphProto, StringStringEntryProto, ValueInfoProto};
use crate::read::written;

/// Metadata `kind` of a joined graph.
pub const KIND: &str = "fused";

/// Feeds `first`'s output `images` into `second`'s only input of that name. The result has `first`'s inputs, and as outputs `images` and those of
/// `second`; names inside `second` begin with `features/`.
///
/// # Errors
/// `Format` if a file is no model of d2o's or keeps weights in a side file; `Graph` if they do not fit.
pub fn chain(first: &Path, second: &Path, images: &str) -> Result<Model> {
    let (mut model, tail) = (written(first)?, written(second)?);
    let unfit = |what: String| Error::Graph { graph: second.display().to_string(), what };
    if model.opset_import != tail.opset_import {
        return Err(unfit(format!("its opset is not that of `{}`", first.display())));
    }
    let (Some(mut head), Some(tail)) = (model.graph.take(), tail.graph) else {
        return Err(unfit("a graph is missing".to_owned()));
    };
    let Some(given) = head.output.iter().find(|o| o.name == images).cloned() else {
        return Err(unfit(format!("`{}` has no output `{images}` for it", first.display())));
    };
    let [taken] = tail.input.as_slice() else {
        return Err(unfit(format!("it has {} inputs instead of one", tail.input.len())));
    };
    if taken.name != images || !fits(&given, taken) {
        return Err(unfit(format!("it does not take the `{images}` of `{}`", first.display())));
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
    let entry = |key: &str, value: &str| StringStringEntryProto { key: key.to_owned(), value: value.to_owned() };
    model.metadata_props = vec![entry("d2o_version", env!("CARGO_PKG_VERSION")), entry("kind", KIND)];
    check::check(&model)?;
    Ok(Model { proto: model, conv_heights: HashMap::new() })
}

/// Whether what is `given` may be `taken`: axes that both know are equal.
fn fits(given: &ValueInfoProto, taken: &ValueInfoProto) -> bool {
    use crate::proto::DimensionValue::DimValue;
    let tensor = |v: &ValueInfoProto| v.r#type.as_ref().and_then(|t| t.tensor_type.clone());
    let (Some(a), Some(b)) = (tensor(given), tensor(taken)) else { return false };
    let dims = |t: &crate::proto::TensorTypeProto| t.shape.iter().flat_map(|s| s.dim.clone()).collect::<Vec<_>>();
    let (x, y) = (dims(&a), dims(&b));
    a.elem_type == b.elem_type
        && x.len() == y.len()
        && x.iter().zip(&y).all(|(p, q)| match (&p.value, &q.value) {
            (Some(DimValue(m)), Some(DimValue(n))) => m == n,
            _ => true,
        })
}

/// Leaves out nodes and weights that no output needs.
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
        // Two scales and two outputs; the third scale is gone with its weight, and equal weights of the two parts do not clash.
        assert_eq!((info.nodes, info.parameters), (4, 2));
        for (second, images) in [("wide.onnx", "images"), ("b.onnx", "nothing"), ("b.onnx", "other")] {
            assert!(chain(&path("a.onnx"), &path(second), images).is_err(), "{second} {images}");
        }
    }

    /// Neither is read in whole by [`written`]: weights outside the file, and fields that another program may have written.
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
