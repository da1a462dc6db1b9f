//! Options of `d2o verify`.

use std::path::PathBuf;

use clap::Args;

use super::{Accelerator, Runtime};

/// `d2o verify`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  d2o verify one-step.onnx --runtimes ort-cpu,tract --samples 64\n  \
    d2o verify one-step.onnx --runtimes libtorch,ort-cpu --checkpoint snapshot.safetensors\n  \
    d2o verify good.onnx --against changed.onnx --bisect --dump divergence.npz\n  \
    d2o verify one-step.onnx --precisions --fp16 one-step-fp16.onnx --samples 64")]
pub struct Verify {
    /// Any graph d2o exported
    #[arg(value_name = "X.onnx")]
    pub model: PathBuf,
    /// Runtimes; the first is compared with each other one [default: ort-cpu,tract; with --against ort-cpu]
    #[arg(long, value_delimiter = ',', value_enum)]
    pub runtimes: Vec<Runtime>,
    /// Which devices
    #[command(flatten)]
    pub accelerator: Accelerator,
    /// Compare the graph, on the first runtime, with this one on each runtime
    #[arg(long, value_name = "Y.onnx")]
    pub against: Option<PathBuf>,
    /// The checkpoint the graph was exported from, which libtorch runs
    #[arg(long, value_name = "SRC")]
    pub checkpoint: Option<PathBuf>,
    /// Number of inputs, drawn from seeds 0, 1, …
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=65536))]
    pub samples: u32,
    /// Inputs in a batch
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=65536))]
    pub batch: u32,
    /// Largest difference allowed, relative to the largest output
    #[arg(long, value_name = "REL", default_value_t = 2e-5)]
    pub tolerance: f64,
    /// Name the first node whose output differs by more than the tolerance
    #[arg(long)]
    pub bisect: bool,
    /// Write that node's tensors: `expected`, `found`, and its inputs in the reference, `input0`, …
    #[arg(long, value_name = "D.npz", requires = "bisect")]
    pub dump: Option<PathBuf>,
    /// Also compare images by the Fréchet distance of this feature network
    #[arg(long, value_name = "F.onnx")]
    pub extractor: Option<PathBuf>,
    /// Reference for that distance [default: the first runtime's images]
    #[arg(long = "ref", value_name = "R.npz", requires = "extractor")]
    pub reference: Option<PathBuf>,
    /// Also list, for the last of the runtimes that is ONNX Runtime, which provider computes how many nodes of each operation, and the nodes that
    /// take the most time
    #[arg(long)]
    pub profile: bool,
    /// Compare precisions instead of runtimes: fp32, TF32, fp16, bf16, as far as the machine has them
    #[arg(long, conflicts_with_all = ["runtimes", "against", "bisect", "profile"])]
    pub precisions: bool,
    /// The same graph in fp16, for --precisions
    #[arg(long, value_name = "X16.onnx", requires = "precisions")]
    pub fp16: Option<PathBuf>,
    /// Write JSON to FILE, or to standard output with `-`
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
}
