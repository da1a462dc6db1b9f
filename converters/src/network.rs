//! Networks of a checkpoint and their architectures.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use d2o_checkpoint::{CheckpointFile, Format, StoredNetwork, TensorSource};
use serde_json::{Map, Value};

use crate::denoiser::NetConfig;
use crate::error::{Error, Result, config};
use crate::extractors::inception_v3::Parts;
use crate::generators::inferred::Inferred;
use crate::registry::{Extractor, LatentGenerator, Precond, infer};
use crate::weights::Weights;
use crate::wrappers;

/// Architecture of a network, as identified from the file.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
#[allow(clippy::large_enum_variant, reason = "a handful per file")]
pub enum Architecture {
    /// A preconditioned denoiser, or a one-step generator derived from one.
    Denoiser(NetConfig),
    /// A single-evaluation generator.
    Generator(LatentGenerator),
    /// A feature network.
    Extractor(Extractor),
    /// A denoiser recognised by its tensors, which determine only some of the constructor arguments.
    Inferred(Inferred),
    /// A network that cannot be used, with the reason.
    Unsupported(String),
    /// Tensors that match no known architecture.
    Unknown,
}

/// One network of a checkpoint.
#[derive(Debug)]
#[non_exhaustive]
pub struct Network {
    /// Name in the file, e.g. `ema` or `net`; empty for a single unnamed network.
    pub name: String,
    /// Its architecture.
    pub architecture: Architecture,
    /// Its tensors.
    pub tensors: Arc<dyn TensorSource>,
    /// SHA-256 of the Python source of the class, hexadecimal, if the file contains the source.
    pub source_sha256: Option<String>,
}

/// An opened checkpoint.
#[derive(Debug)]
#[non_exhaustive]
pub struct Checkpoint {
    /// Path of the file.
    pub path: PathBuf,
    /// File format.
    pub format: Format,
    /// Networks in file order.
    pub networks: Vec<Network>,
    /// Metadata: the header metadata of a safetensors file, or the dict `d2o` of a pickle or torch file.
    pub metadata: Vec<(String, String)>,
    /// All tensors of the file. Outside safetensors files, tensors of a named network have names `NETWORK.NAME`.
    pub tensors: Arc<dyn TensorSource>,
    /// Ignored contents outside the networks, one note each.
    pub notes: Vec<String>,
}

impl Checkpoint {
    /// Opens `path`. The content determines the format. The recorded class or the tensors determine the architectures.
    ///
    /// # Errors
    /// `Checkpoint` if the file is not a checkpoint or is damaged; `Config` if a recorded configuration is invalid.
    pub fn open(path: &Path) -> Result<Self> {
        let CheckpointFile { path, format, networks: stored, metadata, tensors, mut notes, .. } =
            CheckpointFile::open(path)?;
        let mut networks = Vec::new();
        for network in stored {
            networks.extend(Network::identify(network, format, &path, &mut notes)?);
        }
        Ok(Self { path, format, networks, metadata, tensors, notes })
    }

    /// The network called `wanted`. Without a name, the average over training, or else the only network.
    ///
    /// The average over training is `ema`, else `G_ema` (StyleGAN), else the only network with the word `ema` in its
    /// name, e.g. `state_dict_ema` (timm) or `ema_model` (Lightning). The name `ema` also finds this average, and the
    /// name `net` also finds `G` (StyleGAN). A single unnamed network is found under every name.
    ///
    /// # Errors
    /// `Config` with the names in the file, if there is no such network or the choice is ambiguous.
    pub fn network(&self, wanted: Option<&str>) -> Result<&Network> {
        let named = |name: &str| self.networks.iter().find(|n| n.name == name);
        let only = |which: &dyn Fn(&Network) -> bool| {
            let mut all = self.networks.iter().filter(|n| which(n));
            all.next().filter(|_| all.next().is_none())
        };
        let average = || named("ema").or_else(|| named("G_ema")).or_else(|| only(&|n| is_average(&n.name)));
        let found = match wanted {
            None => average().or_else(|| only(&|_| true)),
            Some(name) => named(name)
                .or_else(|| match name {
                    "ema" => average(),
                    "net" => named("G"),
                    _ => None,
                })
                .or_else(|| only(&|_| true).filter(|n| n.name.is_empty())),
        };
        found.ok_or_else(|| {
            let names: Vec<_> = self.networks.iter().map(|n| format!("`{}`", n.name)).collect();
            let problem = wanted.map_or_else(|| "several networks".to_owned(), |w| format!("no network `{w}`"));
            Error::Config { what: format!("{problem}: the file contains {}; choose one with --net", names.join(", ")) }
        })
    }
}

impl Architecture {
    /// The architecture of a class with these constructor arguments.
    ///
    /// # Errors
    /// `Config` if the class is unknown or an argument is invalid.
    pub fn configured(class: &str, init_kwargs: &Value) -> Result<Self> {
        let generator = init_kwargs.as_object().and_then(|kwargs| LatentGenerator::read(class, kwargs));
        match generator {
            Some(generator) => Ok(Self::Generator(generator?)),
            None => Ok(Self::Denoiser(NetConfig::new(class, init_kwargs)?)),
        }
    }

    /// Name of the class; for a feature network, the name of the extractor.
    #[must_use]
    pub fn name(&self) -> String {
        match self {
            Self::Denoiser(config) => config.class().to_owned(),
            Self::Generator(generator) => generator.class().to_owned(),
            Self::Extractor(extractor) => extractor.name(),
            Self::Inferred(inferred) => inferred.class.to_owned(),
            Self::Unsupported(_) => "unsupported".to_owned(),
            Self::Unknown => "unknown".to_owned(),
        }
    }

    /// The feature network, if it is one.
    #[must_use]
    pub fn extractor(&self) -> Option<&Extractor> {
        match self {
            Self::Extractor(extractor) => Some(extractor),
            _ => None,
        }
    }

    /// Whether the architecture is known completely, so that the network can be exported without further arguments.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        match self {
            Self::Inferred(inferred) => denoiser_of(inferred).is_some(),
            Self::Unsupported(_) | Self::Unknown => false,
            _ => true,
        }
    }

    /// The configuration of a denoiser.
    ///
    /// # Errors
    /// `Config` if the file does not determine the configuration, or if the network is not a denoiser.
    pub fn denoiser(&self) -> Result<NetConfig> {
        Err(config(match self {
            Self::Denoiser(config) => return Ok(config.clone()),
            Self::Inferred(inferred) => match denoiser_of(inferred) {
                Some(config) => return Ok(config),
                None => inferred.question.clone(),
            },
            Self::Unsupported(why) => why.clone(),
            Self::Unknown => "the checkpoint does not record its network (class and init_kwargs)".to_owned(),
            other => format!("expected a denoiser, found {}", other.name()),
        }))
    }
}

/// The configuration of a published file, recognised by its name; `None` for other files.
fn denoiser_of(inferred: &Inferred) -> Option<NetConfig> {
    NetConfig::completed(inferred, inferred.class, inferred.published.as_ref()?).ok()
}

impl Network {
    /// The same tensors with another architecture.
    #[must_use]
    pub fn described_as(&self, architecture: Architecture) -> Self {
        let (name, tensors) = (self.name.clone(), Arc::clone(&self.tensors));
        Self { name, architecture, tensors, source_sha256: self.source_sha256.clone() }
    }

    /// The same network with other `tensors`.
    #[must_use]
    pub fn with_tensors(&self, tensors: Arc<dyn TensorSource>) -> Self {
        Self { tensors, ..self.described_as(self.architecture.clone()) }
    }

    /// Weights for building the network.
    #[must_use]
    pub fn weights(&self) -> Weights {
        Weights::checkpoint(Box::new(Arc::clone(&self.tensors)), "")
    }

    /// Identifies the stored network, or the networks inside a wrapper.
    fn identify(stored: StoredNetwork, format: Format, file: &Path, notes: &mut Vec<String>) -> Result<Vec<Self>> {
        let source_sha256 = stored.source.as_ref().map(|s| s.sha256.to_string());
        let architecture = match &stored.class {
            // Snapshots of d2o record exactly the arguments of the class.
            Some(class) if format == Format::Safetensors => {
                Some(Architecture::configured(class, &Value::Object(stored.init_kwargs.clone()))?)
            }
            Some(class) => described(class, &stored),
            None => None,
        };
        let StoredNetwork { name, class, scaled_norm, tensors, .. } = stored;
        if let Some(architecture) = architecture {
            return Ok(vec![Self { name, architecture, tensors, source_sha256 }]);
        }
        let stem = file.file_stem().map(|s| s.to_string_lossy()).unwrap_or_default();
        let recognise = |name: String, tensors: Arc<dyn TensorSource>| recognise(name, tensors, &stem);
        let mut networks = wrappers::unwrap(name, tensors, &recognise, &is_network, notes);
        for network in &mut networks {
            network.source_sha256.clone_from(&source_sha256);
            match (&network.architecture, &class, &scaled_norm) {
                (Architecture::Unknown, Some(class), _) => {
                    network.architecture = Architecture::Unsupported(format!("unknown class `{class}`"));
                }
                (Architecture::Extractor(Extractor::InceptionV3(Parts { .. })), _, Some(norm)) => {
                    let what = format!("`{norm}` scales after normalising, which Inception-2015-12-05 does not");
                    network.architecture = Architecture::Unsupported(what);
                }
                _ => {}
            }
        }
        Ok(networks)
    }
}

/// Whether a network of this name is an average over training.
fn is_average(name: &str) -> bool {
    name.split(['.', '_']).any(|word| word == "ema")
}

/// Whether `network` is complete: recognised, or an EDM network in a file that does not record the class.
fn is_network(network: &Network) -> bool {
    network.architecture != Architecture::Unknown || network.tensors.info("model.map_layer0.weight").is_some()
}

/// The architecture of a stored module of `class`; `None` if it is neither a generator nor a preconditioner.
fn described(class: &str, found: &StoredNetwork) -> Option<Architecture> {
    const DENOISER: [&str; 4] = ["img_resolution", "img_channels", "label_dim", "use_fp16"];
    let positional = match LatentGenerator::positional(class) {
        Some(names) => names,
        None if class.ends_with("Precond") => &DENOISER,
        None => return None,
    };
    if let Some(why) = LatentGenerator::unsupported(class, found.tensors.as_ref()) {
        return Some(Architecture::Unsupported(why.to_owned()));
    }
    if found.init_args.len() > positional.len() {
        let count = found.init_args.len();
        return Some(Architecture::Unsupported(format!(
            "`{class}` has {count} positional arguments; expected at most {positional:?}"
        )));
    }
    if let Some(source) = &found.source
        && let Err(text) = check_source(class, &source.text)
    {
        return Some(Architecture::Unsupported(text));
    }
    let mut kwargs: Map<String, Value> =
        positional.iter().zip(&found.init_args).map(|(k, v)| ((*k).to_owned(), v.clone())).collect();
    kwargs.extend(found.init_kwargs.clone());
    Some(
        Architecture::configured(class, &Value::Object(kwargs))
            .unwrap_or_else(|e| Architecture::Unsupported(e.to_string())),
    )
}

/// Compares the formulas in the Python `source` of `class` in a pickle with the implemented formulas. A repository may
/// have changed a formula without renaming the class, and two repositories may use one name for different classes.
fn check_source(class: &str, source: &str) -> Result<(), String> {
    let formulas = Precond::formulas(class);
    if formulas.is_empty() || source.trim().is_empty() {
        return Ok(());
    }
    let Some(start) = source.find(&format!("class {class}(")) else {
        return Err(format!("the source code in the pickle does not define `{class}`"));
    };
    let body = &source[start..];
    let body = body[1..].find("\nclass ").map_or(body, |end| &body[..=end]);
    let bare = |text: &str| text.split('#').next().unwrap_or("").split_whitespace().collect::<String>();
    for (name, _) in formulas {
        let expected: Vec<&str> = formulas.iter().filter(|(n, _)| n == name).map(|(_, formula)| *formula).collect();
        let found: Vec<&str> = body
            .lines()
            .filter_map(|line| line.trim().strip_prefix(name)?.trim_start().strip_prefix('='))
            .map(str::trim)
            .collect();
        let unknown = found.iter().find(|f| !expected.iter().any(|e| bare(e) == bare(f)));
        let absent = expected.iter().find(|e| !found.iter().any(|f| bare(e) == bare(f)));
        let (set, expected) = match (unknown, absent) {
            (None, None) => continue,
            (Some(unknown), _) => (format!("sets {name} = {unknown}"), expected.join(" or ")),
            (None, Some(absent)) => (format!("does not set {name}"), (*absent).to_owned()),
        };
        return Err(format!("the source code of `{class}` in the pickle {set}, expected {expected}"));
    }
    Ok(())
}

/// Recognises the network of a plain state dict in a file called `stem` (without extension).
pub(crate) fn recognise(name: String, tensors: Arc<dyn TensorSource>, stem: &str) -> Network {
    let extractor = || Extractor::recognise(&tensors).map(|(c, t)| (c.map(Architecture::Extractor), t));
    let inferred = || infer(&tensors, stem).map(|(c, t)| (c.map(Architecture::Inferred), t));
    let (architecture, tensors) = match extractor().or_else(inferred) {
        None => (Architecture::Unknown, tensors),
        Some((Ok(architecture), tensors)) => (architecture, tensors),
        Some((Err(Error::Config { what }), tensors)) => (Architecture::Unsupported(what), tensors),
        Some((Err(e), tensors)) => (Architecture::Unsupported(e.to_string()), tensors),
    };
    Network { name, architecture, tensors, source_sha256: None }
}

#[cfg(test)]
mod tests {
    use d2o_checkpoint::{Dtype, TensorInfo};
    use fs_err as fs;

    use super::*;
    use crate::export::{FeatureOptions, PixelInput, features};
    use crate::extractors::inception_v3::{self, InceptionV3, Layout, names};
    use crate::onnx::OnnxBackend;
    use crate::published::Digests;
    use crate::weights::{Init, Scope, Weights};

    /// Tensors: name, dimensions, NVIDIA's name, which determines the values, and axis order.
    #[derive(Debug)]
    struct Drawn(Vec<(String, Vec<usize>, String, &'static [usize])>);

    fn draw(ours: &str, count: usize) -> Vec<f32> {
        let gamma = ours.ends_with(".gamma");
        if gamma { vec![1.0; count] } else { Init::Uniform { bound: 0.5 }.values(3, ours, count) }
    }

    impl TensorSource for Drawn {
        fn names(&self) -> Vec<String> {
            self.0.iter().map(|t| t.0.clone()).collect()
        }

        fn info(&self, name: &str) -> Option<TensorInfo> {
            self.0.iter().find(|t| t.0 == name).map(|t| TensorInfo { dtype: Dtype::F32, dims: t.1.clone() })
        }

        fn read_f32(&self, name: &str) -> d2o_checkpoint::Result<Vec<f32>> {
            let (_, dims, ours, axes) = self.0.iter().find(|t| t.0 == name).unwrap();
            let values = draw(ours, dims.iter().product());
            if axes.is_empty() {
                return Ok(values);
            }
            // Axis i of ours is axis axes[i] of theirs. The inverse permutation restores their order.
            let our_dims: Vec<usize> = axes.iter().map(|a| dims[*a]).collect();
            let mut undo = vec![0; axes.len()];
            axes.iter().enumerate().for_each(|(i, a)| undo[*a] = i);
            let array = ndarray::ArrayD::from_shape_vec(our_dims, values).unwrap();
            Ok(array.permuted_axes(undo).iter().copied().collect())
        }
    }

    /// NVIDIA's names and dimensions of all tensors that the network requests.
    fn asked() -> Vec<(String, Vec<usize>)> {
        let mut b = OnnxBackend::new("x", Weights::initialised(0));
        InceptionV3::build(&mut b, &Scope::root(), Parts { gamma: true, head: true }).unwrap();
        b.weights().taken().map(|(name, dims)| (name.to_owned(), dims.to_vec())).collect()
    }

    fn source(layout: Layout, asked: &[(String, Vec<usize>)], rows: usize) -> Arc<dyn TensorSource> {
        let tensors = names(layout).into_iter().map(|(ours, theirs, axes)| {
            let mut dims = asked.iter().find(|(n, _)| *n == ours).unwrap().1.clone();
            if ours.starts_with("output.") {
                dims[0] = rows;
            }
            let mut their_dims = dims.clone();
            axes.iter().enumerate().for_each(|(i, a)| their_dims[*a] = dims[i]);
            (theirs, their_dims, ours, axes)
        });
        Arc::new(Drawn(tensors.collect()))
    }

    #[test]
    fn all_layouts_of_inception_give_the_same_tensors() {
        let asked = asked();
        assert_eq!(asked.len(), 472);
        let open = |layout| recognise(String::new(), source(layout, &asked, 1008), "");
        let nvidia = open(Layout::Nvidia);
        assert_eq!(
            nvidia.architecture,
            Architecture::Extractor(Extractor::InceptionV3(Parts { gamma: false, head: true }))
        );
        let scalars = |n: &Network| -> usize {
            n.tensors.names().iter().map(|t| n.tensors.info(t).unwrap().dims.iter().product::<usize>()).sum()
        };
        assert_eq!((nvidia.tensors.names().len(), scalars(&nvidia)), (378, 23_868_176));
        for (layout, count) in [
            (Layout::PyTorch, 23_885_392),
            (Layout::TensorFlow, 23_868_176),
            (Layout::Blocks, 23_885_392 - 2049 * 1008),
        ] {
            let other = open(layout);
            let (gamma, head) = (layout != Layout::TensorFlow, layout != Layout::Blocks);
            assert_eq!(other.architecture, Architecture::Extractor(Extractor::InceptionV3(Parts { gamma, head })));
            assert_eq!(scalars(&other), count);
            for name in nvidia.tensors.names().into_iter().filter(|n| head || !n.starts_with("output.")) {
                assert_eq!(other.tensors.info(&name), nvidia.tensors.info(&name), "{layout:?}: {name}");
                assert!(
                    other.tensors.read_f32(&name).unwrap() == nvidia.tensors.read_f32(&name).unwrap(),
                    "{layout:?}: {name}"
                );
            }
        }
    }

    /// A source with one value changed in the tensor of this name.
    #[derive(Debug)]
    struct Changed(Arc<dyn TensorSource>, String);

    impl TensorSource for Changed {
        fn names(&self) -> Vec<String> {
            self.0.names()
        }

        fn info(&self, name: &str) -> Option<TensorInfo> {
            self.0.info(name)
        }

        fn read_f32(&self, name: &str) -> d2o_checkpoint::Result<Vec<f32>> {
            let mut values = self.0.read_f32(name)?;
            if name == self.1 {
                values[0] += 1e-4;
            }
            Ok(values)
        }
    }

    #[test]
    fn all_layouts_of_inception_have_the_same_digest() {
        let asked = asked();
        let digests = |source| Digests::of(&recognise(String::new(), source, "")).unwrap().unwrap();
        let nvidia = digests(source(Layout::Nvidia, &asked, 1008));
        assert!(nvidia.head.is_some());
        for layout in [Layout::PyTorch, Layout::TensorFlow] {
            assert_eq!(digests(source(layout, &asked, 1008)), nvidia, "{layout:?}");
        }
        let blocks = digests(source(Layout::Blocks, &asked, 1008));
        assert_eq!((blocks.trunk, blocks.head), (nvidia.trunk.clone(), None));
        // A scale other than 1, a weight and a value of the head each change the digest of their part.
        for (layout, name, head) in [
            (Layout::PyTorch, "Mixed_7c.branch_pool.bn.weight", false),
            (Layout::TensorFlow, "mixed_10/tower_2/conv/conv2d_params", false),
            (Layout::TensorFlow, "softmax/weights", true),
        ] {
            let changed = digests(Arc::new(Changed(source(layout, &asked, 1008), name.to_owned())));
            let same = (changed.trunk == nvidia.trunk, changed.head == nvidia.head);
            assert_eq!(same, (head, !head), "{layout:?}: {name}");
        }
    }

    #[test]
    fn all_layouts_of_inception_with_a_head_give_the_same_graph() {
        let (asked, dir) = (asked(), tempfile::tempdir().unwrap());
        let size = inception_v3::INPUT_SIZE;
        let options = FeatureOptions { input: PixelInput::F32, ..FeatureOptions::of_size(size) };
        let graph = |layout, file_sha256: &str| {
            let network = recognise(String::new(), source(layout, &asked, 1008), "");
            let exported = features(&network, &options, file_sha256).unwrap();
            assert_eq!(exported.weights.unwrap().verified, None);
            let path = dir.path().join("x.onnx");
            d2o_onnx::write::write(&exported.model, &path).unwrap();
            fs::read(&path).unwrap()
        };
        let nvidia = graph(Layout::Nvidia, "00");
        assert!(graph(Layout::PyTorch, "01") == nvidia);
        assert!(graph(Layout::TensorFlow, "02") == nvidia);
    }

    #[test]
    fn torchvisions_inception_is_refused() {
        let network = recognise(String::new(), source(Layout::PyTorch, &asked(), 1000), "");
        let Architecture::Unsupported(why) = network.architecture else { panic!("{:?}", network.architecture) };
        assert!(why.contains("1000 classes") && why.contains("not FID"), "{why}");
    }

    /// Python source of `class` with these assignments.
    fn python(class: &str, assignments: &[(&str, &str)]) -> String {
        let lines: String = assignments.iter().map(|(name, formula)| format!("        {name} = {formula}\n")).collect();
        format!(
            "import x\n\nclass {class}(torch.nn.Module):\n    def forward(self):\n{lines}\nclass Next(x):\n    c_skip = 1\n"
        )
    }

    #[test]
    fn a_changed_formula_under_a_known_name_is_refused() {
        let skip = ("c_skip", "self.sigma_data**2 / (sigma**2 + self.sigma_data**2) # x");
        let out = ("c_out", "sigma*self.sigma_data/(sigma**2+self.sigma_data**2).sqrt()");
        assert_eq!(check_source("EDMPrecond", &python("EDMPrecond", &[skip, out])), Ok(()));
        assert_eq!(check_source("EDMPrecond", ""), Ok(()));
        assert_eq!(check_source("VEPrecond", "class VEPrecond(x):\n    c_skip = 1"), Ok(()));
        for (assignments, text) in [
            (&[("c_skip", "1 / (1 + sigma)"), out][..], "sets c_skip = 1 / (1 + sigma), expected self.sigma_data ** 2"),
            // A second branch computes something else.
            (&[skip, ("c_skip", "0"), out], "sets c_skip = 0, expected"),
            // A formula over two lines cannot be compared.
            (&[skip, ("c_out", "(sigma *")], "sets c_out = (sigma *"),
            (&[out], "does not set c_skip, expected"),
        ] {
            let error = check_source("EDMPrecond", &python("EDMPrecond", assignments)).unwrap_err();
            assert!(error.contains(text), "{error}");
        }
        let error = check_source("EDMPrecond", "class Other(x):\n    pass").unwrap_err();
        assert!(error.contains("does not define `EDMPrecond`"), "{error}");
    }

    /// TCM has a class of the same name as ECT with the formulas of EDM.
    #[test]
    fn ecms_two_classes_are_told_apart_by_their_source() {
        let formulas = Precond::formulas("ECMPrecond");
        assert_eq!(check_source("ECMPrecond", &python("ECMPrecond", formulas)), Ok(()));
        let error = check_source("ECMPrecond", &python("ECMPrecond", &formulas[..2])).unwrap_err();
        assert!(
            error.contains("does not set c_skip, expected self.sigma_data ** 2 / ((sigma - self.sigma_min)"),
            "{error}"
        );
    }
}
