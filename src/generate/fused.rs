//! A one-step generator and a feature network as one graph: images never leave the device before their features do.

use std::ops::Range;
use std::path::Path;
use std::time::Instant;

use anyhow::Context as _;
use d2o_onnx::read::ModelInfo;
use d2o_onnx::session::{Session, Tensor};
use d2o_onnx::{compose, write};
use d2o_refs::batch::{ContentHash, ImageDims, digests};
use ndarray::Ix4;
use serde_json::Value;

use super::plan::Plan;
use crate::cli::{Global, ProviderArg, Sampling};
use crate::error::with_hint;
use crate::features::{Network, Rows};
use crate::interrupt;
use crate::measure::{How, Walk};
use crate::printer::Printer;
use crate::runtime;

/// The edge where the graphs meet.
const IMAGES: &str = "images_u8";

/// The joined graph and what it is fed.
pub struct Fused {
    session: Box<dyn Session>,
    plan: Plan,
}

impl Fused {
    /// Joins the generator at `path` with `network`.
    ///
    /// # Errors
    /// Graphs that do not fit each other; a sampler that needs more than one evaluation; a failing runtime.
    pub fn open(
        path: &Path,
        network: &Network,
        sampling: &Sampling,
        provider: ProviderArg,
        global: &Global,
        printer: Printer,
    ) -> anyhow::Result<(Self, Value)> {
        let name = path.display();
        let info = ModelInfo::open(path)?;
        let plan = Plan::new(sampling, &info).with_context(|| format!("cannot generate with `{name}`"))?;
        anyhow::ensure!(plan.is_one_graph(), "--fuse needs a graph of kind one-step, `{name}` is sampled in steps");
        let hint = "export the generator with --uint8, and the feature network with --fuse-resize and --image-size";
        let joined = compose::chain(path, Path::new(&network.extractor.path), IMAGES)
            .map_err(|e| with_hint(anyhow::Error::new(e).context("the two graphs cannot be joined"), hint))?;
        let file = tempfile::Builder::new().prefix("d2o-fused-").suffix(".onnx").tempfile()?;
        write::write(&joined, file.path())?;
        let session = runtime::open(file.path(), provider, global, printer)?;
        let mut record = plan.record(sampling, path, &info, session.runtime())?;
        record["fused"] = true.into();
        Ok((Self { session, plan }, record))
    }

    /// Number of images.
    #[must_use]
    pub fn len(&self) -> usize {
        self.plan.seeds.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.plan.seeds.is_empty()
    }

    /// Size of the images.
    #[must_use]
    pub fn dims(&self) -> ImageDims {
        self.plan.dims
    }

    /// Class of each image, if there are classes.
    #[must_use]
    pub fn labels(&self) -> Option<Vec<i64>> {
        self.plan.labels()
    }

    /// Hands rows `range` of what `network` gives to `each`, batch by batch in order.
    ///
    /// # Errors
    /// Those of the session; features that are not finite, naming the seed; Ctrl-C.
    pub fn rows(
        &mut self,
        range: Range<usize>,
        network: &Network,
        how: &How<'_>,
        each: &mut dyn FnMut(Rows) -> anyhow::Result<()>,
    ) -> anyhow::Result<Walk> {
        let mut walk = Walk::default();
        let meta = network.meta(self.plan.dims, how.protocol)?;
        walk.networks.insert(network.role.name().to_owned(), meta);
        let mut hash = ContentHash::new(range.len(), self.plan.dims);
        let mut progress = how.printer.progress("features", range.len() as u64);
        let clock = Instant::now();
        for start in range.clone().step_by(how.batch) {
            anyhow::ensure!(!interrupt::asked(), "interrupted");
            let seeds = &self.plan.seeds[start..(start + how.batch).min(range.end)];
            let names: Vec<String> = seeds.iter().map(|s| format!("seed {s}")).collect();
            let drawn = self.plan.drawing.draw(seeds)?;
            let mut inputs = Vec::new();
            if let Some(labels) = self.plan.one_hot(&drawn) {
                inputs.push(("class_labels", Tensor::F32(labels)));
            }
            inputs.push(("latents", Tensor::F32(drawn.latents)));
            let mut outputs = self.session.run(&inputs)?;
            let at = outputs.iter().position(|(n, _)| n == IMAGES).context("the graph gives no images")?;
            let (_, Tensor::U8(images)) = outputs.swap_remove(at) else { anyhow::bail!("`{IMAGES}` are no bytes") };
            let digests = digests(&images.into_dimensionality::<Ix4>()?);
            hash.update(&digests);
            let matrices = network.matrices(outputs, &names)?;
            each(Rows { start, digests, matrices })?;
            progress.advance(names.len() as u64);
        }
        progress.finish();
        walk.seconds.insert("fused".to_owned(), clock.elapsed().as_secs_f64());
        walk.sha256 = hash.finish();
        Ok(walk)
    }
}
