//! ONNX graph building, checking and writing, and sessions on ONNX Runtime and tract.
