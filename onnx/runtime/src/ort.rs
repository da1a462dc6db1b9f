//! ONNX Runtime, loaded at run time.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use d2o_files::Scratch;
use d2o_onnx::graph::ElementType;
use d2o_onnx::read::{ModelInfo, ValueInfo};
use ndarray::ArrayViewD;
use ort::device::Device;
use ort::environment::Environment;
use ort::ep::cuda::ConvAlgorithmSearch;
use ort::ep::{CUDA, ExecutionProvider as _};
use ort::logging::LogLevel;
use ort::memory::{AllocationDevice, AllocatorType, MemoryInfo, MemoryType};
use ort::session::builder::{GraphOptimizationLevel, SessionBuilder};
use ort::session::{IoBinding, Session as Inner, SessionInputValue};
use ort::value::{
    DynTensor, DynTensorValueType, PrimitiveTensorElementType, TensorElementType, TensorRef, TensorValueTypeMarker,
    Value,
};

use crate::cuda;
use crate::error::{Error, Result};
use crate::inputs::arrange;
use crate::winograd::Winograd;
use crate::{PlacedNode, Session, SessionValue, Tensor, TensorView, placement, winograd};

/// The oldest version of ONNX Runtime that can be loaded is 1.`OLDEST_MINOR`.
pub const OLDEST_MINOR: u32 = ort::MINOR_VERSION;

/// The library of ONNX Runtime, loaded once per process; clones are cheap.
#[derive(Clone)]
pub struct OrtRuntime {
    environment: Environment,
    library: PathBuf,
}

impl std::fmt::Debug for OrtRuntime {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("OrtRuntime").field("library", &self.library).finish_non_exhaustive()
    }
}

/// Registered libraries of plugin providers: name, path, and the indices of their devices in the environment.
static PLUGINS: Mutex<Vec<(String, PathBuf, Range<usize>)>> = Mutex::new(Vec::new());

/// Execution provider of ONNX Runtime, with its device.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Provider {
    /// The CPU.
    Cpu,
    /// The CPU, with convolutions by Winograd's algorithm (relative error 1e-6 to 1e-5). A model without candidates
    /// ([`ModelInfo::has_winograd_candidates`]) is opened as with `Cpu`.
    Winograd,
    /// A CUDA device.
    Cuda(CudaOptions),
    /// A device of a plugin execution provider, registered with [`OrtRuntime::register`].
    Plugin {
        /// Name under which the library of the provider was registered.
        library: String,
        /// Index of the device among the devices of the library.
        device: usize,
    },
}

/// Options of the CUDA provider.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct CudaOptions {
    /// Index of the device.
    pub device: u32,
    /// Whether products may be computed in TF32.
    pub tf32: bool,
    /// Whether cuDNN measures its convolution algorithms and uses the fastest. The choice, and thus the last bits of
    /// the results, may differ between runs.
    pub benchmark: bool,
}

impl CudaOptions {
    /// Options for the device with index `device`, with products in f32 and algorithms that cuDNN chooses by its
    /// heuristics.
    #[must_use]
    pub fn new(device: u32) -> Self {
        Self { device, tf32: false, benchmark: false }
    }
}

/// Options of a session.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct OrtOptions {
    /// Execution provider.
    pub provider: Provider,
    /// Number of CPU threads; `None` for one per core.
    pub threads: Option<usize>,
    /// Prefix of the path of the JSON file to which ONNX Runtime writes the time of each node; `None` for no profile.
    /// [`OrtSession::end_profile`] returns the whole path.
    pub profile: Option<PathBuf>,
}

impl OrtOptions {
    /// Options for `provider` and `threads` CPU threads, without a profile.
    #[must_use]
    pub fn new(provider: Provider, threads: Option<usize>) -> Self {
        Self { provider, threads, profile: None }
    }
}

/// Whether [`Provider::Winograd`] is faster than [`Provider::Cpu`] on this machine. With AVX2 and FMA it was measured
/// to be faster; without them it is assumed to be slower.
#[must_use]
pub fn winograd_is_faster() -> bool {
    #[cfg(target_arch = "x86_64")]
    return is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
    #[cfg(not(target_arch = "x86_64"))]
    false
}

impl OrtRuntime {
    /// Loads `library` (libonnxruntime). Later calls with the same path return the loaded library.
    ///
    /// # Errors
    /// `Library` if the file does not exist, is not ONNX Runtime 1.31 or newer, or another path was loaded before.
    pub fn load(library: &Path) -> Result<Self> {
        static LOADED: OnceLock<Mutex<Option<OrtRuntime>>> = OnceLock::new();
        let mut loaded = LOADED.get_or_init(Mutex::default).lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(runtime) = loaded.as_ref() {
            if runtime.library == library {
                return Ok(runtime.clone());
            }
            let expected = format!("`{}`, which this process has loaded", runtime.library.display());
            return Err(unusable(library, &expected, "another library", None));
        }
        const EXPECTED: &str = "an ONNX Runtime library";
        if !library.exists() {
            return Err(unusable(library, EXPECTED, "no such file", None));
        }
        let failed = |e: Source| unusable(library, EXPECTED, "a file that cannot be loaded", Some(e));
        let builder = ort::init_from(library).map_err(|e| failed(e.into()))?;
        // Microsoft's builds contain telemetry of graphs, errors and times. ort enables it by default.
        let environment = builder.with_telemetry(false).build().map_err(|e| failed(e.into()))?;
        let runtime = Self { environment, library: library.to_owned() };
        *loaded = Some(runtime.clone());
        Ok(runtime)
    }

    /// Path of the library.
    #[must_use]
    pub fn library(&self) -> &Path {
        &self.library
    }

    /// Whether the library has the CUDA provider.
    #[must_use]
    pub fn has_cuda(&self) -> bool {
        CUDA::is_available().unwrap_or(false)
    }

    /// Version and build of the library, as it reports them.
    #[must_use]
    pub fn build(&self) -> &'static str {
        ort::info()
    }

    /// Registers the library of a plugin execution provider at `path` as `name`. Later calls in the process with the
    /// same name and path do nothing.
    ///
    /// # Errors
    /// `Library` if the library cannot be loaded, supports no device of this machine, or another library is registered
    /// as `name`. `Io` if a relative `path` cannot be resolved.
    pub fn register(&self, name: &str, path: &Path) -> Result<()> {
        const EXPECTED: &str = "an execution provider library";
        let mut plugins = PLUGINS.lock().unwrap_or_else(PoisonError::into_inner);
        match plugins.iter().find(|(n, _, _)| n == name) {
            Some((_, other, own)) if other == path => return supports_a_device(path, own),
            Some((_, other, _)) => {
                let expected = format!("`{}`, which is registered as `{name}`", other.display());
                return Err(unusable(path, &expected, "another library", None));
            }
            None => {}
        }
        if !path.exists() {
            return Err(unusable(path, EXPECTED, "no such file", None));
        }
        // ONNX Runtime resolves a relative path against its own library.
        let absolute = std::path::absolute(path)?;
        let before = self.environment.devices().count();
        self.environment
            .register_ep_library(name, &absolute)
            .map_err(|e| unusable(path, EXPECTED, "a file that cannot be registered", Some(e.into())))?;
        let own = before..self.environment.devices().count();
        let supported = supports_a_device(path, &own);
        // ONNX Runtime keeps the library in either case.
        plugins.push((name.to_owned(), path.to_owned(), own));
        supported
    }

    /// Device `number` of the library registered as `name`.
    fn plugin_device(&self, name: &str, number: usize) -> Result<Device<'_>> {
        let plugins = PLUGINS.lock().unwrap_or_else(PoisonError::into_inner);
        let own = plugins.iter().find(|(n, _, _)| n == name).map(|(_, _, own)| own.clone()).unwrap_or_default();
        let count = own.len();
        let device = own.into_iter().nth(number).and_then(|i| self.environment.devices().nth(i));
        device.ok_or_else(|| {
            unusable(name.as_ref(), &format!("a provider with device {number}"), &format!("{count} devices"), None)
        })
    }

    /// Opens `model`.
    ///
    /// # Errors
    /// `Model` if the file is not a valid model or is refused. `Library` if the provider or its device is missing or
    /// cannot be used. `Runtime` if ONNX Runtime cannot open the model. `Io` if a temporary folder cannot be created.
    pub fn session(&self, model: &Path, options: &OrtOptions) -> Result<OrtSession> {
        let info = ModelInfo::open(model)?;
        let provider = match &options.provider {
            Provider::Winograd if !info.has_winograd_candidates => Provider::Cpu,
            provider => provider.clone(),
        };
        let name = self.name_of(&provider)?;
        let refused = |e: ort::Error| failed(&name, format!("open `{}`", model.display()), e);
        let configured = || -> ort::Result<SessionBuilder> {
            let threads =
                options.threads.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from));
            let mut builder = Inner::builder(&self.environment)?
                // Errors are returned. At lower levels, ONNX Runtime would also print them.
                .with_log_level(LogLevel::Fatal)?
                .with_optimization_level(GraphOptimizationLevel::All)?
                .with_intra_threads(threads)?
                .with_config_entry(placement::RECORD, "1")?;
            if let Some(prefix) = &options.profile {
                builder = builder.with_profiling(prefix)?;
            }
            Ok(builder)
        };
        let builder = self.on(configured().map_err(refused)?, &provider)?;
        let inner = if provider == Provider::Winograd {
            let (rewritten, operator) = self.rewritten(model, &refused)?;
            let domain = operator.into_domain().map_err(refused)?;
            builder.with_operators(domain).map_err(|e| refused(e.into()))?.commit_from_memory(&rewritten)
        } else {
            { builder }.commit_from_file(model)
        };
        let inner = inner.map_err(refused)?;
        Ok(OrtSession { name: name.into(), info, inner, provider })
    }

    /// [`Session::runtime`] of a session on `provider`.
    fn name_of(&self, provider: &Provider) -> Result<String> {
        Ok(match provider {
            Provider::Cpu => "ort-cpu".to_owned(),
            Provider::Winograd => "ort-winograd".to_owned(),
            Provider::Cuda(cuda) => if cuda.tf32 { "ort-cuda-tf32" } else { "ort-cuda" }.to_owned(),
            Provider::Plugin { library, device } => {
                let device = self.plugin_device(library, *device)?;
                let provider = device.ep().unwrap_or(library);
                format!("ort-{provider}-{:?}", device.hardware_device().ty())
            }
        })
    }

    /// Adds `provider` to `builder`. ONNX Runtime assigns nodes that it does not support to the CPU provider.
    fn on(&self, builder: SessionBuilder, provider: &Provider) -> Result<SessionBuilder> {
        match provider {
            Provider::Cpu | Provider::Winograd => Ok(builder),
            Provider::Cuda(CudaOptions { device, tf32, benchmark }) => {
                if !self.has_cuda() {
                    let expected = "a GPU build of ONNX Runtime (onnxruntime-gpu)";
                    return Err(unusable(&self.library, expected, "one without the CUDA provider", None));
                }
                cuda::preload(&self.library);
                let search = if *benchmark { ConvAlgorithmSearch::Exhaustive } else { ConvAlgorithmSearch::Heuristic };
                let cuda = CUDA::default()
                    .with_device_id(device.cast_signed())
                    .with_tf32(*tf32)
                    .with_conv_algorithm_search(search)
                    .build()
                    .error_on_failure();
                let configured = || -> ort::Result<SessionBuilder> {
                    Ok(builder.with_deterministic_compute(!benchmark)?.with_execution_providers([cuda])?)
                };
                let found = || format!("CUDA device {device} that cannot be used");
                configured().map_err(|e| unusable(&self.library, "a usable CUDA device", &found(), Some(e.into())))
            }
            Provider::Plugin { library, device: number } => {
                let device = self.plugin_device(library, *number)?;
                builder.with_devices([device], None).map_err(|e| {
                    let (expected, found) = ("a usable device", format!("device {number} that cannot be used"));
                    unusable(library.as_ref(), expected, &found, Some(<ort::Error>::from(e).into()))
                })
            }
        }
    }

    /// Optimises `model` with ONNX Runtime and replaces eligible convolutions by the operator of [`winograd`].
    fn rewritten(&self, model: &Path, refused: &dyn Fn(ort::Error) -> Error) -> Result<(Vec<u8>, Winograd)> {
        let quiet = || -> ort::Result<SessionBuilder> {
            Ok(Inner::builder(&self.environment)?.with_intra_threads(1)?.with_log_level(LogLevel::Error)?)
        };
        let block = winograd::block(|bytes| quiet()?.commit_from_memory(bytes)).map_err(refused)?;
        let folder = Scratch::new()?;
        let optimised = folder.path().join("graph.onnx");
        let optimise = || -> ort::Result<Inner> {
            let builder = quiet()?.with_optimization_level(GraphOptimizationLevel::All)?;
            builder.with_optimized_model_path(&optimised)?.commit_from_file(model)
        };
        drop(optimise().map_err(refused)?);
        Ok(winograd::rewritten(&optimised, block)?)
    }
}

/// A model on ONNX Runtime.
#[derive(Debug)]
pub struct OrtSession {
    name: Arc<str>,
    info: ModelInfo,
    inner: Inner,
    provider: Provider,
}

/// A tensor in memory that ONNX Runtime owns, on a device or on the host.
#[derive(Debug)]
pub struct OrtTensor {
    runtime: Arc<str>,
    value: DynTensor,
    pub(crate) element: ElementType,
    pub(crate) dims: Vec<usize>,
}

impl OrtTensor {
    fn new(runtime: &Arc<str>, value: Value) -> ort::Result<Self> {
        let value = value.downcast::<DynTensorValueType>()?;
        let element = match value.data_type() {
            TensorElementType::Float32 => ElementType::F32,
            TensorElementType::Uint8 => ElementType::U8,
            TensorElementType::Int64 => ElementType::I64,
            other => return Err(unsupported(&other.to_string())),
        };
        let dims = value.shape().iter().map(|d| usize::try_from(*d).unwrap_or(0)).collect();
        Ok(Self { runtime: Arc::clone(runtime), value, element, dims })
    }

    pub(crate) fn to_host(&self) -> Result<Tensor> {
        let copied = || {
            if self.value.memory_info().is_cpu_accessible() {
                return from_value(&self.value);
            }
            from_value(&self.value.to(AllocationDevice::CPU, 0)?.into_dyn())
        };
        copied().map_err(|e: ort::Error| failed(&self.runtime, "copy a tensor to the host", e))
    }
}

fn failed(runtime: &str, action: impl Into<String>, error: ort::Error) -> Error {
    Error::Runtime { runtime: runtime.to_owned(), action: action.into(), source: error.into() }
}

fn unsupported(found: &str) -> ort::Error {
    ort::Error::new(format!("expected a tensor of f32, u8 or i64, found {found}"))
}

type Source = Box<dyn std::error::Error + Send + Sync>;

/// Checks that the plugin library at `path` found a device.
fn supports_a_device(path: &Path, devices: &Range<usize>) -> Result<()> {
    if devices.is_empty() {
        return Err(unusable(path, "a provider for a device of this machine", "one that supports none", None));
    }
    Ok(())
}

fn unusable(library: &Path, expected: &str, found: &str, source: Option<Source>) -> Error {
    Error::Library { library: library.to_owned(), expected: expected.to_owned(), found: found.to_owned(), source }
}

impl OrtSession {
    /// Binds `inputs`, the outputs in `keep` to memory of the CUDA device, and all other outputs to host memory.
    fn bind(&self, inputs: &[&&SessionValue], keep: &[&str]) -> ort::Result<IoBinding> {
        let memory = |device, id, memory| MemoryInfo::new(device, id, AllocatorType::Device, memory);
        let host = memory(AllocationDevice::CPU, 0, MemoryType::CPUOutput)?;
        let own = match &self.provider {
            Provider::Cuda(cuda) => {
                Some(memory(AllocationDevice::CUDA, cuda.device.cast_signed(), MemoryType::Default)?)
            }
            Provider::Cpu | Provider::Winograd | Provider::Plugin { .. } => None,
        };
        let mut binding = self.inner.create_binding()?;
        for (input, value) in self.info.inputs.iter().zip(inputs) {
            match value {
                SessionValue::Host(tensor) => binding.bind_input(&input.name, &owned(tensor)?)?,
                SessionValue::Ort(tensor) => binding.bind_input(&input.name, &tensor.value)?,
            }
        }
        for output in &self.info.outputs {
            let stays = keep.contains(&output.name.as_str());
            let memory = own.as_ref().filter(|_| stays).unwrap_or(&host);
            binding.bind_output_to_device(&output.name, memory)?;
        }
        Ok(binding)
    }

    /// Ends the profile of a session that was opened with one, and returns the path of ONNX Runtime's JSON file.
    ///
    /// # Errors
    /// `Runtime` if ONNX Runtime fails, or the session has no profile.
    pub fn end_profile(&mut self) -> Result<PathBuf> {
        let name = &self.name;
        self.inner.end_profiling().map(PathBuf::from).map_err(|e| failed(name, "end the profile", e))
    }

    /// All nodes with their execution providers, before fusions inside a provider. With [`Provider::Winograd`], these
    /// are the nodes of the rewritten graph.
    ///
    /// # Errors
    /// `Runtime` if ONNX Runtime does not report them.
    pub fn nodes(&self) -> Result<Vec<PlacedNode>> {
        placement::nodes(&self.inner).map_err(|e| failed(&self.name, "list the nodes of each provider", e))
    }
}

impl Session for OrtSession {
    fn runtime(&self) -> &str {
        &self.name
    }

    fn model(&self) -> &ModelInfo {
        &self.info
    }

    fn left_to_cpu(&self) -> Result<Vec<PlacedNode>> {
        if matches!(self.provider, Provider::Cpu | Provider::Winograd) {
            return Ok(Vec::new());
        }
        let mut nodes = self.nodes()?;
        nodes.retain(|n| n.provider == placement::CPU);
        Ok(nodes)
    }

    fn run(&mut self, inputs: &[(&str, TensorView<'_>)]) -> Result<Vec<Tensor>> {
        let name = &self.name;
        let refused = |e: ort::Error| failed(name, "run", e);
        let arranged = arrange(&self.info, inputs, |view| (view.element(), view.dims()))?;
        let values = arranged.into_iter().map(to_value).collect::<ort::Result<Vec<_>>>().map_err(refused)?;
        let outputs = self.inner.run(values.as_slice()).map_err(refused)?;
        let all = outputs.iter();
        all.map(|(o, value)| from_value(&value).map_err(|e| failed(name, format!("read output `{o}`"), e))).collect()
    }

    fn run_resident(&mut self, inputs: &[(&str, &SessionValue)], keep: &[&str]) -> Result<Vec<SessionValue>> {
        let arranged = arrange(&self.info, inputs, |value| (value.element(), value.dims()))?;
        let name = &self.name;
        let refused = |e: ort::Error| failed(name, "run", e);
        let binding = self.bind(&arranged, keep).map_err(refused)?;
        let mut outputs = self.inner.run_binding(&binding).map_err(refused)?;
        binding.synchronize_outputs().map_err(refused)?;
        let mut read = |output: &ValueInfo| {
            let value = outputs.remove(&output.name).ok_or_else(|| ort::Error::new("it is missing"))?;
            if keep.contains(&output.name.as_str()) {
                return OrtTensor::new(name, value).map(SessionValue::Ort);
            }
            from_value(&value).map(SessionValue::Host)
        };
        let all = self.info.outputs.iter();
        all.map(|o| read(o).map_err(|e| failed(name, format!("read output `{}`", o.name), e))).collect()
    }
}

fn to_value<'a>(view: &TensorView<'a>) -> ort::Result<SessionInputValue<'a>> {
    match view {
        TensorView::F32(a) => lend(a),
        TensorView::U8(a) => lend(a),
        TensorView::I64(a) => lend(a),
    }
}

/// A copy of `tensor` that ONNX Runtime owns. A binding copies borrowed values, and in ort 2.0.0-rc.15 this copy
/// deadlocks.
fn owned(tensor: &Tensor) -> ort::Result<Value> {
    Ok(match tensor {
        Tensor::F32(a) => Value::from_array(a.as_standard_layout().into_owned())?.into_dyn(),
        Tensor::U8(a) => Value::from_array(a.as_standard_layout().into_owned())?.into_dyn(),
        Tensor::I64(a) => Value::from_array(a.as_standard_layout().into_owned())?.into_dyn(),
    })
}

/// `view` as an input. It is copied only if it is not in C order.
fn lend<'a, T: PrimitiveTensorElementType + Clone + std::fmt::Debug + 'static>(
    view: &ArrayViewD<'a, T>,
) -> ort::Result<SessionInputValue<'a>> {
    if view.is_standard_layout() {
        return Ok(TensorRef::from_array_view(view.clone())?.into());
    }
    Ok(Value::from_array(view.as_standard_layout().into_owned())?.into())
}

fn from_value<K: TensorValueTypeMarker + ?Sized>(value: &Value<K>) -> ort::Result<Tensor> {
    match value.dtype().tensor_type() {
        Some(TensorElementType::Uint8) => Ok(value.try_extract_array::<u8>()?.to_owned().into()),
        Some(TensorElementType::Int64) => Ok(value.try_extract_array::<i64>()?.to_owned().into()),
        Some(TensorElementType::Float32) => Ok(value.try_extract_array::<f32>()?.to_owned().into()),
        other => Err(unsupported(&other.map_or_else(|| "another value".to_owned(), |t| t.to_string()))),
    }
}
