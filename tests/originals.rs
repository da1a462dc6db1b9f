//! One full-size checkpoint of an original project on every engine, for `cargo xtask originals`, which names it in `D2O_ORIGINAL`.
#![allow(missing_docs, clippy::unwrap_used, clippy::print_stdout, clippy::cast_possible_truncation, reason = "a test")]

use std::path::{Path, PathBuf};

use d2o_refs::npz::Npz;
use d2o_runtime::ort::{OrtOptions, OrtRuntime, Provider};
use d2o_runtime::tract::TractSession;
use d2o_runtime::{Session, Tensor, TensorView};
use ndarray::ArrayD;
use serde_json::{Value, json};
use test_support::{Tol, compare};

struct Case {
    /// What originals.py wrote: NAME.json, NAME.npz and the checkpoint; the graph NAME.onnx lies beside them.
    json: PathBuf,
    facts: Value,
    tol: Tol,
}

impl Case {
    fn open(json: PathBuf) -> Self {
        let facts: Value = serde_json::from_slice(&fs_err::read(&json).unwrap()).unwrap();
        let tol = if facts["inputs"].get("images_u8").is_some() { Tol::Features } else { Tol::Parity };
        Self { json, facts, tol }
    }

    fn beside(&self, ending: &str) -> PathBuf {
        self.json.with_extension(ending)
    }

    /// The arrays that `role` ("inputs", "outputs") names, as (name in the graph, array).
    fn arrays(&self, role: &str) -> Vec<(String, ArrayD<f32>)> {
        let mut npz = Npz::open(&self.beside("npz")).unwrap();
        let named = self.facts[role].as_object().unwrap().iter();
        named.map(|(name, array)| (name.clone(), npz.f32(array.as_str().unwrap()).unwrap())).collect()
    }

    /// Compares `found` with what the original gave and says how far it lies off.
    fn judge(&self, runtime: &str, found: &[(String, Vec<f32>)], faults: &mut Vec<String>) {
        let mut worst = 0.0_f64;
        for (name, expected) in self.arrays("outputs") {
            let (_, values) = found.iter().find(|(n, _)| *n == name).unwrap_or_else(|| panic!("no output `{name}`"));
            let expected: Vec<f32> = expected.iter().copied().collect();
            match compare(values, &expected, self.tol) {
                Ok(relative) => worst = worst.max(relative),
                Err(text) => {
                    worst = f64::INFINITY;
                    faults.push(format!("{runtime} `{name}`: {text}"));
                }
            }
        }
        println!("original: {}", json!({"runtime": runtime, "relative": worst.is_finite().then_some(worst)}));
    }
}

fn pixels(values: &ArrayD<f32>) -> ArrayD<u8> {
    #[allow(clippy::cast_sign_loss, reason = "bytes, stored as such")]
    values.mapv(|v| v as u8)
}

fn sessions(path: &Path) -> Vec<Box<dyn FnOnce() -> Box<dyn Session> + '_>> {
    let mut all: Vec<Box<dyn FnOnce() -> Box<dyn Session>>> =
        vec![Box::new(move || Box::new(TractSession::open(path, Some(1)).unwrap()))];
    match test_support::onnxruntime() {
        None => println!("skipped: ONNX Runtime (D2O_ONNXRUNTIME is not set)"),
        Some(library) => all.push(Box::new(move || {
            let options = OrtOptions::new(Provider::Cpu, Some(1));
            Box::new(OrtRuntime::load(&library).unwrap().session(path, &options).unwrap())
        })),
    }
    all
}

#[test]
fn the_named_checkpoint_computes_what_its_project_does() {
    let Some(json) = std::env::var_os("D2O_ORIGINAL") else {
        println!("skipped: full-size originals (`cargo xtask originals`)");
        return;
    };
    let case = Case::open(json.into());
    let inputs: Vec<(String, Tensor)> = case
        .arrays("inputs")
        .into_iter()
        .map(|(n, a)| if n == "images_u8" { (n, Tensor::U8(pixels(&a))) } else { (n, Tensor::F32(a)) })
        .collect();
    let given: Vec<(&str, TensorView<'_>)> = inputs.iter().map(|(n, t)| (n.as_str(), t.into())).collect();
    let mut faults = Vec::new();
    // One after the other, so that only one holds the weights.
    for open in sessions(&case.beside("onnx")) {
        let mut session = open();
        let outputs = session.run(&given).unwrap();
        let found: Vec<(String, Vec<f32>)> = session
            .model()
            .output_names()
            .zip(outputs)
            .map(|(n, t)| (n.to_owned(), t.as_f32().unwrap().iter().copied().collect()))
            .collect();
        case.judge(session.runtime(), &found, &mut faults);
    }
    #[cfg(feature = "train")]
    case.judge("libtorch", &on_libtorch::run(&case), &mut faults);
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[cfg(feature = "train")]
mod on_libtorch {
    use std::sync::Arc;

    use d2o::train::libtorch::{LibTorch, Value, tensor_of, values_of};
    use d2o_converters::nn::efficientnet_lite::EfficientNetLite0;
    use d2o_converters::nn::inception_v3::InceptionV3;
    use d2o_converters::nn::precond::Denoiser;
    use d2o_converters::nn::stylegan2::{Drawing, StyleGan2};
    use d2o_converters::nn::vgg16::Vgg16;
    use d2o_converters::nn::vision_transformer::{
        Activation, CLIP_MEAN, CLIP_STD, Family, VisionTransformer, VitConfig,
    };
    use d2o_converters::weights::{Scope, Weights};
    use d2o_converters::{Architecture, Checkpoint};
    use tch::Device;

    use super::Case;

    const IMAGENET: [[f32; 3]; 2] = [[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]];

    pub(super) fn run(case: &Case) -> Vec<(String, Vec<f32>)> {
        let option = |name: &str| {
            let mut words = case.facts["options"].as_array().unwrap().iter().map(|v| v.as_str().unwrap());
            words.find(|w| *w == name).and_then(|_| words.next())
        };
        let path = case.json.with_file_name(case.facts["file"].as_str().unwrap());
        let checkpoint = Checkpoint::open(&path).unwrap();
        let network = checkpoint.network(None).unwrap();
        let weights = Weights::checkpoint(Box::new(Arc::clone(&network.tensors)), "");
        let mut b = LibTorch::with_weights(weights, Device::Cpu);
        let arrays = case.arrays("inputs");
        let value = |name: &str| {
            let array = arrays.iter().find(|(n, _)| n == name).map(|(_, a)| a)?;
            let values: Vec<f32> = array.iter().copied().collect();
            Some(Value(tensor_of(&values, array.shape(), Device::Cpu).unwrap()))
        };
        let pixels = || value("images_u8").unwrap().0.permute([0, 3, 1, 2]);
        let standardised = |[mean, std]: [[f32; 3]; 2]| {
            let of = |v: [f32; 3]| tensor_of(&v, &[1, 3, 1, 1], Device::Cpu).unwrap();
            Value((pixels() / 255.0 - of(mean)) / of(std))
        };
        let _guard = tch::no_grad_guard();
        let root = Scope::root();
        let mut outputs: Vec<(&str, Value)> = Vec::new();
        match &network.architecture {
            Architecture::Denoiser(_) | Architecture::OpenAiUNet(_) => {
                let config = network.denoiser_config().unwrap();
                let net = Denoiser::build(&mut b, config).unwrap();
                let sigma = option("--sigma-max").map_or(80.0, |s| s.parse().unwrap());
                let labels = value("class_labels");
                outputs.push((
                    "images",
                    net.one_step(&mut b, &value("latents").unwrap(), sigma, labels.as_ref()).unwrap(),
                ));
            }
            Architecture::InceptionV3(parts) => {
                let net = InceptionV3::build(&mut b, &root, *parts).unwrap();
                let out = net.forward(&mut b, &Value((pixels() - 128.0) / 128.0), false).unwrap();
                outputs.extend([("pool3", out.pool3), ("spatial", out.spatial)]);
                outputs.extend(out.logits.map(|l| ("logits", l)));
            }
            Architecture::EfficientNetLite0 => {
                let net = EfficientNetLite0::build(&mut b, &root).unwrap();
                let (features, logits) = net.forward(&mut b, &Value(pixels() / 127.5 - 1.0)).unwrap();
                outputs.extend([("features", features), ("logits", logits)]);
            }
            Architecture::Vgg16(config) => {
                let net = Vgg16::build(&mut b, &root, config).unwrap();
                let out = net.forward(&mut b, &standardised(IMAGENET), false).unwrap();
                outputs.extend([("features", out.features), ("logits", out.logits)]);
            }
            Architecture::VisionTransformer(config) => {
                let asked =
                    if option("--activation") == Some("gelu") { Activation::Gelu } else { Activation::QuickGelu };
                let config = VitConfig { activation: config.activation.or(Some(asked)), ..*config };
                let net = VisionTransformer::build(&mut b, &root, &config, config.input_size()).unwrap();
                let clip = config.family == Family::Clip;
                let x = standardised(if clip { [CLIP_MEAN, CLIP_STD] } else { IMAGENET });
                let out = net.forward(&mut b, &x, false).unwrap();
                outputs.push(("features", out.features));
                outputs.extend(out.logits.map(|l| ("logits", l)));
            }
            Architecture::StyleGan2(config) => {
                let net = StyleGan2::build(&mut b, config).unwrap();
                let labels = value("class_labels");
                let images =
                    net.forward(&mut b, &value("latents").unwrap(), labels.as_ref(), &Drawing::default()).unwrap();
                outputs.push(("images", images));
            }
            other => panic!("{} has no libtorch row", other.name()),
        }
        outputs.into_iter().map(|(n, v)| (n.to_owned(), values_of(&v.0).unwrap())).collect()
    }
}
