//! Opens sessions: selects runtime, library and devices.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use d2o_onnx::read::ModelInfo;
use d2o_runtime::cuda::{self, CudaDevice};
use d2o_runtime::ort::{CudaOptions, OrtOptions, OrtRuntime, OrtSession, Provider, winograd_is_faster};
use d2o_runtime::tract::TractSession;
use d2o_runtime::{PlacedNode, Session};

use crate::cli::{Accelerator, Global, ProviderArg, Runtime};
use crate::interrupt;
use crate::printer::Printer;

mod find;

/// ONNX Runtime library that `cargo xtask setup` installs, relative to the cache folder.
const INSTALLED: &str = "onnxruntime-1.32.0/lib/libonnxruntime.so.1.32.0";

/// Runtime that `auto` selects without a CUDA device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnCpu {
    /// Default kernels of ONNX Runtime, for generators: every command gets the same images byte for byte.
    Plain,
    /// Winograd convolutions where they are faster and the graph has eligible ones, for feature networks. Metrics
    /// change by 1e-7 relative.
    Fastest,
}

/// Opens the graphs of a command on the requested runtime and devices.
#[derive(Debug, Clone)]
pub struct Engine<'a> {
    provider: ProviderArg,
    accelerator: &'a Accelerator,
    global: &'a Global,
    printer: Printer,
    workers: usize,
    /// Whether `auto` tried CUDA and failed.
    without_cuda: Cell<bool>,
}

impl<'a> Engine<'a> {
    /// Engine for the requested `provider` and `accelerator`.
    ///
    /// # Errors
    /// If CUDA options are given with a provider that runs on the CPU.
    pub fn new(
        provider: ProviderArg,
        accelerator: &'a Accelerator,
        global: &'a Global,
        printer: Printer,
    ) -> anyhow::Result<Self> {
        let asked = !accelerator.device.is_empty() || accelerator.tf32 || accelerator.cudnn_benchmark;
        let provider = match provider {
            // These options ask for CUDA.
            ProviderArg::Auto if asked && accelerator.ep_library.is_none() => ProviderArg::Cuda,
            ProviderArg::Cpu | ProviderArg::Winograd | ProviderArg::Tract if asked => {
                anyhow::bail!("--device, --tf32 and --cudnn-benchmark require CUDA; this provider runs on the CPU")
            }
            provider => provider,
        };
        let workers = accelerator.device.len().max(1);
        Ok(Self { provider, accelerator, global, printer, workers, without_cuda: Cell::new(false) })
    }

    /// Opens `count` sessions of each graph (at least 1) instead of one per device. Results do not depend on their
    /// number.
    #[must_use]
    pub fn with_workers(self, count: usize) -> Self {
        Self { workers: count.max(1), ..self }
    }

    /// Opens `model` once per device. `auto` uses CUDA if possible, otherwise the runtime of `on_cpu`; it warns if CUDA
    /// is available but fails.
    ///
    /// # Errors
    /// If a library or device is missing (with a hint), or the file is not a model.
    pub fn open(&self, model: &Path, on_cpu: OnCpu) -> anyhow::Result<Vec<Box<dyn Session>>> {
        let open = |runtime: Runtime| -> anyhow::Result<Vec<Box<dyn Session>>> {
            let one = |worker| open_nth(model, runtime, worker, self.accelerator, self.global);
            let sessions: Vec<_> = (0..self.workers).map(one).collect::<anyhow::Result<_>>()?;
            if let Some(first) = sessions.first() {
                warn_of_cpu_nodes(first.as_ref(), model, self.printer)?;
            }
            Ok(sessions)
        };
        match self.provider {
            _ if self.accelerator.ep_library.is_some() => open(Runtime::OrtEp),
            ProviderArg::Tract => open(Runtime::Tract),
            ProviderArg::Cpu => open(Runtime::OrtCpu),
            ProviderArg::Winograd => open(Runtime::OrtWinograd),
            ProviderArg::Cuda => open(Runtime::OrtCuda),
            ProviderArg::Auto => {
                if !self.without_cuda.get() && library(self.global).is_ok_and(|runtime| runtime.has_cuda()) {
                    match open(Runtime::OrtCuda) {
                        Ok(sessions) => return Ok(sessions),
                        Err(error) => {
                            self.without_cuda.set(true);
                            self.printer.warn(&format!("CUDA cannot be used ({error:#}); running on the CPU"));
                        }
                    }
                }
                if on_cpu == OnCpu::Plain || !winograd_is_faster() {
                    return open(Runtime::OrtCpu);
                }
                open(Runtime::OrtWinograd).or_else(|error| {
                    let plain = open(Runtime::OrtCpu)?;
                    self.printer
                        .note(&format!("Winograd convolutions cannot be used ({error:#}); using plain convolutions"));
                    Ok(plain)
                })
            }
        }
    }
}

/// Opens `model` on `runtime`, on the first device in `accelerator`.
///
/// # Errors
/// Those of [`Engine::open`].
pub fn open_on(
    model: &Path,
    runtime: Runtime,
    accelerator: &Accelerator,
    global: &Global,
) -> anyhow::Result<Box<dyn Session>> {
    open_nth(model, runtime, 0, accelerator, global)
}

fn open_nth(
    model: &Path,
    runtime: Runtime,
    nth: usize,
    accelerator: &Accelerator,
    global: &Global,
) -> anyhow::Result<Box<dyn Session>> {
    let describe = || format!("cannot open `{}`", model.display());
    // Errors of the file are reported first, independent of the installation.
    if ModelInfo::open(model).with_context(describe)?.loops {
        interrupt::end_at_once();
    }
    if runtime == Runtime::Tract {
        return Ok(Box::new(TractSession::open(model, global.threads).with_context(describe)?));
    }
    let library = library(global)?;
    let options = OrtOptions::new(provider_of(runtime, nth, accelerator, &library)?, global.threads);
    Ok(Box::new(library.session(model, &options).with_context(describe)?))
}

/// Warns of nodes of `model` that run on the CPU although `session` uses another device.
///
/// # Errors
/// Those of [`Session::left_to_cpu`].
pub fn warn_of_cpu_nodes(session: &dyn Session, model: &Path, printer: Printer) -> anyhow::Result<()> {
    let left = session.left_to_cpu()?;
    if !left.is_empty() {
        printer.warn(&format!("{}: {} of `{}` assigned to the CPU", session.runtime(), tally(&left), model.display()));
    }
    Ok(())
}

/// ONNX Runtime provider for `runtime`, on device number `nth` in `accelerator`.
fn provider_of(
    runtime: Runtime,
    nth: usize,
    accelerator: &Accelerator,
    library: &OrtRuntime,
) -> anyhow::Result<Provider> {
    let device = accelerator.device.get(nth).copied().unwrap_or(0);
    Ok(match runtime {
        Runtime::OrtCpu => Provider::Cpu,
        Runtime::OrtWinograd => Provider::Winograd,
        Runtime::OrtCuda => {
            let mut cuda = CudaOptions::new(device);
            (cuda.tf32, cuda.benchmark) = (accelerator.tf32, accelerator.cudnn_benchmark);
            Provider::Cuda(cuda)
        }
        Runtime::OrtEp => {
            let plugin = accelerator.ep_library.as_ref().context("ort-ep: pass the provider with --ep-library")?;
            library.register(&plugin.name, &plugin.path)?;
            Provider::Plugin { library: plugin.name.clone(), device: device as usize }
        }
        Runtime::Tract => anyhow::bail!("tract is not a provider of ONNX Runtime"),
        Runtime::Libtorch => anyhow::bail!("libtorch runs checkpoints, not graphs"),
    })
}

/// Counts `nodes` by operation, e.g. `3 nodes (2 Gather, 1 Shape)`.
fn tally(nodes: &[PlacedNode]) -> String {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for node in nodes {
        *counts.entry(&node.op).or_default() += 1;
    }
    let by_op: Vec<String> = counts.iter().map(|(op, n)| format!("{n} {op}")).collect();
    format!("{} node{} ({})", nodes.len(), if nodes.len() == 1 { "" } else { "s" }, by_op.join(", "))
}

/// Opens `model` on ONNX Runtime with CUDA and TF32 products; `None` if the library has no CUDA provider or the machine
/// has no device.
///
/// # Errors
/// Those of [`Engine::open`].
pub fn open_tf32(model: &Path, accelerator: &Accelerator, global: &Global) -> anyhow::Result<Option<Box<dyn Session>>> {
    if !library(global)?.has_cuda() || cuda_devices().is_empty() {
        return Ok(None);
    }
    let accelerator = Accelerator { tf32: true, ..accelerator.clone() };
    open_on(model, Runtime::OrtCuda, &accelerator, global).map(Some)
}

/// Opens `model` on ONNX Runtime and times every node. The times go to a JSON file with a name that starts with
/// `prefix`.
///
/// # Errors
/// Those of [`Engine::open`].
pub fn open_profiled(
    model: &Path,
    runtime: Runtime,
    prefix: &Path,
    accelerator: &Accelerator,
    global: &Global,
) -> anyhow::Result<OrtSession> {
    let library = library(global)?;
    let mut options = OrtOptions::new(provider_of(runtime, 0, accelerator, &library)?, global.threads);
    options.profile = Some(prefix.to_owned());
    Ok(library.session(model, &options)?)
}

/// CUDA devices of this machine; empty if the driver does not respond.
#[must_use]
pub fn cuda_devices() -> Vec<CudaDevice> {
    cuda::devices().unwrap_or_default()
}

/// ONNX Runtime build and devices behind a result, by name, to reproduce it.
#[must_use]
pub fn describe(runtimes: &str, accelerator: &Accelerator, global: &Global) -> BTreeMap<String, String> {
    let mut found = BTreeMap::from([("runtime".to_owned(), runtimes.to_owned())]);
    if let (true, Ok(library)) = (runtimes.contains("ort-"), library(global)) {
        found.insert("onnxruntime".to_owned(), library.build().to_owned());
    }
    if runtimes.contains("ort-cuda") {
        let devices = cuda_devices();
        let asked = if accelerator.device.is_empty() { &[0][..] } else { &accelerator.device };
        let name = |i: &u32| format!("{i}: {}", devices.get(*i as usize).map_or("unknown", |d| &d.name));
        found.insert("cuda_devices".to_owned(), asked.iter().map(name).collect::<Vec<_>>().join(", "));
    }
    found
}

/// Loads the ONNX Runtime library named on the command line, or else the one that the search finds.
///
/// # Errors
/// If no library is found, or it cannot be loaded.
pub fn library(global: &Global) -> anyhow::Result<OrtRuntime> {
    let path = match &global.onnxruntime {
        Some(path) => path.clone(),
        None => find::Places::here().find()?,
    };
    Ok(OrtRuntime::load(&path)?)
}

/// Path of `file` as installed by `cargo xtask setup`, if it exists.
#[cfg(feature = "train")]
pub(crate) fn installed(file: &str) -> Option<PathBuf> {
    cache().map(|cache| cache.join(file)).filter(|p| p.exists())
}

/// Folder of the files that `cargo xtask setup` installs.
fn cache() -> Option<PathBuf> {
    crate::downloads::cache().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_ask_for_cuda() {
        let global = Global { quiet: true, onnxruntime: None, threads: None };
        let none = Accelerator::default();
        let one = Accelerator { device: vec![1], ..Accelerator::default() };
        let two = Accelerator { device: vec![0, 1], ..Accelerator::default() };
        let engine = |provider, a| Engine::new(provider, a, &global, Printer::new(true));
        assert_eq!(engine(ProviderArg::Auto, &one).unwrap().provider, ProviderArg::Cuda);
        assert_eq!(engine(ProviderArg::Auto, &none).unwrap().provider, ProviderArg::Auto);
        for provider in [ProviderArg::Cpu, ProviderArg::Winograd, ProviderArg::Tract] {
            assert!(engine(provider, &one).unwrap_err().to_string().contains("--device"));
        }
        assert_eq!(engine(ProviderArg::Cuda, &two).unwrap().workers, 2);
    }

    #[test]
    fn nodes_are_counted_by_operation() {
        let node = |op: &str| PlacedNode { provider: String::new(), name: String::new(), op: op.to_owned() };
        assert_eq!(tally(&[node("Shape"), node("Gather"), node("Gather")]), "3 nodes (2 Gather, 1 Shape)");
        assert_eq!(tally(&[node("Shape")]), "1 node (1 Shape)");
    }
}
