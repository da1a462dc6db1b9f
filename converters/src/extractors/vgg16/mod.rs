//! VGG16 and VGG16-BN (Simonyan and Zisserman 2014).
//!
//! Features are those of torch-fidelity: the second fully connected layer after ReLU. Taps are the maps after the last
//! ReLU before each pool. LPIPS compares all taps; the discriminator of D2O uses all but the first.

mod config;
mod names;
mod net;

pub use config::VggConfig;
pub use net::{INPUT_SIZE, TAPS, Vgg16, trunk};

use std::sync::Arc;

use d2o_checkpoint::TensorSource;

use crate::backend::Backend;
use crate::error::Result;
use crate::extractors::{FeatureNetwork, Part, Takes};
use crate::preprocess::{IMAGENET_MEAN, IMAGENET_STD, Normalisation, Preprocessing, Resize};
use crate::recognise::Recognised;
use crate::weights::Scope;

impl FeatureNetwork for VggConfig {
    type Net<V: Clone> = Vgg16<V>;

    fn recognise(tensors: &Arc<dyn TensorSource>) -> Recognised<Self> {
        names::recognise(tensors)
    }

    fn name(&self) -> String {
        if self.batch_norm { "vgg16-bn" } else { "vgg16" }.to_owned()
    }

    fn input_size(&self) -> usize {
        INPUT_SIZE
    }

    fn preprocessing(&self) -> Preprocessing {
        let normalisation = Normalisation::Standardised { mean: IMAGENET_MEAN, std: IMAGENET_STD };
        Preprocessing { normalisation, resize: Resize::TensorFlow }
    }

    fn takes(&self) -> Takes {
        Takes { taps: true, ..Takes::default() }
    }

    fn part(&self, name: &str) -> Part {
        if name.starts_with("classifier.6.") { Part::Head } else { Part::Trunk }
    }

    fn build<B: Backend>(&self, b: &mut B, _input_size: usize) -> Result<Vgg16<B::Value>> {
        Vgg16::build(b, &Scope::root(), self)
    }
}

#[cfg(test)]
mod tests {
    use super::config::indices;
    use super::names::batch_norms;
    use super::*;
    use crate::onnx::OnnxBackend;
    use crate::weights::Weights;

    #[test]
    fn indices_are_torchvisions() {
        let plain: Vec<_> = indices(false).collect();
        assert_eq!(plain, [0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28]);
        let normed: Vec<_> = indices(true).collect();
        assert_eq!(normed, [0, 3, 7, 10, 14, 17, 20, 24, 27, 30, 34, 37, 40]);
    }

    #[test]
    fn networks_have_their_published_sizes() {
        for (batch_norm, tensors, scalars) in [(false, 32, 138_357_544), (true, 84, 138_365_992 + 8448)] {
            let mut b = OnnxBackend::new("vgg", Weights::initialised(0));
            Vgg16::build(&mut b, &Scope::root(), &VggConfig::torchvision(batch_norm)).unwrap();
            let names: Vec<String> = b.weights().taken().map(|(n, _)| n.to_owned()).collect();
            let found: usize = b.weights().taken().map(|(_, d)| d.iter().product::<usize>()).sum();
            assert_eq!((names.len(), found), (tensors, scalars));
            assert_eq!(batch_norms(|n| names.iter().any(|m| m == n)), Some(batch_norm));
        }
        assert_eq!(batch_norms(|n| n == "features.0.weight"), None);
    }
}
