//! Augmentations against the original code (`tests/data/gen/augment.py`), from the same seeds of libtorch's generator.
#![cfg(feature = "train")]
#![allow(missing_docs, clippy::unwrap_used, clippy::print_stdout, reason = "a test")]

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use d2o::train::augment::ada::{Ada, AdaPipe, AdaSettings};
use d2o::train::augment::diff::diff_augment;
use d2o::train::augment::edm::{EdmPipe, EdmSettings};
use d2o::train::augment::{Augmented, Colours};
use d2o::train::libtorch::{LibTorch, Role, Value, tensor_of, values_of};
use d2o_converters::Checkpoint;
use d2o_converters::denoiser::{Denoiser, NetConfig, Sigma};
use d2o_converters::generators::backbone::Labels;
use d2o_converters::weights::{Init, Weights};
use serde_json::{Value as Json, json};
use tch::{Device, Kind, Tensor};

const SEED: u64 = 7;
/// Allowed difference: of a value relative to its magnitude, or absolute below 1; of a norm or a product relative to
/// the norm.
const TOLERANCE: f64 = 1e-5;

/// Held while libtorch's generator is seeded and used: it is global to the process.
static GENERATOR: Mutex<()> = Mutex::new(());

fn goldens(of: &str) -> Vec<Json> {
    let path = test_support::golden_dir().parent().unwrap().join("augment.json");
    let all: Json = serde_json::from_slice(&fs_err::read(path).unwrap()).unwrap();
    all[of].as_array().unwrap().clone()
}

fn uniform(name: &str, dims: &[usize], bound: f64) -> Tensor {
    let values = Init::Uniform { bound }.values(SEED, name, dims.iter().product());
    tensor_of(&values, dims, Device::Cpu).unwrap()
}

fn dims(of: &Json) -> Vec<usize> {
    serde_json::from_value(of.clone()).unwrap()
}

fn like(tensor: &Tensor, name: &str) -> Tensor {
    let dims: Vec<usize> = tensor.size().iter().map(|d| usize::try_from(*d).unwrap()).collect();
    uniform(name, &dims, 1.0)
}

/// Largest differences so far, by quantity.
#[derive(Default)]
struct Worst(BTreeMap<&'static str, f64>);

impl Worst {
    fn add(&mut self, case: &str, what: &'static str, off: f64) {
        assert!(off <= TOLERANCE, "{case}: {what} off by {off:.1e}");
        let worst = self.0.entry(what).or_default();
        *worst = worst.max(off);
    }

    /// Compares the norm, the product with random values, and some values of `found`.
    fn compare(&mut self, case: &str, what: &'static str, found: &Tensor, expected: &Json) {
        let found: Vec<f64> = values_of(found).unwrap().into_iter().map(f64::from).collect();
        let along = Init::Uniform { bound: 1.0 }.values(SEED, "along", found.len());
        let norm = found.iter().map(|v| v * v).sum::<f64>().sqrt();
        let along = found.iter().zip(along).map(|(v, d)| v * f64::from(d)).sum::<f64>();
        let theirs = |of: &str| expected[of].as_f64().unwrap();
        self.add(case, what, ((norm - theirs("norm")) / theirs("norm")).abs());
        self.add(case, what, ((along - theirs("along")) / theirs("norm")).abs());
        let values = expected["values"].as_array().unwrap();
        assert!(values.len() > 7);
        for (i, value) in values.iter().enumerate() {
            let value = value.as_f64().unwrap();
            self.add(case, what, (found[(i + 1) * 7919 % found.len()] - value).abs() / value.abs().max(1.0));
        }
    }

    fn labels(&mut self, case: &str, found: &Tensor, expected: &Json) {
        let expected: Vec<Vec<f64>> = serde_json::from_value(expected.clone()).unwrap();
        assert_eq!(found.size2().unwrap(), (count(expected.len()), count(expected[0].len())), "{case}");
        for (found, expected) in values_of(found).unwrap().iter().zip(expected.iter().flatten()) {
            self.add(case, "labels", (f64::from(*found) - expected).abs() / expected.abs().max(1.0));
        }
    }
}

fn count(n: usize) -> i64 {
    i64::try_from(n).unwrap()
}

/// Compares images, labels and gradient of each case of `of`.
fn check(of: &str, augment: impl Fn(&Json, &Tensor) -> Augmented) {
    let (cases, mut worst) = (goldens(of), Worst::default());
    assert!(cases.len() > 30);
    for case in &cases {
        let name = format!("{of} {} p {} {} {}", case["seed"], case["p"], case["dims"], case["settings"]);
        let images = uniform("images", &dims(&case["dims"]), 1.0).set_requires_grad(true);
        let Augmented { images: found, labels } = {
            let _held = GENERATOR.lock().unwrap_or_else(PoisonError::into_inner);
            tch::manual_seed(case["seed"].as_i64().unwrap());
            augment(case, &images)
        };
        worst.labels(&name, &labels, &case["labels"]);
        worst.compare(&name, "images", &found, &case["images"]);
        let sum = (&found * like(&found, "direction")).sum(Kind::Float);
        let gradient = Tensor::run_backward(&[sum], &[&images], false, false).remove(0);
        worst.compare(&name, "gradient", &gradient, &case["gradient"]);
    }
    println!("parity: {of}: {} cases, largest differences {:?}", cases.len(), worst.0);
}

fn colour<'a>(colours: &'a mut Colours, name: &str) -> &'a mut f64 {
    match name {
        "brightness" => &mut colours.brightness,
        "contrast" => &mut colours.contrast,
        "lumaflip" => &mut colours.lumaflip,
        "hue" => &mut colours.hue,
        "saturation" => &mut colours.saturation,
        "brightness_std" => &mut colours.brightness_std,
        "contrast_std" => &mut colours.contrast_std,
        "hue_max" => &mut colours.hue_max,
        "saturation_std" => &mut colours.saturation_std,
        _ => panic!("{name}"),
    }
}

fn ada(of: &Json) -> AdaSettings {
    let mut s = AdaSettings::default();
    for (name, value) in of.as_object().unwrap() {
        *match name.as_str() {
            "xflip" => &mut s.xflip,
            "rotate90" => &mut s.rotate90,
            "xint" => &mut s.xint,
            "xint_max" => &mut s.xint_max,
            "scale" => &mut s.scale,
            "rotate" => &mut s.rotate,
            "aniso" => &mut s.aniso,
            "xfrac" => &mut s.xfrac,
            "scale_std" => &mut s.scale_std,
            "rotate_max" => &mut s.rotate_max,
            "aniso_std" => &mut s.aniso_std,
            "xfrac_std" => &mut s.xfrac_std,
            "noise" => &mut s.noise,
            "cutout" => &mut s.cutout,
            "noise_std" => &mut s.noise_std,
            "cutout_size" => &mut s.cutout_size,
            other => colour(&mut s.colours, other),
        } = value.as_f64().unwrap();
    }
    s
}

fn edm(of: &Json, p: f64) -> EdmSettings {
    let mut s = EdmSettings { p, ..EdmSettings::default() };
    for (name, value) in of.as_object().unwrap() {
        *match name.as_str() {
            "xflip" => &mut s.xflip,
            "yflip" => &mut s.yflip,
            "rotate_int" => &mut s.rotate_int,
            "translate_int" => &mut s.translate_int,
            "translate_int_max" => &mut s.translate_int_max,
            "scale" => &mut s.scale,
            "rotate_frac" => &mut s.rotate_frac,
            "aniso" => &mut s.aniso,
            "translate_frac" => &mut s.translate_frac,
            "scale_std" => &mut s.scale_std,
            "rotate_frac_max" => &mut s.rotate_frac_max,
            "aniso_std" => &mut s.aniso_std,
            "aniso_rotate_prob" => &mut s.aniso_rotate_prob,
            "translate_frac_std" => &mut s.translate_frac_std,
            other => colour(&mut s.colours, other),
        } = value.as_f64().unwrap();
    }
    s
}

#[test]
#[allow(clippy::cast_possible_truncation, reason = "the strength is f32")]
fn stylegan2_adas_pipe_is_d2os() {
    check("ada", |case, images| {
        let pipe = AdaPipe::new(ada(&case["settings"]), Device::Cpu).unwrap();
        pipe.apply(images, case["p"].as_f64().unwrap() as f32).unwrap()
    });
}

#[test]
fn edms_pipe_is_edms() {
    check("edm", |case, images| {
        let settings = edm(&case["settings"], case["p"].as_f64().unwrap());
        EdmPipe::new(settings, Device::Cpu).unwrap().apply(images).unwrap()
    });
}

#[test]
fn settings_of_training_are_among_the_cases() {
    let (ada_cases, edm_cases) = (goldens("ada"), goldens("edm"));
    assert!(ada_cases.iter().any(|c| ada(&c["settings"]) == AdaSettings::d2o()));
    assert!(edm_cases.iter().any(|c| edm(&c["settings"], 0.12) == EdmSettings::edm(0.12)));
}

#[test]
fn diff_augment_is_d2os() {
    let (cases, mut worst) = (goldens("diff"), Worst::default());
    assert!(cases.len() > 5);
    for case in &cases {
        let name = format!("diff {} {}", case["seed"], case["dims"]);
        let images = uniform("images", &dims(&case["dims"]), 1.0).set_requires_grad(true);
        let found = {
            let _held = GENERATOR.lock().unwrap_or_else(PoisonError::into_inner);
            tch::manual_seed(case["seed"].as_i64().unwrap());
            diff_augment(&images).unwrap()
        };
        worst.compare(&name, "images", &found, &case["images"]);
        let sum = (found.square() * like(&found, "direction")).sum(Kind::Float);
        let gradient = Tensor::run_backward(&[sum], &[&images], true, true).remove(0);
        worst.compare(&name, "gradient", &gradient, &case["gradient"]);
        let second = Tensor::run_backward(&[gradient.square().sum(Kind::Float)], &[&images], false, false).remove(0);
        worst.compare(&name, "gradient's gradient", &second, &case["second"]);
    }
    println!("parity: diff: {} cases, largest differences {:?}", cases.len(), worst.0);
}

#[test]
fn strength_follows_the_sign_of_the_logits() {
    // 64 · 4 / 500 000 in f32, added in f32.
    const STEP: f32 = 0.000_512;
    let mut ada = Ada { p: 0.0, target: 0.6 };
    let mut after = |mean_sign: f64| {
        ada.update(mean_sign, 64);
        ada.p
    };
    assert_eq!(after(0.5), 0.0);
    assert_eq!(after(0.7), STEP);
    assert_eq!(after(1.0), STEP + STEP);
    assert_eq!(after(0.6), STEP + STEP);
    assert_eq!(after(0.599), STEP + STEP - STEP);
    let mut ada = Ada { p: 0.5, target: 0.0 };
    ada.update(0.1, 250_000);
    // No upper bound.
    assert_eq!(ada.p, 2.5);
    ada.update(-0.1, 1_000_000);
    assert_eq!(ada.p, 0.0);
}

#[test]
fn networks_take_augmentation_labels_as_edms_do() {
    const MAP: &str = "model.map_augment.weight";
    let (cases, mut worst) = (goldens("networks"), Worst::default());
    assert_eq!(cases.len(), 3);
    for case in &cases {
        let name = case["golden"].as_str().unwrap();
        let checkpoint = Checkpoint::open(&test_support::golden_dir().join(format!("{name}.safetensors"))).unwrap();
        let network = checkpoint.network(None).unwrap();
        let plain = network.architecture.denoiser().unwrap();
        let mut kwargs = plain.init_kwargs();
        kwargs["augment_dim"] = EdmSettings::EDM_LABELS.into();
        let config = NetConfig::new("EDMPrecond", &kwargs).unwrap();
        assert_eq!((plain.augment_dim(), config.augment_dim()), (0, 9));

        // The weights of the golden file and those of the map.
        let golden = Tensor::read_safetensors(test_support::golden_dir().join(format!("{name}.safetensors"))).unwrap();
        let tensor = |of: &str| golden.iter().find(|(n, _)| n == of).map(|(_, t)| t.shallow_clone());
        let rows = if name == "edm-ddpmpp-cond" { 16 } else { 32 };
        let map = Init::Uniform { bound: 1.0 }.values(SEED, MAP, rows * 9);
        let mut weights: BTreeMap<String, Vec<f32>> = golden
            .iter()
            .filter_map(|(n, t)| Some((n.strip_prefix("weights.")?.to_owned(), values_of(t).unwrap())))
            .collect();
        weights.insert(MAP.to_owned(), map);
        let mut b = LibTorch::with_weights(Weights::initialised(SEED).replacing(weights), Device::Cpu);
        let net = Denoiser::build(&mut b, &config).unwrap();
        let (tensors, _) = b.finish().unwrap();
        let map = tensors.iter().find(|t| t.path == MAP).unwrap();
        assert_eq!(map.role, Role::Param);

        let mut b = LibTorch::running(Device::Cpu, false);
        let (x, sigma) = (Value(tensor("input").unwrap()), Sigma::PerImage(Value(tensor("sigma").unwrap())));
        let classes = tensor("labels").map(Value);
        let augment = Value(uniform("augment_labels", &[2, 9], 2.0));
        let labels = |augment| Labels { classes: classes.as_ref(), augment };
        let found = net.denoise(&mut b, &x, &sigma, labels(Some(&augment))).unwrap().0;
        worst.compare(name, "denoised", &found, &case["denoised"]);
        let sum = (&found * like(&found, "direction")).sum(Kind::Float);
        let gradient = Tensor::run_backward(&[sum], &[&map.tensor], false, false).remove(0);
        worst.compare(name, "gradient", &gradient, &case["gradient"]);

        // Without labels the network computes as with zeros.
        let zeros = Value(augment.0.zeros_like());
        let without = net.denoise(&mut b, &x, &sigma, labels(None)).unwrap().0;
        assert_eq!(without, net.denoise(&mut b, &x, &sigma, labels(Some(&zeros))).unwrap().0, "{name}");
        assert_ne!(without, found, "{name}");

        // A network without augmentation labels refuses them.
        let mut b = LibTorch::with_weights(network.weights(), Device::Cpu);
        let net = Denoiser::build(&mut b, &plain).unwrap();
        let mut b = LibTorch::running(Device::Cpu, false);
        let error = net.denoise(&mut b, &x, &sigma, labels(Some(&augment))).unwrap_err();
        assert!(error.to_string().contains("augmentation labels"), "{error}");
        assert_eq!(without, net.denoise(&mut b, &x, &sigma, labels(None)).unwrap().0, "{name}");
    }
    println!("parity: networks: {} cases, largest differences {:?}", cases.len(), worst.0);
}

#[test]
fn maps_of_augmentation_labels_begin_as_edms_do() {
    for (class, bound) in [("SongUNet", (6.0_f32 / (9.0 + 64.0)).sqrt()), ("DhariwalUNet", 0.0)] {
        let kwargs = json!({"img_resolution": 8, "img_channels": 3, "model_type": class, "model_channels": 64, "channel_mult": [1],
            "num_blocks": 1, "attn_resolutions": [], "augment_dim": 9});
        let mut b = LibTorch::with_weights(Weights::initialised(SEED), Device::Cpu);
        Denoiser::build(&mut b, &NetConfig::new("EDMPrecond", &kwargs).unwrap()).unwrap();
        let (tensors, _) = b.finish().unwrap();
        let map = tensors.iter().find(|t| t.path == "model.map_augment.weight").unwrap();
        assert_eq!((map.role, map.tensor.size()), (Role::Param, vec![64, 9]));
        let largest = values_of(&map.tensor).unwrap().into_iter().map(f32::abs).fold(0.0, f32::max);
        assert!(largest <= bound && largest >= 0.95 * bound, "{class}: {largest}");
    }
}
