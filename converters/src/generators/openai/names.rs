//! Infers constructor arguments from tensor names and shapes.
//!
//! Files of OpenAI networks contain only tensors. The shapes do not determine image size, attention heads and diffusion
//! process; the names of published files do.

use std::collections::BTreeSet;
use std::ops::Bound;
use std::sync::Arc;

use d2o_checkpoint::TensorSource;
use serde_json::{Map, Value, json};

use super::config::{CONSISTENCY, GUIDED};
use crate::generators::inferred::Inferred;
use crate::recognise::Recognised;

/// Channels per attention head in most published files.
const HEAD_CHANNELS: usize = 64;

/// Recognises the network by its tensor names. `file` is the file name without extension: that of a published file
/// determines the arguments that the shapes do not determine.
pub(crate) fn recognise(tensors: &Arc<dyn TensorSource>, file: &str) -> Recognised<Inferred> {
    let (class, kwargs) = shapes(tensors)?;
    let published = published(file, class, &kwargs);
    let example = if class == CONSISTENCY {
        json!({"image_size": 64, "distillation": true, "num_head_channels": HEAD_CHANNELS})
    } else {
        json!({"image_size": 64, "noise_schedule": "cosine", "use_new_attention_order": true, "num_head_channels": HEAD_CHANNELS})
    };
    let example = json!({"class": class, "init_kwargs": example});
    let question = format!(
        "the tensor shapes of OpenAI's U-Net do not determine its image size, diffusion process and attention heads; specify them in NET.json (--config), e.g. {example}"
    );
    let asked = vec![(
        vec!["num_head_channels", "num_heads"],
        format!(
            "`num_head_channels` or `num_heads` is missing: the tensor shapes do not determine attention heads ({HEAD_CHANNELS} channels each in most published files)"
        ),
    )];
    Some((Ok(Inferred { class, kwargs, published, question, asked }), Arc::clone(tensors)))
}

fn shapes(tensors: &dyn TensorSource) -> Option<(&'static str, Map<String, Value>)> {
    let dims = |name: &str| tensors.info(name).map(|i| i.dims);
    let at = |name: &str, axis: usize| dims(name)?.get(axis).copied().filter(|n| *n > 0);
    let names: BTreeSet<String> = tensors.names().into_iter().collect();
    let has = |prefix: &str| {
        names.range::<str, _>((Bound::Included(prefix), Bound::Unbounded)).next().is_some_and(|n| n.starts_with(prefix))
    };
    let class = if dims("middle_block.1.qkv.weight")?.len() == 4 { CONSISTENCY } else { GUIDED };
    let model = at("time_embed.0.weight", 1)?;
    let count = |list: &str| {
        let index = |n: &String| n.strip_prefix(list)?.split('.').next()?.parse::<usize>().ok();
        names.iter().filter_map(index).max().filter(|last| *last < names.len()).map(|last| last + 1)
    };
    let (inputs, outputs) = (count("input_blocks.")?, count("output_blocks.")?);
    // A level ends at an output block with a second residual block or a convolution, or at an input block without
    // tensors.
    let ends = |what: &str| {
        (0..outputs).filter(|i| [1, 2].iter().any(|k| has(&format!("output_blocks.{i}.{k}.{what}.")))).count()
    };
    let (blocks, convs) = (ends("in_layers"), ends("conv"));
    let bare = (0..inputs).filter(|i| !has(&format!("input_blocks.{i}."))).count();
    let levels = 1 + blocks.max(convs).max(bare);
    let num_res_blocks = (inputs / levels).checked_sub(1).filter(|n| *n > 0 && inputs.is_multiple_of(levels))?;
    let first = |level: usize| format!("input_blocks.{}", level * (num_res_blocks + 1) + 1);
    let (mut mult, mut attention) = (Vec::new(), Vec::new());
    for level in 0..levels {
        let width = at(&format!("{}.0.out_layers.3.weight", first(level)), 0)?;
        mult.push(if width.is_multiple_of(model) { json!(width / model) } else { json!(ratio(width, model)) });
        if has(&format!("{}.1.qkv.", first(level))) {
            attention.push(1_u64 << level.min(32));
        }
    }
    let width = at(&format!("{}.0.out_layers.3.weight", first(0)), 0)?;
    let scale_shift = at(&format!("{}.0.emb_layers.1.weight", first(0)), 0)? == 2 * width;
    let kwargs = json!({
        "in_channels": at("input_blocks.0.0.weight", 1)?, "model_channels": model, "out_channels": at("out.2.weight", 0)?,
        "num_res_blocks": num_res_blocks, "attention_resolutions": attention, "channel_mult": mult, "conv_resample": bare == 0,
        "num_classes": at("label_emb.weight", 0), "num_head_channels": null, "use_scale_shift_norm": scale_shift,
        "resblock_updown": blocks > 0,
    });
    if let Value::Object(map) = kwargs { Some((class, map)) } else { None }
}

/// The factor whose product with `model` is `width` after rounding down, as in the constructor.
#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "as the constructor computes it, of numbers of channels"
)]
fn ratio(width: usize, model: usize) -> f64 {
    let ratio = width as f64 / model as f64;
    if ((ratio * model as f64) as usize) < width { ratio.next_up() } else { ratio }
}

/// Arguments that the name of a published file determines: `{cd,ct,edm}_{imagenet64,bedroom256,cat256}….pt` of
/// consistency_models, `{64x64,128x128,…}_diffusion….pt` and `lsun_{bedroom,cat,horse}….pt` of guided-diffusion. `None`
/// for other names, or if class or attention resolutions do not match.
fn published(stem: &str, class: &str, shapes: &Map<String, Value>) -> Option<Map<String, Value>> {
    let (start, rest) = stem.split_once('_')?;
    let next = rest.split('_').next()?;
    let (owner, image_size, more) = match (start, next) {
        ("cd" | "ct" | "edm", "imagenet64") => (CONSISTENCY, 64, json!({"distillation": start != "edm"})),
        ("cd" | "ct" | "edm", "bedroom256" | "cat256") => (CONSISTENCY, 256, json!({"distillation": start != "edm"})),
        ("64x64", "diffusion") => (GUIDED, 64, json!({"noise_schedule": "cosine", "use_new_attention_order": true})),
        ("128x128", "diffusion") => {
            let heads = json!({"num_heads": 4, "num_head_channels": null});
            (GUIDED, 128, merged(heads, json!({"noise_schedule": "linear", "use_new_attention_order": false})))
        }
        ("256x256" | "512x512", "diffusion") | ("lsun", "bedroom" | "cat" | "horse") => {
            let image_size = if start == "512x512" { 512 } else { 256 };
            let more = json!({"noise_schedule": "linear", "use_new_attention_order": false});
            (GUIDED, image_size, more)
        }
        _ => return None,
    };
    // All published networks have attention at 32, 16 and 8 pixels.
    let rates = [32, 16, 8].map(|pixels| image_size / pixels);
    let fits = owner == class && shapes.get("attention_resolutions") == Some(&json!(rates));
    let more = merged(json!({"num_head_channels": HEAD_CHANNELS}), more);
    match merged(more, json!({"image_size": image_size})) {
        Value::Object(map) if fits => Some(map),
        _ => None,
    }
}

fn merged(mut a: Value, b: Value) -> Value {
    if let (Value::Object(a), Value::Object(b)) = (&mut a, b) {
        a.extend(b);
    }
    a
}
