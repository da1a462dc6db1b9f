//! Sessions on every runtime, for tests that run graphs.

use std::path::Path;

use d2o_runtime::Session;
use d2o_runtime::ort::{CudaOptions, OrtOptions, OrtRuntime, Provider};
use d2o_runtime::tract::TractSession;

/// Sessions for the model at `path` on tract, ONNX Runtime and, if there is a device, CUDA. Without ONNX Runtime, where
/// tests may be skipped, on tract only.
pub(crate) fn sessions(path: &Path) -> Vec<Box<dyn Session>> {
    let mut all: Vec<Box<dyn Session>> = vec![Box::new(TractSession::open(path, Some(2)).unwrap())];
    let Some(library) = test_support::onnxruntime() else {
        return all;
    };
    let runtime = OrtRuntime::load(&library).unwrap();
    let session = |provider| runtime.session(path, &OrtOptions::new(provider, Some(2)));
    all.push(Box::new(session(Provider::Cpu).unwrap()));
    if runtime.has_cuda() {
        all.push(Box::new(session(Provider::Cuda(CudaOptions::new(0))).unwrap()));
    } else {
        println!("skipped: no CUDA device");
    }
    all
}
