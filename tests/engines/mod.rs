//! The runtimes a test runs graphs on.

use std::path::Path;

use d2o_onnx::session::ort::{OrtOptions, OrtRuntime};
use d2o_onnx::session::tract::TractSession;
use d2o_onnx::session::{Provider, Session};

/// Sessions on tract, ONNX Runtime and, with a device, CUDA, for the model at `path`; on tract alone only where tests may be skipped.
pub(crate) fn sessions(path: &Path) -> Vec<Box<dyn Session>> {
    let mut all: Vec<Box<dyn Session>> = vec![Box::new(TractSession::open(path, Some(2)).unwrap())];
    let Some(library) = test_support::onnxruntime() else {
        return all;
    };
    let runtime = OrtRuntime::load(&library).unwrap();
    let session = |provider| runtime.session(path, &OrtOptions { provider, threads: Some(2) });
    all.push(Box::new(session(Provider::Cpu).unwrap()));
    if runtime.has_cuda() {
        all.push(Box::new(session(Provider::Cuda { device: 0, tf32: false, benchmark: false }).unwrap()));
    } else {
        println!("skipped: no CUDA device");
    }
    all
}
