//! One training step of D2O: losses and gradients against the original code (`tests/data/gen/recipe.py`), from the same
//! random weights.
#![cfg(feature = "train")]
#![allow(missing_docs, clippy::unwrap_used, clippy::print_stdout, clippy::cast_precision_loss, reason = "a test")]

use std::collections::BTreeMap;

use d2o::train::discriminator::{Backbone, Critic, FeatureSize};
use d2o::train::distillation::{Distillation, Positions, Rule};
use d2o::train::generator::{Generator, Steps};
use d2o::train::libtorch::{LibTorch, Named, Role, Value};
use d2o::train::loss::{Adversaries, LossType, NoiseLevels, denoising_loss, flat, r1_loss, unchanged};
use d2o::train::lpips::Lpips;
use d2o_converters::denoiser::{Denoiser, NetConfig};
use d2o_converters::weights::{Init, Weights};
use d2o_converters::{Architecture, Checkpoint};
use serde_json::Value as Json;
use tch::{Device, Kind, Tensor};

const SEED: u64 = 7;
const GAMMA: f64 = 0.01;
/// Largest norm of a gradient that is zero except for rounding.
const VANISHES: f64 = 1e-9;

/// Allowed difference: of a loss relative to the loss, of a gradient relative to its norm.
const TOLERANCE: f64 = 1e-8;

fn drawn(kind: Kind, init: &Init, path: &str, dims: &[i64]) -> Tensor {
    let count = usize::try_from(dims.iter().product::<i64>()).unwrap();
    Tensor::from_slice(&init.values(SEED, path, count)).reshape(dims).to_kind(kind)
}

/// Loss and gradients of a stage against the original's, both in f64.
fn compare(what: &str, loss: &Tensor, tensors: &[Named], expected: &Json) {
    let value = expected["loss"].as_f64().unwrap();
    let off = (loss.double_value(&[]) / value - 1.0).abs();
    assert!(off < TOLERANCE, "{what}: loss {} instead of {value}", loss.double_value(&[]));
    let params: Vec<&Named> = tensors.iter().filter(|t| t.role == Role::Param).collect();
    let live: Vec<Tensor> = params.iter().map(|p| p.tensor.shallow_clone()).collect();
    let gradients = Tensor::f_run_backward(&[loss], &live, false, false).unwrap();
    let theirs: BTreeMap<String, [f64; 2]> = serde_json::from_value(expected["gradients"].clone()).unwrap();
    let largest = theirs.values().map(|[norm, _]| *norm).fold(0.0, f64::max);
    let (mut worst, mut met) = (0.0_f64, 0);
    for (param, gradient) in params.iter().zip(&gradients) {
        // R1 does not depend on the last biases. The original has zeros for them.
        let [found, product] = if gradient.defined() {
            let along =
                drawn(Kind::Double, &Init::Uniform { bound: 1.0 }, &format!("along.{}", param.path), &gradient.size());
            [gradient.norm(), (gradient * along).sum(Kind::Double)].map(|t| t.double_value(&[]))
        } else {
            [0.0; 2]
        };
        // Batch normalisation cancels the biases before it.
        let [norm, along] = theirs.get(&param.path).copied().unwrap_or_default();
        if norm < VANISHES {
            assert!(found < TOLERANCE * largest, "{what}: `{}` has a gradient only here", param.path);
            continue;
        }
        let off = ((found - norm).abs() / norm).max((product - along).abs() / norm);
        assert!(off < TOLERANCE, "{what}: `{}` is off by {off:.1e} of its norm {norm:.3e}", param.path);
        worst = worst.max(off);
        met += 1;
    }
    println!("parity: {what} loss {off:.1e}, {met} gradients {worst:.1e}");
    assert_eq!(met, theirs.values().filter(|[norm, _]| *norm >= VANISHES).count(), "{what}");
}

/// The golden network `name` without dropout, and its tensors.
fn network(name: &str, kind: Kind) -> (Denoiser<Value>, Vec<Named>) {
    let path = test_support::golden_dir().join(format!("{name}.safetensors"));
    let checkpoint = Checkpoint::open(&path).unwrap();
    let network = checkpoint.network(None).unwrap();
    let Architecture::Denoiser(config) = &network.architecture else { panic!("{name} has no configuration") };
    let mut kwargs = config.init_kwargs();
    kwargs["dropout"] = 0.0.into();
    let config = NetConfig::new(config.class(), &kwargs).unwrap();
    let mut b = LibTorch::with_weights(network.weights(), Device::Cpu).in_kind(kind);
    let net = Denoiser::build(&mut b, &config).unwrap();
    (net, b.finish().unwrap().0)
}

/// A discriminator with random weights for the images of `config`, and its tensors.
fn discriminator(backbones: &[Backbone], config: &NetConfig, kind: Kind) -> (Critic, Vec<Named>) {
    let mut b = LibTorch::with_weights(Weights::initialised(SEED), Device::Cpu).in_kind(kind);
    let sizes = FeatureSize::Interp224.of(config.img_resolution).unwrap();
    let rows = Init::Normal { std: 1.0 };
    let rows = (config.label_dim > 0).then_some(&rows);
    let critic = Critic::build(&mut b, backbones, &sizes, &|_| Weights::initialised(SEED), rows).unwrap();
    (critic, b.finish().unwrap().0)
}

/// Images, labels and the noise of each stage for a batch of `batch` images of `config`.
fn inputs(config: &NetConfig, batch: &Json, kind: Kind) -> (Tensor, Option<Value>, impl Fn(u8) -> Tensor + use<>) {
    let batch = batch.as_i64().unwrap();
    let side = i64::try_from(config.img_resolution).unwrap();
    let dims = [batch, i64::try_from(config.img_channels).unwrap(), side, side];
    let images = drawn(kind, &Init::Uniform { bound: 1.0 }, "images", &dims);
    let classes = i64::try_from(config.label_dim).unwrap();
    let labels = (classes > 0).then(|| {
        Value((Tensor::arange(batch, (Kind::Int64, Device::Cpu)) * 3).remainder(classes).one_hot(classes).to_kind(kind))
    });
    let noise = move |stage: u8| drawn(kind, &Init::Normal { std: 1.0 }, &format!("noise.{stage}"), &dims);
    (images, labels, noise)
}

/// Runs a step of `case` in `kind`. `stage` gets the name, the loss and the trained tensors of each stage.
fn step(case: &Json, kind: Kind, stage: &mut dyn FnMut(&str, &Tensor, &[Named])) {
    let name = case["golden"].as_str().unwrap();
    let loss = if case["loss_type"] == "ns" { LossType::NonSaturating } else { LossType::Hinge };
    let (net, generator) = network(name, kind);
    let names: Vec<String> = serde_json::from_value(case["backbones"].clone()).unwrap();
    let all = [Backbone::Lite0, Backbone::Vgg16Bn, Backbone::DeitBase];
    let backbones: Vec<Backbone> = names.iter().map(|n| *all.iter().find(|b| b.name() == n).unwrap()).collect();
    let (critic, discriminator) = discriminator(&backbones, net.config(), kind);
    let (images, labels, noise) = inputs(net.config(), &case["batch"], kind);
    let labels = labels.as_ref();

    let mut b = LibTorch::running(Device::Cpu, true).in_kind(kind);
    let generator_of = Generator { net: &net, steps: Steps::One, mixed: false };
    let adversaries = Adversaries { generator: generator_of, critic: &critic, loss, augment: &unchanged };
    let (g, logits) = adversaries.generator_loss(&mut b, &noise(0), labels).unwrap();
    let mean = flat(&logits).unwrap().mean(None).double_value(&[]);
    let tolerance = if kind == Kind::Double { TOLERANCE } else { 1e-4 };
    assert!((mean - case["logits_fake"].as_f64().unwrap()).abs() < tolerance, "{name}: {mean}");
    stage("generator", &g, &generator);
    let (d, _) = adversaries.discriminator_loss(&mut b, &noise(1), &images, labels).unwrap();
    stage("discriminator", &d, &discriminator);
    stage("r1", &r1_loss(&mut b, &critic, &images, labels, GAMMA).unwrap(), &discriminator);
}

fn cases(file: &str) -> Vec<Json> {
    let data = test_support::golden_dir().parent().unwrap().join(file);
    serde_json::from_slice(&fs_err::read(data).unwrap()).unwrap()
}

/// Compares the case with these feature networks, this golden network and this loss.
fn is_the_originals(golden: &str, backbones: &[&str], loss_type: &str) {
    let cases = cases("recipe.json");
    let is = |c: &&Json| {
        c["golden"] == golden && c["loss_type"] == loss_type && c["backbones"] == serde_json::json!(backbones)
    };
    let case = cases.iter().find(is).unwrap();
    let what = format!("{golden} {} {loss_type}", backbones.join("+"));
    step(case, Kind::Double, &mut |stage, loss, tensors| {
        compare(&format!("{what} {stage}"), loss, tensors, &case["stages"][stage]);
    });
}

const LITE0: &str = "tf_efficientnet_lite0";

#[test]
fn a_step_is_the_originals() {
    is_the_originals("d2o-ncsnpp-uncond", &[LITE0], "ns");
    is_the_originals("d2o-ncsnpp-uncond", &[LITE0], "hinge");
}

#[test]
fn a_conditional_step_is_the_originals() {
    is_the_originals("d2o-adm-cond", &[LITE0], "ns");
}

#[test]
fn a_step_through_vgg_is_the_originals() {
    is_the_originals("d2o-ncsnpp-uncond", &["vgg16_bn", LITE0], "ns");
}

#[test]
fn a_conditional_step_through_deit_is_the_originals() {
    is_the_originals("d2o-adm-cond", &["deit_base_distilled_patch16_224", LITE0], "ns");
}

/// Compares the cases of `distillation.json` for which `wanted` holds.
fn are_the_originals(wanted: impl Fn(&Json) -> bool) {
    let kind = Kind::Double;
    let cases: Vec<Json> = cases("distillation.json").into_iter().filter(wanted).collect();
    assert!(!cases.is_empty());
    for case in &cases {
        let (name, rule) = (case["golden"].as_str().unwrap(), case["teacher_type"].as_str());
        let (net, generator_tensors) = network(name, kind);
        let (images, labels, noise) = inputs(net.config(), &case["batch"], kind);
        let labels = labels.as_ref();
        let steps = match case["multi_step_g"].as_u64() {
            None => Steps::One,
            Some(2) => Steps::Two { middle: case["middle_sigma"].as_f64().unwrap() },
            Some(steps) => Steps::Many(u32::try_from(steps).unwrap()),
        };
        let generator = Generator { net: &net, steps, mixed: false };
        let mut b = LibTorch::running(Device::Cpu, true).in_kind(kind);
        let what = format!("{name} {} {steps:?}", rule.unwrap_or("adversarial"));
        let mut loss = Tensor::zeros([], (kind, Device::Cpu));
        let only = case["teacher_only"] == true;
        let critic = (!only).then(|| discriminator(&[Backbone::Lite0], net.config(), kind));
        let of = |critic| Adversaries { generator, critic, loss: LossType::NonSaturating, augment: &unchanged };
        if let Some((critic, _)) = &critic {
            loss += of(critic).generator_loss(&mut b, &noise(0), labels).unwrap().0;
        }
        if let Some(rule) = rule {
            let rules = [("pd", Rule::Pd), ("cd", Rule::Cd), ("ctm", Rule::Ctm), ("rcd", Rule::Rcd)];
            let rule = rules.into_iter().find(|(name, _)| *name == rule).unwrap().1;
            let (teacher, _) = network(case["teacher"].as_str().unwrap(), kind);
            let lpips = Lpips::build(&b, Weights::initialised(SEED), Weights::initialised(SEED)).unwrap();
            let max_steps = u32::try_from(case["max_steps"].as_u64().unwrap()).unwrap();
            let distillation = Distillation::new(rule, max_steps, teacher, lpips);
            let at = |key: &str| serde_json::from_value(case[key].clone()).unwrap();
            let at = Positions { t: at("t"), u: at("u"), s: at("s") };
            let distance = distillation.loss(&mut b, &generator, &images, &noise(0), labels, &at).unwrap();
            let (found, expected) = (distance.double_value(&[]), case["distance"].as_f64().unwrap());
            assert!((found / expected - 1.0).abs() < TOLERANCE, "{what}: LPIPS {found} instead of {expected}");
            loss += distance;
        }
        compare(&format!("{what} generator"), &loss, &generator_tensors, &case["stages"]["generator"]);
        if let Some((critic, tensors)) = &critic {
            let (loss, _) = of(critic).discriminator_loss(&mut b, &noise(1), &images, labels).unwrap();
            compare(&format!("{what} discriminator"), &loss, tensors, &case["stages"]["discriminator"]);
        }
    }
}

#[test]
fn generators_of_several_steps_are_the_originals() {
    are_the_originals(|case| case["multi_step_g"] == 2);
    are_the_originals(|case| case["multi_step_g"] == 4);
}

#[test]
fn progressive_distillation_is_the_originals() {
    are_the_originals(|case| case["teacher_type"] == "pd");
}

#[test]
fn consistency_distillation_is_the_originals() {
    are_the_originals(|case| case["teacher_type"] == "cd");
}

#[test]
fn distillation_of_trajectories_is_the_originals() {
    are_the_originals(|case| case["teacher_type"] == "ctm");
}

#[test]
fn distillation_from_the_highest_level_is_the_originals() {
    are_the_originals(|case| case["teacher_type"] == "rcd");
}

/// Losses in f32 may differ by five times as much as the original's own losses in f32. The networks are piecewise
/// linear: if rounding moves an activation across a kink, its gradient jumps, and R1 is made of gradients.
#[test]
fn losses_in_f32_are_the_originals() {
    let cases = cases("recipe.json");
    let case = &cases[0];
    step(case, Kind::Float, &mut |stage, loss, _| {
        let (expected, found) = (&case["stages"][stage], loss.double_value(&[]));
        let own = expected["single"]["loss"].as_f64().unwrap();
        let off = (found / expected["loss"].as_f64().unwrap() - 1.0).abs();
        println!("parity: {stage} in f32 loss {off:.1e} (the original's f32 {own:.1e})");
        assert!(off < (5.0 * own).max(1e-5), "{stage}: loss {found} is off by {off:.1e}");
    });
}

#[test]
fn losses_of_denoisers_are_the_originals() {
    let cases = cases("denoising.json");
    assert_eq!(cases.len(), 3);
    for case in &cases {
        let name = case["golden"].as_str().unwrap();
        let (net, tensors) = network(name, Kind::Float);
        let config = net.config();
        let dim = |n: usize| i64::try_from(n).unwrap();
        let side = dim(config.img_resolution);
        let dims = [3, dim(config.img_channels), side, side];
        let images = drawn(Kind::Float, &Init::Uniform { bound: 1.0 }, "images", &dims);
        let labels = (config.label_dim > 0).then(|| {
            let classes: Vec<i64> = (0..3).map(|i| i * 3 % dim(config.label_dim)).collect();
            Tensor::from_slice(&classes).one_hot(dim(config.label_dim)).to_kind(Kind::Float)
        });
        tch::manual_seed(i64::try_from(SEED).unwrap());
        let mut b = LibTorch::running(Device::Cpu, true);
        let levels = NoiseLevels::of(&config.precond).unwrap();
        let elements = denoising_loss(&mut b, &net, &images, labels.as_ref(), levels, None).unwrap();
        let loss = elements.sum(Kind::Float) / 3.0;
        let params: Vec<&Tensor> = tensors.iter().filter(|t| t.role == Role::Param).map(|t| &t.tensor).collect();
        let gradients = Tensor::f_run_backward(&[&loss], &params, false, false).unwrap();
        let square =
            |g: &Tensor| if g.defined() { g.to_kind(Kind::Double).square().sum(None).double_value(&[]) } else { 0.0 };
        let norm = gradients.iter().map(square).sum::<f64>().sqrt();
        let mean = elements.mean(Kind::Double).double_value(&[]);
        for (what, found) in [("loss", loss.double_value(&[])), ("elements", mean), ("gradients", norm)] {
            let off = (found / case[what].as_f64().unwrap() - 1.0).abs();
            println!("parity: {name} {what} {off:.1e}");
            assert!(off < 2e-5, "{name}: {what} {found} is off by {off:.1e}");
        }
    }
}
