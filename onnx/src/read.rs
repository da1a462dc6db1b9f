//! What a model file says about itself.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use fs_err as fs;
use prost::Message as _;

use crate::error::{Error, Result};
use crate::graph::{Dim, ElementType, show};
use crate::proto::{DimensionValue, GraphProto, ModelProto, ValueInfoProto};

/// An input or output.
#[derive(Debug, Clone, PartialEq)]
pub struct ValueInfo {
    /// Its name.
    pub name: String,
    /// Type of its elements.
    pub element: ElementType,
    /// Its shape; every symbolic axis counts as the batch.
    pub dims: Vec<Dim>,
}

impl ValueInfo {
    /// `latents f32 [N, 3, 32, 32]`.
    #[must_use]
    pub fn describe(&self) -> String {
        format!("{} {} {}", self.name, self.element, show(&self.dims))
    }
}

/// Summary of a model.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelInfo {
    /// Inputs that are no weights, in order.
    pub inputs: Vec<ValueInfo>,
    /// Outputs, in order.
    pub outputs: Vec<ValueInfo>,
    /// The model's metadata.
    pub metadata: BTreeMap<String, String>,
    /// Opset of the default domain.
    pub opset: i64,
    /// Number of nodes.
    pub nodes: usize,
    /// Number of scalars in weights.
    pub parameters: u64,
    /// Whether there may be convolutions that minimal filtering suits: of one group and stride 1, with more than one tap.
    pub(crate) filterable: bool,
}

impl ModelInfo {
    /// Reads the model at `path`.
    ///
    /// # Errors
    /// `Format` if it is no ONNX model; `Io`.
    pub fn open(path: &Path) -> Result<Self> {
        Self::parse(&fs::read(path)?, path)
    }

    /// Reads a model from memory; `file` appears in errors.
    ///
    /// # Errors
    /// `Format` if it is no ONNX model.
    pub fn parse(bytes: &[u8], file: &Path) -> Result<Self> {
        let bad = |place: &str, expected: &str, found: String| Error::Format {
            file: file.to_owned(),
            place: place.to_owned(),
            expected: expected.to_owned(),
            found,
        };
        let model = ModelProto::decode(bytes).map_err(|e| bad("ONNX message", "an ONNX model", e.to_string()))?;
        let graph = model.graph.ok_or_else(|| bad("ONNX message", "a graph", "none".to_owned()))?;
        if graph.output.is_empty() {
            return Err(bad("graph", "outputs", "none".to_owned()));
        }
        let value = |v: &ValueInfoProto| -> Result<ValueInfo> {
            let tensor = v.r#type.as_ref().and_then(|t| t.tensor_type.as_ref());
            let tensor = tensor.ok_or_else(|| bad(&v.name, "a tensor", "another type".to_owned()))?;
            let element = ElementType::from_code(tensor.elem_type).ok_or_else(|| {
                bad(&v.name, "f16, f32, f64, u8, i32, i64 or bool", format!("type {}", tensor.elem_type))
            })?;
            let dims = tensor.shape.iter().flat_map(|s| &s.dim).map(|d| match d.value {
                Some(DimensionValue::DimValue(n)) => usize::try_from(n).map_or(Dim::Batch, Dim::Known),
                _ => Dim::Batch,
            });
            Ok(ValueInfo { name: v.name.clone(), element, dims: dims.collect() })
        };
        let is_weight = |v: &&ValueInfoProto| !graph.initializer.iter().any(|t| t.name == v.name);
        let size = |d: &i64| u64::try_from(*d).unwrap_or(0);
        Ok(Self {
            inputs: graph.input.iter().filter(is_weight).map(value).collect::<Result<_>>()?,
            outputs: graph.output.iter().map(value).collect::<Result<_>>()?,
            metadata: model.metadata_props.into_iter().map(|e| (e.key, e.value)).collect(),
            opset: model.opset_import.iter().find(|o| o.domain.is_empty()).map_or(0, |o| o.version),
            nodes: graph.node.len(),
            parameters: graph.initializer.iter().map(|t| t.dims.iter().map(size).product::<u64>()).sum(),
            filterable: filterable(&graph),
        })
    }

    /// Output `name`.
    #[must_use]
    pub fn output(&self, name: &str) -> Option<&ValueInfo> {
        self.outputs.iter().find(|v| v.name == name)
    }

    /// Input `name`.
    #[must_use]
    pub fn input(&self, name: &str) -> Option<&ValueInfo> {
        self.inputs.iter().find(|v| v.name == name)
    }
}

fn filterable(graph: &GraphProto) -> bool {
    let taps: HashMap<&str, i64> =
        graph.initializer.iter().map(|t| (t.name.as_str(), t.dims.iter().skip(2).product())).collect();
    graph.node.iter().filter(|node| node.op_type == "Conv").any(|node| {
        let of = |name: &str| node.attribute.iter().find(|a| a.name == name);
        let dense = of("group").is_none_or(|a| a.i == 1);
        let steps = of("strides").is_some_and(|a| a.ints.iter().any(|v| *v != 1));
        // Weights that are not in sight may have any number of taps.
        let taps = node.input.get(1).and_then(|name| taps.get(name.as_str()));
        dense && !steps && taps.is_none_or(|taps| *taps > 1)
    })
}

/// The whole model at `path`, which d2o wrote with its weights inside.
pub(crate) fn written(path: &Path) -> Result<ModelProto> {
    let bad = |place: &str, expected: &str, found: String| Error::Format {
        file: path.to_owned(),
        place: place.to_owned(),
        expected: expected.to_owned(),
        found,
    };
    let model = ModelProto::decode(fs::read(path)?.as_slice())
        .map_err(|e| bad("ONNX message", "an ONNX model", e.to_string()))?;
    if model.producer_name != "d2o" {
        // Other writers may use fields that would be lost.
        return Err(bad("producer", "d2o", format!("`{}`", model.producer_name)));
    }
    let graph = model.graph.as_ref().ok_or_else(|| bad("ONNX message", "a graph", "none".to_owned()))?;
    if let Some(outside) = graph.initializer.iter().find(|t| !t.external_data.is_empty()) {
        return Err(bad(&outside.name, "weights in the file itself", "a side file".to_owned()));
    }
    Ok(model)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::GraphBuilder;

    #[test]
    fn other_files_are_refused_by_name() {
        let mut g = GraphBuilder::new("g");
        let x = g.input("x", ElementType::F32, &[Dim::Batch, Dim::Known(2)]).unwrap();
        let y = g.scale(&x, 3.0).unwrap();
        g.output("y", &y).unwrap();
        let bytes = crate::write::to_bytes(&g.finish().unwrap()).unwrap();
        for bad in [&b""[..], b"PK\x03\x04 a zip", b"{\"json\": 1}", &bytes[..bytes.len() / 2]] {
            let text = ModelInfo::parse(bad, "x.onnx".as_ref()).unwrap_err().to_string();
            assert!(text.starts_with("x.onnx: "), "{text}");
        }
        let info = ModelInfo::parse(&bytes, "x.onnx".as_ref()).unwrap();
        assert_eq!(info.inputs[0].describe(), "x f32 [N, 2]");
        assert_eq!((info.nodes, info.parameters, info.opset), (2, 1, crate::opset::OPSET));
    }
}
