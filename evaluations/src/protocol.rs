//! Settings of the reproduced tools, as one table: [`PROTOCOLS`].
//!
//! Sources: `fid.py` of EDM and D2O, the evaluator of guided-diffusion (also used by D2O), the metrics of StyleGAN3,
//! torch-fidelity 0.4, clean-fid 0.1.35, pytorch-fid 0.3. For a metric that a tool lacks, the table uses the rule of
//! the tool its users combine it with; [`Protocol::borrowed`] names that tool.

use std::collections::BTreeMap;

use crate::inception_score::{Parts, ScoreRule};
use crate::kid::{KidRule, SmallSets};
use crate::manifold::{Boundary, Distance, ManifoldRule};
use crate::preprocess::{Resize, Scaling};

/// Name of the original Inception network of 2015-12-05. The Fréchet distance of other features is not called FID.
pub const INCEPTION: &str = "inception-2015-12-05";
/// Name of the torchvision VGG16.
pub const VGG16: &str = "vgg16";

/// Conversion of images in about -1..1 to bytes, for tools that generate the images.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Quantiser {
    /// `trunc(clip(127.5·x + 128, 0, 255))`.
    Round,
    /// `trunc(clip(127.5·(x + 1), 0, 255))`.
    Truncate,
    /// The tool takes bytes.
    Bytes,
}

/// CLIP features of CLIP-FID. The preprocessing is the same for both: Pillow bicubic resize of u8, shorter side to 224,
/// centre crop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClipFeatures {
    /// 512 features after the projection, not normalised.
    Projected,
    /// 768 features before the projection.
    Unprojected,
}

impl ClipFeatures {
    /// Output of the exported network that holds the features.
    #[must_use]
    pub fn output(self) -> &'static str {
        match self {
            Self::Projected => "features",
            Self::Unprojected => "unprojected",
        }
    }

    /// Description for results.
    #[must_use]
    pub fn describe(self) -> &'static str {
        match self {
            Self::Projected => "u8 bicubic (Pillow), centre crop, projected features",
            Self::Unprojected => "u8 bicubic (Pillow), centre crop, features before the projection",
        }
    }
}

/// Features used for precision and recall.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ManifoldFeatures {
    /// The features of the Fréchet distance.
    Pool3,
    /// 4096 features of torchvision VGG16 at 224×224: the second fully connected layer after its ReLU.
    Vgg16,
    /// The same layer of the VGG16 that NVIDIA distributes, which has other weights.
    NvidiaVgg16,
}

impl ManifoldFeatures {
    /// Name of the network; `None` if d2o cannot identify it by name.
    #[must_use]
    pub fn extractor(self) -> Option<&'static str> {
        match self {
            Self::Pool3 => Some(INCEPTION),
            Self::Vgg16 => Some(VGG16),
            Self::NvidiaVgg16 => None,
        }
    }

    /// Description for results.
    #[must_use]
    pub fn describe(self) -> &'static str {
        match self {
            Self::Pool3 => "pool3",
            Self::Vgg16 => "VGG16",
            Self::NvidiaVgg16 => "NVIDIA's VGG16",
        }
    }
}

/// Settings of one tool.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Protocol {
    /// Name on the command line.
    pub name: &'static str,
    /// Display name.
    pub title: &'static str,
    /// Whether the tool also reads images in subfolders.
    pub subfolders: bool,
    /// Quantisation of generated images.
    pub quantiser: Quantiser,
    /// Resize to the 299×299 input of Inception.
    pub resize: Resize,
    /// Normalisation of values 0..255 in the network.
    pub scaling: Scaling,
    /// Divisor of a covariance: N - ddof.
    pub ddof: usize,
    /// Inception Score.
    pub score: ScoreRule,
    /// Features used for precision and recall.
    pub manifold_features: ManifoldFeatures,
    /// Precision and recall.
    pub manifold: ManifoldRule,
    /// Density and coverage, from the same features.
    pub density_coverage: ManifoldRule,
    /// KID.
    pub kid: KidRule,
    /// CLIP-FID.
    pub clip: ClipFeatures,
    /// Metrics that the tool lacks, each with the tool that defines their rule: `(metrics, tool)`.
    pub borrowed: &'static [(&'static str, &'static str)],
}

const ADM_SCORE: ScoreRule = ScoreRule { parts: Parts::Size(5000), shuffle_seed: None, f32_probabilities: true };
const NVIDIA_SCORE: ScoreRule = ScoreRule { parts: Parts::Count(10), shuffle_seed: None, f32_probabilities: true };
const FIDELITY_SCORE: ScoreRule =
    ScoreRule { parts: Parts::Count(10), shuffle_seed: Some(2020), f32_probabilities: false };

const ADM_MANIFOLD: ManifoldRule =
    ManifoldRule { k: 3, distance: Distance::SquaredHalfBlocks, boundary: Boundary::Inclusive };
const NVIDIA_MANIFOLD: ManifoldRule =
    ManifoldRule { k: 3, distance: Distance::EuclideanHalf, boundary: Boundary::Inclusive };
const FIDELITY_MANIFOLD: ManifoldRule =
    ManifoldRule { k: 3, distance: Distance::Euclidean, boundary: Boundary::Inclusive };
/// Rule of the package `prdc` (Naeem et al.) for f32 features.
const PRDC: ManifoldRule = ManifoldRule { k: 5, distance: Distance::EuclideanDouble, boundary: Boundary::Exclusive };

/// Subsets of at most 1000 images, drawn by a generator that the tool does not seed.
const NVIDIA_KID: KidRule = KidRule { subsets: 100, subset_size: 1000, seed: None, small_sets: SmallSets::Shrink };
const FIDELITY_KID: KidRule =
    KidRule { subsets: 100, subset_size: 1000, seed: Some(2020), small_sets: SmallSets::Refuse };

const CLEAN: &str = "clean";
/// No reproduced tool has density and coverage, or FD∞.
const DENSITY_COVERAGE: (&str, &str) = ("density, coverage", "prdc (Naeem et al.)");
const FD_INFINITY: (&str, &str) = ("fd-inf", "dgm-eval");

/// All protocols, in the order of the command-line help.
pub const PROTOCOLS: [Protocol; 6] = [
    Protocol {
        name: "edm",
        title: "EDM and D2O",
        subfolders: true,
        quantiser: Quantiser::Round,
        resize: Resize::TensorFlow,
        scaling: Scaling::TensorFlow,
        ddof: 1,
        score: ADM_SCORE,
        manifold_features: ManifoldFeatures::Pool3,
        manifold: ADM_MANIFOLD,
        density_coverage: PRDC,
        kid: NVIDIA_KID,
        clip: ClipFeatures::Projected,
        borrowed: &[
            ("sfid, is, pr", "adm, which D2O's evaluator follows"),
            ("kid", "stylegan3"),
            ("clip-fid", CLEAN),
            DENSITY_COVERAGE,
            FD_INFINITY,
        ],
    },
    Protocol {
        name: "adm",
        title: "guided-diffusion",
        subfolders: true,
        quantiser: Quantiser::Truncate,
        resize: Resize::TensorFlow,
        scaling: Scaling::TensorFlow,
        ddof: 1,
        score: ADM_SCORE,
        manifold_features: ManifoldFeatures::Pool3,
        manifold: ADM_MANIFOLD,
        density_coverage: PRDC,
        kid: NVIDIA_KID,
        clip: ClipFeatures::Unprojected,
        borrowed: &[("kid", "stylegan3"), ("clip-fid", "consistency models' evaluator"), DENSITY_COVERAGE, FD_INFINITY],
    },
    Protocol {
        name: "stylegan3",
        title: "StyleGAN3",
        subfolders: true,
        quantiser: Quantiser::Round,
        resize: Resize::TensorFlow,
        scaling: Scaling::TensorFlow,
        ddof: 0,
        score: NVIDIA_SCORE,
        manifold_features: ManifoldFeatures::NvidiaVgg16,
        manifold: NVIDIA_MANIFOLD,
        density_coverage: PRDC,
        kid: NVIDIA_KID,
        clip: ClipFeatures::Projected,
        borrowed: &[("sfid", "adm"), ("clip-fid", CLEAN), DENSITY_COVERAGE, FD_INFINITY],
    },
    Protocol {
        name: "torch-fidelity",
        title: "torch-fidelity",
        subfolders: false,
        quantiser: Quantiser::Bytes,
        resize: Resize::TensorFlow,
        scaling: Scaling::TensorFlow,
        ddof: 1,
        score: FIDELITY_SCORE,
        manifold_features: ManifoldFeatures::Vgg16,
        manifold: FIDELITY_MANIFOLD,
        density_coverage: PRDC,
        kid: FIDELITY_KID,
        clip: ClipFeatures::Projected,
        borrowed: &[("sfid", "adm"), ("clip-fid", CLEAN), DENSITY_COVERAGE, FD_INFINITY],
    },
    Protocol {
        name: "clean",
        title: "clean-fid, mode clean",
        subfolders: true,
        quantiser: Quantiser::Bytes,
        resize: Resize::PilBicubic,
        scaling: Scaling::TensorFlow,
        ddof: 1,
        score: FIDELITY_SCORE,
        manifold_features: ManifoldFeatures::Vgg16,
        manifold: FIDELITY_MANIFOLD,
        density_coverage: PRDC,
        kid: NVIDIA_KID,
        clip: ClipFeatures::Projected,
        borrowed: &[("sfid", "adm"), ("is, pr", "torch-fidelity"), DENSITY_COVERAGE, FD_INFINITY],
    },
    Protocol {
        name: "pytorch-fid",
        title: "pytorch-fid",
        subfolders: false,
        quantiser: Quantiser::Bytes,
        resize: Resize::Torch,
        scaling: Scaling::Unit,
        ddof: 1,
        score: FIDELITY_SCORE,
        manifold_features: ManifoldFeatures::Vgg16,
        manifold: FIDELITY_MANIFOLD,
        density_coverage: PRDC,
        kid: FIDELITY_KID,
        clip: ClipFeatures::Projected,
        borrowed: &[
            ("sfid", "adm"),
            ("is, kid, pr", "torch-fidelity"),
            ("clip-fid", CLEAN),
            DENSITY_COVERAGE,
            FD_INFINITY,
        ],
    },
];

impl Protocol {
    /// The protocol called `name`.
    #[must_use]
    pub fn named(name: &str) -> Option<&'static Self> {
        PROTOCOLS.iter().find(|p| p.name == name)
    }

    /// Description of every setting, as recorded in results.
    #[must_use]
    pub fn describe(&self) -> BTreeMap<String, String> {
        let quantiser = match self.quantiser {
            Quantiser::Round => "trunc(clip(127.5 x + 128, 0, 255))",
            Quantiser::Truncate => "trunc(clip(127.5 (x + 1), 0, 255))",
            Quantiser::Bytes => "none: the tool takes bytes",
        };
        let borrowed: Vec<String> = self.borrowed.iter().map(|(m, t)| format!("{m} as {t}")).collect();
        let mut rows = vec![
            ("name", self.name.to_owned()),
            ("quantiser", quantiser.to_owned()),
            ("resize", self.resize.describe().to_owned()),
            ("scaling", self.scaling.describe().to_owned()),
            ("covariance", if self.ddof == 0 { "N" } else { "N - 1" }.to_owned()),
            ("inception_score", self.score.describe()),
            ("manifold", format!("{} features, {}", self.manifold_features.describe(), self.manifold.describe())),
            (
                "density_coverage",
                format!("{} features, {}", self.manifold_features.describe(), self.density_coverage.describe()),
            ),
            ("kid", self.kid.describe()),
            ("clip_fid", self.clip.describe().to_owned()),
        ];
        if !borrowed.is_empty() {
            rows.push(("borrowed", borrowed.join("; ")));
        }
        rows.into_iter().map(|(k, v)| (k.to_owned(), v)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_distinct_and_found() {
        for p in &PROTOCOLS {
            assert_eq!(Protocol::named(p.name), Some(p));
            assert_eq!(PROTOCOLS.iter().filter(|q| q.name == p.name).count(), 1);
        }
        assert_eq!(Protocol::named("ttur"), None);
    }

    #[test]
    fn results_state_whose_density_and_coverage_they_are() {
        for p in &PROTOCOLS {
            let rows = p.describe();
            let rule = "5 neighbours, distance summed in f64, rounded to f32, < radius";
            assert_eq!(rows["density_coverage"], format!("{} features, {rule}", p.manifold_features.describe()));
            let borrowed = &rows["borrowed"];
            assert!(borrowed.contains("density, coverage as prdc (Naeem et al.)"), "{}: {borrowed}", p.name);
            assert!(borrowed.contains("fd-inf as dgm-eval"), "{}: {borrowed}", p.name);
        }
    }

    #[test]
    fn precision_and_recall_of_torch_fidelity_come_with_its_network() {
        let lender = Protocol::named("torch-fidelity").unwrap();
        for p in &PROTOCOLS {
            let borrows = p.borrowed.iter().any(|(metrics, tool)| metrics.contains("pr") && *tool == lender.name);
            assert_eq!(borrows, p.name == "clean" || p.name == "pytorch-fid", "{}", p.name);
            if borrows {
                assert_eq!(
                    (p.manifold_features, p.manifold),
                    (lender.manifold_features, lender.manifold),
                    "{}",
                    p.name
                );
            }
        }
    }

    #[test]
    fn no_two_protocols_agree_in_everything_but_the_name() {
        let rows = |p: &Protocol| {
            let mut rows = p.describe();
            rows.remove("name");
            rows
        };
        for (i, p) in PROTOCOLS.iter().enumerate() {
            for q in &PROTOCOLS[..i] {
                assert_ne!(rows(p), rows(q), "{} and {}", p.name, q.name);
            }
        }
    }
}
