//! Networks, written once over [`Backend`] and laid out by libtorch or as ONNX graphs.

pub mod backend;
pub mod dhariwal_unet;
pub mod discriminator;
pub mod efficientnet_lite;
pub mod inception_v3;
pub mod layers;
pub mod onnx;
pub mod openai_unet;
pub mod precond;
pub mod song_unet;
pub mod stylegan2;
pub mod vgg16;
pub mod vision_transformer;

pub use backend::{Backend, Conv2d, Pool};
pub use onnx::OnnxBackend;
