//! OpenAI's U-Net (Dhariwal and Nichol 2021; Song et al. 2023): `UNetModel` of guided-diffusion and consistency_models.

mod config;
mod names;
mod net;

pub use config::OpenAiConfig;
pub use net::OpenAiUNet;

pub(crate) use config::{CONSISTENCY, GUIDED};
pub(crate) use names::recognise;

use crate::backend::Backend;
use crate::error::{Result, config};
use crate::generators::args::{Args, missing};
use crate::generators::backbone::{Backbone, Shape, Sizes};

impl Backbone for OpenAiConfig {
    const CLASS: &'static str = "UNetModel";
    type Net<V: Clone> = OpenAiUNet<V>;

    fn read(args: Args, precond: &str) -> Result<Self> {
        let guided = precond == GUIDED;
        if guided && !args.has("use_new_attention_order") {
            return Err(missing("use_new_attention_order"));
        }
        Ok(Self { conv1d: guided, ..args.rest(Self::CLASS)? })
    }

    fn check(&self, shape: Shape) -> Result<()> {
        let inputs = shape.inputs;
        if let Some(outputs) = self.out_channels.filter(|n| *n != inputs && *n != inputs.saturating_mul(2)) {
            return Err(config(format!("`out_channels`: expected {inputs} or twice as many, found {outputs}")));
        }
        let (channel_mult, num_blocks) = (self.channel_mult.clone(), self.num_res_blocks);
        Sizes { model_channels: self.model_channels, channel_mult, num_blocks }.check(shape)
    }

    fn outputs(&self, channels: usize) -> usize {
        self.out_channels.unwrap_or(channels)
    }

    fn build<B: Backend>(&self, b: &mut B, shape: Shape) -> Result<OpenAiUNet<B::Value>> {
        OpenAiUNet::build(b, shape, self)
    }
}
