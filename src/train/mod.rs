//! Training with libtorch: EDM pre-training and D2O fine-tuning.

mod adversarial;
pub mod augment;
mod convolution;
pub mod dataset;
pub mod device;
pub mod discriminator;
pub mod freeze;
pub mod grid;
pub mod libtorch;
pub mod loss;
pub mod numerics;
mod operator;
pub mod optimizer;
pub mod options;
pub mod pickle;
pub mod sampler;
pub mod session;
pub mod snapshot;
pub mod stats;
pub mod tensorboard;
mod trained;
pub mod trainer;
