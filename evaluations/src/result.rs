//! What an evaluation found, as it is written.

use std::collections::BTreeMap;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::Error;

/// Version of the JSON layout.
pub const SCHEMA: u32 = 1;

/// One metric's value.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Metric {
    /// The number itself.
    pub value: f64,
    /// 95 % bootstrap interval over the samples.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ci95: Option<[f64; 2]>,
    /// Standard deviation over splits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub std: Option<f64>,
}

/// A set of images.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ImageSet {
    /// What the user calls it.
    pub title: String,
    /// The file.
    pub path: String,
    /// Number of images.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub count: Option<usize>,
    /// Hash of the images (samples) or of the file (reference).
    pub sha256: String,
    /// How a generator made the images, if they were not read: graph, seeds, sampler, quantiser.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generator: Option<serde_json::Value>,
}

/// A feature network.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Extractor {
    /// Its name; the Fréchet distance is called FID only for Inception.
    pub name: String,
    /// The file.
    pub path: String,
    /// Hash of the file.
    pub sha256: String,
    /// Length of its features.
    pub dims: usize,
}

/// One class of the samples against the same class of the reference.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ClassMetrics {
    /// The class.
    pub class: i64,
    /// Samples of it.
    pub samples: usize,
    /// Reference images of it.
    pub reference: usize,
    /// Metrics by name; those that take more images are left out.
    pub metrics: BTreeMap<String, Metric>,
}

/// An evaluation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Evaluation {
    /// [`SCHEMA`].
    pub schema: u32,
    /// How the numbers were computed.
    pub protocol: BTreeMap<String, String>,
    /// Where this evaluation departs from the protocol.
    #[serde(default)]
    pub deviations: Vec<String>,
    /// The samples.
    pub samples: ImageSet,
    /// The reference.
    pub reference: ImageSet,
    /// Feature networks, by role.
    pub extractors: BTreeMap<String, Extractor>,
    /// Runtime, and d2o's version.
    pub runtime: BTreeMap<String, String>,
    /// Metrics by name.
    pub metrics: BTreeMap<String, Metric>,
    /// Metrics of each class, where they were asked for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub per_class: Vec<ClassMetrics>,
    /// What a reader of the numbers should know.
    pub warnings: Vec<String>,
    /// Seconds of each stage.
    pub timings: BTreeMap<String, f64>,
}

/// A condition on a metric, e.g. `fid<=1.6`.
#[derive(Debug, Clone, PartialEq)]
pub struct Condition {
    /// Name of the metric.
    pub metric: String,
    text: String,
    less: bool,
    or_equal: bool,
    bound: f64,
}

impl FromStr for Condition {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let bad = || Error::Condition { text: text.to_owned() };
        let at = text.find(['<', '>']).ok_or_else(bad)?;
        let (metric, rest) = text.split_at(at);
        let less = rest.starts_with('<');
        let number = rest[1..].strip_prefix('=');
        let bound = number.unwrap_or(&rest[1..]).trim().parse().map_err(|_| bad())?;
        let metric = metric.trim().to_ascii_lowercase();
        if metric.is_empty() {
            return Err(bad());
        }
        Ok(Self { metric, text: text.to_owned(), less, or_equal: number.is_some(), bound })
    }
}

impl Condition {
    /// Whether `evaluation` meets it; `None` if the metric was not computed.
    #[must_use]
    pub fn holds(&self, evaluation: &Evaluation) -> Option<bool> {
        let value = evaluation.metrics.get(&self.metric)?.value;
        Some(match (self.less, self.or_equal) {
            (true, true) => value <= self.bound,
            (true, false) => value < self.bound,
            (false, true) => value >= self.bound,
            (false, false) => value > self.bound,
        })
    }

    /// As the user wrote it.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conditions_parse_and_hold() {
        let metric = |value| Metric { value, ci95: None, std: None };
        let empty = String::new;
        let set = ImageSet { title: empty(), path: empty(), count: None, sha256: empty(), generator: None };
        let e = Evaluation {
            schema: SCHEMA,
            protocol: BTreeMap::new(),
            deviations: Vec::new(),
            samples: set.clone(),
            reference: set,
            extractors: BTreeMap::new(),
            runtime: BTreeMap::new(),
            metrics: BTreeMap::from([("fid".to_owned(), metric(1.6))]),
            per_class: Vec::new(),
            warnings: Vec::new(),
            timings: BTreeMap::new(),
        };
        let holds = |t: &str| t.parse::<Condition>().unwrap().holds(&e);
        assert_eq!(
            [holds("fid<=1.6"), holds("fid < 1.6"), holds("FID>=1.6"), holds("fid>1")],
            [Some(true), Some(false), Some(true), Some(true)]
        );
        assert_eq!(holds("kid<1"), None);
        for bad in ["fid", "<=1", "fid<=x", "fid=1"] {
            assert!(bad.parse::<Condition>().is_err(), "{bad}");
        }
    }
}
