//! Runs one full-size checkpoint of an original project on every engine. `cargo xtask originals` names it in
//! `D2O_ORIGINAL`.
#![allow(missing_docs, clippy::unwrap_used, clippy::print_stdout, clippy::cast_possible_truncation, reason = "a test")]

use std::path::{Path, PathBuf};

use d2o_refs::npz::Npz;
use d2o_runtime::ort::{OrtOptions, OrtRuntime, Provider};
use d2o_runtime::tract::TractSession;
use d2o_runtime::{Session, Tensor, TensorView};
use ndarray::ArrayD;
use serde_json::{Value, json};
use test_support::{Tol, compare};

struct Case {
    /// NAME.json of originals.py. NAME.npz, the checkpoint and the graph NAME.onnx are in the same folder.
    json: PathBuf,
    facts: Value,
    tol: Tol,
}

impl Case {
    fn open(json: PathBuf) -> Self {
        let facts: Value = serde_json::from_slice(&fs_err::read(&json).unwrap()).unwrap();
        let tol = if facts["inputs"].get("images_u8").is_some() { Tol::Features } else { Tol::Parity };
        Self { json, facts, tol }
    }

    fn beside(&self, ending: &str) -> PathBuf {
        self.json.with_extension(ending)
    }

    /// Arrays of `role` ("inputs" or "outputs"), as (name in the graph, array).
    fn arrays(&self, role: &str) -> Vec<(String, ArrayD<f32>)> {
        let mut npz = Npz::open(&self.beside("npz")).unwrap();
        let named = self.facts[role].as_object().unwrap().iter();
        named.map(|(name, array)| (name.clone(), npz.f32(array.as_str().unwrap()).unwrap())).collect()
    }

    /// Compares `found` with the outputs of the original and prints the largest relative difference.
    fn judge(&self, runtime: &str, found: &[(String, Vec<f32>)], faults: &mut Vec<String>) {
        let mut worst = 0.0_f64;
        for (name, expected) in self.arrays("outputs") {
            let (_, values) = found.iter().find(|(n, _)| *n == name).unwrap_or_else(|| panic!("no output `{name}`"));
            let expected: Vec<f32> = expected.iter().copied().collect();
            match compare(values, &expected, self.tol) {
                Ok(relative) => worst = worst.max(relative),
                Err(text) => {
                    worst = f64::INFINITY;
                    faults.push(format!("{runtime} `{name}`: {text}"));
                }
            }
        }
        println!("original: {}", json!({"runtime": runtime, "relative": worst.is_finite().then_some(worst)}));
    }
}

fn pixels(values: &ArrayD<f32>) -> ArrayD<u8> {
    #[allow(clippy::cast_sign_loss, reason = "bytes, stored as such")]
    values.mapv(|v| v as u8)
}

type Open<'a> = Box<dyn FnOnce() -> Box<dyn Session> + 'a>;

fn sessions<'a>(graph: &'a Path, checkpoint: &'a Path) -> Vec<Open<'a>> {
    let mut all: Vec<Open<'_>> = vec![Box::new(move || Box::new(TractSession::open(graph, Some(1)).unwrap()))];
    match test_support::onnxruntime() {
        None => println!("skipped: ONNX Runtime (D2O_ONNXRUNTIME is not set)"),
        Some(library) => all.push(Box::new(move || {
            let options = OrtOptions::new(Provider::Cpu, Some(1));
            Box::new(OrtRuntime::load(&library).unwrap().session(graph, &options).unwrap())
        })),
    }
    #[cfg(feature = "train")]
    all.push(Box::new(move || Box::new(d2o::train::session::LibTorchSession::open(graph, checkpoint).unwrap())));
    #[cfg(not(feature = "train"))]
    let _ = checkpoint;
    all
}

#[test]
fn the_named_checkpoint_computes_what_its_project_does() {
    let Some(json) = std::env::var_os("D2O_ORIGINAL") else {
        println!("skipped: full-size originals (`cargo xtask originals`)");
        return;
    };
    let case = Case::open(json.into());
    let inputs: Vec<(String, Tensor)> = case
        .arrays("inputs")
        .into_iter()
        .map(|(n, a)| if n == "images_u8" { (n, Tensor::U8(pixels(&a))) } else { (n, Tensor::F32(a)) })
        .collect();
    let given: Vec<(&str, TensorView<'_>)> = inputs.iter().map(|(n, t)| (n.as_str(), t.into())).collect();
    let mut faults = Vec::new();
    let (graph, checkpoint) = (case.beside("onnx"), case.json.with_file_name(case.facts["file"].as_str().unwrap()));
    // One after the other, so that only one session holds the weights.
    for open in sessions(&graph, &checkpoint) {
        let mut session = open();
        let outputs = session.run(&given).unwrap();
        let found: Vec<(String, Vec<f32>)> = session
            .model()
            .output_names()
            .zip(outputs)
            .map(|(n, t)| (n.to_owned(), t.as_f32().unwrap().iter().copied().collect()))
            .collect();
        case.judge(session.runtime(), &found, &mut faults);
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}
