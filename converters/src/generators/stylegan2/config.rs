//! Arguments of the class `Generator`.

use serde::Deserialize;
use serde_json::{Map, Value};

use crate::error::{Result, config};
use crate::layers::check_filter;

const MAX_RESOLUTION: usize = 4096;
const MAX_CHANNELS: usize = 1 << 14;

/// Skip path between resolutions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum BlockKind {
    /// No skip path.
    Orig,
    /// Images of the resolutions are upsampled and summed.
    Skip,
    /// Each block has a residual path.
    Resnet,
}

/// Arguments of the class `Generator`.
#[derive(Debug, Clone, PartialEq)]
pub struct StyleGan2Config {
    /// Length of the latents.
    pub z_dim: usize,
    /// Number of classes; 0 if unconditional.
    pub c_dim: usize,
    /// Length of the intermediate latents.
    pub w_dim: usize,
    /// Height and width of the images, pixels.
    pub img_resolution: usize,
    /// Colour channels.
    pub img_channels: usize,
    pub(super) mapping: MappingKwargs,
    pub(super) synthesis: SynthesisKwargs,
    init_kwargs: Map<String, Value>,
}

/// Arguments of `MappingNetwork`. The value of `w_avg_beta` is used only in training; null means that there is no
/// average latent.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct MappingKwargs {
    pub(super) num_layers: usize,
    pub(super) embed_features: Option<usize>,
    pub(super) layer_features: Option<usize>,
    activation: String,
    pub(super) lr_multiplier: f64,
    pub(super) w_avg_beta: Option<f64>,
}

impl Default for MappingKwargs {
    fn default() -> Self {
        Self {
            num_layers: 8,
            embed_features: None,
            layer_features: None,
            activation: "lrelu".to_owned(),
            lr_multiplier: 0.01,
            w_avg_beta: Some(0.995),
        }
    }
}

/// Arguments of `SynthesisNetwork` and its blocks. Those for half precision and for fused modulation are accepted and
/// ignored.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct SynthesisKwargs {
    channel_base: usize,
    channel_max: usize,
    pub(super) architecture: BlockKind,
    pub(super) resample_filter: Vec<f64>,
    pub(super) conv_clamp: Option<f64>,
    kernel_size: usize,
    pub(super) use_noise: bool,
    activation: String,
    num_fp16_res: Value,
    fp16_channels_last: Value,
    fused_modconv_default: Value,
}

impl Default for SynthesisKwargs {
    fn default() -> Self {
        Self {
            channel_base: 32768,
            channel_max: 512,
            architecture: BlockKind::Skip,
            resample_filter: vec![1.0, 3.0, 3.0, 1.0],
            conv_clamp: None,
            kernel_size: 3,
            use_noise: true,
            activation: "lrelu".to_owned(),
            num_fp16_res: Value::Null,
            fp16_channels_last: Value::Null,
            fused_modconv_default: Value::Null,
        }
    }
}

/// Name of the class in checkpoints.
pub(super) const CLASS: &str = "Generator";

impl StyleGan2Config {
    /// Reads the constructor arguments. StyleGAN2-ADA passes the arguments of the synthesis network as
    /// `synthesis_kwargs`. The StyleGAN3 repository passes them together with the others and clamps by default.
    ///
    /// # Errors
    /// `Config` for an unknown or missing argument, or a value out of range.
    pub fn new(init_kwargs: &Map<String, Value>) -> Result<Self> {
        const FLAT_CLAMP: f64 = 256.0;
        let mut left = init_kwargs.clone();
        let mut number = |name: &str, default: Option<usize>| {
            let value = left.remove(name).filter(|v| !v.is_null());
            let read = |v: Value| v.as_u64().and_then(|n| usize::try_from(n).ok()).ok_or(v);
            match value.map(read) {
                Some(Ok(n)) if n <= MAX_CHANNELS => Ok(n),
                Some(Ok(n)) => Err(config(format!("`{name}`: expected at most {MAX_CHANNELS}, found {n}"))),
                Some(Err(v)) => Err(config(format!("`{name}`: expected a whole number, found {v}"))),
                None => default.ok_or_else(|| config(format!("`{name}` is missing"))),
            }
        };
        let (z_dim, c_dim, w_dim) = (number("z_dim", None)?, number("c_dim", Some(0))?, number("w_dim", None)?);
        let (img_resolution, img_channels) = (number("img_resolution", None)?, number("img_channels", None)?);
        let mapping = left.remove("mapping_kwargs").unwrap_or_else(|| Value::Object(Map::new()));
        let mapping: MappingKwargs =
            serde_json::from_value(mapping).map_err(|e| config(format!("`mapping_kwargs`: {e}")))?;
        let synthesis = match left.remove("synthesis_kwargs") {
            Some(nested) if left.is_empty() => nested,
            Some(_) => return Err(config(format!("unknown arguments of `{CLASS}`: {:?}", left.keys()))),
            None => {
                left.entry("conv_clamp").or_insert_with(|| FLAT_CLAMP.into());
                Value::Object(left)
            }
        };
        let synthesis: SynthesisKwargs =
            serde_json::from_value(synthesis).map_err(|e| config(format!("`synthesis_kwargs`: {e}")))?;
        let read = Self {
            z_dim,
            c_dim,
            w_dim,
            img_resolution,
            img_channels,
            mapping,
            synthesis,
            init_kwargs: init_kwargs.clone(),
        };
        read.check()?;
        Ok(read)
    }

    /// Constructor arguments as they were read.
    #[must_use]
    pub fn init_kwargs(&self) -> Value {
        Value::Object(self.init_kwargs.clone())
    }

    fn check(&self) -> Result<()> {
        let (r, m, s) = (self.img_resolution, &self.mapping, &self.synthesis);
        if !(4..=MAX_RESOLUTION).contains(&r) || !r.is_power_of_two() {
            return Err(config(format!("`img_resolution`: expected a power of two, 4 to {MAX_RESOLUTION}, found {r}")));
        }
        for (name, value) in [("z_dim", self.z_dim), ("w_dim", self.w_dim), ("img_channels", self.img_channels)] {
            if value == 0 {
                return Err(config(format!("`{name}`: expected at least 1, found 0")));
            }
        }
        if !(1..=64).contains(&m.num_layers) {
            return Err(config(format!("`num_layers`: expected 1 to 64, found {}", m.num_layers)));
        }
        // The channels of a resolution are at most `channel_max`, so `channel_base / r` needs no upper limit.
        let mut limited = [m.embed_features, m.layer_features].into_iter().flatten().chain([s.channel_max]);
        if s.channel_base < r || limited.any(|n| n == 0 || n > MAX_CHANNELS) {
            return Err(config(format!("numbers of features and channels: expected 1 to {MAX_CHANNELS}")));
        }
        for (name, activation) in [("mapping", &m.activation), ("synthesis", &s.activation)] {
            if activation != "lrelu" {
                return Err(config(format!("`activation` of the {name} network: expected lrelu, found {activation}")));
            }
        }
        check_filter(&s.resample_filter)?;
        if s.kernel_size != 3 {
            return Err(config(format!("`kernel_size`: expected 3, found {}", s.kernel_size)));
        }
        Ok(())
    }

    pub(super) fn channels(&self, resolution: usize) -> usize {
        (self.synthesis.channel_base / resolution).min(self.synthesis.channel_max)
    }

    pub(super) fn resolutions(&self) -> impl Iterator<Item = usize> {
        let last = self.img_resolution;
        std::iter::successors(Some(4), |r| Some(2 * r)).take_while(move |r| *r <= last)
    }
}
