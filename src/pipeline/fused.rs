//! A one-step generator that passes its images to the feature extractors in device memory.

use std::ops::Range;
use std::path::Path;
use std::time::Instant;

use anyhow::Context as _;
use d2o_files::Scratch;
use d2o_onnx::read::ModelInfo;
use d2o_onnx::{compose, write};
use d2o_refs::batch::{ContentHash, Digest, ImageDims, digests};
use d2o_runtime::{Session, SessionValue, Tensor};
use ndarray::{Array2, Ix4};
use serde_json::Value;

use super::network::{InputRule, Network, Spec, by_device, hosted};
use super::pass::{Each, PassOptions, PassSummary, Rows};
use super::provenance::NetworkRecord;
use super::turns::in_turn;
use crate::engine::{Engine, OnCpu};
use crate::error::with_hint;
use crate::interrupt;
use crate::sampling::plan::Plan;
use crate::sampling::request::SamplingRequest;

/// Name of the tensor that connects the graphs.
const IMAGES: &str = "images_u8";

/// How images stay on the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fuse {
    /// One merged graph of the generator and one feature extractor.
    Graph,
    /// Separate graphs that pass images in device memory.
    Memory,
}

impl Fuse {
    /// Name in results.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Graph => "graph",
            Self::Memory => "memory",
        }
    }
}

/// A generator with its sampling plan, connected to feature networks.
pub struct Fused {
    /// One session per device.
    sessions: Vec<Box<dyn Session>>,
    plan: Plan,
    how: Fuse,
    record: Value,
}

impl Fused {
    /// Opens the generator at `path`: merged with the only one of `networks` ([`Fuse::Graph`]), or separately, to pass
    /// its images to all of them ([`Fuse::Memory`]).
    ///
    /// # Errors
    /// If the graphs do not fit each other, the sampler needs more than one evaluation, or the runtime fails.
    pub fn open(
        path: &Path,
        networks: &[Network],
        how: Fuse,
        sampling: &SamplingRequest,
        engine: &Engine<'_>,
    ) -> anyhow::Result<Self> {
        let name = path.display();
        let info = ModelInfo::open(path)?;
        let plan = Plan::new(sampling, &info).with_context(|| format!("cannot generate with `{name}`"))?;
        anyhow::ensure!(
            plan.is_one_graph(),
            "--fuse requires a graph of kind one-step, but `{name}` is sampled in several steps"
        );
        let hint = "export the generator with --uint8, and the feature extractor with --fuse-resize and --image-size";
        let sessions = match how {
            Fuse::Graph => {
                let [network] = networks else {
                    return Err(with_hint(
                        anyhow::anyhow!("--fuse=graph supports one feature extractor (--extractor)"),
                        "--fuse=memory supports several",
                    ));
                };
                let joined = compose::chain(path, Path::new(&network.spec.path), IMAGES)
                    .map_err(|e| with_hint(anyhow::Error::new(e).context("the two graphs cannot be joined"), hint))?;
                let folder = Scratch::new()?;
                let file = folder.path().join("fused.onnx");
                write::write(&joined, &file)?;
                engine.open(&file, OnCpu::Plain)?
            }
            Fuse::Memory => {
                let given = info.output(IMAGES).with_context(|| format!("`{name}` has no output `{IMAGES}`"));
                let given = given.map_err(|e| with_hint(e, hint))?;
                for network in networks {
                    network.spec.ensure_takes(IMAGES, given).map_err(|e| with_hint(e, hint))?;
                }
                engine.open(path, OnCpu::Plain)?
            }
        };
        let session = sessions.first().context("no device")?;
        let mut record = plan.record(sampling, path, &info, session.runtime())?;
        record["fused"] = how.name().into();
        Ok(Self { sessions, plan, how, record })
    }

    /// Corrects the runtime in the record of a network: a merged graph runs where the generator runs.
    pub fn correct_runtime(&self, record: &mut NetworkRecord) {
        if let (Fuse::Graph, Some(session)) = (self.how, self.sessions.first()) {
            session.runtime().clone_into(&mut record.runtime);
        }
    }

    /// Record of how the images are generated.
    #[must_use]
    pub fn record(&self) -> &Value {
        &self.record
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

    /// Passes rows `range` of the outputs of `networks` to `each`, batch by batch in order. `networks` must be those
    /// given to [`Fused::open`].
    ///
    /// # Errors
    /// Those of the session; if features are not finite (with the seed), or a signal interrupts the pass.
    pub fn pass(
        &mut self,
        range: Range<usize>,
        networks: &mut [Network],
        options: &PassOptions<'_>,
        each: &mut Each<'_>,
    ) -> anyhow::Result<PassSummary> {
        let mut summary = PassSummary::default();
        let joined = self.how == Fuse::Graph;
        let mut specs = Vec::new();
        // A merged graph is the only one to run. Otherwise the networks run their own graphs on the images on the
        // device.
        let mut sessions = vec![&mut self.sessions[..]];
        for network in networks {
            let (spec, own) = network.parts();
            let mut record = spec.record(Some(self.plan.dims), &options.rule)?;
            if joined {
                sessions[0].first().context("no device")?.runtime().clone_into(&mut record.runtime);
            } else {
                sessions.push(own);
            }
            summary.networks.insert(spec.role.name().to_owned(), record);
            specs.push(spec);
        }
        let mut devices = by_device(sessions);
        let mut hash = ContentHash::new(range.len(), self.plan.dims);
        let mut progress = options.reporter.count("features", "images", range.len() as u64);
        let clock = Instant::now();
        let (plan, specs) = (&self.plan, specs.as_slice());
        let batches =
            range.clone().step_by(options.batch).map(|start| Ok(start..(start + options.batch).min(range.end)));
        let work = |sessions: &mut Vec<&mut dyn Session>, batch: Range<usize>| {
            interrupt::check()?;
            let start = batch.start;
            plan.fused(&plan.seeds[batch], sessions, specs, &options.rule, joined).map(|(digests, matrices)| Rows {
                start,
                digests,
                matrices,
            })
        };
        in_turn(&mut devices, batches, work, |rows| {
            hash.update(&rows.digests);
            let count = rows.digests.len() as u64;
            each(rows)?;
            progress.advance(count);
            Ok(())
        })?;
        drop(progress);
        summary.seconds.insert("fused".to_owned(), clock.elapsed().as_secs_f64());
        summary.sha256 = hash.finish();
        Ok(summary)
    }
}

/// Hashes of the images of a batch, and the matrices of the networks.
type Measured = (Vec<Digest>, Vec<(&'static str, Array2<f32>)>);

impl Plan {
    /// Generates the images of `seeds` and returns their hashes and the matrices of the networks `specs`. The first of
    /// `sessions` is the generator: the merged graph if `joined`, otherwise followed by the sessions of the networks.
    fn fused(
        &self,
        seeds: &[u64],
        sessions: &mut [&mut dyn Session],
        specs: &[&Spec],
        rule: &InputRule,
        joined: bool,
    ) -> anyhow::Result<Measured> {
        let names: Vec<String> = seeds.iter().map(|s| format!("seed {s}")).collect();
        let drawn = self.drawing.draw(seeds)?;
        let mut inputs = Vec::new();
        if let Some(labels) = self.one_hot(&drawn) {
            inputs.push(("class_labels", SessionValue::Host(labels.into())));
        }
        inputs.push(("latents", SessionValue::Host(drawn.latents.into())));
        let inputs: Vec<(&str, &SessionValue)> = inputs.iter().map(|(name, value)| (*name, value)).collect();
        let (generator, networks) = sessions.split_first_mut().context("no device")?;
        let keep: &[&str] = if joined { &[] } else { &[IMAGES] };
        let outputs = generator.run_resident(&inputs, keep)?;
        let mut outputs: Vec<_> = generator.model().output_names().zip(outputs).collect();
        let at = outputs.iter().position(|(n, _)| *n == IMAGES).context("the graph has no image output")?;
        let (_, images) = outputs.swap_remove(at);
        let matrices = match specs {
            [spec] if joined => spec.take(hosted(outputs)?, &names, rule)?,
            _ if joined => anyhow::bail!("--fuse=graph supports one feature extractor"),
            specs => {
                let of = |(spec, session): (&&Spec, &mut &mut dyn Session)| {
                    spec.run_resident(*session, &images, &names, rule)
                };
                specs.iter().zip(networks).map(of).collect::<anyhow::Result<Vec<_>>>()?.concat()
            }
        };
        let Tensor::U8(images) = images.into_host()? else { anyhow::bail!("`{IMAGES}` is not uint8") };
        Ok((digests(&images.into_dimensionality::<Ix4>()?.view()), matrices))
    }
}
