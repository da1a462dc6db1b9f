//! Normalisation and resizing of the input images of feature networks, on any backend.

use crate::backend::{Backend, Cast, Ops as _, Sampling};
use crate::error::Result;
use crate::weights::Scope;

/// Mean of each colour channel of ImageNet in torchvision and timm, for values 0 to 1.
pub(crate) const IMAGENET_MEAN: [f32; 3] = [0.485, 0.456, 0.406];
/// Standard deviation of each colour channel of ImageNet in torchvision and timm, for values 0 to 1.
pub(crate) const IMAGENET_STD: [f32; 3] = [0.229, 0.224, 0.225];

/// Map from pixel values x, 0 to 255, to the input values of the network.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub enum Normalisation {
    /// (x + offset)·scale.
    Shifted {
        /// Term added to x.
        offset: f64,
        /// Factor of the sum.
        scale: f64,
    },
    /// x·scale + offset.
    Scaled {
        /// Factor of x.
        scale: f64,
        /// Term added to the product.
        offset: f64,
    },
    /// (x/255 − mean)/std per colour channel.
    Standardised {
        /// Mean, for values 0 to 1.
        mean: [f32; 3],
        /// Standard deviation, for values 0 to 1.
        std: [f32; 3],
    },
}

/// Method of resizing images of another size to the input size, in the graph.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Resize {
    /// Bilinear interpolation of TensorFlow 1 before the normalisation, as in torch-fidelity for all networks.
    TensorFlow,
    /// Bilinear interpolation of PyTorch after the normalisation.
    Torch,
}

impl Resize {
    /// Name in metadata.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::TensorFlow => "TensorFlow 1 bilinear (asymmetric), no antialiasing",
            Self::Torch => "bilinear, half-pixel, no antialiasing",
        }
    }
}

/// Preprocessing of the input images of a network.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Preprocessing {
    /// Normalisation.
    pub normalisation: Normalisation,
    /// Resizing of images of another size.
    pub resize: Resize,
}

fn scope() -> Scope {
    Scope::root().child("preprocess")
}

/// Converts images `x [N, H, W, 3]` of values 0 to 255 (u8 if `bytes`, else f32) to f32 `[N, 3, H, W]`.
///
/// # Errors
/// `Engine` if an operation fails.
pub fn channels_first<B: Backend>(b: &mut B, x: &B::Value, bytes: bool) -> Result<B::Value> {
    b.enter(&scope());
    let x = if bytes { b.cast(Cast::ToF32, x)? } else { x.clone() };
    b.transpose(&x, &[0, 3, 1, 2])
}

impl Preprocessing {
    /// Converts `x [N, 3, H, W]` of values 0 to 255 to the network input `[N, 3, size, size]`.
    ///
    /// # Errors
    /// `Engine` if an operation fails.
    pub fn apply<B: Backend>(&self, b: &mut B, x: &B::Value, size: usize) -> Result<B::Value> {
        b.enter(&scope());
        match self.resize {
            Resize::TensorFlow => {
                let x = b.resize_bilinear(x, [size; 2], Sampling::Asymmetric)?;
                self.normalisation.apply(b, &x)
            }
            Resize::Torch => {
                let x = self.normalisation.apply(b, x)?;
                b.resize_bilinear(&x, [size; 2], Sampling::HalfPixel)
            }
        }
    }
}

impl Normalisation {
    fn apply<B: Backend>(&self, b: &mut B, x: &B::Value) -> Result<B::Value> {
        match *self {
            Self::Shifted { offset, scale } => {
                let x = b.offset(x, offset)?;
                b.scale(&x, scale)
            }
            Self::Scaled { scale, offset } => {
                let x = b.scale(x, scale)?;
                b.offset(&x, offset)
            }
            Self::Standardised { mean, std } => {
                let scope = scope();
                let x = b.scale(x, 1.0 / 255.0)?;
                let mean = b.constant(&scope, "minus_mean", &[1, 3, 1, 1], mean.map(|m| -m).to_vec())?;
                let std = b.constant(&scope, "std", &[1, 3, 1, 1], std.to_vec())?;
                let x = b.add(&x, &mean)?;
                b.div(&x, &std)
            }
        }
    }
}
