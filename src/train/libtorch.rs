//! `Backend` on libtorch: operations run immediately, with autograd.

use d2o_converters::backend::{Backend, Binary, Cast, Conv2d, Pool, PoolKind, Sampling, Unary};
use d2o_converters::error::{Error, Result};
use d2o_converters::weights::{Init, LoadReport, Scope, Weights};
use d2o_onnx::ops::interpolation;
use tch::{Device, Kind, TchError, Tensor};

use super::convolution;
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
    /// Trained by gradients.
    Param,
    /// Updated by the network itself, or never changed.
    State,
    /// A constant from which the network was built.
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

/// The backend: weights to build networks, and a mode to run them. It computes in f32 unless [`LibTorch::in_kind`] sets
/// another type.
#[derive(Debug)]
pub struct LibTorch {
    device: Device,
    kind: Kind,
    frozen: bool,
    mixed: bool,
    weights: Option<Weights>,
    tensors: Vec<Named>,
    scope: Scope,
    train: bool,
}

impl LibTorch {
    /// A backend that builds a network from `weights` on `device`.
    #[must_use]
    pub fn with_weights(weights: Weights, device: Device) -> Self {
        let (tensors, scope) = (Vec::new(), Scope::root());
        Self {
            device,
            kind: Kind::Float,
            frozen: false,
            mixed: false,
            weights: Some(weights),
            tensors,
            scope,
            train: false,
        }
    }

    /// Whether it runs networks in training mode.
    #[must_use]
    pub fn trains(&self) -> bool {
        self.train
    }

    /// A backend that runs networks. `train` turns on dropout and the power iterations of spectral norm.
    #[must_use]
    pub fn running(device: Device, train: bool) -> Self {
        let (tensors, scope) = (Vec::new(), Scope::root());
        Self { device, kind: Kind::Float, frozen: false, mixed: false, weights: None, tensors, scope, train }
    }

    /// The backend with another element type, for tensors that it takes from now on.
    #[must_use]
    pub fn in_kind(self, kind: Kind) -> Self {
        Self { kind, ..self }
    }

    /// The backend with parameters that require no gradients.
    #[must_use]
    pub fn frozen(self) -> Self {
        Self { frozen: true, ..self }
    }

    /// Sets whether convolutions and the operations between them compute in bf16, as in D2O's networks on CUDA.
    /// Weights, embeddings, group norm and the logits of attention stay in f32.
    pub fn set_mixed(&mut self, on: bool) {
        self.mixed = on;
    }

    /// Element type of its tensors.
    #[must_use]
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Device of its tensors.
    #[must_use]
    pub fn device(&self) -> Device {
        self.device
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
        let tensor = tensor_of(&values, dims, self.device).and_then(|t| t.f_to_kind(self.kind));
        let tensor = self.ok("tensor", tensor)?.set_requires_grad(role == Role::Param && !self.frozen);
        self.tensors.push(Named { path: scope.key(name), tensor: tensor.shallow_clone(), role });
        Ok(Value(tensor))
    }

    pub(super) fn ok<T>(&self, op: &'static str, result: Result<T, TchError>) -> Result<T> {
        result.map_err(|e| Error::Engine { scope: self.scope.to_string(), op, source: Box::new(e) })
    }

    fn value(&self, op: &'static str, result: Result<Tensor, TchError>) -> Result<Value> {
        self.ok(op, result).map(Value)
    }
}

/// `data`, row-major, as an f32 tensor of shape `dims` on `device`.
///
/// # Errors
/// If `data` does not fill `dims`, or libtorch fails.
pub fn tensor_of(data: &[f32], dims: &[usize], device: Device) -> Result<Tensor, TchError> {
    Tensor::f_from_slice(data)?.f_reshape(ints(dims))?.f_to_device(device)
}

/// The values of `tensor`, row-major, as f32.
///
/// # Errors
/// If libtorch fails.
pub fn values_of(tensor: &Tensor) -> Result<Vec<f32>, TchError> {
    let flat = tensor.detach().f_to_device(Device::Cpu)?.f_to_kind(Kind::Float)?.f_contiguous()?.f_view([-1])?;
    let mut values = vec![0.0; flat.numel()];
    let count = values.len();
    flat.f_copy_data(&mut values, count)?;
    Ok(values)
}

/// Bilinear resizing by products with the same matrices as in exported graphs.
fn resize_by_products(x: &Tensor, [tall, wide]: [usize; 2], sampling: Sampling) -> Result<Tensor, TchError> {
    let matrix = |from: i64, to: usize| {
        let from = usize::try_from(from).unwrap_or_default();
        tensor_of(&interpolation(from, to, sampling), &[to, from], x.device())?.f_to_kind(x.kind())
    };
    let (_, _, height, width) = x.size4()?;
    let x = if width == int(wide) { x.shallow_clone() } else { x.f_matmul(&matrix(width, wide)?.f_tr()?)? };
    if height == int(tall) { Ok(x) } else { matrix(height, tall)?.f_matmul(&x) }
}

fn to_f32(x: &Tensor) -> Result<Tensor, TchError> {
    x.f_to_kind(Kind::Float)
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

    fn constant<T: Into<f64>>(&mut self, _scope: &Scope, _name: &str, dims: &[usize], data: Vec<T>) -> Result<Value> {
        let data: Vec<f64> = data.into_iter().map(Into::into).collect();
        let tensor = Tensor::f_from_slice(&data).and_then(|t| t.f_reshape(ints(dims)));
        self.value("constant", tensor.and_then(|t| t.f_to_kind(self.kind)?.f_to_device(self.device)))
    }

    fn in_f64(&self) -> bool {
        self.kind == Kind::Double
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
        let kind = if self.mixed { Kind::BFloat16 } else { x.0.kind() };
        let run = |x: &Tensor, pad: [i64; 2]| {
            let bias = bias.map(|b| b.0.f_to_kind(kind)).transpose()?;
            let w = w.0.f_to_kind(kind)?;
            if self.train
                && stride == 1
                && options.groups == 1
                && let Some(out) = convolution::conv2d(x, &w, bias.as_ref(), pad)?
            {
                return Ok(out);
            }
            x.f_conv2d(&w, bias, [stride, stride], pad, [1, 1], int(options.groups))
        };
        let out = x.0.f_to_kind(kind).and_then(|x| match top == bottom && left == right {
            true => run(&x, [top, left]),
            false => run(&x.f_constant_pad_nd([left, right, top, bottom])?, [0, 0]),
        });
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
        let out = w.0.f_to_kind(x.0.kind()).and_then(|w| {
            x.0.f_conv_transpose2d(&w, none, [stride, stride], [pad, pad], [0, 0], int(options.groups), [1, 1])
        });
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
        // As in the original, in mixed precision the first product of attention is computed in f32 and the second in
        // bf16.
        let (a, b) = (&a.0, &b.0);
        let out = match (a.kind(), b.kind()) {
            (Kind::BFloat16, Kind::BFloat16) => to_f32(a).and_then(|a| a.f_matmul(&to_f32(b)?)),
            (Kind::BFloat16, _) => b.f_to_kind(Kind::BFloat16).and_then(|b| a.f_matmul(&b)),
            _ => a.f_matmul(b),
        };
        self.value("matmul", out)
    }

    fn group_norm(&mut self, x: &Value, groups: usize, eps: f64, weight: &Value, bias: &Value) -> Result<Value> {
        let run = |x: &Tensor| x.f_group_norm(int(groups), Some(&weight.0), Some(&bias.0), eps, true);
        let out = match x.0.kind() {
            Kind::BFloat16 => to_f32(&x.0).and_then(|f32| run(&f32)?.f_to_kind(Kind::BFloat16)),
            _ => run(&x.0),
        };
        self.value("group_norm", out)
    }

    fn layer_norm(&mut self, x: &Value, eps: f64, weight: &Value, bias: &Value) -> Result<Value> {
        let rows = x.0.f_layer_norm(weight.0.size(), Some(&weight.0), Some(&bias.0), eps, true);
        self.value("layer_norm", rows)
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
        // At its bounds, `clamp` passes the gradient, while `relu` and `relu6` do not.
        let out = match (low, high) {
            (0.0, f64::INFINITY) => x.0.f_relu(),
            (0.0, 6.0) => x.0.f_relu6(),
            (_, f64::INFINITY) => x.0.f_clamp_min(low),
            _ => x.0.f_clamp(low, high),
        };
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
        self.value("softmax", x.0.f_softmax(int(axis), x.0.kind()))
    }

    fn mean(&mut self, x: &Value, axes: &[usize], keep: bool) -> Result<Value> {
        self.value("mean", x.0.f_mean_dim(ints(axes).as_slice(), keep, x.0.kind()))
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
        // libtorch's gradient uses atomic additions on CUDA, in an order that varies.
        let resized = if sampling == Sampling::Asymmetric || Numerics::current().deterministic {
            resize_by_products(&x.0, size, sampling)
        } else {
            x.0.f_upsample_bilinear2d(size.map(int), aligned, None, None)
        };
        self.value("resize_bilinear", resized)
    }

    fn like(&mut self, x: &Value, other: &Value) -> Result<Value> {
        self.value("like", x.0.f_to_kind(other.0.kind()))
    }

    fn cast(&mut self, cast: Cast, x: &Value) -> Result<Value> {
        let out = match cast {
            Cast::ToF32 => x.0.f_to_kind(Kind::Float),
            Cast::ToU8 => x.0.f_clamp(0.0, 255.0).and_then(|x| x.f_to_kind(Kind::Uint8)),
        };
        self.value("cast", out)
    }
}

/// Operations used only in training.
impl LibTorch {
    /// Tensor `scope.name` that is not trained by gradients.
    ///
    /// # Errors
    /// The errors of [`Weights::take`].
    pub fn state(&mut self, scope: &Scope, name: &str, dims: &[usize], init: &Init) -> Result<Value> {
        self.named(scope, name, dims, init, Role::State)
    }

    /// Normalises each channel of `x [N, C, H, W]` with the statistics of this batch (biased variance), then scales and
    /// shifts it. `running` has the running mean and (unbiased) variance, which move by the share `momentum` towards
    /// those of the batch.
    ///
    /// # Errors
    /// `Engine` if libtorch fails.
    pub fn batch_norm(
        &mut self,
        x: &Value,
        eps: f64,
        weight: &Value,
        bias: &Value,
        running: Option<(&Value, &Value, f64)>,
    ) -> Result<Value> {
        let (mean, variance) = (running.map(|(mean, _, _)| &mean.0), running.map(|(_, variance, _)| &variance.0));
        let momentum = running.map_or(0.0, |(_, _, momentum)| momentum);
        let out = x.0.f_batch_norm(Some(&weight.0), Some(&bias.0), mean, variance, true, momentum, eps, true);
        self.value("batch_norm", out)
    }

    /// The values of `x`, row-major.
    ///
    /// # Errors
    /// `Engine` if libtorch fails.
    pub fn values(&self, x: &Value) -> Result<Vec<f64>> {
        let run = || {
            Vec::try_from(x.0.detach().f_to_device(Device::Cpu)?.f_to_kind(Kind::Double)?.f_contiguous()?.f_view([-1])?)
        };
        self.ok("values", run())
    }

    /// `w [O, ..]` divided by `uᵀ W v`, the estimate of its spectral norm from `u [O]` and `v [I·k·k]`.
    ///
    /// In training mode `u` and `v` first advance by one power iteration (Miyato et al. 2018; eps 1e-12).
    ///
    /// # Errors
    /// `Engine` if libtorch fails.
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
}

#[cfg(test)]
mod tests {
    use super::*;

    fn doubles(tensor: &Tensor) -> Vec<f64> {
        Vec::try_from(tensor.to_kind(Kind::Double)).unwrap()
    }

    /// Value and first and second derivative of `f` at `points`, by reverse differentiation.
    fn derivatives(points: &[f64], f: impl Fn(&mut LibTorch, &Value) -> Result<Value>) -> [Vec<f64>; 3] {
        let mut b = LibTorch::running(Device::Cpu, true).in_kind(Kind::Double);
        let x = Tensor::from_slice(points).set_requires_grad(true);
        let y = f(&mut b, &Value(x.shallow_clone())).unwrap().0;
        let first = Tensor::run_backward(&[y.sum(Kind::Double)], &[&x], true, true).remove(0);
        // libtorch crashes on a sum that depends on nothing.
        assert!(first.requires_grad(), "the first derivative has no derivative");
        let second = Tensor::run_backward(&[first.sum(Kind::Double)], &[&x], false, false).remove(0);
        assert!(second.defined(), "the second derivative is undefined");
        [doubles(&y), doubles(&first), doubles(&second)]
    }

    #[test]
    fn gradients_at_kinks_are_those_of_torchs_own_layers() {
        const POINTS: [f64; 6] = [-1.0, -0.0, 0.0, 3.0, 6.0, 7.0];
        let relu = derivatives(&POINTS, |b, x| b.clamp(x, 0.0, f64::INFINITY));
        assert_eq!(relu, [vec![0.0, 0.0, 0.0, 3.0, 6.0, 7.0], vec![0.0, 0.0, 0.0, 1.0, 1.0, 1.0], vec![0.0; 6]]);
        let relu6 = derivatives(&POINTS, |b, x| b.clamp(x, 0.0, 6.0));
        assert_eq!(relu6, [vec![0.0, 0.0, 0.0, 3.0, 6.0, 6.0], vec![0.0, 0.0, 0.0, 1.0, 0.0, 0.0], vec![0.0; 6]]);
        let leaky = derivatives(&POINTS, |b, x| b.leaky_relu(x, 0.2));
        assert_eq!(leaky, [vec![-0.2, 0.0, 0.0, 3.0, 6.0, 7.0], vec![0.2, 0.2, 0.2, 1.0, 1.0, 1.0], vec![0.0; 6]]);
    }

    /// The R1 penalty is a function of first derivatives, so the slopes at kinks affect its gradient.
    #[test]
    fn second_derivatives_at_kinks_use_the_slopes_of_the_first() {
        let x = Tensor::from_slice(&[-2.0, 0.0, 2.0]).set_requires_grad(true);
        let w = Tensor::from_slice(&[3.0]).to_kind(Kind::Double).set_requires_grad(true);
        let mut b = LibTorch::running(Device::Cpu, true).in_kind(Kind::Double);
        let y = b.leaky_relu(&Value(&x * &w), 0.2).unwrap().0;
        let first = Tensor::run_backward(&[y.sum(Kind::Double)], &[&x], true, true).remove(0);
        // Each is slope·w, so its derivative by w is the slope.
        for (i, slope) in [0.2, 0.2, 1.0].into_iter().enumerate() {
            let by_w = Tensor::run_backward(&[first.get(i64::try_from(i).unwrap())], &[&w], true, false).remove(0);
            assert_eq!(doubles(&by_w), [slope], "{i}");
        }
    }

    #[test]
    fn networks_compute_in_the_kind_asked_for() {
        let weights = || Weights::initialised(3);
        let build = |kind| {
            let mut b = LibTorch::with_weights(weights(), Device::Cpu).in_kind(kind);
            let w = b.param(&Scope::root(), "w", &[2, 3], &Init::Normal { std: 1.0 }).unwrap();
            let third = b.constant(&Scope::root(), "third", &[1], vec![1.0 / 3.0]).unwrap();
            (w.0, third.0)
        };
        let ((single, third), (double, exact)) = (build(Kind::Float), build(Kind::Double));
        assert_eq!((double.kind(), exact.kind()), (Kind::Double, Kind::Double));
        assert_eq!(doubles(&single.flatten(0, 1)), doubles(&double.flatten(0, 1)));
        assert_eq!((doubles(&third), doubles(&exact)), (vec![f64::from(1.0_f32 / 3.0)], vec![1.0 / 3.0]));
        let mut frozen = LibTorch::with_weights(weights(), Device::Cpu).frozen();
        assert!(!frozen.param(&Scope::root(), "w", &[2], &Init::Constant(1.0)).unwrap().0.requires_grad());
    }
}
