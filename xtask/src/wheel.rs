//! `cargo xtask wheel` and `cargo xtask archive`: d2o without training as a Python wheel and as an archive.
//!
//! zig is the C compiler and the linker. It has the headers and symbol versions of every glibc, so the program runs on
//! systems that are older than this one. maturin audits the result: the wheel gets the tag [`MANYLINUX`] only if the
//! program needs no newer glibc and no library that such a system may lack.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fmt::Write as _;
use std::fs::Permissions;
use std::io::Read as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, bail, ensure};
use flate2::write::GzEncoder;
use fs_err as fs;
use serde_json::Value;

use crate::paths::{cache, cargo, component, root, target};
use crate::setup::{self, Component, Staging, Wheel, hash, install, nothing_more};

mod check;

/// Oldest supported glibc, as the tag of the wheel. Debian 10, RHEL 8 and Ubuntu 18.10 have it, and ONNX Runtime's
/// wheels use the same tag.
const MANYLINUX: &str = "manylinux_2_28";
const TARGET: &str = "x86_64-unknown-linux-gnu";

const MATURIN: Component = Component {
    name: "maturin-1.16.0",
    wheels: &[(
        Wheel {
            requirement: "maturin==1.16.0",
            sha256: "837db2f4d93d4899c3ac393fb3cc9eebf35b6002336e5d574f4a4fb6c49fe283",
            bytes: 10_763_361,
        },
        &[("maturin-1.16.0.data/scripts/maturin", "bin/maturin")],
    )],
    finish: nothing_more,
};

const ZIG: Component = Component {
    name: "zig-0.17.1",
    wheels: &[(
        Wheel {
            requirement: "ziglang==0.17.1",
            sha256: "ea6cc5d87b033cf0aedfbc8f9549a908cae6c50ac31f1698188fa48a74524b54",
            bytes: 101_083_562,
        },
        // zig looks for its library relative to its own path.
        &[("ziglang/zig", "bin/zig"), ("ziglang/lib/", "lib/zig/")],
    )],
    finish: nothing_more,
};

/// ONNX Runtime and its licences, for the archive.
const ONNXRUNTIME: Component = Component {
    name: "onnxruntime-1.32.0-archive",
    wheels: &[(
        setup::ONNXRUNTIME_WHEEL,
        &[
            ("onnxruntime/capi/libonnxruntime.so.1.32.0", "lib/libonnxruntime.so.1.32.0"),
            ("onnxruntime/LICENSE", "onnxruntime/LICENSE"),
            ("onnxruntime/ThirdPartyNotices.txt", "onnxruntime/ThirdPartyNotices.txt"),
        ],
    )],
    finish: nothing_more,
};

/// Builds the wheel. `--check` installs it, or the given wheel, into a new virtual environment and uses it.
///
/// # Errors
/// If an option is unknown, or the build or the check fails.
pub(crate) fn run(options: &[&str]) -> anyhow::Result<()> {
    match options {
        [] => build().map(|_| ()),
        ["--check"] => check::run(&build()?),
        ["--check", wheel] => check::run(&std::path::absolute(wheel)?),
        _ => bail!("usage: cargo xtask wheel [--check [WHEEL]]"),
    }
}

/// Builds the wheel, packs its program with ONNX Runtime, and writes the SHA-256 of both files into `SHA256SUMS`.
///
/// # Errors
/// If a build fails or a file cannot be written.
pub(crate) fn archive() -> anyhow::Result<()> {
    let wheel = build()?;
    install(&ONNXRUNTIME)?;
    let library = cache()?.join(ONNXRUNTIME.name);
    let mut entries: BTreeMap<String, Vec<u8>> = BTreeMap::new();
    let program = program(&wheel)?;
    entries.extend(shell_files(&program)?);
    entries.insert("bin/d2o".to_owned(), program);
    for name in ["README.md", "LICENSE-APACHE", "LICENSE-MIT"] {
        entries.insert(name.to_owned(), fs::read(root().join(name))?);
    }
    entries.insert("THIRD-PARTY.txt".to_owned(), third_party()?.into_bytes());
    entries.insert("docs/install.md".to_owned(), fs::read(root().join("docs/install.md"))?);
    for name in ["lib/libonnxruntime.so.1.32.0", "onnxruntime/LICENSE", "onnxruntime/ThirdPartyNotices.txt"] {
        entries.insert(name.to_owned(), fs::read(library.join(name))?);
    }
    let name = format!("d2o-{}-{TARGET}", env!("CARGO_PKG_VERSION"));
    let path = wheels()?.join(format!("{name}.tar.gz"));
    fs::write(&path, packed(&name, &entries)?)?;
    report(&path)?;
    let mut sums = String::new();
    for file in [&path, &wheel] {
        let name = file.file_name().unwrap_or_default().to_string_lossy();
        writeln!(sums, "{}  {name}", hash(file)?.0)?;
    }
    Ok(fs::write(wheels()?.join("SHA256SUMS"), sums)?)
}

/// A tar.gz of `entries`, which are named by their path below the folder `name`. Its bytes depend only on the arguments
/// and the time of the commit.
fn packed(name: &str, entries: &BTreeMap<String, Vec<u8>>) -> anyhow::Result<Vec<u8>> {
    let time = commit_time()?;
    let mut tar = tar::Builder::new(GzEncoder::new(Vec::new(), flate2::Compression::best()));
    for (path, bytes) in entries {
        let mut header = tar::Header::new_ustar();
        header.set_size(bytes.len() as u64);
        header.set_mode(if path.starts_with("bin/") || path.starts_with("lib/") { 0o755 } else { 0o644 });
        header.set_mtime(time);
        tar.append_data(&mut header, format!("{name}/{path}"), bytes.as_slice())?;
    }
    Ok(tar.into_inner()?.finish()?)
}

/// The program in `wheel`.
fn program(wheel: &Path) -> anyhow::Result<Vec<u8>> {
    let mut archive = zip::ZipArchive::new(std::io::BufReader::new(fs::File::open(wheel)?))?;
    let name = format!("d2o-{}.data/scripts/d2o", env!("CARGO_PKG_VERSION"));
    let mut bytes = Vec::new();
    archive.by_name(&name).with_context(|| format!("`{name}` in the wheel"))?.read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Completion scripts and manual pages that `program` writes, by their paths below a prefix such as `/usr/local`.
fn shell_files(program: &[u8]) -> anyhow::Result<BTreeMap<String, Vec<u8>>> {
    let stage = Staging::new(target()?.join("archive-stage"))?;
    let (d2o, pages) = (stage.0.join("d2o"), stage.0.join("man"));
    fs::write(&d2o, program)?;
    fs::set_permissions(&d2o, Permissions::from_mode(0o755))?;
    let output = |args: &[&OsStr]| -> anyhow::Result<Vec<u8>> {
        let output = Command::new(&d2o).args(args).output().context("start the program")?;
        ensure!(output.status.success(), "d2o {args:?} failed ({})", output.status);
        Ok(output.stdout)
    };
    let mut entries = BTreeMap::new();
    for (shell, path) in [
        ("bash", "share/bash-completion/completions/d2o"),
        ("zsh", "share/zsh/site-functions/_d2o"),
        ("fish", "share/fish/vendor_completions.d/d2o.fish"),
    ] {
        entries.insert(path.to_owned(), output(&["completions".as_ref(), shell.as_ref()])?);
    }
    output(&["man".as_ref(), pages.as_os_str()])?;
    for page in fs::read_dir(&pages)? {
        let page = page?;
        entries.insert(format!("share/man/man1/{}", page.file_name().to_string_lossy()), fs::read(page.path())?);
    }
    Ok(entries)
}

/// Folder of the wheel and the archive.
fn wheels() -> anyhow::Result<PathBuf> {
    Ok(target()?.join("wheels"))
}

/// Builds the wheel and returns its path.
fn build() -> anyhow::Result<PathBuf> {
    setup::only(&[component::CMAKE])?;
    for tool in [&MATURIN, &ZIG] {
        install(tool).with_context(|| format!("set up `{}`", tool.name))?;
    }
    let (stage, out) = (Staging::new(target()?.join("wheel-stage"))?, wheels()?);
    fill(&stage.0)?;
    fs::create_dir_all(&out)?;
    let made = || -> anyhow::Result<Vec<PathBuf>> {
        let files = fs::read_dir(&out)?.map(|entry| Ok(entry?.path())).collect::<std::io::Result<Vec<_>>>()?;
        Ok(files.into_iter().filter(|file| file.extension().is_some_and(|e| e == "whl")).collect())
    };
    for old in made()? {
        fs::remove_file(old)?;
    }
    let (rust, c) = without_paths()?;
    let status = Command::new(cache()?.join(MATURIN.name).join("bin/maturin"))
        .current_dir(&stage.0)
        .args(["build", "--release", "--locked", "--zig", "--compatibility", MANYLINUX, "--target", TARGET, "--out"])
        .arg(&out)
        .envs(crate::paths::environment()?)
        .env("CARGO_ZIGBUILD_ZIG_PATH", cache()?.join(ZIG.name).join("bin/zig"))
        .env("RUSTFLAGS", rust)
        .env(format!("CFLAGS_{}", TARGET.replace('-', "_")), &c)
        .env(format!("CXXFLAGS_{}", TARGET.replace('-', "_")), &c)
        .env("SOURCE_DATE_EPOCH", commit_time()?.to_string())
        .status()
        .context("start maturin")?;
    ensure!(status.success(), "maturin could not build the wheel ({status})");
    let [wheel] = &made()?[..] else { bail!("maturin wrote no wheel to `{}`", out.display()) };
    report(wheel)?;
    Ok(wheel.clone())
}

/// Prints path, size and SHA-256 of `file`.
fn report(file: &Path) -> anyhow::Result<()> {
    let (sha256, bytes) = hash(file)?;
    println!("{} ({bytes} bytes, sha256 {sha256})", file.display());
    Ok(())
}

/// Time of the last commit, seconds since 1970.
fn commit_time() -> anyhow::Result<u64> {
    let shown = Command::new("git").current_dir(root()).args(["log", "-1", "--format=%ct"]).output()?;
    String::from_utf8_lossy(&shown.stdout).trim().parse().context("the time of the commit, from git")
}

/// Flags of rustc and of the C compiler that keep paths of this machine out of the program.
fn without_paths() -> anyhow::Result<(String, String)> {
    let home = match std::env::var_os("CARGO_HOME") {
        Some(home) => PathBuf::from(home),
        None => PathBuf::from(std::env::var_os("HOME").context("neither CARGO_HOME nor HOME is set")?).join(".cargo"),
    };
    let mut folders = vec![(target()?, "target"), (root(), "d2o")];
    for registry in fs::read_dir(home.join("registry/src"))? {
        folders.push((registry?.path(), "crates"));
    }
    let flags = |flag: &str| {
        let all: Vec<String> = folders.iter().map(|(from, to)| format!("{flag}={}={to}", from.display())).collect();
        all.join(" ")
    };
    Ok((flags("--remap-path-prefix"), flags("-ffile-prefix-map")))
}

/// Fills `stage` with what maturin reads: the project, the module and the licences.
fn fill(stage: &Path) -> anyhow::Result<()> {
    let source = root().join("xtask/wheel");
    let project = fs::read_to_string(source.join("pyproject.toml"))?;
    let manifest = format!("manifest-path = {:?}", root().join("Cargo.toml"));
    ensure!(project.contains(MANIFEST), "xtask/wheel/pyproject.toml has no line `{MANIFEST}`");
    fs::write(stage.join("pyproject.toml"), project.replace(MANIFEST, &manifest))?;
    fs::copy(source.join("README.md"), stage.join("README.md"))?;
    for name in ["LICENSE-APACHE", "LICENSE-MIT"] {
        fs::copy(root().join(name), stage.join(name))?;
    }
    fs::write(stage.join("THIRD-PARTY.txt"), third_party()?)?;
    let module = stage.join("python/d2o");
    let _ = fs::remove_dir_all(&module);
    fs::create_dir_all(&module)?;
    for entry in fs::read_dir(source.join("python/d2o"))? {
        let entry = entry?;
        if entry.file_type()?.is_file() {
            fs::copy(entry.path(), module.join(entry.file_name()))?;
        }
    }
    Ok(())
}

/// The line of `pyproject.toml` that depends on the folder of that file.
const MANIFEST: &str = "manifest-path = \"../../Cargo.toml\"";

/// Names, versions and licences of all packages in the program, then the text of every licence once.
fn third_party() -> anyhow::Result<String> {
    let shown = cargo()?
        .args(["metadata", "--locked", "--format-version", "1", "--filter-platform", TARGET])
        .output()
        .context("start cargo metadata")?;
    ensure!(shown.status.success(), "cargo metadata failed: {}", String::from_utf8_lossy(&shown.stderr));
    let metadata: Value = serde_json::from_slice(&shown.stdout)?;
    let packages = metadata["packages"].as_array().context("`packages`")?;
    let inside = inside(&metadata)?;
    let mut list = String::new();
    // Packages by licence text.
    let mut texts: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for package in packages {
        let text = |key: &str| package[key].as_str().unwrap_or_default().to_owned();
        if package["source"].is_null() || !inside.contains(text("id").as_str()) {
            continue;
        }
        let named = format!("{} {}", text("name"), text("version"));
        let licence = package["license"].as_str().map_or_else(|| "see its licence below".to_owned(), str::to_owned);
        writeln!(list, "{named}: {licence}")?;
        let folder = PathBuf::from(text("manifest_path"));
        for file in licences(folder.parent().context("a manifest without a folder")?, 3)? {
            let text = String::from_utf8_lossy(&fs::read(&file)?).trim().to_owned();
            texts.entry(text).or_default().insert(named.clone());
        }
    }
    let mut out = format!("Packages in the program d2o, with their licences. The texts follow.\n\n{list}");
    for (text, names) in texts {
        let names: Vec<String> = names.into_iter().collect();
        write!(out, "\n{}\n{}\n\n{text}\n", "=".repeat(100), names.join(", "))?;
    }
    Ok(out)
}

/// Identifiers of the packages in the program d2o, without those that only build scripts or tests need.
fn inside(metadata: &Value) -> anyhow::Result<BTreeSet<&str>> {
    let nodes = metadata["resolve"]["nodes"].as_array().context("`resolve.nodes`")?;
    let nodes: BTreeMap<&str, &Value> = nodes.iter().filter_map(|n| Some((n["id"].as_str()?, n))).collect();
    let packages = metadata["packages"].as_array().context("`packages`")?;
    let d2o = packages.iter().find(|p| p["name"] == "d2o").and_then(|p| p["id"].as_str()).context("the package d2o")?;
    let (mut found, mut open) = (BTreeSet::new(), vec![d2o]);
    while let Some(id) = open.pop() {
        if !found.insert(id) {
            continue;
        }
        let needs = nodes.get(id).and_then(|n| n["deps"].as_array()).into_iter().flatten();
        let kept = needs.filter(|d| d["dep_kinds"].as_array().is_some_and(|k| k.iter().any(|k| k["kind"].is_null())));
        open.extend(kept.filter_map(|d| d["pkg"].as_str()));
    }
    Ok(found)
}

/// Licence files in `folder` and in its subfolders, where vendored C libraries have theirs. `depth` is the number of
/// levels searched, `folder` included.
fn licences(folder: &Path, depth: usize) -> anyhow::Result<Vec<PathBuf>> {
    const NAMES: [&str; 6] = ["LICENSE", "LICENCE", "COPYING", "NOTICE", "UNLICENSE", "README.IJG"];
    let mut found = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().to_uppercase();
        if entry.file_type()?.is_dir() {
            if depth > 1 {
                found.extend(licences(&entry.path(), depth - 1)?);
            }
        } else if NAMES.iter().any(|n| name.starts_with(n)) && !name.ends_with(".RS") {
            found.push(entry.path());
        }
    }
    found.sort();
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_python_module_passes_its_tests() {
        let done = Command::new("python3").arg(root().join("xtask/wheel/test_d2o.py")).output().unwrap();
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        assert!(String::from_utf8_lossy(&done.stderr).contains("\nRan "), "no test ran");
    }

    #[test]
    fn the_wheel_asks_for_the_onnx_runtime_that_d2o_needs() {
        let manifest = fs::read_to_string(root().join("Cargo.toml")).unwrap();
        let api: u32 = manifest.split_once("\"api-").unwrap().1.split_once('"').unwrap().0.parse().unwrap();
        let project = fs::read_to_string(root().join("xtask/wheel/pyproject.toml")).unwrap();
        for wanted in [format!("\"onnxruntime>=1.{api}\""), format!("\"onnxruntime-gpu[cuda,cudnn]>=1.{api}\"")] {
            assert!(project.contains(&wanted), "no {wanted} in xtask/wheel/pyproject.toml");
        }
    }

    #[test]
    fn only_packages_of_the_program_count() {
        let metadata = serde_json::json!({
            "packages": [{"name": "d2o", "id": "d2o"}, {"name": "a", "id": "a"}],
            "resolve": {"nodes": [
                {"id": "d2o", "deps": [
                    {"pkg": "a", "dep_kinds": [{"kind": "build"}, {"kind": null}]},
                    {"pkg": "built-with", "dep_kinds": [{"kind": "build"}]},
                    {"pkg": "tested-with", "dep_kinds": [{"kind": "dev"}]},
                ]},
                {"id": "a", "deps": [{"pkg": "b", "dep_kinds": [{"kind": null}]}, {"pkg": "d2o", "dep_kinds": [{"kind": null}]}]},
            ]},
        });
        assert_eq!(inside(&metadata).unwrap(), BTreeSet::from(["a", "b", "d2o"]));
    }

    #[test]
    fn licences_of_libraries_inside_a_package_are_found() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("vendor/lib/src/deep")).unwrap();
        let expected = ["LICENSE-MIT", "vendor/lib/COPYING", "vendor/lib/README.ijg"].map(|n| dir.path().join(n));
        for file in &expected {
            fs::write(file, "text").unwrap();
        }
        for other in ["README.md", "src.rs", "license.rs", "vendor/lib/src/deep/LICENSE"] {
            fs::write(dir.path().join(other), "text").unwrap();
        }
        assert_eq!(licences(dir.path(), 3).unwrap(), expected);
    }

    #[test]
    fn the_archive_repeats_its_bytes_and_keeps_the_program_executable() {
        let entries = BTreeMap::from([("bin/d2o".to_owned(), b"program".to_vec()), ("README.md".to_owned(), vec![])]);
        let bytes = packed("d2o-1", &entries).unwrap();
        assert_eq!(bytes, packed("d2o-1", &entries).unwrap());
        let mut archive = tar::Archive::new(flate2::read::GzDecoder::new(bytes.as_slice()));
        let found: Vec<(String, u32, u64)> = archive
            .entries()
            .unwrap()
            .map(|entry| {
                let entry = entry.unwrap();
                let header = entry.header();
                (entry.path().unwrap().display().to_string(), header.mode().unwrap(), header.size().unwrap())
            })
            .collect();
        assert_eq!(found, [("d2o-1/README.md".to_owned(), 0o644, 0), ("d2o-1/bin/d2o".to_owned(), 0o755, 7)]);
    }
}
