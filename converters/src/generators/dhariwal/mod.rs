//! ADM (Dhariwal and Nichol 2021) in EDM's version.

mod config;
mod net;

pub use config::DhariwalConfig;
pub use net::DhariwalUNet;

use crate::backend::Backend;
use crate::error::Result;
use crate::generators::args::Args;
use crate::generators::backbone::{Backbone, Shape, Sizes, check_embedding};

impl Backbone for DhariwalConfig {
    const CLASS: &'static str = "DhariwalUNet";
    type Net<V: Clone> = DhariwalUNet<V>;

    fn read(args: Args, _precond: &str) -> Result<Self> {
        args.rest(Self::CLASS)
    }

    fn check(&self, shape: Shape) -> Result<()> {
        Sizes::whole(self.model_channels, &self.channel_mult, self.num_blocks).check(shape)?;
        check_embedding(self.augment_dim, self.channel_mult_emb, self.label_dropout)
    }

    fn label_dropout(&self) -> f64 {
        self.label_dropout
    }

    fn augment_dim(&self) -> usize {
        self.augment_dim
    }

    fn build<B: Backend>(&self, b: &mut B, shape: Shape) -> Result<DhariwalUNet<B::Value>> {
        DhariwalUNet::build(b, shape, self)
    }
}
