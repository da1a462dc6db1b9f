//! Group, batch and spectral norm, in operations whose definition is the same in every opset.
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

    /// Normalises each channel of `x [N, C, H, W]` with the statistics of the batch (biased variance), then scales and shifts it.
    ///
    /// # Errors
    /// `Shape` if `x` is not f32, `weight` and `bias` are not `[C]`, or `eps` is negative or not finite.
    pub fn batch_norm(&mut self, x: &Edge, eps: f64, weight: &Edge, bias: &Edge) -> Result<Edge> {
        self.epsilon(eps)?;
        let mean = self.mean(x, &[0, 2, 3], true)?;
        let centred = self.sub(x, &mean)?;
        let square = self.mul(&centred, &centred)?;
        let variance = self.mean(&square, &[0, 2, 3], true)?;
        let variance = self.offset(&variance, eps)?;
        let deviation = self.sqrt(&variance)?;
        let normed = self.div(&centred, &deviation)?;
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

    /// `w [O, ..]` divided by its spectral norm estimate `uᵀ W v`, W being `w` as `[O, I]`, `u [O]` and `v [I]` (Miyato et al. 2018).
    ///
    /// # Errors
    /// `Shape` if the shapes or element types differ from these.
    pub fn spectral_norm(&mut self, w: &Edge, u: &Edge, v: &Edge) -> Result<Edge> {
        let Some(Dim::Known(outputs)) = w.dims().first() else {
            return Err(self.mismatch("spectral norm", "w [O, ..]", w.describe()));
        };
        let matrix = self.reshape(w, &[signed(*outputs), -1])?;
        let v = self.reshape(v, &[-1, 1])?;
        let u = self.reshape(u, &[1, -1])?;
        let image = self.matmul(&matrix, &v)?;
        let sigma = self.matmul(&u, &image)?;
        let sigma = self.reshape(&sigma, &[1])?;
        self.div(w, &sigma)
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
            assert!(g.batch_norm(x, eps, weight, &four).is_err(), "{} {eps}", weight.describe());
        }
        assert!(g.group_norm(&x, 3, 1e-5, &four, &four).is_err() && g.group_norm(&x, 0, 1e-5, &four, &four).is_err());
        assert!(g.group_norm(&x, 2, 1e-5, &four, &four).is_ok() && g.batch_norm(&x, 1e-5, &four, &four).is_ok());
        assert!(g.spectral_norm(&row, &one, &four).is_ok() && g.spectral_norm(&row, &four, &one).is_err());
    }
}
