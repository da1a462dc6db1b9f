//! Group norm in operations whose meaning never changed between opsets.
//! <https://onnx.ai/onnx/operators/onnx__InstanceNormalization.html>, opset 6.

use crate::error::Result;
use crate::graph::{Dim, Edge, ElementType, GraphBuilder, show, signed};
use crate::proto::AttributeProto;

impl GraphBuilder {
    /// Normalises each of `groups` channel groups of `x [N, C, H, W]` (biased variance), then scales and shifts each channel.
    ///
    /// # Errors
    /// `Shape` if the channels do not split into the groups.
    pub fn group_norm(&mut self, x: &Edge, groups: usize, eps: f64, weight: &Edge, bias: &Edge) -> Result<Edge> {
        let &[_, Dim::Known(c), Dim::Known(h), Dim::Known(w)] = x.dims() else {
            return Err(self.mismatch("InstanceNormalization", format!("x {}", show(x.dims()))));
        };
        let values = (h.checked_mul(w)).filter(|_| groups > 0 && c.is_multiple_of(groups));
        let values = values.and_then(|pixels| (c / groups).checked_mul(pixels));
        let Some(values) = values.filter(|n| *n > 0 && x.element() == ElementType::F32) else {
            return Err(self.mismatch("InstanceNormalization", format!("x {} in {groups} groups", x.describe())));
        };
        let flat = self.reshape(x, &[-1, signed(groups), signed(values)])?;
        let ones = self.constant("ones", &[groups], vec![1.0; groups])?;
        let zeros = self.constant("zeros", &[groups], vec![0.0; groups])?;
        #[allow(clippy::cast_possible_truncation, reason = "an f32 attribute")]
        let epsilon = AttributeProto::float("epsilon", eps as f32);
        let dims = flat.dims().to_vec();
        let normed = self.node("InstanceNormalization", &[&flat, &ones, &zeros], vec![epsilon], ElementType::F32, dims);
        let normed = self.reshape(&normed, &[-1, signed(c), signed(h), signed(w)])?;
        self.per_channel(&normed, weight, bias)
    }

    fn per_channel(&mut self, x: &Edge, weight: &Edge, bias: &Edge) -> Result<Edge> {
        let weight = self.reshape(weight, &[1, -1, 1, 1])?;
        let bias = self.reshape(bias, &[1, -1, 1, 1])?;
        let scaled = self.mul(x, &weight)?;
        self.add(&scaled, &bias)
    }
}
