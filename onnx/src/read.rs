//! Inputs, outputs and metadata of a model file.

use std::collections::{BTreeMap, HashMap};
use std::io::{Cursor, Read as _, Seek as _};
use std::path::{Component, Path};

use d2o_files::kind;
use fs_err as fs;

use crate::error::{Error, Result};
use crate::graph::{Dim, ElementType, PRODUCER};
use crate::metadata::Metadata;
use crate::proto::{DimensionValue, ModelProto, ValueInfoProto, decoded};
use crate::scan::{self, External, Summary};

/// An input or output.
#[derive(Debug, Clone, PartialEq)]
pub struct ValueInfo {
    /// Name.
    pub name: String,
    /// Element type.
    pub element: ElementType,
    /// Shape. Every axis without a fixed length is [`Dim::Batch`], with any symbol or none.
    pub dims: Vec<Dim>,
    /// For each axis, the name of its symbol, if it has one. Axes of one symbol have equal lengths.
    pub symbols: Vec<Option<String>>,
}

impl ValueInfo {
    /// Name, element type and axes as text, e.g. `latents f32 [N, 3, 32, 32]`.
    #[must_use]
    pub fn describe(&self) -> String {
        format!("{} {} [{}]", self.name, self.element, self.axes().join(", "))
    }

    /// The axes as text: a length, a symbol, or `?`.
    #[must_use]
    pub fn axes(&self) -> Vec<String> {
        let axis = |(dim, symbol): (&Dim, &Option<String>)| match dim {
            Dim::Known(n) => n.to_string(),
            _ => symbol.as_deref().unwrap_or("?").to_owned(),
        };
        self.dims.iter().zip(&self.symbols).map(axis).collect()
    }
}

/// Summary of a model file.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ModelInfo {
    /// `producer_name`: the program that wrote the file.
    pub producer: String,
    /// Inputs that are not initializers, in order.
    pub inputs: Vec<ValueInfo>,
    /// Outputs, in order.
    pub outputs: Vec<ValueInfo>,
    /// Metadata entries as stored. [`ModelInfo::described`] parses the keys of d2o.
    pub metadata: BTreeMap<String, String>,
    /// Opset of the default domain; 0 if the file has none.
    pub opset: i64,
    /// Number of nodes of the main graph, without nodes in branches and functions.
    pub nodes: usize,
    /// Number of scalars in the initializers of the main graph.
    pub parameters: u64,
    /// Whether any node is a `Loop` or `Scan`. The size of the inputs then does not bound the time of a run.
    pub loops: bool,
    /// Whether any convolution may be eligible for Winograd: one group, stride 1, more than one tap. Convolutions with
    /// a weight that is not an initializer count as eligible.
    pub has_winograd_candidates: bool,
}

impl ModelInfo {
    /// Reads the model at `path` without its weights. External weights must be in regular files in the folder of the
    /// model or below it, because runtimes read them from there.
    ///
    /// # Errors
    /// `Format` if the file is not an ONNX model, would take memory or time out of proportion to its size, or has
    /// weights elsewhere. `Io` if a file cannot be read.
    pub fn open(path: &Path) -> Result<Self> {
        let found = scan(path)?;
        ensure_beside(path, &found.external)?;
        Self::of(found, path)
    }

    /// Reads a model from memory. Errors name it `file`. External weights are not checked.
    ///
    /// # Errors
    /// `Format` as in [`ModelInfo::open`].
    pub fn parse(bytes: &[u8], file: &Path) -> Result<Self> {
        Self::of(scan::model(Cursor::new(bytes), bytes.len() as u64, file)?, file)
    }

    fn of(found: Summary, file: &Path) -> Result<Self> {
        if !found.graph {
            return Err(bad(file, "ONNX message", "a graph", "none"));
        }
        if found.outputs.is_empty() {
            return Err(bad(file, "graph", "outputs", "none"));
        }
        let value = |v: &ValueInfoProto| -> Result<ValueInfo> {
            let tensor = v.tensor().ok_or_else(|| bad(file, &v.name, "a tensor", "another type"))?;
            let element = ElementType::from_code(tensor.elem_type).ok_or_else(|| {
                bad(file, &v.name, "f16, f32, f64, u8, i32, i64 or bool", format!("type {}", tensor.elem_type))
            })?;
            let axes = tensor.shape.iter().flat_map(|s| &s.dim).map(|d| match &d.value {
                Some(DimensionValue::DimValue(n)) => (usize::try_from(*n).map_or(Dim::Batch, Dim::Known), None),
                Some(DimensionValue::DimParam(name)) => (Dim::Batch, Some(name.clone()).filter(|n| !n.is_empty())),
                None => (Dim::Batch, None),
            });
            let (dims, symbols) = axes.unzip();
            Ok(ValueInfo { name: v.name.clone(), element, dims, symbols })
        };
        let known = |name: &Option<String>| name.as_ref().and_then(|n| found.weights.get(n));
        Ok(Self {
            // Weights of unknown shape may have any number of taps.
            has_winograd_candidates: found.dense.iter().any(|weight| known(weight).is_none_or(|w| w.taps > 1)),
            inputs: found
                .inputs
                .iter()
                .filter(|v| !found.weights.contains_key(&v.name))
                .map(value)
                .collect::<Result<_>>()?,
            outputs: found.outputs.iter().map(value).collect::<Result<_>>()?,
            producer: found.producer,
            loops: found.loops,
            metadata: found.metadata,
            opset: found.opset.unwrap_or(0),
            nodes: found.nodes,
            parameters: found.parameters,
        })
    }

    /// The metadata with the keys of d2o. In graphs of other programs, values that do not have the type of their key
    /// are ignored.
    ///
    /// # Errors
    /// `Metadata` if d2o wrote the graph and a value does not have the type of its key.
    pub fn described(&self) -> Result<Metadata> {
        if self.producer == PRODUCER {
            Metadata::read(&self.metadata)
        } else {
            Ok(Metadata::read_foreign(&self.metadata))
        }
    }

    /// The output called `name`.
    #[must_use]
    pub fn output(&self, name: &str) -> Option<&ValueInfo> {
        self.outputs.iter().find(|v| v.name == name)
    }

    /// Names of the outputs, in order.
    pub fn output_names(&self) -> impl Iterator<Item = &str> {
        self.outputs.iter().map(|v| v.name.as_str())
    }

    /// The input called `name`.
    #[must_use]
    pub fn input(&self, name: &str) -> Option<&ValueInfo> {
        self.inputs.iter().find(|v| v.name == name)
    }
}

fn bad(file: &Path, place: &str, expected: &str, found: impl Into<String>) -> Error {
    let (file, place, expected) = (file.to_owned(), place.to_owned(), expected.to_owned());
    Error::Format { file, place, expected, found: found.into(), source: None }
}

/// Opens a regular file and returns it with its length. Other kinds of files are refused, because they may block or
/// never end.
fn regular(path: &Path, file: &Path, place: &str) -> Result<(fs::File, u64)> {
    if fs::metadata(path).is_ok_and(|found| !found.is_file()) {
        return Err(bad(file, place, "a regular file", "another kind"));
    }
    let open = fs::File::open(path)?;
    let length = open.metadata()?.len();
    Ok((open, length))
}

pub(crate) fn scan(path: &Path) -> Result<Summary> {
    let (mut file, length) = regular(path, path, "file")?;
    let mut head = Vec::new();
    file.by_ref().take(kind::HEAD as u64).read_to_end(&mut head)?;
    file.rewind()?;
    let found = scan::model(file, length, path);
    let is_model = found.as_ref().is_ok_and(|f| f.graph);
    match kind::known(&head) {
        Some(what) if what != kind::ONNX && !is_model => Err(bad(path, "start of file", "an ONNX model", what)),
        _ => found,
    }
}

/// Checks that the external tensors of the model at `path` are in regular files in its folder or below it. The model
/// and the weights may be symbolic links. The weights then must be in the folder of `path` or in the folder that
/// contains the target of `path`.
fn ensure_beside(path: &Path, tensors: &[External]) -> Result<()> {
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut folders = Vec::new();
    let mut seen = HashMap::new();
    for External { tensor, location, offset, length } in tensors {
        let refused = |expected: &str, found: String| bad(path, &format!("weights of `{tensor}`"), expected, found);
        let size = match seen.get(location) {
            Some(size) => *size,
            None => {
                let inside = !location.is_empty()
                    && !location.contains('\0')
                    && Path::new(location).components().all(|c| matches!(c, Component::Normal(_) | Component::CurDir));
                let beside = || refused("a file in the model's folder", format!("{location:?}"));
                if !inside {
                    return Err(beside());
                }
                if folders.is_empty() {
                    let own = fs::canonicalize(path)?;
                    folders = vec![fs::canonicalize(folder)?, own.parent().unwrap_or(&own).to_owned()];
                }
                let whole = fs::canonicalize(folder.join(location))?;
                if !folders.iter().any(|f| whole.starts_with(f)) {
                    return Err(beside());
                }
                let (_, size) = regular(&whole, path, &format!("weights of `{tensor}`, `{location}`"))?;
                seen.insert(location, size);
                size
            }
        };
        let number = |text: &str, default: u64| if text.is_empty() { Some(default) } else { text.parse().ok() };
        let end = number(offset, 0).and_then(|o| o.checked_add(number(length, 0)?));
        if end.is_none_or(|end| end > size) {
            return Err(refused(
                &format!("part of the {size} bytes of `{location}`"),
                format!("{length} bytes from {offset}"),
            ));
        }
    }
    Ok(())
}

/// Reads the model at `path`. d2o must have written it, with all weights in the file.
pub(crate) fn written(path: &Path) -> Result<ModelProto> {
    let found = scan(path)?;
    if !found.graph {
        return Err(bad(path, "ONNX message", "a graph", "none"));
    }
    if found.producer != PRODUCER {
        // Other producers may use fields that a rewritten copy would lose.
        return Err(bad(path, "producer", PRODUCER, format!("`{}`", found.producer)));
    }
    if let Some(outside) = found.external.first() {
        return Err(bad(path, &outside.tensor, "weights in the file itself", "a side file"));
    }
    let bytes = fs::read(path)?;
    decoded(&bytes, path, "ONNX message")
}

#[cfg(test)]
mod tests {
    use prost::Message as _;

    use super::*;
    use crate::graph::GraphBuilder;
    use crate::proto::TensorProto;

    #[test]
    fn errors_name_the_file() {
        let mut g = GraphBuilder::new("g");
        let x = g.input("x", ElementType::F32, &[Dim::Batch, Dim::Known(2)]).unwrap();
        let y = g.scale(&x, 3.0).unwrap();
        g.output("y", &y).unwrap();
        let bytes = crate::write::to_bytes(&g.finish().unwrap()).unwrap();
        for bad in [&b""[..], b"PK\x03\x04 a zip", b"{\"json\": 1}", &bytes[..bytes.len() / 2]] {
            let text = ModelInfo::parse(bad, "x.onnx".as_ref()).unwrap_err().to_string();
            assert!(text.starts_with("x.onnx: "), "{text}");
        }
        let info = ModelInfo::parse(&bytes, "x.onnx".as_ref()).unwrap();
        assert_eq!(info.inputs[0].describe(), "x f32 [N, 2]");
        assert_eq!((info.nodes, info.parameters, info.opset), (2, 1, crate::opset::OPSET));
    }

    #[test]
    fn files_that_are_something_else_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.onnx");
        for (bytes, what) in [
            (&b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n"[..], "a Git LFS pointer"),
            (b"<!DOCTYPE html><html>", "a web page"),
            (b"PK\x03\x04 a zip", "a zip archive"),
            (b"", "an empty file"),
        ] {
            fs::write(&path, bytes).unwrap();
            let text = ModelInfo::open(&path).unwrap_err().to_string();
            assert!(text.contains(&format!("start of file: expected an ONNX model, found {what}")), "{text}");
        }
    }

    /// Field `number` of a message, with `content`.
    fn field(number: u8, content: &[u8]) -> Vec<u8> {
        let mut bytes = vec![number << 3 | 2];
        prost::encode_length_delimiter(content.len(), &mut bytes).unwrap();
        [&bytes, content].concat()
    }

    fn repeated(number: u8, content: &[u8], count: usize) -> Vec<u8> {
        field(number, content).repeat(count)
    }

    /// A model whose graph ends with `more`.
    fn model(more: &[u8]) -> Vec<u8> {
        let kind = field(1, &[0x08, 0x01]);
        field(7, &[field(12, &[field(1, b"y"), field(2, &kind)].concat()), more.to_vec()].concat())
    }

    fn refusal(bytes: &[u8]) -> String {
        ModelInfo::parse(bytes, "x.onnx".as_ref()).unwrap_err().to_string()
    }

    #[test]
    fn sizes_that_overflow_saturate() {
        let dims = |dims: &[i64]| TensorProto { dims: dims.to_vec(), name: "w".to_owned(), ..TensorProto::default() };
        for huge in [&[1 << 32, 1 << 32, 2][..], &[1 << 62, 2, 2], &[i64::MAX, i64::MAX, i64::MAX, i64::MAX]] {
            let info = ModelInfo::parse(&model(&field(5, &dims(huge).encode_to_vec())), "x.onnx".as_ref()).unwrap();
            assert!(info.parameters >= 1 << 63, "{huge:?}: {}", info.parameters);
        }
        let info = ModelInfo::parse(&model(&field(5, &dims(&[-1, 5]).encode_to_vec())), "x.onnx".as_ref()).unwrap();
        assert_eq!(info.parameters, 0);
    }

    #[test]
    fn many_small_messages_are_errors() {
        const MANY: usize = 32_000_000;
        let nested = |levels: usize| (0..levels).fold(Vec::new(), |inner, _| field(1, &field(5, &field(6, &inner))));
        for (bytes, place) in [
            (model(&repeated(1, b"", MANY)), "x.onnx: node at byte "),
            (model(&repeated(5, b"", MANY)), "x.onnx: tensor at byte "),
            (model(&repeated(11, b"", MANY)), "x.onnx: value at byte "),
            (model(&repeated(13, b"", MANY)), "x.onnx: value at byte "),
            (model(&field(1, &repeated(5, b"", MANY))), "x.onnx: attribute at byte "),
            (model(&field(1, &field(5, &repeated(14, b"", MANY)))), "x.onnx: attribute at byte "),
            (model(&field(1, &repeated(1, b"", MANY))), "x.onnx: node at byte "),
            (model(&field(1, &repeated(10, b"", MANY))), "x.onnx: "),
            (model(&field(1, &repeated(7, b"x", MANY))), "x.onnx: node at byte "),
            (model(&field(5, &repeated(6, b"", MANY))), "x.onnx: tensor at byte "),
            (model(&field(5, &field(1, &vec![0; 8 * MANY]))), "x.onnx: tensor at byte "),
            (model(&field(12, &field(2, &field(1, &field(2, &repeated(1, b"", MANY)))))), "x.onnx: value at byte "),
            ([model(b""), repeated(14, b"", MANY)].concat(), "x.onnx: entry at byte "),
            (model(&nested(40)), "x.onnx: "),
        ] {
            let text = ModelInfo::parse(&bytes, "x.onnx".as_ref()).err().map(|e| e.to_string());
            let text = text.unwrap_or_else(|| panic!("{place}: {} bytes are read", bytes.len()));
            assert!(text.starts_with(place) && text.contains("expected at most"), "{place}: {text}");
        }
        // Weights may be large.
        let large = model(&field(5, &[field(8, b"w"), field(9, &vec![0; 64 << 20])].concat()));
        assert!(ModelInfo::parse(&large, "x.onnx".as_ref()).is_ok());
    }

    /// A node of operator `op` that reads `inputs` and writes `output`; `more` are further fields.
    fn node(op: &str, inputs: &[&str], output: &str, more: &[u8]) -> Vec<u8> {
        let inputs: Vec<u8> = inputs.iter().flat_map(|i| field(1, i.as_bytes())).collect();
        field(1, &[inputs, field(2, output.as_bytes()), field(4, op.as_bytes()), more.to_vec()].concat())
    }

    #[test]
    fn tensors_of_constant_sizes_are_charged() {
        let integers = |name: &str, values: &[i64]| {
            let raw_data = values.iter().flat_map(|v| v.to_le_bytes()).collect();
            let dims = vec![values.len() as i64];
            let tensor = TensorProto { name: name.to_owned(), data_type: 7, dims, raw_data, ..TensorProto::default() };
            tensor.encode_to_vec()
        };
        let weights = |all: &[(&str, &[i64])]| -> Vec<u8> {
            all.iter().flat_map(|(name, values)| field(5, &integers(name, values))).collect()
        };
        let attribute = |name: &str, number: u8, content: &[u8]| {
            field(5, &[field(1, name.as_bytes()), field(number, content)].concat())
        };
        let big: &[i64] = &[1 << 14, 1 << 14];
        let shape = [0x80, 0x80, 0x80, 0x80, 0x10];
        for (op, graph) in [
            ("ConstantOfShape", [node("ConstantOfShape", &["s"], "y", b""), weights(&[("s", big)])].concat()),
            ("Expand", [node("Expand", &["x", "s"], "y", b""), weights(&[("s", big)])].concat()),
            ("Tile", [node("Tile", &["x", "s"], "y", b""), weights(&[("s", &[1, 1 << 40])])].concat()),
            ("Resize", [node("Resize", &["x", "", "", "s"], "y", b""), weights(&[("s", big)])].concat()),
            ("OneHot", [node("OneHot", &["x", "s"], "y", b""), weights(&[("s", &[1 << 40])])].concat()),
            ("Pad", [node("Pad", &["x", "s"], "y", b""), weights(&[("s", &[0, 1 << 40, 0, 0])])].concat()),
            ("Range", [node("Range", &["a", "b", "a"], "y", b""), weights(&[("a", &[1]), ("b", &[1 << 40])])].concat()),
            ("RandomNormal", node("RandomNormal", &[], "y", &attribute("shape", 8, &shape))),
            (
                "Expand",
                [
                    node("Constant", &[], "c", &attribute("value", 5, &integers("", &[1 << 20]))),
                    node("Mul", &["c", "c"], "m", b""),
                    node("Unsqueeze", &["m"], "u", b""),
                    node("Concat", &["u", "u"], "s", b""),
                    field(1, &field(5, &field(6, &node("Expand", &["x", "s"], "y", b"")))),
                ]
                .concat(),
            ),
            // Each concatenation doubles the length.
            ("Concat", node("Concat", &["y", "y"], "y", b"").repeat(41)),
            // Each tensor alone is within the limit.
            (
                "ConstantOfShape",
                [node("ConstantOfShape", &["s"], "y", b"").repeat(200), weights(&[("s", &[1 << 20])])].concat(),
            ),
        ] {
            let text = refusal(&model(&graph));
            assert!(text.starts_with(&format!("x.onnx: {op} of `y`: expected at most 64 MiB")), "{op}: {text}");
        }
        let text = refusal(&model(&[node("Loop", &["n", "", "x"], "y", b""), weights(&[("n", &[1 << 40])])].concat()));
        assert!(
            text.contains("x.onnx: Loop of `y`: expected at most 1677") && text.contains("1099511627776 iterations"),
            "{text}"
        );
        let small = [node("Expand", &["x", "s"], "y", b""), weights(&[("s", &[-1, 512, 64, 64])])].concat();
        assert!(ModelInfo::parse(&model(&small), "x.onnx".as_ref()).is_ok());
    }

    #[test]
    fn inputs_that_are_initializers_are_not_listed() {
        let info = model(&[repeated(5, &field(8, b"w"), 30_000), repeated(11, &field(1, b"w"), 30_000)].concat());
        assert_eq!(ModelInfo::parse(&info, "x.onnx".as_ref()).unwrap().inputs, []);
    }

    #[test]
    fn external_weights_are_in_regular_files_of_the_folder() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("store/x.onnx");
        fs::create_dir_all(dir.path().join("store/sub")).unwrap();
        fs::write(dir.path().join("store/sub/inside.bin"), [0; 8]).unwrap();
        fs::write(dir.path().join("outside.bin"), [0; 8]).unwrap();
        #[cfg(unix)]
        std::os::unix::fs::symlink("../outside.bin", dir.path().join("store/link.bin")).unwrap();
        let absolute = dir.path().join("store/sub/inside.bin");
        let text = |location: &str, offset: &str, length: &str| {
            let entry =
                |key: &str, value: &str| field(13, &[field(1, key.as_bytes()), field(2, value.as_bytes())].concat());
            let entries = [entry("location", location), entry("offset", offset), entry("length", length)].concat();
            let tensor = [field(8, b"w"), vec![14 << 3, 1], entries].concat();
            // As an initializer of the graph, and in a node of a branch.
            for place in [field(5, &tensor), field(1, &field(5, &field(6, &field(1, &field(5, &field(5, &tensor))))))] {
                fs::write(&path, model(&place)).unwrap();
                if let Err(error) = ModelInfo::open(&path) {
                    return error.to_string();
                }
            }
            String::new()
        };
        assert_eq!(text("sub/inside.bin", "", ""), "");
        assert_eq!(text("./sub/inside.bin", "4", "4"), "");
        for location in ["../outside.bin", absolute.to_str().unwrap(), "sub/../sub/inside.bin", "link.bin", "a\0b", ""]
        {
            let text = text(location, "0", "8");
            assert!(text.contains("weights of `w`: expected a file in the model's folder"), "{location}: {text}");
        }
        assert!(text("sub", "0", "8").contains("expected a regular file"));
        assert!(text("nowhere.bin", "0", "8").contains("nowhere.bin"));
        for (offset, length) in [("4", "8"), ("-1", "8"), ("18446744073709551615", "8"), ("0", "x")] {
            let text = text("sub/inside.bin", offset, length);
            assert!(text.contains("part of the 8 bytes of `sub/inside.bin`"), "{text}");
        }
        #[cfg(unix)]
        {
            let made = std::process::Command::new("mkfifo").arg(dir.path().join("store/pipe")).status().unwrap();
            assert!(made.success() && text("pipe", "0", "8").contains("expected a regular file"));
            let link = dir.path().join("model.onnx");
            std::os::unix::fs::symlink(dir.path().join("store/pipe"), &link).unwrap();
            assert!(ModelInfo::open(&link).unwrap_err().to_string().contains("expected a regular file"));
            // A cache of downloads: the model and its weights are links into one folder.
            let store = dir.path().join("store");
            fs::write(store.join("weights"), [0; 8]).unwrap();
            assert!(text("inside.bin", "0", "8").contains("inside.bin"));
            let snapshot = dir.path().join("snapshot");
            fs::create_dir_all(&snapshot).unwrap();
            std::os::unix::fs::symlink("../store/x.onnx", snapshot.join("m.onnx")).unwrap();
            std::os::unix::fs::symlink("../store/sub/inside.bin", snapshot.join("inside.bin")).unwrap();
            assert!(ModelInfo::open(&snapshot.join("m.onnx")).is_ok());
        }
    }
}
