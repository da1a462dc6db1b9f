//! Options of commands that run graphs: providers, devices, runtimes.

use std::path::PathBuf;
use std::str::FromStr;

use clap::{Args, ValueEnum};

/// Where a graph runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ProviderArg {
    /// ONNX Runtime on CUDA if it is there, else on the CPU, feature networks as `winograd`
    Auto,
    /// ONNX Runtime on CUDA
    Cuda,
    /// ONNX Runtime on the CPU
    Cpu,
    /// The same, with convolutions by Winograd's minimal filtering: faster, and rounded otherwise, by 1e-6 to 1e-5 of the outputs' size
    Winograd,
    /// tract (pure Rust) on the CPU
    Tract,
}

/// Devices of a command that runs graphs.
#[derive(Debug, Clone, Default, Args)]
pub struct Accelerator {
    /// CUDA devices by number, e.g. `0` or `0,1`; batches take turns on several, and results are the same bit for bit on devices of one model. Asks for
    /// CUDA: `--provider auto` does not fall back to the CPU. With --ep-library, devices of that provider [default: 0]
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    pub device: Vec<u32>,
    /// Let CUDA round the operands of f32 convolutions and products to TF32's 10 bits: faster, off by about 1e-3; results name `ort-cuda-tf32`
    #[arg(long, conflicts_with = "ep_library")]
    pub tf32: bool,
    /// Run on the execution provider in this library (TensorRT RTX, OpenVINO, …), registered as NAME
    #[arg(long, value_name = "NAME=PATH")]
    pub ep_library: Option<EpLibrary>,
}

/// Runtimes `verify` can compare.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Runtime {
    /// ONNX Runtime, CPU
    OrtCpu,
    /// ONNX Runtime, CPU, with convolutions by Winograd's minimal filtering
    OrtWinograd,
    /// ONNX Runtime, CUDA
    OrtCuda,
    /// ONNX Runtime, the provider of --ep-library
    OrtEp,
    /// tract, CPU
    Tract,
    /// libtorch, CPU: the checkpoint's network instead of the graph
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
            _ => Err("write NAME=PATH".to_owned()),
        }
    }
}
