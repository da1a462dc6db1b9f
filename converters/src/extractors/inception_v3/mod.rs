//! Inception-v3 of 2015-12-05, the network of FID, Inception Score, sFID, precision and recall.
//!
//! Source: `classify_image_graph_def.pb` of Szegedy et al. 2015. Batch norm (eps 1e-3) is folded in f64.

mod config;
mod names;
mod net;

pub use config::Parts;
pub use names::{Layout, names};
pub use net::{CLASSES, INPUT_SIZE, InceptionV3, POOL3, SPATIAL, TAPS};

use std::sync::Arc;

use d2o_checkpoint::TensorSource;

use crate::backend::Backend;
use crate::error::Result;
use crate::extractors::{Canonical, FeatureNetwork, Part, Takes};
use crate::preprocess::{Normalisation, Preprocessing, Resize};
use crate::recognise::Recognised;
use crate::weights::Scope;

impl FeatureNetwork for Parts {
    type Net<V: Clone> = InceptionV3<V>;

    fn recognise(tensors: &Arc<dyn TensorSource>) -> Recognised<Self> {
        names::recognise(tensors)
    }

    fn name(&self) -> String {
        "inception-2015-12-05".to_owned()
    }

    fn input_size(&self) -> usize {
        INPUT_SIZE
    }

    fn preprocessing(&self) -> Preprocessing {
        let normalisation = Normalisation::Shifted { offset: -128.0, scale: 1.0 / 128.0 };
        Preprocessing { normalisation, resize: Resize::TensorFlow }
    }

    fn takes(&self) -> Takes {
        Takes { taps: true, ..Takes::default() }
    }

    fn part(&self, name: &str) -> Part {
        if name.starts_with("output.") { Part::Head } else { Part::Trunk }
    }

    /// Omits a scale that is 1 everywhere.
    fn canonical<'a>(&self, name: &str, dims: &[usize], values: &'a [f32]) -> Vec<Canonical<'a>> {
        let ones = || values.iter().all(|v| v.to_bits() == 1_f32.to_bits());
        if name.ends_with(".gamma") && ones() { Vec::new() } else { vec![(name.to_owned(), dims.to_vec(), values)] }
    }

    fn build<B: Backend>(&self, b: &mut B, _input_size: usize) -> Result<InceptionV3<B::Value>> {
        InceptionV3::build(b, &Scope::root(), *self)
    }
}
