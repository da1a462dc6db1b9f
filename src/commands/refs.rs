//! `d2o refs make` and `d2o refs inspect`.

use std::path::Path;

use anyhow::Context as _;
use d2o_evaluations::gaussian::Accumulator;
use d2o_evaluations::protocol::Protocol;
use d2o_refs::batch;
use d2o_refs::stats::{self, Layout, ReferenceStats};
use ndarray::{Array2, Axis};
use serde_json::json;

use super::ExitStatus;
use crate::cli::{Global, LayoutArg, Refs, RefsInspect, RefsMake};
use crate::features::{describe, extract, output_dims};
use crate::printer::{Printer, table};
use crate::runtime;

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
    let mut source = batch::open(&args.data).with_context(intent)?;
    let mut session = runtime::open(&args.extractor, args.provider, global, printer)?;
    let extractor = describe(session.model(), &args.extractor)?;
    let protocol = Protocol::named(&args.protocol).context("no such protocol")?;
    let spatial = output_dims(session.model(), "spatial");
    let mut sums = Accumulator::new(extractor.dims);
    let mut spatial_sums = spatial.map(Accumulator::new);
    let mut features = Array2::zeros((0, extractor.dims));
    let found = extract(session.as_mut(), source.as_mut(), args.batch as usize, protocol, printer, &mut |rows| {
        sums.push(rows.features)?;
        if let (Some(sums), Some(rows)) = (&mut spatial_sums, rows.spatial) {
            sums.push(rows)?;
        }
        if !args.no_features {
            features.append(Axis(0), rows.features)?;
        }
        Ok(())
    })
    .with_context(intent)?;
    let gaussian = sums.finish(protocol.ddof).with_context(intent)?;
    let spatial = spatial_sums.map(|s| s.finish(protocol.ddof)).transpose().with_context(intent)?;
    let meta = json!({
        "extractor": extractor.name,
        "extractor_sha256": extractor.sha256,
        "protocol": protocol.name,
        "ddof": protocol.ddof,
        "count": source.len(),
        "images_sha256": found.images_sha256,
        "d2o_version": env!("CARGO_PKG_VERSION"),
    });
    let reference = ReferenceStats {
        mu: gaussian.mu,
        sigma: gaussian.sigma,
        spatial: spatial.map(|g| (g.mu, g.sigma)),
        features: (!args.no_features).then_some(features),
        meta,
    };
    let layout = match args.layout {
        LayoutArg::Edm => Layout::Edm,
        LayoutArg::Adm => Layout::Adm,
        LayoutArg::Clean => Layout::Clean,
    };
    reference
        .write(&args.out, layout, Some(source.as_mut()))
        .with_context(|| format!("write `{}`", args.out.display()))?;
    printer.note(&format!(
        "{} images, {} features by {} in `{}`",
        source.len(),
        extractor.dims,
        extractor.name,
        args.out.display()
    ));
    Ok(ExitStatus::Done)
}

fn inspect(args: &RefsInspect, printer: Printer) -> anyhow::Result<ExitStatus> {
    let found = stats::inspect(&args.file).with_context(|| format!("cannot inspect `{}`", args.file.display()))?;
    if let Some(path) = &args.json {
        printer.json(path, &found)?;
    }
    if args.json.as_deref() != Some(Path::new("-")) {
        let rows: Vec<Vec<String>> =
            found.arrays.iter().map(|(n, d, s)| vec![n.clone(), d.clone(), format!("{s:?}")]).collect();
        printer.data(&table(&["array", "type", "shape"], &rows))?;
        let count = found.count.map_or_else(|| "unknown".to_owned(), |n| n.to_string());
        printer.data(&format!("layout {:?} · {} features · images: {count}", found.layout, found.dims))?;
        if !found.meta.is_null() {
            printer.data(&format!("made by d2o: {}", found.meta))?;
        }
        for warning in &found.warnings {
            printer.data(&format!("warning: {warning}"))?;
        }
    }
    Ok(ExitStatus::Done)
}
