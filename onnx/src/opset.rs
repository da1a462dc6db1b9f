//! The opset graphs are written in.
//!
//! 17 is the newest that asks nothing of a runtime which the two here do not do natively: every operation emitted exists in it with the
//! meaning used, and reductions still take their axes as attributes. Group norm is spelled with `InstanceNormalization`, whose meaning
//! never changed, because `GroupNormalization` takes scale and bias for each group before opset 21 and for each channel from 21 on.

/// Operator set of the default domain.
pub const OPSET: i64 = 17;
/// Version of the file format that belongs to it.
pub const IR_VERSION: i64 = 8;
