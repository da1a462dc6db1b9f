//! Vision transformers: CLIP image encoders (Radford et al. 2021), DeiT distilled (Touvron et al. 2021), DINOv2 (Oquab
//! et al. 2023).
//!
//! Sizes are inferred from tensor shapes. These do not determine the width of an attention head. It is 64 channels in
//! DeiT, DINOv2 and CLIP image encoders of width up to 1024. Wider CLIP image encoders differ (in open_clip, ViT-H/14
//! has 80, g/14 88, bigG/14 104).
//!
//! | family | tensor names | tokens before the patches | features |
//! |---|---|---|---|
//! | CLIP | OpenAI, without `visual.` | class | class token, normalised and projected, of length `outputs` |
//! | DeiT | timm | class, distillation | class token, normalised |
//! | DINOv2 | the original, same as timm | class | class token, normalised |
//!
//! [`openai_name`] and [`dino_name`] map the names of the Hugging Face layouts to these names. In the Hugging Face
//! layouts, queries, keys and values are separate tensors.

mod config;
mod names;
mod net;

pub use config::{Family, VitConfig};
pub use names::{dino_name, openai_name};
pub use net::{DEIT_TAPS, VisionTransformer, VitTrunk};

use std::sync::Arc;

use d2o_checkpoint::TensorSource;

use crate::backend::Backend;
use crate::error::{Result, config};
use crate::extractors::{Activation, Canonical, FeatureNetwork, Hyperparameters, Part, Takes};
use crate::preprocess::{IMAGENET_MEAN, IMAGENET_STD, Normalisation, Preprocessing, Resize};
use crate::recognise::Recognised;
use crate::weights::Scope;

/// Mean of each colour channel of the CLIP training images, for values 0 to 1.
pub const CLIP_MEAN: [f32; 3] = [0.481_454_66, 0.457_827_5, 0.408_210_73];
/// Standard deviation of each colour channel of the CLIP training images, for values 0 to 1.
#[allow(clippy::excessive_precision, reason = "as published")]
pub const CLIP_STD: [f32; 3] = [0.268_629_54, 0.261_302_58, 0.275_777_11];

impl FeatureNetwork for VitConfig {
    type Net<V: Clone> = VisionTransformer<V>;

    fn recognise(tensors: &Arc<dyn TensorSource>) -> Recognised<Self> {
        names::recognise(tensors)
    }

    fn name(&self) -> String {
        self.name()
    }

    fn input_size(&self) -> usize {
        self.input_size()
    }

    fn any_size(&self) -> bool {
        self.family == Family::Dino
    }

    fn preprocessing(&self) -> Preprocessing {
        let (mean, std) = match self.family {
            Family::Clip => (CLIP_MEAN, CLIP_STD),
            Family::Deit | Family::Dino => (IMAGENET_MEAN, IMAGENET_STD),
        };
        Preprocessing { normalisation: Normalisation::Standardised { mean, std }, resize: Resize::TensorFlow }
    }

    fn takes(&self) -> Takes {
        Takes { activation: self.family == Family::Clip, head_width: true, taps: self.family == Family::Deit }
    }

    fn complete(&mut self, given: &Hyperparameters) -> Result<()> {
        if let (Some(known), Some(asked)) = (self.activation, given.activation)
            && known != asked
        {
            let (known, asked) = (known.name(), asked.name());
            return Err(config(format!("the network in the file uses {known}, but {asked} was requested")));
        }
        self.activation = self.activation.or(given.activation);
        self.head = given.head_width.or(self.head);
        Ok(())
    }

    fn activation(&self) -> Option<Activation> {
        self.activation
    }

    fn part(&self, name: &str) -> Part {
        match self.family {
            Family::Deit if name.starts_with("head.") || name.starts_with("head_dist.") => Part::Head,
            Family::Dino if name == "mask_token" => Part::Unused,
            _ => Part::Trunk,
        }
    }

    /// Splits a packed tensor into queries, keys and values.
    fn canonical<'a>(&self, name: &str, dims: &[usize], values: &'a [f32]) -> Vec<Canonical<'a>> {
        match (names::unpacked(self.family, name), dims.split_first()) {
            (Some(names), Some((rows, rest))) if rows.is_multiple_of(3) && !values.is_empty() => {
                let dims: Vec<usize> = std::iter::once(rows / 3).chain(rest.iter().copied()).collect();
                let thirds = values.chunks(values.len() / 3);
                names.into_iter().zip(thirds).map(|(name, values)| (name, dims.clone(), values)).collect()
            }
            _ => vec![(name.to_owned(), dims.to_vec(), values)],
        }
    }

    fn build<B: Backend>(&self, b: &mut B, input_size: usize) -> Result<VisionTransformer<B::Value>> {
        VisionTransformer::build(b, &Scope::root(), self, input_size)
    }
}

#[cfg(test)]
mod tests {
    use super::net::interpolate;
    use super::*;
    use crate::onnx::OnnxBackend;
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
        let deit = VitConfig::deit_base_distilled();
        let large = VitConfig { patch: 14, grid: 37, width: 1024, mlp_dim: 4096, blocks: 24, outputs: 0, ..deit };
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
            let found: usize = b.weights().taken().map(|(_, d)| d.iter().product::<usize>()).sum();
            assert_eq!((b.weights().taken().count(), found), (tensors, scalars), "{name}");
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
                .contains("a width of 768 is not a multiple of the head width 80")
        );
    }

    /// Tensor shapes of a CLIP image encoder of this width with one block.
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
        // ViT-H/14 has 16 heads of 80 channels, but 20 heads of 64 channels would have the same shapes.
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
