//! Checkpoint files as sources of named tensors, one format a file.

mod graph_def;
mod input;
mod objects;
pub mod pickle;
pub mod safetensors;
mod torch_legacy;
mod torch_pickle;
mod torch_zip;
mod views;
mod wrappers;

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use fs_err as fs;
use serde_json::{Map, Value};

use self::input::Input;
use self::objects::{Contents, Found, MAX_NETWORKS};
use self::views::Views;
use crate::config::NetConfig;
use crate::error::{Error, Result};
use crate::nn::openai_unet::{self, Recognised};
use crate::nn::stylegan2::{self, StyleGan2Config};
use crate::nn::vision_transformer::{self, Activation, Family, VitConfig};
use crate::nn::{efficientnet_lite, inception_v3, vgg16};

/// Element type of a stored tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs, reason = "the names say it")]
pub enum Dtype {
    F64,
    F32,
    F16,
    BF16,
    I64,
    I32,
    I16,
    I8,
    U64,
    U32,
    U16,
    U8,
    Bool,
    /// A type that is not read, by its name in the file.
    Other(&'static str),
}

impl Dtype {
    /// Size of one element in bytes; 0 for a type that is not read.
    #[must_use]
    pub fn size(self) -> usize {
        match self {
            Self::F64 | Self::I64 | Self::U64 => 8,
            Self::F32 | Self::I32 | Self::U32 => 4,
            Self::F16 | Self::BF16 | Self::I16 | Self::U16 => 2,
            Self::I8 | Self::U8 | Self::Bool => 1,
            Self::Other(_) => 0,
        }
    }

    /// One little-endian element as f32 (f64 and integers are rounded).
    #[allow(clippy::cast_possible_truncation, clippy::cast_precision_loss, reason = "documented rounding")]
    pub(crate) fn element(self, b: &[u8]) -> f32 {
        match (self, b) {
            (Self::F32, &[a, b, c, d]) => f32::from_le_bytes([a, b, c, d]),
            (Self::F64, &[a, b, c, d, e, f, g, h]) => f64::from_le_bytes([a, b, c, d, e, f, g, h]) as f32,
            (Self::F16, &[a, b]) => half::f16::from_le_bytes([a, b]).to_f32(),
            (Self::BF16, &[a, b]) => half::bf16::from_le_bytes([a, b]).to_f32(),
            (Self::I64, &[a, b, c, d, e, f, g, h]) => i64::from_le_bytes([a, b, c, d, e, f, g, h]) as f32,
            (Self::I32, &[a, b, c, d]) => i32::from_le_bytes([a, b, c, d]) as f32,
            (Self::U64, &[a, b, c, d, e, f, g, h]) => u64::from_le_bytes([a, b, c, d, e, f, g, h]) as f32,
            (Self::U32, &[a, b, c, d]) => u32::from_le_bytes([a, b, c, d]) as f32,
            (Self::U16, &[a, b]) => f32::from(u16::from_le_bytes([a, b])),
            (Self::I16, &[a, b]) => f32::from(i16::from_le_bytes([a, b])),
            (Self::I8, &[a]) => f32::from(i8::from_le_bytes([a])),
            (Self::U8 | Self::Bool, &[a]) => f32::from(a),
            _ => f32::NAN,
        }
    }
}

/// Type and shape of a stored tensor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorInfo {
    /// Element type in the file.
    pub dtype: Dtype,
    /// Dimensions, outermost first.
    pub dims: Vec<usize>,
}

/// A bag of named tensors, read lazily.
pub trait TensorSource: std::fmt::Debug {
    /// Tensor names in the file's order.
    fn names(&self) -> Vec<String>;

    /// Type and shape of `name`, if it is there.
    fn info(&self, name: &str) -> Option<TensorInfo>;

    /// Values of `name` in row-major order, converted to f32 (exact for f16, bf16 and f32; f64 and integers are rounded).
    ///
    /// # Errors
    /// `MissingTensor` if there is none; `Format` or `Io` if its bytes cannot be read.
    fn read_f32(&self, name: &str) -> Result<Vec<f32>>;
}

/// A source under other names and in other axis orders.
#[derive(Debug)]
pub struct Renamed {
    source: Rc<dyn TensorSource>,
    renamed: Vec<Entry>,
    index: HashMap<String, usize>,
}

/// Axis i of the shown tensor is axis `axes[i]` of the source's; no axes leave it as it is.
#[derive(Debug)]
struct Entry {
    shown: String,
    old: String,
    axes: &'static [usize],
}

impl Renamed {
    /// `source`'s tensors that `name` gives a name, under that name.
    #[must_use]
    pub fn new(source: Rc<dyn TensorSource>, name: impl Fn(&str) -> Option<String>) -> Self {
        let renamed = source.names().into_iter().filter_map(|old| name(&old).map(|new| (new, old, &[][..])));
        let renamed = renamed.collect();
        Self::listed(source, renamed)
    }

    /// The tensors of `source` that `list` names: shown name, name in the source, and for each shown axis the source's (none: the same).
    /// What the source lacks is left out.
    #[must_use]
    pub fn listed(source: Rc<dyn TensorSource>, list: Vec<(String, String, &'static [usize])>) -> Self {
        let fits = |old: &str, axes: &[usize]| {
            let mut sorted = axes.to_vec();
            sorted.sort_unstable();
            source.info(old).is_some_and(|i| axes.is_empty() || sorted.iter().copied().eq(0..i.dims.len()))
        };
        let list = list.into_iter().filter(|(_, old, axes)| fits(old, axes));
        let renamed: Vec<Entry> = list.map(|(shown, old, axes)| Entry { shown, old, axes }).collect();
        let index = renamed.iter().enumerate().map(|(i, e)| (e.shown.clone(), i)).collect();
        Self { source, renamed, index }
    }

    fn entry(&self, name: &str) -> Option<&Entry> {
        self.index.get(name).map(|i| &self.renamed[*i])
    }
}

impl TensorSource for Renamed {
    fn names(&self) -> Vec<String> {
        self.renamed.iter().map(|e| e.shown.clone()).collect()
    }

    fn info(&self, name: &str) -> Option<TensorInfo> {
        let entry = self.entry(name)?;
        let mut info = self.source.info(&entry.old)?;
        if !entry.axes.is_empty() {
            info.dims = entry.axes.iter().map(|a| info.dims[*a]).collect();
        }
        Some(info)
    }

    fn read_f32(&self, name: &str) -> Result<Vec<f32>> {
        let missing = || Error::MissingTensor { path: name.to_owned(), similar: Vec::new() };
        let entry = self.entry(name).ok_or_else(missing)?;
        let values = self.source.read_f32(&entry.old)?;
        if entry.axes.is_empty() {
            return Ok(values);
        }
        let dims = self.source.info(&entry.old).ok_or_else(missing)?.dims;
        let array = ndarray::ArrayViewD::from_shape(dims.as_slice(), &values).map_err(|_| Error::ShapeMismatch {
            path: entry.old.clone(),
            expected: dims.clone(),
            found: vec![values.len()],
        })?;
        Ok(array.permuted_axes(entry.axes.to_vec()).iter().copied().collect())
    }
}

impl TensorSource for Rc<dyn TensorSource> {
    fn names(&self) -> Vec<String> {
        self.as_ref().names()
    }

    fn info(&self, name: &str) -> Option<TensorInfo> {
        self.as_ref().info(name)
    }

    fn read_f32(&self, name: &str) -> Result<Vec<f32>> {
        self.as_ref().read_f32(name)
    }
}

/// What a checkpoint's container is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// safetensors.
    Safetensors,
    /// `torch.save` before PyTorch 1.6.
    TorchLegacy,
    /// `torch.save` since PyTorch 1.6.
    TorchZip,
    /// TorchScript.
    TorchScript,
    /// A Python pickle of modules.
    Pickle,
    /// A TensorFlow graph.
    GraphDef,
}

impl Format {
    /// What people call it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Safetensors => "safetensors",
            Self::TorchLegacy => "torch.save, legacy layout",
            Self::TorchZip => "torch.save",
            Self::TorchScript => "TorchScript",
            Self::Pickle => "Python pickle",
            Self::GraphDef => "TensorFlow GraphDef",
        }
    }
}

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
    OpenAiUNet(Recognised),
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
    pub tensors: Rc<dyn TensorSource>,
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
    pub tensors: Rc<dyn TensorSource>,
    /// What lies beside the networks and was not read, a sentence each.
    pub notes: Vec<String>,
}

impl Checkpoint {
    /// Opens `path`; the content decides the format.
    ///
    /// A safetensors file with metadata `class` and `init_kwargs` holds denoisers: those whose prefixes its metadata `networks` lists
    /// (a JSON list, as in d2o's snapshots), else the one under `weights.`, else the whole file.
    ///
    /// A pickle holds the modules of its outermost dict, a torch or TorchScript archive its modules or state dicts, a GraphDef its
    /// constants. Objects beside them are recorded and never made; [`Checkpoint::notes`] names those that are not read.
    ///
    /// Reading takes memory and work in proportion to the file's size, whatever the file declares.
    ///
    /// # Errors
    /// `Format` if it is not a checkpoint, or a damaged one; `Config` for a bad configuration.
    pub fn open(path: &Path) -> Result<Self> {
        let head = head(path)?;
        if safetensors::recognises(&head) {
            return Self::from_safetensors(path);
        }
        let format = if torch_legacy::recognises(&head) {
            Format::TorchLegacy
        } else if torch_zip::recognises(&head) {
            Format::TorchZip
        } else if torch_pickle::recognises(&head) {
            Format::Pickle
        } else if graph_def::recognises(&head) {
            Format::GraphDef
        } else {
            let expected = "a safetensors, torch.save, TorchScript, pickle or GraphDef file";
            return Err(Error::format(path, "start of file", expected, describe(&head)));
        };
        let map = views::map(path)?;
        let input = Input::new(path, &map);
        let (contents, format) = match format {
            Format::TorchLegacy => (torch_legacy::networks(&input)?, format),
            Format::Pickle => (torch_pickle::networks(&input)?, format),
            Format::GraphDef => return Self::from_graph_def(&input, &map),
            _ => {
                let (contents, script) = torch_zip::networks(&input)?;
                (contents, if script { Format::TorchScript } else { format })
            }
        };
        let Contents { networks: found, mut notes } = contents;
        let (mut networks, mut all) = (Vec::new(), Vec::new());
        for network in found {
            let prefix = if network.name.is_empty() { String::new() } else { format!("{}.", network.name) };
            all.extend(network.tensors.iter().map(|(n, v)| (format!("{prefix}{n}"), v.clone())));
            networks.extend(Network::found(&input, &map, network, &mut notes)?);
        }
        let tensors: Rc<dyn TensorSource> = Rc::new(Views::new(&input, Rc::clone(&map), all)?);
        Ok(Self { path: path.to_owned(), format, networks, metadata: Vec::new(), tensors, notes })
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

    fn from_safetensors(path: &Path) -> Result<Self> {
        let file = safetensors::SafetensorsFile::open(path)?;
        let metadata = file.metadata().to_vec();
        let of = |key: &str| metadata.iter().find(|(k, _)| k == key).map(|(_, v)| v.as_str());
        let json = |key: &str, text: &str| -> Result<Value> {
            if text.len() > MAX_ARGUMENTS {
                let expected = format!("at most {MAX_ARGUMENTS} bytes");
                return Err(Error::format(path, format!("metadata `{key}`"), expected, text.len().to_string()));
            }
            serde_json::from_str(text)
                .map_err(|e| Error::format(path, format!("metadata `{key}`"), "JSON", e.to_string()))
        };
        let architecture = match (of("class"), of("init_kwargs")) {
            (Some(class), Some(kwargs)) => Some(Architecture::configured(class, &json("init_kwargs", kwargs)?)?),
            _ => None,
        };
        let names = file.names();
        let listed = of("networks").map(|text| listed(path, text, &names)).transpose()?.unwrap_or_default();
        let tensors: Rc<dyn TensorSource> = Rc::new(file);
        let (mut networks, mut notes) = (Vec::new(), Vec::new());
        let below = |prefix: String| {
            Rc::new(Renamed::new(Rc::clone(&tensors), move |n| n.strip_prefix(&prefix).map(str::to_owned)))
        };
        if let Some(architecture) = architecture {
            if !listed.is_empty() {
                for name in listed {
                    let tensors = below(format!("{name}."));
                    networks.push(Network::new(name, architecture.clone(), tensors));
                }
            } else if names.iter().any(|n| n.starts_with("weights.")) {
                networks.push(Network::new(String::new(), architecture, below("weights.".to_owned())));
            } else {
                networks.push(Network::new(String::new(), architecture, Rc::clone(&tensors)));
            }
        } else {
            networks.extend(wrappers::unwrap(String::new(), Rc::clone(&tensors), path, &mut notes));
        }
        Ok(Self { path: path.to_owned(), format: Format::Safetensors, networks, metadata, tensors, notes })
    }

    fn from_graph_def(input: &Input<'_>, map: &Rc<memmap2::Mmap>) -> Result<Self> {
        let graph = graph_def::read(input)?;
        let tensors: Rc<dyn TensorSource> = Rc::new(Views::new(input, Rc::clone(map), graph.constants)?);
        let mut network = recognise(String::new(), Rc::clone(&tensors));
        if let (Architecture::InceptionV3 { .. }, Some(norm)) = (&network.architecture, graph.scaled_norms.first()) {
            let what = format!("`{norm}` scales after normalising, which Inception-2015-12-05 does not");
            network.architecture = Architecture::Unsupported(what);
        }
        let (path, networks) = (input.path.to_owned(), vec![network]);
        Ok(Self { path, format: Format::GraphDef, networks, metadata: Vec::new(), tensors, notes: Vec::new() })
    }
}

/// Longest constructor arguments in a safetensors file's metadata, bytes.
const MAX_ARGUMENTS: usize = 1 << 20;

/// The networks that metadata `networks` lists: some of the prefixes of the tensors called `tensors`.
fn listed(path: &Path, text: &str, tensors: &[String]) -> Result<Vec<String>> {
    let bad = |expected: &str, found: String| Error::format(path, "metadata `networks`", expected, found);
    let names: Vec<String> = serde_json::from_str(text).map_err(|e| bad("a list of names", e.to_string()))?;
    if names.len() > MAX_NETWORKS {
        return Err(bad(&format!("at most {MAX_NETWORKS} names"), names.len().to_string()));
    }
    for (i, name) in names.iter().enumerate() {
        if names[..i].contains(name) {
            return Err(bad("different names", format!("`{name}` twice")));
        }
        if !tensors.iter().any(|t| t.strip_prefix(name.as_str()).is_some_and(|rest| rest.starts_with('.'))) {
            return Err(bad("names that tensors begin with", format!("`{name}`, which none does")));
        }
    }
    Ok(names)
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
        let (name, tensors) = (self.name.clone(), Rc::clone(&self.tensors));
        Self { name, architecture, tensors, source_sha256: self.source_sha256.clone() }
    }

    /// What the file's name adds to a network that its shapes do not tell all of.
    fn with_name_of(self, path: &Path) -> Self {
        if self.architecture != Architecture::Unknown {
            return self;
        }
        let stem = path.file_stem().map(|s| s.to_string_lossy().into_owned()).unwrap_or_default();
        match openai_unet::recognise(&stem, &self.tensors) {
            Some(found) => Self { architecture: Architecture::OpenAiUNet(found), ..self },
            None => self,
        }
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

    fn new(name: String, architecture: Architecture, tensors: Rc<dyn TensorSource>) -> Self {
        Self { name, architecture, tensors, source_sha256: None }
    }

    /// The network that was found, or those of a wrapper around several.
    fn found(input: &Input<'_>, map: &Rc<memmap2::Mmap>, found: Found, notes: &mut Vec<String>) -> Result<Vec<Self>> {
        let source_sha256 = found.source.as_ref().map(|s| s.sha256.to_string());
        let architecture = found.class.as_deref().and_then(|class| described(class, &found));
        let tensors: Rc<dyn TensorSource> = Rc::new(Views::new(input, Rc::clone(map), found.tensors)?);
        if let Some(architecture) = architecture {
            return Ok(vec![Self { name: found.name, architecture, tensors, source_sha256 }]);
        }
        let mut networks = wrappers::unwrap(found.name, tensors, input.path, notes);
        for network in &mut networks {
            network.source_sha256.clone_from(&source_sha256);
            if let (Architecture::Unknown, Some(class)) = (&network.architecture, &found.class) {
                network.architecture = Architecture::Unsupported(format!("objects of class `{class}` are not known"));
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
fn described(class: &str, found: &Found) -> Option<Architecture> {
    const DENOISER: [&str; 4] = ["img_resolution", "img_channels", "label_dim", "use_fp16"];
    const GENERATOR: [&str; 5] = ["z_dim", "c_dim", "w_dim", "img_resolution", "img_channels"];
    let positional = match class {
        stylegan2::CLASS => &GENERATOR[..],
        _ if class.ends_with("Precond") => &DENOISER,
        _ => return None,
    };
    if class == stylegan2::CLASS && !found.tensors.iter().any(|(name, _)| name == "synthesis.b4.const") {
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

/// Names the architecture of a plain state dict from its tensor names.
pub(crate) fn recognise(name: String, tensors: Rc<dyn TensorSource>) -> Network {
    let names = tensors.names();
    let has = |name: &str| names.iter().any(|n| n == name);
    if let Some(layout) = inception_v3::layout(|n| has(n)) {
        return inception(name, tensors, layout);
    }
    if has("visual.conv1.weight") && has("visual.transformer.resblocks.0.attn.in_proj_weight") {
        // OpenAI's archives keep three sizes among the tensors; they and the text tower lie outside `visual.`.
        let quick = has("input_resolution") && has("context_length");
        let visual = Renamed::new(tensors, |n| n.strip_prefix("visual.").map(str::to_owned));
        return transformer(name, Family::Clip, Rc::new(visual), quick.then_some(Activation::QuickGelu));
    }
    if has("vision_model.embeddings.patch_embedding.weight") && has("visual_projection.weight") {
        let list =
            names.iter().filter_map(|n| vision_transformer::openai_name(n).map(|(ours, axes)| (ours, n.clone(), axes)));
        let list = list.collect();
        return transformer(name, Family::Clip, Rc::new(Renamed::listed(tensors, list)), None);
    }
    if has("embeddings.patch_embeddings.projection.weight") && has("encoder.layer.0.layer_scale1.lambda1") {
        // Whatever else is there stays visible under its own name, so that a load of another network is not clean.
        let renamed = Renamed::new(tensors, |n| Some(vision_transformer::dino_name(n).unwrap_or_else(|| n.to_owned())));
        return transformer(name, Family::Dino, Rc::new(renamed), None);
    }
    if has("pos_embed") && has("patch_embed.proj.weight") && has("blocks.0.norm1.weight") {
        if has("dist_token") {
            return transformer(name, Family::Deit, tensors, None);
        }
        if has("blocks.0.ls1.gamma") {
            return transformer(name, Family::Dino, tensors, None);
        }
    }
    if let Some(batch_norm) = vgg16::recognise(|n| has(n)) {
        let kept = Renamed::new(tensors, |n| (!n.ends_with(".num_batches_tracked")).then(|| n.to_owned()));
        let architecture = or_unsupported(vgg16::VggConfig::of(batch_norm, &kept).map(Architecture::Vgg16));
        return Network::new(name, architecture, Rc::new(kept));
    }
    let counted = |n: &str| n.ends_with(".num_batches_tracked");
    if has("_conv_stem.weight") && has("_blocks.15._project_conv.weight") {
        let renamed = Renamed::new(tensors, move |n| if counted(n) { None } else { efficientnet_lite::timm_name(n) });
        Network::new(name, Architecture::EfficientNetLite0, Rc::new(renamed))
    } else if has("conv_stem.weight") && has("blocks.6.0.conv_pwl.weight") && !has("blocks.0.0.se.conv_reduce.weight") {
        let renamed = Renamed::new(tensors, move |n| if counted(n) { None } else { Some(n.to_owned()) });
        Network::new(name, Architecture::EfficientNetLite0, Rc::new(renamed))
    } else {
        Network::new(name, Architecture::Unknown, tensors)
    }
}

/// A transformer of the sizes of `tensors`.
fn transformer(name: String, family: Family, tensors: Rc<dyn TensorSource>, activation: Option<Activation>) -> Network {
    let unlike = [
        ("register_tokens", "registers"),
        ("blocks.0.mlp.w12.weight", "SwiGLU"),
        ("blocks.0.mlp.weights_in.weight", "SwiGLU"),
    ];
    let architecture = match unlike.iter().find(|(n, _)| tensors.info(n).is_some()) {
        Some((_, what)) => Architecture::Unsupported(format!("a vision transformer with {what} is not known")),
        None => {
            or_unsupported(VitConfig::of(family, tensors.as_ref(), activation).map(Architecture::VisionTransformer))
        }
    };
    Network::new(name, architecture, tensors)
}

/// What was recognised, or why it cannot be used.
fn or_unsupported(architecture: Result<Architecture>) -> Architecture {
    match architecture {
        Ok(architecture) => architecture,
        Err(Error::Config { what }) => Architecture::Unsupported(what),
        Err(e) => Architecture::Unsupported(e.to_string()),
    }
}

fn inception(name: String, tensors: Rc<dyn TensorSource>, layout: inception_v3::Layout) -> Network {
    let mut list = inception_v3::names(layout);
    if layout != inception_v3::Layout::TensorFlow {
        // Whatever else is there stays visible, so that a load of another network is not clean.
        let known: HashSet<_> = list.iter().map(|(_, theirs, _)| theirs.clone()).collect();
        let rest = tensors.names().into_iter().filter(|n| !known.contains(n) && !n.ends_with(".num_batches_tracked"));
        list.extend(rest.map(|n| (n.clone(), n, &[][..])));
    }
    let renamed = Renamed::listed(tensors, list);
    let rows = renamed.info("output.weight").and_then(|i| i.dims.first().copied());
    let parts = inception_v3::Parts {
        gamma: matches!(layout, inception_v3::Layout::PyTorch | inception_v3::Layout::Blocks),
        head: layout != inception_v3::Layout::Blocks,
    };
    let head = if parts.head { inception_v3::check_head(rows) } else { Ok(()) };
    let architecture = or_unsupported(head.map(|()| Architecture::InceptionV3(parts)));
    Network::new(name, architecture, Rc::new(renamed))
}

/// The first bytes of `path`, at most 64. Opening a pipe would wait for its other end, and only a file can be mapped.
fn head(path: &Path) -> Result<Vec<u8>> {
    use std::io::Read as _;
    let metadata = fs::metadata(path)?;
    if !metadata.is_file() {
        let found = if metadata.is_dir() { "a folder" } else { "a pipe or a device" };
        return Err(Error::format(path, "path", "a file", found));
    }
    let mut head = Vec::new();
    fs::File::open(path)?.take(64).read_to_end(&mut head)?;
    Ok(head)
}

/// What a file that is not a checkpoint is, by its first bytes.
fn describe(head: &[u8]) -> String {
    let text = head.strip_prefix(b"\xef\xbb\xbf").unwrap_or(head).trim_ascii_start();
    let known = match text {
        [] => "an empty file",
        _ if head.iter().all(|b| *b == 0) => "zeros: the file was not written, or not to its end",
        t if t.starts_with(b"version https://git-lfs") => "a Git LFS pointer; `git lfs pull` fetches the file itself",
        t if t.starts_with(b"<?xml") => "an XML file, as servers send instead of a file that they refuse",
        t if t.starts_with(b"<") => "a web page, as servers send before or instead of a file",
        t if t.starts_with(b"\x1f\x8b") => "a gzip file: unpack it first",
        t if t.starts_with(b"\x89HDF\r\n") => "an HDF5 file",
        t if t.starts_with(b"\x93NUMPY") => "a NumPy array",
        t if t.starts_with(b"\x08") && t.windows(4).any(|w| w == b"onnx" || w == b"orch") => "an ONNX graph",
        _ => return format!("bytes {:02x?}", &head[..head.len().min(16)]),
    };
    known.to_owned()
}

#[cfg(test)]
mod tests {
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

        fn read_f32(&self, name: &str) -> Result<Vec<f32>> {
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

    fn source(layout: Layout, asked: &[(String, Vec<usize>)], rows: usize) -> Rc<dyn TensorSource> {
        let tensors = names(layout).into_iter().map(|(ours, theirs, axes)| {
            let mut dims = asked.iter().find(|(n, _)| *n == ours).unwrap().1.clone();
            if ours.starts_with("output.") {
                dims[0] = rows;
            }
            let mut their_dims = dims.clone();
            axes.iter().enumerate().for_each(|(i, a)| their_dims[*a] = dims[i]);
            (theirs, their_dims, ours, axes)
        });
        Rc::new(Drawn(tensors.collect()))
    }

    #[test]
    fn all_layouts_of_inception_give_the_same_tensors() {
        let asked = asked();
        assert_eq!(asked.len(), 472);
        let open = |layout| recognise(String::new(), source(layout, &asked, 1008));
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
    struct Changed(Rc<dyn TensorSource>, String);

    impl TensorSource for Changed {
        fn names(&self) -> Vec<String> {
            self.0.names()
        }

        fn info(&self, name: &str) -> Option<TensorInfo> {
            self.0.info(name)
        }

        fn read_f32(&self, name: &str) -> Result<Vec<f32>> {
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
        let digests = |source| Digests::of(&recognise(String::new(), source)).unwrap().unwrap();
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
            let changed = digests(Rc::new(Changed(source(layout, &asked, 1008), name.to_owned())));
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
            let network = recognise(String::new(), source(layout, &asked, 1008));
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
        let network = recognise(String::new(), source(Layout::PyTorch, &asked(), 1000));
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
