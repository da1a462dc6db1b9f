//! Published layouts of the weights.

use std::sync::Arc;

use d2o_checkpoint::{Renamed, TensorSource};

use super::config::{Family, VitConfig};
use crate::error::config;
use crate::extractors::Activation;
use crate::recognise::Recognised;

/// Recognises a network by the tensor names of the layouts of each family.
pub(crate) fn recognise(tensors: &Arc<dyn TensorSource>) -> Recognised<VitConfig> {
    let has = |name: &str| tensors.info(name).is_some();
    let mut quick = None;
    let whole = Arc::clone(tensors);
    let (family, tensors): (_, Arc<dyn TensorSource>) =
        if has("visual.conv1.weight") && has("visual.transformer.resblocks.0.attn.in_proj_weight") {
            // Archives of OpenAI store three sizes as tensors. These and the text encoder are outside `visual.`.
            quick = (has("input_resolution") && has("context_length")).then_some(Activation::QuickGelu);
            (Family::Clip, Arc::new(Renamed::new(whole, |n| n.strip_prefix("visual.").map(str::to_owned))))
        } else if has("vision_model.embeddings.patch_embedding.weight") && has("visual_projection.weight") {
            let renamed = |n: String| openai_name(&n).map(|(ours, axes)| (ours, n, axes));
            let list = tensors.names().into_iter().filter_map(renamed).collect();
            (Family::Clip, Arc::new(Renamed::listed(whole, list)))
        } else if has("embeddings.patch_embeddings.projection.weight") && has("encoder.layer.0.layer_scale1.lambda1") {
            // Other tensors stay visible under their own names, so that loading another network reports them as unused.
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
        Some((_, what)) => Err(config(format!("a vision transformer with {what} is not supported"))),
        None => VitConfig::of(family, tensors.as_ref(), quick),
    };
    Some((config, tensors))
}

/// Name of OpenAI (without `visual.`) and axis order of a tensor of `CLIPModel` or `CLIPVisionModelWithProjection` of
/// Hugging Face; `None` if the tensor does not belong to the image encoder.
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

/// Names of the queries, keys and values in the packed tensor `name` of `family`, in the order of its rows; `None` for
/// another tensor.
pub(crate) fn unpacked(family: Family, name: &str) -> Option<[String; 3]> {
    let (scope, weight, bias) = family.names().packed;
    [(weight, "weight"), (bias, "bias")].into_iter().find_map(|(leaf, plain)| {
        let block = name.strip_suffix(&format!(".{scope}.{leaf}"))?;
        Some(["q", "k", "v"].map(|part| format!("{block}.attn.{part}_proj.{plain}")))
    })
}

/// Original name of a tensor of `Dinov2Model` of Hugging Face; `None` for any other name.
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
