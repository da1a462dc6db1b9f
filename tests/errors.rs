//! Every variant of the libraries' errors, as a user sees it. If a command can cause a variant, the command is run. The
//! others are caused by calls of a library, and shown as the command would show them.
#![allow(missing_docs, clippy::unwrap_used, reason = "a test")]

use std::collections::{BTreeMap, BTreeSet};
use std::error::Error as StdError;
use std::fmt::Debug;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Parser as _;
use d2o_converters::checkpoint::safetensors::{self, SafetensorsFile, Tensor};
use d2o_converters::checkpoint::{CheckpointFile, Renamed, TensorInfo, TensorSource};
use d2o_converters::weights::{Init, Scope, Weights};
use d2o_evaluations::frechet::{Gaussian, frechet_distance, frechet_distance_of};
use d2o_evaluations::inception_score::{Parts, ScoreRule, ScoreSums};
use d2o_onnx::graph::{Dim, ElementType, GraphBuilder, PRODUCER};
use d2o_onnx::ops::ConvAttributes;
use fs_err as fs;
use ndarray::{Array2, Array3};
use test_support::golden_dir;

mod common;
use common::onnx::{model, node, shape, text, value};
use common::{image, write_images, write_lite0, write_png};

/// A case that causes a variant.
struct Case {
    /// Name of the variant.
    variant: &'static str,
    /// Writes the files.
    prepare: fn(&Path),
    way: Way,
}

enum Way {
    /// The words of a command. `@x` stands for file `x` of the folder.
    Command(&'static [&'static str]),
    /// The same with an environment variable, and a text that the message must contain.
    CommandWith((&'static str, &'static str), &'static [&'static str], &'static str),
    /// A call of the library. The argument is the folder.
    Call(fn(&Path) -> anyhow::Error),
}

use Way::{Call, Command, CommandWith};

/// The errors of a library.
struct Errors {
    /// File that defines them.
    source: &'static str,
    /// Name of the variant of an error, if the error is of this library.
    variant: fn(&(dyn StdError + 'static)) -> Option<String>,
    cases: Vec<Case>,
}

impl Errors {
    /// Name of the snapshot.
    fn name(&self) -> String {
        self.source.trim_end_matches("/src/error.rs").replace('/', "-")
    }
}

fn case(variant: &'static str, prepare: fn(&Path), way: Way) -> Case {
    Case { variant, prepare, way }
}

fn nothing(_: &Path) {}

/// Name of the variant of `error`, if it is an `E`: the first word of its `Debug` output.
fn variant_of<E: StdError + Debug + 'static>(error: &(dyn StdError + 'static)) -> Option<String> {
    let text = format!("{:?}", error.downcast_ref::<E>()?);
    Some(text.chars().take_while(char::is_ascii_alphanumeric).collect())
}

fn all() -> [Errors; 6] {
    [converters(), checkpoint(), onnx(), runtime(), refs(), evaluations()]
}

// --- checkpoints and networks

/// Writes one of the golden checkpoints, modified by `change`, as `net.safetensors`.
fn altered(dir: &Path, change: impl Fn(&mut Vec<Tensor>, &mut BTreeMap<String, String>)) {
    let file = SafetensorsFile::open(&golden_dir().join("d2o-ncsnpp-uncond.safetensors")).unwrap();
    let read =
        |name: String| Tensor { dims: file.info(&name).unwrap().dims, values: file.read_f32(&name).unwrap(), name };
    let mut tensors: Vec<Tensor> = file.names().into_iter().filter(|n| n.starts_with("weights.")).map(read).collect();
    let mut metadata: BTreeMap<String, String> = file.metadata().iter().cloned().collect();
    change(&mut tensors, &mut metadata);
    safetensors::write(&dir.join("net.safetensors"), &tensors, &metadata).unwrap();
}

const BIAS: &str = "weights.model.dec.16x16_aux_conv.bias";

fn converters() -> Errors {
    use d2o_converters::Error;
    const EXPORT: &[&str] = &["export", "@net.safetensors", "--out", "@x.onnx"];
    Errors {
        source: "converters/src/error.rs",
        variant: variant_of::<Error>,
        cases: vec![
            case("MissingTensor", |dir| altered(dir, |t, _| t.retain(|t| t.name != BIAS)), Command(EXPORT)),
            case(
                "ShapeMismatch",
                |dir| {
                    altered(dir, |tensors, _| {
                        let tensor = tensors.iter_mut().find(|t| t.name == BIAS).unwrap();
                        (tensor.dims, tensor.values) = (vec![2], vec![0.0; 2]);
                    });
                },
                Command(EXPORT),
            ),
            case(
                "UnusedTensors",
                |dir| {
                    altered(dir, |tensors, _| {
                        let extra = |i| Tensor { name: format!("weights.extra{i}"), dims: vec![1], values: vec![0.0] };
                        tensors.extend((0..8).map(extra));
                    });
                },
                Command(EXPORT),
            ),
            case(
                "DuplicateTensor",
                nothing,
                Call(|_| {
                    let mut weights = Weights::initialised(0);
                    let mut take = || weights.take(&Scope::root().child("conv"), "weight", &[3], &Init::Constant(0.0));
                    take().unwrap();
                    take().unwrap_err().into()
                }),
            ),
            case(
                "Config",
                |dir| {
                    altered(dir, |_, metadata| {
                        let kwargs = metadata.get_mut("init_kwargs").unwrap();
                        *kwargs = kwargs.replace("\"img_resolution\": 16", "\"img_resolution\": 15");
                    });
                },
                Command(EXPORT),
            ),
            case(
                "Engine",
                |dir| altered(dir, |_, _| {}),
                Command(&["export", "@net.safetensors", "--sigma-max", "1e39", "--out", "@x.onnx"]),
            ),
            case("Checkpoint", |dir| fs::write(dir.join("net.safetensors"), "no checkpoint").unwrap(), Command(EXPORT)),
        ],
    }
}

/// A source with tensors that are shorter than stated.
#[derive(Debug)]
struct Short;

impl TensorSource for Short {
    fn names(&self) -> Vec<String> {
        vec!["w".to_owned()]
    }

    fn info(&self, name: &str) -> Option<TensorInfo> {
        let dims = vec![2, 3];
        (name == "w").then_some(TensorInfo { dtype: d2o_converters::checkpoint::Dtype::F32, dims })
    }

    fn read_f32(&self, _: &str) -> d2o_converters::checkpoint::Result<Vec<f32>> {
        Ok(vec![0.0; 5])
    }
}

fn checkpoint() -> Errors {
    use d2o_converters::Error as Outer;
    use d2o_converters::checkpoint::Error;
    Errors {
        source: "converters/checkpoint/src/error.rs",
        variant: |error| match error.downcast_ref() {
            Some(Outer::Checkpoint(inner)) => variant_of::<Error>(inner),
            _ => variant_of::<Error>(error),
        },
        cases: vec![
            case(
                "Missing",
                nothing,
                Call(|_| {
                    let file = CheckpointFile::open(&golden_dir().join("d2o-ncsnpp-uncond.safetensors")).unwrap();
                    file.tensors.read_f32("weights.model.nothing").unwrap_err().into()
                }),
            ),
            case(
                "Shape",
                nothing,
                Call(|_| {
                    let axes: &[usize] = &[1, 0];
                    let turned = Renamed::listed(Arc::new(Short), vec![("turned".to_owned(), "w".to_owned(), axes)]);
                    turned.read_f32("turned").unwrap_err().into()
                }),
            ),
            case(
                "Duplicate",
                nothing,
                Call(|dir| {
                    let tensor = || Tensor { name: "w".to_owned(), dims: vec![1], values: vec![0.0] };
                    let written =
                        safetensors::write(&dir.join("w.safetensors"), &[tensor(), tensor()], &BTreeMap::new());
                    written.unwrap_err().into()
                }),
            ),
            case(
                "Format",
                |dir| {
                    altered(dir, |_, metadata| {
                        metadata.insert("init_kwargs".to_owned(), "[16, 3]".to_owned());
                    });
                },
                Command(&["inspect", "@net.safetensors"]),
            ),
            case(
                "Io",
                |dir| fs::write(dir.join("file"), "x").unwrap(),
                Command(&["export", "@file/net.safetensors", "--out", "@x.onnx"]),
            ),
        ],
    }
}

// --- graphs and runtimes

/// Writes a generator of 32×32 pixels as `x.onnx`. `nodes` compute the images from the latents.
fn generator(dir: &Path, nodes: &[Vec<u8>], metadata: &[(&str, &str)]) {
    let images = || shape(&["N", "3", "32", "32"]);
    let (float, nodes) = (1, nodes.concat());
    let ends = [value(11, "latents", float, images()), value(12, "images", float, images())].concat();
    fs::write(dir.join("x.onnx"), model(&[nodes, text(2, "g"), ends].concat(), metadata)).unwrap();
}

const ONE_STEP: &[(&str, &str)] = &[("kind", "one-step")];

/// An operator that no runtime has.
fn unknown_operator(dir: &Path) {
    generator(dir, &[node("Frobnicate", &["latents"], "images", Vec::new())], ONE_STEP);
}

/// A generator that runs only for batches of 3, although its graph does not say so.
fn for_three(dir: &Path) {
    let permutation = [text(1, "perm"), [1, 0, 2, 3].iter().flat_map(|i| [8 << 3, *i]).collect(), vec![0xa0, 1, 7]];
    let turned = node("Transpose", &["latents"], "turned", common::onnx::field(5, &permutation.concat()));
    generator(dir, &[turned, node("Add", &["latents", "turned"], "images", Vec::new())], ONE_STEP);
}

/// A convolution that can be computed with Winograd's algorithm.
fn convolution(dir: &Path) {
    let mut g = GraphBuilder::new("g");
    let x = g.input("x", ElementType::F32, &[Dim::Batch, Dim::Known(16), Dim::Known(16), Dim::Known(16)]).unwrap();
    let weights = g.constant("w", &[16, 16, 3, 3], vec![0.5; 16 * 16 * 9]).unwrap();
    let y = g.conv2d(&x, &weights, None, ConvAttributes::padded(1)).unwrap();
    g.output("y", &y).unwrap();
    d2o_onnx::write::write(&g.finish().unwrap(), &dir.join("x.onnx")).unwrap();
}

fn onnx() -> Errors {
    use d2o_onnx::Error;
    use d2o_runtime::Error as Outer;
    Errors {
        source: "onnx/src/error.rs",
        variant: |error| match error.downcast_ref() {
            Some(Outer::Model(inner)) => variant_of::<Error>(inner),
            _ => variant_of::<Error>(error),
        },
        cases: vec![
            case(
                "Shape",
                |dir| write_lite0(dir, 1, "lite0"),
                Command(&["export", "@lite0.safetensors", "--image-size", "100000", "--out", "@x.onnx"]),
            ),
            case(
                "Graph",
                |dir| {
                    altered(dir, |tensors, _| {
                        tensors.iter_mut().find(|t| t.name == BIAS).unwrap().values[1] = 70000.0;
                    });
                },
                Command(&["export", "@net.safetensors", "--precision", "fp16", "--out", "@x.onnx"]),
            ),
            case("Format", |dir| fs::write(dir.join("x.onnx"), "no graph").unwrap(), Command(&["verify", "@x.onnx"])),
            case(
                "Metadata",
                |dir| {
                    let high = [("kind", "one-step"), ("sigma_max", "high")];
                    generator(dir, &[node("Identity", &["latents"], "images", Vec::new())], &high);
                    // Only the metadata of d2o's graphs are checked; those of other tools may mean anything.
                    let bytes = fs::read(dir.join("x.onnx")).unwrap();
                    fs::write(dir.join("x.onnx"), [bytes, text(2, PRODUCER)].concat()).unwrap();
                },
                Command(&["generate", "@x.onnx", "--seeds", "0-3", "--out", "@s.npz"]),
            ),
            case("Io", nothing, Command(&["verify", "@x.onnx"])),
        ],
    }
}

fn runtime() -> Errors {
    use d2o_runtime::Error;
    Errors {
        source: "onnx/runtime/src/error.rs",
        variant: variant_of::<Error>,
        cases: vec![
            case(
                "Model",
                |dir| {
                    let edge = |i: usize| match i {
                        0 => "latents".to_owned(),
                        10_001 => "images".to_owned(),
                        i => i.to_string(),
                    };
                    let copy = |i| node("Identity", &[&edge(i)], &edge(i + 1), Vec::new());
                    generator(dir, &(0..10_001).map(copy).collect::<Vec<_>>(), ONE_STEP);
                },
                Command(&["verify", "@x.onnx", "--runtimes", "tract,tract"]),
            ),
            case(
                "Input",
                |dir| {
                    let (axes, float) = (|| shape(&["N", "N"]), 1);
                    let ends = [value(11, "x", float, axes()), value(12, "y", float, axes())].concat();
                    let graph = [node("Identity", &["x"], "y", Vec::new()), text(2, "g"), ends].concat();
                    fs::write(dir.join("x.onnx"), model(&graph, &[])).unwrap();
                },
                Command(&["verify", "@x.onnx", "--runtimes", "tract,tract"]),
            ),
            case(
                "Library",
                for_three,
                Command(&["verify", "@x.onnx", "--runtimes", "ort-cpu,ort-cpu", "--onnxruntime", "@missing.so"]),
            ),
            case("Runtime", unknown_operator, Command(&["verify", "@x.onnx", "--runtimes", "tract,tract"])),
            case(
                "Io",
                convolution,
                CommandWith(
                    ("TMPDIR", "missing"),
                    &["verify", "@x.onnx", "--runtimes", "ort-winograd,ort-winograd"],
                    "cannot make a temporary folder",
                ),
            ),
        ],
    }
}

// --- images, references and metrics

/// Writes a folder `images` of two images, the second one modified by `change`.
fn folder(dir: &Path, change: fn(Array3<u8>) -> Array3<u8>) {
    fs::create_dir(dir.join("images")).unwrap();
    write_png(&dir.join("images/a.png"), &image(0));
    write_png(&dir.join("images/b.png"), &change(image(1)));
}

/// Writes the first half of an npz of images.
fn cut_short(dir: &Path) {
    write_images(&dir.join("images.npz"), 0..4);
    let bytes = fs::read(dir.join("images.npz")).unwrap();
    fs::write(dir.join("images.npz"), &bytes[..bytes.len() / 2]).unwrap();
}

/// Writes an HDF5 file with an overwritten B-tree signature.
fn damaged_hdf5(dir: &Path) {
    let dims = d2o_refs::batch::ImageDims { height: 8, width: 8, channels: 3 };
    let mut h5 = d2o_refs::hdf5::Hdf5Writer::create(&dir.join("images.h5"), 4, dims).unwrap();
    h5.append(&ndarray::Array4::zeros((4, 8, 8, 3))).unwrap();
    h5.finish().unwrap();
    let mut bytes = fs::read(dir.join("images.h5")).unwrap();
    let at = bytes.windows(4).position(|w| w == b"TREE").unwrap();
    bytes[at..at + 4].copy_from_slice(b"EERT");
    fs::write(dir.join("images.h5"), bytes).unwrap();
}

fn refs() -> Errors {
    use d2o_refs::Error;
    Errors {
        source: "refs/src/error.rs",
        variant: variant_of::<Error>,
        cases: vec![
            case("Format", cut_short, Command(&["inspect", "@images.npz"])),
            case("Missing", nothing, Command(&["dataset", "@images", "--out", "@d.zip"])),
            case(
                "Empty",
                |dir| {
                    fs::create_dir(dir.join("images")).unwrap();
                    fs::write(dir.join("images/a.txt"), "").unwrap();
                    fs::write(dir.join("images/.b.png"), "").unwrap();
                },
                Command(&["evaluate", "@images", "--metrics", "is"]),
            ),
            case(
                "MixedSizes",
                |dir| {
                    folder(dir, |image| image.slice(ndarray::s![..16, ..24, ..]).to_owned());
                    write_lite0(dir, 1, "lite0");
                },
                Command(&["evaluate", "@images", "--extractor", "@lite0.onnx", "--metrics", "is"]),
            ),
            case(
                "Image",
                |dir| {
                    folder(dir, |image| image);
                    let bytes = fs::read(dir.join("images/b.png")).unwrap();
                    fs::write(dir.join("images/b.png"), &bytes[..bytes.len() / 2]).unwrap();
                },
                Command(&["refs", "inspect", "@images"]),
            ),
            case("Hdf5", damaged_hdf5, Command(&["dataset", "@images.h5", "--out", "@d.zip"])),
            case(
                "Made",
                |dir| {
                    for_three(dir);
                    write_lite0(dir, 1, "lite0");
                },
                Command(&[
                    "evaluate",
                    "@x.onnx",
                    "--seeds",
                    "0-7",
                    "--metrics",
                    "is",
                    "--provider",
                    "cpu",
                    "--extractor",
                    "@lite0.onnx",
                ]),
            ),
            case(
                "Io",
                |dir| fs::write(dir.join("file"), "x").unwrap(),
                Command(&["dataset", "@file/images.npz", "--out", "@d.zip"]),
            ),
        ],
    }
}

fn evaluations() -> Errors {
    use d2o_evaluations::Error;
    Errors {
        source: "evaluations/src/error.rs",
        variant: variant_of::<Error>,
        cases: vec![
            case(
                "DimMismatch",
                nothing,
                Call(|_| {
                    let rows = |width| Array2::<f32>::zeros((4, width));
                    frechet_distance_of(rows(3).view(), rows(2).view(), 1).unwrap_err().into()
                }),
            ),
            case(
                "NotFinite",
                nothing,
                Call(|_| {
                    let mut rows = Array2::<f32>::ones((4, 8));
                    rows[[2, 5]] = f32::NAN;
                    frechet_distance_of(rows.view(), rows.view(), 1).unwrap_err().into()
                }),
            ),
            case(
                "TooFew",
                |dir| {
                    write_images(&dir.join("images.npz"), 0..1);
                    write_lite0(dir, 1, "lite0");
                },
                Command(&[
                    "evaluate",
                    "@images.npz",
                    "--extractor",
                    "@lite0.onnx",
                    "--metrics",
                    "is",
                    "--protocol",
                    "torch-fidelity",
                ]),
            ),
            case(
                "TooMany",
                nothing,
                Call(|_| {
                    let rule = ScoreRule { parts: Parts::Count(2), shuffle_seed: None, f32_probabilities: true };
                    let mut sums = ScoreSums::new(rule, 10, 4).unwrap();
                    sums.push(Array2::zeros((11, 4)).view()).unwrap_err().into()
                }),
            ),
            case(
                "Eigen",
                nothing,
                Call(|_| {
                    // Each is finite. Their product is not.
                    let large = || Gaussian { mu: ndarray::Array1::zeros(3), sigma: Array2::from_elem((3, 3), 1e308) };
                    frechet_distance(&large(), &large()).unwrap_err().into()
                }),
            ),
            case(
                "Condition",
                |dir| {
                    write_images(&dir.join("images.npz"), 0..4);
                    write_lite0(dir, 1, "lite0");
                },
                Command(&[
                    "evaluate",
                    "@images.npz",
                    "--extractor",
                    "@lite0.onnx",
                    "--metrics",
                    "is",
                    "--expect",
                    "is=2",
                ]),
            ),
        ],
    }
}

// --- the tests

/// The words of a command, with `at` applied to those that name files.
fn words(words: &[&str], at: impl Fn(&str) -> String) -> Vec<String> {
    words.iter().map(|word| word.strip_prefix('@').map_or_else(|| (*word).to_owned(), &at)).collect()
}

/// The error of a command that is run in this process.
fn error_of(dir: &Path, command: &[&str]) -> anyhow::Error {
    let mut line = vec!["d2o".to_owned(), "--quiet".to_owned()];
    line.extend(words(command, |name| dir.join(name).display().to_string()));
    let result = d2o::commands::run(d2o::cli::Cli::parse_from(line));
    result.map_or_else(|error| error, |status| panic!("{command:?}: {status:?}"))
}

/// The command line and the standard error of a command, which must fail with code 2 and print nothing else.
fn told(dir: &Path, command: &[&str], environment: &[(&str, PathBuf)]) -> (String, String) {
    let command = words(command, str::to_owned);
    let mut program = std::process::Command::new(env!("CARGO_BIN_EXE_d2o"));
    program.args(&command).current_dir(dir).env_remove("RUST_BACKTRACE").envs(environment.iter().cloned());
    let output = program.output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    let (stdout, stderr) = (text(output.stdout), text(output.stderr));
    assert_eq!((output.status.code(), stdout.as_str()), (Some(2), ""), "{command:?}: {stderr}");
    (format!("$ d2o {}\n", command.join(" ")), stderr)
}

/// Fails unless `error` or one of its causes is the variant `wanted`.
fn assert_variant(errors: &Errors, wanted: &str, error: &anyhow::Error) {
    let mut found = Vec::new();
    d2o::error::walk(error, &mut |cause| found.extend((errors.variant)(cause)));
    assert!(found.iter().any(|v| v == wanted), "{wanted}: found {found:?}: {error:?}");
}

/// Replaces messages that come from the runtimes and the loader of libraries.
fn shown(text: &str) -> String {
    let own = ["Non-zero status code returned", "Load model from", "dlopen"];
    let line = |line: &str| match own.iter().find(|own| line.contains(**own)) {
        Some(own) => format!("  caused by: [{own} …]"),
        None => line.to_owned(),
    };
    text.lines().map(|l| line(l) + "\n").collect()
}

#[test]
fn every_variant_is_shown_as_one_clear_message() {
    for errors in all() {
        let mut all = Vec::new();
        for case in &errors.cases {
            let dir = tempfile::tempdir().unwrap();
            let dir = dir.path();
            (case.prepare)(dir);
            let (line, text) = match &case.way {
                Call(call) => {
                    let error = call(dir);
                    assert_variant(&errors, case.variant, &error);
                    (String::new(), d2o::error::render(&error))
                }
                Command(command) => {
                    assert_variant(&errors, case.variant, &error_of(dir, command));
                    told(dir, command, &[])
                }
                // Another environment needs another process, so only the text is checked.
                CommandWith((name, value), command, fixed) => {
                    let (line, text) = told(dir, command, &[(name, dir.join(value))]);
                    assert!(text.contains(fixed), "{}: {text}", case.variant);
                    (line.replace("$ ", &format!("$ {name}=DIR/{value} ")), text)
                }
            };
            assert_eq!(text.lines().filter(|l| l.starts_with("error: ")).count(), 1, "{}: {text}", case.variant);
            let text = text.replace(&dir.display().to_string(), "DIR");
            all.push(format!("# {}\n{line}{}", case.variant, shown(&text)));
        }
        insta::assert_snapshot!(errors.name(), all.join("\n"));
    }
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// Names of the variants of `pub enum Error` in `source`, in order; empty if there is no such enum.
fn variants(source: &str) -> Vec<String> {
    let Some((_, body)) = source.split_once("pub enum Error {\n") else { return Vec::new() };
    let body = body.split("\n}").next().unwrap();
    let name = |line: &str| {
        let inside = line.strip_prefix("    ").filter(|l| l.starts_with(|c: char| c.is_ascii_uppercase()))?;
        Some(inside.chars().take_while(char::is_ascii_alphanumeric).collect())
    };
    body.lines().filter_map(name).collect()
}

#[test]
fn no_variant_is_without_a_case() {
    let defined = "pub enum Error {\n    /// One.\n    #[error(\"x\")]\n    One {\n        /// Field.\n        field: String,\n    },\n    Two(#[from] X),\n    Three,\n}\n\nenum Other {\n    Four,\n}\n";
    assert_eq!(variants(defined), ["One", "Two", "Three"]);
    for errors in all() {
        let there = variants(&fs::read_to_string(root().join(errors.source)).unwrap());
        assert!(!there.is_empty(), "{} has no `pub enum Error`", errors.source);
        let of: BTreeSet<&str> = errors.cases.iter().map(|c| c.variant).collect();
        let expected: BTreeSet<&str> = there.iter().map(String::as_str).collect();
        assert_eq!(of, expected, "variants of {} and cases of this test", errors.source);
    }
}

/// Tests of the errors of `refs/fetch`: variant, test file and part of the expected text. These tests use servers that
/// cause the errors.
const FETCH: [(&str, &str, &str); 24] = [
    ("Source", "cache.rs", "expected hf://OWNER/REPO/PATH[@REVISION]"),
    ("Hash", "cache.rs", "`abc` is not a SHA-256"),
    ("Name", "cache.rs", "cannot name a file in the cache"),
    ("Setting", "cache.rs", "HF_TOKEN is `…`: expected letters"),
    ("NoCache", "cache.rs", "no folder for downloads"),
    ("Offline", "cache.rs", "does not exist, and downloads are disabled"),
    ("Connection", "download.rs", "cannot connect: Connection refused"),
    ("Tls", "tls.rs", "cannot establish a TLS connection"),
    ("Proxy", "tls.rs", "cannot connect through the proxy"),
    ("Stalled", "download.rs", "no response or data for"),
    ("BrokenOff", "download.rs", "the connection was lost"),
    ("Protocol", "download.rs", "invalid HTTP response"),
    ("Redirect", "download.rs", "cannot follow the redirect"),
    ("Status", "download.rs", "the server responded with 500"),
    ("WrongSize", "download.rs", "expected 4 bytes, found 3"),
    ("WrongHash", "download.rs", "(sent as text/html"),
    ("Changed", "cache.rs", "as in the first download, found"),
    ("WebPage", "download.rs", "the server sent a web page"),
    ("NoLength", "download.rs", "the server does not send the length of the file"),
    ("NoSpace", "cache.rs", "no space left"),
    ("NoLocks", "cache.rs", "the file system has no file locks"),
    ("AllFailed", "download.rs", "none of 3 sources could be used"),
    ("Interrupted", "cache.rs", "Error::Interrupted"),
    ("Io", "cache.rs", "Error::Io(_)"),
];

#[test]
fn errors_of_downloads_have_tests_of_their_own() {
    let read = |path: &str| fs::read_to_string(root().join("refs/fetch").join(path)).unwrap();
    let there = variants(&read("src/error.rs"));
    assert_eq!(FETCH.map(|(variant, ..)| variant).to_vec(), there);
    for (variant, file, text) in FETCH {
        assert!(read(&format!("tests/{file}")).contains(text), "{variant}: {file} has no `{text}`");
    }
}

#[test]
fn no_library_is_left_out() {
    let manifest = fs::read_to_string(root().join("Cargo.toml")).unwrap();
    let members = manifest.split("members = [").nth(1).unwrap().split(']').next().unwrap();
    let mut sources: Vec<String> = members
        .split(',')
        .map(|member| format!("{}/src/error.rs", member.trim().trim_matches('"')))
        .filter(|path| root().join(path).exists())
        .collect();
    let mut tested = all().map(|errors| errors.source.to_owned()).to_vec();
    tested.push("refs/fetch/src/error.rs".to_owned());
    sources.sort_unstable();
    tested.sort_unstable();
    assert_eq!(tested, sources);
}
