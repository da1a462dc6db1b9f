//! Evaluations of the snapshots of a run, and their log, `metrics.jsonl`.
//!
//! A line has the format of `stats.jsonl`, with the entries `Metrics/NAME` (and their `ci95` if there are intervals).
//! It also has the file name of the snapshot and the whole evaluation.

use std::path::Path;

use d2o_evaluations::result::Evaluation;
use fs_err as fs;
use serde_json::{Value, json};

use super::stats::{KIMG, Log, entry, unix_time};
use super::tensorboard::Events;
use super::trainer::as_f64;

/// Evaluates a snapshot. Returns `None` if it was interrupted, or failed without ending the run.
pub type Evaluate<'a> = dyn Fn(&Path) -> anyhow::Result<Option<Evaluation>> + 'a;

/// Evaluations of a run.
pub(super) struct Evaluations<'a> {
    evaluate: &'a Evaluate<'a>,
    log: Log,
    /// Images seen, file name and Fréchet distance of the snapshots so far.
    measured: Vec<(u64, String, f64)>,
    keep_best: bool,
}

impl<'a> Evaluations<'a> {
    /// Opens the evaluations of the run in `outdir`, which continues after `images` images. With `keep_best`, only the
    /// best and the last snapshot are kept.
    pub(super) fn open(
        outdir: &Path,
        images: u64,
        evaluate: &'a Evaluate<'a>,
        keep_best: bool,
    ) -> anyhow::Result<Self> {
        let log = Log::open(&outdir.join("metrics.jsonl"), images)?;
        let measured = log.lines()?.iter().filter_map(read).collect();
        Ok(Self { evaluate, log, measured, keep_best })
    }

    /// Evaluates the snapshot at `path`, taken after `images` images, unless it has been evaluated before.
    pub(super) fn add(&mut self, path: &Path, images: u64, events: &mut Events) -> anyhow::Result<()> {
        if self.measured.iter().any(|(at, ..)| *at == images) {
            return Ok(());
        }
        let Some(evaluation) = (self.evaluate)(path)? else { return Ok(()) };
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let mut line = json!({KIMG: entry(as_f64(images) / 1e3)});
        let mut means = Vec::new();
        for (key, metric) in &evaluation.metrics {
            let key = format!("Metrics/{key}");
            line[&key] = entry(metric.value);
            if let Some(interval) = metric.ci95 {
                line[&key]["ci95"] = json!(interval);
            }
            means.push((key, metric.value));
        }
        let now = unix_time();
        line["snapshot"] = json!(name);
        line["timestamp"] = json!(now);
        line["evaluation"] = serde_json::to_value(&evaluation)?;
        events.scalars(now, images, means.iter().map(|(key, value)| (key.as_str(), *value)))?;
        self.log.append(&line)?;
        self.measured.extend(read(&line));
        if self.keep_best {
            self.remove_others(path)?;
        }
        Ok(())
    }

    /// Deletes the snapshots that are neither the best nor the one at `last`.
    fn remove_others(&self, last: &Path) -> anyhow::Result<()> {
        let Some((_, best, _)) = self.measured.iter().min_by(|a, b| a.2.total_cmp(&b.2)) else { return Ok(()) };
        for (_, name, _) in &self.measured {
            let path = last.with_file_name(name);
            if name != best && path != last {
                for file in [path.with_extension("pkl"), path] {
                    if file.exists() {
                        fs::remove_file(file)?;
                    }
                }
            }
        }
        Ok(())
    }
}

/// Images seen, file name and Fréchet distance of a line, if it has all three.
fn read(line: &Value) -> Option<(u64, String, f64)> {
    let mean = |name: &str| line.get(name)?.get("mean")?.as_f64();
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "an image count")]
    let images = (mean(KIMG)? * 1e3).round() as u64;
    let distance = mean("Metrics/fid").or_else(|| mean("Metrics/fd"))?;
    Some((images, line.get("snapshot")?.as_str()?.to_owned(), distance))
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use d2o_evaluations::result::Metric;

    use super::*;

    #[test]
    fn the_best_and_the_last_snapshot_are_kept() {
        let dir = tempfile::tempdir().unwrap();
        let distances = [3.0, 1.0, 2.0, 2.5];
        let at = Cell::new(0);
        let evaluate = |_: &Path| {
            let metrics = [("fd".to_owned(), Metric::new(distances[at.get()]))].into_iter().collect();
            at.set(at.get() + 1);
            Ok(Some(Evaluation { metrics, ..test_evaluation() }))
        };
        let mut events = Events::create(dir.path(), 0.0).unwrap();
        let names: Vec<String> = (0..4).map(|i| format!("network-snapshot-{i:06}.safetensors")).collect();
        for (i, name) in names.iter().enumerate() {
            // A resumed run reads earlier snapshots from the log.
            let mut all = Evaluations::open(dir.path(), i as u64 * 1000, &evaluate, true).unwrap();
            let path = dir.path().join(name);
            fs::write(&path, "s").unwrap();
            fs::write(path.with_extension("pkl"), "p").unwrap();
            all.add(&path, i as u64 * 1000, &mut events).unwrap();
            all.add(&path, i as u64 * 1000, &mut events).unwrap();
        }
        let kept: Vec<bool> = names.iter().map(|n| dir.path().join(n).exists()).collect();
        assert_eq!((kept, at.get()), (vec![false, true, false, true], 4));
        assert!(!dir.path().join("network-snapshot-000000.pkl").exists());
        // Lines beyond the state are removed, and their snapshots do not count.
        let all = Evaluations::open(dir.path(), 1000, &evaluate, true).unwrap();
        assert_eq!(all.measured, [(0, names[0].clone(), 3.0), (1000, names[1].clone(), 1.0)]);
    }

    fn test_evaluation() -> Evaluation {
        serde_json::from_value(json!({
            "schema": 2, "protocol": {}, "samples": {"title": "t", "path": "p", "sha256": ""}, "extractors": {}, "runtime": {}, "metrics": {}, "warnings": [], "timings": {},
        }))
        .unwrap()
    }
}
