//! A checkpoint's network on libtorch, run as a session.

use std::path::Path;

use anyhow::Context as _;
use d2o_converters::nn::precond::{Denoiser, Sigma};
use d2o_converters::weights::Weights;
use d2o_converters::{Checkpoint, Network};
use d2o_onnx::read::ModelInfo;
use d2o_runtime::{Session, Tensor, TensorView};
use ndarray::ArrayD;
use tch::{Device, TchError};

use super::libtorch::{LibTorch, Value, tensor_of, values_of};

const NAME: &str = "libtorch";

/// A denoiser laid out from its checkpoint, with the inputs and outputs of the graph exported from it.
pub struct LibTorchSession {
    info: ModelInfo,
    net: Denoiser<Value>,
    /// Noise level of a one-step generator; `None` for a denoiser.
    sigma_max: Option<f64>,
}

impl LibTorchSession {
    /// Lays out the network `ema` of `checkpoint` for the inputs and outputs of the graph at `model`.
    ///
    /// # Errors
    /// A checkpoint without a denoiser; one of another class than the graph's; a graph of another kind.
    pub fn open(model: &Path, checkpoint: &Path) -> anyhow::Result<Self> {
        let describe = || format!("cannot run `{}` on libtorch", checkpoint.display());
        let opened = Checkpoint::open(checkpoint).with_context(describe)?;
        let network = opened.network(None).with_context(describe)?;
        Self::of(model, network).with_context(describe)
    }

    /// Lays out `network` for the inputs and outputs of the graph at `model`.
    ///
    /// # Errors
    /// A network that is no denoiser, or of another class than the graph's; a graph of another kind.
    pub fn of(model: &Path, network: &Network) -> anyhow::Result<Self> {
        let mut info = ModelInfo::open(model)?;
        let config = network.denoiser_config()?;
        let (name, sigma_max) = match info.metadata.get("kind").map(String::as_str) {
            Some("one-step") => {
                let sigma = info.metadata.get("sigma_max").context("the graph does not say where it starts from")?;
                ("images", Some(sigma.parse().context("`sigma_max`")?))
            }
            Some("denoiser") => ("denoised", None),
            kind => anyhow::bail!("libtorch runs denoisers and one-step generators, the graph is of kind {kind:?}"),
        };
        let class = info.metadata.get("class").map(String::as_str);
        anyhow::ensure!(class == Some(config.class()), "the graph holds {class:?}, the checkpoint {}", config.class());
        let tensors = Box::new(std::sync::Arc::clone(&network.tensors));
        let mut b = LibTorch::with_weights(Weights::checkpoint(tensors, ""), Device::Cpu);
        let net = Denoiser::build(&mut b, config)?;
        b.finish()?;
        info.outputs.retain(|o| o.name == name);
        Ok(Self { info, net, sigma_max })
    }

    fn forward(&self, inputs: &[(&str, TensorView<'_>)]) -> Result<Tensor, Box<dyn std::error::Error + Send + Sync>> {
        let _no_grad = tch::no_grad_guard();
        let value = |name: &str| -> Result<Option<Value>, TchError> {
            let found = inputs.iter().find(|(n, _)| *n == name).and_then(|(_, t)| t.as_f32());
            let as_value = |a: ndarray::ArrayViewD<'_, f32>| {
                tensor_of(a.as_standard_layout().as_slice().unwrap_or(&[]), a.shape(), Device::Cpu).map(Value)
            };
            found.map(as_value).transpose()
        };
        let needed = |name: &str, v: Option<Value>| v.ok_or_else(|| format!("input `{name}` is missing"));
        let labels = value("class_labels")?;
        let mut b = LibTorch::running(Device::Cpu, false);
        let out = match self.sigma_max {
            Some(sigma) => self.net.one_step(&mut b, &needed("latents", value("latents")?)?, sigma, labels.as_ref())?,
            None => {
                let sigma = Sigma::PerImage(needed("sigma", value("sigma")?)?);
                self.net.denoise(&mut b, &needed("x", value("x")?)?, &sigma, labels.as_ref())?
            }
        };
        let dims: Vec<usize> = out.0.size().iter().map(|d| usize::try_from(*d)).collect::<Result<_, _>>()?;
        Ok(Tensor::F32(ArrayD::from_shape_vec(dims, values_of(&out.0)?)?))
    }
}

impl Session for LibTorchSession {
    fn runtime(&self) -> &str {
        NAME
    }

    fn model(&self) -> &ModelInfo {
        &self.info
    }

    fn run(&mut self, inputs: &[(&str, TensorView<'_>)]) -> d2o_runtime::Result<Vec<Tensor>> {
        let failed =
            |source| d2o_runtime::Error::Runtime { runtime: NAME.to_owned(), action: "run".to_owned(), source };
        let out = self.forward(inputs).map_err(failed)?;
        Ok(self.info.outputs.iter().map(|_| out.clone()).collect())
    }
}
