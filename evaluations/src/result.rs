//! Results of an evaluation: JSON layout, labels and number formats.

use std::collections::{BTreeMap, BTreeSet};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::fd_infinity::Extrapolation;
use crate::nearest::Neighbour;
use crate::preprocess::Preprocessing;
use crate::protocol::INCEPTION;

/// Version of the JSON layout.
pub const SCHEMA: u32 = 2;

/// All metrics a result can hold: key, label (`{}` is replaced by the extractor name), whether higher is better. In the
/// order of tables.
const METRICS: [(&str, &str, bool); 16] = [
    ("fid", "FID", false),
    ("fd", "FD ({})", false),
    ("sfid", "sFID", false),
    ("sfd", "spatial FD ({})", false),
    ("is", "IS", true),
    ("precision", "precision", true),
    ("recall", "recall", true),
    ("density", "density", true),
    ("coverage", "coverage", true),
    ("kid", "KID", false),
    ("kd", "KD ({})", false),
    ("clip_fid", "CLIP-FID", false),
    ("clip_fd", "CLIP-FD ({})", false),
    ("fid_inf", "FID∞", false),
    ("fd_inf", "FD∞ ({})", false),
    ("f_score", "F-score", true),
];

/// Whether a higher value of metric `name` is better; `None` for an unknown metric.
#[must_use]
pub fn higher_is_better(name: &str) -> Option<bool> {
    METRICS.iter().find(|(n, ..)| *n == name).map(|(.., higher)| *higher)
}

/// Position of metric `name` in tables; unknown metrics come last.
#[must_use]
pub fn place(name: &str) -> usize {
    METRICS.iter().position(|(n, ..)| *n == name).unwrap_or(METRICS.len())
}

/// Value of one metric.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Metric {
    /// The number.
    pub value: f64,
    /// 95 % bootstrap interval.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ci95: Option<[f64; 2]>,
    /// Standard deviation over splits or subsets.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub std: Option<f64>,
    /// Whether the weights of the network come from a published file.
    #[serde(default)]
    pub verified: bool,
}

impl Metric {
    /// A value without interval and standard deviation.
    #[must_use]
    pub fn new(value: f64) -> Self {
        Self { value, ci95: None, std: None, verified: false }
    }

    /// The value with its interval or standard deviation, in significant digits: `1.56012 [1.52, 1.601]`,
    /// `0.00056062 ± 0.001012`.
    #[must_use]
    pub fn show(&self) -> String {
        const VALUE: usize = 6;
        const SPREAD: usize = 4;
        let value = digits(self.value, VALUE);
        match (self.ci95, self.std) {
            (Some([low, high]), _) => format!("{value} [{}, {}]", digits(low, SPREAD), digits(high, SPREAD)),
            (None, Some(std)) => format!("{value} ± {}", digits(std, SPREAD)),
            (None, None) => value,
        }
    }
}

/// `value` with `count` significant digits and no trailing zeros, as `%g` in C: in scientific notation below 1e-4 and
/// from `10^count`.
#[must_use]
pub fn digits(value: f64, count: usize) -> String {
    if value == 0.0 || !value.is_finite() {
        return if value == 0.0 { "0".to_owned() } else { value.to_string() };
    }
    let scientific = format!("{value:.*e}", count.saturating_sub(1));
    let (mantissa, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    let trim = |text: &str| {
        if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text.to_owned() }
    };
    let largest = i32::try_from(count).unwrap_or(i32::MAX);
    if (-4..largest).contains(&exponent) {
        let places = usize::try_from(largest - 1 - exponent).unwrap_or(0);
        trim(&format!("{value:.places$}"))
    } else {
        let sign = if exponent < 0 { '-' } else { '+' };
        format!("{}e{sign}{:02}", trim(mantissa), exponent.abs())
    }
}

/// A set of images.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ImageSet {
    /// Title given by the user.
    pub title: String,
    /// Path of the file or folder.
    pub path: String,
    /// Number of images.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub count: Option<usize>,
    /// Hash of the images (samples) or of the file (reference).
    pub sha256: String,
    /// How a generator made the images: graph, seeds, sampler, quantiser.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generator: Option<serde_json::Value>,
    /// Skipped files, and assumptions about the set.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}

/// A feature network.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Extractor {
    /// Name of the architecture. The Fréchet distance is called FID only for Inception.
    pub name: String,
    /// Path of the file.
    pub path: String,
    /// Hash of the file.
    pub sha256: String,
    /// Number of features.
    pub dims: usize,
    /// Hash of the weights, independent of layout and export options; absent in graphs of earlier versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weights_digest: Option<String>,
    /// Published file that the weights come from; absent if they are not verified.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verified: Option<String>,
    /// Preprocessing of images before the network.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub preprocessing: Option<Preprocessing>,
}

/// Kinds of differences between an evaluation and its protocol, or between samples and reference.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DeviationKind {
    /// Features of another network.
    Extractor,
    /// Another resampling or normalisation.
    Preprocessing,
    /// Another divisor of the covariance.
    Ddof,
    /// Another quantisation of generated images.
    Quantiser,
    /// A file without a record of how it was made.
    Provenance,
    /// Reduced precision of the feature network.
    Precision,
    /// Another number of neighbours.
    Neighbours,
    /// Another subset size or seed of KID.
    KidSubsets,
    /// Another number of splits of the Inception Score.
    Splits,
}

impl DeviationKind {
    /// Kinds that an evaluation refuses unless they are allowed by name. The other kinds result from options that
    /// request them.
    pub const REFUSED: [Self; 5] =
        [Self::Extractor, Self::Preprocessing, Self::Ddof, Self::Quantiser, Self::Provenance];

    /// Name on the command line and in results.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Extractor => "extractor",
            Self::Preprocessing => "preprocessing",
            Self::Ddof => "ddof",
            Self::Quantiser => "quantiser",
            Self::Provenance => "provenance",
            Self::Precision => "precision",
            Self::Neighbours => "neighbours",
            Self::KidSubsets => "kid-subsets",
            Self::Splits => "splits",
        }
    }
}

/// One difference from the protocol, or between samples and reference.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deviation {
    /// What differs.
    pub kind: DeviationKind,
    /// What it concerns: `samples`, a reference file, or a metric.
    pub subject: String,
    /// What was found.
    pub found: String,
    /// Setting of the protocol or of the other set.
    pub expected: String,
}

impl std::fmt::Display for Deviation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { kind, subject, found, expected } = self;
        write!(f, "{} of {subject}: {found} instead of {expected}", kind.name())
    }
}

/// One class of the samples against the same class of the reference.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ClassMetrics {
    /// Class label.
    pub class: i64,
    /// Number of samples of the class.
    pub samples: usize,
    /// Number of reference images of the class.
    pub reference: usize,
    /// Metrics by name, without those that need more images.
    pub metrics: BTreeMap<String, Metric>,
}

/// One sample with its nearest reference images.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SampleNeighbours {
    /// Index of the sample in its set, from 0.
    pub sample: usize,
    /// The reference images, nearest first.
    pub neighbours: Vec<Neighbour>,
}

/// Reference images nearest to some of the samples.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NearestImages {
    /// Role of the network that computes the compared features: `features` or `manifold`.
    pub role: String,
    /// Hash of the reference images, in the order of the indices; absent if unknown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reference_sha256: Option<String>,
    /// The samples with their neighbours.
    pub samples: Vec<SampleNeighbours>,
}

/// An evaluation under one protocol.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Evaluation {
    /// [`SCHEMA`].
    pub schema: u32,
    /// Settings of the protocol.
    pub protocol: BTreeMap<String, String>,
    /// Differences from the protocol, and between samples and reference.
    #[serde(default)]
    pub deviations: Vec<Deviation>,
    /// The samples.
    pub samples: ImageSet,
    /// The reference; absent if no metric needs one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reference: Option<ImageSet>,
    /// The reference of the CLIP features, if it is another file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clip_reference: Option<ImageSet>,
    /// Feature networks, by role.
    pub extractors: BTreeMap<String, Extractor>,
    /// Runtime, devices, versions and command line, to reproduce the numbers.
    pub runtime: BTreeMap<String, String>,
    /// Metrics by name.
    pub metrics: BTreeMap<String, Metric>,
    /// Requested metrics that could not be computed, with the reason.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub failed: BTreeMap<String, String>,
    /// Metrics of each class, if requested.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub per_class: Vec<ClassMetrics>,
    /// Points and line of FD∞; absent without FD∞ and in results of earlier versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fd_infinity: Option<Extrapolation>,
    /// Reference images nearest to some samples, if requested.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nearest: Option<NearestImages>,
    /// Warnings for users of the numbers.
    pub warnings: Vec<String>,
    /// Choices of the program: skipped metrics, intervals that are not computed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
    /// Seconds of each stage.
    pub timings: BTreeMap<String, f64>,
}

impl Evaluation {
    /// The network used for metric `name`.
    #[must_use]
    pub fn extractor_of(&self, name: &str) -> Option<&Extractor> {
        let role = match name {
            "clip_fid" | "clip_fd" => "clip",
            "precision" | "recall" | "density" | "coverage" | "f_score" if self.extractors.contains_key("manifold") => {
                "manifold"
            }
            _ => "features",
        };
        self.extractors.get(role)
    }

    /// Title of metric `name`, and the name of its network unless the title implies it.
    #[must_use]
    pub fn parts_of(&self, name: &str) -> (String, Option<&str>) {
        let network = self.extractor_of(name).map_or("unknown network", |e| e.name.as_str());
        let (_, label, _) = METRICS.iter().find(|(n, ..)| *n == name).copied().unwrap_or((name, name, true));
        let own = matches!(name, "is" | "precision" | "recall" | "density" | "coverage" | "f_score");
        match label.strip_suffix(" ({})") {
            Some(label) => (label.to_owned(), Some(network)),
            None => (label.to_owned(), Some(network).filter(|n| own && *n != INCEPTION)),
        }
    }

    /// Title and network as one text: `FD (dinov2)`.
    #[must_use]
    pub fn title_of(&self, name: &str) -> String {
        let (title, network) = self.parts_of(name);
        network.map_or_else(|| title.clone(), |network| format!("{title} ({network})"))
    }

    /// Whether the network of metric `name` has the weights of a published file.
    #[must_use]
    pub fn is_verified(&self, name: &str) -> bool {
        self.extractor_of(name).is_some_and(|e| e.verified.is_some())
    }

    /// Label of metric `name` in tables: its title, `unverified` unless the weights come from a published file, and ↑
    /// or ↓ for the better direction.
    #[must_use]
    pub fn label(&self, name: &str) -> String {
        let arrow = higher_is_better(name).map_or("", |higher| if higher { " ↑" } else { " ↓" });
        format!("{}{}{arrow}", self.title_of(name), if self.is_verified(name) { "" } else { " unverified" })
    }

    /// Name of the protocol; empty if the result has none.
    #[must_use]
    pub fn protocol_name(&self) -> &str {
        self.protocol.get("name").map_or("", String::as_str)
    }

    /// Table of the metrics of each class: header and rows.
    #[must_use]
    pub fn class_table(&self) -> (Vec<&str>, Vec<Vec<String>>) {
        let names: BTreeSet<&str> = self.per_class.iter().flat_map(|c| c.metrics.keys().map(String::as_str)).collect();
        let row = |c: &ClassMetrics| {
            let counts = [c.class.to_string(), c.samples.to_string(), c.reference.to_string()];
            let values = names.iter().map(|n| c.metrics.get(*n).map_or_else(|| "–".to_owned(), Metric::show));
            counts.into_iter().chain(values).collect()
        };
        let rows = self.per_class.iter().map(row).collect();
        (["class", "samples", "reference"].into_iter().chain(names.iter().copied()).collect(), rows)
    }

    /// Names and values, in the order of tables.
    #[must_use]
    pub fn ordered(&self) -> Vec<(&str, &Metric)> {
        let mut metrics: Vec<_> = self.metrics.iter().map(|(n, m)| (n.as_str(), m)).collect();
        metrics.sort_by_key(|(n, _)| place(n));
        metrics
    }
}

/// A condition on a metric, e.g. `fid<=1.6`.
#[derive(Debug, Clone, PartialEq)]
pub struct Condition {
    /// Name of the metric, as in results.
    pub metric: String,
    text: String,
    less: bool,
    or_equal: bool,
    bound: f64,
}

impl FromStr for Condition {
    type Err = Error;

    /// Accepts metric names as in results or as on the command line: `clip_fid`, `clip-fid`, `fd-inf`.
    fn from_str(text: &str) -> Result<Self, Error> {
        let bad = || Error::Condition { text: text.to_owned() };
        let at = text.find(['<', '>']).ok_or_else(bad)?;
        let (metric, rest) = text.split_at(at);
        let less = rest.starts_with('<');
        let number = rest[1..].strip_prefix('=');
        let bound: f64 = number.unwrap_or(&rest[1..]).trim().parse().map_err(|_| bad())?;
        let metric = metric.trim().to_ascii_lowercase().replace('-', "_");
        if metric.is_empty() || bound.is_nan() {
            return Err(bad());
        }
        Ok(Self { metric, text: text.to_owned(), less, or_equal: number.is_some(), bound })
    }
}

impl Condition {
    /// Whether `value` meets the condition.
    #[must_use]
    pub fn holds(&self, value: f64) -> bool {
        match (self.less, self.or_equal) {
            (true, true) => value <= self.bound,
            (true, false) => value < self.bound,
            (false, true) => value >= self.bound,
            (false, false) => value > self.bound,
        }
    }

    /// The text the user wrote.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn extractor(name: &str, verified: Option<&str>) -> Extractor {
        Extractor {
            name: name.to_owned(),
            path: String::new(),
            sha256: String::new(),
            dims: 2048,
            weights_digest: None,
            verified: verified.map(str::to_owned),
            preprocessing: None,
        }
    }

    fn evaluation(extractors: &[(&str, Extractor)], metrics: &[&str]) -> Evaluation {
        let set = ImageSet {
            title: String::new(),
            path: String::new(),
            count: None,
            sha256: String::new(),
            generator: None,
            notes: Vec::new(),
        };
        Evaluation {
            schema: SCHEMA,
            protocol: BTreeMap::new(),
            deviations: Vec::new(),
            samples: set.clone(),
            reference: Some(set),
            clip_reference: None,
            extractors: extractors.iter().map(|(r, e)| ((*r).to_owned(), e.clone())).collect(),
            runtime: BTreeMap::new(),
            metrics: metrics.iter().map(|n| ((*n).to_owned(), Metric::new(1.0))).collect(),
            failed: BTreeMap::new(),
            per_class: Vec::new(),
            fd_infinity: None,
            nearest: None,
            warnings: Vec::new(),
            notes: Vec::new(),
            timings: BTreeMap::new(),
        }
    }

    #[test]
    fn conditions_parse_and_hold() {
        let holds = |t: &str, value: f64| t.parse::<Condition>().unwrap().holds(value);
        assert_eq!(
            [holds("fid<=1.6", 1.6), holds("fid < 1.6", 1.6), holds("FID>=1.6", 1.6), holds("fid>1", 1.6)],
            [true, false, true, true]
        );
        assert_eq!("clip-fid<1".parse::<Condition>().unwrap().metric, "clip_fid");
        for bad in ["fid", "<=1", "fid<=x", "fid=1", "fid<=nan"] {
            assert!(bad.parse::<Condition>().is_err(), "{bad}");
        }
    }

    #[test]
    fn numbers_are_shown_in_significant_digits() {
        // `%g` in C with six digits; `%.4g` for the spread.
        for (value, text) in [
            (1.560_123_4, "1.56012"),
            (0.000_560_62, "0.00056062"),
            (0.000_056_062, "5.6062e-05"),
            (215.837, "215.837"),
            (1_234_567.0, "1.23457e+06"),
            (-0.25, "-0.25"),
            (100.0, "100"),
            (0.0, "0"),
            (-0.0, "0"),
            (999_999.9, "1e+06"),
        ] {
            assert_eq!(digits(value, 6), text, "{value}");
        }
        let kid = Metric { std: Some(0.001_011_9), ..Metric::new(0.000_560_62) };
        assert_eq!(kid.show(), "0.00056062 ± 0.001012");
        let fid = Metric { ci95: Some([1.519_9, 1.601_49]), ..Metric::new(1.560_12) };
        assert_eq!(fid.show(), "1.56012 [1.52, 1.601]");
    }

    #[test]
    fn labels_name_the_network_behind_each_metric_and_whether_it_is_verified() {
        let genuine = extractor(INCEPTION, Some("inception-2015-12-05.pkl"));
        let e = evaluation(&[("features", genuine.clone()), ("manifold", extractor("vgg16", None))], &[]);
        assert_eq!(e.label("fid"), "FID ↓");
        assert_eq!(e.label("precision"), "precision (vgg16) unverified ↑");
        let e = evaluation(&[("features", extractor("lite0", None)), ("clip", genuine)], &[]);
        assert_eq!(e.label("fd"), "FD (lite0) unverified ↓");
        assert_eq!(e.label("is"), "IS (lite0) unverified ↑");
        assert_eq!(e.label("clip_fid"), "CLIP-FID ↓");
    }

    #[test]
    fn tables_follow_the_order_of_the_field() {
        let names = ["coverage", "clip_fid", "fid", "is", "kid", "precision", "recall", "sfid", "other"];
        let e = evaluation(&[], &names);
        let found: Vec<&str> = e.ordered().into_iter().map(|(n, _)| n).collect();
        assert_eq!(found, ["fid", "sfid", "is", "precision", "recall", "coverage", "kid", "clip_fid", "other"]);
    }
}
