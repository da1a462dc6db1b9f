//! Tests of whole iterations: against the original (`tests/data/gen/iterations.py`) in f64, and resumed in bf16.

use std::collections::{BTreeMap, BTreeSet};

use d2o_converters::checkpoint::safetensors::{self, Tensor as Stored};
use d2o_converters::extractors::efficientnet_lite::EfficientNetLite0;
use d2o_converters::onnx::OnnxBackend;
use d2o_converters::weights::{Init, Scope};
use d2o_refs::batch;
use d2o_refs::npy::Dtype;
use d2o_refs::npz::{IMAGES, NpzWriter};
use serde_json::from_value;

use super::super::dataset::Shape;
use super::super::libtorch::{Named, Role};
use super::super::options::settle;
use super::*;
use crate::cli::{BackbonesArg, TrainSettings};

/// Allowed difference, relative to the norm of a tensor.
const TOLERANCE: f64 = 1e-8;
/// Norm below which an update is rounding noise.
const VANISHES: f64 = 1e-7;

/// Writes EfficientNet-Lite0 with the weights that recipe.py draws.
fn write_lite0(path: &Path, seed: u64) {
    let mut b = OnnxBackend::new("names", Weights::initialised(seed));
    EfficientNetLite0::build(&mut b, &Scope::root()).unwrap();
    let stored = |(name, dims): (&str, &[usize])| {
        let init = match dims.len() {
            1 if name.ends_with("running_var") || name.ends_with(".weight") => Init::Constant(1.0),
            1 => Init::Constant(0.0),
            _ => Init::Normal { std: (2.0 / dims[1..].iter().product::<usize>() as f64).sqrt() },
        };
        let values = init.values(seed, name, dims.iter().product());
        Stored { name: name.to_owned(), dims: dims.to_vec(), values }
    };
    let tensors: Vec<Stored> = b.weights().taken().map(stored).collect();
    safetensors::write(path, &tensors, &BTreeMap::new()).unwrap();
}

/// Writes the images that iterations.py draws.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a byte")]
fn write_images(path: &Path, seed: u64, dims: [usize; 4]) {
    let mut drawn = SplitMix64::for_path(seed, "pixels");
    let bytes: Vec<u8> = (0..dims.iter().product()).map(|_| (drawn.uniform() * 256.0) as u8).collect();
    let mut npz = NpzWriter::create(path).unwrap();
    npz.start(IMAGES, Dtype::U8, &dims).unwrap();
    npz.raw(&bytes).unwrap();
    npz.finish().unwrap();
}

/// Values of the original for `what`: the norm of each tensor and its dot product with random values.
fn theirs(expected: &Json, what: &str) -> BTreeMap<String, [f64; 2]> {
    from_value(expected[what].clone()).unwrap()
}

/// Differences between `values` of the updated parameters of `of` and the values of the original for `what`. Skips the
/// parameters in `stay`.
#[allow(clippy::print_stdout, reason = "a measurement")]
fn differences(expected: &Json, what: &str, of: &Trained, values: &[Tensor], stay: &BTreeSet<String>) -> Vec<String> {
    let (theirs, seed) = (theirs(expected, what), expected["seed"].as_u64().unwrap());
    assert_eq!(values.len(), theirs.len(), "{what}");
    let (mut all, mut worst, mut met) = (Vec::new(), 0.0_f64, 0);
    for (i, value) in of.updated.iter().zip(values) {
        let path = &of.tensors[*i].path;
        if stay.contains(path) {
            continue;
        }
        let [norm, product] = theirs[path];
        let init = Init::Uniform { bound: 1.0 };
        let along = Tensor::from_slice(&init.values(seed, &format!("{what}.{path}"), value.numel()));
        let along = along.reshape(value.size()).to_kind(Kind::Double);
        let found = [value.norm(), (value * along).sum(Kind::Double)].map(|t| t.double_value(&[]));
        let off = ((found[0] - norm).abs() / norm).max((found[1] - product).abs() / norm);
        if off >= TOLERANCE || off.is_nan() {
            all.push(format!("{what}: `{path}` is off by {off:.1e} of its norm {norm:.3e}"));
        }
        (worst, met) = (worst.max(off), met + 1);
    }
    println!("parity: {what} {met} tensors {worst:.1e}");
    all
}

/// A D2O run with random images and a random EfficientNet-Lite0 in `dir`, as in iterations.py, and its images.
fn drawn_run(dir: &Path, expected: &Json, kind: Kind) -> (Run, TrainingSet) {
    let at = |name: &str| dir.join(name);
    let number = |key: &str| u32::try_from(expected[key].as_u64().unwrap()).unwrap();
    let seed = u64::from(number("seed"));
    let transfer = test_support::golden_dir().join(format!("{}.safetensors", expected["golden"].as_str().unwrap()));
    let checkpoint = Checkpoint::open(&transfer).unwrap();
    let net = checkpoint.network(None).unwrap().architecture.denoiser().unwrap().into_one_step(0.0).unwrap();
    let side = net.img_resolution;
    write_lite0(&at("lite0.safetensors"), seed);
    write_images(&at("data.npz"), seed, [number("images") as usize, side, side, 3]);

    let option = |key: &str| expected["options"][key].as_f64();
    let mut given = TrainSettings {
        data: Some(at("data.npz")),
        transfer: Some(transfer),
        batch: Some(number("batch")),
        seed: Some(number("seed")),
        lr: option("lr"),
        ema: option("ema"),
        ema_warmup: option("ema-warmup"),
        ..TrainSettings::default()
    };
    given.adversary.backbones = Some(BackbonesArg::Lite0);
    given.adversary.backbone_weights = vec![at("lite0.safetensors")];
    given.adversary.dlr = option("dlr");
    given.adversary.r1_gamma = option("r1-gamma");
    given.adversary.r1_interval = expected["options"]["r1-interval"].as_u64().and_then(|n| u32::try_from(n).ok());
    given.adversary.freeze = Some(0);
    let options = settle(None, &given, 1).unwrap().options;
    let mut source = batch::open(&at("data.npz")).unwrap();
    let data = TrainingSet::load(source.as_mut(), Shape { channels: 3, label_dim: 0 }, None, false).unwrap();
    let run = Run {
        options,
        values: Map::new(),
        net,
        outdir: at("run"),
        state: None,
        other_files: false,
        max_seconds: None,
        device: Device::Cpu,
        mixed: false,
        kind,
        group: Rc::new(Group::alone()),
    };
    (run, data)
}

/// What `iterations.py` recorded.
fn recorded() -> Json {
    let golden = test_support::golden_dir();
    serde_json::from_slice(&fs_err::read(golden.parent().unwrap().join("iterations.json")).unwrap()).unwrap()
}

fn iterate(trainer: &mut Trainer<'_>, data: &TrainingSet, iterations: u64) {
    for _ in 0..iterations {
        let indices: Vec<u32> = (0..trainer.run.options.batch).map(|_| trainer.sampler.draw()).collect();
        trainer.iterate(data, &indices).unwrap();
    }
}

#[test]
fn a_resumed_run_in_bf16_ends_where_an_undisturbed_one_does() {
    let dir = tempfile::tempdir().unwrap();
    let (mut run, data) = drawn_run(dir.path(), &recorded(), Kind::Float);
    fs_err::create_dir(&run.outdir).unwrap();
    let path = snapshot::state_path(&run.outdir);
    let ended = |trainer: &Trainer<'_>| {
        trainer.save(false, true).unwrap();
        fs_err::read(&path).unwrap()
    };
    let whole = |run: &Run| {
        let mut trainer = Trainer::new(run, &data).unwrap();
        iterate(&mut trainer, &data, 4);
        ended(&trainer)
    };
    let in_f32 = whole(&run);
    run.mixed = true;
    let in_bf16 = whole(&run);
    assert!(in_f32 != in_bf16);

    let mut first = Trainer::new(&run, &data).unwrap();
    iterate(&mut first, &data, 2);
    first.save(false, true).unwrap();
    drop(first);
    run.state = Some(State::open(&path).unwrap());
    let mut second = Trainer::new(&run, &data).unwrap();
    iterate(&mut second, &data, 2);
    assert!(ended(&second) == in_bf16, "a resumed run ends elsewhere than an undisturbed one");
}

#[test]
fn three_iterations_are_the_originals() {
    let dir = tempfile::tempdir().unwrap();
    let expected = recorded();
    let (run, data) = drawn_run(dir.path(), &expected, Kind::Double);
    let mut trainer = Trainer::new(&run, &data).unwrap();
    let copies = |of: &Trained| -> Vec<Tensor> {
        of.optimizer.views(of.optimizer.values()).unwrap().iter().map(|t| t.detach().copy()).collect()
    };
    let Objective::Adversarial(critic) = &trainer.objective else { panic!("no discriminator") };
    let before = [copies(&trainer.generator), copies(critic.trained())];
    iterate(&mut trainer, &data, expected["iterations"].as_u64().unwrap());
    let Objective::Adversarial(critic) = &trainer.objective else { panic!("no discriminator") };
    let mut all = Vec::new();
    let sides = [("generator", &trainer.generator, &before[0]), ("discriminator", critic.trained(), &before[1])];
    for (name, of, before) in sides {
        let is_param = |t: &&Named| t.role == Role::Param;
        assert_eq!(of.updated.len(), of.tensors.iter().filter(is_param).count());
        let values = copies(of);
        let moved: Vec<Tensor> = values.iter().zip(before).map(|(now, before)| now - before).collect();
        let second = of.optimizer.moments().find(|(moment, _)| *moment == "second").unwrap().1;
        let second = of.optimizer.views(second).unwrap();
        let what = format!("{name}-moved");
        let stay = theirs(&expected, &what).into_iter().filter(|(_, [norm, _])| *norm < VANISHES);
        let stay: BTreeSet<String> = stay.map(|(path, _)| path).collect();
        // The biases before batch norms have no effect.
        assert_eq!(stay.len(), if name == "generator" { 0 } else { 10 });
        for (i, moved) in of.updated.iter().zip(&moved).filter(|(i, _)| stay.contains(&of.tensors[**i].path)) {
            let norm = moved.norm().double_value(&[]);
            assert!(norm < VANISHES, "{}: moved by {norm}", of.tensors[*i].path);
        }
        for (what, values) in [(name, &values), (&what, &moved), (&format!("{name}-second"), &second)] {
            all.extend(differences(&expected, what, of, values, &stay));
        }
    }
    let average = trainer.generator.optimizer.views(&trainer.average).unwrap();
    all.extend(differences(&expected, "average", &trainer.generator, &average, &BTreeSet::new()));
    assert!(all.is_empty(), "{}", all.join("\n"));
}
