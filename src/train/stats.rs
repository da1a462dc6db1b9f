//! Statistics of training and their log, `stats.jsonl`, in the format of EDM's `training_stats`.
//!
//! A line covers the values reported since the previous line:
//! `{"NAME": {"num": count, "mean": mean, "std": standard deviation}, …, "timestamp": seconds since 1970}`.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use d2o_files::AtomicFile;
use fs_err as fs;
use serde_json::{Map, Value, json};
use tch::{Device, Kind, TchError, Tensor};

use super::group::Group;

/// Statistic of the images seen, in thousands.
pub const KIMG: &str = "Progress/kimg";

/// Entry of a single value in a line of `stats.jsonl`.
pub(super) fn entry(value: f64) -> Value {
    json!({"num": 1, "mean": value, "std": 0.0})
}

/// Count, sum and sum of squares.
type Moments = [f64; 3];

/// Values reported since the last reset, by all processes of a run. Tensors are summed on their device. Only reading a
/// value waits for the device.
#[derive(Debug, Default)]
pub struct Collector {
    /// Reports of this process that [`Collector::reduce`] has not added yet, with the stage if it is a loss.
    own: Vec<(String, Option<&'static str>, Tensor)>,
    moments: BTreeMap<String, Tensor>,
    /// Number of consecutive losses that are not finite, by stage.
    non_finite: BTreeMap<&'static str, Tensor>,
}

impl Collector {
    /// Records every element of `values`. [`Collector::reduce`] adds them.
    ///
    /// # Errors
    /// If libtorch fails.
    pub fn report(&mut self, name: &str, values: &Tensor) -> Result<(), TchError> {
        self.own.push((name.to_owned(), None, moments(values)?));
        Ok(())
    }

    /// Adds a value that is the same in all processes, once.
    ///
    /// # Errors
    /// If libtorch fails.
    pub fn report_shared(&mut self, name: &str, value: f64) -> Result<(), TchError> {
        self.add(name, &moments(&Tensor::from(value))?)
    }

    fn add(&mut self, name: &str, moments: &Tensor) -> Result<(), TchError> {
        match self.moments.get_mut(name) {
            // Values of `report_shared` are on the CPU.
            Some(sums) => _ = sums.f_add_(&moments.f_to_device(sums.device())?)?,
            None => _ = self.moments.insert(name.to_owned(), moments.copy()),
        }
        Ok(())
    }

    /// Adds what the processes of `group` reported since the last call, in rank order. All processes must have reported
    /// the same names in the same order.
    ///
    /// # Errors
    /// If libtorch or the communication between processes fails.
    pub fn reduce(&mut self, group: &Group) -> anyhow::Result<()> {
        let own = std::mem::take(&mut self.own);
        if own.is_empty() {
            return Ok(());
        }
        let _guard = tch::no_grad_guard();
        let rows: Vec<&Tensor> = own.iter().map(|(.., moments)| moments).collect();
        let all = group.gather(&Tensor::f_stack(&rows, 0)?)?;
        for process in (0_i64..).take(group.size()) {
            for (row, (name, stage, _)) in (0_i64..).zip(&own) {
                let moments = all.f_select(0, process)?.f_select(0, row)?;
                self.add(name, &moments)?;
                if let Some(stage) = stage {
                    self.count_non_finite(stage, &moments.f_select(0, 1)?)?;
                }
            }
        }
        Ok(())
    }

    /// Records `loss`, the sum over `images` images of a stage, as its mean per image `Loss/STAGE/loss`.
    /// [`Collector::non_finite`] counts it if it is not finite.
    ///
    /// # Errors
    /// If libtorch fails.
    pub fn report_loss(&mut self, stage: &'static str, loss: &Tensor, images: f64) -> Result<(), TchError> {
        let _guard = tch::no_grad_guard();
        let mean = moments(&loss.f_detach()?.f_div_scalar(images)?)?;
        self.own.push((format!("Loss/{stage}/loss"), Some(stage), mean));
        Ok(())
    }

    fn count_non_finite(&mut self, stage: &'static str, loss: &Tensor) -> Result<(), TchError> {
        let non_finite = loss.f_isfinite()?.f_logical_not()?.f_to_kind(Kind::Int64)?;
        // One more if this loss is not finite, otherwise 0.
        let count = match self.non_finite.get(stage) {
            Some(before) => before.f_add_scalar(1)?.f_mul(&non_finite)?,
            None => non_finite,
        };
        self.non_finite.insert(stage, count);
        Ok(())
    }

    /// A stage whose last `most` or more losses were not finite. Waits for the device.
    #[must_use]
    pub fn non_finite(&self, most: i64) -> Option<&'static str> {
        self.non_finite.iter().find(|(_, count)| count.int64_value(&[]) >= most).map(|(stage, _)| *stage)
    }

    /// Mean of the values reported as `name`, if there are any. Waits for the device.
    #[must_use]
    pub fn mean(&self, name: &str) -> Option<f64> {
        let [count, sum, _] = read(self.moments.get(name)?);
        (count > 0.0).then(|| sum / count)
    }

    /// Count, mean and standard deviation of every name. Waits for the device.
    #[must_use]
    pub fn summary(&self) -> Map<String, Value> {
        let entry = |(name, moments): (&String, &Tensor)| {
            let [count, sum, squares] = read(moments);
            let mean = sum / count;
            let std =
                if count == 1.0 && mean.is_finite() { 0.0 } else { (squares / count - mean * mean).max(0.0).sqrt() };
            // JSON has no NaN: null.
            (name.clone(), json!({"num": count, "mean": mean, "std": if mean.is_finite() { std } else { f64::NAN }}))
        };
        self.moments.iter().map(entry).collect()
    }

    /// Clears the reported values. The counts of losses that are not finite stay.
    pub fn reset(&mut self) {
        self.moments.clear();
    }

    /// The sums so far, for saving: the bits of their f64 values.
    #[must_use]
    pub fn state(&self) -> Value {
        json!(self.moments.iter().map(|(name, m)| (name, read(m).map(f64::to_bits))).collect::<BTreeMap<_, _>>())
    }

    /// Restores the sums that [`Collector::state`] returned, on `device`.
    ///
    /// # Errors
    /// If `state` has another format, or libtorch fails.
    pub fn restore(&mut self, state: &str, device: Device) -> anyhow::Result<()> {
        let moments: BTreeMap<String, [u64; 3]> = serde_json::from_str(state)?;
        for (name, bits) in moments {
            self.moments.insert(name, Tensor::f_from_slice(&bits.map(f64::from_bits))?.f_to_device(device)?);
        }
        Ok(())
    }
}

/// Moments of `values`, `[3]` in f64.
fn moments(values: &Tensor) -> Result<Tensor, TchError> {
    let _guard = tch::no_grad_guard();
    let values = values.f_detach()?.f_to_kind(Kind::Double)?;
    #[allow(clippy::cast_precision_loss, reason = "a number of logits or images")]
    let count = values.f_sum(Kind::Double)?.f_full_like(values.numel() as f64)?;
    Tensor::f_stack(&[count, values.f_sum(Kind::Double)?, values.f_square()?.f_sum(Kind::Double)?], 0)
}

fn read(moments: &Tensor) -> Moments {
    [0, 1, 2].map(|i| moments.double_value(&[i]))
}

/// A log of a run with one JSON object per line.
#[derive(Debug)]
pub struct Log {
    path: PathBuf,
}

impl Log {
    /// Opens the log at `path` of a run that continues after `images` images. Removes lines of more images, incomplete
    /// lines, and lines without [`KIMG`].
    ///
    /// # Errors
    /// If reading or writing fails.
    pub fn open(path: &Path, images: u64) -> anyhow::Result<Self> {
        if path.exists() {
            let text = fs::read_to_string(path)?;
            let kept: String = text.split_inclusive('\n').filter(|line| is_within(line, images)).collect();
            if kept.len() < text.len() {
                let mut file = AtomicFile::create(path)?;
                file.write_all(kept.as_bytes())?;
                file.commit()?;
            }
        }
        Ok(Self { path: path.to_owned() })
    }

    /// All lines. A missing file has none.
    ///
    /// # Errors
    /// If reading fails, or a line is not JSON.
    pub fn lines(&self) -> anyhow::Result<Vec<Value>> {
        let text = if self.path.exists() { fs::read_to_string(&self.path)? } else { String::new() };
        Ok(text.lines().map(serde_json::from_str).collect::<Result<_, _>>()?)
    }

    /// Appends `line`. The operating system has it when this returns.
    ///
    /// # Errors
    /// If writing fails.
    pub fn append(&self, line: &Value) -> anyhow::Result<()> {
        let mut text = serde_json::to_string(line)?;
        text.push('\n');
        let mut file = fs::OpenOptions::new().create(true).append(true).open(&self.path)?;
        Ok(file.write_all(text.as_bytes())?)
    }
}

/// Seconds since 1970.
#[must_use]
pub fn unix_time() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |d| d.as_secs_f64())
}

/// Whether `line` is complete and records at most `images` images.
fn is_within(line: &str, images: u64) -> bool {
    let kimg = serde_json::from_str::<Value>(line).ok().and_then(|l| l.get(KIMG)?.get("mean")?.as_f64());
    #[allow(clippy::cast_precision_loss, reason = "image counts below 2^53")]
    let within = |kimg: f64| kimg * 1e3 <= images as f64 + 0.5;
    line.ends_with('\n') && kimg.is_some_and(within)
}

/// Resident memory of this process, bytes. `None` if the system does not report it.
#[must_use]
pub fn resident() -> Option<u64> {
    let pages = fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = pages.split_whitespace().nth(1)?.parse().ok()?;
    Some(pages * rustix::param::page_size() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn summaries_have_the_originals_fields() {
        let mut collector = Collector::default();
        for values in [[1.0_f32, 2.0], [3.0, 6.0]] {
            collector.report("Loss/logits/real", &Tensor::from_slice(&values)).unwrap();
        }
        assert!(collector.summary().is_empty());
        collector.reduce(&Group::alone()).unwrap();
        let summary = collector.summary();
        assert_eq!(summary["Loss/logits/real"]["num"], 4.0);
        assert_eq!(summary["Loss/logits/real"]["mean"], 3.0);
        assert!((summary["Loss/logits/real"]["std"].as_f64().unwrap() - 3.5_f64.sqrt()).abs() < 1e-12);
        let mut other = Collector::default();
        other.restore(&collector.state().to_string(), Device::Cpu).unwrap();
        assert_eq!(other.summary(), summary);
    }

    #[test]
    fn broken_losses_are_counted_in_a_row() {
        let mut collector = Collector::default();
        let mut report = |loss: f32| {
            collector.report_loss("G", &Tensor::from(loss), 1.0).unwrap();
            collector.reduce(&Group::alone()).unwrap();
            collector.non_finite(2)
        };
        let found = [f32::NAN, 1.0, f32::INFINITY, f32::NAN, 1.0].map(&mut report);
        assert_eq!(found, [None, None, None, Some("G"), None]);
        assert_eq!(collector.summary()["Loss/G/loss"]["mean"], Value::Null);
    }

    #[test]
    fn a_log_is_cut_to_the_images_of_the_state() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("stats.jsonl");
        let line = |kimg: f64| format!("{}\n", json!({KIMG: {"num": 1, "mean": kimg, "std": 0}}));
        fs::write(&path, [line(0.1), line(0.2), line(0.3), "{\"Progr".to_owned()].concat()).unwrap();
        Log::open(&path, 200).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), line(0.1) + &line(0.2));
    }
}
