//! Concat, Slice, Reshape, Transpose. <https://onnx.ai/onnx/operators/>, opsets 13 and 14.

use crate::error::Result;
use crate::graph::{Dim, Edge, GraphBuilder, product, show, signed};
use crate::proto::AttributeProto;

impl GraphBuilder {
    /// Joins `parts` along `axis`.
    ///
    /// # Errors
    /// `Shape` if they differ elsewhere, or the axis is the batch.
    pub fn concat(&mut self, parts: &[Edge], axis: usize) -> Result<Edge> {
        let shapes = || parts.iter().map(|p| show(p.dims())).collect::<Vec<_>>().join(", ");
        let Some(first) = parts.first().filter(|p| axis < p.dims().len()) else {
            return Err(self.mismatch("Concat", format!("axis {axis} of {}", shapes())));
        };
        let (mut total, mut dims) = (0_usize, first.dims().to_vec());
        for part in parts {
            let Some(Dim::Known(length)) = part.dims().get(axis) else {
                return Err(self.mismatch("Concat", format!("axis {axis} of {}", shapes())));
            };
            dims[axis] = Dim::Known(*length);
            match total.checked_add(*length) {
                Some(sum) if part.dims() == dims && part.element() == first.element() => total = sum,
                _ => return Err(self.mismatch("Concat", format!("axis {axis} of {}", shapes()))),
            }
        }
        dims[axis] = Dim::Known(total);
        let inputs: Vec<&Edge> = parts.iter().collect();
        Ok(self.node("Concat", &inputs, vec![AttributeProto::int("axis", signed(axis))], first.element(), dims))
    }

    /// Elements `start..start + len` along `axis`.
    ///
    /// # Errors
    /// `Shape` if they are not there, or the axis is the batch.
    pub fn slice(&mut self, x: &Edge, axis: usize, start: usize, len: usize) -> Result<Edge> {
        let mut dims = x.dims().to_vec();
        let end = match (dims.get_mut(axis), start.checked_add(len)) {
            (Some(Dim::Known(length)), Some(end)) if end <= *length => {
                *length = len;
                end
            }
            _ => {
                let what = format!("{len} elements from {start} on axis {axis} of {}", show(x.dims()));
                return Err(self.mismatch("Slice", what));
            }
        };
        let (from, to, on) =
            (self.integers(&[signed(start)]), self.integers(&[signed(end)]), self.integers(&[signed(axis)]));
        Ok(self.node("Slice", &[x, &from, &to, &on], Vec::new(), x.element(), dims))
    }

    /// The same elements in another shape; one entry may be -1 and takes what is left, which is the batch if `x` has one.
    ///
    /// # Errors
    /// `Shape` if the elements do not fit.
    pub fn reshape(&mut self, x: &Edge, dims: &[i64]) -> Result<Edge> {
        let known = |d: &Dim| if let Dim::Known(n) = d { *n } else { 1 };
        let batched = x.dims().contains(&Dim::Batch);
        let have = product(x.dims().iter().map(known));
        let fixed = product(dims.iter().filter_map(|d| usize::try_from(*d).ok()));
        let (Some(have), Some(fixed)) = (have, fixed) else {
            return Err(self.mismatch("Reshape", format!("{} to {dims:?}", show(x.dims()))));
        };
        let free = dims.iter().filter(|d| **d == -1).count();
        let fits = match (batched, free) {
            // The batch goes into the free axis. What was merged into it (heads, tokens) may come out again: the runtime knows how much.
            (true, 1) => fixed > 0 && have > 0 && (have.is_multiple_of(fixed) || fixed.is_multiple_of(have)),
            (false, 1) => fixed > 0 && have.is_multiple_of(fixed),
            (false, 0) => have == fixed,
            _ => false,
        };
        if !fits || dims.iter().any(|d| *d < -1) {
            return Err(self.mismatch("Reshape", format!("{} to {dims:?}", show(x.dims()))));
        }
        let result = dims.iter().map(|d| match usize::try_from(*d) {
            Ok(n) => Dim::Known(n),
            Err(_) if batched => Dim::Batch,
            Err(_) => Dim::Known(have / fixed),
        });
        let result = result.collect();
        // 0 keeps the batch where it was, so that runtimes know it for the same axis and can reuse buffers and fuse.
        let kept = batched && x.dims().first() == Some(&Dim::Batch) && dims.first() == Some(&-1) && have == fixed;
        let shape = if kept { self.integers(&[&[0], &dims[1..]].concat()) } else { self.integers(dims) };
        Ok(self.node("Reshape", &[x, &shape], Vec::new(), x.element(), result))
    }

    /// Axis `i` of the result is axis `perm[i]` of `x`.
    ///
    /// # Errors
    /// `Shape` if `perm` is no permutation of the axes.
    pub fn transpose(&mut self, x: &Edge, perm: &[usize]) -> Result<Edge> {
        let mut sorted = perm.to_vec();
        sorted.sort_unstable();
        if !sorted.iter().copied().eq(0..x.dims().len()) {
            return Err(self.mismatch("Transpose", format!("{} by {perm:?}", show(x.dims()))));
        }
        let dims = perm.iter().map(|p| x.dims()[*p]).collect();
        let perm = perm.iter().map(|p| signed(*p)).collect();
        Ok(self.node("Transpose", &[x], vec![AttributeProto::ints("perm", perm)], x.element(), dims))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::ElementType;

    #[test]
    fn lengths_that_overflow_are_refused() {
        let mut g = GraphBuilder::new("g");
        let huge = [Dim::Known(usize::MAX), Dim::Known(2)];
        let x = g.input("x", ElementType::F32, &huge).unwrap();
        assert!(g.slice(&x, 0, usize::MAX, 1).is_err() && g.slice(&x, 0, 1, usize::MAX).is_err());
        assert!(g.concat(&[x.clone(), x.clone()], 0).is_err());
        assert!(g.reshape(&x, &[-1]).is_err());
        let small = g.input("small", ElementType::F32, &[Dim::Known(2)]).unwrap();
        assert!(g.reshape(&small, &[i64::MAX, i64::MAX, 2]).is_err());
        assert_eq!(g.slice(&small, 0, 1, 1).unwrap().dims(), [Dim::Known(1)]);
    }
}
