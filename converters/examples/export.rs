//! Exports a checkpoint of a diffusion model as a one-step generator, and runs the graph once on tract.
//!
//! `cargo run -p d2o-converters --example export -- CHECKPOINT OUT.onnx`
#![allow(clippy::print_stdout, reason = "a program")]

use std::error::Error;
use std::path::Path;

use d2o_converters::Checkpoint;
use d2o_converters::export::{self, Kind, Options};
use d2o_onnx::graph::Dim;
use d2o_runtime::Session as _;
use d2o_runtime::ndarray::ArrayD;
use d2o_runtime::tract::TractSession;

/// Writes the graph of `checkpoint` to `out`, runs it once, and returns the dimensions of the images.
fn export(checkpoint: &Path, out: &Path) -> Result<Vec<usize>, Box<dyn Error>> {
    let checkpoint = Checkpoint::open(checkpoint)?;
    // The average over training, or the only network.
    let network = checkpoint.network(None)?;
    println!("{} with {} tensors", network.architecture.name(), network.tensors.names().len());
    let graph = export::denoiser(network, &Options { kind: Kind::OneStep, ..Options::default() })?;
    d2o_onnx::write::write(&graph.model, out)?;

    let mut session = TractSession::open(out, None)?;
    let inputs: Vec<(String, ArrayD<f32>)> = session
        .model()
        .inputs
        .iter()
        .map(|input| {
            let dims: Vec<usize> =
                input.dims.iter().map(|dim| if let Dim::Known(size) = dim { *size } else { 2 }).collect();
            (input.name.clone(), ArrayD::zeros(dims))
        })
        .collect();
    let inputs: Vec<_> = inputs.iter().map(|(name, values)| (name.as_str(), values.view().into())).collect();
    Ok(session.run(&inputs)?[0].dims().to_vec())
}

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().collect();
    let [_, checkpoint, out] = args.as_slice() else { return Err("usage: export CHECKPOINT OUT.onnx".into()) };
    println!("two images: {:?}", export(checkpoint.as_ref(), out.as_ref())?);
    Ok(())
}

#[test]
fn the_graph_makes_images() {
    let folder = tempfile::tempdir().unwrap();
    let checkpoint = test_support::golden_dir().join("d2o-ncsnpp-uncond.safetensors");
    assert_eq!(export(&checkpoint, &folder.path().join("x.onnx")).unwrap(), [2, 3, 16, 16]);
}
