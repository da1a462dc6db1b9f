//! Project chores, run as `cargo xtask TASK`.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a task talks to the person who runs it")]

use std::process::ExitCode;

mod paths;
mod setup;

const USAGE: &str = "\
usage: cargo xtask TASK

  setup   bring libtorch, ONNX Runtime, cmake, EfficientNet-Lite0 and OpenMoji into the cache (~/.cache/d2o, or D2O_CACHE)
  env     print the variables that builds need, for `eval \"$(cargo xtask env)\"`
";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let result = match arguments.first().map(String::as_str) {
        Some("setup") => setup::run(),
        Some("env") => setup::run().and_then(|()| print_environment()),
        Some("help" | "--help" | "-h") => {
            print!("{USAGE}");
            Ok(())
        }
        _ => {
            eprint!("{USAGE}");
            return ExitCode::from(2);
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Prints shell exports.
fn print_environment() -> anyhow::Result<()> {
    for (name, value) in paths::environment()? {
        println!("export {name}='{}'", value.to_string_lossy().replace('\'', r"'\''"));
    }
    Ok(())
}
