//! The opset of the graphs.
//!
//! 17 is the newest that ONNX Runtime and tract implement natively for every operator used; reductions have their axes as attributes. Group norm is built
//! from `InstanceNormalization`, because `GroupNormalization` has scale and bias for each group before opset 21 and for each channel from 21 on.

/// Operator set of the default domain.
pub const OPSET: i64 = 17;
/// Version of the file format of that opset.
pub const IR_VERSION: i64 = 8;
