#![doc = include_str!("../README.md")]
#![deny(missing_docs)]

pub mod error;
pub mod pickle;
pub mod safetensors;

mod graph_def;
mod input;
mod objects;
mod torch_legacy;
mod torch_pickle;
mod torch_zip;
mod views;

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use d2o_files::kind;
use fs_err as fs;
use serde_json::{Map, Value};

pub use self::error::{Error, Result};
pub use self::objects::{MAX_NETWORKS, Source};

use self::input::Input;
use self::objects::{Contents, Found};
use self::views::Views;

/// Element type of a stored tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs, reason = "the names say it")]
#[non_exhaustive]
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
    /// An element type that cannot be read: its safetensors name, or a description for types smaller than one byte.
    Other(&'static str),
}

impl Dtype {
    /// Size of one element in bytes; 0 for [`Dtype::Other`].
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

    /// One little-endian element as f32 (f64 and integers are rounded). NaN if the length of `b` is not the element
    /// size.
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

/// Named tensors, read on request.
pub trait TensorSource: std::fmt::Debug + Send + Sync {
    /// Tensor names in file order.
    fn names(&self) -> Vec<String>;

    /// Type and shape of the tensor `name`; `None` if there is none.
    fn info(&self, name: &str) -> Option<TensorInfo>;

    /// Values of `name` in row-major order, converted to f32 (exact for f16, bf16 and f32; f64 and integers are rounded).
    ///
    /// # Errors
    /// `Missing` if there is no tensor of this name; `Format`, `Shape` or `Io` if it cannot be read.
    fn read_f32(&self, name: &str) -> Result<Vec<f32>>;
}

/// Tensors of another source under new names and, optionally, in another axis order.
#[derive(Debug)]
pub struct Renamed {
    source: Arc<dyn TensorSource>,
    renamed: Vec<Entry>,
    index: HashMap<String, usize>,
}

/// A renamed tensor. Axis i of it is axis `axes[i]` of the source tensor; empty `axes` keep the order.
#[derive(Debug)]
struct Entry {
    shown: String,
    old: String,
    axes: &'static [usize],
}

impl Renamed {
    /// Renames every tensor of `source` to the result of `name` and omits those for which it is `None`. Duplicate names
    /// are handled as in [`Renamed::listed`].
    #[must_use]
    pub fn new(source: Arc<dyn TensorSource>, name: impl Fn(&str) -> Option<String>) -> Self {
        let renamed = source.names().into_iter().filter_map(|old| name(&old).map(|new| (new, old, &[][..])));
        let renamed = renamed.collect();
        Self::listed(source, renamed)
    }

    /// The tensors of `source` in `list`: new name, name in the source, and the source axis of each new axis (empty:
    /// same order).
    ///
    /// Tensors that the source lacks are omitted, and so are tensors of which `axes` is not a permutation of the axes.
    /// If several tensors have the same new name, the first one gets it. The others get a name that no network
    /// requests, so that a load reports them as unused.
    #[must_use]
    pub fn listed(source: Arc<dyn TensorSource>, list: Vec<(String, String, &'static [usize])>) -> Self {
        let fits = |old: &str, axes: &[usize]| {
            let mut sorted = axes.to_vec();
            sorted.sort_unstable();
            source.info(old).is_some_and(|i| axes.is_empty() || sorted.iter().copied().eq(0..i.dims.len()))
        };
        let (mut renamed, mut index) = (Vec::new(), HashMap::new());
        for (shown, old, axes) in list.into_iter().filter(|(_, old, axes)| fits(old, axes)) {
            let shown = if index.contains_key(&shown) { format!("{old} (a second {shown})") } else { shown };
            index.insert(shown.clone(), renamed.len());
            renamed.push(Entry { shown, old, axes });
        }
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
        let missing = || Error::Missing { name: name.to_owned() };
        let entry = self.entry(name).ok_or_else(missing)?;
        let values = self.source.read_f32(&entry.old)?;
        if entry.axes.is_empty() {
            return Ok(values);
        }
        let dims = self.source.info(&entry.old).ok_or_else(missing)?.dims;
        let array = ndarray::ArrayViewD::from_shape(dims.as_slice(), &values).map_err(|_| Error::Shape {
            name: entry.old.clone(),
            dims: dims.clone(),
            values: values.len(),
        })?;
        Ok(array.permuted_axes(entry.axes.to_vec()).iter().copied().collect())
    }
}

/// The tensors of several networks, each under `NETWORK.NAME`.
#[derive(Debug)]
struct Joined {
    networks: Vec<(String, Arc<dyn TensorSource>)>,
}

impl Joined {
    /// # Errors
    /// `Format` if two tensors would have the same name.
    fn of(networks: &[StoredNetwork], input: &Input<'_>) -> Result<Self> {
        let networks = networks.iter().map(|n| (format!("{}.", n.name), Arc::clone(&n.tensors))).collect();
        let joined = Self { networks };
        let mut seen = HashSet::new();
        match joined.names().into_iter().find(|name| !seen.insert(name.clone())) {
            Some(name) => Err(input.bad(name, "one tensor of this name", "two")),
            None => Ok(joined),
        }
    }

    /// The source that contains the tensor `name`, and the name of the tensor in this source.
    fn find<'a>(&self, name: &'a str) -> Option<(&dyn TensorSource, &'a str)> {
        let held = |(prefix, tensors): &'_ (String, Arc<dyn TensorSource>)| {
            name.strip_prefix(prefix.as_str()).is_some_and(|inner| tensors.info(inner).is_some())
        };
        let (prefix, tensors) = self.networks.iter().find(|network| held(network))?;
        Some((tensors.as_ref(), &name[prefix.len()..]))
    }
}

impl TensorSource for Joined {
    fn names(&self) -> Vec<String> {
        let of = |(prefix, tensors): &(String, Arc<dyn TensorSource>)| {
            tensors.names().into_iter().map(|n| format!("{prefix}{n}")).collect::<Vec<_>>()
        };
        self.networks.iter().flat_map(of).collect()
    }

    fn info(&self, name: &str) -> Option<TensorInfo> {
        self.find(name).and_then(|(tensors, inner)| tensors.info(inner))
    }

    fn read_f32(&self, name: &str) -> Result<Vec<f32>> {
        let (tensors, inner) = self.find(name).ok_or_else(|| Error::Missing { name: name.to_owned() })?;
        tensors.read_f32(inner)
    }
}

impl TensorSource for Arc<dyn TensorSource> {
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

/// File format of a checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
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
    /// Name for messages.
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

/// A network as a checkpoint stores it.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct StoredNetwork {
    /// Key in the outermost dict of the file, or prefix of the tensor names; empty for a single unnamed network.
    pub name: String,
    /// Class name, if the file records it.
    pub class: Option<String>,
    /// Positional arguments of the constructor call.
    pub init_args: Vec<Value>,
    /// Keyword arguments of the constructor call.
    pub init_kwargs: Map<String, Value>,
    /// Python source of the class, if the file contains it.
    pub source: Option<Source>,
    /// GraphDef only: the first batch-norm node that scales after normalising.
    pub scaled_norm: Option<String>,
    /// Tensors of the network. Names are relative to the network, otherwise as in the file.
    pub tensors: Arc<dyn TensorSource>,
}

impl StoredNetwork {
    fn plain(name: String, tensors: Arc<dyn TensorSource>) -> Self {
        Self {
            name,
            class: None,
            init_args: Vec::new(),
            init_kwargs: Map::new(),
            source: None,
            scaled_norm: None,
            tensors,
        }
    }

    fn found(input: &Input<'_>, map: &Arc<memmap2::Mmap>, found: Found) -> Result<Self> {
        let Found { name, class, init_args, init_kwargs, source, tensors } = found;
        let tensors = Arc::new(Views::new(input, Arc::clone(map), tensors)?);
        Ok(Self { name, class, init_args, init_kwargs, source, scaled_norm: None, tensors })
    }
}

/// An opened checkpoint.
#[derive(Debug)]
#[non_exhaustive]
pub struct CheckpointFile {
    /// Path of the file.
    pub path: PathBuf,
    /// File format.
    pub format: Format,
    /// Networks in file order.
    pub networks: Vec<StoredNetwork>,
    /// Metadata: the header metadata of a safetensors file, or the dict `d2o` of a pickle or torch file.
    pub metadata: Vec<(String, String)>,
    /// All tensors of the file. Outside safetensors files, tensors of a named network have names `NETWORK.NAME`.
    pub tensors: Arc<dyn TensorSource>,
    /// Ignored contents outside the networks, one note each.
    pub notes: Vec<String>,
}

impl CheckpointFile {
    /// Opens `path`. The content determines the format.
    ///
    /// A safetensors file with metadata `class` and `init_kwargs` contains networks of that class. If the metadata
    /// entry `networks` (a JSON list, as in d2o snapshots) is not empty, there is one network for each prefix that it
    /// lists. Otherwise the tensors below `weights.` are the network, or all tensors if there are none below
    /// `weights.`.
    ///
    /// The networks of a pickle, torch or TorchScript file are the modules and state dicts in the outermost dict, or
    /// else the outermost object. A GraphDef is one network of constants. Other objects are never instantiated;
    /// [`CheckpointFile::notes`] lists ignored contents.
    ///
    /// Memory and work are bounded in proportion to the file size.
    ///
    /// # Errors
    /// `Format` if the file is not a checkpoint or is damaged; `Io` if it cannot be read.
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
        } else if kind::is_graph_def(&head) {
            Format::GraphDef
        } else {
            let expected = "a safetensors, torch.save, TorchScript, pickle or GraphDef file";
            return Err(Error::format(path, "start of file", expected, kind::describe(&head)));
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
        let Contents { networks: found, notes, metadata } = contents;
        let found = found.into_iter().map(|network| StoredNetwork::found(&input, &map, network));
        let networks = found.collect::<Result<Vec<_>>>()?;
        let tensors: Arc<dyn TensorSource> = match networks.as_slice() {
            [only] if only.name.is_empty() => Arc::clone(&only.tensors),
            several => Arc::new(Joined::of(several, &input)?),
        };
        Ok(Self { path: path.to_owned(), format, networks, metadata, tensors, notes })
    }

    fn from_safetensors(path: &Path) -> Result<Self> {
        let file = safetensors::SafetensorsFile::open(path)?;
        let metadata = file.metadata().to_vec();
        let of = |key: &str| metadata.iter().find(|(k, _)| k == key).map(|(_, v)| v.as_str());
        let described = match (of("class"), of("init_kwargs")) {
            (Some(class), Some(kwargs)) => Some((class.to_owned(), arguments(path, kwargs)?)),
            _ => None,
        };
        let names = file.names();
        let listed = of("networks").map(|text| listed(path, text, &names)).transpose()?.unwrap_or_default();
        let tensors: Arc<dyn TensorSource> = Arc::new(file);
        let mut networks = Vec::new();
        let mut add = |name: String, tensors| {
            let mut network = StoredNetwork::plain(name, tensors);
            if let Some((class, kwargs)) = &described {
                network.class = Some(class.clone());
                network.init_kwargs.clone_from(kwargs);
            }
            networks.push(network);
        };
        let below = |prefix: String| {
            Arc::new(Renamed::new(Arc::clone(&tensors), move |n| n.strip_prefix(&prefix).map(str::to_owned)))
        };
        if described.is_some() && !listed.is_empty() {
            for name in listed {
                let tensors = below(format!("{name}."));
                add(name, tensors);
            }
        } else if described.is_some() && names.iter().any(|n| n.starts_with("weights.")) {
            add(String::new(), below("weights.".to_owned()));
        } else {
            add(String::new(), Arc::clone(&tensors));
        }
        Ok(Self { path: path.to_owned(), format: Format::Safetensors, networks, metadata, tensors, notes: Vec::new() })
    }

    fn from_graph_def(input: &Input<'_>, map: &Arc<memmap2::Mmap>) -> Result<Self> {
        let graph = graph_def::read(input)?;
        let tensors: Arc<dyn TensorSource> = Arc::new(Views::new(input, Arc::clone(map), graph.constants)?);
        let mut network = StoredNetwork::plain(String::new(), Arc::clone(&tensors));
        network.scaled_norm = graph.scaled_norms.into_iter().next();
        let (path, networks) = (input.path.to_owned(), vec![network]);
        Ok(Self { path, format: Format::GraphDef, networks, metadata: Vec::new(), tensors, notes: Vec::new() })
    }
}

/// Parses the metadata `init_kwargs` as constructor arguments.
fn arguments(path: &Path, text: &str) -> Result<Map<String, Value>> {
    let bad = |expected: &str, found: String| Error::format(path, "metadata `init_kwargs`", expected, found);
    if text.len() > MAX_ARGUMENTS {
        return Err(bad(&format!("at most {MAX_ARGUMENTS} bytes"), text.len().to_string()));
    }
    match serde_json::from_str(text) {
        Ok(Value::Object(kwargs)) => Ok(kwargs),
        Ok(other) => Err(bad("a JSON object", kind_of(&other).to_owned())),
        Err(e) => Err(bad("JSON", e.to_string())),
    }
}

/// JSON type of `value`, for messages.
fn kind_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

/// Maximum length of the metadata `init_kwargs` of a safetensors file, bytes.
const MAX_ARGUMENTS: usize = 1 << 20;

/// Parses the metadata `networks`. Every name must be a prefix of a name in `tensors`.
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
            return Err(bad("prefixes of tensor names", format!("`{name}`, which no tensor has")));
        }
    }
    Ok(names)
}

/// The first bytes of `path`, which determine the format. Only regular files are accepted: opening a pipe would block,
/// and other files cannot be mapped.
fn head(path: &Path) -> Result<Vec<u8>> {
    use std::io::Read as _;
    match std::fs::metadata(path) {
        Ok(other) if !other.is_file() => {
            let found = if other.is_dir() { "a folder" } else { "a pipe or a device" };
            return Err(Error::format(path, "path", "a file", found));
        }
        _ => {}
    }
    let mut head = Vec::new();
    fs::File::open(path)?.take(kind::HEAD as u64).read_to_end(&mut head)?;
    Ok(head)
}
