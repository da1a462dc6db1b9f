//! Vision transformers that features are taken from: CLIP's image tower (Radford et al. 2021), DeiT distilled (Touvron et al. 2021), DINOv2
//! (Oquab et al. 2023). Sizes are those of the tensors, which do not show how wide an attention head is: 64 channels up to a width of 1024 and in DeiT and DINOv2;
//! wider towers of CLIP differ (open_clip's ViT-H/14 has 80, g/14 88, bigG/14 104).
//!
//! | family | tensors under the names of | tokens before the patches | features |
//! |---|---|---|---|
//! | CLIP | OpenAI, without `visual.` | class | class token, normalised and projected, of length `outputs` |
//! | DeiT | timm | class, distillation | class token, normalised |
//! | DINOv2 | the original, which timm shares | class | class token, normalised |
//!
//! [`openai_name`] and [`dino_name`] give these names for Hugging Face's layouts, whose queries, keys and values are separate tensors.

use std::sync::Arc;

use d2o_checkpoint::{Renamed, TensorSource};

use crate::error::{Error, Result};
use crate::nn::backend::{Backend, Conv2d};
use crate::nn::layers::{LayerInit, Linear, signed};
use crate::registry::Recognised;
use crate::weights::{Init, Scope};

/// Mean of each colour channel of CLIP's training images, of 0 to 1.
pub const CLIP_MEAN: [f32; 3] = [0.481_454_66, 0.457_827_5, 0.408_210_73];
/// Standard deviation of each.
#[allow(clippy::excessive_precision, reason = "as published")]
pub const CLIP_STD: [f32; 3] = [0.268_629_54, 0.261_302_58, 0.275_777_11];
/// Blocks of DeiT whose outputs D2O's discriminator taps, of 12.
pub const DEIT_TAPS: [usize; 4] = [2, 5, 8, 11];

/// Width of an attention head, unless the tower is wider than [`KNOWN_HEADS`].
const HEAD: usize = 64;
/// Width of the widest towers of CLIP whose heads are all [`HEAD`] wide.
const KNOWN_HEADS: usize = 1024;
/// QuickGELU is x·σ(1.702x).
const QUICK: f64 = 1.702;
const INIT_STD: f64 = 0.02;
/// Height and width DINOv2 is used at, pixels; trained at 518.
const DINO_INPUT: usize = 224;

/// Which network a transformer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// CLIP's image tower.
    Clip,
    /// DeiT with a distillation token.
    Deit,
    /// DINOv2 without registers.
    Dino,
}

/// What stands between the two layers of a block's perceptron.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// x·Φ(x), with the error function.
    Gelu,
    /// x·σ(1.702x).
    QuickGelu,
}

impl Activation {
    /// Name in metadata and on the command line.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Gelu => "gelu",
            Self::QuickGelu => "quick-gelu",
        }
    }
}

/// Sizes of a transformer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VitConfig {
    /// Which it is.
    pub family: Family,
    /// Height and width of a patch, pixels.
    pub patch: usize,
    /// Patches along each side for which the position embedding was made.
    pub grid: usize,
    /// Length of a token.
    pub width: usize,
    /// Width of a block's perceptron.
    pub hidden: usize,
    /// Width of an attention head, if it is known: tensors do not show it.
    pub head: Option<usize>,
    /// Number of blocks.
    pub blocks: usize,
    /// CLIP: length of the features. DeiT: number of classes. DINOv2: 0.
    pub outputs: usize,
    /// Whether queries, keys and values are one tensor.
    pub packed: bool,
    /// What the blocks' perceptrons apply, if the file tells.
    pub activation: Option<Activation>,
    /// Whether the file has DINOv2's `mask_token`, which only training uses.
    pub mask_token: bool,
}

impl VitConfig {
    /// CLIP ViT-B/32 as OpenAI stores it.
    #[must_use]
    pub fn clip_b_32() -> Self {
        Self {
            family: Family::Clip,
            patch: 32,
            grid: 7,
            width: 768,
            hidden: 3072,
            head: Some(HEAD),
            blocks: 12,
            outputs: 512,
            packed: true,
            activation: Some(Activation::QuickGelu),
            mask_token: false,
        }
    }

    /// The sizes of `tensors`, which have the names of `family`.
    ///
    /// # Errors
    /// `Config` if they are none of such a network.
    pub fn of(family: Family, tensors: &dyn TensorSource, activation: Option<Activation>) -> Result<Self> {
        let names = family.names();
        let dims = |name: &str| tensors.info(name).map(|i| i.dims).unwrap_or_default();
        let wrong = |what: String| Error::Config { what: format!("a {} network {what}", family.title()) };
        let conv = dims(names.patch);
        let &[width, 3, patch, same] = conv.as_slice() else {
            return Err(wrong(format!("whose patch embedding is {conv:?}: expected [width, 3, patch, patch]")));
        };
        if patch == 0 || patch != same || width == 0 {
            return Err(wrong(format!("whose patch embedding is {conv:?}: expected square patches")));
        }
        let head = (family != Family::Clip || width <= KNOWN_HEADS).then_some(HEAD);
        let tokens = dims(names.position).iter().rev().nth(1).copied().unwrap_or(0);
        let grid = tokens.saturating_sub(names.tokens.len()).isqrt();
        if grid == 0 || grid * grid + names.tokens.len() != tokens {
            return Err(wrong(format!("of {tokens} positions: expected a square and {}", names.tokens.len())));
        }
        let block = |i: usize, name: &str| dims(&format!("{}.{i}.{name}", names.blocks));
        let first_norm = format!("{}.weight", names.norms[0]);
        let blocks = (0..tensors.names().len()).take_while(|i| !block(*i, &first_norm).is_empty()).count();
        let hidden = block(0, &format!("{}.weight", names.perceptron[0])).first().copied().unwrap_or(0);
        if blocks == 0 || hidden == 0 {
            return Err(wrong(format!("of {blocks} blocks with perceptrons of {hidden}: its tensors are incomplete")));
        }
        let outputs = match family {
            Family::Clip => dims("proj").get(1).copied().unwrap_or(0),
            Family::Deit => dims("head.weight").first().copied().unwrap_or(0),
            Family::Dino => 0,
        };
        let (scope, leaf, _) = names.packed;
        let packed = if scope.is_empty() { leaf.to_owned() } else { format!("{scope}.{leaf}") };
        let packed = !block(0, &packed).is_empty();
        let activation = if family == Family::Clip { activation } else { Some(Activation::Gelu) };
        let mask_token = family == Family::Dino && !dims("mask_token").is_empty();
        Ok(Self { family, patch, grid, width, hidden, head, blocks, outputs, packed, activation, mask_token })
    }

    /// Height and width the network is used at, pixels.
    #[must_use]
    pub fn input_size(&self) -> usize {
        match self.family {
            Family::Dino if DINO_INPUT.is_multiple_of(self.patch) => DINO_INPUT,
            _ => self.patch * self.grid,
        }
    }

    /// Length of the features.
    #[must_use]
    pub fn features(&self) -> usize {
        if self.family == Family::Clip { self.outputs } else { self.width }
    }

    /// Name of the extractor: the published one, or one from its sizes.
    #[must_use]
    pub fn name(&self) -> String {
        let size = match (self.width, self.blocks) {
            (384, 12) => "s".to_owned(),
            (768, 12) => "b".to_owned(),
            (1024, 24) => "l".to_owned(),
            (width, blocks) => format!("{width}x{blocks}"),
        };
        let patch = self.patch;
        match self.family {
            // OpenAI's models apply QuickGELU, which LAION's later ones of the same sizes do not.
            Family::Clip if self.activation == Some(Activation::Gelu) => format!("open-clip-vit-{size}-{patch}"),
            Family::Clip if self.patch * self.grid == 224 => format!("clip-vit-{size}-{patch}"),
            Family::Clip => format!("clip-vit-{size}-{patch}-{}px", self.patch * self.grid),
            Family::Deit => format!("deit-{size}-distilled-patch{patch}-{}", self.patch * self.grid),
            Family::Dino => format!("dinov2-vit-{size}-{patch}"),
        }
    }
}

/// One of these networks, if `tensors` have the names of a family in one of its layouts.
pub(crate) fn recognise(tensors: &Arc<dyn TensorSource>) -> Recognised<VitConfig> {
    let has = |name: &str| tensors.info(name).is_some();
    let mut quick = None;
    let whole = Arc::clone(tensors);
    let (family, tensors): (_, Arc<dyn TensorSource>) =
        if has("visual.conv1.weight") && has("visual.transformer.resblocks.0.attn.in_proj_weight") {
            // OpenAI's archives keep three sizes among the tensors; they and the text tower lie outside `visual.`.
            quick = (has("input_resolution") && has("context_length")).then_some(Activation::QuickGelu);
            (Family::Clip, Arc::new(Renamed::new(whole, |n| n.strip_prefix("visual.").map(str::to_owned))))
        } else if has("vision_model.embeddings.patch_embedding.weight") && has("visual_projection.weight") {
            let renamed = |n: String| openai_name(&n).map(|(ours, axes)| (ours, n, axes));
            let list = tensors.names().into_iter().filter_map(renamed).collect();
            (Family::Clip, Arc::new(Renamed::listed(whole, list)))
        } else if has("embeddings.patch_embeddings.projection.weight") && has("encoder.layer.0.layer_scale1.lambda1") {
            // Whatever else is there stays visible under its own name, so that a load of another network is not clean.
            let renamed = Renamed::new(whole, |n| Some(dino_name(n).unwrap_or_else(|| n.to_owned())));
            (Family::Dino, Arc::new(renamed))
        } else if has("pos_embed") && has("patch_embed.proj.weight") && has("blocks.0.norm1.weight") {
            match (has("dist_token"), has("blocks.0.ls1.gamma")) {
                (true, _) => (Family::Deit, whole),
                (false, true) => (Family::Dino, whole),
                (false, false) => return None,
            }
        } else {
            return None;
        };
    let unlike = [
        ("register_tokens", "registers"),
        ("blocks.0.mlp.w12.weight", "SwiGLU"),
        ("blocks.0.mlp.weights_in.weight", "SwiGLU"),
    ];
    let config = match unlike.iter().find(|(n, _)| tensors.info(n).is_some()) {
        Some((_, what)) => Err(Error::Config { what: format!("a vision transformer with {what} is not known") }),
        None => VitConfig::of(family, tensors.as_ref(), quick),
    };
    Some((config, tensors))
}

/// How a family names its tensors.
struct Names {
    /// Convolution over the patches.
    patch: &'static str,
    /// Tokens before the patches, outermost first.
    tokens: &'static [&'static str],
    position: &'static str,
    blocks: &'static str,
    norms: [&'static str; 2],
    /// Scope, weight and bias of queries, keys and values in one.
    packed: (&'static str, &'static str, &'static str),
    attention: &'static str,
    perceptron: [&'static str; 2],
    last_norm: &'static str,
    eps: f64,
}

impl Family {
    fn title(self) -> &'static str {
        match self {
            Self::Clip => "CLIP",
            Self::Deit => "DeiT",
            Self::Dino => "DINOv2",
        }
    }

    fn names(self) -> &'static Names {
        const CLIP: Names = Names {
            patch: "conv1.weight",
            tokens: &["class_embedding"],
            position: "positional_embedding",
            blocks: "transformer.resblocks",
            norms: ["ln_1", "ln_2"],
            packed: ("attn", "in_proj_weight", "in_proj_bias"),
            attention: "attn.out_proj",
            perceptron: ["mlp.c_fc", "mlp.c_proj"],
            last_norm: "ln_post",
            eps: 1e-5,
        };
        const DINO: Names = Names {
            patch: "patch_embed.proj.weight",
            tokens: &["cls_token"],
            position: "pos_embed",
            blocks: "blocks",
            norms: ["norm1", "norm2"],
            packed: ("attn.qkv", "weight", "bias"),
            attention: "attn.proj",
            perceptron: ["mlp.fc1", "mlp.fc2"],
            last_norm: "norm",
            eps: 1e-6,
        };
        const DEIT: Names = Names { tokens: &["cls_token", "dist_token"], ..DINO };
        match self {
            Self::Clip => &CLIP,
            Self::Deit => &DEIT,
            Self::Dino => &DINO,
        }
    }
}

#[derive(Debug, Clone)]
struct LayerNorm<V> {
    scope: Scope,
    eps: f64,
    weight: V,
    bias: V,
}

impl<V: Clone> LayerNorm<V> {
    fn build<B: Backend<Value = V>>(b: &mut B, scope: Scope, width: usize, eps: f64) -> Result<Self> {
        let weight = b.param(&scope, "weight", &[width], &Init::Constant(1.0))?;
        let bias = b.param(&scope, "bias", &[width], &Init::Constant(0.0))?;
        Ok(Self { scope, eps, weight, bias })
    }

    /// `x [M, width]`.
    fn forward<B: Backend<Value = V>>(&self, b: &mut B, x: &V) -> Result<V> {
        b.enter(&self.scope);
        let mean = b.mean(x, &[1], true)?;
        let mean = b.scale(&mean, -1.0)?;
        let centred = b.add(x, &mean)?;
        let square = b.mul(&centred, &centred)?;
        let variance = b.mean(&square, &[1], true)?;
        let variance = b.offset(&variance, self.eps)?;
        let deviation = b.sqrt(&variance)?;
        let unit = b.div(&centred, &deviation)?;
        let scaled = b.mul(&unit, &self.weight)?;
        b.add(&scaled, &self.bias)
    }
}

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
    perceptron: [Linear<V>; 2],
    /// DINOv2's factors of the two branches.
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
        let (width, hidden) = (config.width, config.hidden);
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
        let perceptron =
            [linear(b, names.perceptron[0], width, hidden)?, linear(b, names.perceptron[1], hidden, width)?];
        let mut factor = |name| b.param(&scope.child(name), "gamma", &[width], &Init::Constant(1.0));
        let layer_scale = if config.family == Family::Dino { Some([factor("ls1")?, factor("ls2")?]) } else { None };
        Ok(Self { scope, config: *config, head, tokens, norm_1, qkv, attention, norm_2, perceptron, layer_scale })
    }

    /// `x [N·tokens, width]`.
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
        let h = self.perceptron[0].forward(b, &h)?;
        let h = if self.config.activation == Some(Activation::QuickGelu) {
            let h = b.scale(&h, QUICK)?;
            let h = b.silu(&h)?;
            b.scale(&h, 1.0 / QUICK)?
        } else {
            b.gelu(&h)?
        };
        let h = self.perceptron[1].forward(b, &h)?;
        self.join(b, &x, &h, 1)
    }

    /// `x` plus what branch `i` gave.
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

/// What the network gives for a batch of N images.
#[derive(Debug, Clone)]
pub struct Outputs<V> {
    /// `[N, D]`.
    pub features: V,
    /// CLIP's features before their projection, `[N, width]`.
    pub unprojected: Option<V>,
    /// DeiT's classes, the mean of its two heads, `[N, K]`.
    pub logits: Option<V>,
    /// Patches after the blocks [`DEIT_TAPS`] as maps `[N, width, S/patch, S/patch]`; empty for the others and if not asked for.
    pub taps: Vec<V>,
}

/// The network.
#[derive(Debug, Clone)]
pub struct VisionTransformer<V> {
    scope: Scope,
    config: VitConfig,
    grid: usize,
    patch: (V, Option<V>),
    tokens: Vec<V>,
    position: V,
    norm_pre: Option<LayerNorm<V>>,
    blocks: Vec<Block<V>>,
    norm: LayerNorm<V>,
    projection: Option<V>,
    heads: Vec<Linear<V>>,
}

impl<V: Clone> VisionTransformer<V> {
    /// Takes all tensors below `scope`, for images of `input_size` pixels. DINOv2's position embedding is interpolated to them as the original
    /// does; the others take only the size they were made for.
    ///
    /// # Errors
    /// `Config` if the size does not fit or the activation is not known; those of [`Backend::param`].
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
                "the file does not say how wide the attention heads of a CLIP tower of width {width} are: `--head-width` 80 for open_clip's ViT-H/14, 88 for \
                 ViT-g/14, 104 for ViT-bigG/14"
            ),
        })?;
        if head == 0 || !width.is_multiple_of(head) {
            let what = format!("attention heads of {head} channels do not divide a width of {width}");
            return Err(Error::Config { what });
        }
        if config.activation.is_none() {
            let what = "the file does not say which activation CLIP was trained with: OpenAI's weights and open_clip's `-quickgelu` models \
                        apply QuickGELU, LAION's later ones the exact GELU (`--activation quick-gelu` or `gelu`)";
            return Err(Error::Config { what: what.to_owned() });
        }
        let normal = Init::Normal { std: INIT_STD };
        let weight = b.param(scope, names.patch, &[width, 3, config.patch, config.patch], &normal)?;
        let clip = config.family == Family::Clip;
        let bias = if clip { None } else { Some(b.param(scope, "patch_embed.proj.bias", &[width], &normal)?) };
        let token: &[usize] = if clip { &[width] } else { &[1, 1, width] };
        let tokens = names.tokens.iter().map(|n| b.param(scope, n, token, &normal)).collect::<Result<Vec<V>>>()?;
        if config.mask_token {
            // Read, so that the load is complete: only training uses it.
            b.buffer(scope, "mask_token", &[1, width], &Init::Constant(0.0))?;
        }
        let count = config.grid * config.grid + tokens.len();
        let dims: &[usize] = if clip { &[count, width] } else { &[1, count, width] };
        let position = if grid == config.grid {
            b.param(scope, names.position, dims, &normal)?
        } else {
            let values = b.buffer(scope, names.position, dims, &normal)?;
            let (tokens, patches) = values.split_at(tokens.len() * width);
            let mut all = tokens.to_vec();
            all.extend(interpolate(patches, config.grid, grid, width));
            b.constant(scope, names.position, &[1, all.len() / width, width], all)?
        };
        let count = grid * grid + tokens.len();
        let norm_pre = if clip { Some(LayerNorm::build(b, scope.child("ln_pre"), width, names.eps)?) } else { None };
        let at = scope.child(names.blocks);
        let blocks =
            (0..config.blocks).map(|i| Block::build(b, at.child(i), config, head, count)).collect::<Result<_>>()?;
        let norm = LayerNorm::build(b, scope.child(names.last_norm), width, names.eps)?;
        let projection = if clip { Some(b.param(scope, "proj", &[width, config.outputs], &normal)?) } else { None };
        let mut heads = Vec::new();
        if config.family == Family::Deit {
            for name in ["head", "head_dist"] {
                heads.push(Linear::build(b, scope.child(name), width, config.outputs, true, LayerInit::TORCH)?);
            }
        }
        let (scope, config, patch) = (scope.clone(), *config, (weight, bias));
        Ok(Self { scope, config, grid, patch, tokens, position, norm_pre, blocks, norm, projection, heads })
    }

    /// `x [N, 3, S, S]`, normalised as the network wants it; `taps` asks for those.
    ///
    /// # Errors
    /// `Engine`.
    pub fn forward<B: Backend<Value = V>>(&self, b: &mut B, x: &V, taps: bool) -> Result<Outputs<V>> {
        let (width, patches) = (self.config.width, self.grid * self.grid);
        let count = self.tokens.len() + patches;
        b.enter(&self.scope);
        let how = Conv2d { stride: self.config.patch, pads: [0; 4], groups: 1 };
        let x = b.conv2d(x, &self.patch.0, self.patch.1.as_ref(), how)?;
        let x = b.reshape(&x, &[-1, signed(width), signed(patches)])?;
        let x = b.transpose(&x, &[0, 2, 1])?;
        // The tokens of each image: a patch of it, times zero, plus the token.
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
            if taps && self.config.family == Family::Deit && DEIT_TAPS.contains(&i) {
                b.enter(&self.scope.child("taps"));
                let map = b.reshape(&x, &[-1, signed(count), signed(width)])?;
                let map = b.slice(&map, 1, self.tokens.len(), patches)?;
                let map = b.transpose(&map, &[0, 2, 1])?;
                tapped.push(b.reshape(&map, &[-1, signed(width), signed(self.grid), signed(self.grid)])?);
            }
        }
        b.enter(&self.scope);
        let x = b.reshape(&x, &[-1, signed(count), signed(width)])?;
        // Norms and heads see one token at a time, so no other need pass them.
        let mut normed = Vec::new();
        for i in 0..self.heads.len().max(1) {
            b.enter(&self.scope);
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
        b.enter(&self.scope);
        let class = normed.swap_remove(0);
        let (features, unprojected) = match &self.projection {
            Some(projection) => (b.matmul(&class, projection)?, Some(class)),
            None => (class, None),
        };
        Ok(Outputs { features, unprojected, logits, taps: tapped })
    }
}

/// A position embedding of `from`×`from` patches for `to`×`to`, rows outermost, as DINOv2 interpolates it: bicubic (a = -0.75, no antialiasing,
/// edges repeated), with a scale of (`to` + 0.1)/`from`.
fn interpolate(values: &[f32], from: usize, to: usize, width: usize) -> Vec<f32> {
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
                #[allow(clippy::cast_possible_truncation, reason = "weights are f32")]
                out.push(value as f32);
            }
        }
    }
    out
}

/// OpenAI's name (without `visual.`) and axis order of a tensor of Hugging Face's `CLIPModel` or `CLIPVisionModelWithProjection`; `None` if
/// it is none of the image tower's.
#[must_use]
pub fn openai_name(hf: &str) -> Option<(String, &'static [usize])> {
    if hf == "visual_projection.weight" {
        return Some(("proj".to_owned(), &[1, 0]));
    }
    let rest = hf.strip_prefix("vision_model.")?;
    let name = match rest {
        "embeddings.patch_embedding.weight" => "conv1.weight".to_owned(),
        "embeddings.class_embedding" => "class_embedding".to_owned(),
        "embeddings.position_embedding.weight" => "positional_embedding".to_owned(),
        "pre_layrnorm.weight" | "pre_layrnorm.bias" => rest.replace("pre_layrnorm", "ln_pre"),
        "post_layernorm.weight" | "post_layernorm.bias" => rest.replace("post_layernorm", "ln_post"),
        _ => {
            let (index, tail) = rest.strip_prefix("encoder.layers.")?.split_once('.')?;
            let (module, leaf) = tail.rsplit_once('.')?;
            let module = match module {
                "layer_norm1" => "ln_1",
                "layer_norm2" => "ln_2",
                "self_attn.q_proj" => "attn.q_proj",
                "self_attn.k_proj" => "attn.k_proj",
                "self_attn.v_proj" => "attn.v_proj",
                "self_attn.out_proj" => "attn.out_proj",
                "mlp.fc1" => "mlp.c_fc",
                "mlp.fc2" => "mlp.c_proj",
                _ => return None,
            };
            format!("transformer.resblocks.{index}.{module}.{leaf}")
        }
    };
    Some((name, &[]))
}

/// Names of the queries, keys and values that the packed tensor `name` of `family` joins, first rows first; `None` for another tensor.
pub(crate) fn unpacked(family: Family, name: &str) -> Option<[String; 3]> {
    let (scope, weight, bias) = family.names().packed;
    [(weight, "weight"), (bias, "bias")].into_iter().find_map(|(leaf, plain)| {
        let block = name.strip_suffix(&format!(".{scope}.{leaf}"))?;
        Some(["q", "k", "v"].map(|part| format!("{block}.attn.{part}_proj.{plain}")))
    })
}

/// The original's name of a tensor of Hugging Face's `Dinov2Model`; `None` if it is no such name.
#[must_use]
pub fn dino_name(hf: &str) -> Option<String> {
    let name = match hf {
        "embeddings.cls_token" => "cls_token".to_owned(),
        "embeddings.mask_token" => "mask_token".to_owned(),
        "embeddings.position_embeddings" => "pos_embed".to_owned(),
        "embeddings.patch_embeddings.projection.weight" => "patch_embed.proj.weight".to_owned(),
        "embeddings.patch_embeddings.projection.bias" => "patch_embed.proj.bias".to_owned(),
        "layernorm.weight" => "norm.weight".to_owned(),
        "layernorm.bias" => "norm.bias".to_owned(),
        _ => {
            let (index, tail) = hf.strip_prefix("encoder.layer.")?.split_once('.')?;
            let tail = match tail {
                "layer_scale1.lambda1" => "ls1.gamma".to_owned(),
                "layer_scale2.lambda1" => "ls2.gamma".to_owned(),
                _ => {
                    let (module, leaf) = tail.rsplit_once('.')?;
                    let module = match module {
                        "norm1" | "norm2" | "mlp.fc1" | "mlp.fc2" => module,
                        "attention.attention.query" => "attn.q_proj",
                        "attention.attention.key" => "attn.k_proj",
                        "attention.attention.value" => "attn.v_proj",
                        "attention.output.dense" => "attn.proj",
                        _ => return None,
                    };
                    format!("{module}.{leaf}")
                }
            };
            format!("blocks.{index}.{tail}")
        }
    };
    Some(name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::OnnxBackend;
    use crate::weights::Weights;
    use d2o_checkpoint::{Dtype, TensorInfo};

    #[test]
    fn names_map_to_openais() {
        let name = |n| openai_name(n).unwrap();
        assert_eq!(name("visual_projection.weight"), ("proj".to_owned(), &[1, 0][..]));
        assert_eq!(name("vision_model.pre_layrnorm.bias").0, "ln_pre.bias");
        let q = "vision_model.encoder.layers.11.self_attn.q_proj.weight";
        assert_eq!(name(q).0, "transformer.resblocks.11.attn.q_proj.weight");
        assert_eq!(openai_name("vision_model.embeddings.position_ids"), None);
        assert_eq!(openai_name("text_model.final_layer_norm.weight"), None);
    }

    #[test]
    fn names_map_to_dinos() {
        let name = |n| dino_name(n).unwrap();
        assert_eq!(name("embeddings.patch_embeddings.projection.bias"), "patch_embed.proj.bias");
        assert_eq!(name("encoder.layer.23.attention.attention.key.weight"), "blocks.23.attn.k_proj.weight");
        assert_eq!(name("encoder.layer.0.layer_scale2.lambda1"), "blocks.0.ls2.gamma");
        assert_eq!(dino_name("encoder.layer.0.mlp.weights_in.weight"), None);
        assert_eq!(dino_name("pooler.dense.weight"), None);
    }

    #[test]
    fn networks_have_their_published_sizes() {
        let clip = VitConfig::clip_b_32();
        let deit = VitConfig {
            family: Family::Deit,
            patch: 16,
            grid: 14,
            outputs: 1000,
            activation: Some(Activation::Gelu),
            ..clip
        };
        let large = VitConfig { patch: 14, grid: 37, width: 1024, hidden: 4096, blocks: 24, outputs: 0, ..deit };
        let dino = VitConfig { family: Family::Dino, mask_token: true, ..large };
        for (config, name, tensors, scalars) in [
            (clip, "clip-vit-b-32", 152, 87_849_216),
            (VitConfig { packed: false, ..clip }, "clip-vit-b-32", 200, 87_849_216),
            (deit, "deit-b-distilled-patch16-224", 155, 87_338_192),
            (dino, "dinov2-vit-l-14", 343, 304_368_640),
        ] {
            assert_eq!(config.name(), name);
            let mut b = OnnxBackend::new(name, Weights::initialised(0));
            VisionTransformer::build(&mut b, &Scope::root(), &config, 224).unwrap();
            let found: usize = b.taken().map(|(_, d)| d.iter().product::<usize>()).sum();
            assert_eq!((b.taken().count(), found), (tensors, scalars), "{name}");
        }
    }

    #[test]
    fn sizes_and_activations_that_do_not_fit_are_refused() {
        let build = |config: &VitConfig, size| {
            let mut b = OnnxBackend::new("x", Weights::initialised(0));
            VisionTransformer::build(&mut b, &Scope::root(), config, size).unwrap_err().to_string()
        };
        let config = VitConfig { blocks: 1, ..VitConfig::clip_b_32() };
        assert!(build(&config, 256).contains("takes images of 224 pixels"));
        assert!(build(&VitConfig { activation: None, ..config }, 224).contains("QuickGELU"));
        assert!(build(&VitConfig { head: None, ..config }, 224).contains("`--head-width` 80 for open_clip's ViT-H/14"));
        assert!(
            build(&VitConfig { head: Some(80), ..config }, 224)
                .contains("heads of 80 channels do not divide a width of 768")
        );
    }

    /// A tower of CLIP of this width, one block.
    #[derive(Debug)]
    struct Tower(usize);

    impl TensorSource for Tower {
        fn names(&self) -> Vec<String> {
            let block = ["ln_1.weight", "attn.in_proj_weight", "mlp.c_fc.weight"]
                .map(|n| format!("transformer.resblocks.0.{n}"));
            ["conv1.weight", "positional_embedding", "proj"].map(str::to_owned).into_iter().chain(block).collect()
        }

        fn info(&self, name: &str) -> Option<TensorInfo> {
            let width = self.0;
            let dims = match name {
                "conv1.weight" => vec![width, 3, 14, 14],
                "positional_embedding" => vec![257, width],
                "proj" => vec![width, 1024],
                _ if name.ends_with("0.ln_1.weight") => vec![width],
                _ if name.ends_with("0.attn.in_proj_weight") => vec![3 * width, width],
                _ if name.ends_with("0.mlp.c_fc.weight") => vec![4 * width, width],
                _ => return None,
            };
            Some(TensorInfo { dtype: Dtype::F32, dims })
        }

        fn read_f32(&self, name: &str) -> d2o_checkpoint::Result<Vec<f32>> {
            Err(d2o_checkpoint::Error::Missing { name: name.to_owned() })
        }
    }

    #[test]
    fn heads_of_wide_towers_are_asked_for() {
        // ViT-H/14 has 16 heads of 80, and 20 heads of 64 would fit its shapes as well.
        for (width, head) in [(768, Some(64)), (1024, Some(64)), (1280, None), (1408, None), (1664, None)] {
            assert_eq!(VitConfig::of(Family::Clip, &Tower(width), None).unwrap().head, head, "{width}");
        }
    }

    #[test]
    fn interpolation_keeps_a_constant() {
        let flat = interpolate(&[2.5; 37 * 37], 37, 16, 1);
        assert!(flat.len() == 256 && flat.iter().all(|v| (v - 2.5).abs() < 1e-6));
    }
}
