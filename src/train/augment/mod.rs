//! Augmentation of training images [N, C, H, W] in about [-1, 1], equal to that of the original programs.
//!
//! - [`ada`]: the StyleGAN2-ADA pipe of Zyriix/D2O (`training/augment.py`), and the control of its strength;
//! - [`edm`]: the pipe of NVlabs/edm (`training/augment.py`), with labels that the network receives;
//! - [`diff`]: DiffAugment (`training/diffaug.py` of Zyriix/D2O).
//!
//! Images are f32. Random numbers come from libtorch's generator of the device of the images, in the order, type and
//! number of the originals, so that a seed gives the same images. Gradients with respect to the images are supported.
//! On CUDA, libtorch has no deterministic kernel for the gradients of a warp.

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
    /// Labels of the transformations applied to each image, [N, L] in f32.
    pub labels: Tensor,
}

/// Gathers the elements at `rows [N, 1, H, 1]` and `columns [N, 1, 1, W]` (i64) of each channel of
/// `images [N, C, .., ..]`: [N, C, H, W].
fn gathered(images: &Tensor, rows: &Tensor, columns: &Tensor) -> Result<Tensor, TchError> {
    let (batch, channels, ..) = images.size4()?;
    let of = |count: i64| Tensor::f_arange(count, (tch::Kind::Int64, images.device()));
    let (image, channel) = (of(batch)?.f_reshape([-1, 1, 1, 1])?, of(channels)?.f_reshape([1, -1, 1, 1])?);
    images.f_index(&[Some(&image), Some(&channel), Some(rows), Some(columns)])
}
