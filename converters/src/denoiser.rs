//! Denoisers (a raw network with its preconditioner) and the one-step generators derived from them.

use serde_json::{Map, Value};

use crate::backend::{Backend, Ops as _};
use crate::error::{Result, config};
use crate::generators::args::Args;
use crate::generators::backbone::{Labels, Shape};
use crate::generators::inferred::Inferred;
use crate::generators::precond::{Coefficients, Convention, Levels};
use crate::registry::{Backbone, BackboneNet, Precond};
use crate::weights::Scope;

/// Class of the raw network in denoisers of OpenAI.
const OPENAI_BACKBONE: &str = "UNetModel";

/// Configuration of a preconditioned denoiser: class and constructor arguments.
///
/// As JSON: `{"class": "EDMPrecond", "init_kwargs": {…}}`, as in NET.json. Safetensors metadata have the same keys.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct NetConfig {
    /// Preconditioner.
    pub precond: Precond,
    /// Height and width of the images, pixels.
    pub img_resolution: usize,
    /// Colour channels.
    pub img_channels: usize,
    /// Number of classes; 0 if unconditional.
    pub label_dim: usize,
    /// Raw network.
    pub backbone: Backbone,
    init_kwargs: Map<String, Value>,
}

impl NetConfig {
    /// Reads a class name and its constructor arguments.
    ///
    /// # Errors
    /// `Config` for an unknown class, an unknown or missing argument, or a value out of range.
    pub fn new(class: &str, init_kwargs: &Value) -> Result<Self> {
        let Value::Object(kwargs) = init_kwargs else {
            return Err(config(format!("`init_kwargs`: expected an object, found {init_kwargs}")));
        };
        let mut args = Args::new(kwargs.clone());
        let convention = Precond::convention(class)?;
        let (img_resolution, img_channels, label_dim);
        match convention {
            Convention::Edm { .. } => {
                img_resolution = args.required("img_resolution")?;
                img_channels = args.required("img_channels")?;
                label_dim = args.number("label_dim")?.unwrap_or(0);
                args.ignore(&["use_fp16"]);
            }
            Convention::OpenAi => {
                args.drop_null();
                img_resolution = args.required("image_size")?;
                img_channels = args.number("in_channels")?.unwrap_or(3);
                label_dim = args.number("num_classes")?.unwrap_or(0);
                args.ignore(&[
                    "use_fp16",
                    "use_checkpoint",
                    "rho",
                    "weight_schedule",
                    "loss_norm",
                    "rescale_learned_sigmas",
                ]);
            }
        }
        let precond = Precond::read(class, &mut args)?;
        let network = match convention {
            Convention::Edm { default_backbone } => {
                args.text("model_type")?.unwrap_or_else(|| default_backbone.to_owned())
            }
            Convention::OpenAi => OPENAI_BACKBONE.to_owned(),
        };
        let backbone = Backbone::read(&network, &args, class)?;
        let read = Self { precond, img_resolution, img_channels, label_dim, backbone, init_kwargs: kwargs.clone() };
        read.backbone.check(read.shape())?;
        Ok(read)
    }

    /// Reads the arguments of `inferred`, completed by `given`.
    ///
    /// # Errors
    /// Those of [`NetConfig::new`]; `Config` if an argument is missing that cannot be inferred.
    pub fn completed(inferred: &Inferred, class: &str, given: &Map<String, Value>) -> Result<Self> {
        Self::new(class, &Value::Object(inferred.completed(given)?))
    }

    /// The same network as a one-step generator: class `D2OPrecond`, no augmentation labels, this `dropout`.
    ///
    /// # Errors
    /// `Config` unless the class is `EDMPrecond` or `D2OPrecond`.
    pub fn into_one_step(&self, dropout: f64) -> Result<Self> {
        let (Precond::Edm(_) | Precond::D2o(_)) = self.precond else {
            return Err(config(format!("`class`: fine-tuning starts from EDMPrecond, found {}", self.class())));
        };
        let mut kwargs = self.init_kwargs.clone();
        kwargs.remove("augment_dim");
        kwargs.remove("use_fp16");
        kwargs.insert("dropout".to_owned(), dropout.into());
        Self::new("D2OPrecond", &Value::Object(kwargs))
    }

    /// Class name of the preconditioner.
    #[must_use]
    pub fn class(&self) -> &'static str {
        self.precond.class()
    }

    /// Probability with which training drops the class label of an image.
    #[must_use]
    pub fn label_dropout(&self) -> f64 {
        self.backbone.label_dropout()
    }

    /// Number of augmentation labels that the network takes in training; 0 if it takes none.
    #[must_use]
    pub fn augment_dim(&self) -> usize {
        self.backbone.augment_dim()
    }

    /// Constructor arguments as they were read.
    #[must_use]
    pub fn init_kwargs(&self) -> Value {
        Value::Object(self.init_kwargs.clone())
    }

    fn shape(&self) -> Shape {
        let inputs = self.img_channels;
        let outputs = self.backbone.outputs(self.precond.outputs(inputs));
        Shape { resolution: self.img_resolution, inputs, outputs, label_dim: self.label_dim }
    }
}

/// Noise level of an evaluation.
#[derive(Debug, Clone)]
pub enum Sigma<V> {
    /// One value for all images, a constant of the graph.
    Fixed(f64),
    /// One value per image, `[N]`.
    PerImage(V),
}

/// A network with its preconditioner.
#[derive(Debug, Clone)]
pub struct Denoiser<V: Clone> {
    config: NetConfig,
    scope: Scope,
    network: BackboneNet<V>,
    /// Noise levels of a discrete schedule.
    levels: Option<Levels>,
}

impl<V: Clone> Denoiser<V> {
    /// Builds a network of this configuration and takes its tensors.
    ///
    /// # Errors
    /// Those of [`Backend::param`].
    pub fn build<B: Backend<Value = V>>(b: &mut B, config: &NetConfig) -> Result<Self> {
        let levels = config.precond.levels(b)?;
        let network = config.backbone.build(b, config.shape())?;
        Ok(Self { config: config.clone(), scope: Scope::root().child("precond"), network, levels })
    }

    /// The configuration of the denoiser.
    #[must_use]
    pub fn config(&self) -> &NetConfig {
        &self.config
    }

    /// Estimates the clean images `[N, C, R, R]` from the noisy images `x [N, C, R, R]` at noise level `sigma`.
    /// `labels` are [`Labels`] or class labels alone.
    ///
    /// # Errors
    /// `Config` if augmentation labels are given and the network takes none; `Engine` if an operation fails.
    pub fn denoise<'a, B: Backend<Value = V>>(
        &self,
        b: &mut B,
        x: &V,
        sigma: &Sigma<V>,
        labels: impl Into<Labels<'a, V>>,
    ) -> Result<V>
    where
        V: 'a,
    {
        b.enter(&self.scope);
        let c = match sigma {
            Sigma::Fixed(value) => self.fixed(b, *value)?,
            Sigma::PerImage(value) => self.config.precond.coefficients(b, &self.scope, value, self.levels.as_ref())?,
        };
        let input = match &c.input {
            Some(c_in) => b.mul(x, c_in)?,
            None => x.clone(),
        };
        let mut labels = labels.into();
        if self.config.label_dim == 0 {
            labels.classes = None;
        }
        let out = self.network.forward(b, &input, &c.noise, labels)?;
        b.enter(&self.scope);
        let out = if b.dim(&out, 1) == Some(self.config.img_channels) {
            out
        } else {
            // The other channels are predicted variances.
            b.slice(&out, 1, 0, self.config.img_channels)?
        };
        let out = b.mul(&out, &c.out)?;
        let skip = match &c.skip {
            Some(c_skip) => b.mul(x, c_skip)?,
            None => x.clone(),
        };
        let denoised = b.add(&skip, &out)?;
        if self.config.precond.clips() { b.clamp(&denoised, -1.0, 1.0) } else { Ok(denoised) }
    }

    /// One-step generation from the noise level `sigma_max`: maps `latents [N, C, R, R]` of unit variance to images
    /// `[N, C, R, R]`, approximately in [-1, 1].
    ///
    /// # Errors
    /// `Engine` if an operation fails.
    pub fn one_step<B: Backend<Value = V>>(
        &self,
        b: &mut B,
        latents: &V,
        sigma_max: f64,
        labels: Option<&V>,
    ) -> Result<V> {
        b.enter(&self.scope);
        let x = b.scale(latents, sigma_max)?;
        self.denoise(b, &x, &Sigma::Fixed(sigma_max), labels)
    }

    fn fixed<B: Backend<Value = V>>(&self, b: &mut B, sigma: f64) -> Result<Coefficients<V>> {
        let c = self.config.precond.scalars(sigma, self.levels.as_ref());
        let mut image = |name: &str, value: f64| b.constant(&self.scope, name, &[1, 1, 1, 1], vec![value]);
        let skip = if c.skip == 1.0 { None } else { Some(image("c_skip", c.skip)?) };
        let input = if c.input == 1.0 { None } else { Some(image("c_in", c.input)?) };
        let out = image("c_out", c.out)?;
        let noise = b.constant(&self.scope, "c_noise", &[1], vec![c.noise])?;
        Ok(Coefficients { skip, out, input, noise })
    }

    /// Lowest and highest noise level that the denoiser accepts.
    #[must_use]
    pub fn noise_range(&self) -> [f64; 2] {
        self.config.precond.noise_range(self.levels.as_ref())
    }

    /// Noise levels of a discrete schedule in descending order; `None` for continuous noise levels.
    #[must_use]
    pub fn noise_levels(&self) -> Option<&[f32]> {
        self.levels.as_ref().map(|l| l.sigmas.as_slice())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::generators::dhariwal::DhariwalConfig;
    use crate::generators::song::SongConfig;
    use serde_json::json;

    #[test]
    fn defaults_are_those_of_the_class() {
        let read = NetConfig::new("VPPrecond", &json!({"img_resolution": 32, "img_channels": 3})).unwrap();
        assert_eq!(read.backbone, Backbone::Song(SongConfig::default()));
        let read = NetConfig::new("EDMPrecond", &json!({"img_resolution": 64, "img_channels": 3})).unwrap();
        assert_eq!(read.backbone, Backbone::Dhariwal(DhariwalConfig::default()));
    }

    #[test]
    fn errors_name_the_argument() {
        let fails = |class: &str, kwargs: Value| NetConfig::new(class, &kwargs).unwrap_err().to_string();
        assert!(fails("EDMPrecond", json!({"img_channels": 3})).contains("`img_resolution` is missing"));
        assert!(fails("XPrecond", json!({"img_resolution": 8, "img_channels": 3})).contains("found `XPrecond`"));
        let typo = json!({"img_resolution": 8, "img_channels": 3, "model_type": "SongUNet", "num_block": 1});
        assert!(fails("EDMPrecond", typo).contains("num_block"));
        let odd = json!({"img_resolution": 9, "img_channels": 3, "model_type": "SongUNet"});
        assert!(fails("EDMPrecond", odd).contains("multiple of 8"));
    }

    #[test]
    fn one_step_keeps_sizes_and_drops_augmentation() {
        let kwargs = json!({"img_resolution": 32, "img_channels": 3, "model_type": "SongUNet", "augment_dim": 9});
        let read = NetConfig::new("EDMPrecond", &kwargs).unwrap().into_one_step(0.0).unwrap();
        assert_eq!(read.class(), "D2OPrecond");
        let Backbone::Song(song) = &read.backbone else { panic!("expected SongUNet") };
        assert_eq!((song.augment_dim, song.dropout), (0, 0.0));
        assert_eq!(NetConfig::new("D2OPrecond", &read.init_kwargs()).unwrap(), read);
        // The class name in the first D2O checkpoints.
        assert_eq!(NetConfig::new("GDDPrecond", &read.init_kwargs()).unwrap(), read);
    }

    #[test]
    fn noise_ranges_are_the_originals_attributes() {
        let range = |class: &str, more: Value| {
            let mut kwargs = json!({"img_resolution": 8, "img_channels": 3, "model_type": "SongUNet"});
            kwargs.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            NetConfig::new(class, &kwargs).unwrap().precond.noise_range(None)
        };
        let [low, high] = range("VPPrecond", json!({}));
        assert!((low - 9.765_625e-4).abs() < 1e-12 && (high - 152.17).abs() < 0.01, "{low} {high}");
        assert_eq!(range("VEPrecond", json!({})), [0.02, 100.0]);
        assert_eq!(range("VEPrecond", json!({"sigma_min": 0.1})), [0.1, 100.0]);
        assert_eq!(range("EDMPrecond", json!({})), [0.0, f64::INFINITY]);
        assert_eq!(range("EDMPrecond", json!({"sigma_min": 0.002, "sigma_max": 80})), [0.002, 80.0]);
        assert_eq!(range("EDMPrecond", json!({"sigma_max": null})), [0.0, f64::INFINITY]);
    }
}
