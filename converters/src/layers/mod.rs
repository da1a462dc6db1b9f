//! Layers that networks share.

mod attention;
mod conv;
mod embedding;
mod init;
mod linear;
mod norm;
mod resample;

pub use attention::QkvOrder;
pub use conv::{Conv, ConvConfig, Resample};
pub use embedding::NoiseEmbedding;
pub use init::{InitMode, LayerInit};
pub use linear::Linear;
pub use norm::GroupNorm;

pub(crate) use attention::attend;
pub(crate) use conv::FoldedConv;
pub(crate) use norm::{BatchNorm, LayerNorm, condition, wide};
pub(crate) use resample::{Filter, check_filter, double, halve, separable};
