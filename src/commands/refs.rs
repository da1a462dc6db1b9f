//! `d2o refs make` and `d2o refs inspect`.

use anyhow::Context as _;
use d2o_evaluations::frechet::Gaussian;
use d2o_evaluations::gaussian::Accumulator;
use d2o_evaluations::protocol::Protocol;
use d2o_evaluations::result::DeviationKind;
use d2o_refs::batch::{ImageSource, uniform};
use d2o_refs::stats::{Layout, ReferenceStats};

use super::{ExitStatus, ensure_new_result, give_result};
use crate::cli::{Global, LayoutArg, Refs, RefsInspect, RefsMake};
use crate::engine::Engine;
use crate::error::with_hint;
use crate::outputs;
use crate::pipeline::diagnose::{self, Diagnosis};
use crate::pipeline::network::{self, InputRule, Network, Role};
use crate::pipeline::pass::PassOptions;
use crate::pipeline::provenance::{Records, against_protocol};
use crate::pipeline::reference::{StatisticsMeta, VERSION};
use crate::pipeline::source::Source;
use crate::pipeline::statistics::{StatsRequest, statistics};
use crate::printer::{Printer, table};

/// Makes or inspects a reference.
///
/// # Errors
/// If images or a reference cannot be read, or a file is not an extractor.
pub fn run(command: &Refs, global: &Global, printer: Printer) -> anyhow::Result<ExitStatus> {
    match command {
        Refs::Make(args) => make(args, global, printer),
        Refs::Inspect(args) => inspect(args, printer),
    }
}

fn make(args: &RefsMake, global: &Global, printer: Printer) -> anyhow::Result<ExitStatus> {
    outputs::ensure_new_file(&args.out, args.output.overwrite)?;
    let intent = || format!("cannot make a reference of `{}`", args.data.display());
    let mut set = Source::open(&args.data).with_context(intent)?;
    let protocol = Protocol::named(&args.protocol).context("unknown protocol")?;
    let rule = InputRule::from(protocol);
    let engine = Engine::new(args.provider, &args.accelerator, global, printer)?;
    let mut networks = Vec::new();
    for (role, path) in
        [(Role::Features, &args.extractor), (Role::Clip, &args.clip), (Role::Manifold, &args.pr_extractor)]
    {
        if let Some(path) = path {
            networks.push(Network::open(role, path, &engine)?);
        }
    }
    if set.width("features", &networks, &rule).is_none() {
        return Err(with_hint(anyhow::anyhow!("no feature extractor given for images"), "pass one with --extractor"))
            .with_context(intent);
    }
    let layout = match args.layout {
        LayoutArg::Edm => Layout::Edm,
        LayoutArg::Adm => Layout::Adm,
        LayoutArg::Clean => Layout::Clean,
    };
    if layout == Layout::Adm {
        let Source::Images { images, .. } = &set else {
            return Err(anyhow::anyhow!("the adm layout stores images, but the input contains only features"))
                .with_context(intent);
        };
        uniform(images.as_ref()).with_context(intent)?;
    }
    set.notes().iter().for_each(|note| printer.note(note));
    let has = |matrix: &str| set.width(matrix, &networks, &rule).is_some();
    let reader = match layout {
        Layout::Edm => None,
        Layout::Adm => Some(("adm", "guided-diffusion")),
        Layout::Clean => Some(("clean", "clean-fid")),
    };
    if let Some((name, tool)) = reader
        && Protocol::named(name).is_some_and(|p| InputRule::from(p) != rule)
    {
        printer.warn(&format!(
            "the layout is that of {tool}, the preprocessing that of protocol {}; {tool} would compare it with images preprocessed differently \
             (--protocol {name} matches)",
            protocol.name
        ));
    }
    if layout == Layout::Adm && !has("spatial") {
        printer
            .warn("the extractor has no spatial features; guided-diffusion's evaluator requires `mu_s` and `sigma_s`");
    }
    let keep = !args.no_features;
    let request = StatsRequest {
        features: true,
        keep,
        scores: Vec::new(),
        spatial: has("spatial"),
        clip: has("clip"),
        manifold: has("manifold") && keep,
    };
    let batch = network::batch(args.batch, &networks);
    let options = PassOptions { batch, rule, cache: args.cache.as_deref(), reporter: &printer };
    let count = set.len();
    let found = statistics(&mut set, 0..count, &mut networks, &request, &options, None).with_context(intent)?;
    ensure_protocol(&found.summary.networks, protocol).with_context(intent)?;
    let finish = |sums: Option<Accumulator>| sums.map(|s| s.finish(protocol.ddof)).transpose().with_context(intent);
    let gaussian = finish(found.features)?.context("no features")?;
    let pair = |g: Option<Gaussian>| g.map(|g| (g.mu, g.sigma));
    let meta = StatisticsMeta {
        version: VERSION,
        images: set.image_dims(),
        protocol: protocol.name.to_owned(),
        ddof: protocol.ddof,
        count,
        images_sha256: found.summary.sha256,
        d2o_version: env!("CARGO_PKG_VERSION").to_owned(),
        networks: found.summary.networks,
    };
    let main = meta.networks.get(Role::Features.name());
    let name = main.map_or_else(|| "an unknown network".to_owned(), |n| n.name.clone());
    let dims = gaussian.mu.len();
    let reference = ReferenceStats {
        mu: gaussian.mu,
        sigma: gaussian.sigma,
        spatial: pair(finish(found.spatial)?),
        clip: pair(finish(found.clip)?),
        labels: set.labels().filter(|_| keep),
        features: found.kept,
        manifold: found.manifold,
        meta: serde_json::to_value(meta)?,
    };
    let images = match &mut set {
        Source::Images { images, .. } => Some(images.as_mut() as &mut dyn ImageSource),
        Source::Fused { .. } | Source::Features { .. } => None,
    };
    reference.write(&args.out, layout, images).with_context(|| format!("write `{}`", args.out.display()))?;
    printer.note(&format!("{count} images, {dims} features of {name} in `{}`", args.out.display()));
    Ok(ExitStatus::Done)
}

/// Checks that feature files were computed with the preprocessing of `protocol`. Networks that run now always use it.
fn ensure_protocol(records: &Records, protocol: &Protocol) -> anyhow::Result<()> {
    for role in Role::ALL {
        let Some(record) = records.get(role.name()) else { continue };
        let differs = against_protocol(role, role, record, protocol);
        if let Some(deviation) = differs.iter().find(|d| d.kind == DeviationKind::Preprocessing) {
            return Err(with_hint(
                anyhow::anyhow!("the reference would deviate from protocol {}: {deviation}", protocol.name),
                "set --protocol to that of the features; an extractor exported with `--input f32` supports all protocols",
            ));
        }
    }
    Ok(())
}

fn inspect(args: &RefsInspect, printer: Printer) -> anyhow::Result<ExitStatus> {
    ensure_new_result(&args.result)?;
    let found = diagnose::examine(&args.file, args.samples.as_deref())
        .with_context(|| format!("cannot inspect `{}`", args.file.display()))?;
    give_result(&args.result, printer, &found, || render(&found))?;
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
