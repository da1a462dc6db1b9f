//! Options of commands that run graphs: providers, devices, runtimes.

use std::path::PathBuf;
use std::str::FromStr;

use clap::{Args, ValueEnum};

/// Where a graph runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ProviderArg {
    /// CUDA if available, else CPU, with `winograd` for feature extractors
    Auto,
    /// ONNX Runtime on CUDA
    Cuda,
    /// ONNX Runtime on the CPU
    Cpu,
    /// ONNX Runtime on the CPU with Winograd convolutions: faster, outputs differ by 1e-6 to 1e-5 (relative)
    Winograd,
    /// tract (pure Rust) on the CPU
    Tract,
}

/// Devices of a command that runs graphs.
#[derive(Debug, Clone, Default, Args)]
pub struct Accelerator {
    /// CUDA devices, e.g. `0` or `0,1`; batches alternate between devices, with bit-identical results on devices of one model. `--provider auto` then does
    /// not fall back to the CPU. With --ep-library, devices of that provider [default: 0]
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    pub device: Vec<u32>,
    /// Allow TF32 in f32 convolutions and matrix products on CUDA: faster, relative error about 1e-3; results name `ort-cuda-tf32`
    #[arg(long, conflicts_with = "ep_library")]
    pub tf32: bool,
    /// Let cuDNN benchmark its convolution algorithms on CUDA and use the fastest: faster for many images of a large f32 network, but takes seconds at
    /// startup, and the last bits may differ between runs
    #[arg(long, conflicts_with = "ep_library")]
    pub cudnn_benchmark: bool,
    /// Run on the plugin execution provider in this library (TensorRT RTX, OpenVINO, …), registered as NAME
    #[arg(long, value_name = "NAME=PATH")]
    pub ep_library: Option<EpLibrary>,
}

/// Runtimes `verify` can compare.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Runtime {
    /// ONNX Runtime, CPU
    OrtCpu,
    /// ONNX Runtime, CPU, Winograd convolutions
    OrtWinograd,
    /// ONNX Runtime, CUDA
    OrtCuda,
    /// ONNX Runtime, the provider of --ep-library
    OrtEp,
    /// tract, CPU
    Tract,
    /// libtorch, CPU: runs the checkpoint, not the graph
    Libtorch,
}

/// `NAME=PATH` of a plugin execution provider.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EpLibrary {
    /// Name to register it under.
    pub name: String,
    /// The library.
    pub path: PathBuf,
}

impl FromStr for EpLibrary {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once('=') {
            Some((name, path)) if !name.is_empty() && !path.is_empty() => {
                Ok(Self { name: name.to_owned(), path: path.into() })
            }
            _ => Err("expected NAME=PATH".to_owned()),
        }
    }
}
