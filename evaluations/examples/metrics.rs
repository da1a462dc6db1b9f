//! Computes metrics of features from another program, under the protocol `edm`.
//!
//! `cargo run --release -p d2o-evaluations --example metrics`
#![allow(clippy::print_stdout, reason = "a program")]

use std::error::Error;

use d2o_evaluations::frechet::frechet_distance;
use d2o_evaluations::gaussian::Accumulator;
use d2o_evaluations::kid::kid;
use d2o_evaluations::manifold::manifold;
use d2o_evaluations::protocol::Protocol;
use ndarray::{Array2, ArrayView2, Axis};

/// Fréchet distance, precision and KID of `samples [N, D]` against `reference [M, D]`.
fn measure(samples: ArrayView2<'_, f32>, reference: ArrayView2<'_, f32>) -> Result<[f64; 3], Box<dyn Error>> {
    let protocol = Protocol::named("edm").ok_or("no such protocol")?;
    let gaussian = |features: ArrayView2<'_, f32>| {
        let mut sums = Accumulator::new(features.ncols());
        // The result does not depend on the size of blocks.
        for block in features.axis_chunks_iter(Axis(0), 64) {
            sums.push(block)?;
        }
        sums.finish(protocol.ddof)
    };
    let distance = frechet_distance(&gaussian(samples)?, &gaussian(reference)?)?;
    let precision = manifold(samples, reference, &protocol.manifold)?.precision_recall.precision();
    Ok([distance, precision, kid(samples, reference, &protocol.kid, 0)?.mean])
}

/// Synthetic features: rows of `dims` values in `mean..mean + 1`.
fn features(rows: usize, dims: usize, mean: f32) -> Array2<f32> {
    let mut state = 1_u32;
    Array2::from_shape_simple_fn((rows, dims), || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        mean + (state >> 8) as f32 / 16_777_216.0
    })
}

fn main() -> Result<(), Box<dyn Error>> {
    let [distance, precision, kid] = measure(features(500, 32, 0.1).view(), features(800, 32, 0.0).view())?;
    println!("Fréchet distance {distance:.4}, precision {precision:.4}, KID {kid:.6}");
    Ok(())
}

#[test]
fn a_shift_of_every_feature_is_measured() {
    let reference = features(800, 32, 0.0);
    let [distance, precision, kid] = measure(features(800, 32, 0.5).view(), reference.view()).unwrap();
    // Covariances are equal, and means differ by 0.5 in 32 dimensions.
    assert!((distance - 8.0).abs() < 1e-3 && precision < 0.5 && kid > 0.1, "{distance} {precision} {kid}");
    let [distance, precision, _] = measure(reference.view(), reference.view()).unwrap();
    assert!(distance.abs() < 1e-6 && (precision - 1.0).abs() < 1e-12, "{distance} {precision}");
}
