//! Features of images from an exported feature network.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::sync_channel;
use std::time::Instant;

use anyhow::Context as _;
use d2o_evaluations::preprocess::{Resize, Resizer, Scaling, clip_crop};
use d2o_evaluations::protocol::{INCEPTION, Protocol};
use d2o_evaluations::result::Extractor;
use d2o_onnx::graph::Dim;
use d2o_onnx::read::{ModelInfo, ValueInfo};
use d2o_onnx::session::{Resident, Session, Tensor};
use d2o_refs::batch::{self, Digest, ImageDims, ImageSource, container_sha256, digests};
use d2o_refs::features::NetworkMeta;
use ndarray::{Array2, Array4, ArrayView2, ArrayView3, ArrayView4, ArrayViewMut3, Axis};
use rayon::prelude::*;

use crate::engine::{Engine, OnCpu};
use crate::error::with_hint;
use crate::interrupt;
use crate::pipeline::turns::in_turn;
use crate::printer::Printer;

/// Names a feature network's input may have: bytes, which it resizes itself, or floats 0..255 of its own size, resized by d2o.
const INPUTS: [&str; 2] = ["images_u8", "images_f32"];
/// Names its features may have.
const FEATURES: [&str; 2] = ["pool3", "features"];
/// Name of the network of CLIP-FID.
pub const CLIP: &str = "clip-vit-b-32";
/// How preprocessing begins that is part of the graph, and what follows where there is nothing to resize.
const IN_NETWORK: &str = "in the network: ";
const NO_RESIZE: &str = "none, images have its size";
/// Batches read and resized ahead of the network.
const AHEAD: usize = 2;

/// Who `model` at `path` is, if it is a feature network.
///
/// # Errors
/// If it is none, or calls itself Inception without its 1008 classes.
pub fn describe(model: &ModelInfo, path: &Path) -> anyhow::Result<Extractor> {
    const CLASSES: usize = 1008;
    let Some(dims) = feature_dims(model).filter(|_| input_of(model).is_ok()) else {
        return Err(with_hint(
            anyhow::anyhow!("`{}` is no feature network", path.display()),
            "export one with `d2o export WEIGHTS --kind features`",
        ));
    };
    let name = model.metadata.get("extractor").map_or_else(|| path.display().to_string(), Clone::clone);
    if name == INCEPTION
        && let Some(classes) = output_dims(model, "logits")
    {
        anyhow::ensure!(
            classes == CLASSES,
            "`{}` calls itself {INCEPTION}, which has {CLASSES} classes, but has {classes}, as torchvision's Inception",
            path.display()
        );
    }
    Ok(Extractor { name, path: path.display().to_string(), sha256: container_sha256(path)?, dims })
}

/// Length of the features of `model`, if it has any.
#[must_use]
pub fn feature_dims(model: &ModelInfo) -> Option<usize> {
    FEATURES.iter().find_map(|n| output_dims(model, n))
}

/// Length of the output `name` of `model`, if it has it.
#[must_use]
pub fn output_dims(model: &ModelInfo, name: &str) -> Option<usize> {
    match model.output(name)?.dims.as_slice() {
        &[_, Dim::Known(dims)] => Some(dims),
        _ => None,
    }
}

fn input_of(model: &ModelInfo) -> anyhow::Result<&'static str> {
    INPUTS.into_iter().find(|n| model.input(n).is_some()).context("the graph is no feature network")
}

/// Where features of `network`, which is there for `role`, depart from what `protocol` computes.
#[must_use]
pub fn deviations(role: Role, network: &NetworkMeta, protocol: &Protocol) -> Vec<String> {
    let pr = protocol.manifold_features;
    let (genuine, wanted, prefix) = match role {
        Role::Features => (Some(INCEPTION), INCEPTION, ""),
        Role::Clip => (Some(CLIP), CLIP, "CLIP-FID: "),
        Role::Manifold => (pr.extractor(), pr.describe(), "precision and recall: "),
    };
    let mut found = Vec::new();
    if genuine != Some(network.name.as_str()) {
        found.push(format!("{prefix}features of {} instead of {wanted}", network.name));
    }
    if network.runtime.ends_with("-tf32") {
        found.push(format!("{prefix}products in TF32"));
    }
    let Some(resize) = network.preprocessing.strip_prefix(IN_NETWORK) else { return found };
    let (word, wanted) = match (role, protocol.resize) {
        (Role::Clip, _) => ("crop", protocol.clip.describe()),
        (_, Resize::TensorFlow) => ("asymmetric", protocol.resize.describe()),
        (_, Resize::Torch) => ("half-pixel", protocol.resize.describe()),
        (_, Resize::PilBicubic) => ("bicubic", protocol.resize.describe()),
    };
    if !resize.contains(word) && resize != NO_RESIZE {
        found.push(format!("{prefix}resize in the network ({resize}) instead of {wanted}"));
    }
    if role != Role::Clip && protocol.scaling == Scaling::Unit && network.name == INCEPTION {
        found.push(format!("{prefix}scaling in the network instead of {}", protocol.scaling.describe()));
    }
    found
}

/// Images in a batch: what was asked for, or what each kind of device needs to be busy. Beyond it a batch only costs memory.
#[must_use]
pub fn batch(asked: Option<u32>, networks: &[Network]) -> usize {
    const CUDA: usize = 64;
    const CPU: usize = 16;
    let cuda = networks.iter().any(|n| n.spec.runtime.starts_with("ort-cuda"));
    asked.map_or(if cuda { CUDA } else { CPU }, |n| n as usize)
}

/// What a network is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// Features of most metrics, classes of the Inception Score, spatial features of sFID.
    Features,
    /// Features of CLIP-FID.
    Clip,
    /// Features of precision, recall, density and coverage, where they are not those of the other metrics.
    Manifold,
}

impl Role {
    /// Every one.
    pub const ALL: [Self; 3] = [Self::Features, Self::Clip, Self::Manifold];

    /// Whose networks give `matrix` of a feature file.
    #[must_use]
    pub fn of(matrix: &str) -> Self {
        match matrix {
            "clip" => Self::Clip,
            "manifold" => Self::Manifold,
            _ => Self::Features,
        }
    }

    /// Its name in results and feature files.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Features => "features",
            Self::Clip => "clip",
            Self::Manifold => "manifold",
        }
    }

    /// What a reference file's `d2o_meta` calls its network.
    #[must_use]
    pub fn key(self) -> &'static str {
        match self {
            Self::Features => "extractor",
            Self::Clip => "clip",
            Self::Manifold => "pr_extractor",
        }
    }

    /// Its features, in messages.
    #[must_use]
    pub fn features(self) -> &'static str {
        match self {
            Self::Features => "features",
            Self::Clip => "CLIP features",
            Self::Manifold => "features for precision and recall",
        }
    }
}

/// A feature network: everything but the sessions that compute it.
#[derive(Debug, Clone)]
pub struct Spec {
    /// What it is for.
    pub role: Role,
    /// Which network it is.
    pub extractor: Extractor,
    model: ModelInfo,
    runtime: String,
    input: &'static str,
    /// Matrices it gives, by the outputs they are.
    matrices: Vec<(&'static str, &'static str)>,
}

/// An open feature network, with a session on each device.
pub struct Network {
    /// Which network it is.
    pub spec: Spec,
    sessions: Vec<Box<dyn Session>>,
}

impl std::fmt::Debug for Network {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Network").field("spec", &self.spec).finish_non_exhaustive()
    }
}

impl Network {
    /// Opens the graph at `path` for `role` under `protocol`.
    ///
    /// # Errors
    /// A file that is not a feature network, or not one for this role; those of the runtime.
    pub fn open(role: Role, path: &Path, protocol: &Protocol, engine: &Engine<'_>) -> anyhow::Result<Self> {
        let sessions = engine.open(path, OnCpu::Fastest)?;
        let session = sessions.first().context("no device")?;
        let (model, runtime) = (session.model().clone(), session.runtime().to_owned());
        let mut extractor = describe(&model, path)?;
        let input = input_of(&model)?;
        let given = |name: &&str| output_dims(&model, name).is_some();
        let features = FEATURES.into_iter().find(given).context("no features")?;
        let matrices = match role {
            Role::Features => {
                let others = ["logits", "spatial"].into_iter().filter(given);
                std::iter::once(("features", features)).chain(others.map(|n| (n, n))).collect()
            }
            Role::Manifold => vec![("manifold", features)],
            Role::Clip => {
                let output = protocol.clip.output();
                extractor.dims = output_dims(&model, output).with_context(|| {
                    format!(
                        "protocol {} needs the output `{output}`, which `{}` does not have",
                        protocol.name,
                        path.display()
                    )
                })?;
                vec![("clip", output)]
            }
        };
        Ok(Self { spec: Spec { role, extractor, model, runtime, input, matrices }, sessions })
    }

    /// What it is, and its session on each device.
    pub fn parts(&mut self) -> (&Spec, &mut Sessions) {
        (&self.spec, &mut self.sessions)
    }
}

impl Spec {
    /// The graph.
    #[must_use]
    pub fn model(&self) -> &ModelInfo {
        &self.model
    }

    /// Length of the rows of `matrix`, if the network gives it.
    #[must_use]
    pub fn width(&self, matrix: &str) -> Option<usize> {
        let (_, output) = self.matrices.iter().find(|(m, _)| *m == matrix)?;
        output_dims(&self.model, output)
    }

    /// How it stands in feature files of images of this size.
    ///
    /// # Errors
    /// If it does not take such images.
    pub fn meta(&self, dims: ImageDims, protocol: &Protocol) -> anyhow::Result<NetworkMeta> {
        let mut preprocessing = match self.preparation(dims, protocol)? {
            Preparation::None => {
                let metadata = &self.model().metadata;
                let own = metadata.get("input_size").is_some_and(|s| s.parse() == Ok(dims.height));
                let resize = metadata.get("resize").map_or(if own { NO_RESIZE } else { "not stated" }, String::as_str);
                format!("{IN_NETWORK}{resize}")
            }
            Preparation::Resize(_) => format!("{}; {}", protocol.resize.describe(), protocol.scaling.describe()),
            Preparation::Crop(_) | Preparation::CropFloat(_) => "u8 bicubic (Pillow), centre crop".to_owned(),
        };
        if self.role == Role::Clip {
            preprocessing = format!("{preprocessing}; {}", protocol.clip.output());
        }
        let Extractor { name, path, sha256, dims } = self.extractor.clone();
        Ok(NetworkMeta { name, path, sha256, dims, preprocessing, runtime: self.runtime.clone() })
    }

    /// The matrices among `outputs` of images called `names`.
    ///
    /// # Errors
    /// Rows of another number, or not finite, naming the image.
    pub fn matrices(
        &self,
        outputs: Vec<(String, Tensor)>,
        names: &[String],
    ) -> anyhow::Result<Vec<(&'static str, Array2<f32>)>> {
        let mut found = Vec::new();
        for (name, tensor) in outputs {
            let Some((matrix, _)) = self.matrices.iter().find(|(_, output)| *output == name) else { continue };
            let Tensor::F32(rows) = tensor else { anyhow::bail!("the network's `{name}` is not f32") };
            let rows: Array2<f32> = rows.into_dimensionality()?;
            let (count, expected) = (rows.nrows(), names.len());
            anyhow::ensure!(count == expected, "{expected} images gave {count} rows of `{name}`");
            finite(&name, &rows.view(), names)?;
            found.push((*matrix, rows));
        }
        Ok(found)
    }

    /// Makes sure that the network takes what a graph calls `name` and describes as `given`, as it is.
    ///
    /// # Errors
    /// Another name, type or size; preprocessing outside the graph.
    pub fn ensure_takes(&self, name: &str, given: &ValueInfo) -> anyhow::Result<()> {
        let path = &self.extractor.path;
        let taken = self.model().input(name).with_context(|| format!("`{path}` has no input `{name}`"))?;
        let same = |(a, b): (&Dim, &Dim)| matches!((a, b), (Dim::Batch, _) | (_, Dim::Batch)) || a == b;
        let fits = given.element == taken.element
            && given.dims.len() == taken.dims.len()
            && given.dims.iter().zip(&taken.dims).all(same);
        anyhow::ensure!(fits, "`{path}` takes images of another size");
        let crops = self.role == Role::Clip && !self.model().metadata.contains_key("resize");
        anyhow::ensure!(!crops, "`{path}` leaves CLIP's resize to the program");
        Ok(())
    }

    /// The matrices of `images` called `names`, wherever the images are, by one of the network's sessions.
    ///
    /// # Errors
    /// Those of [`Spec::matrices`] and of the session.
    pub fn run_resident(
        &self,
        session: &mut dyn Session,
        images: &Resident,
        names: &[String],
    ) -> anyhow::Result<Vec<(&'static str, Array2<f32>)>> {
        let outputs = session.run_resident(&[(self.input, images)], &[])?;
        self.matrices(hosted(outputs)?, names)
    }

    fn preparation(&self, dims: ImageDims, protocol: &Protocol) -> anyhow::Result<Preparation> {
        let model = &self.model;
        let known = model.input(self.input).map(|i| i.dims.as_slice()).unwrap_or_default();
        let size = match known {
            &[_, Dim::Known(h), Dim::Known(w), _] => Some([h, w]),
            _ => None,
        };
        let here = [dims.height, dims.width];
        match (self.role, self.input, size) {
            (Role::Clip, input, Some([h, w])) if h == w && !model.metadata.contains_key("resize") => {
                Ok(if input == INPUTS[1] { Preparation::CropFloat(h) } else { Preparation::Crop(h) })
            }
            (_, "images_f32", Some(size)) => {
                Ok(Preparation::Resize(Box::new(Resizer::new(protocol.resize, protocol.scaling, here, size))))
            }
            (_, "images_f32", None) => {
                anyhow::bail!("the extractor's input `images_f32` has no fixed height and width")
            }
            (_, _, Some([h, w])) if [h, w] != here => Err(with_hint(
                anyhow::anyhow!("the extractor takes {w}×{h} images, these are {}×{}", dims.width, dims.height),
                format!("export it with `--image-size {}`, or with `--input f32`", dims.height),
            )),
            _ => Ok(Preparation::None),
        }
    }
}

/// What happens to images before a network.
enum Preparation {
    /// Nothing: the network resizes, or the size is its own.
    None,
    /// The protocol's resize.
    Resize(Box<Resizer>),
    /// CLIP's resize and crop, to bytes.
    Crop(usize),
    /// The same, as floats 0 to 255.
    CropFloat(usize),
}

impl Preparation {
    fn apply(&self, images: ArrayView4<'_, u8>) -> Tensor {
        match self {
            Self::None => Tensor::U8(images.to_owned().into_dyn()),
            Self::Resize(resizer) => {
                let [h, w] = resizer.output();
                let each = |image: ArrayView3<'_, u8>, slot: ArrayViewMut3<'_, f32>| resizer.apply(image, slot);
                Tensor::F32(mapped(images, [h, w], each).into_dyn())
            }
            Self::Crop(size) => {
                let each =
                    |image: ArrayView3<'_, u8>, mut slot: ArrayViewMut3<'_, u8>| slot.assign(&clip_crop(image, *size));
                Tensor::U8(mapped(images, [*size; 2], each).into_dyn())
            }
            Self::CropFloat(size) => {
                let each = |image: ArrayView3<'_, u8>, mut slot: ArrayViewMut3<'_, f32>| {
                    slot.assign(&clip_crop(image, *size).mapv(f32::from));
                };
                Tensor::F32(mapped(images, [*size; 2], each).into_dyn())
            }
        }
    }
}

/// Every image through `each`, into `[N, h, w, 3]`.
fn mapped<T: Clone + Default + Send + Sync>(
    images: ArrayView4<'_, u8>,
    [h, w]: [usize; 2],
    each: impl Fn(ArrayView3<'_, u8>, ArrayViewMut3<'_, T>) + Sync,
) -> Array4<T> {
    let mut out = Array4::from_elem((images.dim().0, h, w, 3), T::default());
    out.axis_iter_mut(Axis(0))
        .into_par_iter()
        .zip(images.axis_iter(Axis(0)))
        .for_each(|(slot, image)| each(image, slot));
    out
}

/// What networks say of a batch of images, one row an image.
#[derive(Debug)]
pub struct Rows {
    /// Place of the first image in the set.
    pub start: usize,
    /// Hash of each image.
    pub digests: Vec<Digest>,
    /// Matrices by name, as `d2o_refs::features` has them.
    pub matrices: Vec<(&'static str, Array2<f32>)>,
}

impl Rows {
    /// Matrix `name`, if a network gave it.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<ArrayView2<'_, f32>> {
        self.matrices.iter().find(|(n, _)| *n == name).map(|(_, m)| m.view())
    }
}

/// Seconds spent in each stage. Stages overlap, so they add up to more than the whole.
pub type Seconds = BTreeMap<String, f64>;

/// One batch on its way to the networks.
struct Prepared {
    start: usize,
    /// What its images are called.
    names: Vec<String>,
    digests: Vec<Digest>,
    /// One for each network.
    tensors: Vec<Tensor>,
}

/// Sessions of one graph, one on each device.
pub type Sessions = [Box<dyn Session>];

/// The sessions of several graphs, by device; one device without any if there are no graphs.
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

/// Runs images `range` of `source` through `networks` and hands the outputs to `each`, in the source's order. Reading and resizing run ahead
/// of the networks on a thread of their own, a few batches at most; batches take turns on the networks' devices.
///
/// # Errors
/// Images of another size than a network takes, unreadable images, features that are not finite (naming the image), a failing runtime,
/// Ctrl-C.
pub fn extract(
    networks: &mut [&mut Network],
    source: &mut dyn ImageSource,
    range: Range<usize>,
    batch: usize,
    protocol: &Protocol,
    printer: Printer,
    each: &mut dyn FnMut(Rows) -> anyhow::Result<()>,
) -> anyhow::Result<Seconds> {
    let _section = interrupt::cooperative();
    let dims = batch::uniform(source)?;
    let (specs, sessions): (Vec<&Spec>, Vec<&mut Sessions>) = networks.iter_mut().map(|n| n.parts()).unzip();
    let mut devices = by_device(sessions);
    let preparations: Vec<Preparation> =
        specs.iter().map(|n| n.preparation(dims, protocol)).collect::<anyhow::Result<_>>()?;
    let mut progress = printer.progress("features", range.len() as u64);
    let stop = AtomicBool::new(false);
    let mut network_seconds = 0.0;
    // As many batches at once as there are devices, so that a generator can make them on all of them.
    let ahead = batch * devices.len();
    let (sender, receiver) = sync_channel::<anyhow::Result<Prepared>>(AHEAD * devices.len());
    let (reading, resizing) = std::thread::scope(|scope| -> anyhow::Result<(f64, f64)> {
        let stop = &stop;
        let reader = scope.spawn(move || {
            let (mut reading, mut resizing) = (0.0, 0.0);
            for first in range.clone().step_by(ahead) {
                if stop.load(Ordering::Relaxed) {
                    break;
                }
                let clock = Instant::now();
                let images = match source.read(first..(first + ahead).min(range.end)) {
                    Ok(images) => images,
                    Err(error) => {
                        let _ = sender.send(Err(error.into()));
                        break;
                    }
                };
                reading += clock.elapsed().as_secs_f64();
                for (i, images) in images.axis_chunks_iter(Axis(0), batch).enumerate() {
                    let start = first + i * batch;
                    let clock = Instant::now();
                    let digests = digests(&images);
                    let names = (start..start + images.len_of(Axis(0))).map(|i| source.name(i)).collect();
                    reading += clock.elapsed().as_secs_f64();
                    let clock = Instant::now();
                    let tensors = preparations.iter().map(|p| p.apply(images)).collect();
                    resizing += clock.elapsed().as_secs_f64();
                    if sender.send(Ok(Prepared { start, names, digests, tensors })).is_err() {
                        return (reading, resizing);
                    }
                }
            }
            (reading, resizing)
        });
        let work = |sessions: &mut Vec<&mut dyn Session>, prepared: Prepared| {
            interrupt::check()?;
            let Prepared { start, names, digests, tensors } = prepared;
            let clock = Instant::now();
            let mut matrices = Vec::new();
            for ((spec, session), tensor) in specs.iter().zip(sessions).zip(tensors) {
                let outputs = session.run(&[(spec.input, tensor)])?;
                matrices.extend(spec.matrices(outputs, &names)?);
            }
            Ok((Rows { start, digests, matrices }, clock.elapsed().as_secs_f64()))
        };
        let result = in_turn(&mut devices, &receiver, work, |(rows, seconds)| {
            network_seconds += seconds;
            let count = rows.digests.len() as u64;
            each(rows)?;
            progress.advance(count);
            Ok(())
        });
        stop.store(true, Ordering::Relaxed);
        drop(receiver);
        let read = reader.join().map_err(|_| anyhow::anyhow!("reading images failed"))?;
        result.map(|()| read)
    })?;
    progress.finish();
    let seconds = [("read", reading), ("resize", resizing), ("network", network_seconds)];
    Ok(seconds.into_iter().map(|(k, v)| (k.to_owned(), v)).collect())
}

/// `outputs` of a session in the program's own memory.
///
/// # Errors
/// A failing device.
pub fn hosted(outputs: Vec<(String, Resident)>) -> anyhow::Result<Vec<(String, Tensor)>> {
    outputs.into_iter().map(|(name, value)| Ok((name, value.into_host()?))).collect()
}

fn finite(output: &str, rows: &ArrayView2<'_, f32>, names: &[String]) -> anyhow::Result<()> {
    match rows.outer_iter().position(|r| r.iter().any(|v| !v.is_finite())) {
        None => Ok(()),
        Some(row) => {
            let name = names.get(row).map_or("an image", String::as_str);
            Err(anyhow::anyhow!("{name}: the network's `{output}` holds NaN or infinity"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_are_read_even_if_no_network_wants_them() {
        assert_eq!(by_device(std::iter::empty::<&mut Sessions>()).len(), 1);
    }

    #[test]
    fn tf32_departs_from_every_protocol() {
        let network = |runtime: &str| NetworkMeta {
            name: INCEPTION.to_owned(),
            path: String::new(),
            sha256: String::new(),
            dims: 2048,
            preprocessing: "as the protocol does".to_owned(),
            runtime: runtime.to_owned(),
        };
        let protocol = Protocol::named("edm").unwrap();
        assert!(deviations(Role::Features, &network("ort-cuda"), protocol).is_empty());
        assert_eq!(deviations(Role::Features, &network("ort-cuda-tf32"), protocol), ["products in TF32"]);
    }

    #[test]
    fn what_departs_from_a_protocol_depends_on_what_the_network_is_for() {
        let network = |name: &str, preprocessing: &str| NetworkMeta {
            name: name.to_owned(),
            path: String::new(),
            sha256: String::new(),
            dims: 4096,
            preprocessing: preprocessing.to_owned(),
            runtime: String::new(),
        };
        let found = |role: Role, network: &NetworkMeta, protocol: &str| {
            deviations(role, network, Protocol::named(protocol).unwrap()).join("; ")
        };
        let vgg = network("vgg16", "as the protocol does");
        assert_eq!(found(Role::Manifold, &vgg, "torch-fidelity"), "");
        assert!(found(Role::Manifold, &vgg, "stylegan3").ends_with("features of vgg16 instead of NVIDIA's VGG16"));
        assert!(found(Role::Manifold, &vgg, "adm").ends_with("features of vgg16 instead of pool3"));
        assert!(found(Role::Features, &vgg, "torch-fidelity").ends_with(&format!("instead of {INCEPTION}")));
        let inception = network(INCEPTION, "as the protocol does");
        assert_eq!(found(Role::Features, &inception, "torch-fidelity"), "");
        assert!(found(Role::Manifold, &inception, "torch-fidelity").ends_with("instead of VGG16"));
        let resized = network("vgg16", &format!("{IN_NETWORK}half-pixel"));
        assert!(found(Role::Manifold, &resized, "torch-fidelity").starts_with("precision and recall: resize in"));
    }
}
