//! The opset of the graphs.
//!
//! Opset 17 is the newest that ONNX Runtime and tract implement natively for every operator used. In it, the axes of
//! reductions are attributes. Group norm is built from `InstanceNormalization`, because `GroupNormalization` has a
//! scale and bias for each group before opset 21, and for each channel from opset 21 on.

/// Operator set of the default domain.
pub const OPSET: i64 = 17;
/// Version of the file format that belongs to [`OPSET`].
pub const IR_VERSION: i64 = 8;
