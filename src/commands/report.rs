//! `d2o report`.

use super::ExitStatus;
use crate::cli::{Report, ReportFormat};
use crate::outputs::{self, is_stdout};
use crate::printer::Printer;
use crate::report::{self, Content};

/// Renders results as one page, or as tables.
///
/// # Errors
/// If a file cannot be read, images are not those that were measured, writing fails, or an option of the page is
/// combined with another format.
pub fn run(args: &Report, printer: Printer) -> anyhow::Result<ExitStatus> {
    if !is_stdout(&args.out) {
        outputs::ensure_new_file(&args.out, args.output.overwrite)?;
    }
    let (evaluations, verdicts) = report::read(&args.evaluations)?;
    let content = Content {
        title: &args.title,
        evaluations: &evaluations,
        verdicts: &verdicts,
        images: &args.images,
        references: args.references.as_deref(),
        logs: &args.losses,
        baseline: args.baseline.as_deref(),
        smooth: args.smooth,
    };
    let tables = || -> anyhow::Result<()> {
        let only_page = !args.images.is_empty() || !args.losses.is_empty() || args.references.is_some();
        anyhow::ensure!(!only_page, "--images, --references and --losses require `--format html`");
        anyhow::ensure!(!evaluations.is_empty(), "tables require a result of `d2o evaluate --json`");
        Ok(())
    };
    let text = match args.format {
        ReportFormat::Html => report::html(&content)?,
        ReportFormat::Latex => tables().and_then(|()| report::latex(&content))?,
        ReportFormat::Markdown => tables().and_then(|()| report::markdown(&content))?,
    };
    if is_stdout(&args.out) {
        printer.data(text.trim_end())?;
    } else {
        report::write(&args.out, &text)?;
        printer.note(&format!("`{}`", args.out.display()));
    }
    Ok(ExitStatus::Done)
}
