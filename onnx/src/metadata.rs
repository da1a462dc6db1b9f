//! Metadata of graphs that d2o writes. Only this module converts them from and to text.

use std::collections::BTreeMap;

use crate::error::{Error, Result};

/// Purpose of a graph.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Kind {
    /// Latents to images in one evaluation.
    OneStep,
    /// One denoising step.
    Denoiser,
    /// Images to features.
    Features,
    /// A generator and a feature network in one graph.
    Fused,
}

/// Conversion of image values of about [-1, 1] to bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Quantiser {
    /// Truncation of 127.5 x + 128 (EDM, D2O, SiD, StyleGAN).
    Edm,
    /// Truncation of 127.5 (x + 1) (guided-diffusion, consistency models).
    OpenAi,
}

impl Quantiser {
    /// `x` as a byte, saturating. As in the original code, `Edm` computes in f64 and `OpenAi` in f32.
    #[must_use]
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "limited first")]
    pub fn apply(self, x: f64) -> u8 {
        match self {
            Self::Edm => (x * 127.5 + 128.0).clamp(0.0, 255.0) as u8,
            Self::OpenAi => ((x as f32 + 1.0) * 127.5).clamp(0.0, 255.0) as u8,
        }
    }
}

/// Type of the weights and of most of the arithmetic.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Precision {
    /// f32.
    #[default]
    Fp32,
    /// f16, with some operations in f32.
    Fp16,
}

/// Noise inputs of a StyleGAN2 generator.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Noise {
    /// The constant noise of the checkpoint.
    Const,
    /// No noise.
    None,
}

/// Sampler that a generator of several evaluations was trained for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sampler {
    /// D2O with two steps.
    TwoStep,
    /// D2O with several steps.
    MultiStep,
}

/// Conversion of a metadata value from and to text.
trait Text: Sized {
    /// Description of the valid texts, for errors.
    const EXPECTED: &'static str;

    fn write(&self) -> String;
    fn read(text: &str) -> Option<Self>;
}

macro_rules! names {
    ($type:ident, $expected:literal, $($variant:ident = $name:literal),+) => {
        impl $type {
            /// Name in metadata.
            #[must_use]
            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $name),+
                }
            }

            /// The variant called `name` in metadata.
            #[must_use]
            pub fn named(name: &str) -> Option<Self> {
                match name {
                    $($name => Some(Self::$variant),)+
                    _ => None,
                }
            }
        }

        impl Text for $type {
            const EXPECTED: &'static str = $expected;

            fn write(&self) -> String {
                self.name().to_owned()
            }

            fn read(text: &str) -> Option<Self> {
                Self::named(text)
            }
        }
    };
}

names!(
    Kind,
    "one-step, denoiser, features or fused",
    OneStep = "one-step",
    Denoiser = "denoiser",
    Features = "features",
    Fused = "fused"
);
names!(Quantiser, "127.5 x + 128 or 127.5 (x + 1)", Edm = "127.5 x + 128", OpenAi = "127.5 (x + 1)");
names!(Precision, "fp32 or fp16", Fp32 = "fp32", Fp16 = "fp16");
names!(Noise, "const or none", Const = "const", None = "none");
names!(Sampler, "two-step or multi-step", TwoStep = "two-step", MultiStep = "multi-step");

macro_rules! displayed {
    ($($type:ty: $expected:literal),+) => {
        $(impl Text for $type {
            const EXPECTED: &'static str = $expected;

            fn write(&self) -> String {
                self.to_string()
            }

            fn read(text: &str) -> Option<Self> {
                text.parse().ok()
            }
        })+
    };
}

displayed!(String: "text", f64: "a number", u32: "a whole number", usize: "a whole number");

impl Text for Vec<f32> {
    const EXPECTED: &'static str = "a list of numbers";

    fn write(&self) -> String {
        format!("{self:?}")
    }

    fn read(text: &str) -> Option<Self> {
        let inside = text.trim().strip_prefix('[')?.strip_suffix(']')?;
        inside.split(',').map(|number| number.trim().parse().ok()).collect()
    }
}

macro_rules! metadata {
    ($($(#[$doc:meta])* $field:ident: $type:ty = $key:literal,)+) => {
        /// Metadata of a graph; `None` for each key that the graph does not have.
        #[derive(Debug, Clone, PartialEq, Default)]
        pub struct Metadata {
            $($(#[$doc])* pub $field: Option<$type>,)+
        }

        impl Metadata {
            /// Reads the entries of a graph; other keys are ignored.
            ///
            /// # Errors
            /// `Metadata` if a value does not have the type of its key.
            pub fn read(entries: &BTreeMap<String, String>) -> Result<Self> {
                Ok(Self { $($field: read(entries, $key)?,)+ })
            }

            /// Reads the entries of a graph that another program wrote. Values that do not have the type of their key
            /// are ignored, because the key has another meaning there.
            pub(crate) fn read_foreign(entries: &BTreeMap<String, String>) -> Self {
                Self { $($field: read(entries, $key).unwrap_or_default(),)+ }
            }

            /// The entries, sorted by key.
            #[must_use]
            pub fn entries(&self) -> BTreeMap<String, String> {
                let mut all = BTreeMap::new();
                $(all.extend(self.$field.as_ref().map(|value| ($key.to_owned(), Text::write(value))));)+
                all
            }
        }
    };
}

metadata! {
    /// Version of d2o that wrote the graph.
    version: String = "d2o_version",
    /// Purpose of the graph.
    kind: Kind = "kind",
    /// Class name of the network in checkpoints.
    class: String = "class",
    /// Name of the published checkpoint that the graph was exported from.
    known: String = "known",
    /// Constructor arguments of the class, JSON.
    init_kwargs: String = "init_kwargs",
    /// Conversion of the images to bytes.
    quantiser: Quantiser = "quantiser",
    /// Initial noise level of a one-step generator made from a denoiser.
    sigma_max: f64 = "sigma_max",
    /// Sampler that a denoiser was trained for.
    sampler: Sampler = "sampler",
    /// Number of steps of the sampler.
    num_steps: u32 = "num_steps",
    /// Noise level between the two steps of [`Sampler::TwoStep`].
    middle: f64 = "middle",
    /// Lowest noise level that a denoiser takes.
    net_sigma_min: f64 = "net_sigma_min",
    /// Highest noise level that a denoiser takes.
    net_sigma_max: f64 = "net_sigma_max",
    /// All noise levels of a denoiser with discrete levels, in descending order.
    net_levels: Vec<f32> = "net_levels",
    /// Truncation factor ψ towards the average latent.
    truncation_psi: f64 = "truncation_psi",
    /// Number of layers that are truncated.
    truncation_cutoff: usize = "truncation_cutoff",
    /// Noise inputs.
    noise: Noise = "noise",
    /// Name of the feature network.
    extractor: String = "extractor",
    /// Height and width at which the feature network runs, pixels.
    input_size: usize = "input_size",
    /// Activation of a CLIP tower.
    activation: String = "activation",
    /// Width of the attention heads, channels, if it was set at export.
    head_width: usize = "head_width",
    /// Resizing of images of another size inside the graph.
    resize: String = "resize",
    /// Published file that contains these weights, or `unverified`.
    weights: String = "weights",
    /// Digest of the weights without the head.
    weights_digest: String = "weights_digest",
    /// Digest of the head.
    head_digest: String = "head_digest",
    /// SHA-256 of the published file.
    source_sha256: String = "source_sha256",
    /// Type of the weights and of most of the arithmetic.
    precision: Precision = "precision",
    /// Measured effect of f16.
    fp16_difference: String = "fp16_difference",
    /// Convolutions rewritten by Winograd's algorithm.
    winograd: String = "winograd",
}

fn read<T: Text>(entries: &BTreeMap<String, String>, key: &'static str) -> Result<Option<T>> {
    let wrong = |found: &String| Error::Metadata { key, expected: T::EXPECTED, found: found.clone() };
    entries.get(key).map(|text| T::read(text).ok_or_else(|| wrong(text))).transpose()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let metadata = Metadata {
            kind: Some(Kind::Denoiser),
            quantiser: Some(Quantiser::OpenAi),
            sigma_max: Some(80.0),
            net_sigma_max: Some(f64::INFINITY),
            net_levels: Some(vec![20291.037, 0.006_425_1, 0.0]),
            noise: Some(Noise::None),
            truncation_cutoff: Some(8),
            class: Some("EDMPrecond".to_owned()),
            precision: Some(Precision::Fp16),
            ..Metadata::default()
        };
        let entries = metadata.entries();
        assert_eq!(entries["sigma_max"], "80");
        assert_eq!(Metadata::read(&entries).unwrap(), metadata);
        assert_eq!(Metadata::read(&BTreeMap::new()).unwrap(), Metadata::default());
    }

    #[test]
    fn values_of_another_type_are_errors_that_name_the_key() {
        for (key, value) in [
            ("kind", "test"),
            ("sigma_max", "high"),
            ("net_levels", "[1.0, x]"),
            ("head_width", "-1"),
            ("quantiser", "x"),
        ] {
            let error = Metadata::read(&BTreeMap::from([(key.to_owned(), value.to_owned())])).unwrap_err().to_string();
            assert!(error.contains(&format!("`{key}`")) && error.contains(value), "{error}");
            let entries = [(key, value), ("class", "X")].map(|(k, v)| (k.to_owned(), v.to_owned()));
            let foreign = Metadata::read_foreign(&BTreeMap::from(entries));
            assert_eq!(foreign, Metadata { class: Some("X".to_owned()), ..Metadata::default() });
        }
    }

    #[test]
    fn bytes_are_the_originals() {
        assert_eq!([-2.0, -1.0, 0.0, 1.0].map(|x| Quantiser::Edm.apply(x)), [0, 0, 128, 255]);
        assert_eq!([-2.0, -1.0, 0.0, 1.0].map(|x| Quantiser::OpenAi.apply(x)), [0, 0, 127, 255]);
    }
}
