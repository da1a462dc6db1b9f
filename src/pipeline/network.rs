//! Exported feature extractors: identity, inputs and outputs.

use std::path::Path;

use anyhow::Context as _;
use d2o_converters::published::WeightsState;
use d2o_evaluations::error::first_non_finite_row;
use d2o_evaluations::preprocess::{Preprocessing, Resampling, Resize, Scaling};
use d2o_evaluations::protocol::{ClipFeatures, INCEPTION, Protocol};
use d2o_onnx::graph::Dim;
use d2o_onnx::metadata::Metadata;
use d2o_onnx::read::{ModelInfo, ValueInfo};
use d2o_refs::batch::{ImageDims, container_sha256};
use d2o_runtime::{Session, SessionValue, Tensor};
use ndarray::{Array2, ArrayView2};

use super::preprocess::Preparation;
use super::provenance::{IN_GRAPH, NetworkRecord, resampling_in_graph};
use crate::engine::{Engine, OnCpu};
use crate::error::with_hint;

/// Input names: bytes, which the graph resizes, or floats 0..255 at the input size of the network, which d2o resizes.
const INPUTS: [&str; 2] = ["images_u8", "images_f32"];
/// Output names of the features.
const FEATURES: [&str; 2] = ["pool3", "features"];
/// Name of the CLIP-FID network.
pub const CLIP: &str = "clip-vit-b-32";
/// Number of classes of the original Inception network; torchvision Inception has 1000.
const CLASSES: usize = 1008;

/// Purpose of a network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// Features of most metrics, logits of the Inception Score, spatial features of sFID.
    Features,
    /// Features of CLIP-FID.
    Clip,
    /// Features of precision, recall, density and coverage, if they differ from those of the other metrics.
    Manifold,
}

impl Role {
    /// All roles.
    pub const ALL: [Self; 3] = [Self::Features, Self::Clip, Self::Manifold];

    /// Role of the network that computes `matrix` of a feature file.
    #[must_use]
    pub fn of(matrix: &str) -> Self {
        match matrix {
            "clip" => Self::Clip,
            "manifold" => Self::Manifold,
            _ => Self::Features,
        }
    }

    /// Name in results and feature files.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Features => "features",
            Self::Clip => "clip",
            Self::Manifold => "manifold",
        }
    }

    /// Name of its features, for messages.
    #[must_use]
    pub fn features(self) -> &'static str {
        match self {
            Self::Features => "features",
            Self::Clip => "CLIP features",
            Self::Manifold => "features for precision and recall",
        }
    }
}

/// The part of a protocol that determines the inputs and outputs of networks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InputRule {
    /// Resampling to the input size of a network.
    pub resize: Resize,
    /// Normalisation before Inception.
    pub scaling: Scaling,
    /// Features of CLIP-FID.
    pub clip: ClipFeatures,
}

impl From<&Protocol> for InputRule {
    fn from(protocol: &Protocol) -> Self {
        Self { resize: protocol.resize, scaling: protocol.scaling, clip: protocol.clip }
    }
}

/// Most features of an image. Their covariance takes 512 MiB.
const MAX_FEATURES: usize = 1 << 13;
/// Most classes of an image.
const MAX_CLASSES: usize = 1 << 15;

/// Number of features of `model`; `None` if it has no feature output.
#[must_use]
pub fn feature_dims(model: &ModelInfo) -> Option<usize> {
    FEATURES.iter().find_map(|n| output_dims(model, n))
}

/// Width of the output `name` of `model`; `None` if there is no such output of known width.
#[must_use]
pub fn output_dims(model: &ModelInfo, name: &str) -> Option<usize> {
    match model.output(name)?.dims.as_slice() {
        &[_, Dim::Known(dims)] => Some(dims),
        _ => None,
    }
}

/// A feature network without its sessions.
#[derive(Debug, Clone)]
pub struct Spec {
    /// Role of the network.
    pub role: Role,
    /// Name of the architecture.
    pub name: String,
    /// Path of the file.
    pub path: String,
    sha256: String,
    model: ModelInfo,
    metadata: Metadata,
    runtime: String,
    input: &'static str,
    features: &'static str,
}

/// Sessions of one graph, one per device.
pub type Sessions = [Box<dyn Session>];

/// An open feature network, with one session per device.
pub struct Network {
    /// Description of the network.
    pub spec: Spec,
    sessions: Vec<Box<dyn Session>>,
}

impl std::fmt::Debug for Network {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Network").field("spec", &self.spec).finish_non_exhaustive()
    }
}

impl Network {
    /// Opens the graph at `path` for `role`.
    ///
    /// # Errors
    /// If the file is not a feature network, or the runtime fails.
    pub fn open(role: Role, path: &Path, engine: &Engine<'_>) -> anyhow::Result<Self> {
        // Checked before a runtime starts.
        Ends::of(path, &ModelInfo::open(path)?)?;
        let sessions = engine.open(path, OnCpu::Fastest)?;
        Self::with_sessions(role, path, sessions)
    }

    /// The network at `path`, with open `sessions` of it.
    ///
    /// # Errors
    /// If the file is not a feature network, or `sessions` is empty.
    pub fn with_sessions(role: Role, path: &Path, sessions: Vec<Box<dyn Session>>) -> anyhow::Result<Self> {
        let session = sessions.first().context("no device")?;
        let spec = Spec::new(role, path, session.model().clone(), session.runtime().to_owned())?;
        Ok(Self { spec, sessions })
    }

    /// The description, and the sessions by device.
    pub fn parts(&mut self) -> (&Spec, &mut Sessions) {
        (&self.spec, &mut self.sessions)
    }
}

/// Name, input and output of a feature network.
struct Ends {
    /// Name of the architecture.
    name: String,
    /// Name of the input.
    input: &'static str,
    /// Name of the output that holds the features.
    features: &'static str,
}

impl Ends {
    /// Reads them from `model`, the graph at `path`.
    ///
    /// # Errors
    /// If the graph is not a feature network, an output is too wide, or it is labelled as Inception with another number
    /// of classes.
    fn of(path: &Path, model: &ModelInfo) -> anyhow::Result<Self> {
        let input = INPUTS.into_iter().find(|n| model.input(n).is_some());
        let features = FEATURES.into_iter().find(|n| output_dims(model, n).is_some());
        let (Some(input), Some(features)) = (input, features) else {
            return Err(with_hint(
                anyhow::anyhow!("`{}` is not a feature extractor", path.display()),
                "export one with `d2o export WEIGHTS --kind features`",
            ));
        };
        for output in &model.outputs {
            let limit = if output.name == "logits" { MAX_CLASSES } else { MAX_FEATURES };
            if let &[_, Dim::Known(width)] = output.dims.as_slice() {
                let (path, name) = (path.display(), &output.name);
                anyhow::ensure!(width <= limit, "`{path}`: `{name}`: expected at most {limit} values, found {width}");
            }
        }
        let described = model.described().with_context(|| format!("cannot use `{}`", path.display()))?;
        let name = described.extractor.unwrap_or_else(|| path.display().to_string());
        if name == INCEPTION
            && let Some(classes) = output_dims(model, "logits")
        {
            anyhow::ensure!(
                classes == CLASSES,
                "`{}` is labelled {INCEPTION} ({CLASSES} classes) but has {classes} classes, like torchvision's Inception",
                path.display()
            );
        }
        Ok(Self { name, input, features })
    }
}

impl Spec {
    fn new(role: Role, path: &Path, model: ModelInfo, runtime: String) -> anyhow::Result<Self> {
        let Ends { name, input, features } = Ends::of(path, &model)?;
        let (sha256, metadata) = (container_sha256(path)?, model.described()?);
        Ok(Self { role, name, path: path.display().to_string(), sha256, model, metadata, runtime, input, features })
    }

    /// The graph.
    #[must_use]
    pub fn model(&self) -> &ModelInfo {
        &self.model
    }

    /// Name of the input.
    #[must_use]
    pub fn input(&self) -> &'static str {
        self.input
    }

    /// Name of the runtime of the sessions.
    #[must_use]
    pub fn runtime(&self) -> &str {
        &self.runtime
    }

    /// Matrices that the network computes under `rule`, each with the output that holds it.
    #[must_use]
    pub fn matrices(&self, rule: &InputRule) -> Vec<(&'static str, &'static str)> {
        let all = match self.role {
            Role::Features => vec![("features", self.features), ("logits", "logits"), ("spatial", "spatial")],
            Role::Manifold => vec![("manifold", self.features)],
            Role::Clip => vec![("clip", rule.clip.output())],
        };
        all.into_iter().filter(|(_, output)| output_dims(&self.model, output).is_some()).collect()
    }

    /// Width of `matrix` under `rule`; `None` if the network does not compute it.
    #[must_use]
    pub fn width(&self, matrix: &str, rule: &InputRule) -> Option<usize> {
        let (_, output) = self.matrices(rule).into_iter().find(|(m, _)| *m == matrix)?;
        output_dims(&self.model, output)
    }

    /// Record for feature files and references of images of size `dims`; `None` if their sizes differ.
    ///
    /// # Errors
    /// If the network does not take such images, or lacks the output that `rule` requires.
    pub fn record(&self, dims: Option<ImageDims>, rule: &InputRule) -> anyhow::Result<NetworkRecord> {
        let metadata = &self.metadata;
        let output = match self.role {
            Role::Clip => rule.clip.output(),
            _ => self.features,
        };
        let width = output_dims(&self.model, output).with_context(|| {
            format!("`{}` does not have the output `{output}`, which the protocol requires", self.path)
        })?;
        let input_size = metadata.input_size;
        let inception = self.name == INCEPTION;
        let fits = |size: [usize; 2]| dims.is_some_and(|d| [d.height, d.width] == size);
        let preprocessing = match self.preparation(dims, rule)? {
            Preparation::Bytes => {
                let own = input_size.is_some_and(|s| fits([s, s]));
                let resampling = match &metadata.resize {
                    _ if own => Resampling::None,
                    Some(text) if self.role == Role::Clip && text.contains("crop") => Resampling::ClipCrop,
                    Some(text) => resampling_in_graph(text),
                    None => Resampling::Other("not stated by the graph".to_owned()),
                };
                Preprocessing { resampling, scaling: inception.then_some(IN_GRAPH), in_graph: true }
            }
            Preparation::Resize { output, scaling, resize, .. } => {
                let resampling = if fits(output) { Resampling::None } else { Resampling::Resize(resize) };
                Preprocessing { resampling, scaling: inception.then_some(scaling), in_graph: false }
            }
            Preparation::Crop { size, .. } => {
                let resampling = if fits([size, size]) { Resampling::None } else { Resampling::ClipCrop };
                Preprocessing { resampling, scaling: None, in_graph: false }
            }
        };
        let weights = WeightsState::of_metadata(metadata);
        Ok(NetworkRecord {
            name: self.name.clone(),
            path: self.path.clone(),
            sha256: self.sha256.clone(),
            weights_digest: weights.digest,
            verified: weights.verified,
            output: output.to_owned(),
            dims: width,
            input_size,
            precision: metadata.precision.unwrap_or_default().name().to_owned(),
            preprocessing,
            runtime: self.runtime.clone(),
        })
    }

    /// Preprocessing of images of size `dims` before the network; `None` if their sizes differ.
    ///
    /// # Errors
    /// If the network does not take images of this size, or requires one size, or has a float input without fixed size.
    pub fn preparation(&self, dims: Option<ImageDims>, rule: &InputRule) -> anyhow::Result<Preparation> {
        let model = &self.model;
        let known = model.input(self.input).map(|i| i.dims.as_slice()).unwrap_or_default();
        let size = match known {
            &[_, Dim::Known(h), Dim::Known(w), _] => Some([h, w]),
            _ => None,
        };
        let scaling = scaling_of(&self.name, rule);
        let floats = self.input == INPUTS[1];
        match (self.role, size) {
            (Role::Clip, Some([h, w])) if h == w && self.metadata.resize.is_none() => {
                Ok(Preparation::Crop { size: h, floats })
            }
            (_, Some(size)) if floats => {
                Ok(Preparation::resize(rule.resize, scaling, dims.map(|d| [d.height, d.width]), size))
            }
            (_, None) if floats => {
                anyhow::bail!("`{}`: the input `images_f32` has no fixed height and width", self.path)
            }
            (_, size) => {
                let here = dims.map(|d| [d.height, d.width]);
                match (size, here) {
                    (Some([h, w]), Some([y, x])) if [h, w] != [y, x] => Err(with_hint(
                        anyhow::anyhow!("`{}` requires {w}×{h} images, found {x}×{y}", self.path),
                        format!("export it with `--image-size {y}`, or with `--input f32`"),
                    )),
                    (_, None) => Err(with_hint(
                        anyhow::anyhow!("`{}` requires images of one size, found different sizes", self.path),
                        "export it with `--input f32`, so that d2o resizes each image",
                    )),
                    _ => Ok(Preparation::Bytes),
                }
            }
        }
    }

    /// Selects the matrices from `outputs`. `names` are the names of the images, one per row.
    ///
    /// # Errors
    /// If an output is not f32, has another number of rows, or holds a value that is not finite (with the name of the
    /// image).
    pub fn take<'o>(
        &self,
        outputs: impl IntoIterator<Item = (&'o str, Tensor)>,
        names: &[String],
        rule: &InputRule,
    ) -> anyhow::Result<Vec<(&'static str, Array2<f32>)>> {
        let matrices = self.matrices(rule);
        let mut found = Vec::new();
        for (name, tensor) in outputs {
            let Some((matrix, _)) = matrices.iter().find(|(_, output)| *output == name) else { continue };
            let Tensor::F32(rows) = tensor else { anyhow::bail!("output `{name}` of the network is not f32") };
            let rows: Array2<f32> = rows.into_dimensionality()?;
            let (count, expected) = (rows.nrows(), names.len());
            anyhow::ensure!(count == expected, "`{name}`: expected {expected} rows, one per image, found {count}");
            finite(name, &rows.view(), names)?;
            found.push((*matrix, rows));
        }
        Ok(found)
    }

    /// Checks that the network takes the output `name` of a generator, described by `given`, without conversion.
    ///
    /// # Errors
    /// If name, type or size differ, or the network requires preprocessing outside the graph.
    pub fn ensure_takes(&self, name: &str, given: &ValueInfo) -> anyhow::Result<()> {
        let path = &self.path;
        let taken = self.model().input(name).with_context(|| format!("`{path}` has no input `{name}`"))?;
        let same = |(a, b): (&Dim, &Dim)| matches!((a, b), (Dim::Batch, _) | (_, Dim::Batch)) || a == b;
        let fits = given.element == taken.element
            && given.dims.len() == taken.dims.len()
            && given.dims.iter().zip(&taken.dims).all(same);
        anyhow::ensure!(fits, "`{path}` requires images of another type or size");
        let crops = self.role == Role::Clip && self.metadata.resize.is_none();
        anyhow::ensure!(!crops, "`{path}` does not resize images for CLIP inside the graph");
        Ok(())
    }

    /// Computes the matrices of `images` with `session`. The images can be in device memory. `names` are their names.
    ///
    /// # Errors
    /// Those of [`Spec::take`] and of the session.
    pub fn run_resident(
        &self,
        session: &mut dyn Session,
        images: &SessionValue,
        names: &[String],
        rule: &InputRule,
    ) -> anyhow::Result<Vec<(&'static str, Array2<f32>)>> {
        let outputs = session.run_resident(&[(self.input, images)], &[])?;
        self.take(hosted(session.model().output_names().zip(outputs))?, names, rule)
    }
}

/// Normalisation that d2o prepares for the network `name`. A protocol normalises only for Inception; other networks
/// take 0..255 and normalise in the graph.
fn scaling_of(name: &str, rule: &InputRule) -> Scaling {
    if name == INCEPTION { rule.scaling } else { IN_GRAPH }
}

/// Groups the sessions of several graphs by device. Without graphs, the result is one device without sessions.
pub fn by_device<'a>(graphs: impl IntoIterator<Item = &'a mut Sessions>) -> Vec<Vec<&'a mut dyn Session>> {
    let mut devices: Vec<Vec<&mut dyn Session>> = vec![Vec::new()];
    for sessions in graphs {
        devices.resize_with(sessions.len().max(devices.len()), Vec::new);
        for (device, session) in devices.iter_mut().zip(sessions) {
            device.push(session.as_mut());
        }
    }
    devices
}

/// Batch size: the requested number, or the number that keeps this kind of device busy. A larger batch only costs
/// memory.
#[must_use]
pub fn batch(asked: Option<u32>, networks: &[Network]) -> usize {
    const CUDA: usize = 64;
    const CPU: usize = 16;
    let cuda = networks.iter().any(|n| n.spec.runtime.starts_with("ort-cuda"));
    asked.map_or(if cuda { CUDA } else { CPU }, |n| n as usize)
}

/// Copies `outputs` of a session to host memory.
///
/// # Errors
/// If the device fails.
pub fn hosted<'o>(
    outputs: impl IntoIterator<Item = (&'o str, SessionValue)>,
) -> anyhow::Result<Vec<(&'o str, Tensor)>> {
    outputs.into_iter().map(|(name, value)| Ok((name, value.into_host()?))).collect()
}

fn finite(output: &str, rows: &ArrayView2<'_, f32>, names: &[String]) -> anyhow::Result<()> {
    match first_non_finite_row(*rows) {
        None => Ok(()),
        Some(row) => {
            let name = names.get(row).map_or("an image", String::as_str);
            Err(anyhow::anyhow!("{name}: output `{output}` of the network contains NaN or infinity"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_inception_is_given_a_protocols_normalisation() {
        let rule = InputRule::from(Protocol::named("pytorch-fid").unwrap());
        let white = ndarray::Array3::<u8>::from_elem((2, 2, 3), 255);
        let given = |name: &str| {
            let preparation = Preparation::resize(rule.resize, scaling_of(name, &rule), Some([2, 2]), [2, 2]);
            preparation.apply(&[white.view()]).unwrap().as_f32().unwrap()[[0, 0, 0, 0]]
        };
        // Inception computes (v - 128)/128, so 256 becomes 2·255/255 - 1. Other networks take 0..255.
        assert_eq!((given(INCEPTION), given("vgg16")), (256.0, 255.0));
    }

    #[test]
    fn images_are_read_even_if_no_network_wants_them() {
        assert_eq!(by_device(std::iter::empty::<&mut Sessions>()).len(), 1);
    }
}
