//! MatMul and Gemm. <https://onnx.ai/onnx/operators/onnx__Gemm.html>, opset 13.

use super::elementwise::broadcast;
use crate::error::Result;
use crate::graph::{Dim, Edge, GraphBuilder, same_floats};
use crate::proto::AttributeProto;

impl GraphBuilder {
    /// Matrix product of the last two axes; the axes before broadcast.
    ///
    /// # Errors
    /// `Shape` if operands do not fit.
    pub fn matmul(&mut self, a: &Edge, b: &Edge) -> Result<Edge> {
        let bad = |g: &Self| g.mismatch("MatMul", format!("{} times {}", a.describe(), b.describe()));
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
    /// `Shape` if operands do not fit.
    pub fn linear(&mut self, x: &Edge, w: &Edge, bias: Option<&Edge>) -> Result<Edge> {
        let bad = |g: &Self| g.mismatch("Gemm", format!("x {} and w {}", x.describe(), w.describe()));
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
