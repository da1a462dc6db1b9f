//! MatMul and Gemm. <https://onnx.ai/onnx/operators/onnx__Gemm.html>, opset 13.

use super::elementwise::broadcast;
use crate::error::Result;
use crate::graph::{Dim, Edge, GraphBuilder, show};
use crate::proto::AttributeProto;

impl GraphBuilder {
    /// Matrix product of the last two axes; the axes before broadcast.
    ///
    /// # Errors
    /// `Shape` if operands do not fit.
    pub fn matmul(&mut self, a: &Edge, b: &Edge) -> Result<Edge> {
        let bad = |g: &Self| g.mismatch("MatMul", format!("{} times {}", show(a.dims()), show(b.dims())));
        let ([before_a @ .., rows, inner_a], [before_b @ .., inner_b, columns]) = (a.dims(), b.dims()) else {
            return Err(bad(self));
        };
        let before = broadcast(before_a, before_b).filter(|_| inner_a == inner_b);
        let Some(mut dims) = before else { return Err(bad(self)) };
        dims.extend([*rows, *columns]);
        Ok(self.node("MatMul", &[a, b], Vec::new(), a.element(), dims))
    }

    /// `x [N, I]`, `w [O, I]`, `bias [O]` -> `x wᵀ + bias [N, O]`.
    ///
    /// # Errors
    /// `Shape` if operands do not fit.
    pub fn linear(&mut self, x: &Edge, w: &Edge, bias: Option<&Edge>) -> Result<Edge> {
        let (&[n, inner], &[outputs, same]) = (x.dims(), w.dims()) else {
            return Err(self.mismatch("Gemm", format!("x {} and w {}", show(x.dims()), show(w.dims()))));
        };
        if inner != same || bias.is_some_and(|b| b.dims() != [outputs]) || !matches!(outputs, Dim::Known(_)) {
            return Err(self.mismatch("Gemm", format!("x {} and w {}", show(x.dims()), show(w.dims()))));
        }
        let mut inputs = vec![x, w];
        inputs.extend(bias);
        Ok(self.node("Gemm", &inputs, vec![AttributeProto::int("transB", 1)], x.element(), vec![n, outputs]))
    }
}
