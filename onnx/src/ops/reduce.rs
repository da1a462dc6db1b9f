//! ReduceMean. <https://onnx.ai/onnx/operators/onnx__ReduceMean.html>, opset 13: axes are an attribute until opset 18.

use crate::error::Result;
use crate::graph::{Dim, Edge, GraphBuilder, signed};
use crate::proto::AttributeProto;

impl GraphBuilder {
    /// Mean over `axes`, which remain with length 1 if `keep`.
    ///
    /// # Errors
    /// `Shape` if `axes` is empty, repeats an axis, contains an axis that `x` does not have or of length 0, or `x` is
    /// not a float tensor.
    pub fn mean(&mut self, x: &Edge, axes: &[usize], keep: bool) -> Result<Edge> {
        let valid = |(i, axis): (usize, &usize)| {
            x.dims().get(*axis).is_some_and(|d| *d != Dim::Known(0)) && !axes[..i].contains(axis)
        };
        if axes.is_empty() || !axes.iter().enumerate().all(valid) || !x.element().is_float() {
            let found = format!("axes {axes:?} of {}", x.describe());
            return Err(self.mismatch("ReduceMean", "distinct axes, not empty, of a float tensor", found));
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::ElementType;

    #[test]
    fn invalid_axes_are_errors() {
        let mut g = GraphBuilder::new("g");
        let x = g.input("x", ElementType::F32, &[Dim::Batch, Dim::Known(2), Dim::Known(0)]).unwrap();
        for axes in [&[][..], &[2], &[3], &[0, 1, 0]] {
            assert!(g.mean(&x, axes, true).is_err(), "{axes:?}");
        }
        assert_eq!(g.mean(&x, &[1, 0], false).unwrap().dims(), [Dim::Known(0)]);
    }
}
