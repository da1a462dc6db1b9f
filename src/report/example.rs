//! Synthetic results for the tests of this module.
#![allow(clippy::unwrap_used, reason = "a test")]

use d2o_evaluations::result::{Deviation, DeviationKind, Evaluation, Extractor, Metric};
use serde_json::json;

pub(super) fn extractor(name: &str) -> Extractor {
    serde_json::from_value(json!({
        "name": name, "path": format!("{name}.onnx"), "sha256": "e".repeat(64), "dims": 64, "weights_digest": "w".repeat(64),
        "preprocessing": {"resampling": {"resize": "torch"}, "in_graph": true},
    }))
    .unwrap()
}

pub(super) fn deviation(kind: DeviationKind, subject: &str, found: &str, expected: &str) -> Deviation {
    Deviation { kind, subject: subject.to_owned(), found: found.to_owned(), expected: expected.to_owned() }
}

/// An evaluation of 500 images with `title`, under the protocol `edm`.
pub(super) fn evaluation(title: &str, metrics: &[(&str, f64)]) -> Evaluation {
    let mut evaluation: Evaluation = serde_json::from_value(json!({
        "schema": 2, "protocol": {"name": "edm", "covariance": "N - 1", "intervals": "95 %"},
        "samples": {"title": title, "path": "s.npz", "count": 500, "sha256": "s".repeat(64)},
        "reference": {"title": "reference", "path": "r.npz", "count": 2460, "sha256": "r".repeat(64)},
        "extractors": {"features": extractor("net")}, "runtime": {"runtime": "ort-cpu"}, "metrics": {}, "warnings": [], "timings": {},
    }))
    .unwrap();
    evaluation.metrics = metrics.iter().map(|(name, value)| ((*name).to_owned(), Metric::new(*value))).collect();
    evaluation
}
