//! Unary and broadcasting binary operations, and casts. <https://onnx.ai/onnx/operators/>, opsets 6 to 14.
//!
//! Binary operands broadcast as in NumPy. A batch axis is compatible with itself and with length 1.

use crate::error::Result;
use crate::graph::{Dim, Edge, ElementType, GraphBuilder, signed};
use crate::proto::AttributeProto;

impl GraphBuilder {
    fn unary(&mut self, op: &'static str, x: &Edge) -> Result<Edge> {
        if !x.element().is_float() {
            return Err(self.mismatch(op, "a float tensor", x.describe()));
        }
        Ok(self.node(op, &[x], Vec::new(), x.element(), x.dims().to_vec()))
    }

    fn binary(&mut self, op: &'static str, a: &Edge, b: &Edge) -> Result<Edge> {
        let numbers = a.element() == b.element() && a.element() != ElementType::Bool;
        let Some(dims) = broadcast(a.dims(), b.dims()).filter(|_| numbers) else {
            let found = format!("{} and {}", a.describe(), b.describe());
            return Err(self.mismatch(op, "numbers of one type whose shapes broadcast", found));
        };
        Ok(self.node(op, &[a, b], Vec::new(), a.element(), dims))
    }

    /// Sum.
    ///
    /// # Errors
    /// `Shape` if the operands are not numbers of one type whose shapes broadcast.
    pub fn add(&mut self, a: &Edge, b: &Edge) -> Result<Edge> {
        self.binary("Add", a, b)
    }

    /// Difference.
    ///
    /// # Errors
    /// `Shape` if the operands are not numbers of one type whose shapes broadcast.
    pub fn sub(&mut self, a: &Edge, b: &Edge) -> Result<Edge> {
        self.binary("Sub", a, b)
    }

    /// Product.
    ///
    /// # Errors
    /// `Shape` if the operands are not numbers of one type whose shapes broadcast.
    pub fn mul(&mut self, a: &Edge, b: &Edge) -> Result<Edge> {
        self.binary("Mul", a, b)
    }

    /// Quotient.
    ///
    /// # Errors
    /// `Shape` if the operands are not numbers of one type whose shapes broadcast.
    pub fn div(&mut self, a: &Edge, b: &Edge) -> Result<Edge> {
        self.binary("Div", a, b)
    }

    /// `x · factor`.
    ///
    /// # Errors
    /// `Shape` if `x` is not f32, or `factor` is not finite in f32.
    pub fn scale(&mut self, x: &Edge, factor: f64) -> Result<Edge> {
        let factor = self.scalar("Mul", factor)?;
        self.mul(x, &factor)
    }

    /// `x + term`.
    ///
    /// # Errors
    /// `Shape` if `x` is not f32, or `term` is not finite in f32.
    pub fn offset(&mut self, x: &Edge, term: f64) -> Result<Edge> {
        let term = self.scalar("Add", term)?;
        self.add(x, &term)
    }

    /// `x · sigmoid(x)`.
    ///
    /// # Errors
    /// `Shape` if `x` is not a float tensor.
    pub fn silu(&mut self, x: &Edge) -> Result<Edge> {
        let gate = self.unary("Sigmoid", x)?;
        self.mul(x, &gate)
    }

    /// `x · Φ(x)`, where Φ is the standard normal distribution function (Hendrycks & Gimpel 2016, without the tanh
    /// approximation).
    ///
    /// # Errors
    /// `Shape` if `x` is not f32.
    pub fn gelu(&mut self, x: &Edge) -> Result<Edge> {
        // x/√2 is a division, because ONNX Runtime fuses this form.
        let root = self.scalar("Div", std::f64::consts::SQRT_2)?;
        let scaled = self.div(x, &root)?;
        let erf = self.unary("Erf", &scaled)?;
        let raised = self.offset(&erf, 1.0)?;
        let gated = self.mul(x, &raised)?;
        self.scale(&gated, 0.5)
    }

    /// `x` clamped to `[low, high]`; a ReLU if `low` is 0 and `high` is infinite.
    ///
    /// # Errors
    /// `Shape` if `x` is not f32, or `low <= high` does not hold.
    pub fn clamp(&mut self, x: &Edge, low: f64, high: f64) -> Result<Edge> {
        if x.element() != ElementType::F32 || low.partial_cmp(&high).is_none_or(|o| o.is_gt()) {
            let found = format!("{} and {low}, {high}", x.describe());
            return Err(self.mismatch("Clip", "an f32 tensor and ascending limits", found));
        }
        if low == 0.0 && high == f64::INFINITY {
            return self.unary("Relu", x);
        }
        #[allow(clippy::cast_possible_truncation, reason = "graphs compute in f32")]
        let [low, high] =
            [low, high].map(|limit| self.single_constant(limit.clamp(f64::from(f32::MIN), f64::from(f32::MAX)) as f32));
        Ok(self.node("Clip", &[x, &low, &high], Vec::new(), x.element(), x.dims().to_vec()))
    }

    /// `x` where positive, `slope·x` elsewhere.
    ///
    /// # Errors
    /// `Shape` if `x` is not a float tensor, or `slope` is not finite in f32.
    pub fn leaky_relu(&mut self, x: &Edge, slope: f64) -> Result<Edge> {
        let alpha = self.single("LeakyRelu", slope)?;
        if !x.element().is_float() {
            return Err(self.mismatch("LeakyRelu", "a float tensor", x.describe()));
        }
        let alpha = AttributeProto::float("alpha", alpha);
        Ok(self.node("LeakyRelu", &[x], vec![alpha], x.element(), x.dims().to_vec()))
    }

    /// Natural logarithm.
    ///
    /// # Errors
    /// `Shape` if `x` is not a float tensor.
    pub fn log(&mut self, x: &Edge) -> Result<Edge> {
        self.unary("Log", x)
    }

    /// Square root.
    ///
    /// # Errors
    /// `Shape` if `x` is not a float tensor.
    pub fn sqrt(&mut self, x: &Edge) -> Result<Edge> {
        self.unary("Sqrt", x)
    }

    /// Cosine.
    ///
    /// # Errors
    /// `Shape` if `x` is not a float tensor.
    pub fn cos(&mut self, x: &Edge) -> Result<Edge> {
        self.unary("Cos", x)
    }

    /// Sine.
    ///
    /// # Errors
    /// `Shape` if `x` is not a float tensor.
    pub fn sin(&mut self, x: &Edge) -> Result<Edge> {
        self.unary("Sin", x)
    }

    /// Converts `x` from u8 to f32.
    ///
    /// # Errors
    /// `Shape` if `x` is not u8.
    pub fn u8_to_f32(&mut self, x: &Edge) -> Result<Edge> {
        if x.element() != ElementType::U8 {
            return Err(self.mismatch("Cast", "a u8 tensor", x.describe()));
        }
        self.cast(x, ElementType::F32)
    }

    /// Clamps `x` (f32) to `[0, 255]`, truncates it and converts it to u8.
    ///
    /// # Errors
    /// `Shape` if `x` is not f32.
    pub fn f32_to_u8(&mut self, x: &Edge) -> Result<Edge> {
        let x = self.clamp(x, 0.0, 255.0)?;
        self.cast(&x, ElementType::U8)
    }

    fn cast(&mut self, x: &Edge, to: ElementType) -> Result<Edge> {
        Ok(self.node("Cast", &[x], vec![AttributeProto::int("to", i64::from(to.code()))], to, x.dims().to_vec()))
    }

    /// Softmax along `axis`.
    ///
    /// # Errors
    /// `Shape` if `x` has no such axis, or is not a float tensor.
    pub fn softmax(&mut self, x: &Edge, axis: usize) -> Result<Edge> {
        if axis >= x.dims().len() || !x.element().is_float() {
            let found = format!("axis {axis} of {}", x.describe());
            return Err(self.mismatch("Softmax", "an axis of a float tensor", found));
        }
        let axis = AttributeProto::int("axis", signed(axis));
        Ok(self.node("Softmax", &[x], vec![axis], x.element(), x.dims().to_vec()))
    }
}

/// The shape that `a` and `b` broadcast to by NumPy's rule, aligned at the last axis.
pub(crate) fn broadcast(a: &[Dim], b: &[Dim]) -> Option<Vec<Dim>> {
    let rank = a.len().max(b.len());
    let at = |dims: &[Dim], i: usize| (i + dims.len()).checked_sub(rank).map_or(Dim::Known(1), |j| dims[j]);
    (0..rank)
        .map(|i| match (at(a, i), at(b, i)) {
            (x, y) if x == y => Some(x),
            (Dim::Known(1), y) => Some(y),
            (x, Dim::Known(1)) => Some(x),
            _ => None,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_broadcast_as_in_numpy() {
        use Dim::{Batch, Known};
        assert_eq!(broadcast(&[Batch, Known(3)], &[Known(3)]), Some(vec![Batch, Known(3)]));
        assert_eq!(broadcast(&[Known(1), Known(3)], &[Batch, Known(1)]), Some(vec![Batch, Known(3)]));
        assert_eq!(broadcast(&[Batch], &[Known(2)]), None);
        assert_eq!(broadcast(&[], &[Known(2)]), Some(vec![Known(2)]));
        assert_eq!(broadcast(&[Batch], &[Dim::BatchTimes(2)]), None);
    }

    #[test]
    fn invalid_operands_are_errors() {
        let mut g = GraphBuilder::new("g");
        let mut input = |element: ElementType| g.input(&element.to_string(), element, &[Dim::Known(2)]).unwrap();
        let [x, bytes, bools] = [ElementType::F32, ElementType::U8, ElementType::Bool].map(&mut input);
        assert!(g.leaky_relu(&bytes, 0.2).is_err() && g.softmax(&bytes, 0).is_err() && g.silu(&bytes).is_err());
        assert!(g.add(&bools, &bools).is_err() && g.add(&x, &bytes).is_err());
        for value in [f64::NAN, f64::INFINITY, 1e300] {
            assert!(g.scale(&x, value).is_err() && g.offset(&x, value).is_err() && g.leaky_relu(&x, value).is_err());
            assert!(g.clamp(&x, value, 0.0).is_err(), "{value}");
        }
        assert!(g.clamp(&x, 0.0, f64::NAN).is_err() && g.clamp(&x, 0.0, f64::NEG_INFINITY).is_err());
        assert!(g.clamp(&x, f64::NEG_INFINITY, 1.0).is_ok() && g.clamp(&x, -1.0, f64::INFINITY).is_ok());
        assert!(g.softmax(&x, 1).is_err() && g.softmax(&x, 0).is_ok());
    }
}
