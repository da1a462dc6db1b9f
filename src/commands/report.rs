//! `d2o report`.

use super::ExitStatus;
use crate::cli::Report;
use crate::outputs;
use crate::printer::Printer;
use crate::report;

/// Renders results as one page.
///
/// # Errors
/// Unreadable files, writing errors.
pub fn run(args: &Report, printer: Printer) -> anyhow::Result<ExitStatus> {
    outputs::ensure_new_file(&args.out, args.output.overwrite)?;
    let (evaluations, verdicts) = report::read(&args.evaluations)?;
    report::write(&args.out, &args.title, &evaluations, &args.images, &args.losses, &verdicts)?;
    printer.note(&format!("`{}`", args.out.display()));
    Ok(ExitStatus::Done)
}
