//! Conv, ConvTranspose and pooling. <https://onnx.ai/onnx/operators/onnx__Conv.html>, opset 11.
//!
//! `X [N, Ci, H, W]`, `W [Co, Ci/groups, kH, kW]` (transposed: `[Ci, Co/groups, kH, kW]`), `B [Co]` -> `[N, Co, H', W']`.

use crate::error::Result;
use crate::graph::{Dim, Edge, GraphBuilder, same_floats, signed, storable};
use crate::proto::AttributeProto;

/// Stride, zero padding and groups of a convolution.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConvAttributes {
    /// Stride along both axes.
    pub stride: usize,
    /// Zero padding, pixels: top, left, bottom, right.
    pub pads: [usize; 4],
    /// Number of channel groups.
    pub groups: usize,
}

impl ConvAttributes {
    /// Stride 1, `pad` on each side, one group.
    #[must_use]
    pub fn padded(pad: usize) -> Self {
        Self { stride: 1, pads: [pad; 4], groups: 1 }
    }

    fn list(self) -> Vec<AttributeProto> {
        let stride = signed(self.stride);
        vec![
            AttributeProto::int("group", signed(self.groups)),
            AttributeProto::ints("pads", self.pads.map(signed).to_vec()),
            AttributeProto::ints("strides", vec![stride, stride]),
        ]
    }
}

/// Window, stride and padding of a pooling, equal along both axes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PoolAttributes {
    /// Height and width of the window, pixels.
    pub kernel: usize,
    /// Stride.
    pub stride: usize,
    /// Padding on each side, pixels; at most half the window.
    pub pad: usize,
}

impl GraphBuilder {
    /// Maximum of each window of `x [N, C, H, W]`.
    ///
    /// # Errors
    /// `Shape` if `x` is not a batch of float images, the image is empty, the padded image is smaller than the window,
    /// the window or stride is 0, or the padding exceeds half the window.
    pub fn max_pool2d(&mut self, x: &Edge, how: PoolAttributes) -> Result<Edge> {
        self.pool("MaxPool", x, how, Vec::new())
    }

    /// Mean of each window of `x [N, C, H, W]`, padding excluded.
    ///
    /// # Errors
    /// `Shape` if `x` is not a batch of float images, the image is empty, the padded image is smaller than the window,
    /// the window or stride is 0, or the padding exceeds half the window.
    pub fn avg_pool2d(&mut self, x: &Edge, how: PoolAttributes) -> Result<Edge> {
        self.pool("AveragePool", x, how, vec![AttributeProto::int("count_include_pad", 0)])
    }

    fn pool(
        &mut self,
        op: &'static str,
        x: &Edge,
        how: PoolAttributes,
        mut attributes: Vec<AttributeProto>,
    ) -> Result<Edge> {
        const EXPECTED: &str = "float images that a window fits in";
        let &[n, c, Dim::Known(h), Dim::Known(w)] = x.dims() else {
            return Err(self.mismatch(op, EXPECTED, x.describe()));
        };
        // Every window must cover a part of the image. This bounds the padding.
        let pads = how.pad.checked_mul(2).filter(|both| how.kernel > 0 && *both <= how.kernel);
        let size = |n: usize| steps(n, pads?, how.kernel, how.stride);
        let (Some(tall), Some(wide), true) = (size(h), size(w), x.element().is_float()) else {
            return Err(self.mismatch(op, EXPECTED, format!("{} and {how:?}", x.describe())));
        };
        attributes.extend([
            AttributeProto::ints("kernel_shape", vec![signed(how.kernel); 2]),
            AttributeProto::ints("pads", vec![signed(how.pad); 4]),
            AttributeProto::ints("strides", vec![signed(how.stride); 2]),
        ]);
        Ok(self.node(op, &[x], attributes, x.element(), vec![n, c, Dim::Known(tall), Dim::Known(wide)]))
    }

    /// Convolution of `x [N, Ci, H, W]` with `w [Co, Ci/groups, kH, kW]` and `bias [Co]`.
    ///
    /// # Errors
    /// `Shape` if shapes, element types or attributes are incompatible.
    pub fn conv2d(&mut self, x: &Edge, w: &Edge, bias: Option<&Edge>, how: ConvAttributes) -> Result<Edge> {
        const EXPECTED: &str = "x [N, Ci, H, W], w [Co, Ci/groups, kH, kW], bias [Co] of one float type";
        let (
            &[n, Dim::Known(ci), Dim::Known(h), Dim::Known(wd)],
            &[Dim::Known(co), Dim::Known(per), Dim::Known(kh), Dim::Known(kw)],
        ) = (x.dims(), w.dims())
        else {
            return Err(self.mismatch("Conv", EXPECTED, format!("x {} and w {}", x.describe(), w.describe())));
        };
        let [top, left, bottom, right] = how.pads;
        let size = |n, pads: [usize; 2], k| steps(n, pads[0].checked_add(pads[1])?, k, how.stride);
        let (tall, wide) = (size(h, [top, bottom], kh), size(wd, [left, right], kw));
        let grouped = co > 0
            && per > 0
            && how.groups > 0
            && co.is_multiple_of(how.groups)
            && per.checked_mul(how.groups) == Some(ci);
        let bias_fits = bias.is_none_or(|b| b.dims() == [Dim::Known(co)] && b.element() == x.element());
        let (Some(tall), Some(wide), true) = (tall, wide, grouped && bias_fits && same_floats(x, w)) else {
            let bias = bias.map_or_else(|| "none".to_owned(), Edge::describe);
            let found = format!("x {}, w {}, bias {bias}, {how:?}", x.describe(), w.describe());
            return Err(self.mismatch("Conv", EXPECTED, found));
        };
        let dims = vec![n, Dim::Known(co), Dim::Known(tall), Dim::Known(wide)];
        let mut inputs = vec![x, w];
        inputs.extend(bias);
        let mut attributes = how.list();
        attributes.push(AttributeProto::ints("kernel_shape", vec![signed(kh), signed(kw)]));
        let y = self.node("Conv", &inputs, attributes, x.element(), dims);
        self.conv_heights.insert(y.name().to_owned(), h);
        Ok(y)
    }

    /// Transposed convolution of `x [N, Ci, H, W]` with `w [Ci, Co/groups, kH, kW]`; all four pads must be equal.
    ///
    /// # Errors
    /// `Shape` if shapes, element types or attributes are incompatible.
    pub fn conv_transpose2d(&mut self, x: &Edge, w: &Edge, how: ConvAttributes) -> Result<Edge> {
        const EXPECTED: &str = "x [N, Ci, H, W], w [Ci, Co/groups, kH, kW] of one float type, equal pads";
        let (
            &[n, Dim::Known(ci), Dim::Known(h), Dim::Known(wd)],
            &[Dim::Known(wi), Dim::Known(per), Dim::Known(kh), Dim::Known(kw)],
        ) = (x.dims(), w.dims())
        else {
            return Err(self.mismatch("ConvTranspose", EXPECTED, format!("x {} and w {}", x.describe(), w.describe())));
        };
        let pad = how.pads[0];
        let size = |n: usize, k: usize| {
            let whole = n.checked_sub(1)?.checked_mul(how.stride)?.checked_add(k)?;
            whole.checked_sub(pad.checked_mul(2)?).filter(|n| *n > 0 && storable(*n) && k > 0 && how.stride > 0)
        };
        let grouped =
            ci > 0 && per > 0 && how.groups > 0 && ci.is_multiple_of(how.groups) && wi == ci && how.pads == [pad; 4];
        let outputs = per.checked_mul(how.groups).filter(|_| grouped && same_floats(x, w));
        let (Some(tall), Some(wide), Some(outputs)) = (size(h, kh), size(wd, kw), outputs) else {
            let found = format!("x {}, w {}, {how:?}", x.describe(), w.describe());
            return Err(self.mismatch("ConvTranspose", EXPECTED, found));
        };
        let dims = vec![n, Dim::Known(outputs), Dim::Known(tall), Dim::Known(wide)];
        let mut attributes = how.list();
        attributes.push(AttributeProto::ints("kernel_shape", vec![signed(kh), signed(kw)]));
        Ok(self.node("ConvTranspose", &[x, w], attributes, x.element(), dims))
    }
}

/// Number of positions, `stride` apart, of a window of length `k` on an axis of length `n` with a total padding of
/// `pads`. `None` if there is no position, a length or the stride is 0, or the number overflows.
fn steps(n: usize, pads: usize, k: usize, stride: usize) -> Option<usize> {
    let free = n.checked_add(pads)?.checked_sub(k).filter(|_| n > 0 && k > 0)?;
    free.checked_div(stride)?.checked_add(1).filter(|n| storable(*n))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::ElementType;

    #[test]
    fn incompatible_operands_are_errors() {
        let mut g = GraphBuilder::new("g");
        let plain = ConvAttributes { stride: 1, pads: [0; 4], groups: 1 };
        let image = |g: &mut GraphBuilder, element, c: usize, h: usize, w: usize| {
            g.input(&format!("{element}.{h}"), element, &[Dim::Batch, Dim::Known(c), Dim::Known(h), Dim::Known(w)])
                .unwrap()
        };
        let weight =
            |g: &mut GraphBuilder, dims: [usize; 4]| g.constant("w", &dims, vec![0.0; dims.iter().product()]).unwrap();
        let x = image(&mut g, ElementType::F32, 4, 8, 8);
        let bytes = image(&mut g, ElementType::U8, 4, 8, 8);
        let flat = image(&mut g, ElementType::F32, 4, 0, 8);
        let long = image(&mut g, ElementType::F32, 4, usize::MAX / 2, 8);
        let none = image(&mut g, ElementType::F32, 0, 7, 7);
        let nothing = weight(&mut g, [0, 0, 3, 3]);
        let w = weight(&mut g, [4, 4, 3, 3]);
        let empty = weight(&mut g, [4, 4, 0, 3]);
        for (x, w, how) in [
            (&x, &w, ConvAttributes { stride: 0, ..plain }),
            (&x, &w, ConvAttributes { groups: 0, ..plain }),
            (&x, &w, ConvAttributes { groups: 3, ..plain }),
            (&x, &w, ConvAttributes { groups: usize::MAX, ..plain }),
            (&x, &w, ConvAttributes { pads: [usize::MAX; 4], ..plain }),
            (&x, &empty, plain),
            (&bytes, &w, plain),
            (&flat, &w, ConvAttributes { pads: [2; 4], ..plain }),
            (&long, &w, ConvAttributes { pads: [usize::MAX / 2; 4], stride: 2, ..plain }),
            (&long, &w, ConvAttributes { pads: [1 << 62; 4], ..plain }),
            (&none, &nothing, plain),
        ] {
            assert!(g.conv2d(x, w, None, how).is_err(), "Conv {how:?}");
            assert!(g.conv_transpose2d(x, w, how).is_err(), "ConvTranspose {how:?}");
        }
        assert_eq!(g.conv2d(&x, &w, None, plain).unwrap().dims()[2..], [Dim::Known(6), Dim::Known(6)]);
        assert_eq!(g.conv_transpose2d(&x, &w, plain).unwrap().dims()[2..], [Dim::Known(10), Dim::Known(10)]);
        for (x, kernel, stride, pad) in [
            (&x, 0, 1, 0),
            (&x, 2, 0, 0),
            (&x, 2, 1, 2),
            (&x, 2, 1, usize::MAX),
            (&x, 9, 1, 0),
            (&flat, 2, 1, 1),
            (&bytes, 2, 1, 0),
        ] {
            assert!(g.max_pool2d(x, PoolAttributes { kernel, stride, pad }).is_err(), "{kernel} {stride} {pad}");
        }
    }
}
