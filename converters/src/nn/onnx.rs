//! `Backend` on the graph builder: networks become nodes as they are laid out.

use d2o_onnx::graph::{Dim, Edge, GraphBuilder};
use d2o_onnx::ops::{ConvAttributes, PoolAttributes, Sampling};

use crate::error::{Error, Result};
use crate::nn::backend::{Backend, Conv2d, Pool};
use crate::weights::{Init, LoadReport, Scope, Weights};

/// The back end: a graph under construction and the weights it is filled from.
#[derive(Debug)]
pub struct OnnxBackend {
    /// The graph; inputs and outputs are declared on it.
    pub graph: GraphBuilder,
    weights: Weights,
    scope: Scope,
}

impl OnnxBackend {
    /// For a graph called `name` over `weights`.
    #[must_use]
    pub fn new(name: &str, weights: Weights) -> Self {
        Self { graph: GraphBuilder::new(name), weights, scope: Scope::root() }
    }

    /// The weights, and what was taken of them so far.
    #[must_use]
    pub fn weights(&self) -> &Weights {
        &self.weights
    }

    /// Ends the lay-out: the graph, and the report of a clean load.
    ///
    /// # Errors
    /// `UnusedTensors` if the checkpoint holds more than the network took.
    pub fn finish(self) -> Result<(GraphBuilder, LoadReport)> {
        let report = self.weights.finish()?;
        Ok((self.graph, report))
    }

    /// Path and dimensions of the tensors taken so far, sorted by path.
    pub fn taken(&self) -> impl Iterator<Item = (&str, &[usize])> {
        self.weights.taken()
    }

    fn ok(&self, op: &'static str, result: d2o_onnx::Result<Edge>) -> Result<Edge> {
        result.map_err(|e| Error::Engine { scope: self.scope.to_string(), op, source: Box::new(e) })
    }
}

fn attributes(how: Conv2d) -> ConvAttributes {
    ConvAttributes::new(how.stride, how.pads, how.groups)
}

fn window(how: Pool) -> PoolAttributes {
    PoolAttributes::new(how.kernel, how.stride, how.pad)
}

impl Backend for OnnxBackend {
    type Value = Edge;

    fn param(&mut self, scope: &Scope, name: &str, dims: &[usize], init: &Init) -> Result<Edge> {
        let values = self.weights.take(scope, name, dims, init)?;
        self.constant(scope, name, dims, values)
    }

    fn buffer(&mut self, scope: &Scope, name: &str, dims: &[usize], init: &Init) -> Result<Vec<f32>> {
        self.weights.take(scope, name, dims, init)
    }

    fn state(&mut self, scope: &Scope, name: &str, dims: &[usize], init: &Init) -> Result<Edge> {
        self.param(scope, name, dims, init)
    }

    fn constant(&mut self, scope: &Scope, name: &str, dims: &[usize], data: Vec<f32>) -> Result<Edge> {
        let edge = self.graph.constant(&scope.key(name), dims, data);
        self.ok("constant", edge)
    }

    fn enter(&mut self, scope: &Scope) {
        self.scope.clone_from(scope);
        self.graph.set_scope(scope.as_str());
    }

    fn dim(&self, x: &Edge, axis: usize) -> Option<usize> {
        match x.dims().get(axis) {
            Some(Dim::Known(n)) => Some(*n),
            _ => None,
        }
    }

    fn conv2d(&mut self, x: &Edge, w: &Edge, bias: Option<&Edge>, how: Conv2d) -> Result<Edge> {
        let edge = self.graph.conv2d(x, w, bias, attributes(how));
        self.ok("conv2d", edge)
    }

    fn conv_transpose2d(&mut self, x: &Edge, w: &Edge, how: Conv2d) -> Result<Edge> {
        let edge = self.graph.conv_transpose2d(x, w, attributes(how));
        self.ok("conv_transpose2d", edge)
    }

    fn max_pool2d(&mut self, x: &Edge, how: Pool) -> Result<Edge> {
        let edge = self.graph.max_pool2d(x, window(how));
        self.ok("max_pool2d", edge)
    }

    fn avg_pool2d(&mut self, x: &Edge, how: Pool) -> Result<Edge> {
        let edge = self.graph.avg_pool2d(x, window(how));
        self.ok("avg_pool2d", edge)
    }

    fn linear(&mut self, x: &Edge, w: &Edge, bias: Option<&Edge>) -> Result<Edge> {
        let edge = self.graph.linear(x, w, bias);
        self.ok("linear", edge)
    }

    fn matmul(&mut self, a: &Edge, b: &Edge) -> Result<Edge> {
        let edge = self.graph.matmul(a, b);
        self.ok("matmul", edge)
    }

    fn group_norm(&mut self, x: &Edge, groups: usize, eps: f64, weight: &Edge, bias: &Edge) -> Result<Edge> {
        let edge = self.graph.group_norm(x, groups, eps, weight, bias);
        self.ok("group_norm", edge)
    }

    fn batch_norm(&mut self, x: &Edge, eps: f64, weight: &Edge, bias: &Edge) -> Result<Edge> {
        let edge = self.graph.batch_norm(x, eps, weight, bias);
        self.ok("batch_norm", edge)
    }

    fn spectral_norm(&mut self, w: &Edge, u: &Edge, v: &Edge) -> Result<Edge> {
        let edge = self.graph.spectral_norm(w, u, v);
        self.ok("spectral_norm", edge)
    }

    fn dropout(&mut self, x: &Edge, _p: f64) -> Result<Edge> {
        Ok(x.clone())
    }

    fn silu(&mut self, x: &Edge) -> Result<Edge> {
        let edge = self.graph.silu(x);
        self.ok("silu", edge)
    }

    fn gelu(&mut self, x: &Edge) -> Result<Edge> {
        let edge = self.graph.gelu(x);
        self.ok("gelu", edge)
    }

    fn clamp(&mut self, x: &Edge, low: f64, high: f64) -> Result<Edge> {
        let edge = self.graph.clamp(x, low, high);
        self.ok("clamp", edge)
    }

    fn leaky_relu(&mut self, x: &Edge, slope: f64) -> Result<Edge> {
        let edge = self.graph.leaky_relu(x, slope);
        self.ok("leaky_relu", edge)
    }

    fn log(&mut self, x: &Edge) -> Result<Edge> {
        let edge = self.graph.log(x);
        self.ok("log", edge)
    }

    fn sqrt(&mut self, x: &Edge) -> Result<Edge> {
        let edge = self.graph.sqrt(x);
        self.ok("sqrt", edge)
    }

    fn cos(&mut self, x: &Edge) -> Result<Edge> {
        let edge = self.graph.cos(x);
        self.ok("cos", edge)
    }

    fn sin(&mut self, x: &Edge) -> Result<Edge> {
        let edge = self.graph.sin(x);
        self.ok("sin", edge)
    }

    fn add(&mut self, a: &Edge, b: &Edge) -> Result<Edge> {
        let edge = self.graph.add(a, b);
        self.ok("add", edge)
    }

    fn mul(&mut self, a: &Edge, b: &Edge) -> Result<Edge> {
        let edge = self.graph.mul(a, b);
        self.ok("mul", edge)
    }

    fn div(&mut self, a: &Edge, b: &Edge) -> Result<Edge> {
        let edge = self.graph.div(a, b);
        self.ok("div", edge)
    }

    fn scale(&mut self, x: &Edge, factor: f64) -> Result<Edge> {
        let edge = self.graph.scale(x, factor);
        self.ok("scale", edge)
    }

    fn offset(&mut self, x: &Edge, term: f64) -> Result<Edge> {
        let edge = self.graph.offset(x, term);
        self.ok("offset", edge)
    }

    fn softmax(&mut self, x: &Edge, axis: usize) -> Result<Edge> {
        let edge = self.graph.softmax(x, axis);
        self.ok("softmax", edge)
    }

    fn mean(&mut self, x: &Edge, axes: &[usize], keep: bool) -> Result<Edge> {
        let edge = self.graph.mean(x, axes, keep);
        self.ok("mean", edge)
    }

    fn concat(&mut self, parts: &[Edge], axis: usize) -> Result<Edge> {
        let edge = self.graph.concat(parts, axis);
        self.ok("concat", edge)
    }

    fn slice(&mut self, x: &Edge, axis: usize, start: usize, len: usize) -> Result<Edge> {
        let edge = self.graph.slice(x, axis, start, len);
        self.ok("slice", edge)
    }

    fn reshape(&mut self, x: &Edge, dims: &[i64]) -> Result<Edge> {
        let edge = self.graph.reshape(x, dims);
        self.ok("reshape", edge)
    }

    fn transpose(&mut self, x: &Edge, perm: &[usize]) -> Result<Edge> {
        let edge = self.graph.transpose(x, perm);
        self.ok("transpose", edge)
    }

    fn resize_bilinear(&mut self, x: &Edge, size: [usize; 2], align_corners: bool) -> Result<Edge> {
        let sampling = if align_corners { Sampling::AlignCorners } else { Sampling::HalfPixel };
        let edge = self.graph.resize_bilinear(x, size, sampling);
        self.ok("resize_bilinear", edge)
    }

    fn u8_to_f32(&mut self, x: &Edge) -> Result<Edge> {
        let edge = self.graph.u8_to_f32(x);
        self.ok("u8_to_f32", edge)
    }

    fn f32_to_u8(&mut self, x: &Edge) -> Result<Edge> {
        let edge = self.graph.f32_to_u8(x);
        self.ok("f32_to_u8", edge)
    }
}
