//! Conv, ConvTranspose and pooling. <https://onnx.ai/onnx/operators/onnx__Conv.html>, opset 11.
//!
//! `X [N, Ci, H, W]`, `W [Co, Ci/groups, kH, kW]` (transposed: `[Ci, Co/groups, kH, kW]`), `B [Co]` -> `[N, Co, H', W']`.

use crate::error::Result;
use crate::graph::{Dim, Edge, ElementType, GraphBuilder, show, signed};
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
        let steps = |n: usize| (n + 2 * how.pad).checked_sub(how.kernel)?.checked_div(how.stride).map(|s| s + 1);
        let (Some(tall), Some(wide), true) = (steps(h), steps(w), 2 * how.pad <= how.kernel) else {
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
        let (tall, wide) = (h + top + bottom, wd + left + right);
        let fits = per * how.groups == ci && co.is_multiple_of(how.groups.max(1)) && tall >= kh && wide >= kw;
        let bias_fits = bias.is_none_or(|b| b.dims() == [Dim::Known(co)]);
        if !fits || !bias_fits || how.stride == 0 {
            return Err(self.mismatch("Conv", format!("x {}, w {}, {how:?}", show(x.dims()), show(w.dims()))));
        }
        let dims =
            vec![n, Dim::Known(co), Dim::Known((tall - kh) / how.stride + 1), Dim::Known((wide - kw) / how.stride + 1)];
        let mut inputs = vec![x, w];
        inputs.extend(bias);
        let mut attributes = how.list();
        attributes.push(AttributeProto::ints("kernel_shape", vec![signed(kh), signed(kw)]));
        let y = self.node("Conv", &inputs, attributes, ElementType::F32, dims);
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
        let size = |n: usize, k: usize| ((n - 1) * how.stride + k).checked_sub(2 * pad);
        let (Some(tall), Some(wide), true) = (size(h, kh), size(wd, kw), wi == ci && how.pads == [pad; 4]) else {
            return Err(self.mismatch("ConvTranspose", format!("x {}, w {}, {how:?}", show(x.dims()), show(w.dims()))));
        };
        let dims = vec![n, Dim::Known(per * how.groups), Dim::Known(tall), Dim::Known(wide)];
        let mut attributes = how.list();
        attributes.push(AttributeProto::ints("kernel_shape", vec![signed(kh), signed(kw)]));
        Ok(self.node("ConvTranspose", &[x, w], attributes, ElementType::F32, dims))
    }
}
