//! Checkpoints as the original projects write them: exported graphs compute the outputs of the originals on every
//! engine.
#![allow(missing_docs, clippy::unwrap_used, clippy::print_stdout, reason = "a test")]

mod engines;

use std::path::{Path, PathBuf};

use d2o_converters::denoiser::NetConfig;
use d2o_converters::export::{self, GeneratorOptions, Kind, Options};
use d2o_converters::generators::latent::SynthesisOptions;
use d2o_converters::{Architecture, Checkpoint, Network};
use d2o_refs::npz::Npz;
use d2o_runtime::{Session, SessionValue, Tensor, TensorView};
use engines::sessions;
use ndarray::ArrayD;
use serde_json::{Value, json};
use test_support::{Tol, assert_close};

fn data(name: &str) -> PathBuf {
    test_support::golden_dir().join("..").join(name)
}

fn array(npz: &mut Npz, name: &str) -> ArrayD<f32> {
    npz.f32(name).unwrap()
}

/// Runs `exported` on every runtime and compares its first output.
fn agrees(what: &str, exported: &export::Exported, inputs: &[(&str, Tensor)], expected: &ArrayD<f32>, dir: &Path) {
    let path = dir.join(format!("{}.onnx", what.replace(' ', "-")));
    d2o_onnx::write::write(&exported.model, &path).unwrap();
    for mut session in sessions(&path) {
        let outputs = session.run(&views(inputs)).unwrap();
        let found: Vec<f32> = outputs[0].as_f32().unwrap().iter().copied().collect();
        let relative = assert_close(what, &found, expected.as_slice().unwrap(), Tol::Parity);
        println!("parity: {what:<32} {:<10} {relative:.1e}", session.runtime());
        stays_where_it_is(session.as_mut(), inputs, &outputs);
    }
}

fn views<'a>(inputs: &'a [(&str, Tensor)]) -> Vec<(&'a str, TensorView<'a>)> {
    inputs.iter().map(|(name, tensor)| (*name, tensor.into())).collect()
}

/// Fails unless outputs kept in the memory of the device equal those copied to the host.
fn stays_where_it_is(session: &mut dyn Session, inputs: &[(&str, Tensor)], outputs: &[Tensor]) {
    let inputs: Vec<_> = inputs.iter().map(|(name, tensor)| (*name, SessionValue::from(tensor.clone()))).collect();
    let inputs: Vec<_> = inputs.iter().map(|(name, value)| (*name, value)).collect();
    let first = session.model().outputs[0].name.clone();
    let kept = session.run_resident(&inputs, &[first.as_str()]).unwrap();
    assert_eq!(matches!(kept[0], SessionValue::Ort(_)), session.runtime() != "tract");
    assert_eq!(kept.len(), outputs.len());
    for (value, tensor) in kept.iter().zip(outputs) {
        assert_eq!(*value.to_host().unwrap(), *tensor);
    }
}

/// Arguments that the tensor shapes of OpenAI's files do not determine, for each fixture.
fn openai_cases() -> Vec<(&'static str, &'static str, Value)> {
    let legacy = json!({"noise_schedule": "cosine", "use_new_attention_order": false, "num_head_channels": 8});
    let new = json!({"noise_schedule": "linear", "use_new_attention_order": true, "num_head_channels": 8});
    vec![
        ("cm-cond", "KarrasDenoiser", json!({"distillation": true, "num_head_channels": 32})),
        ("edm-uncond", "KarrasDenoiser", json!({"distillation": false, "num_head_channels": 16})),
        ("guided-legacy", "GaussianDiffusion", legacy),
        ("guided-new", "GaussianDiffusion", new),
    ]
}

/// The fixture with the arguments inferred from tensor shapes, completed by `rest`.
fn openai(name: &str, class: &str, rest: &Value, clip: bool) -> Network {
    let checkpoint = Checkpoint::open(&data(&format!("openai/{name}.pt"))).unwrap();
    let network = checkpoint.network(None).unwrap();
    let Architecture::Inferred(found) = &network.architecture else { panic!("{:?}", network.architecture) };
    assert_eq!((found.class, network.architecture.is_complete()), (class, false), "{name}");
    let mut kwargs = rest.as_object().unwrap().clone();
    kwargs.extend([("image_size".to_owned(), json!(16)), ("clip_denoised".to_owned(), json!(clip))]);
    network.described_as(Architecture::Denoiser(NetConfig::completed(found, class, &kwargs).unwrap()))
}

#[test]
fn openais_unets_on_the_runtimes() {
    let dir = tempfile::tempdir().unwrap();
    for (name, class, rest) in openai_cases() {
        let mut npz = Npz::open(&data(&format!("openai/{name}.npz"))).unwrap();
        let mut labels = Vec::new();
        if npz.contains("labels") {
            labels.push(("class_labels", Tensor::F32(array(&mut npz, "labels"))));
        }
        for (output, kind, clip) in [
            ("denoised", Kind::Denoiser, true),
            ("unclipped", Kind::Denoiser, false),
            ("one_step", Kind::OneStep, true),
        ] {
            if !npz.contains(output) {
                continue;
            }
            let network = openai(name, class, &rest, clip);
            let exported = export::denoiser(&network, &Options { kind, ..Options::default() }).unwrap();
            let mut inputs = match kind {
                Kind::OneStep => vec![("latents", Tensor::F32(array(&mut npz, "z")))],
                Kind::Denoiser => {
                    vec![("x", Tensor::F32(array(&mut npz, "x"))), ("sigma", Tensor::F32(array(&mut npz, "sigma")))]
                }
            };
            inputs.extend(labels.iter().cloned());
            agrees(&format!("{name} {output}"), &exported, &inputs, &array(&mut npz, output), dir.path());
        }
    }
}

#[cfg(feature = "train")]
#[test]
fn openais_unets_on_libtorch() {
    use d2o::train::libtorch::{LibTorch, Value, tensor_of, values_of};
    use d2o_converters::denoiser::{Denoiser, Sigma};
    use tch::Device;

    for (name, class, rest) in openai_cases() {
        let mut npz = Npz::open(&data(&format!("openai/{name}.npz"))).unwrap();
        let network = openai(name, class, &rest, true);
        let weights = network.weights();
        let mut b = LibTorch::with_weights(weights, Device::Cpu);
        let net = Denoiser::build(&mut b, &network.architecture.denoiser().unwrap()).unwrap();
        b.finish().unwrap();
        let mut value = |n: &str| {
            let a = npz.f32(n).unwrap();
            Value(tensor_of(a.as_slice().unwrap(), a.shape(), Device::Cpu).unwrap())
        };
        let labels = class_labels(name).then(|| value("labels"));
        let mut b = LibTorch::running(Device::Cpu, false);
        let _guard = tch::no_grad_guard();
        let sigma = Sigma::PerImage(value("sigma"));
        let mut outputs = vec![("denoised", net.denoise(&mut b, &value("x"), &sigma, labels.as_ref()).unwrap())];
        if class == "KarrasDenoiser" {
            outputs.push(("one_step", net.one_step(&mut b, &value("z"), 80.0, labels.as_ref()).unwrap()));
        }
        for (output, found) in outputs {
            let what = format!("{name} {output}");
            let expected = npz.f32(output).unwrap();
            let found = values_of(&found.0).unwrap();
            let relative = assert_close(&what, &found, expected.as_slice().unwrap(), Tol::Parity);
            println!("parity: {what:<32} libtorch   {relative:.1e}");
        }
    }
}

#[cfg(feature = "train")]
fn class_labels(name: &str) -> bool {
    Npz::open(&data(&format!("openai/{name}.npz"))).unwrap().contains("labels")
}

#[test]
fn shapes_tell_most_of_openais_unets() {
    let checkpoint = Checkpoint::open(&data("openai/edm-uncond.pt")).unwrap();
    let network = checkpoint.network(None).unwrap();
    let Architecture::Inferred(found) = &network.architecture else { panic!("{:?}", network.architecture) };
    let kwargs = json!({
        "in_channels": 3, "model_channels": 32, "out_channels": 3, "num_res_blocks": 2, "attention_resolutions": [1, 2],
        "channel_mult": [1, 1], "conv_resample": true, "num_classes": null, "num_head_channels": null, "use_scale_shift_norm": false,
        "resblock_updown": false,
    });
    assert_eq!(Value::Object(found.kwargs.clone()), kwargs);
    let text = export::denoiser(network, &Options::default()).unwrap_err().to_string();
    assert!(text.contains("NET.json") && text.contains("distillation"), "{text}");
    let completed = |class: &str, kwargs: Value| NetConfig::completed(found, class, &kwargs_of(&kwargs));
    let text = completed("KarrasDenoiser", json!({"image_size": 16, "num_heads": 2})).unwrap_err().to_string();
    assert!(text.contains("`distillation` is missing"), "{text}");
    // A number of heads replaces the head width that most published files have.
    let heads = completed("KarrasDenoiser", json!({"image_size": 16, "distillation": true, "num_heads": 2})).unwrap();
    assert_eq!((&heads.init_kwargs()["num_heads"], heads.init_kwargs().get("num_head_channels")), (&json!(2), None));
    let text = completed("KarrasDenoiser", json!({"image_size": 16, "distillation": true})).unwrap_err().to_string();
    assert!(text.contains("`num_head_channels` or `num_heads` is missing"), "{text}");
    // With a number of steps other than 1000, `rescale_timesteps` is required.
    let steps = |rescaled: Value| {
        let mut kwargs = kwargs_of(
            &json!({"image_size": 16, "num_heads": 2, "noise_schedule": "linear", "use_new_attention_order": false,
            "diffusion_steps": 4000}),
        );
        kwargs.extend(kwargs_of(&rescaled));
        NetConfig::completed(found, "GaussianDiffusion", &kwargs)
    };
    assert!(steps(json!({})).unwrap_err().to_string().contains("`rescale_timesteps` is missing"));
    assert!(steps(json!({"rescale_timesteps": true})).is_ok());
    // 32 channels cannot be split into heads of 64.
    let whole =
        completed("KarrasDenoiser", json!({"image_size": 16, "distillation": true, "num_head_channels": 64})).unwrap();
    let network = network.described_as(Architecture::Denoiser(whole));
    let text = export::denoiser(&network, &Options::default()).unwrap_err().to_string();
    assert!(text.contains("`num_head_channels`: 32 channels cannot be split into heads of 64"), "{text}");
}

fn kwargs_of(json: &Value) -> serde_json::Map<String, Value> {
    json.as_object().unwrap().clone()
}

const GENERATORS: [&str; 2] = ["skip-cond", "resnet"];

/// Names of the original outputs, with the options of each.
fn options() -> [(&'static str, SynthesisOptions); 3] {
    let plain = SynthesisOptions::default();
    [
        ("one_step", plain),
        ("truncated", SynthesisOptions { truncation_psi: 0.7, truncation_cutoff: Some(3), ..plain }),
        ("quiet", SynthesisOptions { noise: false, ..plain }),
    ]
}

#[test]
fn stylegan2_on_the_runtimes() {
    let dir = tempfile::tempdir().unwrap();
    for name in GENERATORS {
        let checkpoint = Checkpoint::open(&data(&format!("stylegan2/{name}.pkl"))).unwrap();
        let network = checkpoint.network(None).unwrap();
        assert_eq!((network.name.as_str(), network.architecture.name().as_str()), ("G_ema", "Generator"));
        let mut npz = Npz::open(&data(&format!("stylegan2/{name}.npz"))).unwrap();
        let mut inputs = vec![("latents", Tensor::F32(array(&mut npz, "z")))];
        if npz.contains("labels") {
            inputs.push(("class_labels", Tensor::F32(array(&mut npz, "labels"))));
        }
        for (output, synthesis) in options() {
            let exported = export::generator(network, &GeneratorOptions { synthesis, uint8: true }).unwrap();
            agrees(&format!("{name} {output}"), &exported, &inputs, &array(&mut npz, output), dir.path());
        }
    }
}

#[cfg(feature = "train")]
#[test]
fn stylegan2_on_libtorch() {
    use d2o::train::libtorch::{LibTorch, Value, tensor_of, values_of};
    use tch::Device;

    for name in GENERATORS {
        let checkpoint = Checkpoint::open(&data(&format!("stylegan2/{name}.pkl"))).unwrap();
        let network = checkpoint.network(None).unwrap();
        let Architecture::Generator(generator) = &network.architecture else { panic!("{:?}", network.architecture) };
        let weights = network.weights();
        let mut b = LibTorch::with_weights(weights, Device::Cpu);
        let net = generator.build(&mut b).unwrap();
        b.finish().unwrap();
        let mut npz = Npz::open(&data(&format!("stylegan2/{name}.npz"))).unwrap();
        let labelled = npz.contains("labels");
        let mut value = |n: &str| {
            let a = npz.f32(n).unwrap();
            Value(tensor_of(a.as_slice().unwrap(), a.shape(), Device::Cpu).unwrap())
        };
        let (latents, labels) = (value("z"), labelled.then(|| value("labels")));
        let mut b = LibTorch::running(Device::Cpu, false);
        let _guard = tch::no_grad_guard();
        for (output, synthesis) in options() {
            let what = format!("{name} {output}");
            let found = values_of(&net.forward(&mut b, &latents, labels.as_ref(), &synthesis).unwrap().0).unwrap();
            let relative = assert_close(&what, &found, npz.f32(output).unwrap().as_slice().unwrap(), Tol::Parity);
            println!("parity: {what:<32} libtorch   {relative:.1e}");
        }
    }
}

/// Outputs of the model at `path` on every runtime.
fn outputs(path: &Path, inputs: &[(&str, Tensor)]) -> Vec<(String, Vec<f32>)> {
    let run = |mut s: Box<dyn d2o_runtime::Session>| {
        let outputs = s.run(&views(inputs)).unwrap_or_else(|e| panic!("{}: {e:?}", s.runtime()));
        (s.runtime().to_owned(), outputs[0].as_f32().unwrap().iter().copied().collect())
    };
    sessions(path).into_iter().map(run).collect()
}

fn latents() -> Vec<(&'static str, Tensor)> {
    let values = d2o_converters::weights::Init::Normal { std: 1.0 }.values(0, "latents", 2 * 3 * 16 * 16);
    vec![("latents", Tensor::F32(ArrayD::from_shape_vec(vec![2, 3, 16, 16], values).unwrap()))]
}

#[test]
fn graphs_in_f16_stay_near_those_in_f32() {
    let dir = tempfile::tempdir().unwrap();
    let checkpoint = Checkpoint::open(&test_support::golden_dir().join("d2o-ncsnpp-uncond.safetensors")).unwrap();
    let exported = export::denoiser(checkpoint.network(None).unwrap(), &Options::default()).unwrap();
    let half = exported.model.to_f16(&["precond", "quantise"]).unwrap();
    let paths = [dir.path().join("fp32.onnx"), dir.path().join("fp16.onnx")];
    for (path, model) in paths.iter().zip([&exported.model, &half]) {
        d2o_onnx::write::write(model, path).unwrap();
    }
    let size = |path: &PathBuf| fs_err::metadata(path).unwrap().len();
    assert!(size(&paths[1]) * 10 < size(&paths[0]) * 7, "{} and {} bytes", size(&paths[0]), size(&paths[1]));
    let full = outputs(&paths[0], &latents());
    for ((runtime, found), (_, expected)) in outputs(&paths[1], &latents()).iter().zip(&full) {
        let peak = expected.iter().fold(0.0_f32, |m, v| m.max(v.abs()));
        let worst = found.iter().zip(expected).fold(0.0_f32, |m, (f, e)| m.max((f - e).abs()));
        println!("f16 on {runtime}: {:.1e} of the largest value", worst / peak);
        // f16 has 11 significant bits, and the network has about forty layers.
        assert!(worst > 0.0 && worst / peak < 5e-3, "{runtime}: {worst} of {peak}");
    }
}

#[test]
fn weights_in_a_side_file_are_the_same_weights() {
    let dir = tempfile::tempdir().unwrap();
    let checkpoint = Checkpoint::open(&test_support::golden_dir().join("d2o-ncsnpp-uncond.safetensors")).unwrap();
    let model = export::denoiser(checkpoint.network(None).unwrap(), &Options::default()).unwrap().model;
    let (inline, split) = (dir.path().join("inline.onnx"), dir.path().join("split.onnx"));
    d2o_onnx::write::write(&model, &inline).unwrap();
    let read = |name: &str| fs_err::read(dir.path().join(name)).unwrap();
    d2o_onnx::write::write_splitting(&model, &split, 1 << 16).unwrap();
    let side_name = || {
        let names = fs_err::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
        let sides: Vec<String> = names.filter(|n| n.ends_with(".data")).collect();
        assert!(sides.len() == 1 && sides[0].starts_with("split."), "{sides:?}");
        sides[0].clone()
    };
    let (first, name) = (read("split.onnx"), side_name());
    let side = read(&name);
    d2o_onnx::write::write_splitting(&model, &split, 1 << 16).unwrap();
    assert!(read("split.onnx") == first && side_name() == name && read(&name) == side, "the bytes changed");
    assert!(first.len() * 4 < read("inline.onnx").len() && side.len() > 1 << 16);
    let info = |path: &Path| d2o_onnx::read::ModelInfo::open(path).unwrap();
    assert_eq!(info(&split), info(&inline));
    assert_eq!(outputs(&split, &latents()), outputs(&inline, &latents()));
}
