//! Enums over the rows of the registry, which pass calls on to the configuration of the row.

macro_rules! extractors {
    ($($(#[$doc:meta])* $row:ident($config:ty),)+) => {
        /// A feature network's configuration.
        #[derive(Debug, Clone, PartialEq)]
        #[non_exhaustive]
        pub enum Extractor {
            $($(#[$doc])* $row($config),)+
        }

        /// A feature network on a backend with values of type `V`.
        #[derive(Debug)]
        #[non_exhaustive]
        #[allow(clippy::large_enum_variant, reason = "one per session")]
        pub enum ExtractorNet<V: Clone> {
            $($(#[$doc])* $row(<$config as FeatureNetwork>::Net<V>),)+
        }

        impl Extractor {
            /// The feature network whose names `tensors` have.
            pub(crate) fn recognise(tensors: &Arc<dyn TensorSource>) -> Recognised<Self> {
                let rows: &[fn(&Arc<dyn TensorSource>) -> Recognised<Self>] = &[
                    $(|tensors| {
                        let (found, tensors) = <$config as FeatureNetwork>::recognise(tensors)?;
                        Some((found.map(Self::$row), tensors))
                    },)+
                ];
                rows.iter().find_map(|recognise| recognise(tensors))
            }

            /// Name of the extractor in metadata and records.
            #[must_use]
            pub fn name(&self) -> String {
                match self {
                    $(Self::$row(config) => FeatureNetwork::name(config),)+
                }
            }

            /// Height and width of the images the network is used with, pixels.
            #[must_use]
            pub fn input_size(&self) -> usize {
                match self {
                    $(Self::$row(config) => FeatureNetwork::input_size(config),)+
                }
            }

            /// Whether it also runs on images of other sizes.
            #[must_use]
            pub fn any_size(&self) -> bool {
                match self {
                    $(Self::$row(config) => config.any_size(),)+
                }
            }

            /// Normalisation and resizing of its images.
            #[must_use]
            pub fn preprocessing(&self) -> Preprocessing {
                match self {
                    $(Self::$row(config) => config.preprocessing(),)+
                }
            }

            /// Which options have an effect.
            #[must_use]
            pub fn takes(&self) -> Takes {
                match self {
                    $(Self::$row(config) => config.takes(),)+
                }
            }

            /// The configuration with hyperparameters that the file does not determine.
            ///
            /// # Errors
            /// `Config` if the file determines another value.
            pub fn completed(self, given: &Hyperparameters) -> Result<Self> {
                match self {
                    $(Self::$row(config) => config.completed(given).map(Self::$row),)+
                }
            }

            /// Activation of its MLPs, where networks of the same shapes differ in it.
            #[must_use]
            pub fn activation(&self) -> Option<Activation> {
                match self {
                    $(Self::$row(config) => config.activation(),)+
                }
            }

            /// Part of the network that the tensor `name` belongs to.
            #[must_use]
            pub fn part(&self, name: &str) -> Part {
                match self {
                    $(Self::$row(config) => config.part(name),)+
                }
            }

            /// The tensor `name` in the layout that digests of weights are computed in.
            #[must_use]
            pub fn canonical<'a>(&self, name: &str, dims: &[usize], values: &'a [f32]) -> Vec<Canonical<'a>> {
                match self {
                    $(Self::$row(config) => config.canonical(name, dims, values),)+
                }
            }

            /// Takes all tensors, for images of `input_size` pixels.
            ///
            /// # Errors
            /// `Config` if a hyperparameter is missing or the size does not fit; those of [`Backend::param`].
            pub fn build<B: Backend>(&self, b: &mut B, input_size: usize) -> Result<ExtractorNet<B::Value>> {
                match self {
                    $(Self::$row(config) => config.build(b, input_size).map(ExtractorNet::$row),)+
                }
            }

            /// Outputs of `net`, which was built from this configuration, for preprocessed images `x [N, 3, S, S]`, with intermediate
            /// activations if `taps`.
            ///
            /// # Errors
            /// `Engine`; `Config` if `net` is another network.
            #[allow(unreachable_patterns, reason = "with one row there is no other")]
            pub fn outputs<B: Backend>(
                &self,
                net: &ExtractorNet<B::Value>,
                b: &mut B,
                x: &B::Value,
                taps: bool,
            ) -> Result<Named<B::Value>> {
                match (self, net) {
                    $((Self::$row(config), ExtractorNet::$row(net)) => config.outputs(net, b, x, taps),)+
                    _ => Err(config(format!("the network was not built from the configuration of {}", self.name()))),
                }
            }
        }
    };
}

macro_rules! preconditioners {
    ($($(#[$doc:meta])* $row:ident($config:ty),)+) => {
        /// A preconditioner with the arguments of its class.
        #[derive(Debug, Clone, Copy, PartialEq)]
        #[non_exhaustive]
        pub enum Precond {
            $($(#[$doc])* $row($config),)+
        }

        impl Precond {
            /// Names of the classes.
            pub(crate) const CLASSES: &'static [&'static str] = &[$(<$config>::CLASS,)+];

            /// Names that the constructor of `class` gives the arguments of every denoiser.
            ///
            /// # Errors
            /// `Config` for an unknown class.
            pub(crate) fn convention(class: &str) -> Result<Convention> {
                match class {
                    $(<$config>::CLASS => Ok(<$config>::CONVENTION),)+
                    other => {
                        let known = Self::CLASSES.join(", ");
                        Err(config(format!("`class`: expected one of {known}, found `{other}`")))
                    }
                }
            }

            /// Assignments in the source of `class`, as (variable, formula).
            pub(crate) fn formulas(class: &str) -> &'static [(&'static str, &'static str)] {
                match class {
                    $(<$config>::CLASS => <$config>::FORMULAS,)+
                    _ => &[],
                }
            }

            /// Takes the arguments that belong to the preconditioner of `class`.
            pub(crate) fn read(class: &str, args: &mut Args) -> Result<Self> {
                match class {
                    $(<$config>::CLASS => <$config>::read(args).map(Self::$row),)+
                    other => Err(config(format!("`class`: `{other}` is not known"))),
                }
            }

            /// Name of the class in checkpoints.
            #[must_use]
            pub fn class(&self) -> &'static str {
                match self {
                    $(Self::$row(_) => <$config>::CLASS,)+
                }
            }

            /// The original's conversion of images to bytes.
            #[must_use]
            pub fn quantiser(&self) -> Quantiser {
                match self {
                    $(Self::$row(_) => <$config>::QUANTISER,)+
                }
            }

            pub(crate) fn levels<B: Backend>(&self, b: &mut B) -> Result<Option<Levels>> {
                match self {
                    $(Self::$row(config) => config.levels(b),)+
                }
            }

            pub(crate) fn outputs(&self, channels: usize) -> usize {
                match self {
                    $(Self::$row(config) => config.outputs(channels),)+
                }
            }

            pub(crate) fn clips(&self) -> bool {
                match self {
                    $(Self::$row(config) => config.clips(),)+
                }
            }

            /// Coefficients at the noise level `sigma`, which the original holds in f32.
            #[must_use]
            pub fn scalars(&self, sigma: f64, levels: Option<&Levels>) -> Scalars {
                match self {
                    $(Self::$row(config) => config.scalars(sigma, levels),)+
                }
            }

            pub(crate) fn coefficients<B: Backend>(
                &self,
                b: &mut B,
                scope: &Scope,
                sigma: &B::Value,
                levels: Option<&Levels>,
            ) -> Result<Coefficients<B::Value>> {
                match self {
                    $(Self::$row(config) => config.coefficients(b, scope, sigma, levels),)+
                }
            }

            /// Lowest and highest noise level the denoiser takes.
            #[must_use]
            pub fn noise_range(&self, levels: Option<&Levels>) -> [f64; 2] {
                match self {
                    $(Self::$row(config) => config.noise_range(levels),)+
                }
            }
        }
    };
}

macro_rules! backbones {
    ($($(#[$doc:meta])* $row:ident($config:ty),)+) => {
        /// A raw network with the arguments of its class.
        #[derive(Debug, Clone, PartialEq)]
        #[non_exhaustive]
        pub enum Backbone {
            $($(#[$doc])* $row($config),)+
        }

        /// A raw network on a backend with values of type `V`.
        #[derive(Debug, Clone)]
        #[non_exhaustive]
        #[allow(clippy::large_enum_variant, reason = "one per network")]
        pub enum BackboneNet<V: Clone> {
            $($(#[$doc])* $row(<$config as crate::generators::backbone::Backbone>::Net<V>),)+
        }

        impl Backbone {
            /// Reads the arguments of `class` in a preconditioner of class `precond`.
            pub(crate) fn read(class: &str, args: Args, precond: &str) -> Result<Self> {
                match class {
                    $(<$config>::CLASS => <$config>::read(args, precond).map(Self::$row),)+
                    other => {
                        let known = [$(<$config>::CLASS,)+].join(", ");
                        Err(config(format!("`model_type`: expected one of {known}, found `{other}`")))
                    }
                }
            }

            pub(crate) fn check(&self, shape: Shape) -> Result<()> {
                match self {
                    $(Self::$row(config) => config.check(shape),)+
                }
            }

            pub(crate) fn outputs(&self, channels: usize) -> usize {
                match self {
                    $(Self::$row(config) => config.outputs(channels),)+
                }
            }

            /// Probability with which training hides an image's label from the network.
            #[must_use]
            pub fn label_dropout(&self) -> f64 {
                match self {
                    $(Self::$row(config) => config.label_dropout(),)+
                }
            }

            pub(crate) fn build<B: Backend>(&self, b: &mut B, shape: Shape) -> Result<BackboneNet<B::Value>> {
                match self {
                    $(Self::$row(config) => config.build(b, shape).map(BackboneNet::$row),)+
                }
            }
        }

        impl<V: Clone> BackboneNet<V> {
            pub(crate) fn forward<B: Backend<Value = V>>(
                &self,
                b: &mut B,
                x: &V,
                noise: &V,
                labels: Option<&V>,
            ) -> Result<V> {
                match self {
                    $(Self::$row(net) => <$config>::forward(net, b, x, noise, labels),)+
                }
            }
        }
    };
}

macro_rules! latent_generators {
    ($($(#[$doc:meta])* $row:ident($config:ty),)+) => {
        /// A generator of one evaluation with the arguments of its class.
        #[derive(Debug, Clone, PartialEq)]
        #[non_exhaustive]
        pub enum LatentGenerator {
            $($(#[$doc])* $row($config),)+
        }

        /// A generator of one evaluation on a backend with values of type `V`.
        #[derive(Debug, Clone)]
        #[non_exhaustive]
        pub enum LatentNet<V: Clone> {
            $($(#[$doc])* $row(<$config as crate::generators::latent::LatentGenerator>::Net<V>),)+
        }

        impl LatentGenerator {
            /// Positional arguments of the constructor of `class`; `None` if the class is not a generator's.
            pub(crate) fn positional(class: &str) -> Option<&'static [&'static str]> {
                match class {
                    $(<$config>::CLASS => Some(<$config>::POSITIONAL),)+
                    _ => None,
                }
            }

            /// Why a checkpoint with an object of `class` cannot be used.
            pub(crate) fn unsupported(class: &str, tensors: &dyn TensorSource) -> Option<&'static str> {
                match class {
                    $(<$config>::CLASS => <$config>::unsupported(tensors),)+
                    _ => None,
                }
            }

            /// Reads the arguments of `class`; `None` if the class is not a generator's.
            pub(crate) fn read(class: &str, init_kwargs: &Map<String, Value>) -> Option<Result<Self>> {
                match class {
                    $(<$config>::CLASS => Some(<$config>::read(init_kwargs).map(Self::$row)),)+
                    _ => None,
                }
            }

            /// Name of the class in checkpoints.
            #[must_use]
            pub fn class(&self) -> &'static str {
                match self {
                    $(Self::$row(_) => <$config>::CLASS,)+
                }
            }

            /// The constructor's arguments as they were read.
            #[must_use]
            pub fn init_kwargs(&self) -> Value {
                match self {
                    $(Self::$row(config) => config.init_kwargs(),)+
                }
            }

            /// Length of the latents.
            #[must_use]
            pub fn latent_dim(&self) -> usize {
                match self {
                    $(Self::$row(config) => config.latent_dim(),)+
                }
            }

            /// Number of classes; 0 if unconditional.
            #[must_use]
            pub fn label_dim(&self) -> usize {
                match self {
                    $(Self::$row(config) => config.label_dim(),)+
                }
            }

            /// Takes all tensors.
            ///
            /// # Errors
            /// Those of [`Backend::buffer`].
            pub fn build<B: Backend>(&self, b: &mut B) -> Result<LatentNet<B::Value>> {
                match self {
                    $(Self::$row(config) => config.build(b).map(LatentNet::$row),)+
                }
            }
        }

        impl<V: Clone> LatentNet<V> {
            /// `latents [N, latent_dim]` of unit variance, `labels [N, label_dim]` one-hot -> images `[N, C, R, R]` about [-1, 1].
            ///
            /// # Errors
            /// `Config` if the options cannot be met; `Engine`.
            pub fn forward<B: Backend<Value = V>>(
                &self,
                b: &mut B,
                latents: &V,
                labels: Option<&V>,
                options: &SynthesisOptions,
            ) -> Result<V> {
                match self {
                    $(Self::$row(net) => <$config>::forward(net, b, latents, labels, options),)+
                }
            }
        }
    };
}
