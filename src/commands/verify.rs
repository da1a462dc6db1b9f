//! `d2o verify`: the same inputs on several runtimes.

use std::path::Path;

use anyhow::Context as _;
use d2o_converters::config::Quantiser;
use d2o_converters::weights::SplitMix64;
use d2o_onnx::graph::{Dim, ElementType};
use d2o_onnx::read::ModelInfo;
use d2o_onnx::session::Tensor;
use ndarray::{ArrayD, IxDyn};
use serde::Serialize;

use super::ExitStatus;
use crate::cli::{Global, Runtime, Verify};
use crate::generate::rng::TorchCpu;
use crate::printer::{Printer, table};
use crate::runtime;

/// How far one output of one runtime lies from the reference runtime's.
#[derive(Debug, Clone, Serialize)]
pub struct OutputDifference {
    /// The runtime.
    pub runtime: String,
    /// The output.
    pub name: String,
    /// Largest absolute difference.
    pub max_abs: f64,
    /// That over the largest absolute value of the reference.
    pub max_rel: f64,
    /// Signal-to-noise ratio, dB; absent if nothing differs.
    pub snr_db: Option<f64>,
    /// Share of 8-bit pixels that differ, if the output is an image.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pixels_changed: Option<f64>,
    /// Values that are not finite, in either.
    pub not_finite: usize,
    /// Whether it is within the tolerance.
    pub agrees: bool,
}

/// The verdict on a model.
#[derive(Debug, Clone, Serialize)]
pub struct Comparison {
    /// The model file.
    pub model: String,
    /// The runtime others are compared with.
    pub reference: String,
    /// Number of inputs.
    pub samples: usize,
    /// Largest difference allowed, relative to the largest reference value.
    pub tolerance: f64,
    /// Every output of every other runtime.
    pub outputs: Vec<OutputDifference>,
    /// Whether all agree.
    pub agree: bool,
}

/// Compares runtimes.
///
/// # Errors
/// Runtimes that are missing or fail.
pub fn run(args: &Verify, global: &Global, printer: Printer) -> anyhow::Result<ExitStatus> {
    anyhow::ensure!(args.runtimes.len() >= 2, "--runtimes: at least two are needed to compare");
    let (samples, batch) = (args.samples as usize, args.batch as usize);
    let result = compare(&args.model, &args.runtimes, samples, batch, args.tolerance, global)?;
    let to_stdout = args.json.as_deref() == Some(Path::new("-"));
    if let Some(path) = &args.json {
        printer.json(path, &result)?;
    }
    if !to_stdout {
        let rows: Vec<Vec<String>> = result.outputs.iter().map(row).collect();
        let header = ["output", "runtime", "max abs", "max rel", "SNR dB", "u8 changed", "verdict"];
        printer.data(&table(&header, &rows))?;
        let verdict = if result.agree { "agree" } else { "DIFFER" };
        let tolerance = result.tolerance;
        printer.data(&format!(
            "{samples} inputs, reference {}, tolerance {tolerance:.1e}: runtimes {verdict}",
            result.reference
        ))?;
    }
    Ok(if result.agree { ExitStatus::Done } else { ExitStatus::No })
}

fn row(d: &OutputDifference) -> Vec<String> {
    vec![
        d.name.clone(),
        d.runtime.clone(),
        format!("{:.2e}", d.max_abs),
        format!("{:.2e}", d.max_rel),
        d.snr_db.map_or_else(|| "∞".to_owned(), |v| format!("{v:.1}")),
        d.pixels_changed.map_or_else(|| "–".to_owned(), |v| format!("{:.4} %", 100.0 * v)),
        if d.agrees { "agrees" } else { "DIFFERS" }.to_owned(),
    ]
}

/// Runs `model` on each of `runtimes` with the same `samples` inputs and compares with the first.
///
/// # Errors
/// Runtimes that are missing or fail.
pub fn compare(
    model: &Path,
    runtimes: &[Runtime],
    samples: usize,
    batch: usize,
    tolerance: f64,
    global: &Global,
) -> anyhow::Result<Comparison> {
    let mut sessions = Vec::new();
    for runtime in runtimes {
        sessions.push(runtime::open_on(model, *runtime, global)?);
    }
    let Some((first, others)) = sessions.split_first_mut() else { anyhow::bail!("no runtime to verify on") };
    let info = first.model().clone();
    let quantiser = quantiser_of(&info);
    let mut sums: Vec<Vec<Sum>> = others.iter().map(|_| vec![Sum::default(); info.outputs.len()]).collect();
    let mut at = 0;
    while at < samples {
        let count = batch.min(samples - at);
        let inputs = inputs(&info, at, count)?;
        let given: Vec<(&str, Tensor)> = inputs.iter().map(|(n, t)| (n.as_str(), t.clone())).collect();
        let expected = first.run(&given)?;
        for (session, sums) in others.iter_mut().zip(&mut sums) {
            let found = session.run(&given)?;
            for ((sum, (name, e)), (_, f)) in sums.iter_mut().zip(&expected).zip(&found) {
                sum.add(name, quantiser, e, f)?;
            }
        }
        at += count;
    }
    let mut outputs = Vec::new();
    for (session, sums) in others.iter().zip(&sums) {
        for (sum, output) in sums.iter().zip(&info.outputs) {
            outputs.push(sum.verdict(session.runtime(), &output.name, tolerance));
        }
    }
    let agree = outputs.iter().all(|o| o.agrees);
    let (model, reference) = (model.display().to_string(), first.runtime().to_owned());
    Ok(Comparison { model, reference, samples, tolerance, outputs, agree })
}

/// Inputs `start..start + count`, each drawn from its own seed: unit normal latents, noise levels spread over EDM's range,
/// one-hot labels, pixels.
fn inputs(info: &ModelInfo, start: usize, count: usize) -> anyhow::Result<Vec<(String, Tensor)>> {
    let sigma = |i: usize| {
        #[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation, reason = "a spread of test values")]
        let t = (i % 8) as f32 / 7.0;
        (0.002_f32.ln() * (1.0 - t) + 80.0_f32.ln() * t).exp()
    };
    let mut all = Vec::new();
    for input in &info.inputs {
        let one: usize = input.dims.iter().skip(1).map(|d| if let Dim::Known(n) = d { *n } else { 1 }).product();
        let mut dims: Vec<usize> = input.dims.iter().map(|d| if let Dim::Known(n) = d { *n } else { count }).collect();
        if let Some(first) = dims.first_mut() {
            *first = count;
        }
        let shape = IxDyn(&dims);
        let tensor = match (input.element, input.name.as_str()) {
            (ElementType::F32, "sigma") => {
                Tensor::F32(ArrayD::from_shape_vec(shape, (start..start + count).map(sigma).collect())?)
            }
            (ElementType::F32, "class_labels") => {
                Tensor::F32(ArrayD::from_shape_fn(shape, |i| if i[1] == (start + i[0]) % one { 1.0 } else { 0.0 }))
            }
            (ElementType::F32, "images_f32") => {
                let mut values = Vec::with_capacity(one * count);
                for i in start..start + count {
                    let mut rng = SplitMix64::for_path(i as u64, &input.name);
                    #[allow(clippy::cast_possible_truncation, reason = "pixel values")]
                    values.extend((0..one).map(|_| (255.0 * rng.uniform()) as f32));
                }
                Tensor::F32(ArrayD::from_shape_vec(shape, values)?)
            }
            (ElementType::F32, name) => {
                let mut values = Vec::with_capacity(one * count);
                for i in start..start + count {
                    let scale = if name == "x" { sigma(i).max(1.0) } else { 1.0 };
                    values.extend(TorchCpu::new(i as u64).randn(one).iter().map(|v| v * scale));
                }
                Tensor::F32(ArrayD::from_shape_vec(shape, values)?)
            }
            (ElementType::U8, _) => {
                let mut values = Vec::with_capacity(one * count);
                for i in start..start + count {
                    let mut rng = SplitMix64::for_path(i as u64, &input.name);
                    values.extend((0..one).map(|_| rng.next_u64().to_le_bytes()[7]));
                }
                Tensor::U8(ArrayD::from_shape_vec(shape, values)?)
            }
            (other, name) => anyhow::bail!("input `{name}`: no test values for {other}"),
        };
        all.push((input.name.clone(), tensor));
    }
    Ok(all)
}

#[derive(Debug, Clone, Default)]
struct Sum {
    max_abs: f64,
    peak: f64,
    signal: f64,
    noise: f64,
    pixels: Option<(u64, u64)>,
    not_finite: usize,
}

impl Sum {
    fn add(&mut self, name: &str, quantiser: Quantiser, expected: &Tensor, found: &Tensor) -> anyhow::Result<()> {
        anyhow::ensure!(
            expected.dims() == found.dims(),
            "output `{name}`: {:?} on one runtime, {:?} on the other",
            expected.dims(),
            found.dims()
        );
        match (expected, found) {
            (Tensor::F32(e), Tensor::F32(f)) => {
                let image = name == "images" || name == "denoised";
                for (e, f) in e.iter().zip(f) {
                    self.value(f64::from(*e), f64::from(*f));
                    if image {
                        let (changed, total) = self.pixels.get_or_insert((0, 0));
                        *changed += u64::from(quantiser.apply((*e).into()) != quantiser.apply((*f).into()));
                        *total += 1;
                    }
                }
            }
            (Tensor::U8(e), Tensor::U8(f)) => {
                for (e, f) in e.iter().zip(f) {
                    self.value(f64::from(*e), f64::from(*f));
                    let (changed, total) = self.pixels.get_or_insert((0, 0));
                    *changed += u64::from(e != f);
                    *total += 1;
                }
            }
            _ => anyhow::bail!(
                "output `{name}`: {} on one runtime, {} on the other",
                expected.element(),
                found.element()
            ),
        }
        Ok(())
    }

    fn value(&mut self, e: f64, f: f64) {
        if !e.is_finite() || !f.is_finite() {
            self.not_finite += 1;
            return;
        }
        self.max_abs = self.max_abs.max((e - f).abs());
        self.peak = self.peak.max(e.abs());
        self.signal += e * e;
        self.noise += (e - f) * (e - f);
    }

    fn verdict(&self, runtime: &str, name: &str, tolerance: f64) -> OutputDifference {
        #[allow(clippy::cast_precision_loss, reason = "pixel counts")]
        let pixels_changed = self.pixels.map(|(changed, total)| changed as f64 / total as f64);
        let max_rel = if self.max_abs == 0.0 { 0.0 } else { self.max_abs / self.peak };
        // A pixel on the edge between two levels may fall to either side: one step on a few is agreement.
        let one_step = name == "images_u8" && self.max_abs <= 1.0 && pixels_changed.is_some_and(|p| p <= 1e-3);
        OutputDifference {
            runtime: runtime.to_owned(),
            name: name.to_owned(),
            max_abs: self.max_abs,
            max_rel,
            snr_db: (self.noise > 0.0).then(|| 10.0 * (self.signal / self.noise).log10()),
            pixels_changed,
            not_finite: self.not_finite,
            agrees: self.not_finite == 0 && (max_rel <= tolerance || one_step),
        }
    }
}

/// The quantiser that belongs to a model, from its metadata; EDM's if it names none.
#[must_use]
pub fn quantiser_of(info: &ModelInfo) -> Quantiser {
    info.metadata.get("quantiser").and_then(|name| Quantiser::named(name)).unwrap_or(Quantiser::Edm)
}

/// Says what a model is for, from its metadata.
///
/// # Errors
/// If it is none of d2o's graphs.
pub fn kind_of(info: &ModelInfo) -> anyhow::Result<&str> {
    info.metadata.get("kind").map(String::as_str).context("the graph carries no `kind`: it was not exported by d2o")
}
