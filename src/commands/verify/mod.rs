//! `d2o verify`: runs the same inputs on several runtimes or on two graphs and compares the outputs.

use std::path::Path;

use anyhow::Context as _;
use d2o_runtime::Session;

use self::bisect::Pair;
use self::compare::{Side, compare_sides};
use self::metric::metric_changes;
use self::precisions::precision_sides;
use self::profile::profile;
use super::{ExitStatus, ensure_new_result, give_result};
use crate::cli::{Global, Runtime, Verify};
use crate::printer::Printer;
use crate::verdict::Divergence;
use crate::{engine, outputs};

mod bisect;
mod compare;
mod difference;
mod inputs;
mod metric;
mod precisions;
mod profile;
mod render;

pub use compare::{against, check};

/// The compared runtimes. The first one runs the model and is the reference. The others run the model as well; with
/// `--against`, every runtime, including the first, runs the other graph.
struct Runtimes<'a> {
    first: Runtime,
    others: Vec<Runtime>,
    /// The graph that `others` run.
    graph: &'a Path,
}

impl<'a> Runtimes<'a> {
    fn of(args: &'a Verify) -> anyhow::Result<Self> {
        let given = match (args.runtimes.as_slice(), &args.against) {
            ([], None) => &[Runtime::OrtCpu, Runtime::Tract],
            ([], Some(_)) => &[Runtime::OrtCpu][..],
            (given, _) => given,
        };
        let others = if args.against.is_some() { given } else { &given[1..] };
        anyhow::ensure!(!others.is_empty(), "--runtimes: expected at least two runtimes");
        Ok(Self { first: given[0], others: others.to_vec(), graph: args.against.as_ref().unwrap_or(&args.model) })
    }

    fn sides(&self, args: &Verify, global: &Global, printer: Printer) -> anyhow::Result<Vec<Side>> {
        let open = |model: &Path, runtime: Runtime| match runtime {
            Runtime::Libtorch => open_libtorch(model, args.checkpoint.as_deref()),
            _ => {
                let session = engine::open_on(model, runtime, &args.accelerator, global)?;
                engine::warn_of_cpu_nodes(session.as_ref(), model, printer)?;
                Ok(session)
            }
        };
        let mut sides = vec![Side::new(open(&args.model, self.first)?)];
        for runtime in &self.others {
            let session = open(self.graph, *runtime)?;
            let name = match &args.against {
                Some(path) => format!("{} `{}`", session.runtime(), path.display()),
                None => session.runtime().to_owned(),
            };
            sides.push(Side::named(name, session));
        }
        Ok(sides)
    }

    /// The first diverging node of each side that has one.
    fn bisect(&self, args: &Verify, sides: &[Side], global: &Global) -> anyhow::Result<Vec<Divergence>> {
        let mut all = Vec::new();
        for (runtime, side) in self.others.iter().zip(&sides[1..]) {
            let pair = Pair {
                a: (&args.model, self.first),
                b: (self.graph, *runtime),
                tolerance: args.tolerance,
                accelerator: &args.accelerator,
                global,
            };
            all.extend(pair.bisect(&side.name, args.dump.as_deref())?);
        }
        Ok(all)
    }

    /// The last runtime that is a provider of ONNX Runtime; `ort-cpu` if there is none.
    fn profiled(&self) -> Runtime {
        let of_ort = |r: &Runtime| !matches!(r, Runtime::Tract | Runtime::Libtorch);
        let all = self.others.iter().rev().copied().chain([self.first]);
        all.into_iter().find(of_ort).unwrap_or(Runtime::OrtCpu)
    }
}

/// Compares runtimes, graphs or precisions. The exit status is [`ExitStatus::No`] if runtimes or graphs differ.
///
/// # Errors
/// If a runtime is missing or fails.
pub fn run(args: &Verify, global: &Global, printer: Printer) -> anyhow::Result<ExitStatus> {
    ensure_new_result(&args.result)?;
    if let Some(path) = &args.dump {
        outputs::ensure_new_file(path, args.result.output.overwrite)?;
    }
    anyhow::ensure!(args.accelerator.device.len() <= 1, "--device: `verify` supports one device");
    let counts = [args.samples as usize, args.batch as usize];
    let runtimes = Runtimes::of(args)?;
    let (mut sides, mut precisions) = if args.precisions {
        precision_sides(args, global)?
    } else {
        (runtimes.sides(args, global, printer)?, Vec::new())
    };
    let mut result = compare_sides(&args.model, &mut sides, counts, args.tolerance, args.extractor.is_some())
        .with_context(|| format!("cannot verify `{}`", args.model.display()))?;
    if let Some(extractor) = &args.extractor {
        result.metrics = metric_changes(&sides, extractor, args.reference.as_deref(), counts[1], global, printer)?;
    }
    precisions.iter_mut().for_each(|line| line.measured(&sides));
    result.precisions = precisions;
    if args.bisect {
        result.divergence = runtimes.bisect(args, &sides, global)?;
    }
    if args.profile {
        (result.nodes, result.profile) = profile(&args.model, runtimes.profiled(), counts, &args.accelerator, global)?;
    }
    give_result(&args.result, printer, &result, || render::text(&result))?;
    // The precision study measures differences and does not judge them.
    Ok(if result.agree || args.precisions { ExitStatus::Done } else { ExitStatus::No })
}

#[cfg(feature = "train")]
fn open_libtorch(model: &Path, checkpoint: Option<&Path>) -> anyhow::Result<Box<dyn Session>> {
    let checkpoint = checkpoint.context("libtorch runs a checkpoint, not a graph: pass it with --checkpoint")?;
    Ok(Box::new(crate::train::session::LibTorchSession::open(model, checkpoint)?))
}

#[cfg(not(feature = "train"))]
fn open_libtorch(_model: &Path, _checkpoint: Option<&Path>) -> anyhow::Result<Box<dyn Session>> {
    anyhow::bail!("this d2o was built without libtorch (feature `train`)")
}
