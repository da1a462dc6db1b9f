//! DhariwalUNet: the ADM network (Dhariwal and Nichol 2021) in EDM's reimplementation.

use super::config::DhariwalConfig;
use crate::backend::{Backend, Ops as _};
use crate::error::Result;
use crate::generators::backbone::{Labels, Shape, augmented};
use crate::generators::edm_block::{BlockStyle, Heads, UNetBlock};
use crate::layers::{Conv, ConvConfig, GroupNorm, InitMode, LayerInit, Linear, NoiseEmbedding, Resample};
use crate::weights::Scope;

const EPS: f64 = 1e-5;
const HEAD_WIDTH: usize = 64;

/// The network. Tensor names are those of the state dict in EDM.
#[derive(Debug, Clone)]
pub struct DhariwalUNet<V> {
    scope: Scope,
    label_dim: usize,
    map_noise: NoiseEmbedding<V>,
    map_augment: Option<Linear<V>>,
    map_layer0: Linear<V>,
    map_layer1: Linear<V>,
    map_label: Option<Linear<V>>,
    stem: Conv<V>,
    enc: Vec<UNetBlock<V>>,
    dec: Vec<(UNetBlock<V>, bool)>,
    out_norm: GroupNorm<V>,
    out_conv: Conv<V>,
}

impl<V: Clone> DhariwalUNet<V> {
    /// Builds the network from the tensors below `model`.
    ///
    /// # Errors
    /// Those of [`Backend::param`].
    pub fn build<B: Backend<Value = V>>(b: &mut B, shape: Shape, cfg: &DhariwalConfig) -> Result<Self> {
        let Shape { resolution, inputs: channels, outputs, label_dim } = shape;
        let scope = Scope::root().child("model");
        let gain = (1.0_f64 / 3.0).sqrt();
        let init = LayerInit { mode: InitMode::KaimingUniform, weight: gain, bias: gain };
        let zero = LayerInit::new(InitMode::KaimingUniform, 0.0);
        let emb = cfg.model_channels * cfg.channel_mult_emb;
        let style = BlockStyle {
            embedding: emb,
            dropout: cfg.dropout,
            skip_scale: 1.0,
            eps: EPS,
            filter: vec![1.0, 1.0],
            resample_proj: false,
            adaptive_scale: true,
            heads: Heads::Width(HEAD_WIDTH),
            init,
            init_zero: zero,
            init_attention: init,
        };
        let map_noise = NoiseEmbedding::positional(b, scope.child("map_noise"), cfg.model_channels, false, false)?;
        let map_augment = match cfg.augment_dim {
            0 => None,
            labels => Linear::build_for_training(b, scope.child("map_augment"), labels, cfg.model_channels, zero)?,
        };
        let map_layer0 = Linear::build(b, scope.child("map_layer0"), cfg.model_channels, emb, true, init)?;
        let map_layer1 = Linear::build(b, scope.child("map_layer1"), emb, emb, true, init)?;
        let map_label = if label_dim > 0 {
            let init = LayerInit::new(InitMode::KaimingNormal, (label_dim as f64).sqrt());
            Some(Linear::build(b, scope.child("map_label"), label_dim, emb, false, init)?)
        } else {
            None
        };

        let conv = |inputs, outputs, init| ConvConfig::plain(inputs, outputs, 3, init);
        let first = cfg.model_channels * cfg.channel_mult.first().copied().unwrap_or(1);
        let stem_scope = scope.child("enc").child(format!("{resolution}x{resolution}_conv"));
        let stem = Conv::build(b, stem_scope, &conv(channels, first, init))?;
        let (mut enc, mut skips, mut width) = (Vec::new(), vec![first], first);
        for (level, mult) in cfg.channel_mult.iter().enumerate() {
            let res = resolution >> level;
            let at = |name: &str| scope.child("enc").child(format!("{res}x{res}_{name}"));
            if level > 0 {
                enc.push(UNetBlock::build(b, at("down"), width, width, Resample::Down, false, &style)?);
                skips.push(width);
            }
            for i in 0..cfg.num_blocks {
                let outputs = cfg.model_channels * mult;
                let attention = cfg.attn_resolutions.contains(&res);
                let name = at(&format!("block{i}"));
                enc.push(UNetBlock::build(b, name, width, outputs, Resample::Keep, attention, &style)?);
                width = outputs;
                skips.push(width);
            }
        }

        let mut dec = Vec::new();
        for (level, mult) in cfg.channel_mult.iter().enumerate().rev() {
            let res = resolution >> level;
            let at = |name: &str| scope.child("dec").child(format!("{res}x{res}_{name}"));
            if level + 1 == cfg.channel_mult.len() {
                dec.push((UNetBlock::build(b, at("in0"), width, width, Resample::Keep, true, &style)?, false));
                dec.push((UNetBlock::build(b, at("in1"), width, width, Resample::Keep, false, &style)?, false));
            } else {
                dec.push((UNetBlock::build(b, at("up"), width, width, Resample::Up, false, &style)?, false));
            }
            for i in 0..=cfg.num_blocks {
                let inputs = width + skips.pop().unwrap_or(0);
                width = cfg.model_channels * mult;
                let attention = cfg.attn_resolutions.contains(&res);
                let name = at(&format!("block{i}"));
                dec.push((UNetBlock::build(b, name, inputs, width, Resample::Keep, attention, &style)?, true));
            }
        }
        let out_norm = GroupNorm::build(b, scope.child("out_norm"), width, EPS)?;
        let out_conv = Conv::build(b, scope.child("out_conv"), &conv(width, outputs, zero))?;
        Ok(Self {
            scope,
            label_dim,
            map_noise,
            map_augment,
            map_layer0,
            map_layer1,
            map_label,
            stem,
            enc,
            dec,
            out_norm,
            out_conv,
        })
    }

    /// Maps `x [N, inputs, R, R]`, `noise [N or 1]` and `labels` to `[N, outputs, R, R]`.
    ///
    /// # Errors
    /// `Config` if augmentation labels are given and the network takes none; `Engine` if an operation fails.
    pub fn forward<B: Backend<Value = V>>(&self, b: &mut B, x: &V, noise: &V, labels: Labels<'_, V>) -> Result<V> {
        let emb = self.embed(b, noise, labels)?;
        let mut x = self.stem.forward(b, x)?;
        let mut skips = vec![x.clone()];
        for block in &self.enc {
            x = block.forward(b, &x, &emb)?;
            skips.push(x.clone());
        }
        for (block, takes_skip) in &self.dec {
            if *takes_skip && let Some(skip) = skips.pop() {
                b.enter(&self.scope);
                x = b.concat(&[x, skip], 1)?;
            }
            x = block.forward(b, &x, &emb)?;
        }
        let x = self.out_norm.forward(b, &x)?;
        let x = b.silu(&x)?;
        self.out_conv.forward(b, &x)
    }

    fn embed<B: Backend<Value = V>>(&self, b: &mut B, noise: &V, labels: Labels<'_, V>) -> Result<V> {
        let emb = self.map_noise.forward(b, noise)?;
        let emb = augmented(b, emb, self.map_augment.as_ref(), labels.augment)?;
        let emb = self.map_layer0.forward(b, &emb)?;
        let emb = b.silu(&emb)?;
        let mut emb = self.map_layer1.forward(b, &emb)?;
        if let Some(map_label) = &self.map_label {
            let classes = match labels.classes {
                Some(y) => y.clone(),
                None => b.constant(&self.scope, "no_label", &[1, self.label_dim], vec![0.0; self.label_dim])?,
            };
            let label = map_label.forward(b, &classes)?;
            emb = b.add(&emb, &label)?;
        }
        b.silu(&emb)
    }
}
