//! One step of D2O's training: losses and gradients of the original's code (`tests/data/gen/recipe.py`), from weights drawn alike.
#![cfg(feature = "train")]
#![allow(missing_docs, clippy::unwrap_used, clippy::print_stdout, clippy::cast_precision_loss, reason = "a test")]

use std::collections::BTreeMap;

use d2o::train::blank_image::statistics_after_blank_image;
use d2o::train::discriminator::{DiscriminatorConfig, MultiScaleHeads, Projector};
use d2o::train::libtorch::{LibTorch, Named, Role, Value, tensor_of, values_of};
use d2o::train::loss::{Critic, LossType, discriminator_loss, generator_loss, r1_penalty};
use d2o_converters::denoiser::Denoiser;
use d2o_converters::denoiser::NetConfig;
use d2o_converters::extractors::efficientnet_lite::LiteTrunk;
use d2o_converters::weights::{Init, Scope, Weights};
use d2o_converters::{Architecture, Checkpoint};
use serde_json::Value as Json;
use tch::{Device, Tensor};

const SEED: u64 = 7;
const GAMMA: f64 = 0.01;
/// Norm of a gradient that is zero but for rounding.
const VANISHES: f64 = 1e-9;

fn drawn(init: &Init, path: &str, dims: &[usize]) -> Tensor {
    tensor_of(&init.values(SEED, path, dims.iter().product()), dims, Device::Cpu).unwrap()
}

/// Loss and gradients of a stage against the original's in f64. Those may be off by five times what the original's own f32 is:
/// the networks are piecewise linear, and an activation that rounding puts on the other side of a kink makes gradients jump.
fn compare(what: &str, loss: &Tensor, tensors: &[Named], expected: &Json) {
    let own = |of: &str| expected["single"][of].as_f64().unwrap();
    let value = expected["loss"].as_f64().unwrap();
    let off = (loss.double_value(&[]) / value - 1.0).abs();
    println!("parity: {what} loss {off:.1e} (the original's f32 {:.1e})", own("loss"));
    assert!(off < (5.0 * own("loss")).max(1e-5), "{what}: loss {} instead of {value}", loss.double_value(&[]));
    let params: Vec<&Named> = tensors.iter().filter(|t| t.role == Role::Param).collect();
    let live: Vec<Tensor> = params.iter().map(|p| p.tensor.shallow_clone()).collect();
    let gradients = Tensor::f_run_backward(&[loss], &live, false, false).unwrap();
    let theirs: BTreeMap<String, [f64; 2]> = serde_json::from_value(expected["gradients"].clone()).unwrap();
    let largest = theirs.values().map(|[norm, _]| *norm).fold(0.0, f64::max);
    let (mut worst, mut met) = (0.0_f64, 0);
    for (param, gradient) in params.iter().zip(&gradients) {
        let found = if gradient.defined() { values_of(gradient).unwrap() } else { Vec::new() };
        let direction = Init::Uniform { bound: 1.0 }.values(SEED, &format!("along.{}", param.path), found.len());
        let (mut square, mut product) = (0.0, 0.0);
        for (g, d) in found.iter().zip(&direction) {
            square += f64::from(*g).powi(2);
            product += f64::from(*g) * f64::from(*d);
        }
        // Batch norm takes the biases before it out again; R1 does not see the last ones.
        let [norm, along] = theirs.get(&param.path).copied().unwrap_or_default();
        if norm < VANISHES {
            assert!(square.sqrt() < 1e-6 * largest, "{what}: `{}` has a gradient only here", param.path);
            continue;
        }
        let off = ((square.sqrt() - norm).abs() / norm).max((product - along).abs() / norm);
        assert!(off < 5.0 * own("gradients"), "{what}: `{}` is off by {off:.1e} of its norm {norm:.3e}", param.path);
        worst = worst.max(off);
        met += 1;
    }
    println!("parity: {what} {met} gradients {worst:.1e} (the original's f32 {:.1e})", own("gradients"));
    assert_eq!(met, theirs.values().filter(|[norm, _]| *norm >= VANISHES).count(), "{what}");
}

#[test]
fn a_step_is_the_originals() {
    let data = test_support::golden_dir().parent().unwrap().join("recipe.json");
    let cases: Vec<Json> = serde_json::from_slice(&fs_err::read(data).unwrap()).unwrap();
    assert_eq!(cases.len(), 3);
    for case in &cases {
        let name = case["golden"].as_str().unwrap();
        let loss = if case["loss_type"] == "ns" { LossType::NonSaturating } else { LossType::Hinge };
        let path = test_support::golden_dir().join(format!("{name}.safetensors"));
        let checkpoint = Checkpoint::open(&path).unwrap();
        let network = checkpoint.network(None).unwrap();
        let Architecture::Denoiser(config) = &network.architecture else { panic!("{name} has no configuration") };
        let mut kwargs = config.init_kwargs();
        kwargs["dropout"] = 0.0.into();
        let config = NetConfig::new("D2OPrecond", &kwargs).unwrap();
        let weights = network.weights();
        let mut b = LibTorch::with_weights(weights, Device::Cpu);
        let net = Denoiser::build(&mut b, &config).unwrap();
        let (generator, _) = b.finish().unwrap();

        let moved = statistics_after_blank_image(Weights::initialised(SEED), Device::Cpu).unwrap();
        let mut b = LibTorch::with_weights(Weights::initialised(SEED).replacing(moved), Device::Cpu);
        let trunk = LiteTrunk::build(&mut b, &Scope::root()).unwrap();
        let shape = DiscriminatorConfig { feature_resolution: 224, conditional: config.label_dim > 0 };
        let projector = Projector::build(&mut b, &shape, trunk).unwrap();
        let heads = MultiScaleHeads::build(&mut b, &shape, None).unwrap();
        let (discriminator, _) = b.finish().unwrap();
        let critic = Critic { projector, heads };

        let batch = usize::try_from(case["batch"].as_u64().unwrap()).unwrap();
        let dims = [batch, config.img_channels, config.img_resolution, config.img_resolution];
        let noise = |stage: u8| drawn(&Init::Normal { std: 1.0 }, &format!("noise.{stage}"), &dims);
        let images = drawn(&Init::Uniform { bound: 1.0 }, "images", &dims);
        let labels = (config.label_dim > 0).then(|| {
            let one_hot = |i: usize| (0..config.label_dim).map(move |k| f32::from(k == i * 3 % config.label_dim));
            let rows: Vec<f32> = (0..batch).flat_map(one_hot).collect();
            Value(tensor_of(&rows, &[batch, config.label_dim], Device::Cpu).unwrap())
        });
        let labels = labels.as_ref();

        let mut b = LibTorch::running(Device::Cpu, true);
        let stage = |stage: &str| (format!("{name} {} {stage}", case["loss_type"]), &case["stages"][stage]);
        let (g, logits) = generator_loss(&mut b, &net, &critic, loss, &noise(0), labels).unwrap();
        let mean = logits.mean(tch::Kind::Double).double_value(&[]);
        assert!((mean - case["logits_fake"].as_f64().unwrap()).abs() < 1e-4, "{name}: {mean}");
        let (what, expected) = stage("generator");
        compare(&what, &g, &generator, expected);
        let (d, _) = discriminator_loss(&mut b, &net, &critic, loss, &noise(1), &images, labels).unwrap();
        let (what, expected) = stage("discriminator");
        compare(&what, &d, &discriminator, expected);
        let real = images.detach().copy().set_requires_grad(true);
        let logits = critic.logits(&mut b, &real, labels).unwrap();
        let (what, expected) = stage("r1");
        compare(&what, &r1_penalty(&logits, &real, GAMMA).unwrap(), &discriminator, expected);
    }
}
