//! Reports: one self-contained HTML page of evaluations, images, training runs and verifications; tables for LaTeX and
//! Markdown.
//!
//! Numbers are shown side by side only if they are comparable (`compare`). The page has no scripts and no external
//! references.

use std::path::Path;

use anyhow::Context as _;
use base64::Engine as _;
use d2o_evaluations::result::{Evaluation, SCHEMA};
use d2o_files::AtomicFile;
use fs_err as fs;
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Serde, Value as Rendered};
use minijinja::{Environment, UndefinedBehavior, context};
use serde::{Deserialize as _, Serialize};
use serde_json::Value;

use crate::cli::Titled;
use crate::error::with_hint;
use crate::verdict::Comparison;
use compare::Run;
use number::counted;
use runs::Chip;

mod classes;
mod compare;
mod escape;
#[cfg(test)]
mod example;
mod forest;
mod images;
mod number;
mod plots;
mod runs;
mod svg;
mod table;
mod text;
mod timings;
mod training;
mod verdicts;

/// Templates of the page and its parts, by name.
const TEMPLATES: [(&str, &str); 9] = [
    ("page.html", include_str!("page/page.html")),
    ("macros.html", include_str!("page/macros.html")),
    ("runs.html", include_str!("page/runs.html")),
    ("metrics.html", include_str!("page/metrics.html")),
    ("classes.html", include_str!("page/classes.html")),
    ("images.html", include_str!("page/images.html")),
    ("training.html", include_str!("page/training.html")),
    ("verification.html", include_str!("page/verification.html")),
    ("data.html", include_str!("page/data.html")),
];
/// The style sheet.
const STYLE: &str = include_str!("page/page.css");

/// Content of a report.
#[derive(Debug, Clone, Copy, Default)]
pub struct Content<'a> {
    /// Heading.
    pub title: &'a str,
    /// Results of `d2o evaluate`.
    pub evaluations: &'a [Evaluation],
    /// Results of `d2o verify`.
    pub verdicts: &'a [Comparison],
    /// Sets of images.
    pub images: &'a [Titled],
    /// Reference images, shown next to samples.
    pub references: Option<&'a Path>,
    /// Training logs, `stats.jsonl` or `metrics.jsonl`.
    pub logs: &'a [Titled],
    /// Title of the baseline run; `None` for the first run of each table.
    pub baseline: Option<&'a str>,
    /// Width of the moving average of losses, in thousands of images.
    pub smooth: Option<f64>,
}

impl Content<'_> {
    /// The runs, and the name of the baseline run.
    ///
    /// # Errors
    /// If no run has the title of the baseline.
    fn runs(&self) -> anyhow::Result<(Vec<Run<'_>>, Option<String>)> {
        let runs = compare::runs(self.evaluations);
        let Some(wanted) = self.baseline else { return Ok((runs, None)) };
        let named = runs.iter().find(|r| r.name == wanted);
        let found =
            named.or_else(|| runs.iter().find(|r| r.evaluation.samples.title == wanted)).map(|r| r.name.clone());
        if found.is_none() {
            let names: Vec<String> = runs.iter().map(|r| format!("“{}”", r.name)).collect();
            let problem = anyhow::anyhow!("--baseline: no result has the title “{wanted}”");
            return Err(with_hint(problem, format!("available titles: {}", names.join(", "))));
        }
        Ok((runs, found))
    }
}

/// A section of the page, listed in the navigation.
#[derive(Debug, Serialize)]
struct Section {
    id: &'static str,
    title: &'static str,
}

/// Renders the page.
///
/// # Errors
/// If images or logs cannot be read, images are not those that were measured, or no run has the title of the baseline.
pub fn html(content: &Content<'_>) -> anyhow::Result<String> {
    let (runs, baseline) = content.runs()?;
    let groups = compare::groups(&runs, baseline.as_deref());
    let grids: Vec<_> = content.images.iter().map(images::grid).collect::<anyhow::Result<_>>()?;
    let nearest = images::nearest(&runs, content.images, content.references)?;
    let logs = training::read(content.logs)?;
    let (metrics, losses) = (training::metrics(&logs), training::losses(&logs, content.smooth));
    let classes: Vec<_> = runs.iter().filter_map(classes::classes).collect();
    let verdicts: Vec<_> = content.verdicts.iter().enumerate().map(|(i, v)| verdicts::view(i, v)).collect();
    let sections: Vec<Section> = [
        ("runs", "Runs", !runs.is_empty()),
        ("metrics", "Metrics", !runs.is_empty()),
        ("classes", "Classes", !classes.is_empty()),
        ("images", "Images", !grids.is_empty()),
        ("nearest", "Nearest references", !nearest.is_empty()),
        ("training", "Training", !metrics.is_empty() || !losses.is_empty()),
        ("verification", "Verification", !verdicts.is_empty()),
        ("copy", "LaTeX and Markdown", !runs.is_empty()),
        ("data", "Data", !runs.is_empty() || !verdicts.is_empty()),
    ]
    .into_iter()
    .filter(|(.., present)| *present)
    .map(|(id, title, _)| Section { id, title })
    .collect();
    let environment = environment()?;
    let page = environment.get_template("page.html")?.render(context! {
        title => content.title,
        style => STYLE,
        version => env!("CARGO_PKG_VERSION"),
        chips => shown(&overview(content)),
        sections => shown(&sections),
        runs => shown(&runs.iter().map(runs::view).collect::<Vec<_>>()),
        tables => shown(&table::views(&groups, baseline.as_deref())),
        classes => shown(&classes),
        grids => shown(&grids),
        nearest => shown(&nearest),
        metrics => shown(&metrics),
        losses => shown(&losses),
        verdicts => shown(&verdicts),
        timings => shown(&timings::timings(&runs)),
        data => shown(&data(content)?),
    })?;
    Ok(page)
}

/// Converts `value` for a template.
fn shown(value: &impl Serialize) -> Rendered {
    Rendered::from(Serde(value))
}

/// Template environment. Values that are not marked as safe are escaped.
fn environment() -> anyhow::Result<Environment<'static>> {
    let mut environment = Environment::new();
    environment.set_undefined_behavior(UndefinedBehavior::Strict);
    environment.set_syntax(SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?);
    environment.set_formatter(|out, _, value| {
        if value.is_none() {
            return Ok(());
        }
        let text = value.to_string();
        let written = if value.is_safe() { out.write_str(&text) } else { out.write_str(&escape::html(&text)) };
        Ok(written?)
    });
    for (name, source) in TEMPLATES {
        environment.add_template(name, source)?;
    }
    Ok(environment)
}

/// Summary chips of the whole page.
fn overview(content: &Content<'_>) -> Vec<Chip> {
    let mut chips = Vec::new();
    let count = content.evaluations.len();
    if count > 0 {
        chips.push(Chip::new("plain", counted(count, "run", "runs")));
        let deviating = content.evaluations.iter().filter(|e| !e.deviations.is_empty()).count();
        chips.push(match deviating {
            0 => Chip::new("good", "no deviation from a protocol"),
            n => Chip::new("bad", counted(n, "run deviates from its protocol", "runs deviate from their protocol")),
        });
    }
    let failed = content.evaluations.iter().filter(|e| !e.failed.is_empty()).count();
    if failed > 0 {
        chips.push(Chip::new(
            "bad",
            format!("{} with metrics that could not be computed", counted(failed, "run", "runs")),
        ));
    }
    let asked: Vec<&Comparison> = content.verdicts.iter().filter(|v| v.precisions.is_empty()).collect();
    if !asked.is_empty() {
        let differing = asked.iter().filter(|v| !v.agree).count();
        chips.push(match differing {
            0 => Chip::new("good", counted(asked.len(), "verification agrees", "verifications agree")),
            n if n == asked.len() => Chip::new("bad", counted(n, "verification differs", "verifications differ")),
            n => {
                let verb = if n == 1 { "differs" } else { "differ" };
                Chip::new("bad", format!("{n} of {} verifications {verb}", asked.len()))
            }
        });
    }
    chips
}

/// `bytes` of media type `media` as a data URI.
fn data_uri(media: &str, bytes: &[u8]) -> String {
    format!("data:{media};base64,{}", base64::engine::general_purpose::STANDARD.encode(bytes))
}

/// Results as JSON.
#[derive(Debug, Serialize)]
struct Data {
    name: &'static str,
    title: &'static str,
    json: String,
    /// `json` as a data URI.
    uri: String,
}

fn data(content: &Content<'_>) -> anyhow::Result<Vec<Data>> {
    let mut found = Vec::new();
    let mut add = |name: &'static str, title: &'static str, json: String| {
        let uri = data_uri("application/json", json.as_bytes());
        found.push(Data { name, title, json, uri });
    };
    if !content.evaluations.is_empty() {
        add("evaluations.json", "Evaluations", serde_json::to_string_pretty(content.evaluations)?);
    }
    if !content.verdicts.is_empty() {
        add("verifications.json", "Verifications", serde_json::to_string_pretty(content.verdicts)?);
    }
    Ok(found)
}

/// Renders the tables for LaTeX with the package booktabs.
///
/// # Errors
/// If no run has the title of the baseline.
pub fn latex(content: &Content<'_>) -> anyhow::Result<String> {
    let (runs, baseline) = content.runs()?;
    let groups = compare::groups(&runs, baseline.as_deref());
    Ok(text::document(&groups, text::latex_table, |remark| format!("% {remark}")))
}

/// Renders the tables as Markdown.
///
/// # Errors
/// If no run has the title of the baseline.
pub fn markdown(content: &Content<'_>) -> anyhow::Result<String> {
    let (runs, baseline) = content.runs()?;
    let groups = compare::groups(&runs, baseline.as_deref());
    Ok(text::document(&groups, text::markdown_table, |remark| format!("{}\n", escape::markdown(remark))))
}

/// Writes `text` to `path`.
///
/// # Errors
/// If writing fails.
pub fn write(path: &Path, text: &str) -> anyhow::Result<()> {
    AtomicFile::write_all_to(path, text.as_bytes()).with_context(|| format!("write `{}`", path.display()))
}

/// Reads results of `d2o evaluate --json` and `d2o verify --json`, recognised by their content.
///
/// # Errors
/// If a file cannot be read or is neither, or a result has another schema version.
pub fn read(paths: &[std::path::PathBuf]) -> anyhow::Result<(Vec<Evaluation>, Vec<Comparison>)> {
    let (mut evaluations, mut verdicts) = (Vec::new(), Vec::new());
    for path in paths {
        let describe = || format!("cannot report on `{}`", path.display());
        let value: Value = serde_json::from_slice(&fs::read(path)?).with_context(describe)?;
        let several = match value {
            Value::Array(several) => several,
            one => vec![one],
        };
        for value in several {
            if value.get("schema").is_some() {
                evaluations.push(evaluation_of(&value).with_context(describe)?);
            } else if value.get("agree").is_some() {
                verdicts.push(serde_json::from_value(value).with_context(describe)?);
            } else {
                let what = "it is not a result of `d2o evaluate --json` or `d2o verify --json`";
                return Err(anyhow::anyhow!(what).context(describe()));
            }
        }
    }
    Ok((evaluations, verdicts))
}

/// The evaluation in `value`.
///
/// # Errors
/// If the schema version differs from [`SCHEMA`].
fn evaluation_of(value: &Value) -> anyhow::Result<Evaluation> {
    let schema = value.get("schema").and_then(Value::as_u64);
    let shown = || value.get("schema").map_or_else(|| "unknown".to_owned(), ToString::to_string);
    anyhow::ensure!(
        schema == Some(u64::from(SCHEMA)),
        "its schema is version {}, this d2o reads version {SCHEMA}",
        shown()
    );
    Ok(Evaluation::deserialize(value)?)
}
