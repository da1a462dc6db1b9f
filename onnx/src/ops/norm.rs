//! Group norm from operators with the same definition in every opset.
//! <https://onnx.ai/onnx/operators/onnx__InstanceNormalization.html>, opset 6.

use crate::error::Result;
use crate::graph::{Dim, Edge, ElementType, GraphBuilder, signed};
use crate::proto::AttributeProto;

impl GraphBuilder {
    /// Normalises each of `groups` channel groups of `x [N, C, H, W]` (biased variance), then scales and shifts each channel.
    ///
    /// # Errors
    /// `Shape` if `x` is not f32, `weight` and `bias` are not `[C]`, the channels are not a multiple of the groups, or `eps` is negative or not finite.
    pub fn group_norm(&mut self, x: &Edge, groups: usize, eps: f64, weight: &Edge, bias: &Edge) -> Result<Edge> {
        let epsilon = self.epsilon(eps)?;
        let bad = |g: &Self| {
            let found = format!("{} in {groups} groups", x.describe());
            g.mismatch("group norm", "f32 images whose channels are a multiple of the groups", found)
        };
        let &[_, Dim::Known(c), Dim::Known(h), Dim::Known(w)] = x.dims() else { return Err(bad(self)) };
        let values = (h.checked_mul(w)).filter(|_| groups > 0 && c.is_multiple_of(groups));
        let values = values.and_then(|pixels| (c / groups).checked_mul(pixels));
        let Some(values) = values.filter(|n| *n > 0 && x.element() == ElementType::F32) else {
            return Err(bad(self));
        };
        let flat = self.reshape(x, &[-1, signed(groups), signed(values)])?;
        let ones = self.constant("ones", &[groups], vec![1.0; groups])?;
        let zeros = self.constant("zeros", &[groups], vec![0.0; groups])?;
        let epsilon = AttributeProto::float("epsilon", epsilon);
        let dims = flat.dims().to_vec();
        let normed = self.node("InstanceNormalization", &[&flat, &ones, &zeros], vec![epsilon], ElementType::F32, dims);
        let normed = self.reshape(&normed, &[-1, signed(c), signed(h), signed(w)])?;
        self.per_channel(&normed, weight, bias)
    }

    fn epsilon(&self, eps: f64) -> Result<f32> {
        let single = self.single("epsilon", eps)?;
        if single < 0.0 {
            return Err(self.mismatch("epsilon", "a number of at least 0", eps.to_string()));
        }
        Ok(single)
    }

    /// `x [N, C, H, W]` scaled by `weight [C]` and shifted by `bias [C]`.
    fn per_channel(&mut self, x: &Edge, weight: &Edge, bias: &Edge) -> Result<Edge> {
        if x.dims().len() != 4 || [weight, bias].iter().any(|e| e.dims() != &x.dims()[1..2]) {
            let found = format!("x {}, weight {}, bias {}", x.describe(), weight.describe(), bias.describe());
            return Err(self.mismatch("norm", "x [N, C, H, W], weight [C], bias [C]", found));
        }
        let weight = self.reshape(weight, &[1, -1, 1, 1])?;
        let bias = self.reshape(bias, &[1, -1, 1, 1])?;
        let scaled = self.mul(x, &weight)?;
        self.add(&scaled, &bias)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn invalid_operands_are_errors() {
        let mut g = GraphBuilder::new("g");
        let known = |all: &[usize]| all.iter().map(|n| Dim::Known(*n)).collect::<Vec<_>>();
        let x = g.input("x", ElementType::F32, &[&[Dim::Batch], &known(&[4, 2, 2])[..]].concat()).unwrap();
        let deep = g.input("deep", ElementType::F32, &known(&[2, 4, 2, 2, 2])).unwrap();
        let bytes = g.input("bytes", ElementType::U8, &known(&[1, 4, 2, 2])).unwrap();
        let [four, one, row] =
            [&[4][..], &[1], &[1, 4]].map(|d| g.constant("w", d, vec![1.0; d.iter().product()]).unwrap());
        for (x, weight, eps) in [
            (&x, &one, 1e-5),
            (&x, &row, 1e-5),
            (&x, &four, -1.0),
            (&x, &four, f64::NAN),
            (&deep, &four, 1e-5),
            (&bytes, &four, 1e-5),
        ] {
            assert!(g.group_norm(x, 2, eps, weight, &four).is_err(), "{} {eps}", weight.describe());
        }
        assert!(g.group_norm(&x, 3, 1e-5, &four, &four).is_err() && g.group_norm(&x, 0, 1e-5, &four, &four).is_err());
        assert!(g.group_norm(&x, 2, 1e-5, &four, &four).is_ok());
    }
}
