//! Nodes by provider, and their run times.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::Context as _;
use d2o_runtime::Session as _;
use fs_err as fs;

use super::inputs::{by_name, inputs};
use crate::cli::{Accelerator, Global, Runtime};
use crate::engine;
use crate::verdict::{NodeCount, NodeTime};

/// Number of nodes that `--profile` lists by time.
const SLOWEST: usize = 20;

/// Number of nodes of `model` by provider and operation, and its slowest nodes, on `runtime`.
pub(super) fn profile(
    model: &Path,
    runtime: Runtime,
    [samples, batch]: [usize; 2],
    accelerator: &Accelerator,
    global: &Global,
) -> anyhow::Result<(Vec<NodeCount>, Vec<NodeTime>)> {
    let folder = d2o_files::Scratch::new()?;
    let prefix = folder.path().join("profile");
    let mut session = engine::open_profiled(model, runtime, &prefix, accelerator, global)?;
    let mut counts: BTreeMap<(String, String), usize> = BTreeMap::new();
    for node in session.nodes()? {
        *counts.entry((node.provider, node.op)).or_default() += 1;
    }
    let counts = counts.into_iter().map(|((provider, op), count)| NodeCount { provider, op, count }).collect();
    let info = session.model().clone();
    for at in (0..samples).step_by(batch) {
        let inputs = inputs(&info, at, batch.min(samples - at))?;
        session.run(&by_name(&inputs)).with_context(|| format!("cannot profile `{}`", model.display()))?;
    }
    let file = session.end_profile()?;
    let events: Vec<serde_json::Value> = serde_json::from_slice(&fs::read(&file)?)
        .with_context(|| format!("ONNX Runtime's profile `{}`", file.display()))?;
    let mut times: BTreeMap<(String, String), f64> = BTreeMap::new();
    for event in &events {
        let name = event["name"].as_str().and_then(|n| n.strip_suffix("_kernel_time"));
        if let (Some(name), Some("Node"), Some(us)) = (name, event["cat"].as_str(), event["dur"].as_f64()) {
            let op = event["args"]["op_name"].as_str().unwrap_or_default();
            *times.entry((name.to_owned(), op.to_owned())).or_default() += us / 1e3;
        }
    }
    let total: f64 = times.values().sum();
    let mut nodes: Vec<NodeTime> = times
        .into_iter()
        .map(|((node, op), milliseconds)| NodeTime { node, op, milliseconds, share: milliseconds / total })
        .collect();
    nodes.sort_by(|a, b| b.milliseconds.total_cmp(&a.milliseconds));
    nodes.truncate(SLOWEST);
    Ok((counts, nodes))
}
