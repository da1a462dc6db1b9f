//! Comparison of runtimes on the same inputs.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Instant;

use anyhow::Context as _;
use d2o_converters::Network;
use d2o_onnx::metadata::Quantiser;
use d2o_onnx::read::ModelInfo;
use d2o_runtime::{Session, Tensor, TensorView};
use ndarray::{Array4, Ix4};

use super::difference::Difference;
use super::inputs::{by_name, inputs};
use crate::cli::{Accelerator, Global, Runtime};
use crate::engine;
use crate::sampling::plan::quantiser_of;
use crate::verdict::Comparison;

/// One side of the comparison.
pub(super) struct Side {
    pub(super) name: String,
    pub(super) session: Box<dyn Session>,
    /// Number of inputs and seconds of the runs after the first.
    pub(super) timed: (usize, f64),
    pub(super) pixels: Vec<Array4<u8>>,
}

impl Side {
    /// A side named after its runtime.
    pub(super) fn new(session: Box<dyn Session>) -> Self {
        Self::named(session.runtime().to_owned(), session)
    }

    pub(super) fn named(name: impl Into<String>, session: Box<dyn Session>) -> Self {
        Self { name: name.into(), session, timed: (0, 0.0), pixels: Vec::new() }
    }

    fn run(&mut self, given: &[(&str, TensorView<'_>)], count: usize, first: bool) -> anyhow::Result<Vec<Tensor>> {
        let clock = Instant::now();
        let outputs = self.session.run(given).with_context(|| format!("cannot run on {}", self.name))?;
        if !first {
            self.timed.0 += count;
            self.timed.1 += clock.elapsed().as_secs_f64();
        }
        Ok(outputs)
    }

    /// Keeps the images among `outputs`, quantised to u8.
    fn keep_pixels(&mut self, outputs: &[Tensor], quantiser: Quantiser) -> anyhow::Result<()> {
        let image = self.session.model().output_names().zip(outputs).find(|(n, _)| is_image(n));
        let image = image.and_then(|(_, t)| t.as_f32()).context("--extractor: the graph has no image output")?;
        let bytes = image.into_dimensionality::<Ix4>()?.mapv(|v| quantiser.apply(v.into())).permuted_axes([0, 2, 3, 1]);
        self.pixels.push(bytes.as_standard_layout().into_owned());
        Ok(())
    }
}

/// Outputs of a finished run, returned as by a session.
struct Recorded {
    runtime: String,
    info: ModelInfo,
    outputs: Vec<Tensor>,
}

impl Recorded {
    fn of(mut session: Box<dyn Session>, samples: usize) -> anyhow::Result<Self> {
        let info = session.model().clone();
        let inputs = inputs(&info, 0, samples)?;
        let outputs = session.run(&by_name(&inputs)).with_context(|| format!("cannot run on {}", session.runtime()))?;
        Ok(Self { runtime: session.runtime().to_owned(), info, outputs })
    }
}

impl Session for Recorded {
    fn runtime(&self) -> &str {
        &self.runtime
    }

    fn model(&self) -> &ModelInfo {
        &self.info
    }

    fn run(&mut self, _inputs: &[(&str, TensorView<'_>)]) -> d2o_runtime::Result<Vec<Tensor>> {
        Ok(self.outputs.clone())
    }
}

/// Compares the graph at `model` on ONNX Runtime with tract and, in a build with libtorch, with `network`, from which
/// it was exported. The runtimes run one after another, so that only one of them holds the weights.
///
/// # Errors
/// If a runtime is missing or fails.
pub fn check(
    model: &Path,
    network: &Network,
    samples: usize,
    tolerance: f64,
    global: &Global,
) -> anyhow::Result<Comparison> {
    let on = |runtime| engine::open_on(model, runtime, &Accelerator::default(), global);
    let reference = Recorded::of(on(Runtime::OrtCpu)?, samples)?;
    let mut sides = [Side::new(Box::new(reference)), Side::new(on(Runtime::Tract)?)];
    #[cfg_attr(not(feature = "train"), expect(unused_mut, reason = "there is no other side"))]
    let mut comparison = compare_sides(model, &mut sides, [samples, samples], tolerance, false)?;
    #[cfg(feature = "train")]
    {
        let [reference, tract] = sides;
        drop(tract);
        let libtorch = crate::train::session::LibTorchSession::of(model, network)?;
        let mut sides = [reference, Side::new(Box::new(libtorch))];
        let other = compare_sides(model, &mut sides, [samples, samples], tolerance, false)?;
        comparison.outputs.extend(other.outputs);
        comparison.agree &= other.agree;
    }
    #[cfg(not(feature = "train"))]
    let _ = network;
    Ok(comparison)
}

/// Compares the graphs at `reference` and `model`, which should compute the same, on ONNX Runtime, or on tract if ONNX
/// Runtime cannot open them.
///
/// # Errors
/// If a graph cannot be run.
pub fn against(reference: &Path, model: &Path, samples: usize, global: &Global) -> anyhow::Result<Comparison> {
    let on = |path: &Path, runtime| engine::open_on(path, runtime, &Accelerator::default(), global);
    let open = |path: &Path| on(path, Runtime::OrtCpu).or_else(|_| on(path, Runtime::Tract));
    let mut sides = vec![Side::named("reference", open(reference)?), Side::named("model", open(model)?)];
    compare_sides(model, &mut sides, [samples, samples], 1.0, false)
}

/// Compares every side with the first on `samples` inputs, `batch` at a time. With `keep`, each side keeps its images
/// as u8.
pub(super) fn compare_sides(
    model: &Path,
    sides: &mut [Side],
    [samples, batch]: [usize; 2],
    tolerance: f64,
    keep: bool,
) -> anyhow::Result<Comparison> {
    let Some((first, others)) = sides.split_first_mut() else { anyhow::bail!("no runtime to verify on") };
    let info = first.session.model().clone();
    let quantiser = quantiser_of(&info)?;
    let mut differences: Vec<BTreeMap<String, Difference>> = others.iter().map(|_| BTreeMap::new()).collect();
    let mut at = 0;
    while at < samples {
        let count = batch.min(samples - at);
        let inputs = inputs(&info, at, count)?;
        let given = by_name(&inputs);
        let expected = first.run(&given, count, at == 0)?;
        if keep {
            first.keep_pixels(&expected, quantiser)?;
        }
        for (side, of_side) in others.iter_mut().zip(&mut differences) {
            let found = side.run(&given, count, at == 0)?;
            for (name, e) in info.output_names().zip(&expected) {
                if let Some((_, f)) = side.session.model().output_names().zip(&found).find(|(n, _)| *n == name) {
                    of_side.entry(name.to_owned()).or_default().add(name, quantiser, e, f)?;
                }
            }
            if keep {
                side.keep_pixels(&found, quantiser)?;
            }
        }
        at += count;
    }
    let mut outputs = Vec::new();
    for (side, of_side) in others.iter().zip(&differences) {
        anyhow::ensure!(!of_side.is_empty(), "{}: no output name in common with the reference", side.name);
        for output in &info.outputs {
            outputs.extend(of_side.get(&output.name).map(|d| d.verdict(&side.name, &output.name, tolerance)));
        }
    }
    let agree = outputs.iter().all(|o| o.agrees);
    let seconds = sides.iter().map(|s| (s.name.clone(), s.timed.1)).collect();
    let (model, reference) = (model.display().to_string(), sides[0].name.clone());
    Ok(Comparison { model, reference, samples, tolerance, outputs, seconds, agree, ..Comparison::default() })
}

/// Whether the output `output` holds images in f32.
pub(super) fn is_image(output: &str) -> bool {
    output == "images" || output == "denoised"
}
