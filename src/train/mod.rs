//! Training with libtorch: EDM pre-training and D2O fine-tuning.

mod adversarial;
pub mod augment;
pub mod dataset;
pub mod device;
pub mod discriminator;
pub mod distillation;
pub mod forecast;
pub mod freeze;
pub mod generator;
pub mod grid;
pub mod group;
pub mod libtorch;
pub mod loss;
pub mod lpips;
pub mod metrics;
pub mod numerics;
pub mod optimizer;
pub mod options;
pub mod pickle;
mod records;
pub mod sampler;
pub mod session;
pub mod snapshot;
pub mod stats;
pub mod tensorboard;
mod trained;
pub mod trainer;
