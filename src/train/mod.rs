//! Training with libtorch: EDM pre-training and D2O fine-tuning.

pub mod adam;
pub mod dataset;
pub mod device;
pub mod discriminator;
pub mod freeze;
pub mod libtorch;
pub mod loss;
pub mod numerics;
pub mod session;
pub mod snapshot;
pub mod trainer;
