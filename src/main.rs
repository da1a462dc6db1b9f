//! `d2o`: parse, dispatch, report errors, choose the exit code.

use std::io::Write as _;
use std::process::ExitCode;

use clap::Parser as _;

fn main() -> ExitCode {
    let cli = d2o::cli::Cli::parse();
    d2o::interrupt::listen();
    match d2o::commands::run(cli) {
        Ok(status) => ExitCode::from(status as u8),
        Err(error) => {
            let _ = write!(std::io::stderr().lock(), "{}", d2o::error::render(&error));
            ExitCode::from(d2o::commands::ExitStatus::No as u8)
        }
    }
}
