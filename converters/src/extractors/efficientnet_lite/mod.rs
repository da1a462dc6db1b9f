//! EfficientNet-Lite0 (`tf_efficientnet_lite0`): pooled features, classes, and the four taps of projected discriminators.

mod names;
mod net;

pub use names::timm_name;
pub use net::{CLASSES, EfficientNetLite0, FEATURES, INPUT_SIZE, Lite0, TAP_CHANNELS, trunk};

use std::sync::Arc;

use d2o_checkpoint::TensorSource;

use crate::backend::Backend;
use crate::error::Result;
use crate::extractors::{FeatureNetwork, Part};
use crate::preprocess::{Normalisation, Preprocessing, Resize};
use crate::recognise::Recognised;
use crate::weights::Scope;

impl FeatureNetwork for Lite0 {
    type Net<V: Clone> = EfficientNetLite0<V>;

    fn recognise(tensors: &Arc<dyn TensorSource>) -> Recognised<Self> {
        names::recognise(tensors)
    }

    fn name(&self) -> String {
        "tf_efficientnet_lite0".to_owned()
    }

    fn input_size(&self) -> usize {
        INPUT_SIZE
    }

    fn any_size(&self) -> bool {
        true
    }

    fn preprocessing(&self) -> Preprocessing {
        Preprocessing {
            normalisation: Normalisation::Scaled { scale: 1.0 / 127.5, offset: -1.0 },
            resize: Resize::Torch,
        }
    }

    fn part(&self, name: &str) -> Part {
        if name.starts_with("classifier.") { Part::Head } else { Part::Trunk }
    }

    fn build<B: Backend>(&self, b: &mut B, _input_size: usize) -> Result<EfficientNetLite0<B::Value>> {
        EfficientNetLite0::build(b, &Scope::root())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pypi_names_map_to_timm() {
        let name = |n| timm_name(n).unwrap();
        assert_eq!(name("_conv_stem.weight"), "conv_stem.weight");
        assert_eq!(name("_blocks.0._bn1.running_var"), "blocks.0.0.bn1.running_var");
        assert_eq!(name("_blocks.2._expand_conv.weight"), "blocks.1.1.conv_pw.weight");
        assert_eq!(name("_blocks.15._bn2.bias"), "blocks.6.0.bn3.bias");
        assert_eq!(name("_fc.bias"), "classifier.bias");
        assert_eq!(timm_name("_blocks.16._bn2.bias"), None);
        assert_eq!(timm_name("conv1.weight"), None);
    }
}
