//! From image files to a metric: reader, feature network on ONNX Runtime, mean and covariance, Fréchet distance.
//!
//! `cargo run --release --example distance -- SAMPLES REFERENCE EXTRACTOR.onnx LIBONNXRUNTIME`
//!
//! The extractor takes u8 images of the size of the files (`d2o export … --image-size N`). `d2o evaluate` does the same
//! with provenance, protocols and preprocessing.
#![allow(clippy::print_stdout, reason = "a program")]

use std::error::Error;
use std::path::Path;

use d2o_evaluations::frechet::{Gaussian, frechet_distance};
use d2o_evaluations::gaussian::Accumulator;
use d2o_refs::batch;
use d2o_runtime::Session;
use d2o_runtime::ort::{OrtOptions, OrtRuntime, Provider};
use ndarray::Ix2;

/// Mean and covariance of the features of `images`.
fn statistics(session: &mut dyn Session, images: &Path) -> Result<Gaussian, Box<dyn Error>> {
    let mut source = batch::open(images)?;
    let features = session.model().output_names().position(|name| name == "features").ok_or("no output `features`")?;
    let mut sums: Option<Accumulator> = None;
    for start in (0..source.len()).step_by(16) {
        let pixels = source.read(start..source.len().min(start + 16))?;
        let outputs = session.run(&[("images_u8", pixels.view().into())])?;
        let rows = outputs[features].as_f32().ok_or("features are not f32")?.into_dimensionality::<Ix2>()?;
        sums.get_or_insert_with(|| Accumulator::new(rows.ncols())).push(rows)?;
    }
    Ok(sums.ok_or("no images")?.finish(1)?)
}

/// Fréchet distance of `samples` to `reference`, by the features of `extractor` on the ONNX Runtime in `library`.
pub(crate) fn distance(
    samples: &Path,
    reference: &Path,
    extractor: &Path,
    library: &Path,
) -> Result<f64, Box<dyn Error>> {
    let runtime = OrtRuntime::load(library)?;
    let mut session = runtime.session(extractor, &OrtOptions::new(Provider::Cpu, None))?;
    Ok(frechet_distance(&statistics(&mut session, samples)?, &statistics(&mut session, reference)?)?)
}

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().collect();
    let [_, samples, reference, extractor, library] = args.as_slice() else {
        return Err("usage: distance SAMPLES REFERENCE EXTRACTOR.onnx LIBONNXRUNTIME".into());
    };
    println!("{:.6}", distance(samples.as_ref(), reference.as_ref(), extractor.as_ref(), library.as_ref())?);
    Ok(())
}
