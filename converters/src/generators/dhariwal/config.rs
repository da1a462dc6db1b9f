//! Arguments of EDM's `DhariwalUNet`.

use serde::{Deserialize, Serialize};

/// Arguments of `DhariwalUNet` except resolution, channels and labels. Absent arguments have the defaults of the class.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[allow(missing_docs, reason = "arguments of `DhariwalUNet`, which `training/networks.py` of NVlabs/edm documents")]
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
