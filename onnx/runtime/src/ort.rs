//! ONNX Runtime, loaded when it is needed.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock, PoisonError};

use d2o_onnx::graph::ElementType;
use d2o_onnx::read::ModelInfo;
use ndarray::ArrayD;
use ort::device::Device;
use ort::environment::Environment;
use ort::ep::cuda::ConvAlgorithmSearch;
use ort::ep::{CUDA, ExecutionProvider as _};
use ort::logging::LogLevel;
use ort::memory::{AllocationDevice, AllocatorType, MemoryInfo, MemoryType};
use ort::session::builder::{GraphOptimizationLevel, SessionBuilder};
use ort::session::{Session as Inner, SessionInputValue};
use ort::value::{
    DynTensor, DynTensorValueType, PrimitiveTensorElementType, TensorElementType, TensorRef, TensorValueTypeMarker,
    Value,
};

use crate::error::{Error, Result};
use crate::winograd::Winograd;
use crate::{PlacedNode, Provider, Resident, Session, Tensor, arrange, placement, winograd};

/// The library, loaded once for the process.
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

/// Libraries of plugin providers that are registered: name, path, and which of the environment's devices are theirs.
static PLUGINS: Mutex<Vec<(String, PathBuf, Range<usize>)>> = Mutex::new(Vec::new());

/// How a session runs.
#[derive(Debug, Clone)]
pub struct OrtOptions {
    /// Where it computes.
    pub provider: Provider,
    /// CPU threads; `None` for as many as there are cores.
    pub threads: Option<usize>,
}

/// Whether [`Provider::Winograd`] is faster here than [`Provider::Cpu`]: it is where there is AVX2, and has not been measured elsewhere.
#[must_use]
pub fn minimal_filtering_pays() -> bool {
    #[cfg(target_arch = "x86_64")]
    return is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
    #[cfg(not(target_arch = "x86_64"))]
    false
}

impl OrtRuntime {
    /// Loads `library` (libonnxruntime). A second call must name the same one.
    ///
    /// # Errors
    /// `Library` if it is missing, no ONNX Runtime, too old, or another one is loaded already.
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
        let environment = builder.build().map_err(|e| failed(e.into()))?;
        let runtime = Self { environment, library: library.to_owned() };
        *loaded = Some(runtime.clone());
        Ok(runtime)
    }

    /// Whether the library has the CUDA provider.
    #[must_use]
    pub fn has_cuda(&self) -> bool {
        CUDA::is_available().unwrap_or(false)
    }

    /// Version and build of the library, in its own words.
    #[must_use]
    pub fn build(&self) -> &'static str {
        ort::info()
    }

    /// Registers the plugin execution provider in `path` as `name`, once for the process.
    ///
    /// # Errors
    /// `Library` if it cannot be loaded, supports no device of this machine, or another library has the name.
    pub fn register(&self, name: &str, path: &Path) -> Result<()> {
        const EXPECTED: &str = "an execution provider's library";
        let mut plugins = PLUGINS.lock().unwrap_or_else(PoisonError::into_inner);
        match plugins.iter().find(|(n, _, _)| n == name) {
            Some((_, other, _)) if other == path => return Ok(()),
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
        if own.is_empty() {
            return Err(unusable(path, "a provider for a device of this machine", "one that supports none", None));
        }
        plugins.push((name.to_owned(), path.to_owned(), own));
        Ok(())
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
    /// `Format` if it is not a model; `Library` if the provider is missing; `Runtime` if ONNX Runtime refuses the model.
    pub fn session(&self, model: &Path, options: &OrtOptions) -> Result<OrtSession> {
        self.open(model, options, None)
    }

    /// As [`OrtRuntime::session`], timing every node until [`OrtSession::end_profile`]; `prefix` begins the name of ONNX Runtime's JSON file.
    ///
    /// # Errors
    /// Those of [`OrtRuntime::session`].
    pub fn profiled(&self, model: &Path, options: &OrtOptions, prefix: &Path) -> Result<OrtSession> {
        self.open(model, options, Some(prefix))
    }

    fn open(&self, model: &Path, options: &OrtOptions, profile: Option<&Path>) -> Result<OrtSession> {
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
                .with_optimization_level(GraphOptimizationLevel::All)?
                .with_intra_threads(threads)?
                .with_config_entry(placement::RECORD, "1")?;
            if let Some(prefix) = profile {
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
        Ok(OrtSession { name, info, inner, provider })
    }

    /// What a session on `provider` calls its runtime.
    fn name_of(&self, provider: &Provider) -> Result<String> {
        Ok(match provider {
            Provider::Cpu => "ort-cpu".to_owned(),
            Provider::Winograd => "ort-winograd".to_owned(),
            Provider::Cuda { tf32: false, .. } => "ort-cuda".to_owned(),
            Provider::Cuda { tf32: true, .. } => "ort-cuda-tf32".to_owned(),
            Provider::Plugin { library, device } => {
                let device = self.plugin_device(library, *device)?;
                let provider = device.ep().unwrap_or(library);
                format!("ort-{provider}-{:?}", device.hardware_device().ty())
            }
        })
    }

    /// `builder` for sessions on `provider`, which computes what it can and leaves the rest to the CPU provider.
    fn on(&self, builder: SessionBuilder, provider: &Provider) -> Result<SessionBuilder> {
        match provider {
            Provider::Cpu | Provider::Winograd => Ok(builder),
            Provider::Cuda { device, tf32, benchmark } => {
                if !self.has_cuda() {
                    let expected = "a GPU build of ONNX Runtime (onnxruntime-gpu)";
                    return Err(unusable(&self.library, expected, "one without the CUDA provider", None));
                }
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

    /// `model` as ONNX Runtime optimises it, with [`winograd`]'s operator in place of convolutions.
    fn rewritten(&self, model: &Path, refused: &dyn Fn(ort::Error) -> Error) -> Result<(Vec<u8>, Winograd)> {
        let quiet = || -> ort::Result<SessionBuilder> {
            Ok(Inner::builder(&self.environment)?.with_intra_threads(1)?.with_log_level(LogLevel::Error)?)
        };
        let block = winograd::block(|bytes| quiet()?.commit_from_memory(bytes)).map_err(refused)?;
        let folder = tempfile::Builder::new().prefix("d2o-optimised-").tempdir()?;
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
    name: String,
    info: ModelInfo,
    inner: Inner,
    provider: Provider,
}

/// A tensor in the memory of the device where a session computes.
#[derive(Debug)]
pub struct Bound {
    runtime: String,
    value: DynTensor,
    pub(super) element: ElementType,
    pub(super) dims: Vec<usize>,
}

impl Bound {
    fn new(runtime: &str, value: Value) -> ort::Result<Self> {
        let value = value.downcast::<DynTensorValueType>()?;
        let element = match value.data_type() {
            TensorElementType::Float32 => ElementType::F32,
            TensorElementType::Uint8 => ElementType::U8,
            TensorElementType::Int64 => ElementType::I64,
            other => return Err(ort::Error::new(format!("an output of {other}"))),
        };
        let dims = value.shape().iter().map(|d| usize::try_from(*d).unwrap_or(0)).collect();
        Ok(Self { runtime: runtime.to_owned(), value, element, dims })
    }

    pub(super) fn to_host(&self) -> Result<Tensor> {
        let copied = || {
            if self.value.memory_info().is_cpu_accessible() {
                return from_value(&self.value);
            }
            from_value(&self.value.to(AllocationDevice::CPU, 0)?.into_dyn())
        };
        copied().map_err(|e: ort::Error| failed(&self.runtime, "copy a tensor from the device", e))
    }
}

fn failed(runtime: &str, action: impl Into<String>, error: ort::Error) -> Error {
    Error::Runtime { runtime: runtime.to_owned(), action: action.into(), source: error.into() }
}

type Source = Box<dyn std::error::Error + Send + Sync>;

fn unusable(library: &Path, expected: &str, found: &str, source: Option<Source>) -> Error {
    Error::Library { library: library.to_owned(), expected: expected.to_owned(), found: found.to_owned(), source }
}

impl OrtSession {
    fn bind_and_run(&mut self, inputs: &[&&Resident], keep: &[&str]) -> ort::Result<Vec<(String, Resident)>> {
        let memory = |device, id, memory| MemoryInfo::new(device, id, AllocatorType::Device, memory);
        let host = memory(AllocationDevice::CPU, 0, MemoryType::CPUOutput)?;
        let own = match self.provider {
            Provider::Cuda { device, .. } => {
                Some(memory(AllocationDevice::CUDA, device.cast_signed(), MemoryType::Default)?)
            }
            Provider::Cpu | Provider::Winograd | Provider::Plugin { .. } => None,
        };
        let mut binding = self.inner.create_binding()?;
        for (input, value) in self.info.inputs.iter().zip(inputs) {
            match value {
                Resident::Host(tensor) => binding.bind_input(&input.name, &owned(tensor)?)?,
                Resident::Ort(bound) => binding.bind_input(&input.name, &bound.value)?,
            }
        }
        for output in &self.info.outputs {
            let stays = keep.contains(&output.name.as_str());
            let memory = own.as_ref().filter(|_| stays).unwrap_or(&host);
            binding.bind_output_to_device(&output.name, memory)?;
        }
        let mut outputs = self.inner.run_binding(&binding)?;
        binding.synchronize_outputs()?;
        let mut found = Vec::new();
        for output in &self.info.outputs {
            let name = output.name.clone();
            let value = outputs.remove(&name).ok_or_else(|| ort::Error::new(format!("no output `{name}`")))?;
            let stays = keep.contains(&name.as_str());
            let value = if stays {
                Bound::new(&self.name, value).map(Resident::Ort)
            } else {
                from_value(&value).map(Resident::Host)
            };
            let value = value.map_err(|e| ort::Error::new(format!("output `{name}`: {e}")))?;
            found.push((name, value));
        }
        Ok(found)
    }

    /// Ends the timing of a profiled session and gives the path of ONNX Runtime's JSON file.
    ///
    /// # Errors
    /// `Runtime`, also if the session is not profiled.
    pub fn end_profile(&mut self) -> Result<PathBuf> {
        let name = &self.name;
        self.inner.end_profiling().map(PathBuf::from).map_err(|e| failed(name, "end the profile", e))
    }

    /// Every node of the graph, as ONNX Runtime gave them to providers. Under minimal filtering those of the rewritten graph.
    ///
    /// # Errors
    /// `Runtime` if ONNX Runtime does not tell.
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

    fn run(&mut self, inputs: &[(&str, Tensor)]) -> Result<Vec<(String, Tensor)>> {
        let name = &self.name;
        let refused = |e: ort::Error| failed(name, "run", e);
        let arranged = arrange(&self.info, inputs)?;
        let values = arranged.into_iter().map(to_value).collect::<ort::Result<Vec<_>>>().map_err(refused)?;
        let outputs = self.inner.run(values.as_slice()).map_err(refused)?;
        let mut read = Vec::with_capacity(outputs.len());
        for (output, value) in &outputs {
            let tensor = from_value(&value).map_err(|e| failed(name, format!("read output `{output}`"), e))?;
            read.push((output.to_owned(), tensor));
        }
        Ok(read)
    }

    fn run_resident(&mut self, inputs: &[(&str, &Resident)], keep: &[&str]) -> Result<Vec<(String, Resident)>> {
        let arranged = arrange(&self.info, inputs)?;
        self.bind_and_run(&arranged, keep).map_err(|e| failed(&self.name, "run", e))
    }
}

fn to_value(tensor: &Tensor) -> ort::Result<SessionInputValue<'_>> {
    match tensor {
        Tensor::F32(a) => lend(a),
        Tensor::U8(a) => lend(a),
        Tensor::I64(a) => lend(a),
    }
}

/// A copy of `tensor` in memory of its own. A binding copies what is only lent, and in ort 2.0.0-rc.15 that copy waits for itself.
fn owned(tensor: &Tensor) -> ort::Result<Value> {
    Ok(match tensor {
        Tensor::F32(a) => Value::from_array(a.as_standard_layout().into_owned())?.into_dyn(),
        Tensor::U8(a) => Value::from_array(a.as_standard_layout().into_owned())?.into_dyn(),
        Tensor::I64(a) => Value::from_array(a.as_standard_layout().into_owned())?.into_dyn(),
    })
}

/// `array` as it lies in memory, or a copy where it is not in C order.
fn lend<T: PrimitiveTensorElementType + Clone + std::fmt::Debug + 'static>(
    array: &ArrayD<T>,
) -> ort::Result<SessionInputValue<'_>> {
    if array.is_standard_layout() {
        return Ok(TensorRef::from_array_view(array.view())?.into());
    }
    Ok(Value::from_array(array.as_standard_layout().into_owned())?.into())
}

fn from_value<K: TensorValueTypeMarker + ?Sized>(value: &Value<K>) -> ort::Result<Tensor> {
    match value.dtype().tensor_type() {
        Some(TensorElementType::Uint8) => Ok(Tensor::U8(value.try_extract_array::<u8>()?.to_owned())),
        Some(TensorElementType::Int64) => Ok(Tensor::I64(value.try_extract_array::<i64>()?.to_owned())),
        Some(TensorElementType::Float32) => Ok(Tensor::F32(value.try_extract_array::<f32>()?.to_owned())),
        other => {
            let found = other.map_or_else(|| "no tensor".to_owned(), |t| t.to_string());
            Err(ort::Error::new(format!("expected f32, u8 or i64, found {found}")))
        }
    }
}
