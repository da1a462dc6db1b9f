//! The JSON result of `d2o verify`.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Deserializer, Serialize};

/// Comparison of runtimes, graphs or precisions.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Comparison {
    /// The model file.
    pub model: String,
    /// The runtime that the others are compared with.
    pub reference: String,
    /// Number of inputs.
    pub samples: usize,
    /// Largest accepted difference, relative to the largest reference value.
    pub tolerance: f64,
    /// Differences of every output of every other side.
    pub outputs: Vec<OutputDifference>,
    /// Effect of the differences on a Fréchet distance.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub metrics: Vec<MetricChange>,
    /// The first diverging node of each side that has one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub divergence: Vec<Divergence>,
    /// Number of nodes by ONNX Runtime provider and operation.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub nodes: Vec<NodeCount>,
    /// The slowest nodes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub profile: Vec<NodeTime>,
    /// The precision study.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub precisions: Vec<Precision>,
    /// Seconds of each side, without the first batch, which includes planning; 0 if there is only one batch.
    #[serde(default)]
    pub seconds: BTreeMap<String, f64>,
    /// Whether all outputs agree.
    pub agree: bool,
}

/// Difference of one output between one side and the reference.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct OutputDifference {
    /// The runtime, with the graph of `--against`; in the precision study, the precision.
    pub runtime: String,
    /// Name of the output.
    pub name: String,
    /// Largest absolute difference.
    #[serde(deserialize_with = "finite_or_not")]
    pub max_abs: f64,
    /// `max_abs` divided by the largest absolute value of the reference; 0 if nothing differs, otherwise infinite if
    /// all reference values are 0.
    #[serde(deserialize_with = "finite_or_not")]
    pub max_rel: f64,
    /// Signal-to-noise ratio, dB; absent if nothing differs.
    #[serde(default)]
    pub snr_db: Option<f64>,
    /// Histogram of the differences in units in the last place: number of values with 0, 1, 2 to 3, 4 to 7, …; the last
    /// bin includes all larger ones. Empty for u8 outputs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ulps: Vec<u64>,
    /// Share of 8-bit values that differ, 0 to 1, if the output is an image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pixels_changed: Option<f64>,
    /// Number of values that are not finite on either side.
    #[serde(default)]
    pub not_finite: usize,
    /// Whether all values are finite and the difference is within the tolerance. For `images_u8`, one level in at most
    /// 0.1 % of the values is accepted as well.
    pub agrees: bool,
}

/// Effect of the differences on a Fréchet distance.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MetricChange {
    /// The runtime, with the graph of `--against`; in the precision study, the precision.
    pub runtime: String,
    /// The feature network.
    pub extractor: String,
    /// Fréchet distance between the images of the reference runtime and `--ref`, if it is given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reference_distance: Option<f64>,
    /// Fréchet distance between the images of this side and `--ref`, or the images of the reference runtime without
    /// `--ref`.
    pub distance: f64,
}

/// The first node, in graph order, with an output that differs by more than the tolerance.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Divergence {
    /// The runtime, with the graph of `--against`; in the precision study, the precision.
    pub runtime: String,
    /// Name of the node.
    pub node: String,
    /// Layer of the node: the node name without its last component, separated by dots.
    pub scope: String,
    /// ONNX operator.
    pub op: String,
    /// Names of the weights that the node reads.
    pub weights: Vec<String>,
    /// Largest absolute difference of the output; absent if a side cannot compute it or the shapes differ.
    pub max_abs: Option<f64>,
    /// `max_abs` divided by the largest absolute value of the reference.
    pub max_rel: Option<f64>,
    /// Number of nodes that were compared before it and agree.
    pub agreeing: usize,
    /// File with the tensors of the node, if `--dump` was given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dump: Option<PathBuf>,
}

/// Number of nodes of an operation on a provider, before fusions inside the provider.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeCount {
    /// Name of the provider in ONNX Runtime.
    pub provider: String,
    /// The operation.
    pub op: String,
    /// Number of nodes.
    pub count: usize,
}

/// Time of a node on ONNX Runtime.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NodeTime {
    /// Name of the node after the graph optimisations of ONNX Runtime.
    pub node: String,
    /// The operation.
    pub op: String,
    /// Milliseconds over all batches.
    pub milliseconds: f64,
    /// Share of the time of all nodes, 0 to 1.
    pub share: f64,
}

/// A row of the precision study.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Precision {
    /// fp32, tf32, fp16 or bf16.
    pub precision: String,
    /// Reason if this precision was not run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub skipped: Option<String>,
    /// Runtime.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub runtime: Option<String>,
    /// Inputs per second, without the first batch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub speed: Option<f64>,
}

/// Reads null as infinity, which JSON cannot represent.
fn finite_or_not<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or(f64::INFINITY))
}
