//! `d2o doctor`.

use std::path::Path;

use d2o_converters::known;
use d2o_runtime::cuda;
use d2o_runtime::ort::winograd_is_faster;
use fs_err as fs;
use serde::Serialize;

use super::{ExitStatus, ensure_new_result, give_result};
use crate::cli::{Doctor, Global, LONG_VERSION};
use crate::printer::{Printer, table};
use crate::{downloads, engine, error, outputs};

/// Whether a part of d2o works.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum State {
    /// It works.
    Ok,
    /// It is missing; d2o works without it.
    Absent,
    /// It makes commands fail.
    Fault,
}

/// State of one part.
#[derive(Debug, Serialize)]
struct Check {
    part: &'static str,
    state: State,
    found: String,
    /// How to fix it.
    #[serde(skip_serializing_if = "Option::is_none")]
    fix: Option<String>,
}

impl Check {
    fn ok(part: &'static str, found: impl Into<String>) -> Self {
        Self { part, state: State::Ok, found: found.into(), fix: None }
    }

    fn absent(part: &'static str, found: impl Into<String>, fix: &str) -> Self {
        Self { part, state: State::Absent, found: found.into(), fix: Some(fix.to_owned()) }
    }

    fn fault(part: &'static str, error: &anyhow::Error) -> Self {
        let hints = error::hints(error);
        let fix = (!hints.is_empty()).then(|| hints.join("; "));
        Self { part, state: State::Fault, found: format!("{error:#}"), fix }
    }
}

/// Reports which parts of d2o work on this machine. The exit status is [`ExitStatus::No`] if a part has a fault.
///
/// # Errors
/// If an output cannot be written.
pub fn run(args: &Doctor, global: &Global, printer: Printer) -> anyhow::Result<ExitStatus> {
    ensure_new_result(&args.result)?;
    let mut checks = vec![Check::ok("d2o", LONG_VERSION.replace('\n', "; ")), processor()];
    checks.extend(runtimes(global));
    checks.push(training());
    checks.extend(caches());
    give_result(&args.result, printer, &checks, || render(&checks))?;
    Ok(if checks.iter().any(|c| c.state == State::Fault) { ExitStatus::No } else { ExitStatus::Done })
}

fn render(checks: &[Check]) -> String {
    let state = |state| match state {
        State::Ok => "ok",
        State::Absent => "absent",
        State::Fault => "fault",
    };
    let rows: Vec<Vec<String>> =
        checks.iter().map(|c| vec![c.part.to_owned(), state(c.state).to_owned(), c.found.clone()]).collect();
    let mut text = table(&["part", "state", "found"], &rows);
    for check in checks {
        if let Some(fix) = &check.fix {
            text += &format!("\n{}: {fix}", check.part);
        }
    }
    text
}

fn processor() -> Check {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let kernels = if winograd_is_faster() { "AVX2 and FMA, Winograd convolutions" } else { "no AVX2, no Winograd" };
    Check::ok("processor", format!("{cores} cores; {kernels}"))
}

/// Checks of ONNX Runtime, of its CUDA provider with the devices, and of tract.
fn runtimes(global: &Global) -> Vec<Check> {
    let mut checks = Vec::new();
    let devices = cuda::devices();
    let listed = match &devices {
        Ok(devices) => {
            devices.iter().enumerate().map(|(i, d)| format!("{i}: {}", d.name)).collect::<Vec<_>>().join(", ")
        }
        Err(_) => String::new(),
    };
    match engine::library(global) {
        Ok(runtime) => {
            checks.push(Check::ok("ONNX Runtime", format!("{} ({})", runtime.library().display(), runtime.build())));
            checks.push(match (&devices, runtime.has_cuda()) {
                (Err(e), _) => Check::absent("CUDA", e.to_string(), "reinstall the NVIDIA driver"),
                (Ok(found), _) if found.is_empty() => Check::absent(
                    "CUDA",
                    "no NVIDIA driver or device; graphs run on the CPU",
                    "install the NVIDIA driver (580 or newer for CUDA 13); start containers with `--gpus all`",
                ),
                (Ok(_), false) => Check::absent(
                    "CUDA",
                    format!("{listed}; this ONNX Runtime has no CUDA provider"),
                    "replace onnxruntime: `pip uninstall onnxruntime`, then `pip install 'onnxruntime-gpu[cuda,cudnn]'`",
                ),
                (Ok(_), true) => Check::ok("CUDA", listed),
            });
        }
        Err(e) => {
            checks.push(Check::fault("ONNX Runtime", &e));
            checks.push(Check::absent(
                "CUDA",
                if listed.is_empty() { "no device".to_owned() } else { listed },
                "install ONNX Runtime first",
            ));
        }
    }
    checks.push(Check::ok("tract", "built in"));
    checks
}

fn training() -> Check {
    #[cfg(feature = "train")]
    return match crate::train::device::select(None, 0) {
        Ok(device) => Check::ok("training", format!("libtorch, {}", crate::train::device::describe(device))),
        Err(e) => Check::fault("training", &e),
    };
    #[cfg(not(feature = "train"))]
    Check::absent(
        "training",
        "not built in; `d2o train` and the runtime libtorch of `d2o verify` are unavailable",
        "build from source with `cargo build --release --features train`",
    )
}

/// Checks of the cache, its contents and the download settings.
fn caches() -> Vec<Check> {
    let (cache, settings) = match downloads::cache().and_then(|cache| Ok((cache, downloads::settings()?))) {
        Ok(found) => found,
        Err(e) => return vec![Check::fault("cache", &e)],
    };
    let size = |name: &str| bytes_in(&cache.join(name)) / 1_000_000;
    let shown = format!(
        "{}: {} MB of downloads, {} MB of exported graphs",
        cache.display(),
        size("downloads"),
        size("exports")
    );
    let mut checks = vec![match outputs::writable(&cache) {
        Ok(()) => Check::ok("cache", shown),
        Err(e) => Check {
            part: "cache",
            state: State::Fault,
            found: format!("{shown}: {e}"),
            fix: Some("set D2O_CACHE to a writable folder".to_owned()),
        },
    }];
    let held = |known: &&known::Known| settings.cache.join(downloads::name_of(known)).is_file();
    let names: Vec<&str> = known::all().iter().filter(held).map(|k| k.name.as_str()).collect();
    checks.push(if names.is_empty() {
        Check::absent("weights", "no published file in the cache", "`d2o fetch NAME`; `d2o known` lists the names")
    } else {
        Check::ok("weights", names.join(", "))
    });
    let mut how = vec![if settings.offline { "off (D2O_OFFLINE)" } else { "on" }];
    how.extend(settings.proxy.is_some().then_some("through a proxy"));
    how.extend(settings.hf_token.is_some().then_some("with a Hugging Face token"));
    how.extend(settings.hf_offline.then_some("not from Hugging Face (HF_HUB_OFFLINE)"));
    checks.push(Check::ok("downloads", how.join(", ")));
    checks
}

/// Size of all files below `folder`, bytes.
fn bytes_in(folder: &Path) -> u64 {
    let entries = fs::read_dir(folder).into_iter().flatten().filter_map(Result::ok);
    entries
        .map(|e| match e.metadata() {
            Ok(m) if m.is_dir() => bytes_in(&e.path()),
            Ok(m) => m.len(),
            Err(_) => 0,
        })
        .sum()
}
