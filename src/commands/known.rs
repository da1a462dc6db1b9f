//! `d2o known`, and the samplers that published checkpoints recommend.

use std::fmt::Write as _;
use std::path::Path;

use d2o_converters::known::{self, FileHash, Generator, Kind, Known, Match};
use d2o_onnx::metadata::Kind as GraphKind;
use d2o_onnx::read::ModelInfo;
use d2o_refs::batch::container_sha256;
use fs_err as fs;
use serde_json::Value;

use super::{ExitStatus, ensure_new_result, give_result};
use crate::cli::{KnownArgs, Sampling};
use crate::error::with_hint;
use crate::printer::{Printer, table};
use crate::progress::Reporter;

/// Lists published files, or describes one.
///
/// # Errors
/// If no entry contains the given text.
pub fn run(args: &KnownArgs, printer: Printer) -> anyhow::Result<ExitStatus> {
    ensure_new_result(&args.result)?;
    if let Some(known) = args.name.as_deref().and_then(known::find) {
        give_result(&args.result, printer, known, || describe(known))?;
        return Ok(ExitStatus::Done);
    }
    let wanted = args.name.as_deref().unwrap_or_default().to_lowercase();
    let contains = |known: &&Known| {
        [&known.name, &known.title, &known.family, &known.file].iter().any(|text| text.to_lowercase().contains(&wanted))
    };
    let rows: Vec<&Known> = known::all().iter().filter(contains).collect();
    if rows.is_empty() {
        return Err(unknown(&wanted));
    }
    give_result(&args.result, printer, &rows, || list(&rows))?;
    Ok(ExitStatus::Done)
}

/// The error for an unknown name, with similar names as hint.
pub(super) fn unknown(name: &str) -> anyhow::Error {
    let error = anyhow::anyhow!("unknown published file `{name}`");
    match known::similar(name, 3).as_slice() {
        [] => with_hint(error, "`d2o known` lists all names"),
        similar => with_hint(error, format!("similar names: {}; `d2o known` lists all", similar.join(", "))),
    }
}

fn list(rows: &[&Known]) -> String {
    let cells = rows.iter().map(|known| {
        let (kind, number) = match &known.kind {
            Kind::Generator(generator) => ("generator", generator.published.first()),
            Kind::Extractor(_) => ("extractor", None),
            Kind::Reference(_) => ("reference", None),
            _ => ("", None),
        };
        let number = number.map(|n| format!("{} {}", n.metric, n.value)).unwrap_or_default();
        vec![known.name.clone(), kind.to_owned(), known.title.clone(), number]
    });
    table(&["name", "kind", "content", "published"], &cells.collect::<Vec<_>>())
}

fn describe(known: &Known) -> String {
    let mut text = format!("{}: {}\n", known.name, known.title);
    let mut line = |key: &str, value: &str| {
        if !value.is_empty() {
            let _ = writeln!(text, "  {key:<12}{value}");
        }
    };
    line("also", &known.aliases.join(", "));
    line("file", &known.file);
    line("bytes", &known.bytes.map(|b| b.to_string()).unwrap_or_default());
    line(
        "sha256",
        &match known.hash() {
            FileHash::Full(hash) => hash.to_owned(),
            FileHash::Prefix(prefix) => format!("{prefix}… (first 32 bits only)"),
            _ => "not published".to_owned(),
        },
    );
    line("page", &known.page);
    for url in &known.urls {
        line("address", url);
    }
    line("licence", known.license.as_deref().unwrap_or("not stated"));
    line("note", known.notes.as_deref().unwrap_or_default());
    match &known.kind {
        Kind::Generator(generator) => {
            line("class", &generator.class);
            line("dataset", &format!("{}, {} × {1} pixels", generator.dataset, generator.resolution));
            line(
                "classes",
                &generator.classes.map(|c| if c == 0 { "none".to_owned() } else { c.to_string() }).unwrap_or_default(),
            );
            let sampler = sampler_words(generator, false).map(|words| words.join(" "));
            line("sampler", sampler.as_deref().unwrap_or("not supported by d2o"));
            line("quantiser", &generator.quantiser);
            line("protocol", &generator.protocol);
            line("reference", generator.reference.as_deref().unwrap_or_default());
            line("extractor", &generator.extractor);
            for n in &generator.published {
                let protocol = n.protocol.as_ref().map(|p| format!(", protocol {p}")).unwrap_or_default();
                let what = format!("{} {} ({} images, {}{protocol})", n.metric, n.value, n.images, n.statistic);
                line("published", &format!("{what}: {}", n.source));
            }
        }
        Kind::Extractor(extractor) => {
            line("network", &extractor.network);
            line("layout", extractor.layout.as_deref().unwrap_or_default());
        }
        Kind::Reference(reference) => {
            line("dataset", &format!("{}, {} × {1} pixels", reference.dataset, reference.resolution));
            line("images", &reference.images.map(|n| n.to_string()).unwrap_or_default());
            line("protocol", &reference.protocol);
            line("contents", &reference.contents.join(", "));
            line("covariance", reference.covariance.as_deref().unwrap_or_default());
        }
        _ => {}
    }
    line("fetch", &format!("d2o fetch {}", known.name));
    text.trim_end().to_owned()
}

/// The published checkpoint that matches the file at `path` with a network of class `class`, and how it was recognised.
///
/// # Errors
/// If the file cannot be read.
pub(super) fn published(path: &Path, class: &str) -> anyhow::Result<Option<(&'static Known, Match)>> {
    let file = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    Ok(known::recognise(&file, class, fs::metadata(path)?.len(), || container_sha256(path))?)
}

/// Options of `d2o generate` for the sampler of `generator`; for a one-step graph, `--sampler` only. `None` if d2o does
/// not support the sampler.
pub(super) fn sampler_words(generator: &Generator, one_step_graph: bool) -> Option<Vec<String>> {
    let value = |v: &Value| match v {
        Value::String(text) => text.clone(),
        Value::Array(items) => items.iter().map(ToString::to_string).collect::<Vec<_>>().join(","),
        other => other.to_string(),
    };
    // A one-step graph contains the noise level.
    let options = generator.sampler.as_ref()?.iter().filter(|(name, _)| !one_step_graph || *name == "sampler");
    Some(options.flat_map(|(name, v)| [format!("--{name}"), value(v)]).collect())
}

/// `args` with the recommended sampler of the published checkpoint that the graph was exported from, if there is one
/// and `args` choose no sampler.
///
/// # Errors
/// If a metadata entry has the wrong type.
pub(super) fn recommended(args: &Sampling, info: &ModelInfo, reporter: &dyn Reporter) -> anyhow::Result<Sampling> {
    let metadata = info.described()?;
    let words = metadata.known.as_deref().and_then(known::find).and_then(Known::generator).and_then(|generator| {
        let one_step_graph = metadata.kind == Some(GraphKind::OneStep);
        let fits =
            metadata.kind == Some(GraphKind::Denoiser) || one_step_graph && generator.is_one_step() == Some(true);
        sampler_words(generator, one_step_graph).filter(|_| fits)
    });
    let (Some(name), Some(words)) = (metadata.known, words) else { return Ok(args.clone()) };
    let Some(chosen) = args.or_sampler(&words)? else { return Ok(args.clone()) };
    reporter.note(&format!("sampler of `{name}`: {}", words.join(" ")));
    Ok(chosen)
}

#[cfg(test)]
mod tests {
    use d2o_evaluations::protocol::PROTOCOLS;

    use super::*;

    #[test]
    fn samplers_of_the_table_are_options_and_protocols_are_protocols() {
        let protocols: Vec<&str> = PROTOCOLS.iter().map(|p| p.name).collect();
        let none = Sampling::parse(&[]).unwrap();
        for known in known::all() {
            let protocol = known.generator().map(|g| &g.protocol).or(known.reference().map(|r| &r.protocol));
            assert!(protocol.is_none_or(|p| protocols.contains(&p.as_str())), "{}", known.name);
            let Some(words) = known.generator().and_then(|g| sampler_words(g, false)) else { continue };
            let chosen = none.or_sampler(&words).unwrap_or_else(|e| panic!("{}: {e}", known.name));
            assert!(chosen.is_some_and(|c| c.sampler.is_some()), "{}", known.name);
        }
    }

    #[test]
    fn a_chosen_sampler_is_kept() {
        let words = ["--sampler", "heun", "--num-steps", "40"].map(str::to_owned);
        let seeded = Sampling { class: Some(3), ..Sampling::parse(&[]).unwrap() };
        let chosen = seeded.or_sampler(&words).unwrap().unwrap();
        assert_eq!((chosen.num_steps, chosen.class), (Some(40), Some(3)));
        let asked = Sampling { num_steps: Some(18), ..Sampling::parse(&[]).unwrap() };
        assert_eq!(asked.or_sampler(&words).unwrap(), None);
    }
}
