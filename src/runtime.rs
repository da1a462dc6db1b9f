//! Opening sessions: which runtime, which library.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use d2o_onnx::session::ort::{OrtOptions, OrtRuntime, OrtSession, minimal_filtering_pays};
use d2o_onnx::session::tract::TractSession;
use d2o_onnx::session::{Provider, Session};

use crate::cli::{Global, ProviderArg, Runtime};
use crate::error::with_hint;
use crate::printer::Printer;

/// Version of ONNX Runtime that set-up installs.
const INSTALLED: &str = "onnxruntime-1.32.0/lib/libonnxruntime.so.1.32.0";

/// What `auto` takes where there is no CUDA device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnCpu {
    /// ONNX Runtime's own kernels: images come out the same byte for byte whatever reads them.
    Plain,
    /// Minimal filtering where the machine and the graph are suited to it, for feature networks: the metrics move by 1e-7 of themselves.
    Fastest,
}

/// Opens `model` where `provider` says; `auto` takes CUDA if it is there, else what `on_cpu` names, and says so.
///
/// # Errors
/// A missing library or device, with a hint; a file that is no model.
pub fn open(
    model: &Path,
    provider: ProviderArg,
    on_cpu: OnCpu,
    global: &Global,
    printer: Printer,
) -> anyhow::Result<Box<dyn Session>> {
    match provider {
        ProviderArg::Tract => open_on(model, Runtime::Tract, global),
        ProviderArg::Cpu => open_on(model, Runtime::OrtCpu, global),
        ProviderArg::Winograd => open_on(model, Runtime::OrtWinograd, global),
        ProviderArg::Cuda => open_on(model, Runtime::OrtCuda, global),
        ProviderArg::Auto => {
            if library(global).is_ok_and(|runtime| runtime.has_cuda()) {
                match open_on(model, Runtime::OrtCuda, global) {
                    Ok(session) => return Ok(session),
                    Err(error) => printer.note(&format!("CUDA cannot be used ({error:#}); running on the CPU")),
                }
            }
            if on_cpu == OnCpu::Plain || !minimal_filtering_pays() {
                return open_on(model, Runtime::OrtCpu, global);
            }
            open_on(model, Runtime::OrtWinograd, global).or_else(|filtered| {
                let plain = open_on(model, Runtime::OrtCpu, global)?;
                printer.note(&format!("plain convolutions: minimal filtering cannot be used ({filtered:#})"));
                Ok(plain)
            })
        }
    }
}

/// Opens `model` on `runtime`.
///
/// # Errors
/// Those of [`open`].
pub fn open_on(model: &Path, runtime: Runtime, global: &Global) -> anyhow::Result<Box<dyn Session>> {
    let describe = || format!("cannot open `{}`", model.display());
    // The file's own faults come first, whatever is installed.
    d2o_onnx::read::ModelInfo::open(model).with_context(describe)?;
    let provider = match runtime {
        Runtime::Tract => return Ok(Box::new(TractSession::open(model, global.threads).with_context(describe)?)),
        Runtime::OrtCpu => Provider::Cpu,
        Runtime::OrtWinograd => Provider::Winograd,
        Runtime::OrtCuda => Provider::Cuda { device: 0, tf32: false },
        Runtime::Libtorch => anyhow::bail!("libtorch runs checkpoints, not graphs"),
    };
    let options = OrtOptions { provider, threads: global.threads };
    Ok(Box::new(library(global)?.session(model, &options).with_context(describe)?))
}

/// Opens `model` on ONNX Runtime with CUDA and products in TF32; `None` where there is no CUDA device.
///
/// # Errors
/// Those of [`open`].
pub fn open_tf32(model: &Path, global: &Global) -> anyhow::Result<Option<Box<dyn Session>>> {
    let library = library(global)?;
    if !library.has_cuda() {
        return Ok(None);
    }
    let options = OrtOptions { provider: Provider::Cuda { device: 0, tf32: true }, threads: global.threads };
    Ok(Some(Box::new(library.session(model, &options)?)))
}

/// Opens `model` on ONNX Runtime's CPU provider and times every node; the times go to a JSON file whose name begins with `prefix`.
///
/// # Errors
/// Those of [`open`].
pub fn open_profiled(model: &Path, prefix: &Path, global: &Global) -> anyhow::Result<OrtSession> {
    let options = OrtOptions { provider: Provider::Cpu, threads: global.threads };
    Ok(library(global)?.profiled(model, &options, prefix)?)
}

fn library(global: &Global) -> anyhow::Result<OrtRuntime> {
    let path = match &global.onnxruntime {
        Some(path) => path.clone(),
        None => installed().ok_or_else(|| {
            with_hint(
                anyhow::anyhow!("ONNX Runtime was not found"),
                "run `cargo xtask setup`, or name the library with --onnxruntime or D2O_ONNXRUNTIME",
            )
        })?,
    };
    Ok(OrtRuntime::load(&path)?)
}

/// Where `cargo xtask setup` puts the library, if it did.
fn installed() -> Option<PathBuf> {
    let cache = match std::env::var_os("D2O_CACHE") {
        Some(dir) => PathBuf::from(dir),
        None => PathBuf::from(std::env::var_os("HOME")?).join(".cache/d2o"),
    };
    Some(cache.join(INSTALLED)).filter(|p| p.exists())
}
