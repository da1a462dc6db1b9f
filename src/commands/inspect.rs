//! `d2o inspect`.

use std::path::Path;

use anyhow::Context as _;
use d2o_converters::published::WeightsState;
use d2o_converters::{Architecture, Checkpoint, Network};
use d2o_onnx::metadata::Kind;
use d2o_onnx::read::ModelInfo;
use d2o_refs::batch::{self, ImageDims, ImageSource};
use d2o_refs::npz;
use serde_json::{Value, json};

use super::{ExitStatus, ensure_new_result, give_result};
use crate::cli::Inspect;
use crate::printer::Printer;

/// Describes files.
///
/// # Errors
/// If a file is of an unknown kind or damaged.
pub fn run(args: &Inspect, printer: Printer) -> anyhow::Result<ExitStatus> {
    ensure_new_result(&args.result)?;
    let mut found = Vec::new();
    for path in &args.files {
        found.push(describe(path).with_context(|| format!("cannot inspect `{}`", path.display()))?);
    }
    give_result(&args.result, printer, &found, || found.iter().map(render).collect::<Vec<_>>().join("\n"))?;
    Ok(ExitStatus::Done)
}

fn describe(path: &Path) -> anyhow::Result<Value> {
    let (file, array) = batch::split_name(path);
    if array.is_some() || d2o_refs::metadata(file)?.is_dir() {
        return images(path);
    }
    // Fails for a pipe, which readers would wait for.
    d2o_refs::open_file(path, "a file")?;
    let mut value = match path.extension().map(|e| e.to_string_lossy().to_ascii_lowercase()).as_deref() {
        Some("onnx") => graph(path)?,
        Some("npz") => match batch::open(path) {
            Ok(source) => images_of(path, source)?,
            Err(why) => arrays(path, &why)?,
        },
        Some("npy" | "zip" | "h5" | "hdf5") => images(path)?,
        _ => return checkpoint(path),
    };
    value["sha256"] = batch::container_sha256(path)?.into();
    Ok(value)
}

fn graph(path: &Path) -> anyhow::Result<Value> {
    let info = ModelInfo::open(path)?;
    let list = |values: &[d2o_onnx::read::ValueInfo]| values.iter().map(|v| v.describe()).collect::<Vec<_>>();
    let described = info.described();
    let kind = described.as_ref().ok().and_then(|d| d.kind);
    let file = path.display();
    let next = match kind {
        Some(Kind::OneStep) => format!("d2o generate {file} --seeds 0-63 --out samples.npz"),
        Some(Kind::Denoiser) => format!("d2o generate {file} --sampler heun --seeds 0-63 --out samples.npz"),
        Some(Kind::Features) => format!("d2o refs make DATA --extractor {file} --out ref.npz"),
        _ => format!("d2o verify {file}"),
    };
    let mut value = json!({
        "file": path, "what": format!("ONNX graph, {}", kind.map_or("not exported by d2o", Kind::name)), "opset": info.opset, "nodes": info.nodes,
        "parameters": info.parameters, "inputs": list(&info.inputs), "outputs": list(&info.outputs),
        "metadata": info.metadata, "next": next,
    });
    match described {
        Ok(metadata) if kind == Some(Kind::Features) => weights(&mut value, &WeightsState::of_metadata(&metadata)),
        Ok(_) => {}
        Err(e) => value["problem"] = e.to_string().into(),
    }
    Ok(value)
}

/// Adds to `value` whether the weights of a feature network are published, and their digests.
fn weights(value: &mut Value, state: &WeightsState) {
    value["weights"] = state.to_string().into();
    value["weights_digest"] = state.digest.clone().into();
    value["head_digest"] = state.head_digest.clone().into();
}

/// Describes an npz that cannot be opened as images, for the reason `why`, by its arrays.
fn arrays(path: &Path, why: &d2o_refs::Error) -> anyhow::Result<Value> {
    let mut npz = npz::Npz::open(path)?;
    let mut list = Vec::new();
    for name in npz.names() {
        let header = npz.header(&name)?;
        list.push(format!("{name} {} {:?}", header.dtype.descr(), header.shape));
    }
    let reference = npz.contains("mu") && npz.contains("sigma");
    let what = if reference { "reference statistics" } else { "npz arrays" };
    let why = (!reference).then(|| why.to_string());
    Ok(
        json!({"file": path, "what": what, "not_images": why, "arrays": list, "next": format!("d2o refs inspect {}", path.display())}),
    )
}

fn images(path: &Path) -> anyhow::Result<Value> {
    images_of(path, batch::open(path)?)
}

fn images_of(path: &Path, mut source: Box<dyn ImageSource>) -> anyhow::Result<Value> {
    let dims = source.dims();
    let classes = source.labels().map(|l| {
        let mut classes = l.to_vec();
        classes.sort_unstable();
        classes.dedup();
        classes.len()
    });
    let content = batch::content_sha256(source.as_mut())?;
    let file = path.display();
    let next = match dims {
        Some(_) => format!("d2o refs make {file} --extractor F.onnx --out ref.npz"),
        None => format!("d2o dataset {file} --resolution 64 --out data.zip"),
    };
    let sizes = dims.is_none().then(|| {
        let each = || (0..source.len()).filter_map(|i| source.size(i));
        let range = |of: fn(ImageDims) -> usize| {
            format!("{} to {}", each().map(of).min().unwrap_or(0), each().map(of).max().unwrap_or(0))
        };
        format!("width {}, height {}", range(|d| d.width), range(|d| d.height))
    });
    Ok(json!({
        "file": path, "what": "images", "count": source.len(), "width": dims.map(|d| d.width), "height": dims.map(|d| d.height),
        "sizes": sizes, "classes": classes, "left_out": source.notes(), "pixels_sha256": content, "next": next,
    }))
}

fn checkpoint(path: &Path) -> anyhow::Result<Value> {
    let checkpoint = Checkpoint::open(path)?;
    let sha256 = batch::container_sha256(path)?;
    let mut networks = Vec::new();
    for network in &checkpoint.networks {
        let names = network.tensors.names();
        let scalars: usize =
            names.iter().filter_map(|n| network.tensors.info(n)).map(|i| i.dims.iter().product::<usize>()).sum();
        let class = network.architecture.name();
        let (kwargs, problem) = match &network.architecture {
            Architecture::Denoiser(config) => (config.init_kwargs(), Value::Null),
            Architecture::Inferred(inferred) => match network.architecture.denoiser() {
                Ok(config) => (config.init_kwargs(), Value::Null),
                Err(_) => (Value::Object(inferred.kwargs.clone()), inferred.question.as_str().into()),
            },
            Architecture::Generator(generator) => (generator.init_kwargs(), Value::Null),
            Architecture::Unsupported(why) => (Value::Null, why.as_str().into()),
            _ => (Value::Null, Value::Null),
        };
        let mut value = json!({
            "name": network.name, "class": class, "init_kwargs": kwargs, "problem": problem, "tensors": names.len(),
            "scalars": scalars, "python_source_sha256": network.source_sha256,
        });
        match WeightsState::of_network(network, &class, &sha256) {
            Ok(Some(state)) => weights(&mut value, &state),
            Ok(None) => {}
            Err(e) => value["problem"] = e.to_string().into(),
        }
        networks.push(value);
    }
    // Suggest the export of the default network of `d2o export`, or else of the first network that can be exported.
    let usable = |n: &&Network| n.architecture.is_complete();
    let chosen = checkpoint.network(None).ok().filter(usable).or_else(|| checkpoint.networks.iter().find(usable));
    let file = path.display();
    let notes = (!checkpoint.notes.is_empty()).then_some(&checkpoint.notes);
    let next = match chosen {
        Some(n) if n.name.is_empty() || checkpoint.network(None).is_ok_and(|e| e.name == n.name) => {
            format!("d2o export {file} --out X.onnx")
        }
        Some(n) => format!("d2o export {file} --net {} --out X.onnx", n.name),
        _ => format!("d2o export {file} --config NET.json --out X.onnx"),
    };
    Ok(json!({
        "file": path, "what": format!("checkpoint, {}", checkpoint.format.name()), "networks": networks, "notes": notes, "next": next, "sha256": sha256,
    }))
}

fn render(value: &Value) -> String {
    lines(value, "").join("\n")
}

/// The entries of `value` as lines `key: value`, each after `indent`.
fn lines(value: &Value, indent: &str) -> Vec<String> {
    let text = |v: &Value| v.as_str().map_or_else(|| v.to_string(), str::to_owned);
    let mut all = Vec::new();
    for (key, v) in value.as_object().into_iter().flatten() {
        match v {
            Value::Null => {}
            Value::String(empty) if empty.is_empty() => {}
            Value::Array(items) => {
                all.push(format!("{indent}{key}:"));
                for item in items {
                    let entries = lines(item, &format!("{indent}    "));
                    match entries.split_first() {
                        Some((first, rest)) => {
                            all.push(format!("{indent}  - {}", first.trim_start()));
                            all.extend(rest.iter().cloned());
                        }
                        None => all.push(format!("{indent}  {}", text(item))),
                    }
                }
            }
            Value::Object(map) => {
                all.push(format!("{indent}{key}:"));
                all.extend(map.iter().map(|(k, i)| format!("{indent}  {k}: {}", text(i))));
            }
            other => all.push(format!("{indent}{key}: {}", text(other))),
        }
    }
    all
}
