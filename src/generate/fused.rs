//! A one-step generator whose images feed the feature networks where they were made, in the device's memory.

use std::ops::Range;
use std::path::Path;
use std::time::Instant;

use anyhow::Context as _;
use d2o_onnx::read::ModelInfo;
use d2o_onnx::session::{Resident, Session, Tensor};
use d2o_onnx::{compose, write};
use d2o_refs::batch::{ContentHash, ImageDims, digests};
use ndarray::Ix4;
use serde_json::Value;

use super::plan::Plan;
use crate::cli::{Fuse, Global, ProviderArg, Sampling};
use crate::error::with_hint;
use crate::features::{Network, Rows, hosted};
use crate::interrupt;
use crate::measure::{How, Walk};
use crate::printer::Printer;
use crate::runtime::{self, OnCpu};

/// The edge where the graphs meet.
const IMAGES: &str = "images_u8";

/// The generator, what it is fed, and how its images reach the networks.
pub struct Fused {
    session: Box<dyn Session>,
    plan: Plan,
    how: Fuse,
}

impl Fused {
    /// Opens the generator at `path`, as one graph with the only one of `networks` or to hand its images to all of them.
    ///
    /// # Errors
    /// Graphs that do not fit each other; a sampler that needs more than one evaluation; a failing runtime.
    pub fn open(
        path: &Path,
        networks: &[Network],
        how: Fuse,
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
        let session = match how {
            Fuse::Graph => {
                let [network] = networks else {
                    return Err(with_hint(
                        anyhow::anyhow!("--fuse takes one feature network, --extractor"),
                        "--fuse=memory takes several",
                    ));
                };
                let joined = compose::chain(path, Path::new(&network.extractor.path), IMAGES)
                    .map_err(|e| with_hint(anyhow::Error::new(e).context("the two graphs cannot be joined"), hint))?;
                let file = tempfile::Builder::new().prefix("d2o-fused-").suffix(".onnx").tempfile()?;
                write::write(&joined, file.path())?;
                runtime::open(file.path(), provider, OnCpu::Plain, global, printer)?
            }
            Fuse::Memory => {
                let given = info.output(IMAGES).with_context(|| format!("`{name}` has no output `{IMAGES}`"));
                let given = given.map_err(|e| with_hint(e, hint))?;
                for network in networks {
                    network.ensure_takes(IMAGES, given).map_err(|e| with_hint(e, hint))?;
                }
                runtime::open(path, provider, OnCpu::Plain, global, printer)?
            }
        };
        let mut record = plan.record(sampling, path, &info, session.runtime())?;
        record["fused"] = how.name().into();
        Ok((Self { session, plan, how }, record))
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

    /// Hands rows `range` of what `networks`, those it was opened with, give to `each`, batch by batch in order.
    ///
    /// # Errors
    /// Those of the session; features that are not finite, naming the seed; Ctrl-C.
    pub fn rows(
        &mut self,
        range: Range<usize>,
        networks: &mut [Network],
        how: &How<'_>,
        each: &mut dyn FnMut(Rows) -> anyhow::Result<()>,
    ) -> anyhow::Result<Walk> {
        let mut walk = Walk::default();
        for network in &*networks {
            let mut meta = network.meta(self.plan.dims, how.protocol)?;
            if self.how == Fuse::Graph {
                self.session.runtime().clone_into(&mut meta.runtime);
            }
            walk.networks.insert(network.role.name().to_owned(), meta);
        }
        let mut hash = ContentHash::new(range.len(), self.plan.dims);
        let mut progress = how.printer.progress("features", range.len() as u64);
        // Only networks with graphs of their own read the images on the device.
        let keep: &[&str] = if self.how == Fuse::Memory { &[IMAGES] } else { &[] };
        let clock = Instant::now();
        for start in range.clone().step_by(how.batch) {
            anyhow::ensure!(!interrupt::asked(), "interrupted");
            let seeds = &self.plan.seeds[start..(start + how.batch).min(range.end)];
            let names: Vec<String> = seeds.iter().map(|s| format!("seed {s}")).collect();
            let drawn = self.plan.drawing.draw(seeds)?;
            let mut inputs = Vec::new();
            if let Some(labels) = self.plan.one_hot(&drawn) {
                inputs.push(("class_labels", Resident::Host(Tensor::F32(labels))));
            }
            inputs.push(("latents", Resident::Host(Tensor::F32(drawn.latents))));
            let inputs: Vec<(&str, &Resident)> = inputs.iter().map(|(name, value)| (*name, value)).collect();
            let mut outputs = self.session.run_resident(&inputs, keep)?;
            let at = outputs.iter().position(|(n, _)| n == IMAGES).context("the graph gives no images")?;
            let (_, images) = outputs.swap_remove(at);
            let matrices = match (self.how, &mut *networks) {
                (Fuse::Graph, [network]) => network.matrices(hosted(outputs)?, &names)?,
                (Fuse::Graph, _) => anyhow::bail!("--fuse takes one feature network"),
                (Fuse::Memory, networks) => {
                    let of = |network: &mut Network| network.run_resident(&images, &names);
                    networks.iter_mut().map(of).collect::<anyhow::Result<Vec<_>>>()?.concat()
                }
            };
            let Tensor::U8(images) = images.into_host()? else { anyhow::bail!("`{IMAGES}` are no bytes") };
            let digests = digests(&images.into_dimensionality::<Ix4>()?);
            hash.update(&digests);
            each(Rows { start, digests, matrices })?;
            progress.advance(names.len() as u64);
        }
        progress.finish();
        walk.seconds.insert("fused".to_owned(), clock.elapsed().as_secs_f64());
        walk.sha256 = hash.finish();
        Ok(walk)
    }
}
