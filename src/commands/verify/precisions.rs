//! The precision study: fp32, TF32, fp16, bf16.

use super::compare::Side;
use crate::cli::{Accelerator, Global, Runtime, Verify};
use crate::engine;
use crate::verdict::Precision;

impl Precision {
    /// Fills in runtime and speed from the side of this precision, if there is one.
    pub(super) fn measured(&mut self, sides: &[Side]) {
        let side = sides.iter().find(|s| s.name == self.precision);
        self.runtime = side.map(|s| s.session.runtime().to_owned());
        self.speed = side.map(|s| s.timed).filter(|(n, _)| *n > 0).map(|(n, seconds)| n as f64 / seconds);
    }
}

/// Opens the precisions that this machine supports, fp32 first. Also returns a row for each of the four precisions.
pub(super) fn precision_sides(args: &Verify, global: &Global) -> anyhow::Result<(Vec<Side>, Vec<Precision>)> {
    let line = |precision: &str, skipped: Option<&str>| Precision {
        precision: precision.to_owned(),
        skipped: skipped.map(str::to_owned),
        runtime: None,
        speed: None,
    };
    let accelerator = Accelerator { tf32: false, ..args.accelerator.clone() };
    let tf32 = engine::open_tf32(&args.model, &accelerator, global)?;
    let runtime = if tf32.is_some() { Runtime::OrtCuda } else { Runtime::OrtCpu };
    let mut sides = vec![Side::named("fp32", engine::open_on(&args.model, runtime, &accelerator, global)?)];
    let mut lines = vec![line("fp32", None), line("tf32", tf32.is_none().then_some("no CUDA device"))];
    sides.extend(tf32.map(|s| Side::named("tf32", s)));
    lines.push(line("fp16", args.fp16.is_none().then_some("no graph in fp16 (--fp16)")));
    if let Some(path) = &args.fp16 {
        sides.push(Side::named("fp16", engine::open_on(path, runtime, &accelerator, global)?));
    }
    let why = if runtime == Runtime::OrtCuda { "no graph in bf16" } else { "no CUDA device" };
    lines.push(line("bf16", Some(why)));
    Ok((sides, lines))
}
