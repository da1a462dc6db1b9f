//! `d2o`: parse, dispatch, report errors, choose the exit code.

use std::io::Write as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;

use clap::Parser as _;
use d2o::commands::ExitStatus;

/// Turns off the telemetry of Microsoft builds of ONNX Runtime, which also creates a file `.ses` in the temporary
/// folder. The library reads the variable when it is loaded. `d2o_runtime` turns off the events only, which does not
/// prevent the file.
#[allow(unsafe_code, reason = "no other thread runs yet that could read the environment")]
fn quiet_onnxruntime() {
    // SAFETY: called first in `main`, before any thread is started.
    unsafe { std::env::set_var("ORT_DISABLE_TELEMETRY", "1") };
}

fn main() -> ExitCode {
    quiet_onnxruntime();
    d2o::interrupt::listen();
    // The panic hook has printed message and location. After a panic, no state of the command is used.
    let result = match d2o::isolation::asked() {
        Some(path) => catch_unwind(|| d2o::isolation::walk(&path)),
        None => {
            let cli = d2o::cli::Cli::parse();
            catch_unwind(AssertUnwindSafe(|| {
                d2o::isolation::guard();
                d2o::commands::start_threads(cli.global.threads)?;
                d2o::commands::run(cli)
            }))
        }
    };
    let status = match result {
        Ok(Ok(status)) => status,
        Ok(Err(error)) => {
            let _ = write!(std::io::stderr().lock(), "{}", d2o::printer::printable(&d2o::error::render(&error)));
            d2o::error::status(&error)
        }
        Err(_) => {
            let _ = writeln!(std::io::stderr().lock(), "error: internal error; this is a bug in d2o");
            ExitStatus::Trouble
        }
    };
    status.into()
}
