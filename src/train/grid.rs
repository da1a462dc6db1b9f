//! Image grids of a run: real images, and images generated from fixed latents.

use std::path::Path;

use d2o_converters::denoiser::{Denoiser, Sigma};
use d2o_converters::error::Result;
use d2o_files::AtomicFile;
use ndarray::Array3;
use tch::{Kind, Tensor};

use super::generator;
use super::libtorch::{LibTorch, Value};

/// Images per row and per column.
pub const SIDE: i64 = 8;
/// Number of noise levels, and of steps, of Heun's method.
const STEPS: u32 = 18;

/// Writes `images [N, C, H, W]` in [-1, 1], with 3 channels or 1, as a PNG with [`SIDE`] images per row. Missing images
/// are white.
///
/// # Errors
/// If libtorch or writing fails.
pub fn write(path: &Path, images: &Tensor) -> anyhow::Result<()> {
    let (count, channels, height, width) = images.size4()?;
    let rows = (count + SIDE - 1) / SIDE;
    let pixels = images.f_mul_scalar(127.5)?.f_add_scalar(128.0)?.f_clamp(0.0, 255.0)?.f_to_kind(Kind::Uint8)?;
    let missing = Tensor::f_full([rows * SIDE - count, channels, height, width], 255, (Kind::Uint8, pixels.device()))?;
    let grid = Tensor::f_cat(&[pixels, missing], 0)?.f_reshape([rows, SIDE, channels, height, width])?;
    let grid = grid.f_permute([0, 3, 1, 4, 2])?.f_reshape([rows * height, SIDE * width, channels])?;
    let grid = if channels == 1 { grid.f_repeat([1, 1, 3])? } else { grid };
    let flat = Vec::<u8>::try_from(&grid.f_contiguous()?.f_reshape([-1])?)?;
    let shape = [rows * height, SIDE * width, 3].map(|d| usize::try_from(d).unwrap_or(0));
    let png = d2o_refs::png(path, "", Array3::from_shape_vec(shape, flat)?.view())?;
    Ok(AtomicFile::write_all_to(path, &png)?)
}

/// Images that the denoiser `net` generates from `noise [B, C, H, W]` of unit variance with 18 steps of Heun's method
/// (Karras et al. 2022, algorithm 1).
///
/// # Errors
/// `Engine` if libtorch fails.
pub fn denoise(b: &mut LibTorch, net: &Denoiser<Value>, noise: &Tensor, labels: Option<&Value>) -> Result<Tensor> {
    let levels = generator::noise_levels(STEPS - 1).levels();
    let mut slope = |x: &Tensor, sigma: f64| -> Result<Tensor> {
        let denoised = net.denoise(b, &Value(x.shallow_clone()), &Sigma::Fixed(sigma), labels)?.0;
        Ok((x - denoised) / sigma)
    };
    let mut x = noise * levels.first().copied().unwrap_or_default();
    let nexts = levels.iter().skip(1).copied().chain([0.0]);
    for (level, next) in levels.iter().copied().zip(nexts) {
        let first = slope(&x, level)?;
        let euler = &x + &first * (next - level);
        x = if next > 0.0 { &x + (first + slope(&euler, next)?) * (0.5 * (next - level)) } else { euler };
    }
    Ok(x)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_follow_each_other_in_rows() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("grid.png");
        let images = Tensor::arange(9, (Kind::Float, tch::Device::Cpu)).reshape([9, 1, 1, 1]) / 127.5;
        write(&path, &images.expand([9, 3, 2, 2], false)).unwrap();
        let mut folder = d2o_refs::batch::open(dir.path()).unwrap();
        let grid = folder.read(0..1).unwrap();
        assert_eq!(grid.dim(), (1, 4, 16, 3));
        let at = |y: usize, x: usize| grid[[0, y, x, 0]];
        assert_eq!([at(0, 0), at(1, 1), at(0, 2), at(1, 15), at(2, 0), at(3, 2)], [128, 128, 129, 135, 136, 255]);
    }
}
