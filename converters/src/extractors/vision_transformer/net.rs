//! The networks: trunk, and trunk with norm, projection and heads.

use super::config::{Family, VitConfig};
use crate::backend::{Backend, Conv2d, Ops as _, signed};
use crate::error::{Error, Result};
use crate::extractors::{Activation, Named};
use crate::layers::{LayerInit, LayerNorm, Linear};
use crate::weights::{Init, Scope};

/// Indices of the DeiT blocks, of 12, whose outputs are taps of the discriminator of D2O.
pub const DEIT_TAPS: [usize; 4] = [2, 5, 8, 11];

/// QuickGELU is x·σ(1.702x).
const QUICK: f64 = 1.702;
const INIT_STD: f64 = 0.02;

#[derive(Debug, Clone)]
struct Block<V> {
    scope: Scope,
    config: VitConfig,
    head: usize,
    tokens: usize,
    norm_1: LayerNorm<V>,
    qkv: Vec<(V, V)>,
    attention: Linear<V>,
    norm_2: LayerNorm<V>,
    mlp: [Linear<V>; 2],
    /// LayerScale factors of the two branches (DINOv2).
    layer_scale: Option<[V; 2]>,
}

impl<V: Clone> Block<V> {
    fn build<B: Backend<Value = V>>(
        b: &mut B,
        scope: Scope,
        config: &VitConfig,
        head: usize,
        tokens: usize,
    ) -> Result<Self> {
        let names = config.family.names();
        let (width, mlp_dim) = (config.width, config.mlp_dim);
        let norm_1 = LayerNorm::build(b, scope.child(names.norms[0]), width, names.eps)?;
        let (normal, zero) = (Init::Normal { std: INIT_STD }, Init::Constant(0.0));
        let qkv = if config.packed {
            let (at, weight, bias) = names.packed;
            let at = scope.child(at);
            let weight = b.param(&at, weight, &[3 * width, width], &normal)?;
            vec![(weight, b.param(&at, bias, &[3 * width], &zero)?)]
        } else {
            let mut all = Vec::new();
            for name in ["attn.q_proj", "attn.k_proj", "attn.v_proj"] {
                let at = scope.child(name);
                let weight = b.param(&at, "weight", &[width, width], &normal)?;
                all.push((weight, b.param(&at, "bias", &[width], &zero)?));
            }
            all
        };
        let linear = |b: &mut B, name, inputs, outputs| {
            Linear::build(b, scope.child(name), inputs, outputs, true, LayerInit::TORCH)
        };
        let attention = linear(b, names.attention, width, width)?;
        let norm_2 = LayerNorm::build(b, scope.child(names.norms[1]), width, names.eps)?;
        let mlp = [linear(b, names.mlp[0], width, mlp_dim)?, linear(b, names.mlp[1], mlp_dim, width)?];
        let mut factor = |name| b.param(&scope.child(name), "gamma", &[width], &Init::Constant(1.0));
        let layer_scale = if config.family == Family::Dino { Some([factor("ls1")?, factor("ls2")?]) } else { None };
        Ok(Self { scope, config: *config, head, tokens, norm_1, qkv, attention, norm_2, mlp, layer_scale })
    }

    /// Maps `x [N·tokens, width]` to the same shape.
    fn forward<B: Backend<Value = V>>(&self, b: &mut B, x: &V) -> Result<V> {
        let width = self.config.width;
        let h = self.norm_1.forward(b, x)?;
        b.enter(&self.scope.child("attn"));
        let mut parts = Vec::new();
        for (weight, bias) in &self.qkv {
            let all = b.linear(&h, weight, Some(bias))?;
            for j in 0..3 / self.qkv.len() {
                let part = if self.qkv.len() == 1 { b.slice(&all, 1, j * width, width)? } else { all.clone() };
                let part =
                    b.reshape(&part, &[-1, signed(self.tokens), signed(width / self.head), signed(self.head)])?;
                parts.push(b.transpose(&part, &[0, 2, 1, 3])?);
            }
        }
        let q = b.scale(&parts[0], 1.0 / (self.head as f64).sqrt())?;
        let k = b.transpose(&parts[1], &[0, 1, 3, 2])?;
        let logits = b.matmul(&q, &k)?;
        let weights = b.softmax(&logits, 3)?;
        let a = b.matmul(&weights, &parts[2])?;
        let a = b.transpose(&a, &[0, 2, 1, 3])?;
        let a = b.reshape(&a, &[-1, signed(self.tokens * width)])?;
        let a = split(b, &a, width)?;
        let a = self.attention.forward(b, &a)?;
        let x = self.join(b, x, &a, 0)?;
        let h = self.norm_2.forward(b, &x)?;
        let h = self.mlp[0].forward(b, &h)?;
        let h = if self.config.activation == Some(Activation::QuickGelu) {
            let h = b.scale(&h, QUICK)?;
            let h = b.silu(&h)?;
            b.scale(&h, 1.0 / QUICK)?
        } else {
            b.gelu(&h)?
        };
        let h = self.mlp[1].forward(b, &h)?;
        self.join(b, &x, &h, 1)
    }

    /// Adds the output `branch` of branch `i` to `x`, multiplied by the LayerScale factor, if there is one.
    fn join<B: Backend<Value = V>>(&self, b: &mut B, x: &V, branch: &V, i: usize) -> Result<V> {
        b.enter(&self.scope);
        match &self.layer_scale {
            Some(factors) => {
                let scaled = b.mul(branch, &factors[i])?;
                b.add(x, &scaled)
            }
            None => b.add(x, branch),
        }
    }
}

/// `[N, tokens·width]` -> `[N·tokens, width]`.
fn split<B: Backend>(b: &mut B, x: &B::Value, width: usize) -> Result<B::Value> {
    b.reshape(x, &[-1, signed(width)])
}

/// The patch embedding and the blocks, without the last norm and the layers after it.
#[derive(Debug, Clone)]
pub struct VitTrunk<V> {
    scope: Scope,
    config: VitConfig,
    grid: usize,
    patch: (V, Option<V>),
    tokens: Vec<V>,
    position: V,
    norm_pre: Option<LayerNorm<V>>,
    blocks: Vec<Block<V>>,
}

impl<V: Clone> VitTrunk<V> {
    /// Builds the trunk for images of `input_size` pixels and takes its tensors below `scope`. The position embedding
    /// of DINOv2 is interpolated to this size as in the original. The other families accept only the size of their
    /// position embedding.
    ///
    /// # Errors
    /// `Config` if the size is not accepted, the activation is unknown, or the head width is unknown or does not divide
    /// the width; those of [`Backend::param`].
    pub fn build<B: Backend<Value = V>>(
        b: &mut B,
        scope: &Scope,
        config: &VitConfig,
        input_size: usize,
    ) -> Result<Self> {
        let (names, width) = (config.family.names(), config.width);
        let grid = input_size / config.patch;
        if grid == 0 || grid * config.patch != input_size || (config.family != Family::Dino && grid != config.grid) {
            let what = format!("{} takes images of {} pixels, found {input_size}", config.name(), config.input_size());
            return Err(Error::Config { what });
        }
        let head = config.head.ok_or_else(|| Error::Config {
            what: format!(
                "the file does not record the width of the attention heads of a CLIP encoder of width {width}: `--head-width` 80 for open_clip's ViT-H/14, \
                 88 for ViT-g/14, 104 for ViT-bigG/14"
            ),
        })?;
        if head == 0 || !width.is_multiple_of(head) {
            let what = format!("a width of {width} is not a multiple of the head width {head}");
            return Err(Error::Config { what });
        }
        if config.activation.is_none() {
            let what = "the file does not record the activation of CLIP: OpenAI's weights and open_clip's `-quickgelu` models use QuickGELU, \
                        later LAION models the exact GELU (`--activation quick-gelu` or `gelu`)";
            return Err(Error::Config { what: what.to_owned() });
        }
        let normal = Init::Normal { std: INIT_STD };
        let weight = b.param(scope, names.patch, &[width, 3, config.patch, config.patch], &normal)?;
        let clip = config.family == Family::Clip;
        let bias = if clip { None } else { Some(b.param(scope, "patch_embed.proj.bias", &[width], &normal)?) };
        let token: &[usize] = if clip { &[width] } else { &[1, 1, width] };
        let tokens = names.tokens.iter().map(|n| b.param(scope, n, token, &normal)).collect::<Result<Vec<V>>>()?;
        if config.mask_token {
            // The tensor is read so that the load is complete. Only training uses it.
            b.buffer(scope, "mask_token", &[1, width], &Init::Constant(0.0))?;
        }
        let count = config.grid * config.grid + tokens.len();
        let dims: &[usize] = if clip { &[count, width] } else { &[1, count, width] };
        let position = if grid == config.grid {
            b.param(scope, names.position, dims, &normal)?
        } else {
            let values = b.buffer(scope, names.position, dims, &normal)?;
            let (tokens, patches) = values.split_at(tokens.len() * width);
            let mut all: Vec<f64> = tokens.iter().map(|v| f64::from(*v)).collect();
            all.extend(interpolate(patches, config.grid, grid, width));
            b.constant(scope, names.position, &[1, all.len() / width, width], all)?
        };
        let count = grid * grid + tokens.len();
        let norm_pre = if clip { Some(LayerNorm::build(b, scope.child("ln_pre"), width, names.eps)?) } else { None };
        let at = scope.child(names.blocks);
        let blocks =
            (0..config.blocks).map(|i| Block::build(b, at.child(i), config, head, count)).collect::<Result<_>>()?;
        let (scope, config, patch) = (scope.clone(), *config, (weight, bias));
        Ok(Self { scope, config, grid, patch, tokens, position, norm_pre, blocks })
    }

    /// Maps normalised images `x [N, 3, S, S]` to the tokens after the last block, `[N·tokens, width]`, and to the
    /// patches after each of the blocks `taps` as maps `[N, width, S/patch, S/patch]`, in ascending order of the
    /// blocks.
    ///
    /// # Errors
    /// `Engine` if an operation fails.
    pub fn forward<B: Backend<Value = V>>(&self, b: &mut B, x: &V, taps: &[usize]) -> Result<(V, Vec<V>)> {
        let (width, patches) = (self.config.width, self.grid * self.grid);
        let count = self.tokens.len() + patches;
        b.enter(&self.scope);
        let how = Conv2d { stride: self.config.patch, pads: [0; 4], groups: 1 };
        let x = b.conv2d(x, &self.patch.0, self.patch.1.as_ref(), how)?;
        let x = b.reshape(&x, &[-1, signed(width), signed(patches)])?;
        let x = b.transpose(&x, &[0, 2, 1])?;
        // Repeats the tokens for each image: a patch of the image, times zero, plus the token.
        let first = b.slice(&x, 1, 0, 1)?;
        let nothing = b.scale(&first, 0.0)?;
        let mut parts = Vec::new();
        for token in &self.tokens {
            parts.push(b.add(&nothing, token)?);
        }
        parts.push(x);
        let x = b.concat(&parts, 1)?;
        let x = b.add(&x, &self.position)?;
        let mut x = split(b, &x, width)?;
        if let Some(norm) = &self.norm_pre {
            x = norm.forward(b, &x)?;
        }
        let mut tapped = Vec::new();
        for (i, block) in self.blocks.iter().enumerate() {
            x = block.forward(b, &x)?;
            if taps.contains(&i) {
                b.enter(&self.scope.child("taps"));
                let map = b.reshape(&x, &[-1, signed(count), signed(width)])?;
                let map = b.slice(&map, 1, self.tokens.len(), patches)?;
                let map = b.transpose(&map, &[0, 2, 1])?;
                tapped.push(b.reshape(&map, &[-1, signed(width), signed(self.grid), signed(self.grid)])?);
            }
        }
        Ok((x, tapped))
    }
}

/// The trunk with its last norm, projection (CLIP) and heads (DeiT).
#[derive(Debug, Clone)]
pub struct VisionTransformer<V> {
    trunk: VitTrunk<V>,
    norm: LayerNorm<V>,
    projection: Option<V>,
    heads: Vec<Linear<V>>,
}

impl<V: Clone> VisionTransformer<V> {
    /// Builds the network for images of `input_size` pixels and takes all of its tensors below `scope`.
    ///
    /// # Errors
    /// Those of [`VitTrunk::build`].
    pub fn build<B: Backend<Value = V>>(
        b: &mut B,
        scope: &Scope,
        config: &VitConfig,
        input_size: usize,
    ) -> Result<Self> {
        let (names, width) = (config.family.names(), config.width);
        let trunk = VitTrunk::build(b, scope, config, input_size)?;
        let norm = LayerNorm::build(b, scope.child(names.last_norm), width, names.eps)?;
        let normal = Init::Normal { std: INIT_STD };
        let clip = config.family == Family::Clip;
        let projection = if clip { Some(b.param(scope, "proj", &[width, config.outputs], &normal)?) } else { None };
        let mut heads = Vec::new();
        if config.family == Family::Deit {
            for name in ["head", "head_dist"] {
                heads.push(Linear::build(b, scope.child(name), width, config.outputs, true, LayerInit::TORCH)?);
            }
        }
        Ok(Self { trunk, norm, projection, heads })
    }

    /// Maps normalised images `x [N, 3, S, S]` to
    ///
    /// - `features [N, D]`;
    /// - `unprojected [N, width]`: CLIP features before the projection;
    /// - `logits [N, K]`: DeiT logits, the mean of its two heads;
    /// - `block_2` to `block_11`, if `taps`: patches after the blocks [`DEIT_TAPS`] of DeiT as maps `[N, width, S/patch, S/patch]`.
    ///
    /// # Errors
    /// `Engine` if an operation fails.
    pub fn forward<B: Backend<Value = V>>(&self, b: &mut B, x: &V, taps: bool) -> Result<Named<V>> {
        let VitTrunk { scope, config, grid, .. } = &self.trunk;
        let (width, count) = (config.width, self.trunk.tokens.len() + grid * grid);
        let tapped: &[usize] = if taps && config.family == Family::Deit { &DEIT_TAPS } else { &[] };
        let (x, tapped) = self.trunk.forward(b, x, tapped)?;
        b.enter(scope);
        let x = b.reshape(&x, &[-1, signed(count), signed(width)])?;
        // Norm and heads act on each token separately, so only the tokens that are used are computed.
        let mut normed = Vec::new();
        for i in 0..self.heads.len().max(1) {
            b.enter(scope);
            let token = b.slice(&x, 1, i, 1)?;
            let token = split(b, &token, width)?;
            normed.push(self.norm.forward(b, &token)?);
        }
        let mut logits = None;
        for (head, token) in self.heads.iter().zip(&normed) {
            let part = head.forward(b, token)?;
            logits = Some(match logits {
                None => part,
                Some(sum) => {
                    let sum = b.add(&sum, &part)?;
                    b.scale(&sum, 0.5)?
                }
            });
        }
        b.enter(scope);
        let class = normed.swap_remove(0);
        let (features, unprojected) = match &self.projection {
            Some(projection) => (b.matmul(&class, projection)?, Some(class)),
            None => (class, None),
        };
        let mut outputs = vec![("features".to_owned(), features)];
        outputs.extend(unprojected.map(|u| ("unprojected".to_owned(), u)));
        outputs.extend(logits.map(|l| ("logits".to_owned(), l)));
        outputs.extend(DEIT_TAPS.map(|i| format!("block_{i}")).into_iter().zip(tapped));
        Ok(outputs)
    }
}

/// Interpolates a position embedding of `from`×`from` patches, rows outermost, to `to`×`to` patches like DINOv2:
/// bicubic with a = -0.75, without antialiasing, with repeated edges and with a scale of (`to` + 0.1)/`from`.
pub(super) fn interpolate(values: &[f32], from: usize, to: usize, width: usize) -> Vec<f64> {
    const A: f64 = -0.75;
    const OFFSET: f64 = 0.1;
    let near = |x: f64| ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0;
    let far = |x: f64| ((A * x - 5.0 * A) * x + 8.0 * A) * x - 4.0 * A;
    let scale = from as f64 / (to as f64 + OFFSET);
    let last = from.saturating_sub(1);
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "floors of patch positions, clamped")]
    let taps: Vec<[(usize, f64); 4]> = (0..to)
        .map(|o| {
            let source = (o as f64 + 0.5) * scale - 0.5;
            let (low, t) = (source.floor(), source - source.floor());
            let at = |k: f64| ((low + k).max(0.0) as usize).min(last);
            [(at(-1.0), far(t + 1.0)), (at(0.0), near(t)), (at(1.0), near(1.0 - t)), (at(2.0), far(2.0 - t))]
        })
        .collect();
    let mut out = Vec::with_capacity(to * to * width);
    for rows in &taps {
        for columns in &taps {
            for c in 0..width {
                let along = |y: usize| -> f64 {
                    columns.iter().map(|(x, w)| f64::from(values[(y * from + x) * width + c]) * w).sum()
                };
                let value: f64 = rows.iter().map(|(y, w)| along(*y) * w).sum();
                out.push(value);
            }
        }
    }
    out
}
