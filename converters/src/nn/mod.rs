//! Networks, written once over [`Backend`] and laid out by libtorch or as ONNX graphs.

pub mod backend;
pub mod layers;

pub use backend::{Backend, Conv2d};
