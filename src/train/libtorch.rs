//! `Backend` on libtorch: operations run at once, with autograd.

use d2o_converters::backend::{Backend, Binary, Cast, Conv2d, Pool, PoolKind, Sampling, Unary};
use d2o_converters::error::{Error, Result};
use d2o_converters::weights::{Init, LoadReport, Scope, Weights};
use d2o_onnx::ops::interpolation;
use tch::{Device, Kind, TchError, Tensor};

use super::numerics::Numerics;

/// A tensor handle; clones share storage and autograd history.
#[derive(Debug)]
pub struct Value(pub Tensor);

impl Clone for Value {
    fn clone(&self) -> Self {
        Self(self.0.shallow_clone())
    }
}

/// Role of a named tensor of a network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Trained by gradients and averaged by EMA.
    Param,
    /// Advanced by the network itself, or frozen for good.
    State,
    /// A constant the network was derived from.
    Buffer,
}

/// A tensor that a network took when it was built.
#[derive(Debug)]
pub struct Named {
    /// Full path.
    pub path: String,
    /// The live tensor.
    pub tensor: Tensor,
    /// Its role.
    pub role: Role,
}

/// The backend: weights for building networks, a mode for running them.
#[derive(Debug)]
pub struct LibTorch {
    device: Device,
    weights: Option<Weights>,
    tensors: Vec<Named>,
    scope: Scope,
    train: bool,
}

impl LibTorch {
    /// For building a network over `weights` on `device`.
    #[must_use]
    pub fn with_weights(weights: Weights, device: Device) -> Self {
        Self { device, weights: Some(weights), tensors: Vec::new(), scope: Scope::root(), train: false }
    }

    /// Whether dropout is on.
    #[must_use]
    pub fn trains(&self) -> bool {
        self.train
    }

    /// For running networks that are built; `train` turns dropout and spectral norm's power iterations on.
    #[must_use]
    pub fn running(device: Device, train: bool) -> Self {
        Self { device, weights: None, tensors: Vec::new(), scope: Scope::root(), train }
    }

    /// The tensors in order of request, and the report of a clean load.
    ///
    /// # Errors
    /// `UnusedTensors` if the checkpoint holds more than the network took.
    pub fn finish(self) -> Result<(Vec<Named>, LoadReport)> {
        let report = match &self.weights {
            Some(weights) => weights.finish()?,
            None => LoadReport { tensors: 0, scalars: 0, unused: Vec::new() },
        };
        Ok((self.tensors, report))
    }

    fn fetch(&mut self, scope: &Scope, name: &str, dims: &[usize], init: &Init) -> Result<Vec<f32>> {
        let path = scope.key(name);
        self.weights
            .as_mut()
            .ok_or_else(|| Error::MissingTensor { path: path.clone(), similar: Vec::new() })?
            .take(scope, name, dims, init)
    }

    fn named(&mut self, scope: &Scope, name: &str, dims: &[usize], init: &Init, role: Role) -> Result<Value> {
        let values = self.fetch(scope, name, dims, init)?;
        let tensor = self.ok("tensor", tensor_of(&values, dims, self.device))?.set_requires_grad(role == Role::Param);
        self.tensors.push(Named { path: scope.key(name), tensor: tensor.shallow_clone(), role });
        Ok(Value(tensor))
    }

    fn ok<T>(&self, op: &'static str, result: Result<T, TchError>) -> Result<T> {
        result.map_err(|e| Error::Engine { scope: self.scope.to_string(), op, source: Box::new(e) })
    }

    fn value(&self, op: &'static str, result: Result<Tensor, TchError>) -> Result<Value> {
        self.ok(op, result).map(Value)
    }
}

/// `data`, row-major, as an f32 tensor of shape `dims` on `device`.
///
/// # Errors
/// libtorch's own if `data` does not fill `dims`.
pub fn tensor_of(data: &[f32], dims: &[usize], device: Device) -> Result<Tensor, TchError> {
    Tensor::f_from_slice(data)?.f_reshape(ints(dims))?.f_to_device(device)
}

/// The values of `tensor`, row-major, as f32.
///
/// # Errors
/// libtorch's own.
pub fn values_of(tensor: &Tensor) -> Result<Vec<f32>, TchError> {
    let flat = tensor.detach().f_to_device(Device::Cpu)?.f_to_kind(Kind::Float)?.f_contiguous()?.f_view([-1])?;
    let mut values = vec![0.0; flat.numel()];
    let count = values.len();
    flat.f_copy_data(&mut values, count)?;
    Ok(values)
}

/// Bilinear resizing by products with the matrices that exported graphs have.
fn resize_by_products(x: &Tensor, [tall, wide]: [usize; 2], sampling: Sampling) -> Result<Tensor, TchError> {
    let matrix = |from: i64, to: usize| {
        let from = usize::try_from(from).unwrap_or_default();
        tensor_of(&interpolation(from, to, sampling), &[to, from], x.device())
    };
    let (_, _, height, width) = x.size4()?;
    let x = if width == int(wide) { x.shallow_clone() } else { x.f_matmul(&matrix(width, wide)?.f_tr()?)? };
    if height == int(tall) { Ok(x) } else { matrix(height, tall)?.f_matmul(&x) }
}

fn ints(dims: &[usize]) -> Vec<i64> {
    dims.iter().map(|d| int(*d)).collect()
}

pub(super) fn int(n: usize) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

impl Backend for LibTorch {
    type Value = Value;

    fn param(&mut self, scope: &Scope, name: &str, dims: &[usize], init: &Init) -> Result<Value> {
        self.named(scope, name, dims, init, Role::Param)
    }

    fn training_param(&mut self, scope: &Scope, name: &str, dims: &[usize], init: &Init) -> Result<Option<Value>> {
        self.param(scope, name, dims, init).map(Some)
    }

    fn buffer(&mut self, scope: &Scope, name: &str, dims: &[usize], init: &Init) -> Result<Vec<f32>> {
        let values = self.fetch(scope, name, dims, init)?;
        let tensor = self.ok("tensor", tensor_of(&values, dims, Device::Cpu))?;
        self.tensors.push(Named { path: scope.key(name), tensor, role: Role::Buffer });
        Ok(values)
    }

    fn constant(&mut self, _scope: &Scope, _name: &str, dims: &[usize], data: Vec<f32>) -> Result<Value> {
        self.value("constant", tensor_of(&data, dims, self.device))
    }

    fn enter(&mut self, scope: &Scope) {
        self.scope.clone_from(scope);
    }

    fn dim(&self, x: &Value, axis: usize) -> Option<usize> {
        x.0.size().get(axis).and_then(|d| usize::try_from(*d).ok())
    }

    fn conv2d(&mut self, x: &Value, w: &Value, bias: Option<&Value>, options: Conv2d) -> Result<Value> {
        let [top, left, bottom, right] = options.pads.map(int);
        let stride = int(options.stride);
        let run = |x: &Tensor, pad: [i64; 2]| {
            x.f_conv2d(&w.0, bias.map(|b| &b.0), [stride, stride], pad, [1, 1], int(options.groups))
        };
        let out = if top == bottom && left == right {
            run(&x.0, [top, left])
        } else {
            x.0.f_constant_pad_nd([left, right, top, bottom]).and_then(|x| run(&x, [0, 0]))
        };
        self.value("conv2d", out)
    }

    fn conv_transpose2d(&mut self, x: &Value, w: &Value, options: Conv2d) -> Result<Value> {
        let [pad, ..] = options.pads;
        if options.pads != [pad; 4] {
            let what = format!("`conv_transpose2d`: expected four equal pads, found {:?}", options.pads);
            return Err(Error::Config { what });
        }
        let (pad, stride) = (int(pad), int(options.stride));
        let none: Option<&Tensor> = None;
        let out = x.0.f_conv_transpose2d(&w.0, none, [stride, stride], [pad, pad], [0, 0], int(options.groups), [1, 1]);
        self.value("conv_transpose2d", out)
    }

    fn pool2d(&mut self, kind: PoolKind, x: &Value, window: Pool) -> Result<Value> {
        let (k, s, p) = (int(window.kernel), int(window.stride), int(window.pad));
        let by_count: Option<i64> = None;
        let out = match kind {
            PoolKind::Max => x.0.f_max_pool2d([k, k], [s, s], [p, p], [1, 1], false),
            PoolKind::Average => x.0.f_avg_pool2d([k, k], [s, s], [p, p], false, false, by_count),
        };
        self.value(kind.name(), out)
    }

    fn linear(&mut self, x: &Value, w: &Value, bias: Option<&Value>) -> Result<Value> {
        self.value("linear", x.0.f_linear(&w.0, bias.map(|b| &b.0)))
    }

    fn matmul(&mut self, a: &Value, b: &Value) -> Result<Value> {
        self.value("matmul", a.0.f_matmul(&b.0))
    }

    fn group_norm(&mut self, x: &Value, groups: usize, eps: f64, weight: &Value, bias: &Value) -> Result<Value> {
        self.value("group_norm", x.0.f_group_norm(int(groups), Some(&weight.0), Some(&bias.0), eps, true))
    }

    fn dropout(&mut self, x: &Value, p: f64) -> Result<Value> {
        if self.train && p > 0.0 { self.value("dropout", x.0.f_dropout(p, true)) } else { Ok(x.clone()) }
    }

    fn unary(&mut self, function: Unary, x: &Value) -> Result<Value> {
        let out = match function {
            Unary::Silu => x.0.f_silu(),
            Unary::Gelu => x.0.f_gelu("none"),
            Unary::Log => x.0.f_log(),
            Unary::Sqrt => x.0.f_sqrt(),
            Unary::Cos => x.0.f_cos(),
            Unary::Sin => x.0.f_sin(),
        };
        self.value(function.name(), out)
    }

    fn binary(&mut self, function: Binary, a: &Value, b: &Value) -> Result<Value> {
        let out = match function {
            Binary::Add => a.0.f_add(&b.0),
            Binary::Mul => a.0.f_mul(&b.0),
            Binary::Div => a.0.f_div(&b.0),
        };
        self.value(function.name(), out)
    }

    fn clamp(&mut self, x: &Value, low: f64, high: f64) -> Result<Value> {
        let out = if high.is_infinite() { x.0.f_clamp_min(low) } else { x.0.f_clamp(low, high) };
        self.value("clamp", out)
    }

    fn leaky_relu(&mut self, x: &Value, slope: f64) -> Result<Value> {
        let run = || x.0.f_prelu(&Tensor::f_full([1], slope, (x.0.kind(), x.0.device()))?);
        self.value("leaky_relu", run())
    }

    fn scale(&mut self, x: &Value, factor: f64) -> Result<Value> {
        self.value("scale", x.0.f_mul_scalar(factor))
    }

    fn offset(&mut self, x: &Value, term: f64) -> Result<Value> {
        self.value("offset", x.0.f_add_scalar(term))
    }

    fn softmax(&mut self, x: &Value, axis: usize) -> Result<Value> {
        self.value("softmax", x.0.f_softmax(int(axis), Kind::Float))
    }

    fn mean(&mut self, x: &Value, axes: &[usize], keep: bool) -> Result<Value> {
        self.value("mean", x.0.f_mean_dim(ints(axes).as_slice(), keep, Kind::Float))
    }

    fn concat(&mut self, parts: &[Value], axis: usize) -> Result<Value> {
        let parts: Vec<&Tensor> = parts.iter().map(|p| &p.0).collect();
        self.value("concat", Tensor::f_cat(&parts, int(axis)))
    }

    fn slice(&mut self, x: &Value, axis: usize, start: usize, len: usize) -> Result<Value> {
        self.value("slice", x.0.f_narrow(int(axis), int(start), int(len)))
    }

    fn reshape(&mut self, x: &Value, dims: &[i64]) -> Result<Value> {
        self.value("reshape", x.0.f_reshape(dims))
    }

    fn transpose(&mut self, x: &Value, perm: &[usize]) -> Result<Value> {
        self.value("transpose", x.0.f_permute(ints(perm)))
    }

    fn resize_bilinear(&mut self, x: &Value, size: [usize; 2], sampling: Sampling) -> Result<Value> {
        let aligned = sampling == Sampling::AlignCorners;
        // The gradient of libtorch's own adds atomically on CUDA, in whatever order threads come.
        let resized = if sampling == Sampling::Asymmetric || Numerics::current().deterministic {
            resize_by_products(&x.0, size, sampling)
        } else {
            x.0.f_upsample_bilinear2d(size.map(int), aligned, None, None)
        };
        self.value("resize_bilinear", resized)
    }

    fn cast(&mut self, cast: Cast, x: &Value) -> Result<Value> {
        let out = match cast {
            Cast::ToF32 => x.0.f_to_kind(Kind::Float),
            Cast::ToU8 => x.0.f_clamp(0.0, 255.0).and_then(|x| x.f_to_kind(Kind::Uint8)),
        };
        self.value("cast", out)
    }
}

/// Operations of training alone.
impl LibTorch {
    /// Tensor `scope.name` that is not trained by gradients.
    ///
    /// # Errors
    /// Those of [`Weights::take`].
    pub fn state(&mut self, scope: &Scope, name: &str, dims: &[usize], init: &Init) -> Result<Value> {
        self.named(scope, name, dims, init, Role::State)
    }

    /// Normalises each channel of `x [N, C, H, W]` with the statistics of this batch (biased variance), then scales and shifts it.
    ///
    /// # Errors
    /// `Engine`.
    pub fn batch_norm(&mut self, x: &Value, eps: f64, weight: &Value, bias: &Value) -> Result<Value> {
        let none: Option<&Tensor> = None;
        self.value("batch_norm", x.0.f_batch_norm(Some(&weight.0), Some(&bias.0), none, none, true, 0.1, eps, true))
    }

    /// `w [O, ..]` divided by `uᵀ W v`, its spectral norm as `u [O]` and `v [I·k·k]` estimate it.
    ///
    /// In training mode `u` and `v` first advance by one power iteration (Miyato et al. 2018; eps 1e-12).
    ///
    /// # Errors
    /// `Engine`.
    pub fn spectral_norm(&mut self, w: &Value, u: &Value, v: &Value) -> Result<Value> {
        let run = || {
            let matrix = w.0.f_reshape([w.0.size()[0], -1])?;
            if self.train {
                let _guard = tch::no_grad_guard();
                let unit = |x: Tensor| -> Result<Tensor, TchError> {
                    let norm = x.f_norm()?.f_clamp_min(1e-12)?;
                    x.f_div(&norm)
                };
                v.0.shallow_clone().f_copy_(&unit(matrix.f_tr()?.f_mv(&u.0)?)?)?;
                u.0.shallow_clone().f_copy_(&unit(matrix.f_mv(&v.0)?)?)?;
            }
            // Copies: a later power iteration must not change what autograd keeps.
            let (u, v) = (u.0.copy(), v.0.copy());
            let sigma = u.f_dot(&matrix.f_mv(&v)?)?;
            w.0.f_div(&sigma)
        };
        self.value("spectral_norm", run())
    }

    /// Mean and unbiased variance of each channel of `x [N, C, H, W]`, over N, H and W.
    ///
    /// # Errors
    /// `Engine`.
    pub fn channel_statistics(&mut self, x: &Value) -> Result<(Vec<f32>, Vec<f32>)> {
        let axes: &[i64] = &[0, 2, 3];
        let run = || {
            let variances = x.0.f_var_dim(axes, true, false)?;
            Ok((values_of(&x.0.f_mean_dim(axes, false, Kind::Float)?)?, values_of(&variances)?))
        };
        self.ok("channel_statistics", run())
    }
}
