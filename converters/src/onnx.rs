//! [`Backend`] for the graph builder: the operations of a network become nodes.

use d2o_onnx::graph::{Dim, Edge, ElementType, GraphBuilder};
use d2o_onnx::ops::Sampling;

use crate::backend::{Backend, Binary, Cast, Conv2d, Ops as _, Pool, PoolKind, Unary};
use crate::error::{Error, Result};
use crate::weights::{Init, LoadReport, Scope, Weights};

/// A graph under construction and its weights.
#[derive(Debug)]
pub struct OnnxBackend {
    /// The graph; inputs and outputs are declared on it.
    pub graph: GraphBuilder,
    weights: Weights,
    scope: Scope,
}

impl OnnxBackend {
    /// Starts a graph called `name` with these `weights`.
    #[must_use]
    pub fn new(name: &str, weights: Weights) -> Self {
        Self { graph: GraphBuilder::new(name), weights, scope: Scope::root() }
    }

    /// The weights, which record the tensors taken so far.
    #[must_use]
    pub fn weights(&self) -> &Weights {
        &self.weights
    }

    /// Finishes the load. Returns the graph and the load report.
    ///
    /// # Errors
    /// `UnusedTensors` if the checkpoint contains tensors that the network did not take.
    pub fn finish(self) -> Result<(GraphBuilder, LoadReport)> {
        let report = self.weights.finish()?;
        Ok((self.graph, report))
    }

    /// Declares an input of the graph.
    ///
    /// # Errors
    /// `Engine` if the name is in use.
    pub fn input(&mut self, name: &str, element: ElementType, dims: &[Dim]) -> Result<Edge> {
        let edge = self.graph.input(name, element, dims);
        self.checked("input", edge)
    }

    /// Declares `value` as the output `name`.
    ///
    /// # Errors
    /// `Engine` if the name is in use.
    pub fn output(&mut self, name: &str, value: &Edge) -> Result<()> {
        let done = self.graph.output(name, value);
        self.checked("output", done)
    }

    fn checked<T>(&self, op: &'static str, result: d2o_onnx::Result<T>) -> Result<T> {
        result.map_err(|e| Error::Engine { scope: self.scope.to_string(), op, source: Box::new(e) })
    }
}

/// Implements operations with the [`GraphBuilder`] methods of the same name and arguments.
macro_rules! operations {
    ($(fn $op:ident($($arg:ident: $type:ty),*);)*) => {
        $(fn $op(&mut self, $($arg: $type),*) -> Result<Edge> {
            let edge = self.graph.$op($($arg),*);
            self.checked(stringify!($op), edge)
        })*
    };
}

impl Backend for OnnxBackend {
    type Value = Edge;

    fn param(&mut self, scope: &Scope, name: &str, dims: &[usize], init: &Init) -> Result<Edge> {
        let edge = self.graph.constant(&scope.key(name), dims, self.weights.take(scope, name, dims, init)?);
        self.checked("constant", edge)
    }

    fn buffer(&mut self, scope: &Scope, name: &str, dims: &[usize], init: &Init) -> Result<Vec<f32>> {
        self.weights.take(scope, name, dims, init)
    }

    fn constant<T: Into<f64>>(&mut self, scope: &Scope, name: &str, dims: &[usize], data: Vec<T>) -> Result<Edge> {
        #[allow(clippy::cast_possible_truncation, reason = "graphs compute in f32")]
        let edge = self.graph.constant(&scope.key(name), dims, data.into_iter().map(|v| v.into() as f32).collect());
        self.checked("constant", edge)
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

    fn pool2d(&mut self, kind: PoolKind, x: &Edge, window: Pool) -> Result<Edge> {
        let edge = match kind {
            PoolKind::Max => self.graph.max_pool2d(x, window),
            PoolKind::Average => self.graph.avg_pool2d(x, window),
        };
        self.checked(kind.name(), edge)
    }

    fn layer_norm(&mut self, x: &Edge, eps: f64, weight: &Edge, bias: &Edge) -> Result<Edge> {
        let mean = self.mean(x, &[1], true)?;
        let mean = self.scale(&mean, -1.0)?;
        let centred = self.add(x, &mean)?;
        let square = self.mul(&centred, &centred)?;
        let variance = self.mean(&square, &[1], true)?;
        let variance = self.offset(&variance, eps)?;
        let deviation = self.sqrt(&variance)?;
        let unit = self.div(&centred, &deviation)?;
        let scaled = self.mul(&unit, weight)?;
        self.add(&scaled, bias)
    }

    fn dropout(&mut self, x: &Edge, _p: f64) -> Result<Edge> {
        Ok(x.clone())
    }

    fn unary(&mut self, function: Unary, x: &Edge) -> Result<Edge> {
        let edge = match function {
            Unary::Silu => self.graph.silu(x),
            Unary::Gelu => self.graph.gelu(x),
            Unary::Log => self.graph.log(x),
            Unary::Sqrt => self.graph.sqrt(x),
            Unary::Cos => self.graph.cos(x),
            Unary::Sin => self.graph.sin(x),
        };
        self.checked(function.name(), edge)
    }

    fn binary(&mut self, function: Binary, a: &Edge, b: &Edge) -> Result<Edge> {
        let edge = match function {
            Binary::Add => self.graph.add(a, b),
            Binary::Mul => self.graph.mul(a, b),
            Binary::Div => self.graph.div(a, b),
        };
        self.checked(function.name(), edge)
    }

    operations! {
        fn conv2d(x: &Edge, w: &Edge, bias: Option<&Edge>, options: Conv2d);
        fn conv_transpose2d(x: &Edge, w: &Edge, options: Conv2d);
        fn linear(x: &Edge, w: &Edge, bias: Option<&Edge>);
        fn matmul(a: &Edge, b: &Edge);
        fn group_norm(x: &Edge, groups: usize, eps: f64, weight: &Edge, bias: &Edge);
        fn clamp(x: &Edge, low: f64, high: f64);
        fn leaky_relu(x: &Edge, slope: f64);
        fn scale(x: &Edge, factor: f64);
        fn offset(x: &Edge, term: f64);
        fn softmax(x: &Edge, axis: usize);
        fn mean(x: &Edge, axes: &[usize], keep: bool);
        fn concat(parts: &[Edge], axis: usize);
        fn slice(x: &Edge, axis: usize, start: usize, len: usize);
        fn reshape(x: &Edge, dims: &[i64]);
        fn transpose(x: &Edge, perm: &[usize]);
        fn resize_bilinear(x: &Edge, size: [usize; 2], sampling: Sampling);
    }

    fn cast(&mut self, cast: Cast, x: &Edge) -> Result<Edge> {
        let edge = match cast {
            Cast::ToF32 => self.graph.u8_to_f32(x),
            Cast::ToU8 => self.graph.f32_to_u8(x),
        };
        self.checked("cast", edge)
    }
}
