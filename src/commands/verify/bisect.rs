//! Search for the first diverging node.

use std::path::Path;

use d2o_onnx::graph::ElementType;
use d2o_onnx::metadata::Quantiser;
use d2o_onnx::read::ModelInfo;
use d2o_onnx::taps::{Node, Taps};
use d2o_refs::npz::NpzWriter;
use d2o_runtime::Tensor;

use super::difference::Difference;
use super::inputs::{by_name, inputs};
use crate::cli::{Accelerator, Global, Runtime};
use crate::engine;
use crate::verdict::Divergence;

/// Number of nodes that are compared in one run.
const GROUP: usize = 64;

/// The two sides of the search: graph and runtime.
pub(super) struct Pair<'a> {
    pub(super) a: (&'a Path, Runtime),
    pub(super) b: (&'a Path, Runtime),
    pub(super) tolerance: f64,
    pub(super) accelerator: &'a Accelerator,
    pub(super) global: &'a Global,
}

/// Values of edges on the two sides, in the requested order; `None` if a side cannot compute them.
type Both = Option<Vec<[Tensor; 2]>>;

impl Pair<'_> {
    /// The first node of the reference graph with an output that differs from that of `side` by more than the
    /// tolerance.
    pub(super) fn bisect(&self, side: &str, dump: Option<&Path>) -> anyhow::Result<Option<Divergence>> {
        const INPUTS: usize = 2;
        let libtorch = self.a.1 == Runtime::Libtorch || self.b.1 == Runtime::Libtorch;
        anyhow::ensure!(
            !libtorch,
            "--bisect does not support libtorch, which runs the checkpoint instead of the graph"
        );
        let (a, b) = (Taps::open(self.a.0)?, Taps::open(self.b.0)?);
        let info = ModelInfo::open(self.a.0)?;
        let inputs = inputs(&info, 0, INPUTS)?;
        let shared = |n: &&Node| {
            let numbers = matches!(n.element, ElementType::F32 | ElementType::U8);
            numbers && b.writer(&n.output).is_some_and(|m| m.element == n.element)
        };
        let nodes: Vec<&Node> = a.nodes().iter().filter(shared).collect();
        anyhow::ensure!(!nodes.is_empty(), "--bisect: the graphs have no edge in common");
        let mut agreeing = 0;
        // Groups that remain to be compared, the next one last. A group that a side cannot compute is split.
        let mut groups: Vec<&[&Node]> = nodes.chunks(GROUP).rev().collect();
        while let Some(group) = groups.pop() {
            let edges: Vec<&str> = group.iter().map(|n| n.output.as_str()).collect();
            let values = self.values([&a, &b], &edges, &inputs)?;
            let found = match values {
                None if group.len() > 1 => {
                    let (first, second) = group.split_at(group.len() / 2);
                    groups.extend([second, first]);
                    continue;
                }
                None => Some((0, None)),
                Some(values) => values.iter().enumerate().find_map(|(i, [e, f])| {
                    if e.dims() != f.dims() {
                        return Some((i, None));
                    }
                    let mut difference = Difference::default();
                    difference.add(edges[i], Quantiser::Edm, e, f).ok()?;
                    let verdict = difference.verdict("", edges[i], self.tolerance);
                    (!verdict.agrees).then_some((i, Some(verdict)))
                }),
            };
            let Some((at, verdict)) = found else {
                agreeing += group.len();
                continue;
            };
            let node = group[at];
            let dumped = dump.map(|path| self.dump([&a, &b], node, &inputs, path)).transpose()?;
            let scope = node.name.rsplit_once('/').map_or("", |(s, _)| s).replace('/', ".");
            return Ok(Some(Divergence {
                runtime: side.to_owned(),
                node: node.name.clone(),
                scope,
                op: node.op.clone(),
                weights: node.inputs.iter().filter(|i| a.is_weight(i)).cloned().collect(),
                max_abs: verdict.as_ref().map(|v| v.max_abs),
                max_rel: verdict.as_ref().map(|v| v.max_rel),
                agreeing: agreeing + at,
                dump: dumped.and_then(|()| dump.map(Path::to_owned)),
            }));
        }
        Ok(None)
    }

    fn values(&self, taps: [&Taps; 2], edges: &[&str], inputs: &[(String, Tensor)]) -> anyhow::Result<Both> {
        let folder = d2o_files::Scratch::new()?;
        let mut sides = Vec::new();
        for (taps, (_, runtime), name) in [(taps[0], self.a, "a.onnx"), (taps[1], self.b, "b.onnx")] {
            let path = folder.path().join(name);
            taps.write(edges, &path)?;
            let outputs = engine::open_on(&path, runtime, self.accelerator, self.global)
                .and_then(|mut session| Ok(session.run(&by_name(inputs))?));
            match outputs {
                Ok(outputs) => sides.push(outputs),
                Err(_) => return Ok(None),
            }
        }
        let (Some(b), Some(a)) = (sides.pop(), sides.pop()) else { return Ok(None) };
        Ok(Some(a.into_iter().zip(b).map(|(e, f)| [e, f]).collect()))
    }

    /// Writes the f32 inputs of `node` in the reference, without weights, and its outputs on both sides to the npz at
    /// `path`.
    fn dump(&self, taps: [&Taps; 2], node: &Node, inputs: &[(String, Tensor)], path: &Path) -> anyhow::Result<()> {
        let mut npz = NpzWriter::create(path)?;
        let mut write = |name: &str, tensor: &Tensor| -> anyhow::Result<()> {
            if let Some(values) = tensor.as_f32() {
                npz.f32(name, values)?;
            }
            Ok(())
        };
        if let Some(values) = self.values(taps, &[node.output.as_str()], inputs)? {
            write("expected", &values[0][0])?;
            write("found", &values[0][1])?;
        }
        for (i, edge) in node.inputs.iter().enumerate().filter(|(_, e)| !taps[0].is_weight(e)) {
            if let Some((_, tensor)) = inputs.iter().find(|(n, _)| n == edge) {
                write(&format!("input{i}"), tensor)?;
            } else if let Some(values) = self.values(taps, &[edge.as_str()], inputs)? {
                write(&format!("input{i}"), &values[0][0])?;
            }
        }
        Ok(npz.finish()?)
    }
}
