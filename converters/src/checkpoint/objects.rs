//! What a pickle of torch objects holds: state dicts, module trees (plain, persistent, TorchScript), constructor arguments.
//!
//! A module's tensors are found by walking `_parameters`, `_buffers` and `_modules`; the Python source that persistent objects carry is
//! hashed for diagnosis and never run.

use std::collections::HashMap;
use std::path::Path;
use std::rc::Rc;

use serde_json::{Map, Number, Value};
use sha2::{Digest as _, Sha256};

use super::Dtype;
use super::pickle::{Id, Node, Pickle};
use super::views::{Storage, View};
use crate::error::{Error, Result};

/// Deepest nesting of modules and of constructor arguments.
const MAX_DEPTH: usize = 48;
/// Most modules of one file, counted each time a shared one is met.
const MAX_MODULES: usize = 1 << 16;
/// Most tensors of one file, counted likewise.
const MAX_TENSORS: usize = 1 << 16;
/// Most values in the constructor arguments of one module.
const MAX_ARGUMENTS: usize = 1 << 12;
/// Version of persistent objects up to which the layout is known.
const PERSISTENCE_VERSION: usize = 6;

const PERSISTENT: &str = "torch_utils.persistence._reconstruct_persistent_obj";
const TORCHSCRIPT: &str = "__torch__.";

/// Turns the storage argument of a tensor into the bytes it names, and their element type if the storage has one.
pub(crate) type Resolve<'a> = dyn FnMut(&Pickle, Id) -> Result<Option<(Option<Dtype>, Storage)>> + 'a;

/// A network found in a pickle.
#[derive(Debug)]
pub(crate) struct Found {
    /// Key in the file's outermost dict; empty if the file is one network.
    pub(crate) name: String,
    /// Its class, if it is a module.
    pub(crate) class: Option<String>,
    /// Positional arguments its constructor was given.
    pub(crate) init_args: Vec<Value>,
    /// Named ones.
    pub(crate) init_kwargs: Map<String, Value>,
    /// Python source it carries.
    pub(crate) source: Option<Rc<str>>,
    /// Tensors by path.
    pub(crate) tensors: Vec<(String, View)>,
}

impl Found {
    /// SHA-256 of the source, in hexadecimal.
    pub(crate) fn source_sha256(&self) -> Option<String> {
        let digest = Sha256::digest(self.source.as_ref()?.as_bytes());
        Some(digest.iter().map(|b| format!("{b:02x}")).collect())
    }
}

/// The networks of `pickle`: the modules and state dicts in its outermost dict, else the object itself.
///
/// # Errors
/// `Format` if there are none, or one is damaged, too deep or too large.
pub(crate) fn networks(pickle: &Pickle, path: &Path, resolve: &mut Resolve<'_>) -> Result<Vec<Found>> {
    let mut walk = Walk { pickle, path, resolve, modules: 0, tensors: 0 };
    let root = pickle.root();
    if pickle.items(root).is_none() || walk.module(root).is_some() {
        let found = walk.network(String::new(), root)?;
        return found
            .map(|f| vec![f])
            .ok_or_else(|| Error::format(path, "object", "a module or a dict of tensors", describe(pickle, root)));
    }
    let mut found = Vec::new();
    for (key, value) in pickle.items(root).unwrap_or(&[]) {
        let Some(name) = pickle.text(*key) else { continue };
        if !PASSENGERS.contains(&name)
            && let Some(network) = walk.network(name.to_owned(), *value)?
        {
            found.push(network);
        }
    }
    if found.is_empty() {
        found.extend(walk.network(String::new(), root)?);
    }
    match found.as_mut_slice() {
        [] => Err(Error::format(path, "object", "a module or a dict of tensors", describe(pickle, root))),
        [only] if WRAPPERS.contains(&only.name.as_str()) => {
            only.name.clear();
            Ok(found)
        }
        _ => Ok(found),
    }
}

/// Keys of an outermost dict whose modules are no networks.
const PASSENGERS: [&str; 5] = ["augment_pipe", "loss_fn", "dataset_kwargs", "training_set_kwargs", "optimizer_state"];
/// Keys under which training scripts save the one state dict of a file.
const WRAPPERS: [&str; 4] = ["state_dict", "model", "model_state_dict", "module"];

struct Walk<'a, 'r> {
    pickle: &'a Pickle,
    path: &'a Path,
    resolve: &'a mut Resolve<'r>,
    modules: usize,
    tensors: usize,
}

/// A module object, whichever way it was pickled.
struct Module<'a> {
    class: &'a str,
    state: Id,
    source: Option<Id>,
}

impl<'a> Walk<'a, '_> {
    fn bad(&self, place: impl Into<String>, expected: impl Into<String>, found: impl Into<String>) -> Error {
        Error::format(self.path, place, expected, found)
    }

    fn module(&self, id: Id) -> Option<Module<'a>> {
        let p = self.pickle;
        if let Some(&[meta, ..]) = p.call(id, PERSISTENT) {
            let (class, state) = (p.text(p.get(meta, "class_name")?)?, p.get(meta, "state")?);
            return Some(Module { class, state, source: p.get(meta, "module_src") });
        }
        let Node::Call { function, arguments, state: Some(state), .. } = p.node(id) else { return None };
        let mut class = p.global(*function)?;
        if class == "copyreg._reconstructor" {
            class = p.global(*p.sequence(*arguments)?.first()?)?;
        }
        let is_module = class.starts_with(TORCHSCRIPT) || p.get(*state, "_modules").is_some();
        is_module.then_some(Module { class, state: *state, source: None })
    }

    /// The network `id` is, if it is a module or a dict with tensors.
    fn network(&mut self, name: String, id: Id) -> Result<Option<Found>> {
        let mut tensors = Vec::new();
        let Some(module) = self.module(id) else {
            self.state_dict(id, &mut tensors)?;
            let found =
                Found { name, class: None, init_args: Vec::new(), init_kwargs: Map::new(), source: None, tensors };
            return Ok((!found.tensors.is_empty()).then_some(found));
        };
        if let Some(&[meta, ..]) = self.pickle.call(id, PERSISTENT) {
            let version = self.pickle.get(meta, "version").and_then(|v| self.pickle.size(v));
            if version.is_none_or(|v| v > PERSISTENCE_VERSION) {
                let expected = format!("a persistent object of version up to {PERSISTENCE_VERSION}");
                return Err(self.bad(name, expected, format!("version {version:?}")));
            }
        }
        let mut budget = MAX_ARGUMENTS;
        let p = self.pickle;
        let json = |key: &str, budget: &mut usize| {
            p.get(module.state, key).map(|v| value(p, v, MAX_DEPTH, budget)).transpose()
        };
        let arguments = json("_init_args", &mut budget).and_then(|a| Ok((a, json("_init_kwargs", &mut budget)?)));
        let Ok((args, kwargs)) = arguments else {
            let expected = format!("constructor arguments of at most {MAX_ARGUMENTS} values");
            return Err(self.bad(name, expected, "more, or deeper ones"));
        };
        let init_args = if let Some(Value::Array(args)) = args { args } else { Vec::new() };
        let init_kwargs = if let Some(Value::Object(kwargs)) = kwargs { kwargs } else { Map::new() };
        let source = module.source.and_then(|s| p.text(s)).filter(|s| !s.is_empty()).map(Rc::from);
        let class = Some(module.class.to_owned());
        self.descend("", &module, MAX_DEPTH, &mut tensors)?;
        Ok(Some(Found { name, class, init_args, init_kwargs, source, tensors }))
    }

    fn state_dict(&mut self, id: Id, out: &mut Vec<(String, View)>) -> Result<()> {
        let p = self.pickle;
        let Some(items) = p.items(id) else { return Ok(()) };
        let mut others = None;
        for (key, value) in items {
            let name = p.text(*key);
            match (name, self.tensor(name.unwrap_or(""), *value)?) {
                (Some(name), Some(view)) => out.push((name.to_owned(), view)),
                (Some(name), None)
                    if !matches!(p.node(*value), Node::None | Node::Int(_) | Node::Bool(_) | Node::Float(_)) =>
                {
                    others = Some((name, *value));
                }
                _ => {}
            }
        }
        match others {
            Some((name, value)) if !out.is_empty() => Err(self.bad(name, "a tensor, as beside it", describe(p, value))),
            _ => {
                // Distributed training puts every name below `module.`.
                if out.iter().all(|(n, _)| n.starts_with("module.")) {
                    out.iter_mut().for_each(|(n, _)| *n = n.split_off("module.".len()));
                }
                Ok(())
            }
        }
    }

    fn descend(
        &mut self,
        prefix: &str,
        module: &Module<'a>,
        depth: usize,
        out: &mut Vec<(String, View)>,
    ) -> Result<()> {
        self.modules += 1;
        if depth == 0 || self.modules > MAX_MODULES {
            let expected = format!("at most {MAX_MODULES} modules, nested at most {MAX_DEPTH} deep");
            return Err(self.bad(prefix.trim_end_matches('.'), expected, "more"));
        }
        let p = self.pickle;
        if module.class.starts_with(TORCHSCRIPT) {
            for (key, value) in p.items(module.state).unwrap_or(&[]) {
                let Some(key) = p.text(*key) else { continue };
                let name = format!("{prefix}{key}");
                if let Some(view) = self.tensor(&name, *value)? {
                    self.keep(name, view, out)?;
                } else if let Some(child) = self.module(*value) {
                    self.descend(&format!("{name}."), &child, depth - 1, out)?;
                }
            }
            return Ok(());
        }
        for group in ["_parameters", "_buffers"] {
            let Some(items) = p.get(module.state, group).and_then(|g| p.items(g)) else { continue };
            for (key, value) in items {
                let Some(key) = p.text(*key) else { continue };
                let name = format!("{prefix}{key}");
                match self.tensor(&name, *value)? {
                    Some(view) => self.keep(name, view, out)?,
                    None if *p.node(*value) == Node::None => {}
                    None => return Err(self.bad(name, "a tensor", describe(p, *value))),
                }
            }
        }
        let children = p.get(module.state, "_modules").and_then(|m| p.items(m)).unwrap_or(&[]);
        for (key, value) in children {
            let Some(key) = p.text(*key) else { continue };
            if let Some(child) = self.module(*value) {
                self.descend(&format!("{prefix}{key}."), &child, depth - 1, out)?;
            } else if *p.node(*value) != Node::None {
                return Err(self.bad(format!("{prefix}{key}"), "a module", describe(p, *value)));
            }
        }
        Ok(())
    }

    fn keep(&mut self, name: String, view: View, out: &mut Vec<(String, View)>) -> Result<()> {
        self.tensors += 1;
        if self.tensors > MAX_TENSORS {
            return Err(self.bad(name, format!("at most {MAX_TENSORS} tensors"), "more"));
        }
        out.push((name, view));
        Ok(())
    }

    /// The tensor `id` is, if it is one.
    fn tensor(&mut self, name: &str, id: Id) -> Result<Option<View>> {
        let p = self.pickle;
        let parameter = ["torch._utils._rebuild_parameter", "torch._utils._rebuild_parameter_with_state"];
        if let Some(args) = parameter.iter().find_map(|f| p.call(id, f)) {
            // A parameter of a parameter would have no end in a pickle that refers to itself.
            let inner = args.first().copied().filter(|i| parameter.iter().all(|f| p.call(*i, f).is_none()));
            return inner.map_or(Ok(None), |i| self.tensor(name, i));
        }
        let (args, newer) = if let Some(args) = p.call(id, "torch._utils._rebuild_tensor_v2") {
            (args, false)
        } else if let Some(args) = p.call(id, "torch._utils._rebuild_tensor_v3") {
            (args, true)
        } else if let Some(&[function, _, args, ..]) = p.call(id, "torch._tensor._rebuild_from_type_v2") {
            let Some(args) = p.sequence(args) else { return Ok(None) };
            (args, p.global(function) == Some("torch._utils._rebuild_tensor_v3"))
        } else {
            return Ok(None);
        };
        let bad = |what: &str| self.bad(name, what, "another value");
        let &[storage, offset, dims, strides, ..] = args else { return Err(bad("storage, offset, size and stride")) };
        let sizes = |id: Id| p.sequence(id)?.iter().map(|d| p.size(*d)).collect::<Option<Vec<_>>>();
        let offset = p.size(offset).ok_or_else(|| bad("an offset of at least 0"))?;
        let dims = sizes(dims).ok_or_else(|| bad("sizes of at least 0"))?;
        let strides = sizes(strides).ok_or_else(|| bad("strides of at least 0"))?;
        let named = args.get(6).filter(|_| newer).and_then(|d| p.global(*d)).and_then(named_type);
        let (stored, bytes) =
            (self.resolve)(p, storage)?.ok_or_else(|| self.bad(name, "a storage", describe(p, storage)))?;
        let dtype = named.or(stored).ok_or_else(|| self.bad(name, "a known element type", describe(p, storage)))?;
        Ok(Some(View { dtype, storage: bytes, offset, dims, strides }))
    }
}

/// A storage a torch file keeps beside its pickle: `('storage', class, key, location, count, view)`.
pub(crate) struct Outside<'a> {
    pub(crate) key: &'a str,
    pub(crate) dtype: Option<Dtype>,
    /// Elements it says to have.
    pub(crate) count: usize,
    /// Key, offset and count of a part of it, in very old files.
    pub(crate) part: Option<(&'a str, usize, usize)>,
}

impl Outside<'_> {
    /// Bytes of one of its elements.
    pub(crate) fn size(&self) -> usize {
        self.dtype.map_or(1, Dtype::size)
    }
}

/// The storage that `id` names, if it names one.
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
        "uint8" => Dtype::U8,
        "bool" => Dtype::Bool,
        _ => return None,
    })
}

/// Bytes pickled as such, or by protocol 2 as Latin-1 text.
pub(crate) enum Blob {
    /// Where they lie in the file.
    InFile(std::ops::Range<usize>),
    /// Decoded.
    Decoded(Rc<Vec<u8>>),
}

/// The bytes `id` is, if it is bytes.
pub(crate) fn blob(p: &Pickle, id: Id) -> Option<Blob> {
    if let Node::Bytes(range) = p.node(id) {
        return Some(Blob::InFile(range.clone()));
    }
    let &[text, encoding] = p.call(id, "_codecs.encode")? else { return None };
    if !matches!(p.text(encoding)?, "latin1" | "latin-1") {
        return None;
    }
    let bytes: Option<Vec<u8>> = p.text(text)?.chars().map(|c| u8::try_from(u32::from(c)).ok()).collect();
    Some(Blob::Decoded(Rc::new(bytes?)))
}

/// `id` as JSON: None, truth values, numbers, text, lists, dicts with text keys; a class or function as its name. `Err` beyond the bounds.
fn value(p: &Pickle, id: Id, depth: usize, budget: &mut usize) -> Result<Value, ()> {
    if depth == 0 || *budget == 0 {
        return Err(());
    }
    *budget -= 1;
    if let Some(items) = p.items(id) {
        let mut map = Map::new();
        for (k, v) in items {
            let key = p.text(*k).map_or_else(|| format!("{:?}", p.node(*k)), str::to_owned);
            map.insert(key, value(p, *v, depth - 1, budget)?);
        }
        return Ok(Value::Object(map));
    }
    Ok(match p.node(id) {
        Node::None | Node::Dict(_) => Value::Null,
        Node::Bool(b) => Value::Bool(*b),
        Node::Int(i) => Value::from(*i),
        Node::Float(f) => Number::from_f64(*f).map_or_else(|| Value::String(f.to_string()), Value::Number),
        Node::Text(t) => Value::String(t.clone()),
        Node::Sequence(s) => {
            Value::Array(s.iter().map(|v| value(p, *v, depth - 1, budget)).collect::<Result<_, ()>>()?)
        }
        Node::Global(name) => Value::String(name.clone()),
        Node::Call { function, arguments, .. } => match (p.global(*function), p.sequence(*arguments)) {
            (Some("torch.Size" | "builtins.set" | "__builtin__.set"), Some(&[list])) => {
                value(p, list, depth - 1, budget)?
            }
            (Some("numpy.core.multiarray.scalar" | "numpy._core.multiarray.scalar"), Some(&[dtype, bytes])) => {
                numpy_scalar(p, dtype, bytes).unwrap_or(Value::Null)
            }
            (Some(name), _) => Value::String(name.to_owned()),
            _ => Value::Null,
        },
        Node::Long(_) | Node::Bytes(_) | Node::Persistent(_) => Value::String(describe(p, id)),
    })
}

/// A numpy scalar: `numpy.dtype(kind, …)` with the byte order in its state, and the element's bytes.
fn numpy_scalar(p: &Pickle, dtype: Id, bytes: Id) -> Option<Value> {
    let kind = p.text(*p.call(dtype, "numpy.dtype")?.first()?)?;
    let Node::Call { state, .. } = p.node(dtype) else { return None };
    let order = state.and_then(|s| p.sequence(s)).and_then(|s| p.text(*s.get(1)?));
    let mut raw = match p.node(bytes) {
        Node::Text(t) => t.as_bytes().to_vec(),
        Node::Bytes(_) => p.inline(bytes)?.to_vec(),
        _ => match blob(p, bytes)? {
            Blob::Decoded(raw) => raw.to_vec(),
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

/// What `id` is, for errors.
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

/// Resolves storages by key.
pub(crate) type Keyed = HashMap<String, Storage>;
