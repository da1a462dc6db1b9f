//! Unary and broadcasting binary operations, and casts. <https://onnx.ai/onnx/operators/>, opsets 6 to 14.
//!
//! Binary operands broadcast as in NumPy; the batch axis meets itself or 1.

use crate::error::Result;
use crate::graph::{Dim, Edge, ElementType, GraphBuilder, show, signed};
use crate::proto::AttributeProto;

impl GraphBuilder {
    fn unary(&mut self, op: &'static str, x: &Edge) -> Result<Edge> {
        if !x.element().is_float() {
            return Err(self.mismatch(op, format!("floats expected, found {}", x.element())));
        }
        Ok(self.node(op, &[x], Vec::new(), x.element(), x.dims().to_vec()))
    }

    fn binary(&mut self, op: &'static str, a: &Edge, b: &Edge) -> Result<Edge> {
        let dims = broadcast(a.dims(), b.dims()).filter(|_| a.element() == b.element());
        let Some(dims) = dims else {
            return Err(self
                .mismatch(op, format!("{} {} with {} {}", a.element(), show(a.dims()), b.element(), show(b.dims()))));
        };
        Ok(self.node(op, &[a, b], Vec::new(), a.element(), dims))
    }

    /// Sum.
    ///
    /// # Errors
    /// `Shape` if the operands do not broadcast.
    pub fn add(&mut self, a: &Edge, b: &Edge) -> Result<Edge> {
        self.binary("Add", a, b)
    }

    /// Difference.
    ///
    /// # Errors
    /// `Shape` if the operands do not broadcast.
    pub fn sub(&mut self, a: &Edge, b: &Edge) -> Result<Edge> {
        self.binary("Sub", a, b)
    }

    /// Product.
    ///
    /// # Errors
    /// `Shape` if the operands do not broadcast.
    pub fn mul(&mut self, a: &Edge, b: &Edge) -> Result<Edge> {
        self.binary("Mul", a, b)
    }

    /// Quotient.
    ///
    /// # Errors
    /// `Shape` if the operands do not broadcast.
    pub fn div(&mut self, a: &Edge, b: &Edge) -> Result<Edge> {
        self.binary("Div", a, b)
    }

    /// `x · factor`.
    ///
    /// # Errors
    /// `Shape` if `x` is not f32.
    pub fn scale(&mut self, x: &Edge, factor: f64) -> Result<Edge> {
        let factor = self.scalar(factor);
        self.mul(x, &factor)
    }

    /// `x + term`.
    ///
    /// # Errors
    /// `Shape` if `x` is not f32.
    pub fn offset(&mut self, x: &Edge, term: f64) -> Result<Edge> {
        let term = self.scalar(term);
        self.add(x, &term)
    }

    /// `x · sigmoid(x)`.
    ///
    /// # Errors
    /// None beyond those of its parts.
    pub fn silu(&mut self, x: &Edge) -> Result<Edge> {
        let gate = self.unary("Sigmoid", x)?;
        self.mul(x, &gate)
    }

    /// `x · Φ(x)`, Φ the normal distribution function.
    ///
    /// # Errors
    /// `Shape` if `x` is not f32.
    pub fn gelu(&mut self, x: &Edge) -> Result<Edge> {
        // x/√2 by division: ONNX Runtime knows this spelling and computes it at once.
        let root = self.scalar(std::f64::consts::SQRT_2);
        let scaled = self.div(x, &root)?;
        let erf = self.unary("Erf", &scaled)?;
        let raised = self.offset(&erf, 1.0)?;
        let gated = self.mul(x, &raised)?;
        self.scale(&gated, 0.5)
    }

    /// `x` limited to `[low, high]`; an infinite `high` with `low` 0 is ReLU.
    ///
    /// # Errors
    /// `Shape` if `x` is not f32.
    pub fn clamp(&mut self, x: &Edge, low: f64, high: f64) -> Result<Edge> {
        if x.element() != ElementType::F32 {
            return Err(self.mismatch("Clip", format!("f32 expected, found {}", x.element())));
        }
        if low == 0.0 && high.is_infinite() {
            return self.unary("Relu", x);
        }
        let (low, high) = (self.scalar(low), self.scalar(high.min(f64::from(f32::MAX))));
        Ok(self.node("Clip", &[x, &low, &high], Vec::new(), x.element(), x.dims().to_vec()))
    }

    /// `x` where positive, `slope·x` elsewhere.
    ///
    /// # Errors
    /// None.
    pub fn leaky_relu(&mut self, x: &Edge, slope: f64) -> Result<Edge> {
        #[allow(clippy::cast_possible_truncation, reason = "an f32 attribute")]
        let alpha = AttributeProto::float("alpha", slope as f32);
        Ok(self.node("LeakyRelu", &[x], vec![alpha], x.element(), x.dims().to_vec()))
    }

    /// Natural logarithm.
    ///
    /// # Errors
    /// `Shape` if `x` holds no floats.
    pub fn log(&mut self, x: &Edge) -> Result<Edge> {
        self.unary("Log", x)
    }

    /// Square root.
    ///
    /// # Errors
    /// `Shape` if `x` holds no floats.
    pub fn sqrt(&mut self, x: &Edge) -> Result<Edge> {
        self.unary("Sqrt", x)
    }

    /// Cosine.
    ///
    /// # Errors
    /// `Shape` if `x` holds no floats.
    pub fn cos(&mut self, x: &Edge) -> Result<Edge> {
        self.unary("Cos", x)
    }

    /// Sine.
    ///
    /// # Errors
    /// `Shape` if `x` holds no floats.
    pub fn sin(&mut self, x: &Edge) -> Result<Edge> {
        self.unary("Sin", x)
    }

    /// u8 -> f32.
    ///
    /// # Errors
    /// `Shape` if `x` is not u8.
    pub fn u8_to_f32(&mut self, x: &Edge) -> Result<Edge> {
        if x.element() != ElementType::U8 {
            return Err(self.mismatch("Cast", format!("u8 expected, found {}", x.element())));
        }
        self.cast(x, ElementType::F32)
    }

    /// f32, limited to 0..=255 and truncated, -> u8.
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
    /// `Shape` if there is no such axis.
    pub fn softmax(&mut self, x: &Edge, axis: usize) -> Result<Edge> {
        if axis >= x.dims().len() {
            return Err(self.mismatch("Softmax", format!("axis {axis} of {}", show(x.dims()))));
        }
        let axis = AttributeProto::int("axis", signed(axis));
        Ok(self.node("Softmax", &[x], vec![axis], x.element(), x.dims().to_vec()))
    }
}

/// NumPy's rule, aligned at the last axis.
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
    fn broadcasting_is_numpys() {
        use Dim::{Batch, Known};
        assert_eq!(broadcast(&[Batch, Known(3)], &[Known(3)]), Some(vec![Batch, Known(3)]));
        assert_eq!(broadcast(&[Known(1), Known(3)], &[Batch, Known(1)]), Some(vec![Batch, Known(3)]));
        assert_eq!(broadcast(&[Batch], &[Known(2)]), None);
        assert_eq!(broadcast(&[], &[Known(2)]), Some(vec![Known(2)]));
    }
}
