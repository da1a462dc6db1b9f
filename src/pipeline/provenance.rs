//! Everything besides the images that features depend on. It is recorded in every file of features and compared
//! whenever two sets are compared.

use std::collections::BTreeMap;

use anyhow::Context as _;
use d2o_evaluations::preprocess::{Preprocessing, Resampling, Scaling};
use d2o_evaluations::protocol::{INCEPTION, Protocol};
use d2o_evaluations::result::{Deviation, DeviationKind, Extractor};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::network::{CLIP, Role};

/// A network as it was applied to a set of images.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkRecord {
    /// Name of the architecture.
    pub name: String,
    /// Path of the file.
    pub path: String,
    /// Hash of the file.
    pub sha256: String,
    /// Hash of the weights, independent of layout and export options.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weights_digest: Option<String>,
    /// The published file the weights come from, if they are verified.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verified: Option<String>,
    /// Output that holds the features.
    pub output: String,
    /// Number of features.
    pub dims: usize,
    /// Height and width at which the network processes images, pixels.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub input_size: Option<usize>,
    /// Type of the weights, `fp32` or `fp16`.
    pub precision: String,
    /// Preprocessing of images before the network.
    pub preprocessing: Preprocessing,
    /// Name of the runtime.
    pub runtime: String,
}

/// Networks by role name: `features`, `clip`, `manifold`.
pub type Records = BTreeMap<String, NetworkRecord>;

/// Reads the networks described in a feature file or reference.
///
/// # Errors
/// If a description is not a [`NetworkRecord`].
pub fn records(networks: &BTreeMap<String, Value>) -> anyhow::Result<Records> {
    let read = |(role, value): (&String, &Value)| {
        let record = serde_json::from_value(value.clone()).with_context(|| format!("description of network `{role}`"));
        Ok((role.clone(), record?))
    };
    networks.iter().map(read).collect()
}

impl NetworkRecord {
    /// Description for a result.
    #[must_use]
    pub fn extractor(&self) -> Extractor {
        Extractor {
            name: self.name.clone(),
            path: self.path.clone(),
            sha256: self.sha256.clone(),
            dims: self.dims,
            weights_digest: self.weights_digest.clone(),
            verified: self.verified.clone(),
            preprocessing: Some(self.preprocessing.clone()),
        }
    }

    /// Whether both are the same network with the same computation, independent of path, export options and
    /// preprocessing.
    #[must_use]
    pub fn is_same_network(&self, other: &Self) -> bool {
        let weights = match (&self.weights_digest, &other.weights_digest) {
            (Some(a), Some(b)) => a == b,
            _ => self.sha256 == other.sha256,
        };
        let sizes = self.input_size.is_none() || other.input_size.is_none() || self.input_size == other.input_size;
        weights && sizes && self.output == other.output && self.precision == other.precision
    }

    /// Name, weights and precision, for messages.
    fn title(&self) -> String {
        let weights = match (&self.verified, &self.weights_digest) {
            (Some(file), _) => format!(", weights of {file}"),
            (None, Some(digest)) => format!(", weights {}", digest.get(..12).unwrap_or(digest)),
            (None, None) => format!(", file {}", self.sha256.get(..12).unwrap_or(&self.sha256)),
        };
        let precision = if self.precision == "fp32" { "" } else { ", fp16" };
        format!("{}{weights}{precision}", self.name)
    }
}

/// What is known about how the features of a set were made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// Computed by this network.
    Recorded(Box<NetworkRecord>),
    /// Inferred from the layout of the file: computed by the original network of a published tool.
    Layout {
        /// Name of the tool.
        tool: &'static str,
        /// Name of the network.
        network: &'static str,
        /// Preprocessing of the tool.
        preprocessing: Preprocessing,
    },
    /// Nothing is known.
    Unknown,
}

/// Compares how features of `role` were made: those of the samples by `samples`, those of the reference as in
/// `reference`. `path` is the reference, for messages.
#[must_use]
pub fn between(role: Role, samples: &NetworkRecord, reference: &Origin, path: &str) -> Vec<Deviation> {
    let subject =
        |what: &str| format!("`{path}`{}", if what.is_empty() { String::new() } else { format!(" ({what})") });
    let what = if role == Role::Features { "" } else { role.features() };
    let mut found = Vec::new();
    let mut differs = |kind, found_text: String, expected: String| {
        found.push(Deviation { kind, subject: subject(what), found: found_text, expected });
    };
    match reference {
        Origin::Recorded(record) => {
            if !record.is_same_network(samples) {
                differs(DeviationKind::Extractor, record.title(), format!("{}, as the samples", samples.title()));
            }
            if !record.preprocessing.agrees_with(&samples.preprocessing) {
                let ours = format!("{}, as the samples", samples.preprocessing.describe());
                differs(DeviationKind::Preprocessing, record.preprocessing.describe(), ours);
            }
        }
        Origin::Layout { tool, network, preprocessing } => {
            if *network != samples.name {
                let theirs = format!("{network} (layout of {tool})");
                differs(DeviationKind::Extractor, theirs, format!("{}, as the samples", samples.title()));
            }
            if !preprocessing.agrees_with(&samples.preprocessing) {
                let theirs = format!("{} (layout of {tool})", preprocessing.describe());
                let ours = format!("{}, as the samples", samples.preprocessing.describe());
                differs(DeviationKind::Preprocessing, theirs, ours);
            }
        }
        Origin::Unknown => {
            let expected = format!("{}, as the samples", samples.title());
            differs(DeviationKind::Provenance, "a file that does not say which network made it".to_owned(), expected);
        }
    }
    found
}

/// Differences of the features of `network`, opened for `role`, from `protocol`. `judged_as` is the role that the
/// protocol compares it with; it differs from `role` if precision and recall use the features of the main network.
#[must_use]
pub fn against_protocol(role: Role, judged_as: Role, network: &NetworkRecord, protocol: &Protocol) -> Vec<Deviation> {
    let pr = protocol.manifold_features;
    let (own, wanted, subject) = match judged_as {
        Role::Features => (Some(INCEPTION), INCEPTION, "samples"),
        Role::Clip => (Some(CLIP), CLIP, "CLIP-FID"),
        Role::Manifold => (pr.extractor(), pr.describe(), "precision and recall"),
    };
    let mut found = Vec::new();
    let mut differs = |kind, text: String, expected: String| {
        found.push(Deviation { kind, subject: subject.to_owned(), found: text, expected });
    };
    let is_own = own == Some(network.name.as_str());
    if !is_own {
        differs(DeviationKind::Extractor, network.name.clone(), wanted.to_owned());
    }
    if network.runtime.ends_with("-tf32") {
        differs(DeviationKind::Precision, "products in TF32".to_owned(), "f32".to_owned());
    }
    if network.precision != "fp32" {
        differs(DeviationKind::Precision, format!("weights and products in {}", network.precision), "f32".to_owned());
    }
    // A protocol prescribes the preprocessing of its own network. For other networks, it applies only to preprocessing
    // outside the graph.
    let expected = expected_preprocessing(role, &network.name, protocol);
    if (is_own || !network.preprocessing.in_graph) && !network.preprocessing.agrees_with(&expected) {
        let expected = expected.describe();
        differs(DeviationKind::Preprocessing, network.preprocessing.describe(), expected);
    }
    found
}

/// Preprocessing under `protocol` before the network `name`.
#[must_use]
pub fn expected_preprocessing(role: Role, name: &str, protocol: &Protocol) -> Preprocessing {
    let resampling = if role == Role::Clip { Resampling::ClipCrop } else { Resampling::Resize(protocol.resize) };
    let scaling = (name == INCEPTION).then_some(protocol.scaling);
    Preprocessing { resampling, scaling, in_graph: false }
}

/// Resampling inside a graph, parsed from its metadata.
#[must_use]
pub fn resampling_in_graph(text: &str) -> Resampling {
    use d2o_evaluations::preprocess::Resize;
    if text.contains("asymmetric") {
        Resampling::Resize(Resize::TensorFlow)
    } else if text.contains("half-pixel") {
        Resampling::Resize(Resize::Torch)
    } else {
        Resampling::Other(text.to_owned())
    }
}

/// Inception normalisation in exported graphs.
pub const IN_GRAPH: Scaling = Scaling::TensorFlow;

#[cfg(test)]
mod tests {
    use d2o_evaluations::preprocess::Resize;

    use super::*;

    fn network(name: &str, resize: Resize) -> NetworkRecord {
        NetworkRecord {
            name: name.to_owned(),
            path: String::new(),
            sha256: name.to_owned(),
            weights_digest: None,
            verified: None,
            output: "features".to_owned(),
            dims: 2048,
            input_size: Some(299),
            precision: "fp32".to_owned(),
            preprocessing: Preprocessing {
                resampling: Resampling::Resize(resize),
                scaling: (name == INCEPTION).then_some(Scaling::TensorFlow),
                in_graph: false,
            },
            runtime: "ort-cpu".to_owned(),
        }
    }

    fn kinds(found: &[Deviation]) -> Vec<DeviationKind> {
        found.iter().map(|d| d.kind).collect()
    }

    #[test]
    fn references_of_another_network_or_preprocessing_differ() {
        let ours = network(INCEPTION, Resize::TensorFlow);
        let of = |record: NetworkRecord| between(Role::Features, &ours, &Origin::Recorded(Box::new(record)), "r.npz");
        assert!(of(ours.clone()).is_empty());
        assert_eq!(kinds(&of(network(INCEPTION, Resize::PilBicubic))), [DeviationKind::Preprocessing]);
        let both = of(network("lite0", Resize::PilBicubic));
        assert_eq!(kinds(&both), [DeviationKind::Extractor, DeviationKind::Preprocessing]);
        // It does not matter whether the host or the graph resizes.
        let mut in_graph = ours.clone();
        in_graph.preprocessing.in_graph = true;
        assert!(of(in_graph).is_empty());
        // The file does not matter if the weights are known.
        let digest = |sha256: &str, digest: &str| NetworkRecord {
            sha256: sha256.to_owned(),
            weights_digest: Some(digest.to_owned()),
            ..ours.clone()
        };
        let ours = digest("a", "w");
        let of = |record: NetworkRecord| between(Role::Features, &ours, &Origin::Recorded(Box::new(record)), "r.npz");
        assert!(of(digest("b", "w")).is_empty());
        assert_eq!(kinds(&of(digest("a", "v"))), [DeviationKind::Extractor]);
        let half = NetworkRecord { precision: "fp16".to_owned(), ..ours.clone() };
        assert_eq!(kinds(&of(half)), [DeviationKind::Extractor]);
        assert_eq!(kinds(&between(Role::Features, &ours, &Origin::Unknown, "r")), [DeviationKind::Provenance]);
    }

    #[test]
    fn layouts_of_tools_imply_their_preprocessing() {
        let ours = network(INCEPTION, Resize::TensorFlow);
        let layout = |resize, scaling| Origin::Layout {
            tool: "x",
            network: INCEPTION,
            preprocessing: Preprocessing {
                resampling: Resampling::Resize(resize),
                scaling: Some(scaling),
                in_graph: false,
            },
        };
        let of = |origin: &Origin, ours: &NetworkRecord| kinds(&between(Role::Features, ours, origin, "r.npz"));
        let edm = layout(Resize::TensorFlow, Scaling::TensorFlow);
        assert!(of(&edm, &ours).is_empty());
        assert_eq!(of(&layout(Resize::Torch, Scaling::Unit), &ours), [DeviationKind::Preprocessing]);
        assert_eq!(of(&edm, &network("lite0", Resize::TensorFlow))[0], DeviationKind::Extractor);
    }

    #[test]
    fn differences_from_a_protocol_depend_on_what_the_network_is_for() {
        let found = |role, judged_as, network: &NetworkRecord, protocol: &str| {
            let protocol = Protocol::named(protocol).unwrap();
            against_protocol(role, judged_as, network, protocol)
        };
        let vgg = network("vgg16", Resize::TensorFlow);
        assert!(found(Role::Manifold, Role::Manifold, &vgg, "torch-fidelity").is_empty());
        let text = found(Role::Manifold, Role::Manifold, &vgg, "stylegan3")[0].to_string();
        assert_eq!(text, "extractor of precision and recall: vgg16 instead of NVIDIA's VGG16");
        let inception = network(INCEPTION, Resize::TensorFlow);
        assert!(found(Role::Features, Role::Features, &inception, "torch-fidelity").is_empty());
        let clean = found(Role::Features, Role::Features, &inception, "clean");
        assert_eq!(kinds(&clean), [DeviationKind::Preprocessing]);
        let both = [DeviationKind::Extractor, DeviationKind::Preprocessing];
        assert_eq!(kinds(&found(Role::Features, Role::Features, &vgg, "clean")), both);
        let mut in_graph = vgg;
        in_graph.preprocessing.in_graph = true;
        assert_eq!(kinds(&found(Role::Features, Role::Features, &in_graph, "clean")), [DeviationKind::Extractor]);
        let tf32 = NetworkRecord { runtime: "ort-cuda-tf32".to_owned(), ..inception };
        assert_eq!(kinds(&found(Role::Features, Role::Features, &tf32, "edm")), [DeviationKind::Precision]);
    }
}
