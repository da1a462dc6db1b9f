//! Interprets pickles of torch objects: state dicts, module trees (plain, persistent, TorchScript), constructor
//! arguments.
//!
//! The tensors of a module are found by walking `_parameters`, `_buffers` and `_modules`. The Python source in
//! persistent objects is kept and hashed, but never run.

use std::collections::HashMap;
use std::sync::Arc;

use d2o_files::hex;
use serde_json::{Map, Number, Value};
use sha2::{Digest as _, Sha256};

use crate::Dtype;
use crate::error::{Error, Result, abbreviate};
use crate::input::Input;
use crate::pickle::{Id, Node, Pickle};
use crate::views::{Storage, View};

/// Maximum nesting of modules and of constructor arguments.
const MAX_DEPTH: usize = 48;
/// Maximum number of networks in a file.
pub const MAX_NETWORKS: usize = 64;
/// Memory charged per tensor description, without the name, bytes.
const TENSOR_BYTES: usize = 512;
/// Memory charged per JSON value, without its text, bytes.
const VALUE_BYTES: usize = 128;
/// Latest version of persistent objects with a known layout.
const PERSISTENCE_VERSION: usize = 6;

const PERSISTENT: &str = "torch_utils.persistence._reconstruct_persistent_obj";
const TORCHSCRIPT: &str = "__torch__.";
/// Class of networks in pickles of NVIDIA's TensorFlow repositories.
const TENSORFLOW: &str = "dnnlib.tflib.network.Network";

/// Resolves the storage argument of a tensor: element type (`None` if untyped) and bytes. `None` if it is not a
/// storage.
pub(crate) type Resolve<'a> = dyn FnMut(&Pickle, Id) -> Result<Option<(Option<Dtype>, Storage)>> + 'a;

/// A network found in a pickle.
#[derive(Debug, Default)]
pub(crate) struct Found {
    /// Key in the outermost dict of the file; empty for a single unnamed network.
    pub(crate) name: String,
    /// Class name, if it is a module.
    pub(crate) class: Option<String>,
    /// Positional arguments of the constructor call.
    pub(crate) init_args: Vec<Value>,
    /// Keyword arguments of the constructor call.
    pub(crate) init_kwargs: Map<String, Value>,
    /// Python source of the class, if the file contains it.
    pub(crate) source: Option<Source>,
    /// Paths and views of the tensors.
    pub(crate) tensors: Vec<(String, View)>,
}

/// Python source of a network class in a file. It is compared and hashed, never run.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Source {
    /// Source text.
    pub text: Arc<str>,
    /// SHA-256 of the text, hexadecimal.
    pub sha256: Arc<str>,
}

/// Contents of a pickle.
#[derive(Debug, Default)]
pub(crate) struct Contents {
    pub(crate) networks: Vec<Found>,
    /// Ignored contents outside the networks, one note each.
    pub(crate) notes: Vec<String>,
    /// Texts in the top-level dict `d2o`.
    pub(crate) metadata: Vec<(String, String)>,
}

/// The networks of `pickle`: the modules and state dicts in the outermost dict, or else the outermost object.
///
/// # Errors
/// `Format` if there is no network, or if one is damaged, nested too deeply or exceeds the budget.
pub(crate) fn networks(pickle: &Pickle, input: &Input<'_>, resolve: &mut Resolve<'_>) -> Result<Contents> {
    let mut walk = Walk { pickle, input, resolve, sources: HashMap::new(), notes: Vec::new() };
    let mut networks = Vec::new();
    let root = pickle.root();
    let items = pickle.items(root).unwrap_or(&[]);
    if walk.module(root)?.is_none() {
        let mut strays = Vec::new();
        for (key, value) in items {
            let Some(name) = pickle.text(*key) else { continue };
            if NON_NETWORK_KEYS.contains(&name) {
                continue;
            }
            if let Some(network) = walk.network(name.to_owned(), *value)? {
                if networks.len() == MAX_NETWORKS {
                    return Err(input.bad("object", format!("at most {MAX_NETWORKS} networks"), "more"));
                }
                networks.push(network);
            } else if walk.is_tensor(*value) {
                strays.push(name);
            }
        }
        if !networks.is_empty() && !strays.is_empty() {
            walk.note(format!("ignored tensors outside the networks: {}", abbreviate(&strays)))?;
        }
    }
    if networks.is_empty() {
        networks.extend(walk.network(String::new(), root)?);
    }
    match networks.as_mut_slice() {
        [] => {
            let found = if pickle.nodes().iter().any(|n| matches!(n, Node::Global(name) if name == TENSORFLOW)) {
                "TensorFlow networks: convert the file with legacy.py of stylegan2-ada-pytorch or stylegan3".to_owned()
            } else if pickle.get(root, "shadow_params").is_some() {
                "an EMA that lists its tensors without names (`shadow_params`)".to_owned()
            } else {
                describe(pickle, root)
            };
            return Err(input.bad("object", "a module or a dict of tensors", found));
        }
        [only] if WRAPPERS.contains(&only.name.as_str()) => only.name.clear(),
        _ => {}
    }
    let metadata = walk.recorded(items)?;
    Ok(Contents { networks, notes: walk.notes, metadata })
}

/// Top-level key of the metadata that d2o writes into pickles, a dict of texts.
const RECORDED: &str = "d2o";

/// Top-level keys that never contain a network.
const NON_NETWORK_KEYS: [&str; 5] =
    ["augment_pipe", "loss_fn", "dataset_kwargs", "training_set_kwargs", "optimizer_state"];
/// Keys under which training scripts save a single state dict. The network then has no name.
const WRAPPERS: [&str; 4] = ["state_dict", "model", "model_state_dict", "module"];

struct Walk<'a, 'r> {
    pickle: &'a Pickle,
    input: &'a Input<'a>,
    resolve: &'a mut Resolve<'r>,
    /// Sources by the id of their text. Networks share them.
    sources: HashMap<Id, Source>,
    notes: Vec<String>,
}

/// A module in a pickle of d2o: the pickle calls a `functools.partial` of the class and fills the result with
/// `load_state_dict`.
struct Made<'a> {
    class: &'a str,
    init_kwargs: Id,
    state_dict: Id,
}

/// A module object, pickled as a plain, persistent or TorchScript object.
struct Module<'a> {
    class: &'a str,
    state: Id,
    source: Option<Id>,
}

impl<'a> Walk<'a, '_> {
    fn bad(&self, place: impl Into<String>, expected: impl Into<String>, found: impl Into<String>) -> Error {
        self.input.bad(place, expected, found)
    }

    fn note(&mut self, text: String) -> Result<()> {
        self.input.charge(text.len(), || "object".to_owned())?;
        self.notes.push(text);
        Ok(())
    }

    /// [`Pickle::get`], charged to the budget because shared objects may be searched repeatedly.
    fn get(&self, id: Id, key: &str) -> Result<Option<Id>> {
        let items = self.pickle.items(id).map_or(0, <[_]>::len);
        self.input.step(items, || format!("a dict of {items} entries"))?;
        Ok(self.pickle.get(id, key))
    }

    fn module(&self, id: Id) -> Result<Option<Module<'a>>> {
        let p = self.pickle;
        if let Some(&[meta, ..]) = p.call(id, PERSISTENT) {
            let class = self.get(meta, "class_name")?.and_then(|c| p.text(c));
            let (Some(class), Some(state)) = (class, self.get(meta, "state")?) else { return Ok(None) };
            return Ok(Some(Module { class, state, source: self.get(meta, "module_src")? }));
        }
        let Node::Call { function, arguments, state: Some(state), .. } = p.node(id) else { return Ok(None) };
        let Some(mut class) = p.global(*function) else { return Ok(None) };
        if class == "copyreg._reconstructor" {
            let of = p.sequence(*arguments).and_then(|a| p.global(*a.first()?));
            let Some(of) = of else { return Ok(None) };
            class = of;
        }
        let is_module = class.starts_with(TORCHSCRIPT) || self.get(*state, "_modules")?.is_some();
        Ok(is_module.then_some(Module { class, state: *state, source: None }))
    }

    /// Value `id` as a module of a d2o pickle; `None` if it is not one.
    fn made(&self, id: Id) -> Result<Option<Made<'a>>> {
        let p = self.pickle;
        let Node::Call { function, .. } = p.node(id) else { return Ok(None) };
        let (Some(&[class, ..]), Node::Call { state: Some(state), .. }) =
            (p.call(*function, PARTIAL), p.node(*function))
        else {
            return Ok(None);
        };
        let (Some(class), Some(&[_, _, init_kwargs, _])) = (p.global(class), p.sequence(*state)) else {
            return Ok(None);
        };
        self.input.step(p.nodes().len(), || format!("{} objects", p.nodes().len()))?;
        let filled =
            |node: usize| p.call(node, LOAD_STATE_DICT).and_then(|a| (a.first() == Some(&id)).then(|| a.get(1)));
        let Some(&state_dict) = (0..p.nodes().len()).find_map(filled).flatten() else { return Ok(None) };
        let class = class.rsplit('.').next().unwrap_or(class);
        Ok(Some(Made { class, init_kwargs, state_dict }))
    }

    /// Texts in the dict `d2o` among the top-level `items`.
    fn recorded(&self, items: &[(Id, Id)]) -> Result<Vec<(String, String)>> {
        let p = self.pickle;
        let own = items.iter().find(|(key, _)| p.text(*key) == Some(RECORDED)).map(|(_, value)| *value);
        let texts = self.items(own)?.iter().filter_map(|(key, value)| Some((p.text(*key)?, p.text(*value)?)));
        texts
            .map(|(key, value)| {
                self.input.charge(key.len() + value.len(), || format!("`{RECORDED}`"))?;
                Ok((key.to_owned(), value.to_owned()))
            })
            .collect()
    }

    fn source(&mut self, id: Id) -> Option<Source> {
        if let Some(known) = self.sources.get(&id) {
            return Some(known.clone());
        }
        let text = self.pickle.text(id).filter(|s| !s.is_empty())?;
        let sha256 = hex(&Sha256::digest(text));
        let source = Source { text: text.into(), sha256: sha256.into() };
        self.sources.insert(id, source.clone());
        Some(source)
    }

    /// Value `id` as a network; `None` if it is neither a module nor a dict with tensors.
    fn network(&mut self, name: String, id: Id) -> Result<Option<Found>> {
        let mut found = Found { name, ..Found::default() };
        if let Some(made) = self.made(id)? {
            self.state_dict(&found.name, made.state_dict, &mut found.tensors)?;
            (found.class, found.init_kwargs) = (Some(made.class.to_owned()), self.kwargs(Some(made.init_kwargs))?);
            return Ok(Some(found));
        }
        let Some(module) = self.module(id)? else {
            self.state_dict(&found.name, id, &mut found.tensors)?;
            return Ok((!found.tensors.is_empty()).then_some(found));
        };
        let p = self.pickle;
        if let Some(&[meta, ..]) = p.call(id, PERSISTENT) {
            let version = self.get(meta, "version")?.and_then(|v| p.size(v));
            if version.is_none_or(|v| v > PERSISTENCE_VERSION) {
                let expected = format!("a persistent object of version up to {PERSISTENCE_VERSION}");
                return Err(self.bad(found.name, expected, format!("version {version:?}")));
            }
        }
        if let Some(args) = self.get(module.state, "_init_args")?
            && let Value::Array(args) = value(p, self.input, args, MAX_DEPTH)?
        {
            found.init_args = args;
        }
        found.init_kwargs = self.kwargs(self.get(module.state, "_init_kwargs")?)?;
        found.source = module.source.and_then(|s| self.source(s));
        found.class = Some(module.class.to_owned());
        self.descend("", &module, MAX_DEPTH, &mut found.tensors)?;
        Ok(Some(found))
    }

    /// Value `id` as keyword arguments; empty if it is not a dict.
    fn kwargs(&self, id: Option<Id>) -> Result<Map<String, Value>> {
        let kwargs = id.map(|id| value(self.pickle, self.input, id, MAX_DEPTH)).transpose()?;
        Ok(if let Some(Value::Object(kwargs)) = kwargs { kwargs } else { Map::new() })
    }

    fn state_dict(&mut self, network: &str, id: Id, out: &mut Vec<(String, View)>) -> Result<()> {
        let p = self.pickle;
        let Some(items) = p.items(id) else { return Ok(()) };
        self.input.step(items.len(), || format!("a dict of {} entries", items.len()))?;
        let (mut nested, mut opaque) = (None, Vec::new());
        for (key, value) in items {
            let Some(name) = p.text(*key) else { continue };
            if let Some(view) = self.tensor(name, *value)? {
                self.keep(name.to_owned(), view, out)?;
                continue;
            }
            match p.node(*value) {
                Node::None | Node::Int(_) | Node::Bool(_) | Node::Float(_) => {}
                Node::Dict(_) | Node::Sequence(_) => nested = Some((name, *value)),
                _ if p.items(*value).is_some() => nested = Some((name, *value)),
                _ => opaque.push(name),
            }
        }
        if out.is_empty() {
            return Ok(());
        }
        if let Some((name, value)) = nested {
            return Err(self.bad(name, "a tensor, like the other entries", describe(p, value)));
        }
        if !opaque.is_empty() {
            let network =
                if network.is_empty() { "the tensors".to_owned() } else { format!("the tensors of `{network}`") };
            self.note(format!("ignored objects next to {network}: {}", abbreviate(&opaque)))?;
        }
        Ok(())
    }

    fn descend(
        &mut self,
        prefix: &str,
        module: &Module<'a>,
        depth: usize,
        out: &mut Vec<(String, View)>,
    ) -> Result<()> {
        self.input.step(1, || prefix.to_owned())?;
        if depth == 0 {
            let expected = format!("modules nested at most {MAX_DEPTH} deep");
            return Err(self.bad(prefix.trim_end_matches('.'), expected, "deeper ones"));
        }
        let p = self.pickle;
        if module.class.starts_with(TORCHSCRIPT) {
            for (key, value) in self.items(Some(module.state))? {
                let Some(key) = p.text(*key) else { continue };
                let name = format!("{prefix}{key}");
                if let Some(view) = self.tensor(&name, *value)? {
                    self.keep(name, view, out)?;
                } else if let Some(child) = self.module(*value)? {
                    self.descend(&format!("{name}."), &child, depth - 1, out)?;
                }
            }
            return Ok(());
        }
        for group in ["_parameters", "_buffers"] {
            for (key, value) in self.items(self.get(module.state, group)?)? {
                let Some(key) = p.text(*key) else { continue };
                let name = format!("{prefix}{key}");
                match self.tensor(&name, *value)? {
                    Some(view) => self.keep(name, view, out)?,
                    None if *p.node(*value) == Node::None => {}
                    None => return Err(self.bad(name, "a tensor", describe(p, *value))),
                }
            }
        }
        for (key, value) in self.items(self.get(module.state, "_modules")?)? {
            let Some(key) = p.text(*key) else { continue };
            if let Some(child) = self.module(*value)? {
                self.descend(&format!("{prefix}{key}."), &child, depth - 1, out)?;
            } else if *p.node(*value) != Node::None {
                return Err(self.bad(format!("{prefix}{key}"), "a module", describe(p, *value)));
            }
        }
        Ok(())
    }

    /// Items of dict `id`, charged to the budget; empty if it is not a dict.
    fn items(&self, id: Option<Id>) -> Result<&'a [(Id, Id)]> {
        let items = id.and_then(|i| self.pickle.items(i)).unwrap_or(&[]);
        self.input.step(items.len(), || format!("a dict of {} entries", items.len()))?;
        Ok(items)
    }

    fn keep(&mut self, name: String, view: View, out: &mut Vec<(String, View)>) -> Result<()> {
        self.input.charge(TENSOR_BYTES + 4 * name.len(), || format!("tensor `{name}`"))?;
        out.push((name, view));
        Ok(())
    }

    /// Whether value `id` is a call that rebuilds a tensor or a parameter.
    fn is_tensor(&self, id: Id) -> bool {
        PARAMETERS.iter().chain(&TENSORS).any(|f| self.pickle.call(id, f).is_some())
    }

    /// Value `id` as the tensor `name`; `None` if it is not a tensor.
    fn tensor(&mut self, name: &str, id: Id) -> Result<Option<View>> {
        let p = self.pickle;
        if let Some(args) = PARAMETERS.iter().find_map(|f| p.call(id, f)) {
            // A parameter of a parameter is not followed: in a pickle that refers to itself this would not end.
            let inner = args.first().copied().filter(|i| PARAMETERS.iter().all(|f| p.call(*i, f).is_none()));
            return inner.map_or(Ok(None), |i| self.tensor(name, i));
        }
        if let Some(&[array]) = p.call(id, FROM_NUMPY) {
            return self.array(name, array);
        }
        let [older, newer, of_type] = TENSORS.map(|f| p.call(id, f));
        let (args, newer) = match (older, newer, of_type) {
            (Some(args), ..) => (args, false),
            (_, Some(args), _) => (args, true),
            (.., Some(&[function, _, args, ..])) => {
                let Some(args) = p.sequence(args) else { return Ok(None) };
                (args, p.global(function) == Some(TENSORS[1]))
            }
            _ => return Ok(None),
        };
        let bad = |what: &str| self.bad(name, what, "another value");
        let &[storage, offset, dims, strides, ..] = args else { return Err(bad("storage, offset, size and stride")) };
        let offset = p.size(offset).ok_or_else(|| bad("an offset of at least 0"))?;
        let dims = sizes(p, dims).ok_or_else(|| bad("sizes of at least 0"))?;
        let strides = sizes(p, strides).ok_or_else(|| bad("strides of at least 0"))?;
        let named = args.get(6).filter(|_| newer).and_then(|d| p.global(*d)).and_then(named_type);
        let metadata = args.get(if newer { 7 } else { 6 }).copied();
        let set = |key: &str| -> Result<bool> {
            let value = metadata.map(|m| self.get(m, key)).transpose()?.flatten();
            Ok(value.is_some_and(|v| *p.node(v) == Node::Bool(true)))
        };
        if set("conj")? {
            return Err(self.bad(name, "real values", "a conjugate view of complex values"));
        }
        let negative = set("neg")?;
        let (stored, bytes) =
            (self.resolve)(p, storage)?.ok_or_else(|| self.bad(name, "a storage", describe(p, storage)))?;
        let dtype = named.or(stored).ok_or_else(|| self.bad(name, "a known element type", describe(p, storage)))?;
        Ok(Some(View { dtype, storage: bytes, offset, dims, strides, negative }))
    }

    /// Value `id` as a row-major `numpy.ndarray` of little-endian f32 over bytes of the file.
    fn array(&self, name: &str, id: Id) -> Result<Option<View>> {
        let p = self.pickle;
        let bad = |found: &str| self.bad(name, "an array of f32 made of bytes and its size", found);
        let Some(&[dims, kind, buffer]) = p.call(id, "numpy.ndarray") else { return Err(bad("another value")) };
        let range = p.call(buffer, "builtins.bytearray").and_then(|a| blob(p, *a.first()?));
        let (Some("<f4"), Some(Blob::InFile(range))) = (p.text(kind), range) else {
            return Err(bad("other arguments"));
        };
        let dims = sizes(p, dims).ok_or_else(|| bad("another size"))?;
        let elements = dims.iter().try_fold(1_usize, |n, d| n.checked_mul(*d));
        if elements.and_then(|n| n.checked_mul(4)) != Some(range.len()) {
            return Err(bad("bytes of another number of elements"));
        }
        let storage = Storage { owned: None, start: range.start, bytes: range.len(), crc: None };
        Ok(Some(View::contiguous(Dtype::F32, storage, dims)))
    }
}

/// Value `id`, if it is a sequence of non-negative integers.
fn sizes(p: &Pickle, id: Id) -> Option<Vec<usize>> {
    p.sequence(id)?.iter().map(|d| p.size(*d)).collect()
}

/// Calls in pickles of d2o that create a module, fill it, and create a tensor.
const PARTIAL: &str = "functools.partial";
const LOAD_STATE_DICT: &str = "torch.nn.Module.load_state_dict";
const FROM_NUMPY: &str = "torch.from_numpy";
/// Calls that rebuild a parameter from a tensor.
const PARAMETERS: [&str; 2] = ["torch._utils._rebuild_parameter", "torch._utils._rebuild_parameter_with_state"];
/// Calls that rebuild a tensor: from a typed storage; from an untyped storage and an element type; by one of the two.
const TENSORS: [&str; 3] =
    ["torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_tensor_v3", "torch._tensor._rebuild_from_type_v2"];

/// A storage outside the pickle of a torch file: `('storage', class, key, location, count, view)`.
pub(crate) struct Outside<'a> {
    pub(crate) key: &'a str,
    pub(crate) dtype: Option<Dtype>,
    /// Declared number of elements.
    pub(crate) count: usize,
    /// View of a part, in very old files: key, offset, number of elements.
    pub(crate) part: Option<(&'a str, usize, usize)>,
}

impl Outside<'_> {
    /// Size of one element in bytes; 1 if untyped.
    pub(crate) fn size(&self) -> usize {
        self.dtype.map_or(1, Dtype::size)
    }
}

/// Value `id` as a reference to a storage; `None` if it is not one.
pub(crate) fn outside(p: &Pickle, id: Id) -> Option<Outside<'_>> {
    let Node::Persistent(persistent) = p.node(id) else { return None };
    let fields = p.sequence(*persistent)?;
    let &[tag, class, key, _, count, ..] = fields else { return None };
    if p.text(tag)? != "storage" {
        return None;
    }
    let class = p.global(class)?;
    let untyped = ["torch.UntypedStorage", "torch.storage.UntypedStorage"].contains(&class);
    let dtype = if untyped { None } else { Some(storage_type(class)?) };
    let part = match fields.get(5).map(|v| p.sequence(*v)) {
        Some(Some(&[key, offset, count])) => Some((p.text(key)?, p.size(offset)?, p.size(count)?)),
        Some(Some(_)) => return None,
        _ => None,
    };
    Some(Outside { key: p.text(key)?, dtype, count: p.size(count)?, part })
}

/// Element type of a `torch.<X>Storage`.
fn storage_type(class: &str) -> Option<Dtype> {
    Some(match class.strip_prefix("torch.")?.strip_suffix("Storage")? {
        "Double" => Dtype::F64,
        "Float" => Dtype::F32,
        "Half" => Dtype::F16,
        "BFloat16" => Dtype::BF16,
        "Long" => Dtype::I64,
        "Int" => Dtype::I32,
        "Short" => Dtype::I16,
        "Char" => Dtype::I8,
        "Byte" => Dtype::U8,
        "Bool" => Dtype::Bool,
        _ => return None,
    })
}

/// Element type of a `torch.<dtype>`.
fn named_type(name: &str) -> Option<Dtype> {
    Some(match name.strip_prefix("torch.")? {
        "float64" => Dtype::F64,
        "float32" => Dtype::F32,
        "float16" => Dtype::F16,
        "bfloat16" => Dtype::BF16,
        "int64" => Dtype::I64,
        "int32" => Dtype::I32,
        "int16" => Dtype::I16,
        "int8" => Dtype::I8,
        "uint64" => Dtype::U64,
        "uint32" => Dtype::U32,
        "uint16" => Dtype::U16,
        "uint8" => Dtype::U8,
        "bool" => Dtype::Bool,
        _ => return None,
    })
}

/// A byte string. Protocol 2 stores it as Latin-1 text.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Blob {
    /// Range of the bytes in the file.
    InFile(std::ops::Range<usize>),
    /// Id of the text to decode.
    Text(Id),
}

/// Value `id` as a byte string; `None` if it is not one.
pub(crate) fn blob(p: &Pickle, id: Id) -> Option<Blob> {
    if let Node::Bytes(range) = p.node(id) {
        return p.in_file().then(|| Blob::InFile(range.clone()));
    }
    let &[text, encoding] = p.call(id, "_codecs.encode")? else { return None };
    matches!(p.text(encoding)?, "latin1" | "latin-1").then_some(Blob::Text(text))
}

/// Bytes of the Latin-1 text `id`; `None` if it is not text or contains other characters.
pub(crate) fn decoded(p: &Pickle, input: &Input<'_>, id: Id) -> Result<Option<Vec<u8>>> {
    let Some(text) = p.text(id) else { return Ok(None) };
    input.charge(text.len(), || format!("text of {} bytes", text.len()))?;
    Ok(text.chars().map(|c| u8::try_from(u32::from(c)).ok()).collect())
}

/// Value `id` as JSON.
///
/// None, booleans, numbers, text, sequences and dicts become the corresponding JSON values; infinity and NaN become
/// text. A class or function becomes its name. Calls that make a size, a set or a numpy scalar become its value, and
/// other calls the name of the callee. Anything else becomes a description.
///
/// # Errors
/// `Format` if the nesting is deeper than `depth`, a key is neither text nor an integer, or the budget is exceeded.
fn value(p: &Pickle, input: &Input<'_>, id: Id, depth: usize) -> Result<Value> {
    let place = || "constructor arguments".to_owned();
    if depth == 0 {
        return Err(input.bad(place(), format!("nesting of at most {MAX_DEPTH}"), "a deeper one"));
    }
    input.charge(VALUE_BYTES, place)?;
    let text = |t: &str| -> Result<String> {
        input.charge(t.len(), place)?;
        Ok(t.to_owned())
    };
    if let Some(items) = p.items(id) {
        let mut map = Map::new();
        for (k, v) in items {
            let key = match p.node(*k) {
                Node::Text(t) => text(t)?,
                Node::Int(i) => i.to_string(),
                _ => return Err(input.bad(place(), "keys that are text", describe(p, *k))),
            };
            map.insert(key, value(p, input, *v, depth - 1)?);
        }
        return Ok(Value::Object(map));
    }
    Ok(match p.node(id) {
        Node::None | Node::Dict(_) => Value::Null,
        Node::Bool(b) => Value::Bool(*b),
        Node::Int(i) => Value::from(*i),
        Node::Float(f) => Number::from_f64(*f).map_or_else(|| Value::String(f.to_string()), Value::Number),
        Node::Text(t) => Value::String(text(t)?),
        Node::Sequence(s) => Value::Array(s.iter().map(|v| value(p, input, *v, depth - 1)).collect::<Result<_>>()?),
        Node::Global(name) => Value::String(text(name)?),
        Node::Call { function, arguments, .. } => match (p.global(*function), p.sequence(*arguments)) {
            (Some("torch.Size" | "builtins.set" | "__builtin__.set"), Some(&[list])) => {
                value(p, input, list, depth - 1)?
            }
            (Some("numpy.core.multiarray.scalar" | "numpy._core.multiarray.scalar"), Some(&[dtype, bytes])) => {
                numpy_scalar(p, input, dtype, bytes).unwrap_or(Value::Null)
            }
            (Some(name), _) => Value::String(text(name)?),
            _ => Value::Null,
        },
        Node::Long(_) | Node::Bytes(_) | Node::Persistent(_) => Value::String(describe(p, id)),
    })
}

/// A numpy scalar. `dtype` is a call `numpy.dtype(kind, …)` with the byte order in its state; `bytes` is the element.
fn numpy_scalar(p: &Pickle, input: &Input<'_>, dtype: Id, bytes: Id) -> Option<Value> {
    let kind = p.text(*p.call(dtype, "numpy.dtype")?.first()?)?;
    let Node::Call { state, .. } = p.node(dtype) else { return None };
    let order = state.and_then(|s| p.sequence(s)).and_then(|s| p.text(*s.get(1)?));
    let mut raw = match p.node(bytes) {
        Node::Text(t) => t.as_bytes().to_vec(),
        Node::Bytes(_) => p.inline(bytes)?.to_vec(),
        _ => match blob(p, bytes)? {
            Blob::Text(text) => decoded(p, input, text).ok()??,
            Blob::InFile(_) => return None,
        },
    };
    if order == Some(">") {
        raw.reverse();
    }
    Some(match (kind, raw.as_slice()) {
        ("f8", &[a, b, c, d, e, f, g, h]) => Number::from_f64(f64::from_le_bytes([a, b, c, d, e, f, g, h]))?.into(),
        ("f4", &[a, b, c, d]) => Number::from_f64(f32::from_le_bytes([a, b, c, d]).into())?.into(),
        ("f2", &[a, b]) => Number::from_f64(half::f16::from_le_bytes([a, b]).into())?.into(),
        ("i8", &[a, b, c, d, e, f, g, h]) => i64::from_le_bytes([a, b, c, d, e, f, g, h]).into(),
        ("i4", &[a, b, c, d]) => i32::from_le_bytes([a, b, c, d]).into(),
        ("i2", &[a, b]) => i16::from_le_bytes([a, b]).into(),
        ("u1", &[a]) => a.into(),
        ("b1", &[a]) => (a != 0).into(),
        _ => return None,
    })
}

/// Description of value `id`, for errors.
pub(crate) fn describe(p: &Pickle, id: Id) -> String {
    match p.node(id) {
        Node::None => "None".to_owned(),
        Node::Bool(_) | Node::Int(_) | Node::Long(_) | Node::Float(_) => "a number".to_owned(),
        Node::Text(_) => "text".to_owned(),
        Node::Bytes(_) => "bytes".to_owned(),
        Node::Sequence(s) => format!("a sequence of {}", s.len()),
        Node::Dict(d) => format!("a dict of {}", d.len()),
        Node::Global(name) => format!("`{name}`"),
        Node::Call { function, .. } => format!("an object of `{}`", p.global(*function).unwrap_or("?")),
        Node::Persistent(_) => "an object kept outside the pickle".to_owned(),
    }
}

/// Storages by key.
pub(crate) type Keyed = HashMap<String, Storage>;
