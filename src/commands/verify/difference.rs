//! Differences between two tensors.

use d2o_onnx::metadata::Quantiser;
use d2o_runtime::Tensor;

use super::compare::is_image;
use crate::verdict::OutputDifference;

/// Number of bins of the histogram of differences in units in the last place.
const ULP_BINS: usize = 24;

/// Sums and maxima over all values of one output, on one side and on the reference.
#[derive(Debug, Clone, Default)]
pub(super) struct Difference {
    max_abs: f64,
    peak: f64,
    signal: f64,
    noise: f64,
    pixels: Option<(u64, u64)>,
    ulps: Vec<u64>,
    not_finite: usize,
}

impl Difference {
    pub(super) fn add(
        &mut self,
        name: &str,
        quantiser: Quantiser,
        expected: &Tensor,
        found: &Tensor,
    ) -> anyhow::Result<()> {
        anyhow::ensure!(
            expected.dims() == found.dims(),
            "output `{name}`: {:?} on one runtime, {:?} on the other",
            expected.dims(),
            found.dims()
        );
        match (expected, found) {
            (Tensor::F32(e), Tensor::F32(f)) => {
                let image = is_image(name);
                for (e, f) in e.iter().zip(f) {
                    self.value(f64::from(*e), f64::from(*f));
                    self.ulp(*e, *f);
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

    fn ulp(&mut self, e: f32, f: f32) {
        // Map floats to integers in the same order, adjacent floats to adjacent integers.
        let place = |v: f32| {
            let bits = v.to_bits().cast_signed();
            i64::from(if bits < 0 { i32::MIN.wrapping_sub(bits) } else { bits })
        };
        if e.is_finite() && f.is_finite() {
            let apart = (place(e) - place(f)).unsigned_abs();
            let bin = (u64::BITS - apart.leading_zeros()) as usize;
            self.ulps.resize(ULP_BINS, 0);
            self.ulps[bin.min(ULP_BINS - 1)] += 1;
        }
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

    pub(super) fn verdict(&self, runtime: &str, name: &str, tolerance: f64) -> OutputDifference {
        #[allow(clippy::cast_precision_loss, reason = "pixel counts")]
        let pixels_changed = self.pixels.map(|(changed, total)| changed as f64 / total as f64);
        let max_rel = if self.max_abs == 0.0 { 0.0 } else { self.max_abs / self.peak };
        // Small differences can round to adjacent 8-bit levels: one level in at most 0.1 % of the values is accepted.
        let one_step = name == "images_u8" && self.max_abs <= 1.0 && pixels_changed.is_some_and(|p| p <= 1e-3);
        OutputDifference {
            runtime: runtime.to_owned(),
            name: name.to_owned(),
            max_abs: self.max_abs,
            max_rel,
            snr_db: (self.noise > 0.0).then(|| 10.0 * (self.signal / self.noise).log10()),
            ulps: self.ulps.clone(),
            pixels_changed,
            not_finite: self.not_finite,
            agrees: self.not_finite == 0 && (max_rel <= tolerance || one_step),
        }
    }
}
