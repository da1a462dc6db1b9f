//! DDPM++ and NCSN++ (Song et al. 2021) in EDM's version.

mod config;
mod net;

pub use config::{DecoderType, EmbeddingType, EncoderType, SongConfig};
pub use net::SongUNet;

use crate::backend::Backend;
use crate::error::Result;
use crate::generators::args::Args;
use crate::generators::backbone::{Backbone, Shape, Sizes, check_embedding};
use crate::layers::check_filter;

impl Backbone for SongConfig {
    const CLASS: &'static str = "SongUNet";
    type Net<V: Clone> = SongUNet<V>;

    fn read(args: Args, _precond: &str) -> Result<Self> {
        args.rest(Self::CLASS)
    }

    fn check(&self, shape: Shape) -> Result<()> {
        let channels = self.model_channels.saturating_mul(self.channel_mult_noise);
        Sizes::whole(channels, &self.channel_mult, self.num_blocks).check(shape)?;
        check_filter(&self.resample_filter)?;
        check_embedding(self.augment_dim, self.channel_mult_emb, self.label_dropout)
    }

    fn label_dropout(&self) -> f64 {
        self.label_dropout
    }

    fn augment_dim(&self) -> usize {
        self.augment_dim
    }

    fn build<B: Backend>(&self, b: &mut B, shape: Shape) -> Result<SongUNet<B::Value>> {
        SongUNet::build(b, shape, self)
    }
}
