//! The networks there are: one row each.

use std::sync::Arc;

use d2o_checkpoint::TensorSource;
use d2o_onnx::metadata::Quantiser;
use serde_json::{Map, Value};

use crate::backend::Backend;
use crate::error::{Result, config};
use crate::extractors::efficientnet_lite::Lite0;
use crate::extractors::inception_v3::Parts;
use crate::extractors::vgg16::VggConfig;
use crate::extractors::vision_transformer::VitConfig;
use crate::extractors::{Activation, Canonical, FeatureNetwork, Hyperparameters, Named, Part, Takes};
use crate::generators::args::Args;
use crate::generators::backbone::{Backbone as _, Shape};
use crate::generators::dhariwal::DhariwalConfig;
use crate::generators::inferred::Inferred;
use crate::generators::latent::{LatentGenerator as _, SynthesisOptions};
use crate::generators::openai::{self, OpenAiConfig};
use crate::generators::precond::d2o::D2o;
use crate::generators::precond::ecm::Ecm;
use crate::generators::precond::edm::Edm;
use crate::generators::precond::gaussian::Gaussian;
use crate::generators::precond::iddpm::Iddpm;
use crate::generators::precond::karras::Karras;
use crate::generators::precond::ve::Ve;
use crate::generators::precond::vp::Vp;
use crate::generators::precond::{Coefficients, Convention, Levels, Preconditioner as _, Scalars};
use crate::generators::song::SongConfig;
use crate::generators::stylegan2::StyleGan2Config;
use crate::preprocess::Preprocessing;
use crate::recognise::Recognised;
use crate::weights::Scope;

extractors! {
    /// Inception-2015-12-05, tensors under NVIDIA's names.
    InceptionV3(Parts),
    /// CLIP's image tower, tensors under OpenAI's names without `visual.`; DeiT and DINOv2 under their own.
    VisionTransformer(VitConfig),
    /// VGG16, with or without batch norms, tensors under torchvision's names.
    Vgg16(VggConfig),
    /// EfficientNet-Lite0, tensors under timm's names.
    EfficientNetLite0(Lite0),
}

preconditioners! {
    /// `EDMPrecond`.
    Edm(Edm),
    /// `D2OPrecond`.
    D2o(D2o),
    /// `ECMPrecond`.
    Ecm(Ecm),
    /// `VPPrecond`.
    Vp(Vp),
    /// `VEPrecond`.
    Ve(Ve),
    /// `iDDPMPrecond`.
    Iddpm(Iddpm),
    /// `KarrasDenoiser`.
    Karras(Karras),
    /// `GaussianDiffusion`.
    Gaussian(Gaussian),
}

backbones! {
    /// DDPM++ and NCSN++.
    Song(SongConfig),
    /// ADM in EDM's version.
    Dhariwal(DhariwalConfig),
    /// ADM in the version of guided-diffusion and consistency_models.
    OpenAi(OpenAiConfig),
}

latent_generators! {
    /// StyleGAN2's generator.
    StyleGan2(StyleGan2Config),
}

/// Generators recognised by names and shapes of tensors and by the name of their file.
const INFERRED: &[Infer] = &[openai::recognise];

type Infer = fn(&Arc<dyn TensorSource>, &str) -> Recognised<Inferred>;

/// The generator that `tensors` from a file called `stem` (without extension) are, as far as they determine it.
pub(crate) fn infer(tensors: &Arc<dyn TensorSource>, stem: &str) -> Recognised<Inferred> {
    INFERRED.iter().find_map(|recognise| recognise(tensors, stem))
}
