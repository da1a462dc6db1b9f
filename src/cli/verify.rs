//! Options of `d2o verify`.

use std::path::PathBuf;

use clap::Args;

use super::{Accelerator, ResultOutput, Runtime};

/// `d2o verify`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  d2o verify one-step.onnx --runtimes ort-cpu,tract --samples 64\n  \
    d2o verify one-step.onnx --runtimes libtorch,ort-cpu --checkpoint snapshot.safetensors\n  \
    d2o verify good.onnx --against changed.onnx --bisect --dump divergence.npz\n  \
    d2o verify one-step.onnx --precisions --fp16 one-step-fp16.onnx --samples 64")]
pub struct Verify {
    /// Graph exported by d2o
    #[arg(value_name = "X.onnx")]
    pub model: PathBuf,
    /// Runtimes to compare; the first is the reference [default: ort-cpu,tract; with --against ort-cpu]
    #[arg(long, value_delimiter = ',', value_enum)]
    pub runtimes: Vec<Runtime>,
    /// Devices
    #[command(flatten)]
    pub accelerator: Accelerator,
    /// Second graph, run on each runtime and compared with the first graph on the first runtime
    #[arg(long, value_name = "Y.onnx")]
    pub against: Option<PathBuf>,
    /// Checkpoint the graph was exported from, for the runtime libtorch
    #[arg(long, value_name = "SRC")]
    pub checkpoint: Option<PathBuf>,
    /// Number of inputs, generated from seeds 0, 1, …
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=65536))]
    pub samples: u32,
    /// Batch size
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=65536))]
    pub batch: u32,
    /// Largest accepted difference, relative to the largest output
    #[arg(long, value_name = "REL", default_value_t = 2e-5)]
    pub tolerance: f64,
    /// Find the first diverging node: the first whose output differs by more than the tolerance
    #[arg(long)]
    pub bisect: bool,
    /// Write the tensors of that node: `expected`, `found`, and its inputs on the reference runtime, `input0`, …
    #[arg(long, value_name = "D.npz", requires = "bisect")]
    pub dump: Option<PathBuf>,
    /// Feature extractor; also compare the generated images by Fréchet distance
    #[arg(long, value_name = "F.onnx")]
    pub extractor: Option<PathBuf>,
    /// Reference of the Fréchet distance [default: images of the first runtime]
    #[arg(long = "ref", value_name = "R.npz", requires = "extractor")]
    pub reference: Option<PathBuf>,
    /// Also list nodes per execution provider and operator, and the slowest nodes, for the last ONNX Runtime of --runtimes
    #[arg(long)]
    pub profile: bool,
    /// Compare precisions instead of runtimes: fp32, TF32, fp16, bf16, as far as the machine supports them
    #[arg(long, conflicts_with_all = ["runtimes", "against", "bisect", "profile"])]
    pub precisions: bool,
    /// The same graph exported in fp16, for --precisions
    #[arg(long, value_name = "X16.onnx", requires = "precisions")]
    pub fp16: Option<PathBuf>,
    /// Form of the result
    #[command(flatten)]
    pub result: ResultOutput,
}
