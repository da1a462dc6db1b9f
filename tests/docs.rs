//! Commands in the documentation: each is one that this program, or `cargo xtask`, takes.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic, clippy::print_stdout, reason = "a test")]

use std::path::{Path, PathBuf};

use clap::Parser as _;
use d2o::cli::Cli;
use fs_err as fs;

/// README.md and every page of docs/.
fn pages() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let docs = fs::read_dir(root.join("docs")).unwrap().map(|entry| entry.unwrap().path());
    let mut pages: Vec<PathBuf> = docs.filter(|p| p.extension().is_some_and(|e| e == "md")).collect();
    pages.extend(["README.md", "CONTRIBUTING.md", "SECURITY.md", "xtask/demo/README.md"].map(|name| root.join(name)));
    pages.sort();
    pages
}

/// Lines of the shell blocks of `text`, those that a backslash continues in one. Where lines begin with a prompt, the others are output.
fn shell_lines(text: &str) -> Vec<String> {
    let (mut inside, mut lines, mut block, mut open) = (false, Vec::new(), Vec::new(), String::new());
    for line in text.lines() {
        let fence = line.trim_start().strip_prefix("```");
        if let Some(language) = fence {
            inside = !inside && ["sh", "bash", "console", "shell"].contains(&language.trim());
            let prompts = block.iter().any(|line: &String| line.starts_with("$ "));
            lines.extend(block.drain(..).filter(|line| !prompts || line.starts_with("$ ")));
        } else if inside {
            match line.trim_end().strip_suffix('\\') {
                Some(start) => open += start,
                None => block.push(std::mem::take(&mut open) + line),
            }
        }
    }
    lines
}

/// The words of every command in `line`: it may set variables, and hand its output on.
fn commands(line: &str) -> Vec<Vec<String>> {
    let spaced = line.replace(" | ", " \u{1} ").replace("&&", " \u{1} ").replace("; ", " \u{1} ");
    let words = shlex::split(spaced.trim_start_matches("$ ")).unwrap_or_else(|| panic!("not a shell command: {line}"));
    let words = words.into_iter().take_while(|w| !w.starts_with('#'));
    let words: Vec<String> = words.map(|w| w.split('/').map(valued).collect::<Vec<_>>().join("/")).collect();
    let commands = words.split(|w| w == "\u{1}").map(|words| {
        let set = |w: &&String| {
            w.split_once('=').is_some_and(|(name, _)| name.chars().all(|c| c.is_ascii_uppercase() || c == '_'))
        };
        let words = words.iter().skip_while(set).cloned();
        let redirected = |w: &String| [">", "<", ">>", "2>&1", "&"].contains(&w.as_str()) || w.starts_with("2>");
        words.take_while(|w| !redirected(w)).collect()
    });
    commands.collect()
}

/// A value for a variable of the shell.
fn valued(text: &str) -> &str {
    match text.strip_prefix('$') {
        Some(name) if name.ends_with("COUNT") => "8",
        Some(_) => "0",
        None => text,
    }
}

#[test]
fn every_command_in_the_documentation_is_one() {
    let tasks = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("xtask/src/main.rs")).unwrap();
    let (mut parsed, mut wrong) = (0, Vec::new());
    for page in pages() {
        let name = page.file_name().unwrap().to_string_lossy().into_owned();
        for line in shell_lines(&fs::read_to_string(&page).unwrap()) {
            for words in commands(&line) {
                match words.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
                    // Training is another build's.
                    ["d2o", "train", ..] if cfg!(not(feature = "train")) => {}
                    ["d2o", rest @ ..] if !rest.contains(&"…") => {
                        parsed += 1;
                        if let Err(e) = Cli::try_parse_from(&words)
                            && e.use_stderr()
                        {
                            wrong.push(format!("{name}: {line}\n{e}"));
                        }
                    }
                    ["cargo", "xtask", task, ..] => {
                        parsed += 1;
                        if !tasks.contains(&format!("[\"{task}\"")) {
                            wrong.push(format!("{name}: no task `{task}`: {line}"));
                        }
                    }
                    _ => {}
                }
            }
        }
    }
    println!("{parsed} commands");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(parsed >= 60, "{parsed} commands were found");
}
