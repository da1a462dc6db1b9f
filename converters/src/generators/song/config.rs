//! Arguments of EDM's `SongUNet`.

use serde::{Deserialize, Serialize};

/// Embedding of the noise level.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum EmbeddingType {
    /// Fixed sinusoids.
    Positional,
    /// Random Fourier features.
    Fourier,
}

/// Image skip path of the encoder.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum EncoderType {
    /// No skip path.
    Standard,
    /// The downsampled image, mixed in by 1×1 convolutions.
    Skip,
    /// A residual pyramid of the image.
    Residual,
}

/// Image skip path of the decoder.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum DecoderType {
    /// No skip path.
    Standard,
    /// An output image at each resolution, upsampled and summed.
    Skip,
}

/// Arguments of `SongUNet` except resolution, channels and labels. Absent arguments have the defaults of the class.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[allow(missing_docs, reason = "arguments of `SongUNet`, which `training/networks.py` of NVlabs/edm documents")]
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
    /// The NCSN++ settings; all others are the defaults of the class.
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
