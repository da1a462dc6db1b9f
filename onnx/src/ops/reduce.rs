//! ReduceMean. <https://onnx.ai/onnx/operators/onnx__ReduceMean.html>, opset 13: axes are an attribute until opset 18.

use crate::error::Result;
use crate::graph::{Dim, Edge, GraphBuilder, signed};
use crate::proto::AttributeProto;

impl GraphBuilder {
    /// Mean over `axes`, which stay with length 1 if `keep`.
    ///
    /// # Errors
    /// `Shape` if there is no such axis, or no floats.
    pub fn mean(&mut self, x: &Edge, axes: &[usize], keep: bool) -> Result<Edge> {
        if axes.iter().any(|a| *a >= x.dims().len()) || !x.element().is_float() {
            return Err(self.mismatch("ReduceMean", format!("axes {axes:?} of {}", x.describe())));
        }
        let dims = x.dims().iter().enumerate().filter_map(|(i, d)| match (axes.contains(&i), keep) {
            (false, _) => Some(*d),
            (true, true) => Some(Dim::Known(1)),
            (true, false) => None,
        });
        let dims = dims.collect();
        let attributes = vec![
            AttributeProto::ints("axes", axes.iter().map(|a| signed(*a)).collect()),
            AttributeProto::int("keepdims", i64::from(keep)),
        ];
        Ok(self.node("ReduceMean", &[x], attributes, x.element(), dims))
    }
}
