//! Concat, Slice, Reshape, Transpose. <https://onnx.ai/onnx/operators/>, opsets 13 and 14.

use crate::error::Result;
use crate::graph::{Dim, Edge, GraphBuilder, product, signed, storable};
use crate::proto::AttributeProto;

impl GraphBuilder {
    /// `parts` concatenated along `axis`.
    ///
    /// # Errors
    /// `Shape` if `parts` is empty, element types or other axes differ, or the axis does not exist, is symbolic or
    /// becomes too long for ONNX.
    pub fn concat(&mut self, parts: &[Edge], axis: usize) -> Result<Edge> {
        let bad = |g: &Self| {
            let shapes = parts.iter().map(Edge::describe).collect::<Vec<_>>().join(", ");
            g.mismatch("Concat", "tensors that differ in a known axis only", format!("axis {axis} of [{shapes}]"))
        };
        let Some(first) = parts.first().filter(|p| axis < p.dims().len()) else { return Err(bad(self)) };
        let (mut total, mut dims) = (0_usize, first.dims().to_vec());
        for part in parts {
            let Some(Dim::Known(length)) = part.dims().get(axis) else { return Err(bad(self)) };
            dims[axis] = Dim::Known(*length);
            match total.checked_add(*length).filter(|n| storable(*n)) {
                Some(sum) if part.dims() == dims && part.element() == first.element() => total = sum,
                _ => return Err(bad(self)),
            }
        }
        dims[axis] = Dim::Known(total);
        let inputs: Vec<&Edge> = parts.iter().collect();
        Ok(self.node("Concat", &inputs, vec![AttributeProto::int("axis", signed(axis))], first.element(), dims))
    }

    /// Elements `start..start + len` along `axis`.
    ///
    /// # Errors
    /// `Shape` if the range exceeds the axis, or the axis does not exist or is symbolic.
    pub fn slice(&mut self, x: &Edge, axis: usize, start: usize, len: usize) -> Result<Edge> {
        let mut dims = x.dims().to_vec();
        let end = match (dims.get_mut(axis), start.checked_add(len)) {
            (Some(Dim::Known(length)), Some(end)) if end <= *length => {
                *length = len;
                end
            }
            _ => {
                let found = format!("{len} elements from {start} of axis {axis} of {}", x.describe());
                return Err(self.mismatch("Slice", "a range within a known axis", found));
            }
        };
        let (from, to, on) =
            (self.integers(&[signed(start)]), self.integers(&[signed(end)]), self.integers(&[signed(axis)]));
        Ok(self.node("Slice", &[x, &from, &to, &on], Vec::new(), x.element(), dims))
    }

    /// The elements of `x` in the shape `dims`. One entry may be -1: the batch axis if `x` has one, otherwise the
    /// length that the other entries imply.
    ///
    /// Axes merged into the batch multiply its length: `[N, 8, 3]` reshaped to `[-1, 3]` is `[8*N, 3]`.
    ///
    /// # Errors
    /// `Shape` if the number of elements differs, an axis of `x` or an entry of `dims` is 0, an entry is below -1,
    /// several entries are -1, `x` has several symbolic axes, or `x` has one but no entry is -1.
    pub fn reshape(&mut self, x: &Edge, dims: &[i64]) -> Result<Edge> {
        let bad = |g: &Self| {
            let found = format!("{} and {dims:?}", x.describe());
            g.mismatch("Reshape", "a shape for the same number of elements, at most one -1", found)
        };
        let symbolic = x.dims().iter().filter(|d| !matches!(d, Dim::Known(_))).count();
        // Number of elements per sample of the batch.
        let have = product(x.dims().iter().map(|d| match d {
            Dim::Known(n) | Dim::BatchTimes(n) => *n,
            Dim::Batch => 1,
        }));
        let fixed = product(dims.iter().filter_map(|d| usize::try_from(*d).ok()));
        let (Some(have), Some(fixed)) = (have, fixed) else { return Err(bad(self)) };
        let free = match dims.iter().filter(|d| **d == -1).count() {
            0 if symbolic == 0 && have == fixed => 1,
            1 if symbolic <= 1 && have.checked_rem(fixed) == Some(0) => have / fixed,
            _ => 0,
        };
        if free == 0 || fixed == 0 || dims.iter().any(|d| *d < -1) {
            return Err(bad(self));
        }
        let result: Vec<Dim> = dims
            .iter()
            .map(|d| match usize::try_from(*d) {
                Ok(n) => Dim::Known(n),
                Err(_) if symbolic == 0 => Dim::Known(free),
                Err(_) if free == 1 => Dim::Batch,
                Err(_) => Dim::BatchTimes(free),
            })
            .collect();
        // 0 copies the length of the first axis. Runtimes then know it, and can reuse buffers and fuse nodes.
        let kept = symbolic == 1 && x.dims().first() == result.first() && dims.first() == Some(&-1);
        let shape = if kept { self.integers(&[&[0], &dims[1..]].concat()) } else { self.integers(dims) };
        Ok(self.node("Reshape", &[x, &shape], Vec::new(), x.element(), result))
    }

    /// `x` with its axes permuted: axis `i` of the result is axis `perm[i]` of `x`.
    ///
    /// # Errors
    /// `Shape` if `perm` is not a permutation of the axes.
    pub fn transpose(&mut self, x: &Edge, perm: &[usize]) -> Result<Edge> {
        let mut sorted = perm.to_vec();
        sorted.sort_unstable();
        if !sorted.iter().copied().eq(0..x.dims().len()) {
            let found = format!("{perm:?} for {}", x.describe());
            return Err(self.mismatch("Transpose", "a permutation of the axes", found));
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
    fn lengths_that_overflow_are_errors() {
        let mut g = GraphBuilder::new("g");
        let huge = [Dim::Known(usize::MAX / 2), Dim::Known(4)];
        let x = g.input("x", ElementType::F32, &huge).unwrap();
        assert!(g.slice(&x, 0, usize::MAX, 1).is_err() && g.slice(&x, 0, 1, usize::MAX).is_err());
        assert!(g.concat(&[x.clone(), x.clone()], 0).is_err());
        assert!(g.reshape(&x, &[-1]).is_err());
        let small = g.input("small", ElementType::F32, &[Dim::Known(2)]).unwrap();
        assert!(g.reshape(&small, &[i64::MAX, i64::MAX, 2]).is_err());
        assert_eq!(g.slice(&small, 0, 1, 1).unwrap().dims(), [Dim::Known(1)]);
        assert!(g.concat(&[], 0).is_err());
    }

    #[test]
    fn a_multiple_of_the_batch_is_a_symbol_in_the_file() {
        let mut g = GraphBuilder::new("g");
        let x = g.input("x", ElementType::F32, &[Dim::Batch, Dim::Known(8), Dim::Known(3)]).unwrap();
        let y = g.reshape(&x, &[-1, 3]).unwrap();
        g.output("y", &y).unwrap();
        let bytes = crate::write::to_bytes(&g.finish().unwrap()).unwrap();
        let info = crate::read::ModelInfo::parse(&bytes, "x.onnx".as_ref()).unwrap();
        assert_eq!([&info.inputs[0], &info.outputs[0]].map(|v| v.describe()), ["x f32 [N, 8, 3]", "y f32 [8*N, 3]"]);
    }

    #[test]
    fn the_batch_keeps_its_multiple() {
        use Dim::{Batch, BatchTimes, Known};
        let mut g = GraphBuilder::new("g");
        let x = g.input("x", ElementType::F32, &[Batch, Known(8), Known(3)]).unwrap();
        let heads = g.reshape(&x, &[-1, 3]).unwrap();
        assert_eq!(heads.dims(), [BatchTimes(8), Known(3)]);
        // N and 8 N are different lengths, in broadcasts and in concatenations.
        let flat = g.reshape(&x, &[-1, 24]).unwrap();
        let single = g.slice(&flat, 1, 0, 3).unwrap();
        assert!(g.add(&heads, &single).is_err() && g.concat(&[heads.clone(), single], 1).is_err());
        let pairs = g.reshape(&heads, &[2, -1, 3]).unwrap();
        assert_eq!(pairs.dims(), [Known(2), BatchTimes(4), Known(3)]);
        let back = g.reshape(&pairs, &[-1, 8, 3]).unwrap();
        assert_eq!(back.dims(), x.dims());
        assert!(g.add(&back, &x).is_ok());
        // A fraction of the batch, and other invalid shapes.
        for dims in [&[-1, 48][..], &[-1, 5], &[24], &[-1, -1], &[-1, 0], &[-2, 24]] {
            assert!(g.reshape(&x, dims).is_err(), "{dims:?}");
        }
        let both = g.input("both", ElementType::F32, &[Batch, Batch]).unwrap();
        assert!(g.reshape(&both, &[-1]).is_err());
        let empty = g.input("empty", ElementType::F32, &[Known(3), Known(0)]).unwrap();
        assert!(g.reshape(&empty, &[0, 3]).is_err() && g.reshape(&empty, &[-1, 3]).is_err());
    }
}
