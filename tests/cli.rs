//! The command line as a user sees it: help, errors and exit codes.
#![allow(missing_docs, clippy::unwrap_used, clippy::print_stdout, clippy::cast_possible_truncation, reason = "a test")]

use std::path::Path;

use fs_err as fs;
use test_support::{Outcome, run};

const COMMANDS: [&str; 17] = [
    "export",
    "inspect",
    "draw",
    "generate",
    "refs",
    "evaluate",
    "explain",
    "verify",
    "train",
    "report",
    "dataset",
    "known",
    "fetch",
    "reproduce",
    "doctor",
    "completions",
    "man",
];

fn d2o(dir: &Path, args: &[&str]) -> Outcome {
    let mut outcome = run(Path::new(env!("CARGO_BIN_EXE_d2o")), dir, args);
    // The usage line has this only if the environment names the library.
    outcome.stderr = outcome.stderr.replace(" --onnxruntime <LIB>", "");
    outcome
}

#[test]
fn help_of_every_command() {
    let dir = tempfile::tempdir().unwrap();
    insta::assert_snapshot!("help", d2o(dir.path(), &["--help"]));
    for command in COMMANDS {
        insta::assert_snapshot!(format!("help_{command}"), d2o(dir.path(), &[command, "--help"]));
    }
    for command in ["make", "inspect"] {
        insta::assert_snapshot!(format!("help_refs_{command}"), d2o(dir.path(), &["refs", command, "--help"]));
    }
}

#[test]
fn wrong_arguments_are_misuse() {
    let dir = tempfile::tempdir().unwrap();
    let cases: [&[&str]; 5] = [
        &["generate", "x.onnx", "--seeds", "9-1", "--out", "s.npz"],
        &["export", "x.safetensors"],
        &["evaluate", "a.npz", "--ref", "r.npz", "--extractor", "f.onnx", "--metrics", "fud"],
        &["frobnicate"],
        &["verify", "x.onnx", "--samples", "0"],
    ];
    let outcomes: Vec<String> = cases
        .iter()
        .map(|args| {
            let outcome = d2o(dir.path(), args);
            assert_eq!(outcome.code, 2, "{args:?}");
            format!("$ d2o {}\n{outcome}", args.join(" "))
        })
        .collect();
    insta::assert_snapshot!("misuse", outcomes.join("\n"));
}

#[test]
fn bad_input_is_one_clear_error() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    fs::write(at("text.onnx"), "this is no graph").unwrap();
    fs::write(at("empty.onnx"), "").unwrap();
    fs::write(at("text.safetensors"), "neither is this a checkpoint").unwrap();
    fs::write(at("broken.npz"), "PK\u{3}\u{4} and then nothing").unwrap();
    fs::write(at("evil.pkl"), b"\x80\x04cos\nsystem\n(S'true'\ntR.").unwrap();
    fs::create_dir(at("folder")).unwrap();
    truncated_zip(&at("truncated.zip"));
    let cases: [&[&str]; 11] = [
        &["verify", "missing.onnx"],
        &["verify", "text.onnx"],
        &["verify", "empty.onnx"],
        &["generate", "text.onnx", "--seeds", "0-3", "--out", "s.npz"],
        &["export", "missing.safetensors", "--out", "x.onnx"],
        &["export", "text.safetensors", "--out", "x.onnx"],
        &["export", "evil.pkl", "--out", "x.onnx"],
        &["inspect", "broken.npz"],
        &["inspect", "truncated.zip"],
        &["dataset", "folder", "--resolution", "32", "--out", "d.zip"],
        &["report", "text.onnx", "--out", "r.html"],
    ];
    let outcomes: Vec<String> = cases
        .iter()
        .map(|args| {
            let outcome = d2o(dir.path(), args);
            assert_eq!(outcome.code, 2, "{args:?}: {outcome}");
            assert!(outcome.stderr.starts_with("error: "), "{args:?}: {outcome}");
            format!("$ d2o {}\n{outcome}", args.join(" "))
        })
        .collect();
    insta::assert_snapshot!("bad_input", outcomes.join("\n"));
    for absent in ["s.npz", "x.onnx", "d.zip", "r.html"] {
        assert!(!at(absent).exists(), "{absent} was left behind");
    }
}

/// Writes the first half of a dataset zip.
fn truncated_zip(path: &Path) {
    let mut writer = d2o_refs::image_zip::DatasetWriter::create(path).unwrap();
    writer.append(&ndarray::Array4::from_elem((4, 8, 8, 3), 7), None).unwrap();
    writer.finish().unwrap();
    let bytes = fs::read(path).unwrap();
    fs::write(path, &bytes[..bytes.len() / 2]).unwrap();
}

/// Control characters in names are escaped for terminals. JSON keeps the names.
#[test]
fn control_characters_of_names_are_escaped() {
    const NAME: &str = "\x1b[2Jw\u{9b}31m\x7f";
    const SHOWN: &str = "\\u{1b}[2Jw\\u{9b}31m\\u{7f}";
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let mut npz = d2o_refs::npz::NpzWriter::create(&at("n.npz")).unwrap();
    npz.f32(NAME, ndarray::arr1(&[0.5_f32]).view().into_dyn()).unwrap();
    npz.finish().unwrap();
    fs::create_dir(at("photos")).unwrap();
    fs::write(at("photos").join(format!("{NAME}.png")), "no image").unwrap();
    for (args, code) in [
        (&["inspect", "n.npz"][..], 0),
        (&["inspect", "photos"], 2),
        (&["evaluate", "n.npz", "--metrics", "is"], 2),
        (&["dataset", "photos", "--out", "d.zip"], 2),
    ] {
        let outcome = d2o(dir.path(), args);
        let text = format!("{}{}", outcome.stdout, outcome.stderr);
        assert!(!text.contains(|c: char| c.is_control() && c != '\n'), "{args:?}: {text:?}");
        assert!(outcome.code == code && text.contains(SHOWN), "{args:?}: {outcome}");
    }
    let json = d2o(dir.path(), &["inspect", "n.npz", "--json", "-"]).stdout;
    assert!(!json.contains(|c: char| c.is_control() && c != '\n'), "{json:?}");
    let value: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert!(value.to_string().contains(serde_json::to_string(NAME).unwrap().trim_matches('"')), "{value}");
}

#[test]
fn the_doctor_names_what_is_missing_and_its_remedy() {
    let dir = tempfile::tempdir().unwrap();
    let doctor = |library: &str, cache: &str| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_d2o"));
        command.args(["doctor", "--json", "-"]).current_dir(dir.path()).env("D2O_CACHE", dir.path().join(cache));
        let output = command.env("D2O_ONNXRUNTIME", library).output().unwrap();
        let checks: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        let check = |part: &str| checks.as_array().unwrap().iter().find(|c| c["part"] == part).unwrap().clone();
        (output.status.code(), check("ONNX Runtime"), check("cache"), check("weights"))
    };
    fs::write(dir.path().join("not-a-folder"), "").unwrap();
    let Some(library) = test_support::onnxruntime() else { return };
    let (code, runtime, cache, weights) = doctor(&library.display().to_string(), "cache");
    assert_eq!((code, &runtime["state"], &cache["state"]), (Some(0), &"ok".into(), &"ok".into()));
    assert_eq!(weights["state"], "absent");
    let file = dir.path().join("cache/downloads/known/edm-ref-cifar10-32x32/cifar10-32x32.npz");
    fs::create_dir_all(file.parent().unwrap()).unwrap();
    fs::write(&file, "x").unwrap();
    assert_eq!(doctor(&library.display().to_string(), "cache").3["found"], "edm-ref-cifar10-32x32");
    let (code, runtime, ..) = doctor("missing.so", "cache");
    assert_eq!((code, &runtime["state"]), (Some(1), &"fault".into()));
    let (code, _, cache, _) = doctor(&library.display().to_string(), "not-a-folder");
    assert_eq!((code, &cache["state"]), (Some(1), &"fault".into()));
    assert!(cache["fix"].as_str().unwrap().contains("D2O_CACHE"), "{cache}");
}

#[test]
fn completions_and_manual_pages_have_every_command() {
    let dir = tempfile::tempdir().unwrap();
    for shell in ["bash", "zsh", "fish"] {
        let script = d2o(dir.path(), &["completions", shell]).stdout;
        assert!(COMMANDS.iter().all(|c| script.contains(c)), "{shell}");
        assert!(!script.contains("walk-hdf5") || shell != "fish", "{shell}: a hidden command");
    }
    assert_eq!(d2o(dir.path(), &["man", "pages"]).code, 0);
    for command in COMMANDS {
        let page = fs::read_to_string(dir.path().join(format!("pages/d2o-{command}.1"))).unwrap();
        assert!(page.contains("SYNOPSIS"), "{command}");
    }
    let version = d2o(dir.path(), &["--version"]).stdout;
    assert!(version.contains(env!("CARGO_PKG_VERSION")) && version.contains("features: "), "{version}");
}
