//! Records of a run in progress: statistics, TensorBoard events, evaluations of snapshots.

use std::path::Path;

use serde_json::{Map, Value, json};

use super::metrics::{Evaluate, Evaluations};
use super::stats::{Log, unix_time};
use super::tensorboard::Events;

/// The records in the folder of a run.
pub(super) struct Records<'a> {
    stats: Log,
    events: Events,
    evaluations: Option<Evaluations<'a>>,
}

impl<'a> Records<'a> {
    /// Opens the records in `outdir` of a run that continues after `images` images and whose last tick ended after
    /// `tick_start` images. With `evaluate`, snapshots are evaluated. With `keep_best`, only the best and the last
    /// snapshot are kept.
    pub(super) fn open(
        outdir: &Path,
        [tick_start, images]: [u64; 2],
        evaluate: Option<&'a Evaluate<'a>>,
        keep_best: bool,
    ) -> anyhow::Result<Self> {
        let stats = Log::open(&outdir.join("stats.jsonl"), tick_start)?;
        let evaluations = evaluate.map(|e| Evaluations::open(outdir, images, e, keep_best)).transpose()?;
        Ok(Self { stats, events: Events::create(outdir, unix_time())?, evaluations })
    }

    /// Adds the line of a tick that ends after `images` images.
    pub(super) fn tick(&mut self, images: u64, mut line: Map<String, Value>) -> anyhow::Result<()> {
        let now = unix_time();
        let means = line.iter().filter_map(|(name, entry)| Some((name.as_str(), entry["mean"].as_f64()?)));
        self.events.scalars(now, images, means)?;
        line.insert("timestamp".to_owned(), json!(now));
        self.stats.append(&Value::Object(line))
    }

    /// Evaluates the snapshot at `path`, taken after `images` images, if evaluation is on.
    pub(super) fn snapshot(&mut self, path: &Path, images: u64) -> anyhow::Result<()> {
        match &mut self.evaluations {
            Some(evaluations) => evaluations.add(path, images, &mut self.events),
            None => Ok(()),
        }
    }
}
