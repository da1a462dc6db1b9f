//! The invariants of ARCHITECTURE.md that sources and manifests can show.
#![allow(missing_docs, clippy::unwrap_used, reason = "a test")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use fs_err as fs;

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// Every Rust file below `folder`, up to its module of tests.
fn sources(folder: &str) -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    let mut folders = vec![root().join(folder)];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|e| e == "rs") {
                let text = fs::read_to_string(&path).unwrap();
                let end = text.find("#[cfg(test)]\nmod tests").unwrap_or(text.len());
                found.push((path, text[..end].to_owned()));
            }
        }
    }
    assert!(!found.is_empty(), "{folder} holds no sources");
    found
}

fn lacks(folder: &str, words: &[&str]) {
    for (path, text) in sources(folder) {
        for (number, line) in text.lines().enumerate() {
            let code = line.split("//").next().unwrap_or_default();
            let word = words.iter().find(|w| code.contains(**w));
            assert!(word.is_none(), "{}:{}: {}", path.display(), number + 1, line.trim());
        }
    }
}

/// Folders of the library crates: the members of the workspace except `test-support` and `xtask`.
fn libraries() -> Vec<String> {
    let text = fs::read_to_string(root().join("Cargo.toml")).unwrap();
    let members = text.split("members = [").nth(1).unwrap().split(']').next().unwrap();
    let members = members.split(',').map(|m| m.trim().trim_matches('"').to_owned());
    members.filter(|m| !m.is_empty() && m != "test-support" && m != "xtask").collect()
}

/// Names under `[dependencies]` in the manifest of `folder`.
fn dependencies(folder: &str) -> Vec<String> {
    let text = fs::read_to_string(root().join(folder).join("Cargo.toml")).unwrap();
    let Some((_, rest)) = text.split_once("[dependencies]") else { return Vec::new() };
    let lines = rest[..rest.find("\n[").unwrap_or(rest.len())].lines();
    lines.filter_map(|l| l.split(['.', ' ', '=']).next()).filter(|n| !n.is_empty()).map(str::to_owned).collect()
}

#[test]
fn crates_depend_one_way() {
    // Each crate with the crates of d2o that it depends on.
    let own = [
        ("onnx", &["d2o-budget", "d2o-files"][..]),
        ("onnx/runtime", &["d2o-files", "d2o-onnx", "d2o-winograd"]),
        ("onnx/winograd", &[]),
        ("converters", &["d2o-checkpoint", "d2o-files", "d2o-onnx"]),
        ("converters/checkpoint", &["d2o-budget", "d2o-files"]),
        ("refs", &["d2o-budget", "d2o-files"]),
        ("refs/budget", &[]),
        ("refs/fetch", &["d2o-files"]),
        ("refs/files", &[]),
        ("evaluations", &[]),
    ];
    assert_eq!(libraries(), own.map(|(folder, _)| folder));
    for (folder, expected) in own {
        let mut found = dependencies(folder);
        found.retain(|n| n.starts_with("d2o"));
        assert_eq!(found, expected, "{folder}");
    }
    for (folder, kept_out) in [
        ("onnx", &["ort", "tract-onnx", "tch"][..]),
        ("onnx/winograd", &["ort", "prost"]),
        ("evaluations", &["zip", "hdf5", "image", "fs-err"]),
        ("converters", &["ort", "tract-onnx", "tch"]),
        ("converters/checkpoint", &["ort", "tract-onnx", "tch"]),
    ] {
        let found = dependencies(folder);
        assert!(!kept_out.iter().any(|n| found.iter().any(|f| f == n)), "{folder}: {found:?}");
    }
}

#[test]
fn one_crate_downloads() {
    for folder in libraries().into_iter().chain([String::new()]) {
        assert_eq!(dependencies(&folder).iter().any(|n| n == "ureq"), folder == "refs/fetch", "{folder}");
    }
}

#[test]
fn measuring_and_sampling_know_neither_the_command_line_nor_the_printer() {
    for folder in ["src/pipeline", "src/sampling"] {
        lacks(folder, &["clap", "crate::cli", "crate::printer", "crate::commands", "println!"]);
    }
    lacks("src/report", &["crate::commands"]);
}

#[test]
fn libraries_never_print_exit_or_read_the_environment() {
    for folder in libraries() {
        lacks(
            &format!("{folder}/src"),
            &["println!", "eprintln!", "print!(", "process::exit", "env::var", "SystemTime::now", "thread_rng"],
        );
    }
}

#[test]
fn libtorch_is_used_in_training_only() {
    for (path, text) in sources("src") {
        let own = path.starts_with(root().join("src/train"));
        let used = ["use tch", " tch::", "(tch::", "<tch::", "&tch::"].iter().any(|w| text.contains(w));
        assert!(own || !used, "{} uses libtorch", path.display());
    }
    for folder in libraries() {
        lacks(&format!("{folder}/src"), &["use tch", " tch::", "(tch::", "<tch::", "&tch::"]);
    }
}

#[test]
fn every_invariant_names_its_guard_here_or_is_a_rule_of_one_crate() {
    let page = fs::read_to_string(Path::new(&root()).join("ARCHITECTURE.md")).unwrap();
    let invariants = page.split("## Invariants").nth(1).unwrap().split("## ").next().unwrap();
    // 1 and 2: above. 3: the hostile tests of each reader. 4: metrics of any batch size (tests/evaluate.rs). 5 and 6:
    // tests/plan.rs. 7: tests/parity.rs. 8: equal bytes (tests of converters and refs). 9: tests/generate.rs,
    // tests/training.rs, tests/signals.rs.
    let numbered = invariants.lines().filter(|l| l.starts_with(|c: char| c.is_ascii_digit())).count();
    assert_eq!(numbered, 9, "an invariant without a test, or a test without its invariant");
}

/// Appends to `found` the paths that begin with `path` and continue with `text`. Groups in braces are expanded.
fn expand(path: &[String], text: &str, found: &mut Vec<Vec<String>>) {
    let word = |c: char| c.is_alphanumeric() || c == '_';
    if let Some(group) = text.strip_prefix('{') {
        let (mut depth, mut start) = (0, 0);
        for (i, c) in group.char_indices() {
            match c {
                '{' => depth += 1,
                '}' if depth > 0 => depth -= 1,
                ',' | '}' if depth == 0 => {
                    expand(path, group[start..i].trim(), found);
                    start = i + 1;
                    if c == '}' {
                        return;
                    }
                }
                _ => {}
            }
        }
        return;
    }
    let end = text.find(|c| !word(c)).unwrap_or(text.len());
    let path: Vec<String> = path.iter().cloned().chain([text[..end].to_owned()]).collect();
    match text[end..].strip_prefix("::") {
        Some(rest) => expand(&path, rest, found),
        None => found.push(path),
    }
}

/// The modules of the crate in `folder`, each with the modules it imports.
fn imports(folder: &str) -> BTreeMap<Vec<String>, BTreeSet<Vec<String>>> {
    let source = root().join(folder);
    let module = |path: &Path| -> Vec<String> {
        let inside = path.strip_prefix(&source).unwrap().with_extension("");
        let parts = inside.iter().map(|p| p.to_str().unwrap().to_owned());
        parts.filter(|p| !matches!(p.as_str(), "mod" | "lib")).collect()
    };
    let files: BTreeMap<_, _> = sources(folder).into_iter().map(|(path, text)| (module(&path), text)).collect();
    let of = |at: &Vec<String>, text: &String| {
        let code: String =
            text.lines().map(|l| format!("{} ", l.split("//").next().unwrap_or_default().trim())).collect();
        let parent = at[..at.len().saturating_sub(1)].to_vec();
        let mut found = Vec::new();
        for (prefix, from) in [("crate::", &[][..]), ("super::", &parent), ("self::", at)] {
            for (i, _) in code.match_indices(prefix) {
                if !code[..i].ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == ':') {
                    expand(from, &code[i + prefix.len()..], &mut found);
                }
            }
        }
        // Paths that begin with a child module.
        for (i, _) in code.match_indices("use ") {
            let rest = &code[i + 4..];
            let first = rest.split("::").next().unwrap_or_default();
            if files.contains_key(&[at.clone(), vec![first.to_owned()]].concat()) {
                expand(at, rest, &mut found);
            }
        }
        let known =
            |path: Vec<String>| (1..=path.len()).rev().map(|n| path[..n].to_vec()).find(|p| files.contains_key(p));
        found.into_iter().filter_map(known).filter(|p| p != at).collect()
    };
    files.iter().map(|(at, text)| (at.clone(), of(at, text))).collect()
}

#[test]
fn modules_do_not_import_each_other_in_circles() {
    fn visit(
        at: &Vec<String>,
        all: &BTreeMap<Vec<String>, BTreeSet<Vec<String>>>,
        path: &mut Vec<Vec<String>>,
        done: &mut BTreeSet<Vec<String>>,
    ) {
        if let Some(i) = path.iter().position(|p| p == at) {
            let circle: Vec<String> = path[i..].iter().chain([at]).map(|p| p.join("::")).collect();
            panic!("{}", circle.join(" -> "));
        }
        if done.contains(at) {
            return;
        }
        path.push(at.clone());
        all[at].iter().for_each(|next| visit(next, all, path, done));
        path.pop();
        done.insert(at.clone());
    }
    for folder in ["converters/src", "converters/checkpoint/src", "onnx/src", "onnx/runtime/src", "onnx/winograd/src"] {
        let all = imports(folder);
        assert!(all.values().map(BTreeSet::len).sum::<usize>() >= all.len() / 2, "{folder}: {all:?}");
        let mut done = BTreeSet::new();
        all.keys().for_each(|at| visit(at, &all, &mut Vec::new(), &mut done));
    }
}
