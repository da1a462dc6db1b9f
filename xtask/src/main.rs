//! Project chores, run as `cargo xtask TASK`.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a task talks to the person who runs it")]

use std::process::ExitCode;

mod bench;
mod demo;
mod fuzz;
mod generate_parity;
mod gpu_kit;
mod gpu_report;
mod hostile;
mod originals;
mod parity;
mod paths;
mod python;
mod record;
mod setup;
mod test;
mod tidy;
mod wheel;

const USAGE: &str = "\
usage: cargo xtask TASK

  demo    fine-tune, export, generate, evaluate and verify on real images; writes target/demo/report.html
  test    every test, with training
  lint    formatting, lints, tidy, dependencies and documentation
  archive build the wheel, and a tar.gz of its program with ONNX Runtime, with SHA256SUMS, in CARGO_TARGET_DIR/wheels
  bench   [--python PY] [--images N] [PART...]: compare the speed with other tools; PY needs the packages listed in xtask/peers/bench.py
  deny    check licences, sources and versions of dependencies against deny.toml
  setup   download libtorch, ONNX Runtime, cmake, cargo-deny, EfficientNet-Lite0 and OpenMoji into the cache (~/.cache/d2o, or D2O_CACHE)
  env     print the environment variables of builds, for `eval \"$(cargo xtask env)\"`
  fuzz MINUTES [TARGET]
          run libFuzzer for MINUTES on each reader; docs/fuzz.md has the last results
  hostile [--before JSON] [--json JSON]
          run every command on files made to exhaust or crash readers; writes docs/hostile.md
  gpu-kit [--orig DIR] [--dry-run]
          pack the CUDA tests for a bare GPU machine into gpu-kit/, in several parts; --orig adds the original D2O in DIR/D2O,
          --dry-run unpacks and runs it here
  originals --orig DIR [--only NAME]... [--python PROGRAM] [--keep]
          export full-size checkpoints written by the original projects and compare the outputs; updates the table in docs/export.md
  generate-parity ORIG
          compare images of the original generate.py, from checkouts in ORIG, with those of d2o; writes the table in docs/generate.md.
          Needs a Python with PyTorch (D2O_PYTHON, else python3)
  gpu-report DIR...
          write docs/cuda.md from the results of xtask/gpu/run.sh in DIR
  bench-export --orig DIR [--python PROGRAM]
          time ONNX Runtime on the CIFAR-10 NCSN++ exported by d2o and by PyTorch, alternately
  bench-train --orig DIR [--python PROGRAM]
          time one training step of D2O in the original code and in `d2o train`, alternately
  parity  run the original tools and d2o on the same images and write docs/parity.md; options name checkouts and interpreters (see
          xtask/src/parity.rs)
  tidy    check what the compiler cannot: provenance of fixtures, headers, crate documentation
  wheel   [--check [WHEEL]]
          build d2o without training as a Python wheel for Linux with glibc 2.28 or newer, in CARGO_TARGET_DIR/wheels;
          --check installs it, or WHEEL, into a new virtual environment, without cargo and set-up, and evaluates with it

Tasks set up what they need and change nothing outside the cache and the checkout.
";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let result = match words.as_slice() {
        ["demo"] => setup::run_and_build(&["--package", "d2o"]).and_then(|()| demo::run()),
        ["test"] => setup::run_and_build(&["--workspace"]).and_then(|()| test::run()),
        ["lint"] => setup::run().and_then(|()| test::lint()),
        ["deny"] => setup::run().and_then(|()| test::deny()),
        ["setup"] => setup::run(),
        ["bench", rest @ ..] => setup::run().and_then(|()| bench::run(rest)),
        ["env"] => setup::run().and_then(|()| print_environment()),
        ["fuzz", minutes] => fuzz::run(minutes, None),
        ["fuzz", minutes, target] => fuzz::run(minutes, Some(target)),
        ["hostile", rest @ ..] => setup::run().and_then(|()| hostile::run(rest)),
        ["originals", rest @ ..] => setup::run().and_then(|()| originals::run(rest)),
        ["gpu-kit", rest @ ..] => setup::run().and_then(|()| gpu_kit::run(rest)),
        ["generate-parity", orig] => setup::run().and_then(|()| generate_parity::run(orig)),
        ["gpu-report", dirs @ ..] if !dirs.is_empty() => gpu_report::run(dirs),
        ["bench-export", rest @ ..] => setup::run().and_then(|()| originals::bench(rest)),
        ["bench-train", rest @ ..] => setup::run().and_then(|()| originals::bench_train(rest)),
        ["wheel", rest @ ..] => wheel::run(rest),
        ["archive"] => wheel::archive(),
        ["tidy"] => tidy::run(),
        ["parity", options @ ..] => setup::run().and_then(|()| parity::run(options)),
        ["help" | "--help" | "-h"] => {
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

/// Prints the build environment as shell exports.
fn print_environment() -> anyhow::Result<()> {
    for (name, value) in paths::environment()? {
        println!("export {name}='{}'", value.to_string_lossy().replace('\'', r"'\''"));
    }
    Ok(())
}
