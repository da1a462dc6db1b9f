//! The error of a runtime is the source of the crate's error, and not part of its text.
#![cfg(any(feature = "ort", feature = "tract"))]
#![allow(missing_docs, clippy::unwrap_used, clippy::print_stdout, reason = "a test")]

use std::error::Error as _;
use std::path::Path;

use d2o_onnx::graph::{Dim, ElementType, GraphBuilder};
use d2o_onnx::write;
use fs_err as fs;

/// A model with a node of an operator that no runtime implements.
fn unimplemented(path: &Path) {
    let mut g = GraphBuilder::new("g");
    let x = g.input("x", ElementType::F32, &[Dim::Batch]).unwrap();
    let y = g.clamp(&x, 0.0, f64::INFINITY).unwrap();
    g.output("y", &y).unwrap();
    let mut bytes = write::to_bytes(&g.finish().unwrap()).unwrap();
    for at in 0..bytes.len() - 4 {
        if bytes[at..].starts_with(b"Relu") {
            bytes[at..at + 4].copy_from_slice(b"Nope");
        }
    }
    fs::write(path, bytes).unwrap();
}

/// The error and its sources, outermost first.
fn chain(error: &d2o_runtime::Error) -> Vec<String> {
    let mut all = vec![error.to_string()];
    let mut next = error.source();
    while let Some(source) = next {
        all.push(source.to_string());
        next = source.source();
    }
    all
}

#[cfg(feature = "tract")]
#[test]
fn tracts_errors_are_sources() {
    use d2o_runtime::Session as _;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.onnx");
    unimplemented(&path);
    let mut session = d2o_runtime::tract::TractSession::open(&path, Some(1)).unwrap();
    let error = session.run(&[("x", ndarray::arr1(&[1.0_f32]).view().into())]).unwrap_err();
    let chain = chain(&error);
    assert_eq!(chain[0], format!("tract: cannot plan `{}` for inputs of [[1]]", path.display()));
    assert!(chain.len() > 2 && chain[1..].iter().any(|e| e.contains("Nope")), "{chain:?}");
}

#[cfg(feature = "tract")]
#[test]
fn errors_of_the_model_are_passed_on() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.onnx");
    fs::write(&path, "text").unwrap();
    let error = d2o_runtime::tract::TractSession::open(&path, None).unwrap_err();
    assert!(matches!(error, d2o_runtime::Error::Model(d2o_onnx::Error::Format { .. })), "{error:?}");
}

#[cfg(feature = "ort")]
#[test]
fn errors_of_onnx_runtime_are_sources() {
    use d2o_runtime::ort::{OrtOptions, OrtRuntime, Provider};
    let dir = tempfile::tempdir().unwrap();
    let (text, model) = (dir.path().join("text.so"), dir.path().join("x.onnx"));
    fs::write(&text, "text").unwrap();
    unimplemented(&model);
    let error = OrtRuntime::load(&text).unwrap_err();
    let expected = "expected an ONNX Runtime library, found a file that cannot be loaded";
    assert_eq!(error.to_string(), format!("`{}`: {expected}", text.display()));
    assert!(error.source().is_some());

    let Some(library) = test_support::onnxruntime() else {
        println!("skipped: ONNX Runtime (D2O_ONNXRUNTIME is not set)");
        return;
    };
    let runtime = OrtRuntime::load(&library).unwrap();
    let other = OrtRuntime::load(&text).unwrap_err().to_string();
    assert!(other.contains("which this process has loaded, found another library"), "{other}");
    let options = OrtOptions::new(Provider::Cpu, Some(1));
    let error = runtime.session(&model, &options).unwrap_err();
    assert_eq!(chain(&error)[0], format!("ort-cpu: cannot open `{}`", model.display()));
    let source = error.source().and_then(|s| s.downcast_ref::<ort::Error>()).unwrap();
    assert!(source.message().contains("Nope"), "{source}");
}
