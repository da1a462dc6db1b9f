//! Architecture configurations: a class name and the arguments its constructor was given, as checkpoints carry them.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::error::{Error, Result};

/// A preconditioned denoiser: which class, and its constructor's arguments.
///
/// As JSON: `{"class": "EDMPrecond", "init_kwargs": {…}}`, the form of NET.json and of safetensors metadata.
#[derive(Debug, Clone, PartialEq)]
pub struct NetConfig {
    /// Preconditioner.
    pub precond: Precond,
    /// Height and width of the images, pixels.
    pub img_resolution: usize,
    /// Colour channels.
    pub img_channels: usize,
    /// Number of classes; 0 if unconditional.
    pub label_dim: usize,
    /// The network inside.
    pub unet: UNetConfig,
    init_kwargs: Map<String, Value>,
}

/// The preconditioners D(x; σ) = c_skip·x + c_out·F(c_in·x; c_noise).
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Precond {
    /// Karras et al. 2022.
    Edm {
        /// Standard deviation of the data.
        sigma_data: f64,
    },
    /// EDM's with the boundary condition D(x; 0.002) = x.
    D2o {
        /// Standard deviation of the data.
        sigma_data: f64,
    },
    /// Variance preserving (Song et al. 2021).
    Vp {
        /// Extent of the noise schedule.
        beta_d: f64,
        /// Its start.
        beta_min: f64,
        /// Number of steps of the original training.
        steps: f64,
    },
    /// Variance exploding (Song et al. 2021).
    Ve,
    /// Improved DDPM (Nichol and Dhariwal 2021): the network also predicts variances, which are not used.
    Iddpm {
        /// Bound of the ratio of successive ᾱ.
        c1: f64,
        /// Offset of the cosine schedule.
        c2: f64,
        /// Number of steps of the original training.
        steps: usize,
    },
    /// EDM's as consistency_models has it: the network is told 250 ln σ (Song et al. 2023).
    Karras {
        /// Standard deviation of the data.
        sigma_data: f64,
        /// Noise level at which a consistency model is the identity; `None` for a denoiser.
        sigma_min: Option<f64>,
        /// Whether the result is limited to [-1, 1].
        clip: bool,
    },
    /// A DDPM that predicts the noise, as guided-diffusion has it; variances it also predicts are not used.
    Gaussian {
        /// How the noise grows.
        schedule: NoiseSchedule,
        /// Number of steps of the original training.
        steps: usize,
        /// Factor of the step in the network's input: 1000/steps if timesteps are rescaled, else 1.
        time_scale: f64,
        /// Whether the result is limited to [-1, 1].
        clip: bool,
    },
}

/// The noise schedules of guided-diffusion.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NoiseSchedule {
    /// β from 1e-4 to 0.02 for a thousand steps (Ho et al. 2020).
    Linear,
    /// ᾱ a squared cosine (Nichol and Dhariwal 2021).
    Cosine,
}

/// How images about [-1, 1] become bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Quantiser {
    /// Truncation of 127.5 x + 128 (EDM, D2O, SiD, StyleGAN).
    Edm,
    /// Truncation of 127.5 (x + 1) (guided-diffusion, consistency models).
    OpenAi,
}

impl Quantiser {
    /// Name in a graph's metadata, under the key `quantiser`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Edm => "127.5 x + 128",
            Self::OpenAi => "127.5 (x + 1)",
        }
    }

    /// The quantiser of this name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        [Self::Edm, Self::OpenAi].into_iter().find(|q| q.name() == name)
    }

    /// The byte of `x`: EDM's code computes in f64, OpenAI's in f32.
    #[must_use]
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "limited first")]
    pub fn apply(self, x: f64) -> u8 {
        match self {
            Self::Edm => (x * 127.5 + 128.0).clamp(0.0, 255.0) as u8,
            Self::OpenAi => ((x as f32 + 1.0) * 127.5).clamp(0.0, 255.0) as u8,
        }
    }
}

impl Precond {
    /// Factor of the step that the network of a discrete schedule is conditioned on.
    #[must_use]
    pub(crate) fn time_scale(self) -> f64 {
        match self {
            Self::Gaussian { time_scale, .. } => time_scale,
            _ => 1.0,
        }
    }

    /// Name of the class in checkpoints.
    #[must_use]
    pub fn class(&self) -> &'static str {
        match self {
            Self::Edm { .. } => "EDMPrecond",
            Self::D2o { .. } => "D2OPrecond",
            Self::Vp { .. } => "VPPrecond",
            Self::Ve => "VEPrecond",
            Self::Iddpm { .. } => "iDDPMPrecond",
            Self::Karras { .. } => "KarrasDenoiser",
            Self::Gaussian { .. } => "GaussianDiffusion",
        }
    }

    /// How the original turns its images into bytes.
    #[must_use]
    pub fn quantiser(&self) -> Quantiser {
        match self {
            Self::Karras { .. } | Self::Gaussian { .. } => Quantiser::OpenAi,
            _ => Quantiser::Edm,
        }
    }
}

/// The U-Nets.
#[derive(Debug, Clone, PartialEq)]
pub enum UNetConfig {
    /// DDPM++ and NCSN++.
    Song(SongConfig),
    /// ADM, as EDM has it.
    Dhariwal(DhariwalConfig),
    /// ADM, as guided-diffusion and consistency_models have it.
    OpenAi(OpenAiConfig),
}

/// How the noise level is embedded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EmbeddingType {
    /// Fixed sinusoids.
    Positional,
    /// Random Fourier features.
    Fourier,
}

/// What the encoder carries beside its blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EncoderType {
    /// Nothing.
    Standard,
    /// The downsampled image, mixed in by 1×1 convolutions.
    Skip,
    /// A residual pyramid of the image.
    Residual,
}

/// What the decoder carries beside its blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DecoderType {
    /// Nothing.
    Standard,
    /// An output image at each resolution, upsampled and summed.
    Skip,
}

/// Arguments of `SongUNet` beyond resolution, channels and labels; absent ones take the class's defaults.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[allow(missing_docs, reason = "the original's own argument names; facts on each are in its class documentation")]
pub struct SongConfig {
    pub augment_dim: usize,
    pub model_channels: usize,
    pub channel_mult: Vec<usize>,
    pub channel_mult_emb: usize,
    pub num_blocks: usize,
    pub attn_resolutions: Vec<usize>,
    pub dropout: f64,
    pub label_dropout: f64,
    pub embedding_type: EmbeddingType,
    pub channel_mult_noise: usize,
    pub encoder_type: EncoderType,
    pub decoder_type: DecoderType,
    pub resample_filter: Vec<f64>,
}

impl Default for SongConfig {
    fn default() -> Self {
        Self {
            augment_dim: 0,
            model_channels: 128,
            channel_mult: vec![1, 2, 2, 2],
            channel_mult_emb: 4,
            num_blocks: 4,
            attn_resolutions: vec![16],
            dropout: 0.10,
            label_dropout: 0.0,
            embedding_type: EmbeddingType::Positional,
            channel_mult_noise: 1,
            encoder_type: EncoderType::Standard,
            decoder_type: DecoderType::Standard,
            resample_filter: vec![1.0, 1.0],
        }
    }
}

impl SongConfig {
    /// The NCSN++ settings on top of the class's defaults.
    #[must_use]
    pub fn ncsnpp() -> Self {
        Self {
            embedding_type: EmbeddingType::Fourier,
            channel_mult_noise: 2,
            encoder_type: EncoderType::Residual,
            resample_filter: vec![1.0, 3.0, 3.0, 1.0],
            ..Self::default()
        }
    }
}

/// Arguments of `DhariwalUNet` beyond resolution, channels and labels; absent ones take the class's defaults.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[allow(missing_docs, reason = "the original's own argument names; facts on each are in its class documentation")]
pub struct DhariwalConfig {
    pub augment_dim: usize,
    pub model_channels: usize,
    pub channel_mult: Vec<usize>,
    pub channel_mult_emb: usize,
    pub num_blocks: usize,
    pub attn_resolutions: Vec<usize>,
    pub dropout: f64,
    pub label_dropout: f64,
}

impl Default for DhariwalConfig {
    fn default() -> Self {
        Self {
            augment_dim: 0,
            model_channels: 192,
            channel_mult: vec![1, 2, 3, 4],
            channel_mult_emb: 4,
            num_blocks: 3,
            attn_resolutions: vec![32, 16, 8],
            dropout: 0.10,
            label_dropout: 0.0,
        }
    }
}

/// Arguments of `UNetModel` beyond resolution, input channels and classes; absent ones take the class's defaults.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[allow(missing_docs, reason = "the original's own argument names; facts on each are in its class documentation")]
pub struct OpenAiConfig {
    pub model_channels: usize,
    /// Channels of the output; `None` for those of the input.
    pub out_channels: Option<usize>,
    pub num_res_blocks: usize,
    /// Downsampling rates (not resolutions in pixels) with attention.
    pub attention_resolutions: Vec<usize>,
    /// Halves occur; widths are rounded down.
    pub channel_mult: Vec<f64>,
    pub conv_resample: bool,
    pub num_heads: usize,
    /// Width of a head; takes precedence over the numbers of heads.
    pub num_head_channels: Option<usize>,
    /// Heads in the output blocks; `None` for `num_heads`.
    pub num_heads_upsample: Option<usize>,
    pub use_scale_shift_norm: bool,
    pub resblock_updown: bool,
    /// Whether `qkv` holds all queries, all keys, all values; a network of consistency_models always does.
    pub use_new_attention_order: bool,
    pub dropout: f64,
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
}

/// Classes of guided-diffusion and consistency_models.
const OPENAI: [&str; 2] = ["KarrasDenoiser", "GaussianDiffusion"];

/// Constant of D2O's boundary condition: D(x; EPS) = x.
pub const D2O_EPS: f64 = 2e-3;
/// Steps to which guided-diffusion's `rescale_timesteps` scales those of other schedules.
const RESCALED_STEPS: usize = 1000;

/// Longest schedule of an iDDPM.
const MAX_IDDPM_STEPS: usize = 1 << 14;

impl NetConfig {
    /// Reads a class name and its constructor's arguments.
    ///
    /// # Errors
    /// `Config` for an unknown class, an unknown or missing argument, or a value out of range.
    pub fn new(class: &str, init_kwargs: &Value) -> Result<Self> {
        let Value::Object(kwargs) = init_kwargs else {
            return Err(wrong(format!("`init_kwargs`: expected an object, found {init_kwargs}")));
        };
        let mut rest = Args { left: kwargs.clone() };
        if OPENAI.contains(&class) {
            return Self::openai(class, rest, kwargs.clone());
        }
        let img_resolution = rest.required("img_resolution")?;
        let img_channels = rest.required("img_channels")?;
        let label_dim = rest.number("label_dim")?.unwrap_or(0);
        rest.left.remove("use_fp16");
        let (precond, default_model) = match class {
            "EDMPrecond" | "D2OPrecond" => {
                let sigma_min = rest.float("sigma_min", 0.0)?;
                if class == "D2OPrecond" && sigma_min != 0.0 {
                    return Err(wrong(format!(
                        "`sigma_min`: D2OPrecond does not use it (its D(x; σ) is the identity at σ = {D2O_EPS}), found {sigma_min}"
                    )));
                }
                rest.left.remove("sigma_max");
                let sigma_data = rest.float("sigma_data", 0.5)?;
                let precond =
                    if class == "EDMPrecond" { Precond::Edm { sigma_data } } else { Precond::D2o { sigma_data } };
                (precond, "DhariwalUNet")
            }
            "VPPrecond" => {
                rest.left.remove("epsilon_t");
                let beta_d = rest.float("beta_d", 19.9)?;
                let beta_min = rest.float("beta_min", 0.1)?;
                (Precond::Vp { beta_d, beta_min, steps: rest.float("M", 1000.0)? }, "SongUNet")
            }
            "VEPrecond" => {
                for unused in ["sigma_min", "sigma_max"] {
                    rest.left.remove(unused);
                }
                (Precond::Ve, "SongUNet")
            }
            "iDDPMPrecond" => {
                let (c1, c2) = (rest.float("C_1", 0.001)?, rest.float("C_2", 0.008)?);
                let steps = rest.number("M")?.unwrap_or(1000);
                if !(1..=MAX_IDDPM_STEPS).contains(&steps) {
                    return Err(wrong(format!("`M`: expected 1 to {MAX_IDDPM_STEPS}, found {steps}")));
                }
                (Precond::Iddpm { c1, c2, steps }, "DhariwalUNet")
            }
            other => {
                let known =
                    "EDMPrecond, D2OPrecond, VPPrecond, VEPrecond, iDDPMPrecond, KarrasDenoiser, GaussianDiffusion";
                return Err(wrong(format!("`class`: expected one of {known}, found `{other}`")));
            }
        };
        let model = match rest.left.remove("model_type") {
            None => default_model.to_owned(),
            Some(Value::String(name)) => name,
            Some(other) => return Err(wrong(format!("`model_type`: expected text, found {other}"))),
        };
        let left = Value::Object(rest.left);
        let read = |e: serde_json::Error| wrong(format!("arguments of `{model}`: {e}"));
        let unet = match model.as_str() {
            "SongUNet" => UNetConfig::Song(serde_json::from_value(left).map_err(read)?),
            "DhariwalUNet" => UNetConfig::Dhariwal(serde_json::from_value(left).map_err(read)?),
            other => {
                return Err(wrong(format!("`model_type`: expected SongUNet or DhariwalUNet, found `{other}`")));
            }
        };
        let config = Self { precond, img_resolution, img_channels, label_dim, unet, init_kwargs: kwargs.clone() };
        config.check()?;
        Ok(config)
    }

    /// The arguments of `UNetModel` and of the diffusion around it, together.
    fn openai(class: &str, mut rest: Args, init_kwargs: Map<String, Value>) -> Result<Self> {
        // An argument that is None in the original is null here: as if it were absent.
        rest.left.retain(|_, v| !v.is_null());
        let img_resolution = rest.required("image_size")?;
        let img_channels = rest.number("in_channels")?.unwrap_or(3);
        let label_dim = rest.number("num_classes")?.unwrap_or(0);
        let clip = rest.flag("clip_denoised")?.unwrap_or(true);
        for unused in
            ["use_fp16", "use_checkpoint", "sigma_max", "rho", "weight_schedule", "loss_norm", "rescale_learned_sigmas"]
        {
            rest.left.remove(unused);
        }
        let missing = |name: &str| wrong(format!("`{name}` is missing"));
        let precond = if class == "KarrasDenoiser" {
            let (sigma_data, sigma_min) = (rest.float("sigma_data", 0.5)?, rest.float("sigma_min", 0.002)?);
            let distillation = rest.flag("distillation")?.ok_or_else(|| missing("distillation"))?;
            Precond::Karras { sigma_data, sigma_min: distillation.then_some(sigma_min), clip }
        } else {
            let steps = rest.number("diffusion_steps")?.unwrap_or(1000);
            if !(2..=MAX_IDDPM_STEPS).contains(&steps) {
                return Err(wrong(format!("`diffusion_steps`: expected 2 to {MAX_IDDPM_STEPS}, found {steps}")));
            }
            let rescaled = match rest.flag("rescale_timesteps")? {
                Some(rescaled) => rescaled,
                None if steps == RESCALED_STEPS => false,
                None => return Err(missing("rescale_timesteps")),
            };
            let time_scale = if rescaled { RESCALED_STEPS as f64 / steps as f64 } else { 1.0 };
            let schedule = rest.left.remove("noise_schedule").ok_or_else(|| missing("noise_schedule"))?;
            let schedule = serde_json::from_value(schedule).map_err(|e| wrong(format!("`noise_schedule`: {e}")))?;
            if !rest.left.contains_key("use_new_attention_order") {
                return Err(missing("use_new_attention_order"));
            }
            Precond::Gaussian { schedule, steps, time_scale, clip }
        };
        let unet: OpenAiConfig = serde_json::from_value(Value::Object(rest.left))
            .map_err(|e| wrong(format!("arguments of `UNetModel`: {e}")))?;
        if let Some(outputs) = unet.out_channels.filter(|n| *n != img_channels && *n != 2 * img_channels) {
            return Err(wrong(format!("`out_channels`: expected {img_channels} or twice as many, found {outputs}")));
        }
        let unet = UNetConfig::OpenAi(unet);
        let config = Self { precond, img_resolution, img_channels, label_dim, unet, init_kwargs };
        config.check()?;
        Ok(config)
    }

    /// The same network as a one-step generator: class `D2OPrecond`, no augmentation labels, this `dropout`.
    ///
    /// # Errors
    /// `Config` if the preconditioner has no σ_data, which D2O's needs.
    pub fn into_one_step(&self, dropout: f64) -> Result<Self> {
        let (Precond::Edm { .. } | Precond::D2o { .. }) = self.precond else {
            return Err(wrong(format!("`class`: fine-tuning starts from EDMPrecond, found {}", self.precond.class())));
        };
        let mut kwargs = self.init_kwargs.clone();
        kwargs.remove("augment_dim");
        kwargs.remove("use_fp16");
        kwargs.insert("dropout".to_owned(), dropout.into());
        Self::new("D2OPrecond", &Value::Object(kwargs))
    }

    /// Name of the preconditioner's class.
    #[must_use]
    pub fn class(&self) -> &'static str {
        self.precond.class()
    }

    /// Probability with which training hides an image's label from the network.
    #[must_use]
    pub fn label_dropout(&self) -> f64 {
        match &self.unet {
            UNetConfig::Song(c) => c.label_dropout,
            UNetConfig::Dhariwal(c) => c.label_dropout,
            UNetConfig::OpenAi(_) => 0.0,
        }
    }

    /// The constructor's arguments as they were read.
    #[must_use]
    pub fn init_kwargs(&self) -> Value {
        Value::Object(self.init_kwargs.clone())
    }

    fn check(&self) -> Result<()> {
        const MAX_RESOLUTION: usize = 4096;
        const MAX_CHANNELS: usize = 1 << 14;
        let whole = |list: &[usize]| list.iter().map(|m| *m as f64).collect();
        let (mult, channels, blocks): (Vec<f64>, _, _) = match &self.unet {
            UNetConfig::Song(c) => {
                (whole(&c.channel_mult), c.model_channels.saturating_mul(c.channel_mult_noise), c.num_blocks)
            }
            UNetConfig::Dhariwal(c) => (whole(&c.channel_mult), c.model_channels, c.num_blocks),
            UNetConfig::OpenAi(c) => (c.channel_mult.clone(), c.model_channels, c.num_res_blocks),
        };
        let within = |name: &str, value: usize, low: usize, high: usize| {
            if (low..=high).contains(&value) {
                Ok(())
            } else {
                Err(wrong(format!("`{name}`: expected {low} to {high}, found {value}")))
            }
        };
        within("img_resolution", self.img_resolution, 1, MAX_RESOLUTION)?;
        within("img_channels", self.img_channels, 1, MAX_CHANNELS)?;
        within("label_dim", self.label_dim, 0, MAX_CHANNELS * MAX_CHANNELS)?;
        within("model_channels", channels, 4, MAX_CHANNELS)?;
        within("channel_mult (length)", mult.len(), 1, 12)?;
        within("num_blocks", blocks, 1, 64)?;
        let embedded = match &self.unet {
            UNetConfig::Song(c) => {
                check_filter(&c.resample_filter).map_err(wrong)?;
                Some((c.augment_dim, c.channel_mult_emb, c.label_dropout))
            }
            UNetConfig::Dhariwal(c) => Some((c.augment_dim, c.channel_mult_emb, c.label_dropout)),
            UNetConfig::OpenAi(_) => None,
        };
        if let Some((augment_dim, channel_mult_emb, label_dropout)) = embedded {
            within("augment_dim", augment_dim, 0, MAX_CHANNELS)?;
            within("channel_mult_emb", channel_mult_emb, 1, 64)?;
            if !(0.0..1.0).contains(&label_dropout) {
                return Err(wrong(format!("`label_dropout`: expected 0 to below 1, found {label_dropout}")));
            }
        }
        for m in &mult {
            if !(0.125..=64.0).contains(m) {
                return Err(wrong(format!("`channel_mult`: expected 0.125 to 64, found {m}")));
            }
        }
        let unit = 1 << (mult.len() - 1);
        if !self.img_resolution.is_multiple_of(unit) {
            let levels = mult.len();
            return Err(wrong(format!(
                "`img_resolution`: expected a multiple of {unit} for {levels} levels, found {}",
                self.img_resolution
            )));
        }
        Ok(())
    }
}

struct Args {
    left: Map<String, Value>,
}

impl Args {
    fn number(&mut self, name: &str) -> Result<Option<usize>> {
        match self.left.remove(name) {
            None => Ok(None),
            Some(v) => v
                .as_u64()
                .and_then(|n| usize::try_from(n).ok())
                .map(Some)
                .ok_or_else(|| wrong(format!("`{name}`: expected a whole number, found {v}"))),
        }
    }

    fn required(&mut self, name: &str) -> Result<usize> {
        self.number(name)?.ok_or_else(|| wrong(format!("`{name}` is missing")))
    }

    fn flag(&mut self, name: &str) -> Result<Option<bool>> {
        let value = self.left.remove(name);
        value
            .map(|v| v.as_bool().ok_or_else(|| wrong(format!("`{name}`: expected true or false, found {v}"))))
            .transpose()
    }

    fn float(&mut self, name: &str, default: f64) -> Result<f64> {
        match self.left.remove(name) {
            None => Ok(default),
            Some(v) => v.as_f64().ok_or_else(|| wrong(format!("`{name}`: expected a number, found {v}"))),
        }
    }
}

/// Checks the taps of a resampling filter; the error says what is wrong.
pub(crate) fn check_filter(taps: &[f64]) -> std::result::Result<(), String> {
    const MAX_TAPS: usize = 16;
    let count = taps.len();
    if !(2..=MAX_TAPS).contains(&count) || !count.is_multiple_of(2) {
        return Err(format!("`resample_filter`: expected an even number of values, at most {MAX_TAPS}, found {count}"));
    }
    let sum: f64 = taps.iter().sum();
    if !sum.is_finite() || sum == 0.0 {
        return Err(format!("`resample_filter`: expected values whose sum is finite and not 0, found {sum}"));
    }
    Ok(())
}

fn wrong(what: String) -> Error {
    Error::Config { what }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn defaults_are_those_of_the_class() {
        let config = NetConfig::new("VPPrecond", &json!({"img_resolution": 32, "img_channels": 3})).unwrap();
        assert_eq!(config.unet, UNetConfig::Song(SongConfig::default()));
        let config = NetConfig::new("EDMPrecond", &json!({"img_resolution": 64, "img_channels": 3})).unwrap();
        assert_eq!(config.unet, UNetConfig::Dhariwal(DhariwalConfig::default()));
    }

    #[test]
    fn errors_name_the_argument() {
        let fails = |class: &str, kwargs: Value| NetConfig::new(class, &kwargs).unwrap_err().to_string();
        assert!(fails("EDMPrecond", json!({"img_channels": 3})).contains("`img_resolution` is missing"));
        assert!(fails("XPrecond", json!({"img_resolution": 8, "img_channels": 3})).contains("found `XPrecond`"));
        let typo = json!({"img_resolution": 8, "img_channels": 3, "model_type": "SongUNet", "num_block": 1});
        assert!(fails("EDMPrecond", typo).contains("num_block"));
        let odd = json!({"img_resolution": 9, "img_channels": 3, "model_type": "SongUNet"});
        assert!(fails("EDMPrecond", odd).contains("multiple of 8"));
    }

    #[test]
    fn one_step_keeps_sizes_and_drops_augmentation() {
        let kwargs = json!({"img_resolution": 32, "img_channels": 3, "model_type": "SongUNet", "augment_dim": 9});
        let config = NetConfig::new("EDMPrecond", &kwargs).unwrap().into_one_step(0.0).unwrap();
        assert_eq!(config.class(), "D2OPrecond");
        let UNetConfig::Song(song) = &config.unet else { panic!("expected SongUNet") };
        assert_eq!((song.augment_dim, song.dropout), (0, 0.0));
        assert_eq!(NetConfig::new("D2OPrecond", &config.init_kwargs()).unwrap(), config);
    }
}
