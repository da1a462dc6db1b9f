//! Which network a checkpoint holds: the one table of known architectures, and what each is recognised by.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use d2o_checkpoint::{CheckpointFile, Format, StoredNetwork, TensorSource};
use serde_json::{Map, Value};

use crate::config::NetConfig;
use crate::error::{Error, Result};
use crate::nn::openai_unet::{self, FromShapes};
use crate::nn::stylegan2::{self, StyleGan2Config};
use crate::nn::vision_transformer::{self, VitConfig};
use crate::nn::{efficientnet_lite, inception_v3, vgg16};
use crate::wrappers;

/// What a network in a checkpoint is, as far as the file tells.
#[derive(Debug, Clone, PartialEq)]
#[allow(clippy::large_enum_variant, reason = "a handful per file")]
pub enum Architecture {
    /// A preconditioned denoiser or one-step generator.
    Denoiser(NetConfig),
    /// EfficientNet-Lite0, tensors under timm's names.
    EfficientNetLite0,
    /// Inception-2015-12-05, tensors under NVIDIA's names.
    InceptionV3(inception_v3::Parts),
    /// CLIP's image tower, tensors under OpenAI's names without `visual.`; DeiT and DINOv2 under their own.
    VisionTransformer(VitConfig),
    /// VGG16, with or without batch norms, tensors under torchvision's names.
    Vgg16(vgg16::VggConfig),
    /// OpenAI's U-Net: what the shapes tell of it, and what else is known.
    OpenAiUNet(FromShapes),
    /// StyleGAN2's generator.
    StyleGan2(StyleGan2Config),
    /// Something known that cannot be used, and why.
    Unsupported(String),
    /// Tensors without a description.
    Unknown,
}

/// One network of a checkpoint.
#[derive(Debug)]
pub struct Network {
    /// `ema`, `net`, or empty for a file with a single unnamed one.
    pub name: String,
    /// What it is.
    pub architecture: Architecture,
    /// Its tensors.
    pub tensors: Arc<dyn TensorSource>,
    /// SHA-256 of the Python source the file carries for it, hexadecimal.
    pub source_sha256: Option<String>,
}

/// An opened checkpoint.
#[derive(Debug)]
pub struct Checkpoint {
    /// The file.
    pub path: PathBuf,
    /// Its container.
    pub format: Format,
    /// Networks inside, in the file's order.
    pub networks: Vec<Network>,
    /// The file's own metadata, e.g. a snapshot's training state.
    pub metadata: Vec<(String, String)>,
    /// Tensors of the whole file.
    pub tensors: Arc<dyn TensorSource>,
    /// What lies beside the networks and was not read, a sentence each.
    pub notes: Vec<String>,
}

impl Checkpoint {
    /// Opens `path`; the content decides the format, and class or tensors the architecture.
    ///
    /// # Errors
    /// `Checkpoint` if it is not a checkpoint, or a damaged one; `Config` for a bad configuration.
    pub fn open(path: &Path) -> Result<Self> {
        let CheckpointFile { path, format, networks: stored, metadata, tensors, mut notes } =
            CheckpointFile::open(path)?;
        let mut networks = Vec::new();
        for network in stored {
            networks.extend(Network::identify(network, format, &path, &mut notes)?);
        }
        Ok(Self { path, format, networks, metadata, tensors, notes })
    }

    /// The network called `wanted`; without a name the average over training, or the only network.
    ///
    /// `ema` and `net` are also what StyleGAN calls `G_ema` and `G`, and an average over training is told by its name: `G_ema`, timm's `state_dict_ema`,
    /// Lightning's `ema_model`.
    ///
    /// # Errors
    /// `Config` listing the names there are.
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
            let (wanted, names) = (wanted.map_or_else(String::new, |w| format!("`{w}` ")), names.join(", "));
            Error::Config { what: format!("network {wanted}of several: the file holds {names}; name one (--net)") }
        })
    }
}

impl Architecture {
    /// A network by the class of its outermost object and that constructor's arguments.
    ///
    /// # Errors
    /// `Config` for an unknown class or arguments that do not fit it.
    pub fn configured(class: &str, init_kwargs: &Value) -> Result<Self> {
        match (class, init_kwargs) {
            (stylegan2::CLASS, Value::Object(kwargs)) => Ok(Self::StyleGan2(StyleGan2Config::new(kwargs)?)),
            _ => Ok(Self::Denoiser(NetConfig::new(class, init_kwargs)?)),
        }
    }

    /// Name of the network's class; of a feature network, that of the extractor it makes.
    #[must_use]
    pub fn name(&self) -> String {
        match self {
            Self::Denoiser(config) => config.class().to_owned(),
            Self::OpenAiUNet(found) => found.class.to_owned(),
            Self::StyleGan2(_) => stylegan2::CLASS.to_owned(),
            Self::EfficientNetLite0 => "tf_efficientnet_lite0".to_owned(),
            Self::InceptionV3 { .. } => "inception-2015-12-05".to_owned(),
            Self::VisionTransformer(config) => config.name(),
            Self::Vgg16(config) if config.batch_norm => "vgg16-bn".to_owned(),
            Self::Vgg16(_) => "vgg16".to_owned(),
            Self::Unsupported(_) => "unsupported".to_owned(),
            Self::Unknown => "unknown".to_owned(),
        }
    }

    /// Height and width a feature network is used at, pixels; `None` for what is no feature network.
    #[must_use]
    pub fn feature_size(&self) -> Option<usize> {
        match self {
            Self::EfficientNetLite0 => Some(efficientnet_lite::INPUT_SIZE),
            Self::InceptionV3(_) => Some(inception_v3::INPUT_SIZE),
            Self::VisionTransformer(config) => Some(config.input_size()),
            Self::Vgg16(_) => Some(vgg16::INPUT_SIZE),
            Self::Denoiser(_) | Self::OpenAiUNet(_) | Self::StyleGan2(_) | Self::Unsupported(_) | Self::Unknown => None,
        }
    }
}

impl Network {
    /// The same tensors as another network.
    #[must_use]
    pub fn described_as(&self, architecture: Architecture) -> Self {
        let (name, tensors) = (self.name.clone(), Arc::clone(&self.tensors));
        Self { name, architecture, tensors, source_sha256: self.source_sha256.clone() }
    }

    /// The configuration of a denoiser, as far as it is known.
    ///
    /// # Errors
    /// `Config` saying what is missing, or that it is another network.
    pub fn denoiser_config(&self) -> Result<&NetConfig> {
        let what = match &self.architecture {
            Architecture::Denoiser(config) => return Ok(config),
            Architecture::OpenAiUNet(found) => match &found.config {
                Some(config) => return Ok(config),
                None => found.question(),
            },
            Architecture::Unsupported(why) => why.clone(),
            Architecture::Unknown => {
                "the checkpoint does not say which network it holds (class and init_kwargs)".to_owned()
            }
            other => format!("a denoiser was expected, found {}", other.name()),
        };
        Err(Error::Config { what })
    }

    /// The network that is stored, or those of a wrapper around several.
    fn identify(stored: StoredNetwork, format: Format, file: &Path, notes: &mut Vec<String>) -> Result<Vec<Self>> {
        let source_sha256 = stored.source.as_ref().map(|s| s.sha256.to_string());
        let architecture = match &stored.class {
            // d2o's own snapshots record exactly what the class takes.
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
        let mut networks = wrappers::unwrap(name, tensors, &stem, notes);
        for network in &mut networks {
            network.source_sha256.clone_from(&source_sha256);
            match (&network.architecture, &class, &scaled_norm) {
                (Architecture::Unknown, Some(class), _) => {
                    network.architecture =
                        Architecture::Unsupported(format!("objects of class `{class}` are not known"));
                }
                (Architecture::InceptionV3(_), _, Some(norm)) => {
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

/// What a persistent object of `class` says it is; `None` if the class is none of the generators'.
fn described(class: &str, found: &StoredNetwork) -> Option<Architecture> {
    const DENOISER: [&str; 4] = ["img_resolution", "img_channels", "label_dim", "use_fp16"];
    const GENERATOR: [&str; 5] = ["z_dim", "c_dim", "w_dim", "img_resolution", "img_channels"];
    let positional = match class {
        stylegan2::CLASS => &GENERATOR[..],
        _ if class.ends_with("Precond") => &DENOISER,
        _ => return None,
    };
    if class == stylegan2::CLASS && found.tensors.info("synthesis.b4.const").is_none() {
        let what = "a generator without `synthesis.b4.const` is none of StyleGAN2's (StyleGAN3's is not supported)";
        return Some(Architecture::Unsupported(what.to_owned()));
    }
    if found.init_args.len() > positional.len() {
        let count = found.init_args.len();
        return Some(Architecture::Unsupported(format!(
            "`{class}` was given {count} positional arguments; only {positional:?} are known"
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

/// Compares what the source that a pickle carries for `class` computes as c_skip and c_out with what that class is known to compute: a
/// repository may have changed a formula and kept the name.
fn check_source(class: &str, source: &str) -> Result<(), String> {
    let known = FORMULAS.iter().find(|(c, _)| *c == class).map_or(&[][..], |(_, lines)| lines);
    let start = source.find(&format!("class {class}("));
    let Some(body) = start.map(|s| &source[s..]) else { return Ok(()) };
    let body = body[1..].find("\nclass ").map_or(body, |end| &body[..=end]);
    for (name, formula) in known {
        let found =
            body.lines().filter_map(|l| l.trim().strip_prefix(name)).find_map(|l| l.trim_start().strip_prefix('='));
        let Some(found) = found else { continue };
        let bare = |t: &str| t.split('#').next().unwrap_or("").split_whitespace().collect::<String>();
        if bare(found) != bare(formula) {
            let found = found.trim();
            return Err(format!("the pickle's own source of `{class}` sets {name} = {found}, expected {formula}"));
        }
    }
    Ok(())
}

/// The preconditioners' formulas as their sources spell them.
const FORMULAS: [(&str, &[(&str, &str)]); 2] = [
    (
        "EDMPrecond",
        &[
            ("c_skip", "self.sigma_data ** 2 / (sigma ** 2 + self.sigma_data ** 2)"),
            ("c_out", "sigma * self.sigma_data / (sigma ** 2 + self.sigma_data ** 2).sqrt()"),
        ],
    ),
    (
        "D2OPrecond",
        &[
            ("c_skip", "self.sigma_data ** 2 / ((sigma - self.eps) ** 2 + self.sigma_data ** 2)"),
            ("c_out", "(sigma - self.eps) * self.sigma_data / (sigma ** 2 + self.sigma_data ** 2).sqrt()"),
        ],
    ),
];

/// Tensors whose names an architecture recognises: its configuration, or why they cannot be used, and the tensors under the names that the network takes.
pub(crate) type Recognised<C> = Option<(Result<C>, Arc<dyn TensorSource>)>;

/// Recognises one architecture by tensors and the name of their file, without its extension.
type Recognise = fn(&Arc<dyn TensorSource>, &str) -> Recognised<Architecture>;

/// Every architecture that is recognised without a class, in the order tried.
const ARCHITECTURES: [Recognise; 5] = [
    |tensors, _| as_architecture(inception_v3::recognise(tensors), Architecture::InceptionV3),
    |tensors, _| as_architecture(vision_transformer::recognise(tensors), Architecture::VisionTransformer),
    |tensors, _| as_architecture(vgg16::recognise(tensors), Architecture::Vgg16),
    |tensors, _| as_architecture(efficientnet_lite::recognise(tensors), |()| Architecture::EfficientNetLite0),
    |tensors, file| as_architecture(openai_unet::recognise(tensors, file), Architecture::OpenAiUNet),
];

fn as_architecture<C>(found: Recognised<C>, architecture: fn(C) -> Architecture) -> Recognised<Architecture> {
    found.map(|(config, tensors)| (config.map(architecture), tensors))
}

/// Names the architecture of a plain state dict in a file called `file`.
pub(crate) fn recognise(name: String, tensors: Arc<dyn TensorSource>, file: &str) -> Network {
    let found = ARCHITECTURES.iter().find_map(|recognise| recognise(&tensors, file));
    let (architecture, tensors) = match found {
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
    use crate::nn::OnnxBackend;
    use crate::nn::inception_v3::{InceptionV3, Layout, Parts, names};
    use crate::published::Digests;
    use crate::weights::{Init, Scope, Weights};

    /// A tensor: name, dimensions, values as a function of NVIDIA's name.
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
            // Our axis i is their axis axes[i], so theirs come from undoing that order.
            let our_dims: Vec<usize> = axes.iter().map(|a| dims[*a]).collect();
            let mut undo = vec![0; axes.len()];
            axes.iter().enumerate().for_each(|(i, a)| undo[*a] = i);
            let array = ndarray::ArrayD::from_shape_vec(our_dims, values).unwrap();
            Ok(array.permuted_axes(undo).iter().copied().collect())
        }
    }

    /// Dimensions of all tensors under NVIDIA's names, as the network asks for them.
    fn asked() -> Vec<(String, Vec<usize>)> {
        let mut b = OnnxBackend::new("x", Weights::initialised(0));
        InceptionV3::build(&mut b, &Scope::root(), Parts { gamma: true, head: true }).unwrap();
        b.taken().map(|(name, dims)| (name.to_owned(), dims.to_vec())).collect()
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
        assert_eq!(nvidia.architecture, Architecture::InceptionV3(Parts { gamma: false, head: true }));
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
            assert_eq!(other.architecture, Architecture::InceptionV3(Parts { gamma, head }));
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

    /// `source` with one value of the tensor called `changed` in NVIDIA's terms replaced.
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
        // A scale other than 1 counts, and so does every other value of either part.
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
        let options = FeatureOptions {
            input: PixelInput::F32,
            image_size: inception_v3::INPUT_SIZE,
            input_size: inception_v3::INPUT_SIZE,
            activation: None,
            head_width: None,
            taps: false,
        };
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

    #[test]
    fn a_changed_formula_under_a_known_name_is_refused() {
        let source = |c_skip: &str| {
            format!(
                "import x\n\nclass EDMPrecond(torch.nn.Module):\n    def forward(self):\n        c_skip = {c_skip}\n\nclass Next(x):\n    c_skip = 1\n"
            )
        };
        assert_eq!(
            check_source("EDMPrecond", &source("self.sigma_data**2 / (sigma**2 + self.sigma_data**2) # x")),
            Ok(())
        );
        let text = check_source("EDMPrecond", &source("1 / (1 + sigma)")).unwrap_err();
        assert!(text.contains("sets c_skip = 1 / (1 + sigma)"), "{text}");
        assert_eq!(check_source("VEPrecond", "class VEPrecond(x):\n    c_skip = 1"), Ok(()));
    }
}
