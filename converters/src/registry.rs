//! Tables of the supported networks, one row per network.

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
use crate::generators::backbone::{Backbone as _, Labels, Shape};
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

rows! { $
    /// Configuration of a feature network.
    enum Extractor [each_extractor, every_extractor]
    /// A feature network on a backend with values of type `V`.
    nets ExtractorNet: FeatureNetwork [each_extractor_net, build_extractor]
    {
        /// Inception-2015-12-05 with the tensor names of NVIDIA.
        InceptionV3(Parts),
        /// CLIP image encoder with the tensor names of OpenAI without `visual.`; DeiT and DINOv2 with their original
        /// names.
        VisionTransformer(VitConfig),
        /// VGG16, with or without batch norms, with the tensor names of torchvision.
        Vgg16(VggConfig),
        /// EfficientNet-Lite0 with the tensor names of timm.
        EfficientNetLite0(Lite0),
    }
}

rows! { $
    /// A preconditioner with the arguments of its class.
    enum Precond [each_precond, every_precond]
    {
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
}

rows! { $
    /// A raw network with the arguments of its class.
    enum Backbone [each_backbone, every_backbone]
    /// A raw network on a backend with values of type `V`.
    nets BackboneNet: crate::generators::backbone::Backbone [each_backbone_net, build_backbone]
    {
        /// DDPM++ and NCSN++.
        Song(SongConfig),
        /// ADM in EDM's version.
        Dhariwal(DhariwalConfig),
        /// ADM in the version of guided-diffusion and consistency_models.
        OpenAi(OpenAiConfig),
    }
}

rows! { $
    /// A single-evaluation generator with the arguments of its class.
    enum LatentGenerator [each_generator, every_generator]
    /// A single-evaluation generator on a backend with values of type `V`.
    nets LatentNet: crate::generators::latent::LatentGenerator [each_generator_net, build_generator]
    {
        /// StyleGAN2 generator.
        StyleGan2(StyleGan2Config),
    }
}

/// Functions that recognise generators by tensor names, tensor shapes and file name.
const INFERRED: &[Infer] = &[openai::recognise];

type Infer = fn(&Arc<dyn TensorSource>, &str) -> Recognised<Inferred>;

/// Recognises the generator with these `tensors` in a file called `stem` (without extension).
pub(crate) fn infer(tensors: &Arc<dyn TensorSource>, stem: &str) -> Recognised<Inferred> {
    INFERRED.iter().find_map(|recognise| recognise(tensors, stem))
}

/// The first value that is not `None`.
fn first<T, const N: usize>(rows: [Option<T>; N]) -> Option<T> {
    rows.into_iter().flatten().next()
}

impl Extractor {
    /// Recognises a feature network by the names of its `tensors`.
    pub(crate) fn recognise(tensors: &Arc<dyn TensorSource>) -> Recognised<Self> {
        first(every_extractor!(Config, variant => {
            Config::recognise(tensors).map(|(found, tensors)| (found.map(variant), tensors))
        }))
    }

    /// Name of the extractor in metadata and records.
    #[must_use]
    pub fn name(&self) -> String {
        each_extractor!(self, config => FeatureNetwork::name(config))
    }

    /// Default height and width of the input images, pixels.
    #[must_use]
    pub fn input_size(&self) -> usize {
        each_extractor!(self, config => FeatureNetwork::input_size(config))
    }

    /// Whether the network also accepts images of other sizes.
    #[must_use]
    pub fn any_size(&self) -> bool {
        each_extractor!(self, config => config.any_size())
    }

    /// Normalisation and resizing of the input images.
    #[must_use]
    pub fn preprocessing(&self) -> Preprocessing {
        each_extractor!(self, config => config.preprocessing())
    }

    /// Options that have an effect on the network.
    #[must_use]
    pub fn takes(&self) -> Takes {
        each_extractor!(self, config => config.takes())
    }

    /// Adds hyperparameters that the file does not determine.
    ///
    /// # Errors
    /// `Config` if the file determines another value.
    pub fn completed(mut self, given: &Hyperparameters) -> Result<Self> {
        each_extractor!(&mut self, config => config.complete(given))?;
        Ok(self)
    }

    /// Activation of the MLPs of a vision transformer, if it is known.
    #[must_use]
    pub fn activation(&self) -> Option<Activation> {
        each_extractor!(self, config => config.activation())
    }

    /// Part of the network that the tensor `name` belongs to.
    #[must_use]
    pub fn part(&self, name: &str) -> Part {
        each_extractor!(self, config => config.part(name))
    }

    /// The tensor `name` in the canonical layout, from which digests are computed.
    #[must_use]
    pub fn canonical<'a>(&self, name: &str, dims: &[usize], values: &'a [f32]) -> Vec<Canonical<'a>> {
        each_extractor!(self, config => config.canonical(name, dims, values))
    }

    /// Builds the network for images of `input_size` pixels and takes all of its tensors.
    ///
    /// # Errors
    /// `Config` if a hyperparameter is missing or the network does not accept the size; those of [`Backend::param`].
    pub fn build<B: Backend>(&self, b: &mut B, input_size: usize) -> Result<ExtractorNet<B::Value>> {
        build_extractor!(self, config => config.build(b, input_size))
    }
}

impl<V: Clone> ExtractorNet<V> {
    /// Outputs for preprocessed images `x [N, 3, S, S]`, including intermediate activations if `taps`.
    ///
    /// # Errors
    /// `Engine` if an operation fails.
    pub fn forward<B: Backend<Value = V>>(&self, b: &mut B, x: &V, taps: bool) -> Result<Named<V>> {
        each_extractor_net!(self, net => net.forward(b, x, taps))
    }
}

/// The current name of `class`. The first D2O checkpoints contain the former class name `GDDPrecond`.
fn renamed(class: &str) -> &str {
    if class == "GDDPrecond" { D2o::CLASS } else { class }
}

impl Precond {
    /// Names in the constructor of `class` for the arguments that every denoiser has.
    pub(crate) fn convention(class: &str) -> Result<Convention> {
        let class = renamed(class);
        first(every_precond!(Config, variant => (Config::CLASS == class).then_some(Config::CONVENTION))).ok_or_else(
            || {
                let known = every_precond!(Config, variant => Config::CLASS).join(", ");
                config(format!("`class`: expected one of {known}, found `{class}`"))
            },
        )
    }

    /// Assignments in the source of `class`, as (variable, formula); empty if they are not compared.
    pub(crate) fn formulas(class: &str) -> &'static [(&'static str, &'static str)] {
        let class = renamed(class);
        first(every_precond!(Config, variant => (Config::CLASS == class).then_some(Config::FORMULAS))).unwrap_or(&[])
    }

    /// Reads the arguments of the preconditioner `class` and removes them from `args`.
    pub(crate) fn read(class: &str, args: &mut Args) -> Result<Self> {
        let class = renamed(class);
        let found =
            every_precond!(Config, variant => (Config::CLASS == class).then(|| Config::read(args).map(variant)));
        first(found).unwrap_or_else(|| Err(config(format!("`class`: `{class}` is not known"))))
    }

    /// Name of the class in checkpoints.
    #[must_use]
    pub fn class(&self) -> &'static str {
        each_precond!(self, config => config.class())
    }

    /// Conversion of images to bytes in the original.
    #[must_use]
    pub fn quantiser(&self) -> Quantiser {
        each_precond!(self, config => config.quantiser())
    }

    pub(crate) fn levels<B: Backend>(&self, b: &mut B) -> Result<Option<Levels>> {
        each_precond!(self, config => config.levels(b))
    }

    pub(crate) fn outputs(&self, channels: usize) -> usize {
        each_precond!(self, config => config.outputs(channels))
    }

    pub(crate) fn clips(&self) -> bool {
        each_precond!(self, config => config.clips())
    }

    /// Coefficients at the noise level `sigma`, rounded to f32 as in the original.
    #[must_use]
    pub fn scalars(&self, sigma: f64, levels: Option<&Levels>) -> Scalars {
        each_precond!(self, config => config.scalars(sigma, levels))
    }

    pub(crate) fn coefficients<B: Backend>(
        &self,
        b: &mut B,
        scope: &Scope,
        sigma: &B::Value,
        levels: Option<&Levels>,
    ) -> Result<Coefficients<B::Value>> {
        each_precond!(self, config => config.coefficients(b, scope, sigma, levels))
    }

    /// Lowest and highest noise level that the denoiser accepts.
    #[must_use]
    pub fn noise_range(&self, levels: Option<&Levels>) -> [f64; 2] {
        each_precond!(self, config => config.noise_range(levels))
    }
}

impl Backbone {
    /// Reads the arguments of `class` in a preconditioner of class `precond`.
    pub(crate) fn read(class: &str, args: &Args, precond: &str) -> Result<Self> {
        let found = every_backbone!(Config, variant => {
            (Config::CLASS == class).then(|| Config::read(args.clone(), precond).map(variant))
        });
        first(found).unwrap_or_else(|| {
            let known = every_backbone!(Config, variant => Config::CLASS).join(", ");
            Err(config(format!("`model_type`: expected one of {known}, found `{class}`")))
        })
    }

    pub(crate) fn check(&self, shape: Shape) -> Result<()> {
        each_backbone!(self, config => config.check(shape))
    }

    pub(crate) fn outputs(&self, channels: usize) -> usize {
        each_backbone!(self, config => config.outputs(channels))
    }

    /// Probability with which training drops the class label of an image.
    #[must_use]
    pub fn label_dropout(&self) -> f64 {
        each_backbone!(self, config => config.label_dropout())
    }

    /// Number of augmentation labels; 0 if the network takes none.
    #[must_use]
    pub fn augment_dim(&self) -> usize {
        each_backbone!(self, config => config.augment_dim())
    }

    pub(crate) fn build<B: Backend>(&self, b: &mut B, shape: Shape) -> Result<BackboneNet<B::Value>> {
        build_backbone!(self, config => config.build(b, shape))
    }
}

impl<V: Clone> BackboneNet<V> {
    pub(crate) fn forward<B: Backend<Value = V>>(
        &self,
        b: &mut B,
        x: &V,
        noise: &V,
        labels: Labels<'_, V>,
    ) -> Result<V> {
        each_backbone_net!(self, net => net.forward(b, x, noise, labels))
    }
}

impl LatentGenerator {
    /// Names of the positional constructor arguments of `class`; `None` if it is not a class of this table.
    pub(crate) fn positional(class: &str) -> Option<&'static [&'static str]> {
        first(every_generator!(Config, variant => (Config::CLASS == class).then_some(Config::POSITIONAL)))
    }

    /// Reason why a checkpoint with an object of `class` cannot be used; `None` if it can.
    pub(crate) fn unsupported(class: &str, tensors: &dyn TensorSource) -> Option<&'static str> {
        let found = every_generator!(Config, variant => (Config::CLASS == class).then(|| Config::unsupported(tensors)));
        first(found).flatten()
    }

    /// Reads the arguments of `class`; `None` if it is not a class of this table.
    pub(crate) fn read(class: &str, init_kwargs: &Map<String, Value>) -> Option<Result<Self>> {
        first(every_generator!(Config, variant => {
            (Config::CLASS == class).then(|| Config::read(init_kwargs).map(variant))
        }))
    }

    /// Name of the class in checkpoints.
    #[must_use]
    pub fn class(&self) -> &'static str {
        each_generator!(self, config => config.class())
    }

    /// Constructor arguments as they were read.
    #[must_use]
    pub fn init_kwargs(&self) -> Value {
        each_generator!(self, config => config.init_kwargs())
    }

    /// Length of a latent vector.
    #[must_use]
    pub fn latent_dim(&self) -> usize {
        each_generator!(self, config => config.latent_dim())
    }

    /// Number of classes; 0 if unconditional.
    #[must_use]
    pub fn label_dim(&self) -> usize {
        each_generator!(self, config => config.label_dim())
    }

    /// Builds the network and takes all of its tensors.
    ///
    /// # Errors
    /// Those of [`Backend::buffer`].
    pub fn build<B: Backend>(&self, b: &mut B) -> Result<LatentNet<B::Value>> {
        build_generator!(self, config => config.build(b))
    }
}

impl<V: Clone> LatentNet<V> {
    /// Maps `latents [N, latent_dim]` of unit variance and one-hot `labels [N, label_dim]` to images `[N, C, R, R]`,
    /// approximately in [-1, 1].
    ///
    /// # Errors
    /// `Config` if labels are missing or the options do not apply to the generator; `Engine` if an operation fails.
    pub fn forward<B: Backend<Value = V>>(
        &self,
        b: &mut B,
        latents: &V,
        labels: Option<&V>,
        options: &SynthesisOptions,
    ) -> Result<V> {
        each_generator_net!(self, net => net.forward(b, latents, labels, options))
    }
}
