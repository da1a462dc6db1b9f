//! Arguments of OpenAI's `UNetModel`.

use serde::{Deserialize, Serialize};

use crate::layers::QkvOrder;

/// Class of the diffusion process in guided-diffusion.
pub(crate) const GUIDED: &str = "GaussianDiffusion";
/// Class of the denoiser in consistency_models.
pub(crate) const CONSISTENCY: &str = "KarrasDenoiser";

/// Arguments of `UNetModel` except resolution, input channels and classes. Absent arguments have the defaults of the
/// class.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[allow(
    missing_docs,
    reason = "arguments of `UNetModel`, which `guided_diffusion/unet.py` of openai/guided-diffusion documents"
)]
pub struct OpenAiConfig {
    pub model_channels: usize,
    /// Number of output channels; `None` for the number of input channels.
    pub out_channels: Option<usize>,
    pub num_res_blocks: usize,
    /// Downsampling rates (not resolutions in pixels) with attention.
    pub attention_resolutions: Vec<usize>,
    /// Multipliers may be fractional; widths are rounded down.
    pub channel_mult: Vec<f64>,
    pub conv_resample: bool,
    pub num_heads: usize,
    /// Channels per head; takes precedence over the numbers of heads.
    pub num_head_channels: Option<usize>,
    /// Heads in the output blocks; `None` for `num_heads`.
    pub num_heads_upsample: Option<usize>,
    pub use_scale_shift_norm: bool,
    pub resblock_updown: bool,
    /// Whether `qkv` contains first all queries, then all keys, then all values. Networks of consistency_models always
    /// have this order.
    pub use_new_attention_order: bool,
    pub dropout: f64,
    /// Whether the convolutions of attention are one-dimensional, `[outputs, inputs, 1]`, as in guided-diffusion.
    #[serde(skip)]
    pub conv1d: bool,
}

impl Default for OpenAiConfig {
    fn default() -> Self {
        Self {
            model_channels: 128,
            out_channels: None,
            num_res_blocks: 2,
            attention_resolutions: vec![2, 4, 8],
            channel_mult: vec![1.0, 2.0, 4.0, 8.0],
            conv_resample: true,
            num_heads: 1,
            num_head_channels: None,
            num_heads_upsample: None,
            use_scale_shift_norm: false,
            resblock_updown: false,
            use_new_attention_order: false,
            dropout: 0.0,
            conv1d: false,
        }
    }
}

impl OpenAiConfig {
    /// Channels of each level.
    #[must_use]
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "rounded down, as in the original; bounded when read"
    )]
    pub fn widths(&self) -> Vec<usize> {
        self.channel_mult.iter().map(|m| (m * self.model_channels as f64) as usize).collect()
    }

    /// Order of the channels of `qkv`: consistency_models has one order, guided-diffusion two.
    pub(crate) fn qkv_order(&self) -> QkvOrder {
        if !self.conv1d || self.use_new_attention_order { QkvOrder::ByTensor } else { QkvOrder::ByHead }
    }
}
