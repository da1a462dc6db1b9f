//! `d2o refs make` and `d2o refs inspect`.

use std::path::Path;

use anyhow::Context as _;
use d2o_evaluations::frechet::Gaussian;
use d2o_evaluations::gaussian::Accumulator;
use d2o_evaluations::protocol::Protocol;
use d2o_refs::batch::ImageSource;
use d2o_refs::stats::{Layout, ReferenceStats};
use serde_json::json;

use super::ExitStatus;
use crate::cli::{Global, LayoutArg, Refs, RefsInspect, RefsMake};
use crate::engine::Engine;
use crate::error::with_hint;
use crate::pipeline::diagnose::{self, Diagnosis};
use crate::pipeline::network::{self, Network, Role};
use crate::pipeline::pass::{How, Set, Wants, sums};
use crate::printer::{Printer, table};

/// Makes or examines a reference.
///
/// # Errors
/// Unreadable images or references, a file that is no extractor.
pub fn run(command: &Refs, global: &Global, printer: Printer) -> anyhow::Result<ExitStatus> {
    match command {
        Refs::Make(args) => make(args, global, printer),
        Refs::Inspect(args) => inspect(args, printer),
    }
}

fn make(args: &RefsMake, global: &Global, printer: Printer) -> anyhow::Result<ExitStatus> {
    let intent = || format!("cannot make a reference of `{}`", args.data.display());
    let mut set = Set::open(&args.data).with_context(intent)?;
    let protocol = Protocol::named(&args.protocol).context("no such protocol")?;
    let engine = Engine::new(args.provider, &args.accelerator, global, printer)?;
    let mut networks = Vec::new();
    for (role, path) in
        [(Role::Features, &args.extractor), (Role::Clip, &args.clip), (Role::Manifold, &args.pr_extractor)]
    {
        if let Some(path) = path {
            networks.push(Network::open(role, path, protocol, &engine)?);
        }
    }
    if set.width("features", &networks).is_none() {
        return Err(with_hint(anyhow::anyhow!("no network takes the images' features"), "name one with --extractor"))
            .with_context(intent);
    }
    let has = |matrix: &str| set.width(matrix, &networks).is_some();
    let keep = !args.no_features;
    let wants = Wants {
        features: true,
        keep,
        score: None,
        spatial: has("spatial"),
        clip: has("clip"),
        manifold: has("manifold") && keep,
    };
    let how = How { batch: network::batch(args.batch, &networks), protocol, cache: args.cache.as_deref(), printer };
    let found = sums(&mut set, &mut networks, &wants, &how, None).with_context(intent)?;
    let finish = |sums: Option<Accumulator>| sums.map(|s| s.finish(protocol.ddof)).transpose().with_context(intent);
    let gaussian = finish(found.features)?.context("no features")?;
    let pair = |g: Option<Gaussian>| g.map(|g| (g.mu, g.sigma));
    let count = set.len();
    let mut meta = json!({
        "images": set.image_dims(),
        "protocol": protocol.name,
        "ddof": protocol.ddof,
        "count": count,
        "images_sha256": found.walk.sha256,
        "d2o_version": env!("CARGO_PKG_VERSION"),
    });
    for role in Role::ALL {
        let key = role.key();
        if let Some(network) = found.walk.networks.get(role.name()) {
            meta[key] = network.name.clone().into();
            meta[format!("{key}_sha256")] = network.sha256.clone().into();
            meta[format!("{key}_preprocessing")] = network.preprocessing.clone().into();
        }
    }
    let name = found.walk.networks.get(Role::Features.name()).map_or("a file", |n| n.name.as_str()).to_owned();
    let dims = gaussian.mu.len();
    let reference = ReferenceStats {
        mu: gaussian.mu,
        sigma: gaussian.sigma,
        spatial: pair(finish(found.spatial)?),
        clip: pair(finish(found.clip)?),
        labels: set.labels().filter(|_| keep),
        features: found.kept,
        manifold: found.manifold,
        meta,
    };
    let layout = match args.layout {
        LayoutArg::Edm => Layout::Edm,
        LayoutArg::Adm => Layout::Adm,
        LayoutArg::Clean => Layout::Clean,
    };
    let images = match &mut set {
        Set::Images { source, .. } => Some(source.as_mut() as &mut dyn ImageSource),
        Set::Fused { .. } | Set::Features(_) => None,
    };
    reference.write(&args.out, layout, images).with_context(|| format!("write `{}`", args.out.display()))?;
    printer.note(&format!("{count} images, {dims} features by {name} in `{}`", args.out.display()));
    Ok(ExitStatus::Done)
}

fn inspect(args: &RefsInspect, printer: Printer) -> anyhow::Result<ExitStatus> {
    let found = diagnose::examine(&args.file, args.samples.as_deref())
        .with_context(|| format!("cannot inspect `{}`", args.file.display()))?;
    if let Some(path) = &args.json {
        printer.json(path, &found)?;
    }
    if args.json.as_deref() != Some(Path::new("-")) {
        printer.data(&render(&found))?;
    }
    Ok(ExitStatus::Done)
}

fn render(found: &Diagnosis) -> String {
    let mut parts = vec![format!("{}\n{}", found.file.display(), found.kind)];
    if !found.arrays.is_empty() {
        let row = |a: &diagnose::Array| vec![a.name.clone(), a.dtype.clone(), format!("{:?}", a.shape)];
        parts.push(table(&["array", "type", "shape"], &found.arrays.iter().map(row).collect::<Vec<_>>()));
    }
    if !found.moments.is_empty() {
        let row = |m: &diagnose::Moments| {
            let name = m.order.map_or_else(|| m.name.clone(), |o| format!("{} ({o})", m.name));
            let numbers = [m.trace, m.smallest_eigenvalue, m.largest_eigenvalue].map(|v| format!("{v:.4e}"));
            [vec![name, m.features.to_owned(), format!("{} of {}", m.rank, m.dims)], numbers.to_vec()].concat()
        };
        let header = ["moments", "features", "rank", "trace", "smallest eigenvalue", "largest"];
        parts.push(table(&header, &found.moments.iter().map(row).collect::<Vec<_>>()));
    }
    if let Some(images) = &found.images {
        let block = images.blockiness.map_or_else(|| "–".to_owned(), |b| format!("{b:.3}"));
        let size = format!("{}×{}", images.size.width, images.size.height);
        let classes = images.classes.as_ref().map_or_else(|| "–".to_owned(), |c| c.len().to_string());
        let row = vec![images.count.to_string(), size, classes, images.repeated.to_string(), block];
        parts.push(table(&["images", "size", "classes", "repeated", "blockiness"], &[row]));
    }
    if !found.meta.is_null() {
        parts.push(format!("made by d2o: {}", found.meta));
    }
    parts.extend(found.warnings.iter().map(|w| format!("warning: {w}")));
    parts.join("\n")
}
