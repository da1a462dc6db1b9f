//! Outputs that exist: when they are replaced, refused or kept.
#![allow(missing_docs, clippy::unwrap_used, reason = "a test")]

use std::path::Path;

use fs_err as fs;
use test_support::{Outcome, golden_dir};

mod common;
use common::running::names;
use common::{attempt, d2o};

fn generator(dir: &Path) {
    let source = golden_dir().join("d2o-adm-cond.safetensors").display().to_string();
    d2o(dir, &["export", &source, "--kind", "one-step", "--out", "x.onnx", "--no-check"]);
}

fn generate(dir: &Path, seeds: &str, out: &str, more: &[&str]) -> Outcome {
    let words = ["generate", "x.onnx", "--provider", "cpu", "--seeds", seeds, "--out", out];
    attempt(dir, &[&words[..], more].concat())
}

/// Fails unless the command exits with code 2 and an error that contains `text`.
fn refused(outcome: &Outcome, text: &str) {
    assert!(outcome.code == 2 && outcome.stderr.contains(text), "`{text}`: {outcome}");
}

#[test]
fn every_container_is_replaced_only_on_demand_and_kept_when_complete() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    generator(dir);
    let bytes = |out: &str| {
        let path = dir.join(out);
        let json =
            || [fs::read(path.join("dataset.json")).unwrap(), fs::read(path.join("000001.png")).unwrap()].concat();
        if path.is_dir() { json() } else { fs::read(&path).unwrap() }
    };
    for out in ["s.npz", "s.h5", "s.zip", "s"] {
        assert_eq!(generate(dir, "0-9", out, &[]).code, 0, "{out}");
        let first = bytes(out);
        let again = generate(dir, "0-9", out, &[]);
        refused(&again, &format!("`{out}` exists"));
        assert!(again.stderr.contains("hint: --overwrite replaces"), "{again}");

        let complete = generate(dir, "0-9", out, &["--resume"]);
        assert!(complete.code == 0 && complete.stderr.contains("is already complete"), "{complete}");
        assert!(!complete.stderr.contains("images in"), "nothing is drawn: {complete}");
        let complete = generate(dir, "0-9", out, &["--resume", "--overwrite", "--batch", "3"]);
        assert!(complete.code == 0 && complete.stderr.contains("is already complete"), "{complete}");
        let lacking = generate(dir, "0-9", out, &["--resume", "--save-latents", "l.npz"]);
        refused(&lacking, "is complete, but `l.npz` does not exist");
        let other = generate(dir, "0-4", out, &["--resume"]);
        refused(&other, "is the output of another run: seeds \"0-9\", not \"0-4\"");
        assert!(bytes(out) == first, "{out}: refused, but changed");

        let replaced = generate(dir, "1-4", out, &["--overwrite"]);
        assert!(replaced.code == 0 && replaced.stderr.contains("4 images"), "{replaced}");
        let second = bytes(out);
        assert!(second != first, "{out}");
        let replaced = generate(dir, "0-9", out, &["--overwrite", "--resume"]);
        assert!(replaced.code == 0 && bytes(out) == first, "{replaced}");
        assert!(!dir.join(format!("{out}.partial")).exists());
    }
    assert_eq!(names(dir), ["s", "s.h5", "s.npz", "s.zip", "x.onnx"]);
}

#[test]
fn a_folder_never_mixes_two_runs() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    generator(dir);
    let images = |n: std::ops::Range<u64>| -> Vec<String> {
        let images = n.map(|s| format!("{s:06}.png"));
        images.chain(["dataset.json".to_owned()]).collect()
    };
    let out = dir.join("out");
    fs::create_dir(&out).unwrap();
    assert_eq!(generate(dir, "0-9", "out", &[]).code, 0, "an empty folder is as good as none");
    assert_eq!(names(&out), images(0..10));
    assert_eq!(generate(dir, "3-5", "out", &["--overwrite"]).code, 0);
    assert_eq!(names(&out), images(3..6));
    assert_eq!(generate(dir, "3-5", "out", &["--overwrite", "--subdirs"]).code, 0);
    assert_eq!(names(&out), ["000000", "dataset.json"]);
    assert_eq!(names(&out.join("000000")), &images(3..6)[..3]);
    refused(&generate(dir, "3-5", "out", &["--resume"]), "is complete except for `000003.png`");
    assert_eq!(generate(dir, "3-5", "out", &["--resume", "--subdirs"]).code, 0);

    fs::write(out.join("notes.txt"), "mine").unwrap();
    let foreign = generate(dir, "0", "out", &["--overwrite"]);
    refused(&foreign, "out/notes.txt` was not written by the run to be replaced");
    refused(&generate(dir, "0", "out", &["--overwrite", "--resume"]), "out/notes.txt` was not written by the run");
    fs::remove_file(out.join("dataset.json")).unwrap();
    refused(&generate(dir, "0", "out", &["--overwrite"]), "is not a finished output of `d2o generate`");
    assert_eq!(names(&out), ["000000", "notes.txt"]);
    assert_eq!(names(dir), ["out", "x.onnx"]);
}

#[test]
fn further_outputs_are_replaced_only_on_demand() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    generator(dir);
    let words = ["--grid", "g.png", "--save-latents", "l.npz"];
    assert_eq!(generate(dir, "0-9", "s.npz", &words).code, 0);
    fs::remove_file(dir.join("s.npz")).unwrap();
    refused(&generate(dir, "0-9", "s.npz", &words), "`l.npz` exists");
    fs::remove_file(dir.join("l.npz")).unwrap();
    refused(&generate(dir, "0-9", "s.npz", &words), "`g.png` exists");
    refused(&generate(dir, "0-9", "s.npz", &[&words[..], &["--resume"]].concat()), "`g.png` exists");
    assert_eq!(generate(dir, "0-9", "s.npz", &[&words[..], &["--overwrite"]].concat()).code, 0);
    assert_eq!(names(dir), ["g.png", "l.npz", "s.npz", "x.onnx"]);

    // A partial folder without a plan is not an unfinished run.
    fs::create_dir(dir.join("t.npz.partial")).unwrap();
    fs::write(dir.join("t.npz.partial/000000000+000005.npz"), "rest").unwrap();
    assert_eq!(generate(dir, "0-9", "t.npz", &[]).code, 0);
    assert!(fs::read(dir.join("t.npz")).unwrap() == fs::read(dir.join("s.npz")).unwrap());
    assert!(!dir.join("t.npz.partial").exists());
}

#[test]
fn outputs_that_cannot_be_written_are_found_before_the_work() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    generator(dir);
    fs::create_dir(dir.join("folder.npz")).unwrap();
    fs::write(dir.join("file"), "x").unwrap();
    let source = golden_dir().join("d2o-adm-cond.safetensors").display().to_string();
    let export = |out: &str, more: &[&str]| {
        let words = ["export", &source, "--kind", "one-step", "--no-check", "--out", out];
        attempt(dir, &[&words[..], more].concat())
    };
    let draw = |out: &str, more: &[&str]| {
        attempt(dir, &[&["draw", "--seeds", "0", "--draw", "f32:4", "--out", out], more].concat())
    };
    for overwrite in [&[][..], &["--overwrite"]] {
        for write in [&export as &dyn Fn(&str, &[&str]) -> Outcome, &draw, &|out, more| generate(dir, "0", out, more)] {
            refused(&write("folder.npz", overwrite), "`folder.npz` is a folder");
            refused(&write("file/x.npz", overwrite), "file");
        }
    }
    refused(&export("x.onnx", &[]), "`x.onnx` exists");
    refused(&draw("file", &[]), "`file` exists");
    refused(&draw("/dev/null", &["--overwrite"]), "is a stream");
    assert_eq!((export("x.onnx", &["--overwrite"]).code, draw("file", &["--overwrite"]).code), (0, 0));
    refused(&generate(dir, "0", "s.npz", &["--grid", "folder.npz"]), "`folder.npz` is a folder");
    refused(&generate(dir, "0", "s.npz", &["--save-latents", "file"]), "`file` exists");
    assert_eq!(names(dir), ["file", "folder.npz", "x.onnx"]);
}
