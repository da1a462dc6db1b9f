//! SongUNet: DDPM++ and NCSN++ (Song et al. 2021) in EDM's reimplementation.

use std::f64::consts::{FRAC_1_SQRT_2, SQRT_2};

use super::config::{DecoderType, EmbeddingType, EncoderType, SongConfig};
use crate::backend::{Backend, Ops as _};
use crate::error::Result;
use crate::generators::backbone::{Labels, Shape, augmented};
use crate::generators::edm_block::{BlockStyle, Heads, UNetBlock};
use crate::layers::{Conv, ConvConfig, GroupNorm, InitMode, LayerInit, Linear, NoiseEmbedding, Resample};
use crate::weights::Scope;

const EPS: f64 = 1e-6;

/// The network. Tensor names are those of the state dict in EDM.
#[derive(Debug, Clone)]
pub struct SongUNet<V> {
    scope: Scope,
    label_dim: usize,
    map_noise: NoiseEmbedding<V>,
    map_label: Option<Linear<V>>,
    map_augment: Option<Linear<V>>,
    map_layer0: Linear<V>,
    map_layer1: Linear<V>,
    enc: Vec<Encoder<V>>,
    dec: Vec<Decoder<V>>,
}

#[derive(Debug, Clone)]
#[allow(clippy::large_enum_variant, reason = "a few dozen entries, built once")]
enum Encoder<V> {
    Conv(Conv<V>),
    Block(UNetBlock<V>),
    AuxDown(Conv<V>),
    AuxSkip(Conv<V>),
    AuxResidual(Conv<V>),
}

#[derive(Debug, Clone)]
#[allow(clippy::large_enum_variant, reason = "a few dozen entries, built once")]
enum Decoder<V> {
    Block { block: UNetBlock<V>, takes_skip: bool },
    AuxUp(Conv<V>),
    AuxOut(GroupNorm<V>, Conv<V>),
}

impl<V: Clone> SongUNet<V> {
    /// Builds the network from the tensors below `model`.
    ///
    /// # Errors
    /// Those of [`Backend::param`].
    pub fn build<B: Backend<Value = V>>(b: &mut B, shape: Shape, cfg: &SongConfig) -> Result<Self> {
        let Shape { resolution, inputs: channels, outputs: out_channels, label_dim } = shape;
        let scope = Scope::root().child("model");
        let xavier = |gain| LayerInit::new(InitMode::XavierUniform, gain);
        let init = xavier(1.0);
        let style = BlockStyle {
            embedding: cfg.model_channels * cfg.channel_mult_emb,
            dropout: cfg.dropout,
            skip_scale: FRAC_1_SQRT_2,
            eps: EPS,
            filter: cfg.resample_filter.clone(),
            resample_proj: true,
            adaptive_scale: false,
            heads: Heads::Count(1),
            init,
            init_zero: xavier(1e-5),
            init_attention: xavier(0.2_f64.sqrt()),
        };
        let noise = cfg.model_channels * cfg.channel_mult_noise;
        let map_noise = match cfg.embedding_type {
            EmbeddingType::Positional => NoiseEmbedding::positional(b, scope.child("map_noise"), noise, true, true)?,
            EmbeddingType::Fourier => NoiseEmbedding::fourier(b, scope.child("map_noise"), noise, true)?,
        };
        let map_label = if label_dim > 0 {
            Some(Linear::build(b, scope.child("map_label"), label_dim, noise, true, init)?)
        } else {
            None
        };
        let map_augment = match cfg.augment_dim {
            0 => None,
            labels => Linear::build_for_training(b, scope.child("map_augment"), labels, noise, init)?,
        };
        let map_layer0 = Linear::build(b, scope.child("map_layer0"), noise, style.embedding, true, init)?;
        let map_layer1 = Linear::build(b, scope.child("map_layer1"), style.embedding, style.embedding, true, init)?;

        let conv = |inputs, outputs, kernel, resample, init| ConvConfig {
            resample,
            filter: &cfg.resample_filter,
            ..ConvConfig::plain(inputs, outputs, kernel, init)
        };
        let (mut enc, mut skips) = (Vec::new(), Vec::new());
        let (mut width, mut aux) = (channels, channels);
        for (level, mult) in cfg.channel_mult.iter().enumerate() {
            let res = resolution >> level;
            let at = |name: &str| scope.child("enc").child(format!("{res}x{res}_{name}"));
            if level == 0 {
                let stem = conv(width, cfg.model_channels, 3, Resample::Keep, init);
                enc.push(Encoder::Conv(Conv::build(b, at("conv"), &stem)?));
                width = cfg.model_channels;
            } else {
                let down = UNetBlock::build(b, at("down"), width, width, Resample::Down, false, &style)?;
                enc.push(Encoder::Block(down));
                match cfg.encoder_type {
                    EncoderType::Standard => {}
                    EncoderType::Skip => {
                        let down = conv(aux, aux, 0, Resample::Down, init);
                        enc.push(Encoder::AuxDown(Conv::build(b, at("aux_down"), &down)?));
                        let mix = conv(aux, width, 1, Resample::Keep, init);
                        enc.push(Encoder::AuxSkip(Conv::build(b, at("aux_skip"), &mix)?));
                    }
                    EncoderType::Residual => {
                        let mix = conv(aux, width, 3, Resample::FusedDown, init);
                        enc.push(Encoder::AuxResidual(Conv::build(b, at("aux_residual"), &mix)?));
                        aux = width;
                    }
                }
            }
            skips.push(width);
            for i in 0..cfg.num_blocks {
                let outputs = cfg.model_channels * mult;
                let attention = cfg.attn_resolutions.contains(&res);
                let name = at(&format!("block{i}"));
                enc.push(Encoder::Block(UNetBlock::build(b, name, width, outputs, Resample::Keep, attention, &style)?));
                width = outputs;
                skips.push(width);
            }
        }

        let mut dec = Vec::new();
        let deepest = cfg.channel_mult.len() - 1;
        for (level, mult) in cfg.channel_mult.iter().enumerate().rev() {
            let res = resolution >> level;
            let at = |name: &str| scope.child("dec").child(format!("{res}x{res}_{name}"));
            let mut plain = |b: &mut B, name, resample, attention| -> Result<()> {
                let block = UNetBlock::build(b, at(name), width, width, resample, attention, &style)?;
                dec.push(Decoder::Block { block, takes_skip: false });
                Ok(())
            };
            if level == deepest {
                plain(b, "in0", Resample::Keep, true)?;
                plain(b, "in1", Resample::Keep, false)?;
            } else {
                plain(b, "up", Resample::Up, false)?;
            }
            for i in 0..=cfg.num_blocks {
                let inputs = width + skips.pop().unwrap_or(0);
                width = cfg.model_channels * mult;
                let attention = i == cfg.num_blocks && cfg.attn_resolutions.contains(&res);
                let name = at(&format!("block{i}"));
                let block = UNetBlock::build(b, name, inputs, width, Resample::Keep, attention, &style)?;
                dec.push(Decoder::Block { block, takes_skip: true });
            }
            if cfg.decoder_type == DecoderType::Skip || level == 0 {
                if cfg.decoder_type == DecoderType::Skip && level < deepest {
                    let up = conv(out_channels, out_channels, 0, Resample::Up, init);
                    dec.push(Decoder::AuxUp(Conv::build(b, at("aux_up"), &up)?));
                }
                let norm = GroupNorm::build(b, at("aux_norm"), width, EPS)?;
                let out =
                    Conv::build(b, at("aux_conv"), &conv(width, out_channels, 3, Resample::Keep, style.init_zero))?;
                dec.push(Decoder::AuxOut(norm, out));
            }
        }
        Ok(Self { scope, label_dim, map_noise, map_label, map_augment, map_layer0, map_layer1, enc, dec })
    }

    /// Maps `x [N, inputs, R, R]`, `noise [N or 1]` and `labels` to `[N, outputs, R, R]`.
    ///
    /// # Errors
    /// `Config` if augmentation labels are given and the network takes none; `Engine` if an operation fails.
    pub fn forward<B: Backend<Value = V>>(&self, b: &mut B, x: &V, noise: &V, labels: Labels<'_, V>) -> Result<V> {
        let emb = self.embed(b, noise, labels)?;

        let (mut x, mut aux, mut skips) = (x.clone(), x.clone(), Vec::new());
        for entry in &self.enc {
            match entry {
                Encoder::Conv(conv) => x = conv.forward(b, &x)?,
                Encoder::Block(block) => x = block.forward(b, &x, &emb)?,
                Encoder::AuxDown(conv) => {
                    aux = conv.forward(b, &aux)?;
                    continue;
                }
                Encoder::AuxSkip(conv) => {
                    let side = conv.forward(b, &aux)?;
                    x = b.add(&x, &side)?;
                    skips.pop();
                }
                Encoder::AuxResidual(conv) => {
                    let side = conv.forward(b, &aux)?;
                    let sum = b.add(&x, &side)?;
                    x = b.scale(&sum, 1.0 / SQRT_2)?;
                    aux = x.clone();
                    skips.pop();
                }
            }
            skips.push(x.clone());
        }

        let mut image: Option<V> = None;
        for entry in &self.dec {
            match entry {
                Decoder::Block { block, takes_skip } => {
                    if *takes_skip && let Some(skip) = skips.pop() {
                        b.enter(&self.scope);
                        x = b.concat(&[x, skip], 1)?;
                    }
                    x = block.forward(b, &x, &emb)?;
                }
                Decoder::AuxUp(conv) => {
                    if let Some(small) = image.take() {
                        image = Some(conv.forward(b, &small)?);
                    }
                }
                Decoder::AuxOut(norm, conv) => {
                    let h = norm.forward(b, &x)?;
                    let h = b.silu(&h)?;
                    let h = conv.forward(b, &h)?;
                    image = Some(match &image {
                        Some(sum) => b.add(&h, sum)?,
                        None => h,
                    });
                }
            }
        }
        Ok(image.unwrap_or(x))
    }

    fn embed<B: Backend<Value = V>>(&self, b: &mut B, noise: &V, labels: Labels<'_, V>) -> Result<V> {
        let mut emb = self.map_noise.forward(b, noise)?;
        if let Some(map_label) = &self.map_label {
            let dims = [1, self.label_dim];
            let classes = match labels.classes {
                Some(y) => b.scale(y, (self.label_dim as f64).sqrt())?,
                None => b.constant(&self.scope, "no_label", &dims, vec![0.0; self.label_dim])?,
            };
            let label = map_label.forward(b, &classes)?;
            emb = b.add(&emb, &label)?;
        }
        let emb = augmented(b, emb, self.map_augment.as_ref(), labels.augment)?;
        let emb = self.map_layer0.forward(b, &emb)?;
        let emb = b.silu(&emb)?;
        let emb = self.map_layer1.forward(b, &emb)?;
        b.silu(&emb)
    }
}
