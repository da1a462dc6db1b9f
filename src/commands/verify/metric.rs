//! Effect of the differences between runtimes on a Fréchet distance.

use std::path::Path;

use anyhow::Context as _;
use d2o_evaluations::frechet::{Gaussian, frechet_distance};
use d2o_evaluations::protocol::Protocol;
use d2o_refs::batch::ImageDims;

use super::compare::Side;
use crate::cli::{Accelerator, Global, Runtime};
use crate::engine;
use crate::pipeline::network::{InputRule, Network as FeatureNetwork, Role};
use crate::pipeline::pass::PassOptions;
use crate::pipeline::provenance::between;
use crate::pipeline::reference::OpenReference;
use crate::pipeline::source::Source;
use crate::pipeline::statistics::{StatsRequest, statistics};
use crate::printer::Printer;
use crate::verdict::MetricChange;

/// Fréchet distances of the images of every side after the first, computed as in `d2o evaluate`: to `reference`, or to
/// the images of the first side.
pub(super) fn metric_changes(
    sides: &[Side],
    extractor: &Path,
    reference: Option<&Path>,
    batch: usize,
    global: &Global,
    printer: Printer,
) -> anyhow::Result<Vec<MetricChange>> {
    let protocol = Protocol::named("edm").context("no protocol edm")?;
    let rule = InputRule::from(protocol);
    let session = engine::open_on(extractor, Runtime::OrtCpu, &Accelerator::default(), global)?;
    let mut networks = [FeatureNetwork::with_sessions(Role::Features, extractor, vec![session])?];
    let options = PassOptions { batch, rule, cache: None, reporter: &printer };
    let request = StatsRequest { features: true, ..StatsRequest::default() };
    let name = networks[0].spec.name.clone();
    let target = match reference {
        Some(path) => {
            let mut open = OpenReference::open(path, false)?;
            let supply = open.moments("features", &networks, &rule);
            let dims = sides.first().and_then(|s| s.pixels.first()).map(|p| {
                let (_, height, width, channels) = p.dim();
                ImageDims { height, width, channels }
            });
            let record = networks[0].spec.record(dims, &rule)?;
            let origin = open.origin(Role::Features, supply, &networks, &rule)?;
            if let Some(deviation) = between(Role::Features, &record, &origin, &path.display().to_string()).first() {
                anyhow::bail!("the reference does not belong to the extractor: {deviation}");
            }
            let computed = open.compute(&mut networks, &request, &options)?;
            Some(computed.gaussian("features", protocol.ddof)?.into_owned())
        }
        None => None,
    };
    let mut gaussian = |side: &Side| -> anyhow::Result<Gaussian> {
        let views: Vec<_> = side.pixels.iter().map(|p| p.view()).collect();
        let images = ndarray::concatenate(ndarray::Axis(0), &views)?;
        let count = images.len_of(ndarray::Axis(0));
        let mut source = Source::of_memory(images, side.name.clone());
        let found = statistics(&mut source, 0..count, &mut networks, &request, &options, None)?;
        Ok(found.features.context("the network has no features output")?.finish(protocol.ddof)?)
    };
    let Some((first, others)) = sides.split_first() else { return Ok(Vec::new()) };
    let base = gaussian(first)?;
    let reference_distance = target.as_ref().map(|t| frechet_distance(&base, t)).transpose()?;
    others
        .iter()
        .map(|side| {
            let distance = frechet_distance(&gaussian(side)?, target.as_ref().unwrap_or(&base))?;
            let (runtime, extractor) = (side.name.clone(), name.clone());
            Ok(MetricChange { runtime, extractor, reference_distance, distance })
        })
        .collect()
}
