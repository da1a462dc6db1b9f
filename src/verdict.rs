//! The result of `d2o verify`, as it is written and read.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Deserializer, Serialize};

/// The verdict on a model.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Comparison {
    /// The model file.
    pub model: String,
    /// The runtime others are compared with.
    pub reference: String,
    /// Number of inputs.
    pub samples: usize,
    /// Largest difference allowed, relative to the largest reference value.
    pub tolerance: f64,
    /// Every output of every other side.
    pub outputs: Vec<OutputDifference>,
    /// What the differences do to a metric.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub metrics: Vec<MetricChange>,
    /// The first diverging node of each side that has one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub divergence: Vec<Divergence>,
    /// How many nodes of each operation which provider of ONNX Runtime computes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub nodes: Vec<NodeCount>,
    /// The slowest nodes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub profile: Vec<NodeTime>,
    /// The precision study.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub precisions: Vec<Precision>,
    /// Seconds of each side for all inputs, without the first run (which plans) if there are several.
    #[serde(default)]
    pub seconds: BTreeMap<String, f64>,
    /// Whether all agree.
    pub agree: bool,
}

/// How far one output of one side lies from the reference's.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct OutputDifference {
    /// The runtime, and the graph if it is another one.
    pub runtime: String,
    /// The output.
    pub name: String,
    /// Largest absolute difference.
    #[serde(deserialize_with = "finite_or_not")]
    pub max_abs: f64,
    /// That over the largest absolute value of the reference; infinite if all of these are 0.
    #[serde(deserialize_with = "finite_or_not")]
    pub max_rel: f64,
    /// Signal-to-noise ratio, dB; absent if nothing differs.
    #[serde(default)]
    pub snr_db: Option<f64>,
    /// Values by their difference in units in the last place: 0, 1, 2 to 3, 4 to 7, …; the last bin takes the rest.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ulps: Vec<u64>,
    /// Share of 8-bit pixels that differ, if the output is an image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pixels_changed: Option<f64>,
    /// Values that are not finite, in either.
    #[serde(default)]
    pub not_finite: usize,
    /// Whether it is within the tolerance.
    pub agrees: bool,
}

/// What differences do to a metric.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MetricChange {
    /// The runtime, and the graph if it is another one.
    pub runtime: String,
    /// The feature network.
    pub extractor: String,
    /// Fréchet distance of the reference runtime's images to `--ref`, if it is given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reference_distance: Option<f64>,
    /// Fréchet distance of this side's images to `--ref`, or to the reference runtime's images.
    pub distance: f64,
}

/// The first node in the graph's order whose outputs differ.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Divergence {
    /// The runtime, and the graph if it is another one.
    pub runtime: String,
    /// The node.
    pub node: String,
    /// The layer it belongs to.
    pub scope: String,
    /// ONNX's name of the operation.
    pub op: String,
    /// Its weights.
    pub weights: Vec<String>,
    /// Largest absolute difference of its output; absent if one side cannot compute it or gives another shape.
    pub max_abs: Option<f64>,
    /// That over the largest absolute value of the reference.
    pub max_rel: Option<f64>,
    /// Nodes compared before it, which agree.
    pub agreeing: usize,
    /// Where its tensors were written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dump: Option<PathBuf>,
}

/// Nodes of an operation that a provider computes, before fusions inside the provider.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeCount {
    /// ONNX Runtime's name of the provider.
    pub provider: String,
    /// The operation.
    pub op: String,
    /// Number of nodes.
    pub count: usize,
}

/// Time of a node on ONNX Runtime.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NodeTime {
    /// The node, as ONNX Runtime calls it after its own rewriting.
    pub node: String,
    /// The operation.
    pub op: String,
    /// Milliseconds over all batches.
    pub milliseconds: f64,
    /// Share of the time of all nodes.
    pub share: f64,
}

/// A line of the precision study.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Precision {
    /// fp32, tf32, fp16 or bf16.
    pub precision: String,
    /// Why it was not run, if so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub skipped: Option<String>,
    /// Where it ran.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub runtime: Option<String>,
    /// Inputs a second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub speed: Option<f64>,
}

/// JSON has no infinity: it stands as null.
fn finite_or_not<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or(f64::INFINITY))
}
