//! `d2o inspect`.

use std::path::Path;

use anyhow::Context as _;
use d2o_converters::checkpoint::{Architecture, Checkpoint, Network};
use d2o_onnx::read::ModelInfo;
use d2o_refs::{batch, npz};
use fs_err as fs;
use serde_json::{Value, json};

use super::ExitStatus;
use crate::cli::Inspect;
use crate::printer::Printer;

/// Says what files are.
///
/// # Errors
/// A file of no known kind, or a damaged one.
pub fn run(args: &Inspect, printer: Printer) -> anyhow::Result<ExitStatus> {
    let mut found = Vec::new();
    for path in &args.files {
        found.push(describe(path).with_context(|| format!("cannot inspect `{}`", path.display()))?);
    }
    if let Some(path) = &args.json {
        printer.json(path, &found)?;
    }
    if args.json.as_deref() != Some(Path::new("-")) {
        for value in &found {
            printer.data(&render(value))?;
        }
    }
    Ok(ExitStatus::Done)
}

fn describe(path: &Path) -> anyhow::Result<Value> {
    if fs::metadata(path)?.is_dir() {
        return images(path);
    }
    let mut value = match path.extension().map(|e| e.to_string_lossy().to_ascii_lowercase()).as_deref() {
        Some("onnx") => graph(path)?,
        Some("npz") if !npz::Npz::open(path)?.contains(npz::IMAGES) => arrays(path)?,
        Some("npz" | "npy" | "zip" | "h5" | "hdf5") => images(path)?,
        _ => checkpoint(path)?,
    };
    value["sha256"] = batch::container_sha256(path)?.into();
    Ok(value)
}

fn graph(path: &Path) -> anyhow::Result<Value> {
    let info = ModelInfo::open(path)?;
    let list = |values: &[d2o_onnx::read::ValueInfo]| values.iter().map(|v| v.describe()).collect::<Vec<_>>();
    let kind = info.metadata.get("kind").map(String::as_str);
    let file = path.display();
    let next = match kind {
        Some("one-step") => format!("d2o generate {file} --seeds 0-63 --out samples.npz"),
        Some("denoiser") => format!("d2o generate {file} --sampler heun --seeds 0-63 --out samples.npz"),
        Some("features") => format!("d2o refs make DATA --extractor {file} --out ref.npz"),
        _ => format!("d2o verify {file}"),
    };
    Ok(json!({
        "file": path, "what": format!("ONNX graph, {}", kind.unwrap_or("not by d2o")), "opset": info.opset, "nodes": info.nodes,
        "parameters": info.parameters, "inputs": list(&info.inputs), "outputs": list(&info.outputs),
        "metadata": info.metadata, "next": next,
    }))
}

fn arrays(path: &Path) -> anyhow::Result<Value> {
    let mut npz = npz::Npz::open(path)?;
    let mut list = Vec::new();
    for name in npz.names() {
        let header = npz.header(&name)?;
        list.push(format!("{name} {} {:?}", header.dtype.descr(), header.shape));
    }
    let reference = npz.contains("mu") && npz.contains("sigma");
    let what = if reference { "reference statistics" } else { "npz arrays" };
    Ok(json!({"file": path, "what": what, "arrays": list, "next": format!("d2o refs inspect {}", path.display())}))
}

fn images(path: &Path) -> anyhow::Result<Value> {
    let mut source = batch::open(path)?;
    let dims = batch::uniform(source.as_ref())?;
    let classes = source.labels().map(|l| {
        let mut classes = l.to_vec();
        classes.sort_unstable();
        classes.dedup();
        classes.len()
    });
    let content = batch::content_sha256(source.as_mut())?;
    Ok(json!({
        "file": path, "what": "images", "count": source.len(), "width": dims.width, "height": dims.height, "classes": classes,
        "pixels_sha256": content, "next": format!("d2o refs make {} --extractor F.onnx --out ref.npz", path.display()),
    }))
}

fn checkpoint(path: &Path) -> anyhow::Result<Value> {
    let checkpoint = Checkpoint::open(path)?;
    let mut networks = Vec::new();
    for network in &checkpoint.networks {
        let names = network.tensors.names();
        let scalars: usize =
            names.iter().filter_map(|n| network.tensors.info(n)).map(|i| i.dims.iter().product::<usize>()).sum();
        let class = network.architecture.name();
        let (kwargs, problem) = match &network.architecture {
            Architecture::Denoiser(config) => (config.init_kwargs(), Value::Null),
            Architecture::OpenAiUNet(found) => match &found.config {
                Some(config) => (config.init_kwargs(), Value::Null),
                None => (Value::Object(found.kwargs.clone()), found.question().into()),
            },
            Architecture::StyleGan2(config) => (config.init_kwargs(), Value::Null),
            Architecture::Unsupported(why) => (Value::Null, why.as_str().into()),
            _ => (Value::Null, Value::Null),
        };
        networks.push(json!({
            "name": network.name, "class": class, "init_kwargs": kwargs, "problem": problem, "tensors": names.len(),
            "scalars": scalars, "source_sha256": network.source_sha256,
        }));
    }
    // The command for the network that `export` takes by itself, or for the first there is.
    let usable = |n: &&Network| match &n.architecture {
        Architecture::Unknown | Architecture::Unsupported(_) => false,
        Architecture::OpenAiUNet(found) => found.config.is_some(),
        _ => true,
    };
    let chosen = checkpoint.network("ema").ok().filter(usable).or_else(|| checkpoint.networks.iter().find(usable));
    let file = path.display();
    let next = match chosen {
        Some(n) if n.name.is_empty() || checkpoint.network("ema").is_ok_and(|e| e.name == n.name) => {
            format!("d2o export {file} --out X.onnx")
        }
        Some(n) if n.name == "net" || n.name == "G" => format!("d2o export {file} --net net --out X.onnx"),
        _ => format!("d2o export {file} --config NET.json --out X.onnx"),
    };
    Ok(json!({
        "file": path, "what": format!("checkpoint, {}", checkpoint.format.name()), "networks": networks, "next": next,
    }))
}

fn render(value: &Value) -> String {
    let mut lines = Vec::new();
    for (key, v) in value.as_object().into_iter().flatten() {
        match v {
            Value::Null => {}
            Value::Array(items) => {
                lines.push(format!("{key}:"));
                lines.extend(
                    items.iter().map(|i| format!("  {}", i.as_str().map_or_else(|| i.to_string(), str::to_owned))),
                );
            }
            Value::Object(map) => {
                lines.push(format!("{key}:"));
                lines.extend(map.iter().map(|(k, i)| format!("  {k}: {}", i.as_str().unwrap_or_default())));
            }
            other => lines.push(format!("{key}: {}", other.as_str().map_or_else(|| other.to_string(), str::to_owned))),
        }
    }
    lines.join("\n")
}
