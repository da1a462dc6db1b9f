//! MatMul and Gemm. <https://onnx.ai/onnx/operators/onnx__Gemm.html>, opset 13.

use super::elementwise::broadcast;
use crate::error::Result;
use crate::graph::{Dim, Edge, GraphBuilder, same_floats};
use crate::proto::AttributeProto;

impl GraphBuilder {
    /// Matrix product over the last two axes; the axes before them broadcast.
    ///
    /// # Errors
    /// `Shape` if the operands are not float tensors of one type and compatible shapes.
    pub fn matmul(&mut self, a: &Edge, b: &Edge) -> Result<Edge> {
        let bad = |g: &Self| {
            let found = format!("{} and {}", a.describe(), b.describe());
            g.mismatch("MatMul", "a [.., I, K], b [.., K, J] of one float type", found)
        };
        let ([before_a @ .., rows, inner_a], [before_b @ .., inner_b, columns]) = (a.dims(), b.dims()) else {
            return Err(bad(self));
        };
        let before = broadcast(before_a, before_b).filter(|_| inner_a == inner_b && same_floats(a, b));
        let Some(mut dims) = before else { return Err(bad(self)) };
        dims.extend([*rows, *columns]);
        Ok(self.node("MatMul", &[a, b], Vec::new(), a.element(), dims))
    }

    /// `x [N, I]`, `w [O, I]`, `bias [O]` -> `x wᵀ + bias [N, O]`.
    ///
    /// # Errors
    /// `Shape` if the operands are not float tensors of one type and these shapes.
    pub fn linear(&mut self, x: &Edge, w: &Edge, bias: Option<&Edge>) -> Result<Edge> {
        let bad = |g: &Self| {
            let bias = bias.map_or_else(|| "none".to_owned(), Edge::describe);
            let found = format!("x {}, w {}, bias {bias}", x.describe(), w.describe());
            g.mismatch("Gemm", "x [N, I], w [O, I], bias [O] of one float type", found)
        };
        let (&[n, inner], &[outputs, same]) = (x.dims(), w.dims()) else { return Err(bad(self)) };
        let bias_fits = bias.is_none_or(|b| b.dims() == [outputs] && b.element() == x.element());
        if inner != same || !bias_fits || !matches!(outputs, Dim::Known(_)) || !same_floats(x, w) {
            return Err(bad(self));
        }
        let mut inputs = vec![x, w];
        inputs.extend(bias);
        Ok(self.node("Gemm", &inputs, vec![AttributeProto::int("transB", 1)], x.element(), vec![n, outputs]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::ElementType;

    #[test]
    fn factors_are_floats_of_one_type() {
        let mut g = GraphBuilder::new("g");
        let mut square = |element: ElementType| {
            let dims = [Dim::Known(2), Dim::Known(2)];
            g.input(&element.to_string(), element, &dims).unwrap()
        };
        let [single, half, bytes] = [ElementType::F32, ElementType::F16, ElementType::U8].map(&mut square);
        for (a, b) in [(&single, &half), (&single, &bytes), (&bytes, &bytes)] {
            assert!(g.matmul(a, b).is_err() && g.linear(a, b, None).is_err(), "{} {}", a.name(), b.name());
        }
        assert!(g.matmul(&half, &half).is_ok() && g.linear(&single, &single, None).is_ok());
    }
}
