//! One module per command: options and printer in, exit status out.

pub mod dataset;
pub mod doctor;
pub mod draw;
pub mod evaluate;
pub mod explain;
pub mod export;
pub mod fetch;
pub mod generate;
mod inputs;
pub mod inspect;
pub mod known;
pub mod refs;
pub mod report;
pub mod reproduce;
pub mod train;
pub mod verify;

use std::ffi::OsString;
use std::path::Path;

use anyhow::Context as _;
use clap::{CommandFactory as _, Parser as _};
use d2o_files::AtomicFile;
use serde::Serialize;

use crate::cli::{Cli, Command, ResultOutput};
use crate::printer::Printer;
use crate::{interrupt, outputs};

/// Name prefix of the threads that decode, resize, hash and compute metrics. A number follows.
pub const THREAD: &str = "d2o-worker-";

/// Exit code of the process, same as for `diff` and `cmp`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum ExitStatus {
    /// Done; the answer is yes.
    Done = 0,
    /// The answer is no: a condition of `--expect` is not met, runtimes differ.
    No = 1,
    /// No answer: bad input, wrong usage, failing devices or files, bugs of d2o.
    Trouble = 2,
    /// A signal ended the run.
    Interrupted = interrupt::EXIT_CODE,
}

impl From<ExitStatus> for std::process::ExitCode {
    fn from(status: ExitStatus) -> Self {
        Self::from(status as u8)
    }
}

/// Runs the command of `cli`.
///
/// # Errors
/// Errors of the command, with the user's intent as context.
pub fn run(mut cli: Cli) -> anyhow::Result<ExitStatus> {
    let printer = Printer::new(cli.global.quiet);
    inputs::resolve(&mut cli.command, &cli.global, printer)?;
    match cli.command {
        Command::Train(args) => train::run(&args, &cli.global, printer),
        Command::Draw(args) => draw::run(&args, printer),
        Command::Dataset(args) => dataset::run(&args, printer),
        Command::Export(args) => export::run(&args, &cli.global, printer),
        Command::Generate(args) => generate::run(&args, &cli.global, printer),
        Command::Verify(args) => verify::run(&args, &cli.global, printer),
        Command::Inspect(args) => inspect::run(&args, printer),
        Command::Refs(command) => refs::run(&command, &cli.global, printer),
        Command::Evaluate(args) => evaluate::run(&args, &cli.global, printer),
        Command::Explain(args) => explain::run(&args, &cli.global, printer),
        Command::Report(args) => report::run(&args, printer),
        Command::Known(args) => known::run(&args, printer),
        Command::Fetch(args) => fetch::run(&args, printer),
        Command::Doctor(args) => doctor::run(&args, &cli.global, printer),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "d2o", &mut script);
            printer.raw(&script)?;
            Ok(ExitStatus::Done)
        }
        Command::Man { dir } => {
            // Same as `clap_mangen::generate_to`.
            let mut command = Cli::command().disable_help_subcommand(true);
            command.build();
            manual_pages(command, &dir)?;
            Ok(ExitStatus::Done)
        }
        Command::Reproduce(args) => reproduce::run(&args, &cli.global, printer),
    }
}

/// Writes the manual pages of `command` and its visible subcommands to `dir`.
fn manual_pages(command: clap::Command, dir: &Path) -> anyhow::Result<()> {
    for inner in command.get_subcommands().filter(|c| !c.is_hide_set()) {
        manual_pages(inner.clone(), dir)?;
    }
    let manual = clap_mangen::Man::new(command);
    let path = dir.join(manual.get_filename());
    let mut page = Vec::new();
    manual.render(&mut page)?;
    AtomicFile::write_all_to(&path, &page).with_context(|| format!("write `{}`", path.display()))
}

/// Checks, before any work is done, that the file of `--json` can be written.
fn ensure_new_result(to: &ResultOutput) -> anyhow::Result<()> {
    to.json.as_deref().map_or(Ok(()), |path| outputs::ensure_new(path, to.output.overwrite))
}

/// Writes a result as JSON if `--json` is given, and as text unless the JSON goes to standard output.
fn give_result(
    to: &ResultOutput,
    printer: Printer,
    result: &impl serde::Serialize,
    text: impl FnOnce() -> String,
) -> anyhow::Result<()> {
    if let Some(path) = &to.json {
        printer.json(path, result)?;
    }
    if to.json.as_deref().is_some_and(outputs::is_stdout) { Ok(()) } else { printer.data(&text()) }
}

/// The command that d2o makes itself from `words`, which begin with `d2o` and the name of the command.
fn parsed<T>(
    words: impl IntoIterator<Item = impl Into<OsString> + Clone>,
    of: impl FnOnce(Command) -> Option<T>,
) -> anyhow::Result<T> {
    of(Cli::try_parse_from(words)?.command).context("another command")
}

/// Results of one command in JSON: one alone, several as an array.
#[derive(Serialize)]
#[serde(untagged)]
enum Results<'a, T> {
    One(&'a T),
    Several(&'a [T]),
}

impl<'a, T> From<&'a [T]> for Results<'a, T> {
    fn from(all: &'a [T]) -> Self {
        if let [one] = all { Self::One(one) } else { Self::Several(all) }
    }
}

/// Starts the threads for all work outside the runtimes: `count` threads, or one per core.
///
/// # Errors
/// If the threads run already, or cannot be started.
pub fn start_threads(count: Option<usize>) -> anyhow::Result<()> {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(count.unwrap_or(0)).thread_name(|i| format!("{THREAD}{i}"));
    pool.build_global().context("start threads")
}
