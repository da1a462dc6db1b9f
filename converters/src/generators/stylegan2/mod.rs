//! The StyleGAN2 generator (Karras et al. 2020) in the version of the StyleGAN2-ADA and StyleGAN3 repositories.

mod config;
mod net;

pub use config::{BlockKind, StyleGan2Config};
pub use net::StyleGan2;

use d2o_checkpoint::TensorSource;
use serde_json::{Map, Value};

use crate::backend::Backend;
use crate::error::Result;
use crate::generators::latent::LatentGenerator;

impl LatentGenerator for StyleGan2Config {
    const CLASS: &'static str = config::CLASS;
    const POSITIONAL: &'static [&'static str] = &["z_dim", "c_dim", "w_dim", "img_resolution", "img_channels"];
    type Net<V: Clone> = StyleGan2<V>;

    fn read(init_kwargs: &Map<String, Value>) -> Result<Self> {
        Self::new(init_kwargs)
    }

    fn unsupported(tensors: &dyn TensorSource) -> Option<&'static str> {
        let unlike = "expected a StyleGAN2 generator with `synthesis.b4.const` (StyleGAN3 is not supported)";
        tensors.info("synthesis.b4.const").is_none().then_some(unlike)
    }

    fn init_kwargs(&self) -> Value {
        self.init_kwargs()
    }

    fn latent_dim(&self) -> usize {
        self.z_dim
    }

    fn label_dim(&self) -> usize {
        self.c_dim
    }

    fn build<B: Backend>(&self, b: &mut B) -> Result<StyleGan2<B::Value>> {
        StyleGan2::build(b, self)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::onnx::OnnxBackend;
    use crate::weights::Weights;

    fn config(kwargs: &Value) -> Result<StyleGan2Config> {
        StyleGan2Config::new(kwargs.as_object().unwrap())
    }

    #[test]
    fn ffhq_has_its_published_size() {
        let ffhq = json!({"z_dim": 512, "c_dim": 0, "w_dim": 512, "img_resolution": 1024, "img_channels": 3, "mapping_kwargs": {},
            "synthesis_kwargs": {"channel_base": 32768, "channel_max": 512, "num_fp16_res": 4, "conv_clamp": 256}});
        let mut b = OnnxBackend::new("x", Weights::initialised(0));
        StyleGan2::build(&mut b, &config(&ffhq).unwrap()).unwrap();
        let parameters = |(name, dims): (&str, &[usize])| {
            let buffer = ["resample_filter", "noise_const", "w_avg"].iter().any(|b| name.ends_with(b));
            if buffer { 0 } else { dims.iter().product::<usize>() }
        };
        assert_eq!(b.weights().taken().map(parameters).sum::<usize>(), 30_370_060);
    }

    #[test]
    fn the_two_repositories_give_arguments_in_their_own_way() {
        let base = json!({"z_dim": 8, "c_dim": 0, "w_dim": 8, "img_resolution": 8, "img_channels": 3});
        let with = |more: Value| {
            let mut all = base.clone();
            all.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            config(&all)
        };
        let nested = with(json!({"synthesis_kwargs": {"channel_base": 64}})).unwrap();
        assert_eq!((nested.synthesis.conv_clamp, nested.channels(8)), (None, 8));
        let flat = with(json!({"channel_base": 64, "fused_modconv_default": "inference_only"})).unwrap();
        assert_eq!((flat.synthesis.conv_clamp, flat.channels(8)), (Some(256.0), 8));
        let fails = |more: Value| with(more).unwrap_err().to_string();
        assert!(fails(json!({"synthesis_kwargs": {"chanel_base": 64}})).contains("chanel_base"));
        assert!(fails(json!({"synthesis_kwargs": {}, "other": 1})).contains("other"));
        assert!(fails(json!({"img_resolution": 12})).contains("power of two"));
        assert!(fails(json!({"synthesis_kwargs": {"activation": "relu"}})).contains("expected lrelu"));
    }
}
