//! Every command, option and help text. No input or output here.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

/// Names of a type's values on the command line, with a help text where there is one.
macro_rules! value_enum {
    ($type:ty { $($variant:ident = $name:literal $($help:literal)?),+ $(,)? }) => {
        impl ValueEnum for $type {
            fn value_variants<'a>() -> &'a [Self] {
                &[$(Self::$variant),+]
            }

            fn to_possible_value(&self) -> Option<PossibleValue> {
                Some(match self {
                    $(Self::$variant => PossibleValue::new($name)$(.help($help))?),+
                })
            }
        }
    };
}

mod dataset;
mod doctor;
mod evaluate;
mod explain;
mod export;
mod generate;
mod inputs;
mod inspect;
mod known;
mod refs;
mod report;
mod runtime;
mod sampling;
mod train;
mod verify;

pub use dataset::{Colour, Dataset, LabelsArg, Resolution, TransformArg};
pub use doctor::Doctor;
pub use evaluate::{Evaluate, Metric, Shard};
pub use explain::Explain;
pub use export::{ActivationArg, Export, Kind, NoiseArg, PixelType, PrecisionArg};
pub use generate::{Draw, Drawn, Generate};
pub use inputs::{Input, Takes};
pub use inspect::Inspect;
pub use known::{Fetch, KnownArgs, Reproduce};
pub use refs::{LayoutArg, Refs, RefsInspect, RefsMake};
pub use report::{Report, ReportFormat, Titled};
pub use runtime::{Accelerator, EpLibrary, ProviderArg, Runtime};
pub use sampling::{Discretization, Quantise, Rng, RngGpu, Sampler, Sampling, Scaling, Schedule, Seeds, Solver};
pub use train::{
    Adversary, Arch, BackbonesArg, Fresh, LossArg, LossTypeArg, Rule, TeacherArg, Teaching, Train, TrainDevice,
    TrainSettings,
};
pub use verify::Verify;

/// Version, commit and features of this build.
#[cfg(feature = "train")]
pub const LONG_VERSION: &str =
    concat!(env!("CARGO_PKG_VERSION"), " (", env!("D2O_COMMIT"), ")\nfeatures: train, ONNX Runtime, tract, HDF5");
/// Version, commit and features of this build.
#[cfg(not(feature = "train"))]
pub const LONG_VERSION: &str =
    concat!(env!("CARGO_PKG_VERSION"), " (", env!("D2O_COMMIT"), ")\nfeatures: ONNX Runtime, tract, HDF5");

/// One-step image generators around ONNX: fine-tune, export, generate, measure, verify.
#[derive(Debug, Parser)]
#[command(name = "d2o", version, long_version = LONG_VERSION, about, arg_required_else_help = true, propagate_version = true)]
pub struct Cli {
    /// Options of every command.
    #[command(flatten)]
    pub global: Global,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// Options of every command.
#[derive(Debug, Clone, Args)]
pub struct Global {
    /// Print results, warnings and errors only
    #[arg(short, long, global = true, help_heading = "Global options")]
    pub quiet: bool,
    /// ONNX Runtime library to load [default: from the Python environment of d2o, else from `cargo xtask setup`]
    #[arg(
        long,
        global = true,
        help_heading = "Global options",
        value_name = "LIB",
        env = "D2O_ONNXRUNTIME",
        hide_env_values = true
    )]
    pub onnxruntime: Option<PathBuf>,
    /// Number of CPU threads [default: all]
    #[arg(long, global = true, help_heading = "Global options", value_name = "N")]
    pub threads: Option<usize>,
}

/// Options of every command that writes files.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Args)]
pub struct Output {
    /// Replace existing output files
    #[arg(long)]
    pub overwrite: bool,
}

/// Options of commands whose result is a text or JSON.
#[derive(Debug, Clone, Default, PartialEq, Eq, Args)]
pub struct ResultOutput {
    /// Write the result as JSON to FILE, or to standard output with `-`
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Whether FILE may exist
    #[command(flatten)]
    pub output: Output,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Export a checkpoint to ONNX
    Export(Export),
    /// Identify files and suggest the next command
    Inspect(Inspect),
    /// Generate images with an exported model
    Generate(Box<Generate>),
    /// Write the random numbers that seeds produce
    Draw(Draw),
    /// Compute or inspect reference statistics
    #[command(subcommand)]
    Refs(Refs),
    /// Measure a set of samples against a reference
    Evaluate(Box<Evaluate>),
    /// List the settings in which two results of `evaluate` differ, and the effect of each on the metrics
    Explain(Explain),
    /// Compare the outputs of a graph across runtimes
    Verify(Verify),
    /// Train a denoiser, or fine-tune one into a one-step generator
    Train(Box<Train>),
    /// Render results as one HTML page, or as tables for LaTeX or Markdown
    Report(Report),
    /// Convert images to a dataset of one resolution, with labels
    Dataset(Dataset),
    /// List published checkpoints, feature extractors and references
    Known(KnownArgs),
    /// Download published files into the cache and print their paths
    Fetch(Fetch),
    /// Export, generate and evaluate a published generator, and compare the result with the published numbers
    Reproduce(Box<Reproduce>),
    /// Report runtimes, devices, caches and settings, and how to fix what is missing
    Doctor(Doctor),
    /// Print a completion script for a shell
    #[command(after_help = "Example:\n  d2o completions bash > ~/.local/share/bash-completion/completions/d2o")]
    Completions {
        /// Shell
        #[arg(value_enum)]
        shell: clap_complete::Shell,
    },
    /// Write manual pages, one per command
    #[command(after_help = "Example:\n  d2o man ~/.local/share/man/man1")]
    Man {
        /// Output folder
        #[arg(value_name = "DIR")]
        dir: PathBuf,
    },
}

impl Command {
    /// The options, if this is `d2o export`.
    #[must_use]
    pub fn export(self) -> Option<Export> {
        if let Self::Export(args) = self { Some(args) } else { None }
    }

    /// The options, if this is `d2o evaluate`.
    #[must_use]
    pub fn evaluate(self) -> Option<Evaluate> {
        if let Self::Evaluate(args) = self { Some(*args) } else { None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_definition_is_consistent() {
        use clap::CommandFactory as _;
        Cli::command().debug_assert();
    }

    #[test]
    fn seeds_parse() {
        assert_eq!("1,2,5-7".parse(), Ok(Seeds(vec![1, 2, 5, 6, 7])));
        for bad in ["", "a", "3-1", "1-", "0-99999999999"] {
            assert!(bad.parse::<Seeds>().is_err(), "{bad}");
        }
    }

    #[test]
    fn shards_parse() {
        assert_eq!("2/3".parse(), Ok(Shard { index: 2, count: 3 }));
        for bad in ["3/3", "0/0", "1", "-1/2", "a/b"] {
            assert!(bad.parse::<Shard>().is_err(), "{bad}");
        }
    }

    #[test]
    fn devices_parse() {
        assert_eq!("cpu".parse(), Ok(TrainDevice::Cpu));
        assert_eq!("1".parse(), Ok(TrainDevice::Cuda(1)));
        assert!("-1".parse::<TrainDevice>().is_err());
        assert_eq!("A100".parse(), Ok(RngGpu { threads: 221_184 }));
        assert_eq!("RTX 2080 Ti".parse(), Ok(RngGpu { threads: 69_632 }));
        assert_eq!("163840".parse(), Ok(RngGpu { threads: 163_840 }));
        for bad in ["100", "0", "b9", ""] {
            assert!(bad.parse::<RngGpu>().is_err(), "{bad}");
        }
        assert!("x".parse::<EpLibrary>().is_err() && "=x".parse::<EpLibrary>().is_err());
    }

    #[test]
    fn draws_parse() {
        assert_eq!("f32:3072".parse(), Ok(Drawn::F32(3072)));
        assert_eq!("i1000".parse(), Ok(Drawn::Integer(1000)));
        for bad in ["f32", "f32:0", "f16:3", "i0", "i", "i-1", "3", "f64:999999999999"] {
            assert!(bad.parse::<Drawn>().is_err(), "{bad}");
        }
    }

    #[test]
    fn colours_parse() {
        assert_eq!("#0a0b0c".parse(), Ok(Colour([10, 11, 12])));
        assert!("fff".parse::<Colour>().is_err());
    }
}
