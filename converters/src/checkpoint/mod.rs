//! Checkpoint files as sources of named tensors, one format a file.

pub mod pickle;
pub mod safetensors;
pub mod torch_legacy;

use std::path::{Path, PathBuf};
use std::rc::Rc;

use fs_err as fs;
use serde_json::Value;

use crate::config::NetConfig;
use crate::error::{Error, Result};
use crate::nn::efficientnet_lite;

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
    U8,
    Bool,
}

impl Dtype {
    /// Size of one element in bytes.
    #[must_use]
    pub fn size(self) -> usize {
        match self {
            Self::F64 | Self::I64 => 8,
            Self::F32 | Self::I32 => 4,
            Self::F16 | Self::BF16 | Self::I16 => 2,
            Self::I8 | Self::U8 | Self::Bool => 1,
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

/// A source under other names: `renamed` lists (shown name, name in the source).
#[derive(Debug)]
pub struct Renamed {
    source: Rc<dyn TensorSource>,
    renamed: Vec<(String, String)>,
}

impl Renamed {
    /// `source`'s tensors that `name` gives a name, under that name.
    #[must_use]
    pub fn new(source: Rc<dyn TensorSource>, name: impl Fn(&str) -> Option<String>) -> Self {
        let renamed = source.names().into_iter().filter_map(|old| name(&old).map(|new| (new, old))).collect();
        Self { source, renamed }
    }

    fn old(&self, name: &str) -> Option<&str> {
        self.renamed.iter().find(|(n, _)| n == name).map(|(_, o)| o.as_str())
    }
}

impl TensorSource for Renamed {
    fn names(&self) -> Vec<String> {
        self.renamed.iter().map(|(n, _)| n.clone()).collect()
    }

    fn info(&self, name: &str) -> Option<TensorInfo> {
        self.source.info(self.old(name)?)
    }

    fn read_f32(&self, name: &str) -> Result<Vec<f32>> {
        let old = self.old(name).ok_or_else(|| Error::MissingTensor { path: name.to_owned(), similar: Vec::new() })?;
        self.source.read_f32(old)
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
}

/// What a network in a checkpoint is, as far as the file tells.
#[derive(Debug, Clone, PartialEq)]
#[allow(clippy::large_enum_variant, reason = "a handful per file")]
pub enum Architecture {
    /// A preconditioned denoiser or one-step generator.
    Denoiser(NetConfig),
    /// EfficientNet-Lite0, tensors under timm's names.
    EfficientNetLite0,
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
}

impl Checkpoint {
    /// Opens `path`; the content decides the format.
    ///
    /// A safetensors file with metadata `class` and `init_kwargs` holds denoisers: those whose prefixes its metadata `networks` lists
    /// (a JSON list, as in d2o's snapshots), else the one under `weights.`, else the whole file.
    ///
    /// # Errors
    /// `Format` if it is no checkpoint, or a damaged one; `Config` for a bad configuration.
    pub fn open(path: &Path) -> Result<Self> {
        let head = head(path)?;
        if torch_legacy::recognises(&head) {
            return Self::from_legacy(path);
        }
        if safetensors::recognises(&head) {
            return Self::from_safetensors(path);
        }
        let found = if head.is_empty() { "an empty file".to_owned() } else { format!("bytes {head:02x?}") };
        Err(Error::format(path, "start of file", "a safetensors file or a legacy torch.save file", found))
    }

    /// The network called `name`, or the only one if the file names none.
    ///
    /// # Errors
    /// `Config` listing the names there are.
    pub fn network(&self, name: &str) -> Result<&Network> {
        let only = self.networks.first().filter(|n| n.name.is_empty());
        self.networks.iter().find(|n| n.name == name).or(only).ok_or_else(|| {
            let names: Vec<_> = self.networks.iter().map(|n| n.name.as_str()).collect();
            Error::Config { what: format!("network `{name}`: the file holds only {names:?}") }
        })
    }

    fn from_safetensors(path: &Path) -> Result<Self> {
        let file = safetensors::SafetensorsFile::open(path)?;
        let metadata = file.metadata().to_vec();
        let of = |key: &str| metadata.iter().find(|(k, _)| k == key).map(|(_, v)| v.as_str());
        let json = |key: &str, text: &str| -> Result<Value> {
            serde_json::from_str(text)
                .map_err(|e| Error::format(path, format!("metadata `{key}`"), "JSON", e.to_string()))
        };
        let architecture = match (of("class"), of("init_kwargs")) {
            (Some(class), Some(kwargs)) => {
                Some(Architecture::Denoiser(NetConfig::new(class, &json("init_kwargs", kwargs)?)?))
            }
            _ => None,
        };
        let names = file.names();
        let listed = match of("networks") {
            Some(text) => serde_json::from_value::<Vec<String>>(json("networks", text)?)
                .map_err(|e| Error::format(path, "metadata `networks`", "a list of names", e.to_string()))?,
            None => Vec::new(),
        };
        let tensors: Rc<dyn TensorSource> = Rc::new(file);
        let mut networks = Vec::new();
        let below = |prefix: String| {
            Rc::new(Renamed::new(Rc::clone(&tensors), move |n| n.strip_prefix(&prefix).map(str::to_owned)))
        };
        if let Some(architecture) = architecture {
            if !listed.is_empty() {
                for name in listed {
                    let tensors = below(format!("{name}."));
                    networks.push(Network { name, architecture: architecture.clone(), tensors });
                }
            } else if names.iter().any(|n| n.starts_with("weights.")) {
                networks.push(Network { name: String::new(), architecture, tensors: below("weights.".to_owned()) });
            } else {
                networks.push(Network { name: String::new(), architecture, tensors: Rc::clone(&tensors) });
            }
        } else {
            networks.push(recognise(Rc::clone(&tensors)));
        }
        Ok(Self { path: path.to_owned(), format: Format::Safetensors, networks, metadata, tensors })
    }

    fn from_legacy(path: &Path) -> Result<Self> {
        let tensors: Rc<dyn TensorSource> = Rc::new(torch_legacy::LegacyFile::open(path)?);
        let networks = vec![recognise(Rc::clone(&tensors))];
        Ok(Self { path: path.to_owned(), format: Format::TorchLegacy, networks, metadata: Vec::new(), tensors })
    }
}

/// Names the architecture of a plain state dict from its tensor names.
fn recognise(tensors: Rc<dyn TensorSource>) -> Network {
    let names = tensors.names();
    let has = |name: &str| names.iter().any(|n| n == name);
    let name = String::new();
    let counted = |n: &str| n.ends_with(".num_batches_tracked");
    if has("_conv_stem.weight") && has("_blocks.15._project_conv.weight") {
        let renamed = Renamed::new(tensors, move |n| if counted(n) { None } else { efficientnet_lite::timm_name(n) });
        Network { name, architecture: Architecture::EfficientNetLite0, tensors: Rc::new(renamed) }
    } else if has("conv_stem.weight") && has("blocks.6.0.conv_pwl.weight") && !has("blocks.0.0.se.conv_reduce.weight") {
        let renamed = Renamed::new(tensors, move |n| if counted(n) { None } else { Some(n.to_owned()) });
        Network { name, architecture: Architecture::EfficientNetLite0, tensors: Rc::new(renamed) }
    } else {
        Network { name, architecture: Architecture::Unknown, tensors }
    }
}

/// The first bytes of `path`, at most 32.
fn head(path: &Path) -> Result<Vec<u8>> {
    use std::io::Read as _;
    let mut head = Vec::new();
    fs::File::open(path)?.take(32).read_to_end(&mut head)?;
    Ok(head)
}
