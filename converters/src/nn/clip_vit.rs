//! Image tower of CLIP ViT-B/32 (Radford et al. 2021): 512-dimensional features, not normalised.
//!
//! Tensors have OpenAI's names below `visual.`; [`openai_name`] gives them for Hugging Face's layout, whose queries, keys and values are
//! separate tensors.

use crate::error::Result;
use crate::nn::backend::{Backend, Conv2d};
use crate::nn::layers::{LayerInit, Linear, signed};
use crate::weights::{Init, Scope};

/// Height and width the network sees, pixels.
pub const INPUT_SIZE: usize = 224;
/// Length of the features.
pub const FEATURES: usize = 512;
/// Mean of each colour channel of the training images, of 0 to 1.
pub const MEAN: [f32; 3] = [0.481_454_66, 0.457_827_5, 0.408_210_73];
/// Standard deviation of each.
#[allow(clippy::excessive_precision, reason = "as published")]
pub const STD: [f32; 3] = [0.268_629_54, 0.261_302_58, 0.275_777_11];

const WIDTH: usize = 768;
const PATCH: usize = 32;
const GRID: usize = INPUT_SIZE / PATCH;
const TOKENS: usize = GRID * GRID + 1;
const BLOCKS: usize = 12;
const HEADS: usize = 12;
const EPS: f64 = 1e-5;
/// QuickGELU is x·σ(1.702x).
const QUICK: f64 = 1.702;
const INIT_STD: f64 = 0.02;

#[derive(Debug, Clone)]
struct LayerNorm<V> {
    scope: Scope,
    weight: V,
    bias: V,
}

impl<V: Clone> LayerNorm<V> {
    fn build<B: Backend<Value = V>>(b: &mut B, scope: Scope) -> Result<Self> {
        let weight = b.param(&scope, "weight", &[WIDTH], &Init::Constant(1.0))?;
        let bias = b.param(&scope, "bias", &[WIDTH], &Init::Constant(0.0))?;
        Ok(Self { scope, weight, bias })
    }

    /// `x [M, WIDTH]`.
    fn forward<B: Backend<Value = V>>(&self, b: &mut B, x: &V) -> Result<V> {
        b.enter(&self.scope);
        let mean = b.mean(x, &[1], true)?;
        let mean = b.scale(&mean, -1.0)?;
        let centred = b.add(x, &mean)?;
        let square = b.mul(&centred, &centred)?;
        let variance = b.mean(&square, &[1], true)?;
        let variance = b.offset(&variance, EPS)?;
        let deviation = b.sqrt(&variance)?;
        let unit = b.div(&centred, &deviation)?;
        let scaled = b.mul(&unit, &self.weight)?;
        b.add(&scaled, &self.bias)
    }
}

#[derive(Debug, Clone)]
struct Block<V> {
    scope: Scope,
    ln_1: LayerNorm<V>,
    qkv: Vec<(V, V)>,
    out_proj: Linear<V>,
    ln_2: LayerNorm<V>,
    c_fc: Linear<V>,
    c_proj: Linear<V>,
}

impl<V: Clone> Block<V> {
    fn build<B: Backend<Value = V>>(b: &mut B, scope: Scope, packed: bool) -> Result<Self> {
        let ln_1 = LayerNorm::build(b, scope.child("ln_1"))?;
        let attn = scope.child("attn");
        let (normal, zero) = (Init::Normal { std: INIT_STD }, Init::Constant(0.0));
        let qkv = if packed {
            let weight = b.param(&attn, "in_proj_weight", &[3 * WIDTH, WIDTH], &normal)?;
            vec![(weight, b.param(&attn, "in_proj_bias", &[3 * WIDTH], &zero)?)]
        } else {
            let mut all = Vec::new();
            for name in ["q_proj", "k_proj", "v_proj"] {
                let at = attn.child(name);
                let weight = b.param(&at, "weight", &[WIDTH, WIDTH], &normal)?;
                all.push((weight, b.param(&at, "bias", &[WIDTH], &zero)?));
            }
            all
        };
        let linear =
            |b: &mut B, at: Scope, inputs, outputs| Linear::build(b, at, inputs, outputs, true, LayerInit::TORCH);
        let out_proj = linear(b, attn.child("out_proj"), WIDTH, WIDTH)?;
        let ln_2 = LayerNorm::build(b, scope.child("ln_2"))?;
        let c_fc = linear(b, scope.child("mlp").child("c_fc"), WIDTH, 4 * WIDTH)?;
        let c_proj = linear(b, scope.child("mlp").child("c_proj"), 4 * WIDTH, WIDTH)?;
        Ok(Self { scope, ln_1, qkv, out_proj, ln_2, c_fc, c_proj })
    }

    /// `x [N·TOKENS, WIDTH]`.
    fn forward<B: Backend<Value = V>>(&self, b: &mut B, x: &V) -> Result<V> {
        const DEPTH: usize = WIDTH / HEADS;
        let h = self.ln_1.forward(b, x)?;
        b.enter(&self.scope.child("attn"));
        let mut parts = Vec::new();
        for (weight, bias) in &self.qkv {
            let all = b.linear(&h, weight, Some(bias))?;
            for j in 0..3 / self.qkv.len() {
                let part = if self.qkv.len() == 1 { b.slice(&all, 1, j * WIDTH, WIDTH)? } else { all.clone() };
                let part = b.reshape(&part, &[-1, signed(TOKENS), signed(HEADS), signed(DEPTH)])?;
                parts.push(b.transpose(&part, &[0, 2, 1, 3])?);
            }
        }
        let q = b.scale(&parts[0], 1.0 / (DEPTH as f64).sqrt())?;
        let k = b.transpose(&parts[1], &[0, 1, 3, 2])?;
        let logits = b.matmul(&q, &k)?;
        let weights = b.softmax(&logits, 3)?;
        let a = b.matmul(&weights, &parts[2])?;
        let a = b.transpose(&a, &[0, 2, 1, 3])?;
        let a = b.reshape(&a, &[-1, signed(TOKENS * WIDTH)])?;
        let a = split(b, &a)?;
        let a = self.out_proj.forward(b, &a)?;
        let x = b.add(x, &a)?;
        let h = self.ln_2.forward(b, &x)?;
        let h = self.c_fc.forward(b, &h)?;
        let h = b.scale(&h, QUICK)?;
        let h = b.silu(&h)?;
        let h = b.scale(&h, 1.0 / QUICK)?;
        let h = self.c_proj.forward(b, &h)?;
        b.enter(&self.scope);
        b.add(&x, &h)
    }
}

/// `[N, TOKENS·WIDTH]` -> `[N·TOKENS, WIDTH]`.
fn split<B: Backend>(b: &mut B, x: &B::Value) -> Result<B::Value> {
    b.reshape(x, &[-1, signed(WIDTH)])
}

/// The image tower.
#[derive(Debug, Clone)]
pub struct ClipVitB32<V> {
    scope: Scope,
    conv1: V,
    class_embedding: V,
    positional_embedding: V,
    ln_pre: LayerNorm<V>,
    blocks: Vec<Block<V>>,
    ln_post: LayerNorm<V>,
    proj: V,
}

impl<V: Clone> ClipVitB32<V> {
    /// Takes all tensors below `scope`; `packed` says whether queries, keys and values are one tensor.
    ///
    /// # Errors
    /// Those of [`Backend::param`].
    pub fn build<B: Backend<Value = V>>(b: &mut B, scope: &Scope, packed: bool) -> Result<Self> {
        let normal = Init::Normal { std: INIT_STD };
        let conv1 = b.param(&scope.child("conv1"), "weight", &[WIDTH, 3, PATCH, PATCH], &normal)?;
        let class_embedding = b.param(scope, "class_embedding", &[WIDTH], &normal)?;
        let positional_embedding = b.param(scope, "positional_embedding", &[TOKENS, WIDTH], &normal)?;
        let ln_pre = LayerNorm::build(b, scope.child("ln_pre"))?;
        let blocks = scope.child("transformer").child("resblocks");
        let blocks = (0..BLOCKS).map(|i| Block::build(b, blocks.child(i), packed)).collect::<Result<_>>()?;
        let ln_post = LayerNorm::build(b, scope.child("ln_post"))?;
        let proj = b.param(scope, "proj", &[WIDTH, FEATURES], &normal)?;
        Ok(Self { scope: scope.clone(), conv1, class_embedding, positional_embedding, ln_pre, blocks, ln_post, proj })
    }

    /// `x [N, 3, 224, 224]`, normalised by [`MEAN`] and [`STD`] -> `[N, 512]`.
    ///
    /// # Errors
    /// `Engine`.
    pub fn forward<B: Backend<Value = V>>(&self, b: &mut B, x: &V) -> Result<V> {
        b.enter(&self.scope);
        let x = b.conv2d(x, &self.conv1, None, Conv2d { stride: PATCH, pads: [0; 4], groups: 1 })?;
        let x = b.reshape(&x, &[-1, signed(WIDTH), signed(GRID * GRID)])?;
        let x = b.transpose(&x, &[0, 2, 1])?;
        // One class token for each image: a patch of it, times zero, plus the token.
        let first = b.slice(&x, 1, 0, 1)?;
        let nothing = b.scale(&first, 0.0)?;
        let class = b.add(&nothing, &self.class_embedding)?;
        let x = b.concat(&[class, x], 1)?;
        let x = b.add(&x, &self.positional_embedding)?;
        let x = split(b, &x)?;
        let mut x = self.ln_pre.forward(b, &x)?;
        for block in &self.blocks {
            x = block.forward(b, &x)?;
        }
        b.enter(&self.scope);
        let x = b.reshape(&x, &[-1, signed(TOKENS), signed(WIDTH)])?;
        let x = b.slice(&x, 1, 0, 1)?;
        let x = split(b, &x)?;
        let x = self.ln_post.forward(b, &x)?;
        b.enter(&self.scope);
        b.matmul(&x, &self.proj)
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::OnnxBackend;
    use crate::weights::Weights;

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
    fn the_tower_has_its_published_size() {
        for (packed, tensors) in [(true, 152), (false, 200)] {
            let mut b = OnnxBackend::new("clip", Weights::initialised(0));
            ClipVitB32::build(&mut b, &Scope::root(), packed).unwrap();
            let scalars: usize = b.taken().map(|(_, d)| d.iter().product::<usize>()).sum();
            assert_eq!((b.taken().count(), scalars), (tensors, 87_849_216));
        }
    }
}
