//! Bilinear interpolation as two matrix products with constant matrices. Runtimes agree on products, but not on all
//! coordinate modes of `Resize`. A symbolic batch needs no computed sizes. MatMul, opset 13.

use crate::error::Result;
use crate::graph::{Dim, Edge, ElementType, GraphBuilder};

/// Source coordinate of pixel `i` of the result. `in` and `out` are the lengths of the axis before and after resizing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Sampling {
    /// `(i + ½)·in/out − ½` (PyTorch's default).
    HalfPixel,
    /// `i·(in − 1)/(out − 1)`.
    AlignCorners,
    /// `i·in/out` (TensorFlow 1's default).
    Asymmetric,
}

/// Maximum height and width of an image before and after resizing, pixels. A matrix then has at most 2^28 elements.
const MAX_SIZE: usize = 1 << 14;

impl GraphBuilder {
    /// Resizes `x [N, C, H, W]` to `[N, C, size[0], size[1]]` without antialiasing; coordinates outside the image are clamped to its edge.
    ///
    /// # Errors
    /// `Shape` if `x` is not a batch of f32 images, or a height or width is 0 or above 2^14.
    pub fn resize_bilinear(&mut self, x: &Edge, size: [usize; 2], sampling: Sampling) -> Result<Edge> {
        let bad = |g: &Self| {
            let found = format!("{} to {size:?}", x.describe());
            g.mismatch("resize", format!("f32 images and sizes of 1 to {MAX_SIZE}"), found)
        };
        let &[_, _, Dim::Known(h), Dim::Known(w)] = x.dims() else { return Err(bad(self)) };
        let [tall, wide] = size;
        if [h, w, tall, wide].iter().any(|n| !(1..=MAX_SIZE).contains(n)) || x.element() != ElementType::F32 {
            return Err(bad(self));
        }
        let mut y = x.clone();
        if wide != w {
            let rows = interpolation(w, wide, sampling);
            let transposed =
                (0..w).flat_map(|i| (0..wide).map(move |o| (o, i))).map(|(o, i)| rows[o * w + i]).collect();
            let matrix = self.constant(&format!("bilinear.{w}.{wide}.transposed"), &[w, wide], transposed)?;
            y = self.matmul(&y, &matrix)?;
        }
        if tall != h {
            let matrix =
                self.constant(&format!("bilinear.{h}.{tall}"), &[tall, h], interpolation(h, tall, sampling))?;
            y = self.matmul(&matrix, &y)?;
        }
        Ok(y)
    }
}

/// Interpolation matrix: the weight of each source pixel in each pixel of the result, computed in f32 as in PyTorch.
/// Row-major `[out, input]`. Empty if a length is 0 or above 2^14.
#[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "small sizes")]
#[must_use]
pub fn interpolation(input: usize, out: usize, sampling: Sampling) -> Vec<f32> {
    if [input, out].iter().any(|n| !(1..=MAX_SIZE).contains(n)) {
        return Vec::new();
    }
    let mut rows = vec![0.0; out * input];
    for o in 0..out {
        let at = match sampling {
            Sampling::HalfPixel => ((o as f32 + 0.5) * (input as f32 / out as f32) - 0.5).max(0.0),
            Sampling::AlignCorners if out == 1 => 0.0,
            Sampling::AlignCorners => o as f32 * ((input - 1) as f32 / (out - 1) as f32),
            Sampling::Asymmetric => o as f32 * (input as f32 / out as f32),
        };
        let low = (at as usize).min(input - 1);
        let high = (low + 1).min(input - 1);
        let fraction = (at - low as f32).min(1.0);
        rows[o * input + low] += 1.0 - fraction;
        rows[o * input + high] += fraction;
    }
    rows
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_sum_to_one_and_ends_are_kept() {
        for sampling in [Sampling::HalfPixel, Sampling::AlignCorners, Sampling::Asymmetric] {
            let m = interpolation(5, 9, sampling);
            for row in m.chunks(5) {
                assert!((row.iter().sum::<f32>() - 1.0).abs() < 1e-6);
            }
            assert_eq!(m[0], 1.0);
        }
        assert_eq!(interpolation(5, 9, Sampling::AlignCorners)[9 * 5 - 1], 1.0);
        assert_eq!(interpolation(2, 4, Sampling::HalfPixel)[2..4], [0.75, 0.25]);
        assert_eq!(interpolation(2, 4, Sampling::Asymmetric)[2..4], [0.5, 0.5]);
    }

    #[test]
    fn images_without_pixels_are_refused() {
        let mut g = GraphBuilder::new("g");
        let mut image = |h: usize| {
            let dims = [Dim::Batch, Dim::Known(3), Dim::Known(h), Dim::Known(4)];
            g.input(&format!("x{h}"), ElementType::F32, &dims).unwrap()
        };
        let (empty, x) = (image(0), image(4));
        assert!(g.resize_bilinear(&empty, [2, 2], Sampling::HalfPixel).is_err());
        assert!(g.resize_bilinear(&x, [0, 2], Sampling::AlignCorners).is_err());
        assert!(g.resize_bilinear(&x, [2, usize::MAX], Sampling::HalfPixel).is_err());
        assert!(g.resize_bilinear(&x, [2, 2], Sampling::Asymmetric).is_ok());
        assert!(interpolation(0, 4, Sampling::HalfPixel).is_empty());
        assert!(interpolation(2, usize::MAX, Sampling::HalfPixel).is_empty());
    }
}
