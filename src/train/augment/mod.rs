//! Augmentation of images [N, C, H, W] about [-1, 1] in training, as the originals have it.
//!
//! - [`ada`]: StyleGAN2-ADA's pipe in the version of Zyriix/D2O (`training/augment.py`), and the control of its strength;
//! - [`edm`]: the pipe of NVlabs/edm (`training/augment.py`), whose labels the network is given;
//! - [`diff`]: DiffAugment (`training/diffaug.py` of Zyriix/D2O).
//!
//! Images are f32. Draws come from libtorch's generator of the images' device, in the originals' order, kinds and numbers, so that
//! a seed gives the originals' images. Gradients with respect to the images pass through; on CUDA libtorch has no deterministic kernel for those of
//! a warp.

pub mod ada;
mod colour;
pub mod diff;
mod draws;
pub mod edm;
mod warp;

pub use colour::Colours;
use tch::{TchError, Tensor};

/// Augmented images.
#[derive(Debug)]
pub struct Augmented {
    /// The images, [N, C, H, W].
    pub images: Tensor,
    /// What was done to each, [N, L] in f32.
    pub labels: Tensor,
}

/// The elements `rows [N, 1, H, 1]`, `columns [N, 1, 1, W]` (i64) of each channel of `images [N, C, .., ..]`: [N, C, H, W].
fn gathered(images: &Tensor, rows: &Tensor, columns: &Tensor) -> Result<Tensor, TchError> {
    let (batch, channels, ..) = images.size4()?;
    let of = |count: i64| Tensor::f_arange(count, (tch::Kind::Int64, images.device()));
    let (image, channel) = (of(batch)?.f_reshape([-1, 1, 1, 1])?, of(channels)?.f_reshape([1, -1, 1, 1])?);
    images.f_index(&[Some(&image), Some(&channel), Some(rows), Some(columns)])
}
