//! Paths of the checkout and the cache, and the environment variables that builds need.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, ensure};

/// Names of the folders in the cache, one for each component of set-up.
pub(crate) mod component {
    pub(crate) const CARGO_DENY: &str = "cargo-deny-0.20.2";
    pub(crate) const CMAKE: &str = "cmake-4.4.4";
    /// Also named in `test-support`, where tests look for it.
    pub(crate) const KALEIDO: &str = "kaleido-0.2.1";
    pub(crate) const LIBTORCH: &str = "libtorch-2.11.0";
    pub(crate) const LITE0: &str = "lite0-0.1.0";
    /// Also named in `src/train/group/mpi.rs`, which looks for the library here.
    pub(crate) const MPICH: &str = "mpich-5.0.2";
    /// Also named in `src/engine.rs`, which looks for the library here.
    pub(crate) const ONNXRUNTIME: &str = "onnxruntime-1.32.0";
    /// For `gpu-kit` only.
    pub(crate) const ONNXRUNTIME_GPU: &str = "onnxruntime-gpu-1.31.1";
    pub(crate) const OPENMOJI: &str = "openmoji-17.0.0";
    pub(crate) const OPENVINO: &str = "onnxruntime-ep-openvino-1.8.1";
}

/// Root of the checkout that runs this task. Read from the environment at run time, because checkouts that share a
/// target folder share this binary.
pub(crate) fn root() -> PathBuf {
    let package =
        std::env::var_os("CARGO_MANIFEST_DIR").map_or_else(|| env!("CARGO_MANIFEST_DIR").into(), PathBuf::from);
    package.parent().unwrap_or(Path::new(".")).to_owned()
}

/// `D2O_CACHE`, else `d2o` in `XDG_CACHE_HOME` or `~/.cache`.
pub(crate) fn cache() -> anyhow::Result<PathBuf> {
    let path = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let user = || path("XDG_CACHE_HOME").filter(|p| p.is_absolute()).or_else(|| Some(path("HOME")?.join(".cache")));
    let dir = path("D2O_CACHE").or_else(|| Some(user()?.join("d2o"))).context("neither D2O_CACHE nor HOME is set")?;
    Ok(std::path::absolute(dir)?)
}

/// Environment variables of builds and runs, by name. A variable that is already set keeps its value.
pub(crate) fn environment() -> anyhow::Result<Vec<(&'static str, OsString)>> {
    let cache = cache()?;
    let mut variables: Vec<(&'static str, OsString)> = vec![
        ("CARGO_TARGET_DIR", cache.join("target").into()),
        ("CMAKE", cache.join(component::CMAKE).join("bin/cmake").into()),
        ("D2O_ONNXRUNTIME", cache.join(component::ONNXRUNTIME).join("lib/libonnxruntime.so.1.32.0").into()),
        (
            "D2O_OPENVINO",
            cache.join(component::OPENVINO).join("lib/libonnxruntime_providers_openvino_plugin.so").into(),
        ),
        ("LIBTORCH", cache.join(component::LIBTORCH).into()),
    ];
    for (name, value) in &mut variables {
        if let Some(set) = std::env::var_os(*name) {
            *value = set;
        }
    }
    Ok(variables)
}

/// The target folder of builds.
pub(crate) fn target() -> anyhow::Result<PathBuf> {
    let (_, dir) =
        environment()?.into_iter().find(|(name, _)| *name == "CARGO_TARGET_DIR").context("no target folder")?;
    Ok(dir.into())
}

/// The cargo that runs this task, in the checkout, with the variables of [`environment`].
pub(crate) fn cargo() -> anyhow::Result<Command> {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root()).envs(environment()?);
    Ok(command)
}

/// Builds d2o in the development profile, with training if `training`, and returns its path.
///
/// # Errors
/// If the build fails.
pub(crate) fn build_d2o(training: bool) -> anyhow::Result<PathBuf> {
    let mut build = cargo()?;
    build.args(["build", "--package", "d2o"]);
    if training {
        build.args(["--features", "train"]);
    }
    let status = build.status().context("start cargo")?;
    ensure!(status.success(), "d2o does not build ({status})");
    Ok(root().join(target()?).join("debug/d2o"))
}
