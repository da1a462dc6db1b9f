//! A generator as a set of images that are made when they are read.

use std::cell::OnceCell;
use std::ops::Range;
use std::path::Path;

use anyhow::Context as _;
use d2o_files::hex;
use d2o_refs::batch::{ImageDims, ImageSource};
use d2o_refs::error::{Error, Result};
use d2o_runtime::Session;
use ndarray::{Array4, Axis, concatenate};
use serde_json::Value;
use sha2::{Digest as _, Sha256};

use super::turns::in_turn;
use crate::engine::{Engine, OnCpu};
use crate::sampling::plan::Plan;
use crate::sampling::request::SamplingRequest;

/// Images of a generator graph, one per seed.
pub struct GeneratedImages {
    /// One session per device.
    sessions: Vec<Box<dyn Session>>,
    batch: usize,
    plan: Plan,
    name: String,
    labels: OnceCell<Option<Vec<i64>>>,
    record: Value,
}

impl GeneratedImages {
    /// Opens the graph at `path`, to make the images that `sampling` requests, `batch` at a time.
    ///
    /// # Errors
    /// If the graph is not a generator, an option does not apply to it, or the runtime fails.
    pub fn open(path: &Path, sampling: &SamplingRequest, batch: usize, engine: &Engine<'_>) -> anyhow::Result<Self> {
        let sessions = engine.open(path, OnCpu::Plain)?;
        let session = sessions.first().context("no device")?;
        let name = path.display().to_string();
        let plan = Plan::new(sampling, session.model()).with_context(|| format!("cannot generate with `{name}`"))?;
        let record = plan.record(sampling, path, session.model(), session.runtime())?;
        Ok(Self { sessions, batch, plan, name, labels: OnceCell::new(), record })
    }

    /// Record of how the images are generated.
    #[must_use]
    pub fn record(&self) -> &Value {
        &self.record
    }

    fn make(&mut self, range: Range<usize>) -> anyhow::Result<Array4<u8>> {
        let seeds = self.plan.seeds.get(range).context("image range out of bounds")?;
        let plan = &self.plan;
        let mut parts = Vec::new();
        let work =
            |session: &mut Box<dyn Session>, seeds: &[u64]| plan.sample(session.as_mut(), plan.drawing.draw(seeds)?);
        in_turn(&mut self.sessions, seeds.chunks(self.batch).map(Ok), work, |part| {
            // The conversion to bytes hides NaN and infinity.
            anyhow::ensure!(part.faults[0] == 0, "{} images contain NaN or infinity", part.faults[0]);
            parts.push(part.images);
            Ok(())
        })?;
        let views: Vec<_> = parts.iter().map(|p| p.view()).collect();
        Ok(concatenate(Axis(0), &views)?)
    }
}

/// Hash of the record of a generator. Equal records give equal images.
#[must_use]
pub fn sha256(record: &Value) -> String {
    hex(&Sha256::digest(record.to_string().as_bytes()))
}

impl ImageSource for GeneratedImages {
    fn len(&self) -> usize {
        self.plan.seeds.len()
    }

    fn dims(&self) -> Option<ImageDims> {
        Some(self.plan.dims)
    }

    /// Drawn on the first call, which costs as much as drawing the latents.
    fn labels(&self) -> Option<&[i64]> {
        self.labels.get_or_init(|| self.plan.labels()).as_deref()
    }

    fn name(&self, index: usize) -> String {
        self.plan.seeds.get(index).map_or_else(|| format!("image {index}"), |seed| format!("seed {seed}"))
    }

    fn read(&mut self, range: Range<usize>) -> Result<Array4<u8>> {
        let name = self.name.clone();
        self.make(range).map_err(|e| Error::Made { name, source: e.into() })
    }
}
