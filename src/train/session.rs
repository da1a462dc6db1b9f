//! A session that runs the network of a checkpoint on libtorch: a forward pass independent of the exported graph.

use std::path::Path;

use anyhow::Context as _;
use d2o_converters::backend::{Backend as _, Cast};
use d2o_converters::denoiser::{Denoiser, Sigma};
use d2o_converters::export::quantised;
use d2o_converters::extractors::{Activation, Hyperparameters, Named};
use d2o_converters::generators::latent::SynthesisOptions;
use d2o_converters::preprocess::{Preprocessing, channels_first};
use d2o_converters::registry::{ExtractorNet, LatentNet};
use d2o_converters::{Architecture, Checkpoint, Network};
use d2o_onnx::metadata::{Kind, Metadata, Noise, Quantiser};
use d2o_onnx::read::ModelInfo;
use d2o_runtime::{Session, Tensor, TensorView};
use ndarray::ArrayD;
use tch::Device;

use super::libtorch::{LibTorch, Value, tensor_of, values_of};

const NAME: &str = "libtorch";

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// A network built from its checkpoint, with the inputs and outputs of the graph exported from it.
pub struct LibTorchSession {
    info: ModelInfo,
    quantiser: Quantiser,
    net: Net,
}

#[allow(clippy::large_enum_variant, reason = "one per session")]
enum Net {
    /// A denoiser, or a one-step generator with its `sigma_max`.
    Denoiser(Denoiser<Value>, Option<f64>),
    Generator(LatentNet<Value>, SynthesisOptions),
    Extractor(ExtractorNet<Value>, Preprocessing, usize),
}

impl LibTorchSession {
    /// Builds the network `ema` of `checkpoint` for the inputs and outputs of the graph at `model`.
    ///
    /// # Errors
    /// If the checkpoint is unreadable or has another network than the graph, or d2o did not export the graph.
    pub fn open(model: &Path, checkpoint: &Path) -> anyhow::Result<Self> {
        let describe = || format!("cannot run `{}` on libtorch", checkpoint.display());
        let opened = Checkpoint::open(checkpoint).with_context(describe)?;
        let network = opened.network(None).with_context(describe)?;
        Self::of(model, network).with_context(describe)
    }

    /// Builds `network` for the inputs and outputs of the graph at `model`.
    ///
    /// # Errors
    /// If `network` is not that of the graph, or d2o did not export the graph.
    pub fn of(model: &Path, network: &Network) -> anyhow::Result<Self> {
        let info = ModelInfo::open(model)?;
        let metadata = info.described().with_context(|| format!("cannot use `{}`", model.display()))?;
        let weights = network.weights();
        let mut b = LibTorch::with_weights(weights, Device::Cpu);
        let net = match metadata.kind {
            Some(Kind::OneStep | Kind::Denoiser) => Self::generator(&mut b, network, &metadata)?,
            Some(Kind::Features) => Self::extractor(&mut b, network, &metadata)?,
            kind => anyhow::bail!("expected a graph of a generator, denoiser or feature extractor, found {kind:?}"),
        };
        b.finish()?;
        Ok(Self { info, quantiser: metadata.quantiser.unwrap_or(Quantiser::Edm), net })
    }

    fn generator(b: &mut LibTorch, network: &Network, metadata: &Metadata) -> anyhow::Result<Net> {
        let same = |class: &str| {
            let found = metadata.class.as_deref();
            anyhow::ensure!(found == Some(class), "the graph contains {found:?}, the checkpoint {class}");
            Ok(())
        };
        if let Architecture::Generator(generator) = &network.architecture {
            same(generator.class())?;
            let options = SynthesisOptions {
                truncation_psi: metadata.truncation_psi.unwrap_or(1.0),
                truncation_cutoff: metadata.truncation_cutoff,
                noise: metadata.noise != Some(Noise::None),
            };
            return Ok(Net::Generator(generator.build(b)?, options));
        }
        let config = network.architecture.denoiser()?;
        same(config.class())?;
        let sigma_max = match metadata.kind {
            Some(Kind::OneStep) => {
                Some(metadata.sigma_max.context("the graph does not record its initial noise level (`sigma_max`)")?)
            }
            _ => None,
        };
        Ok(Net::Denoiser(Denoiser::build(b, &config)?, sigma_max))
    }

    fn extractor(b: &mut LibTorch, network: &Network, metadata: &Metadata) -> anyhow::Result<Net> {
        let Architecture::Extractor(extractor) = &network.architecture else {
            anyhow::bail!("the checkpoint contains {}, the graph a feature extractor", network.architecture.name());
        };
        let activation = metadata.activation.as_deref().and_then(Activation::named);
        let given = Hyperparameters { activation, head_width: metadata.head_width };
        let extractor = extractor.clone().completed(&given)?;
        let (found, name) = (metadata.extractor.as_deref(), extractor.name());
        anyhow::ensure!(found == Some(&name), "the graph contains {found:?}, the checkpoint {name}");
        let size = metadata.input_size.unwrap_or_else(|| extractor.input_size());
        let net = extractor.build(b, size)?;
        Ok(Net::Extractor(net, extractor.preprocessing(), size))
    }

    fn forward(&self, inputs: &[(&str, TensorView<'_>)]) -> Result<Vec<Tensor>, Failure> {
        let _no_grad = tch::no_grad_guard();
        let given = |name: &str| inputs.iter().find(|(n, _)| *n == name).map(|(_, t)| value(t)).transpose();
        let needed = |name: &str| given(name)?.ok_or_else(|| Failure::from(format!("input `{name}` is missing")));
        let mut b = LibTorch::running(Device::Cpu, false);
        let outputs: Named<Value> = match &self.net {
            Net::Denoiser(net, Some(sigma)) => {
                let labels = given("class_labels")?;
                let images = net.one_step(&mut b, &needed("latents")?, *sigma, labels.as_ref())?;
                self.with_bytes(&mut b, "images", images)?
            }
            Net::Denoiser(net, None) => {
                let (labels, sigma) = (given("class_labels")?, Sigma::PerImage(needed("sigma")?));
                let denoised = net.denoise(&mut b, &needed("x")?, &sigma, labels.as_ref())?;
                self.with_bytes(&mut b, "denoised", denoised)?
            }
            Net::Generator(net, options) => {
                let labels = given("class_labels")?;
                let images = net.forward(&mut b, &needed("latents")?, labels.as_ref(), options)?;
                self.with_bytes(&mut b, "images", images)?
            }
            Net::Extractor(net, preprocessing, size) => {
                let x = match given("images_u8")? {
                    Some(bytes) => channels_first(&mut b, &bytes, true)?,
                    None => channels_first(&mut b, &needed("images_f32")?, false)?,
                };
                let x = preprocessing.apply(&mut b, &x, *size)?;
                net.forward(&mut b, &x, true)?
            }
        };
        let wanted = |name: &str| outputs.iter().find(|(n, _)| n == name);
        self.info
            .outputs
            .iter()
            .map(|o| {
                let (_, value) = wanted(&o.name).ok_or_else(|| format!("the network has no output `{}`", o.name))?;
                tensor(value)
            })
            .collect()
    }

    /// The output `images` with the name `name`, and their bytes if the graph has this output.
    fn with_bytes(&self, b: &mut LibTorch, name: &str, images: Value) -> Result<Named<Value>, Failure> {
        let mut outputs = Vec::new();
        if self.info.output("images_u8").is_some() {
            outputs.push(("images_u8".to_owned(), quantised(b, &images, self.quantiser)?));
        }
        outputs.push((name.to_owned(), images));
        Ok(outputs)
    }
}

/// `tensor` as a libtorch tensor on the CPU.
fn value(tensor: &TensorView<'_>) -> Result<Value, Failure> {
    let values: Vec<f32> = match tensor {
        TensorView::F32(a) => a.iter().copied().collect(),
        TensorView::U8(a) => a.iter().map(|v| f32::from(*v)).collect(),
        other => return Err(format!("expected an input of f32 or u8, found {}", other.element()).into()),
    };
    let on_cpu = Value(tensor_of(&values, tensor.dims(), Device::Cpu)?);
    Ok(match tensor {
        TensorView::U8(_) => LibTorch::running(Device::Cpu, false).cast(Cast::ToU8, &on_cpu)?,
        _ => on_cpu,
    })
}

fn tensor(value: &Value) -> Result<Tensor, Failure> {
    let dims: Vec<usize> = value.0.size().iter().map(|d| usize::try_from(*d)).collect::<Result<_, _>>()?;
    let bytes = value.0.kind() == tch::Kind::Uint8;
    let values = ArrayD::from_shape_vec(dims, values_of(&value.0)?)?;
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "values of bytes")]
    Ok(if bytes { Tensor::U8(values.mapv(|v| v as u8)) } else { Tensor::F32(values) })
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
        self.forward(inputs).map_err(failed)
    }
}
