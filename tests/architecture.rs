//! The invariants of ARCHITECTURE.md that sources and manifests show.
#![allow(missing_docs, clippy::unwrap_used, reason = "a test")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use fs_err as fs;

const LIBRARIES: [&str; 6] =
    ["onnx/src", "onnx/runtime/src", "onnx/winograd/src", "converters/src", "refs/src", "evaluations/src"];

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// Every Rust file below `folder`, without what follows `#[cfg(test)]`.
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

fn depends_on(manifest: &str, crates: &[&str]) -> Vec<String> {
    let text = fs::read_to_string(root().join(manifest)).unwrap();
    let start = text.find("[dependencies]").unwrap();
    let rest = &text[start + 1..];
    let dependencies = &rest[..rest.find("\n[").unwrap_or(rest.len())];
    let named = |line: &str| line.split(['.', ' ', '=']).next().unwrap_or_default().to_owned();
    dependencies.lines().map(named).filter(|n| crates.contains(&n.as_str())).collect()
}

#[test]
fn crates_depend_one_way() {
    let own = ["d2o-onnx", "d2o-runtime", "d2o-winograd", "d2o-converters", "d2o-refs", "d2o-evaluations", "d2o"];
    let runtimes = ["ort", "tract-onnx", "tch"];
    assert_eq!(depends_on("onnx/Cargo.toml", &[&own[..], &runtimes].concat()), Vec::<String>::new());
    assert_eq!(depends_on("onnx/runtime/Cargo.toml", &own), ["d2o-onnx", "d2o-winograd"]);
    assert_eq!(depends_on("onnx/winograd/Cargo.toml", &[&own[..], &["ort", "prost"]].concat()), Vec::<String>::new());
    assert_eq!(depends_on("refs/Cargo.toml", &own), Vec::<String>::new());
    assert_eq!(depends_on("evaluations/Cargo.toml", &own), Vec::<String>::new());
    assert_eq!(depends_on("evaluations/Cargo.toml", &["zip", "hdf5", "image", "fs-err"]), Vec::<String>::new());
    assert_eq!(depends_on("converters/Cargo.toml", &own), ["d2o-onnx"]);
    assert_eq!(depends_on("converters/Cargo.toml", &runtimes), Vec::<String>::new());
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
    for folder in LIBRARIES {
        lacks(
            folder,
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
    for folder in LIBRARIES {
        lacks(folder, &["use tch", " tch::", "(tch::", "<tch::", "&tch::"]);
    }
}

#[test]
fn every_invariant_names_its_guard_here_or_is_a_rule_of_one_crate() {
    let page = fs::read_to_string(Path::new(&root()).join("ARCHITECTURE.md")).unwrap();
    let invariants = page.split("## Invariants").nth(1).unwrap().split("## ").next().unwrap();
    // 1 and 2 above; 3: each reader's hostile tests; 4: metrics of any batch (tests/evaluate.rs); 5, 6: tests/plan.rs; 7: tests/parity.rs;
    // 8: converters' and refs' equal bytes; 9: tests/outputs.rs, tests/signals.rs.
    let numbered = invariants.lines().filter(|l| l.starts_with(|c: char| c.is_ascii_digit())).count();
    assert_eq!(numbered, 9, "an invariant without a test, or a test without its invariant");
}

/// Paths of a `use` or an expression that begins with `path` and goes on with `text`: groups in braces are expanded.
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

/// The modules of the crate in `folder`, each with those it imports.
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
        // A path that begins with a child.
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
