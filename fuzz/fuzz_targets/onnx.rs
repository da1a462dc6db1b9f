//! ONNX graphs as `inspect` and sessions read them.
#![no_main]

use std::path::Path;

use d2o_onnx::read::ModelInfo;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    if let Ok(info) = ModelInfo::parse(bytes, Path::new("x.onnx")) {
        for value in info.inputs.iter().chain(&info.outputs) {
            let _ = value.describe();
        }
    }
});
