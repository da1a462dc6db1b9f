//! `cargo xtask gpu-kit`: packs the tests of d2o's CUDA path for a bare GPU machine, in parts of bounded size.
//!
//! The machine has PyTorch 2.11.0 for CUDA 13 and the CUDA libraries, but no registry and no Rust. The kit contains d2o
//! with and without training, ONNX Runtime with its CUDA provider, the wheel of torch-fidelity, and, with `--orig`, the
//! original D2O.
//!
//! One binary uses libtorch on CPUs and on CUDA. The `libtorch.so` of set-up is a stub that needs the CPU half only.
//! PyTorch's library of the same name also needs `libtorch_cuda.so`, which registers its kernels when it is loaded.
//! Both stem from the same wheel. The loader takes the first `libtorch.so` it finds. d2o's own search path is a
//! RUNPATH, so LD_LIBRARY_PATH precedes it. This works only if d2o needs `libtorch.so` by name, although it uses no
//! symbol of it: build.rs requests that from the linker, and [`check_libraries`] checks it.
//!
//! `libonnxruntime_providers_cuda.so` keeps the machine code of H100 and H200 only ([`fatbin`]). ONNX Runtime opens its
//! providers by file name in its own folder, and d2o opens ONNX Runtime by path, so the libraries need no links.
//!
//! The binaries have the profile `dev`, which is already built for the tests. Compressed, both take 16.8 MB (one alone
//! 12.3 MB), the provider 50.7 MB and ONNX Runtime 7.4 MB; the kit has 75.1 MB. The checkout travels with every part,
//! so the number of parts depends on what it leaves of [`LIMIT`].

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context as _, bail, ensure};
use fs_err as fs;
use serde_json::json;

use self::pack::{File, Part, Piece};
use crate::parity::output;
use crate::paths::{build_d2o, cache, component, root};
use crate::python;
use crate::setup::{Component, Staging, Wheel, download, hash, install, nothing_more};

mod fatbin;
mod pack;

/// Bytes that one command on the GPU machine can receive, including the checkout and the overhead of packing.
const LIMIT: u64 = 64 << 20;
/// Most commands on the GPU machine. Each takes seconds of its time.
const PARTS: u64 = 3;
/// Compute capability times ten: 9.0 is that of H100 and H200.
const ARCHITECTURE: u32 = 90;
/// The folder of the kit in the checkout; git ignores it.
const KIT: &str = "gpu-kit";

const ONNXRUNTIME: Component = Component {
    name: component::ONNXRUNTIME_GPU,
    wheels: &[(
        Wheel {
            requirement: "onnxruntime-gpu==1.31.1",
            sha256: "e26c475fe361b2015f45b4b824bd13f0bb20204e59b62814e6f0acd5f3d491a6",
            bytes: 255_560_985,
        },
        &[
            ("onnxruntime/capi/libonnxruntime.so.1.31.1", "lib/libonnxruntime.so.1.31.1"),
            ("onnxruntime/capi/libonnxruntime_providers_shared.so", "lib/libonnxruntime_providers_shared.so"),
            ("onnxruntime/capi/libonnxruntime_providers_cuda.so", "lib/libonnxruntime_providers_cuda.so"),
        ],
    )],
    finish: nothing_more,
};
const CUDA_PROVIDER: &str = "libonnxruntime_providers_cuda.so";

/// Pure Python: imported or installed directly from the wheel.
const TORCH_FIDELITY: Wheel = Wheel {
    requirement: "torch_fidelity==0.4.0",
    sha256: "99f4c610ea16972628eceb26afb0008e528da2d44123db947b408750efbd35d4",
    bytes: 85_594,
};
const TORCH_FIDELITY_FILE: &str = "torch_fidelity-0.4.0-py3-none-any.whl";

/// Files and folders of the original D2O that its training needs.
const ORIGINAL: [&str; 7] =
    ["LICENSE", "dnnlib", "feature_networks", "pg_modules", "torch_utils", "train.py", "training"];

const VOCABULARY: &str = "bpe_simple_vocab_16e6.txt.gz";

/// Libraries that d2o with training may need besides those of glibc and gcc. The wheel of PyTorch and its dependencies
/// provide them all.
const OF_PYTORCH: [&str; 5] = ["libc10.so", "libcudart.so.13", "libgomp.so.1", "libtorch.so", "libtorch_cpu.so"];
const OF_THE_SYSTEM: [&str; 8] = [
    "ld-linux-x86-64.so.2",
    "libc.so.6",
    "libdl.so.2",
    "libgcc_s.so.1",
    "libm.so.6",
    "libpthread.so.0",
    "librt.so.1",
    "libstdc++.so.6",
];

/// Packages of the GPU machine, for the dry run.
const REQUIREMENTS: [&str; 10] = [
    "torch==2.11.0",
    "torchvision==0.26.0",
    "numpy==2.4.6",
    "scipy==1.17.1",
    "onnx==1.23.1",
    "onnxruntime==1.30.0",
    "timm==1.0.31",
    "pillow==13.0.0",
    "h5py==3.16.0",
    "safetensors==0.8.0",
];

/// Makes the kit; `--orig DIR` adds `DIR/D2O`, `--dry-run` unpacks and runs it here.
///
/// # Errors
/// If a build or a download fails, a binary would not load on the GPU machine, the kit has too many parts, or the dry
/// run fails.
pub(crate) fn run(words: &[&str]) -> anyhow::Result<()> {
    let (mut orig, mut dry_run, mut rest) = (None, false, words.iter());
    while let Some(word) = rest.next() {
        match *word {
            "--orig" => {
                let dir = rest.next().context("--orig: expected a folder")?;
                orig = Some(std::path::absolute(dir)?.join("D2O"));
            }
            "--dry-run" => dry_run = true,
            other => bail!("`{other}`: expected --orig DIR or --dry-run"),
        }
    }
    let began = Instant::now();
    let store = cache()?.join(KIT);
    let mut groups = vec![binaries()?];
    groups.extend(libraries()?.into_iter().map(|f| vec![f]));
    groups.push(vec![File {
        name: format!("wheels/{TORCH_FIDELITY_FILE}"),
        content: fs::read(torch_fidelity(&store)?)?,
    }]);
    if let Some(orig) = &orig {
        groups.push(original(orig)?);
    }
    let pieces = pack::compress(groups, &store)?;
    forget_others(&store, &pieces)?;
    let kit = root().join(KIT);
    if kit.exists() {
        fs::remove_dir_all(&kit)?;
    }
    fs::create_dir_all(&kit)?;
    let about = json!({
        "d2o": env!("CARGO_PKG_VERSION"), "commit": git(&root(), &["rev-parse", "HEAD"])?, "changed": !git(&root(), &["status", "--porcelain"])?.is_empty(),
        "onnxruntime": "1.31.1", "torch_fidelity": "0.4.0", "torch": "2.11.0", "architecture": format!("sm_{ARCHITECTURE}"),
        "original": orig.as_deref().map(|o| git(o, &["rev-parse", "HEAD"])).transpose()?,
    });
    let total: u64 = pieces.iter().map(|p| p.bytes).sum();
    let room = LIMIT.saturating_sub(checkout_bytes()?);
    let count = total.div_ceil(room.max(1));
    ensure!(
        count <= PARTS,
        "the kit has {total} bytes, but the checkout leaves {room} bytes for each of {PARTS} runs on the GPU machine"
    );
    let parts = pack::write(&pieces, usize::try_from(total.div_ceil(count))?, &about, &kit)?;
    copy_scripts(&kit)?;
    print_table(&pieces, &parts);
    eprintln!("gpu-kit: made in {:.1} s", began.elapsed().as_secs_f64());
    print_commands(&parts);
    if dry_run { rehearse(&kit, &parts) } else { Ok(()) }
}

/// d2o without training and with it, stripped. They share most of their code, so they are compressed together.
fn binaries() -> anyhow::Result<Vec<File>> {
    let staging = Staging::new(cache()?.join(format!(".{KIT}.partial-{}", std::process::id())))?;
    let mut files = Vec::new();
    for (name, training) in [("d2o-plain", false), ("d2o", true)] {
        eprintln!("gpu-kit: building {name}");
        let program = build_d2o(training)?;
        let stripped = staging.0.join(name);
        output(Command::new("strip").arg("-o").arg(&stripped).arg(program))?;
        let dynamic = output(Command::new("readelf").env("LC_ALL", "C").args(["--dynamic", "--wide"]).arg(&stripped))?;
        check_libraries(&dynamic, training).with_context(|| format!("{name} cannot be loaded on the GPU machine"))?;
        files.push(File { name: format!("bin/{name}"), content: fs::read(&stripped)? });
    }
    Ok(files)
}

/// Checks the output of `readelf --dynamic`: the binary must load next to PyTorch's libraries and, with `training`,
/// load their CUDA half.
///
/// # Errors
/// If a library is missing, or, with `training`, if `libtorch.so` is not needed or the search path precedes
/// LD_LIBRARY_PATH.
fn check_libraries(dynamic: &str, training: bool) -> anyhow::Result<()> {
    let needed: BTreeSet<&str> = dynamic
        .lines()
        .filter(|l| l.contains("(NEEDED)"))
        .filter_map(|l| l.rsplit_once('[')?.1.strip_suffix(']'))
        .collect();
    ensure!(needed.contains("libc.so.6"), "readelf lists no libraries");
    let of_pytorch: &[&str] = if training { &OF_PYTORCH } else { &[] };
    if let Some(other) = needed.iter().find(|n| !of_pytorch.contains(n) && !OF_THE_SYSTEM.contains(n)) {
        bail!("it requires `{other}`, which is missing");
    }
    if training {
        ensure!(
            needed.contains("libtorch.so"),
            "it does not require `libtorch.so`, so the CUDA part of PyTorch is not loaded"
        );
        ensure!(
            !dynamic.contains("(RPATH)"),
            "its search path is an RPATH, which takes precedence over LD_LIBRARY_PATH"
        );
    }
    Ok(())
}

/// ONNX Runtime's libraries. The CUDA provider keeps the code of [`ARCHITECTURE`] only.
fn libraries() -> anyhow::Result<Vec<File>> {
    install(&ONNXRUNTIME)?;
    let dir = cache()?.join(ONNXRUNTIME.name).join("lib");
    let names = ["libonnxruntime.so.1.31.1", "libonnxruntime_providers_shared.so", CUDA_PROVIDER];
    names
        .into_iter()
        .map(|name| {
            let mut content = fs::read(dir.join(name))?;
            if name == CUDA_PROVIDER {
                let trimmed = fatbin::keep(&mut content, ARCHITECTURE).with_context(|| format!("trim `{name}`"))?;
                eprintln!(
                    "gpu-kit: {name}: {} fat binaries, {} of {} bytes zeroed",
                    trimmed.binaries,
                    trimmed.zeroed_bytes,
                    content.len()
                );
            }
            Ok(File { name: format!("lib/{name}"), content })
        })
        .collect()
}

/// Path of the wheel of torch-fidelity in `store`. Downloads it if it is missing.
fn torch_fidelity(store: &Path) -> anyhow::Result<PathBuf> {
    let file = store.join(TORCH_FIDELITY_FILE);
    if !file.exists() {
        let staging = Staging::new(cache()?.join(format!(".{KIT}.partial-{}", std::process::id())))?;
        let fetched = download(&TORCH_FIDELITY, &staging.0)?;
        fs::create_dir_all(store)?;
        fs::rename(fetched, &file)?;
    }
    ensure!(hash(&file)?.0 == TORCH_FIDELITY.sha256, "{} has changed: remove it", file.display());
    Ok(file)
}

/// Files of the original D2O in `dir`.
fn original(dir: &Path) -> anyhow::Result<Vec<File>> {
    let mut files = Vec::new();
    for name in ORIGINAL {
        gather(&dir.join(name), &format!("orig/D2O/{name}"), &mut files)?;
    }
    Ok(files)
}

/// Adds the file or folder `path`, sorted by name, except compiled Python files and the vocabulary of CLIP's text
/// encoder (1.4 MB, which training never reads).
fn gather(path: &Path, name: &str, files: &mut Vec<File>) -> anyhow::Result<()> {
    if !path.is_dir() {
        files.push(File { name: name.to_owned(), content: fs::read(path)? });
        return Ok(());
    }
    let mut entries = fs::read_dir(path)?.map(|e| Ok(e?.file_name())).collect::<std::io::Result<Vec<_>>>()?;
    entries.sort();
    for entry in entries.iter().filter(|e| *e != "__pycache__" && *e != VOCABULARY) {
        gather(&path.join(entry), &format!("{name}/{}", entry.to_string_lossy()), files)?;
    }
    Ok(())
}

/// Removes the compressed streams of earlier kits from `store`.
fn forget_others(store: &Path, pieces: &[Piece]) -> anyhow::Result<()> {
    for entry in fs::read_dir(store)? {
        let path = entry?.path();
        let stream = path.extension().is_some_and(|e| e == "xz" || e.to_string_lossy().starts_with("partial-"));
        if stream && pieces.iter().all(|p| p.stream != path) {
            fs::remove_file(path)?;
        }
    }
    Ok(())
}

/// Copies the scripts of `xtask/gpu` into the kit.
fn copy_scripts(kit: &Path) -> anyhow::Result<()> {
    for entry in fs::read_dir(root().join("xtask/gpu"))? {
        let path = entry?.path();
        if path.extension().is_some_and(|e| e == "sh" || e == "py") {
            fs::copy(&path, kit.join(path.file_name().unwrap_or_default()))?;
        }
    }
    Ok(())
}

fn print_table(pieces: &[Piece], parts: &[Part]) {
    println!("{:>12} {:>12} {:>6}  {:12}  file", "bytes", "as xz", "s", "sha256");
    for piece in pieces {
        for (i, file) in piece.files.iter().enumerate() {
            // The size of a stream is printed with its first file.
            let size = if i == 0 { piece.bytes.to_string() } else { String::new() };
            let seconds = piece.seconds.filter(|_| i == 0).map_or_else(String::new, |s| format!("{s:.1}"));
            println!("{:12} {size:>12} {seconds:>6}  {}  {}", file.bytes, &file.sha256[..12], file.name);
        }
    }
    for part in parts {
        println!("{:12} {:19}  {}  {KIT}/{}", part.bytes, "", &part.sha256[..12], part.name);
    }
}

fn print_commands(parts: &[Part]) {
    println!("\nOn the GPU machine, in the checkout:");
    for (i, part) in parts.iter().enumerate() {
        let run = if i + 1 == parts.len() { " && bash xtask/gpu/run.sh /tmp/d2o-gpu \"$OUT\"" } else { "" };
        println!("{}. copy {KIT}/{} {KIT}/manifest.json {KIT}/unpack.sh", i + 1, part.name);
        println!("   bash {KIT}/unpack.sh /tmp/d2o-gpu{run}");
    }
    println!("{KIT}/run.sh and the files next to it are copies of xtask/gpu.");
}

/// Unpacks the kit part by part into a new folder, as on the GPU machine, and runs it with a Python that has the
/// packages of that machine.
fn rehearse(kit: &Path, parts: &[Part]) -> anyhow::Result<()> {
    let python = python::environment(&cache()?.join("gpu-python"), &REQUIREMENTS)?;
    let staging = Staging::new(std::env::temp_dir().join(format!("d2o-gpu-{}", std::process::id())))?;
    let (there, out) = (staging.0.join("d2o-gpu"), root().join("target/gpu-dry-run"));
    for part in parts {
        let brought = staging.0.join(&part.name);
        fs::create_dir_all(&brought)?;
        for name in [part.name.as_str(), "manifest.json", "unpack.sh"] {
            fs::copy(kit.join(name), brought.join(name))?;
        }
        timed(&format!("unpacking {}", part.name), Command::new("bash").arg(brought.join("unpack.sh")).arg(&there))?;
    }
    if out.exists() {
        fs::remove_dir_all(&out)?;
    }
    fs::create_dir_all(&out)?;
    let mut command = Command::new("bash");
    command.current_dir(root()).arg(kit.join("run.sh")).arg(&there).arg(&out).arg("--dry-run");
    // The GPU machine has nothing of this machine's set-up.
    for name in ["D2O_ONNXRUNTIME", "LD_LIBRARY_PATH", "LIBTORCH", "PYTHONPATH"] {
        command.env_remove(name);
    }
    command.env("PYTHON", python).env("D2O_CACHE", staging.0.join("no-cache"));
    timed("run.sh", &mut command)?;
    println!("gpu-kit: results are in {}", out.display());
    Ok(())
}

fn timed(name: &str, command: &mut Command) -> anyhow::Result<()> {
    let began = Instant::now();
    let status = command.status().with_context(|| format!("start {name}"))?;
    println!("gpu-kit: {name} took {:.1} s", began.elapsed().as_secs_f64());
    ensure!(status.success(), "{name} failed ({status})");
    Ok(())
}

/// Bytes of the files that travel with every part: what git tracks or does not ignore, each with the padding and
/// headers of a tar archive.
fn checkout_bytes() -> anyhow::Result<u64> {
    let names = git(&root(), &["ls-files", "--cached", "--others", "--exclude-standard", "-z"])?;
    let sizes = names.split('\0').filter(|n| !n.is_empty()).map(|n| Ok(fs::symlink_metadata(root().join(n))?.len()));
    sizes.map(|size: anyhow::Result<u64>| Ok(size?.next_multiple_of(512) + 1024)).sum()
}

/// Standard output of git in `dir`, trimmed.
fn git(dir: &Path, words: &[&str]) -> anyhow::Result<String> {
    Ok(output(Command::new("git").arg("-C").arg(dir).args(words))?.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Output of `readelf --dynamic` for a binary that needs `libraries`.
    fn dynamic(path: &str, libraries: &[&str]) -> String {
        let needed =
            libraries.iter().map(|l| format!(" 0x0000000000000001 (NEEDED)             Shared library: [{l}]\n"));
        format!("{} 0x000000000000001d ({path})            Library runpath: [/x/lib]\n", needed.collect::<String>())
    }

    #[test]
    fn a_binary_must_load_and_need_libtorch_by_name() {
        let sound = ["libtorch_cpu.so", "libtorch.so", "libc10.so", "libgomp.so.1", "libstdc++.so.6", "libc.so.6"];
        check_libraries(&dynamic("RUNPATH", &sound), true).unwrap();
        check_libraries(&dynamic("RUNPATH", &["libm.so.6", "libc.so.6"]), false).unwrap();
        let fault = |dynamic: &str, training| check_libraries(dynamic, training).unwrap_err().to_string();
        let message = "it does not require `libtorch.so`, so the CUDA part of PyTorch is not loaded";
        assert_eq!(fault(&dynamic("RUNPATH", &["libtorch_cpu.so", "libc.so.6"]), true), message);
        let message = "it requires `libhdf5.so.310`, which is missing";
        assert_eq!(fault(&dynamic("RUNPATH", &["libtorch.so", "libhdf5.so.310", "libc.so.6"]), true), message);
        assert_eq!(fault(&dynamic("RUNPATH", &sound), false), "it requires `libc10.so`, which is missing");
        assert!(fault(&dynamic("RPATH", &sound), true).contains("RPATH"));
        assert_eq!(fault("", true), "readelf lists no libraries");
    }

    #[test]
    fn folders_are_gathered_in_order_and_without_what_nobody_reads() {
        let dir = tempfile::tempdir().unwrap();
        for (name, content) in
            [("b/z.py", "1"), ("b/__pycache__/z.pyc", "2"), ("b/a.py", "3"), ("c.py", "4"), (VOCABULARY, "5")]
        {
            let path = dir.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }
        let mut files = Vec::new();
        gather(dir.path(), "orig", &mut files).unwrap();
        let names: Vec<_> = files.iter().map(|f| f.name.as_str()).collect();
        assert_eq!(names, ["orig/b/a.py", "orig/b/z.py", "orig/c.py"]);
        assert!(gather(&dir.path().join("absent"), "absent", &mut files).is_err());
    }
}
