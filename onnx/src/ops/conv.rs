//! Conv, ConvTranspose and pooling. <https://onnx.ai/onnx/operators/onnx__Conv.html>, opset 11.
//!
//! `X [N, Ci, H, W]`, `W [Co, Ci/groups, kH, kW]` (transposed: `[Ci, Co/groups, kH, kW]`), `B [Co]` -> `[N, Co, H', W']`.

use crate::error::Result;
use crate::graph::{Dim, Edge, GraphBuilder, same_floats, show, signed};
use crate::proto::AttributeProto;

/// Strides, zero padding and groups of a convolution.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConvAttributes {
    /// Step along both axes.
    pub stride: usize,
    /// Padding: top, left, bottom, right.
    pub pads: [usize; 4],
    /// Channel groups.
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

/// Window, step and padding of pooling, the same along both axes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PoolAttributes {
    /// Height and width of the window.
    pub kernel: usize,
    /// Step.
    pub stride: usize,
    /// Padding on each side.
    pub pad: usize,
}

impl GraphBuilder {
    /// Largest value in each window.
    ///
    /// # Errors
    /// `Shape` if the windows do not fit.
    pub fn max_pool2d(&mut self, x: &Edge, how: PoolAttributes) -> Result<Edge> {
        self.pool("MaxPool", x, how, Vec::new())
    }

    /// Mean of each window; padding is not counted.
    ///
    /// # Errors
    /// `Shape` if the windows do not fit.
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
        let &[n, c, Dim::Known(h), Dim::Known(w)] = x.dims() else {
            return Err(self.mismatch(op, format!("x {}", show(x.dims()))));
        };
        // A window must cover some of the image, hence the bound on the padding.
        let pads = how.pad.checked_mul(2).filter(|both| how.kernel > 0 && *both <= how.kernel);
        let size = |n: usize| steps(n, pads?, how.kernel, how.stride);
        let (Some(tall), Some(wide), true) = (size(h), size(w), x.element().is_float()) else {
            return Err(self.mismatch(op, format!("x {}, {how:?}", show(x.dims()))));
        };
        attributes.extend([
            AttributeProto::ints("kernel_shape", vec![signed(how.kernel); 2]),
            AttributeProto::ints("pads", vec![signed(how.pad); 4]),
            AttributeProto::ints("strides", vec![signed(how.stride); 2]),
        ]);
        Ok(self.node(op, &[x], attributes, x.element(), vec![n, c, Dim::Known(tall), Dim::Known(wide)]))
    }

    /// Convolution.
    ///
    /// # Errors
    /// `Shape` if operands do not fit.
    pub fn conv2d(&mut self, x: &Edge, w: &Edge, bias: Option<&Edge>, how: ConvAttributes) -> Result<Edge> {
        let (
            &[n, Dim::Known(ci), Dim::Known(h), Dim::Known(wd)],
            &[Dim::Known(co), Dim::Known(per), Dim::Known(kh), Dim::Known(kw)],
        ) = (x.dims(), w.dims())
        else {
            return Err(self.mismatch("Conv", format!("x {} and w {}", show(x.dims()), show(w.dims()))));
        };
        let [top, left, bottom, right] = how.pads;
        let size = |n, pads: [usize; 2], k| steps(n, pads[0].checked_add(pads[1])?, k, how.stride);
        let (tall, wide) = (size(h, [top, bottom], kh), size(wd, [left, right], kw));
        let grouped = how.groups > 0 && co.is_multiple_of(how.groups) && per.checked_mul(how.groups) == Some(ci);
        let bias_fits = bias.is_none_or(|b| b.dims() == [Dim::Known(co)] && b.element() == x.element());
        let (Some(tall), Some(wide), true) = (tall, wide, grouped && bias_fits && same_floats(x, w)) else {
            return Err(self.mismatch("Conv", format!("x {}, w {}, {how:?}", x.describe(), w.describe())));
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

    /// Transposed convolution; pads must be equal.
    ///
    /// # Errors
    /// `Shape` if operands do not fit.
    pub fn conv_transpose2d(&mut self, x: &Edge, w: &Edge, how: ConvAttributes) -> Result<Edge> {
        let (
            &[n, Dim::Known(ci), Dim::Known(h), Dim::Known(wd)],
            &[Dim::Known(wi), Dim::Known(per), Dim::Known(kh), Dim::Known(kw)],
        ) = (x.dims(), w.dims())
        else {
            return Err(self.mismatch("ConvTranspose", format!("x {} and w {}", show(x.dims()), show(w.dims()))));
        };
        let pad = how.pads[0];
        let size = |n: usize, k: usize| {
            let whole = n.checked_sub(1)?.checked_mul(how.stride)?.checked_add(k)?;
            whole.checked_sub(pad.checked_mul(2)?).filter(|n| *n > 0 && k > 0 && how.stride > 0)
        };
        let grouped = how.groups > 0 && ci.is_multiple_of(how.groups) && wi == ci && how.pads == [pad; 4];
        let outputs = per.checked_mul(how.groups).filter(|_| grouped && same_floats(x, w));
        let (Some(tall), Some(wide), Some(outputs)) = (size(h, kh), size(wd, kw), outputs) else {
            return Err(self.mismatch("ConvTranspose", format!("x {}, w {}, {how:?}", x.describe(), w.describe())));
        };
        let dims = vec![n, Dim::Known(outputs), Dim::Known(tall), Dim::Known(wide)];
        let mut attributes = how.list();
        attributes.push(AttributeProto::ints("kernel_shape", vec![signed(kh), signed(kw)]));
        Ok(self.node("ConvTranspose", &[x, w], attributes, x.element(), dims))
    }
}

/// Positions of a window of `k` along `n` and `pads`, `stride` apart; `None` if there is none.
fn steps(n: usize, pads: usize, k: usize, stride: usize) -> Option<usize> {
    let free = n.checked_add(pads)?.checked_sub(k).filter(|_| n > 0 && k > 0)?;
    free.checked_div(stride)?.checked_add(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::ElementType;

    #[test]
    fn windows_that_do_not_fit_are_refused() {
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
        let long = image(&mut g, ElementType::F32, 4, usize::MAX, 8);
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
            (&long, &w, ConvAttributes { pads: [1; 4], stride: 2, ..plain }),
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
