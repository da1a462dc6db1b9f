//! Records of measurements in the documentation: the conditions, and the tables between two marks.

use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, ensure};
use fs_err as fs;

use crate::paths::{component, root};

/// One line of Markdown with date, versions and machine.
///
/// # Errors
/// If git, rustc or `date` cannot be run.
pub(crate) fn stamp() -> anyhow::Result<String> {
    let cpu = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let field = |name: &str| {
        let line = cpu.lines().find(|line| line.split(':').next().is_some_and(|key| key.trim() == name))?;
        Some(line.split_once(':')?.1.trim().to_owned())
    };
    let flags = field("flags").unwrap_or_default();
    let has = |flag: &str| flags.split(' ').any(|f| f == flag);
    let vectors = if has("avx512f") {
        "AVX-512"
    } else if has("avx2") {
        "AVX2"
    } else {
        "no AVX2"
    };
    let memory = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kib = memory.lines().find_map(|l| l.strip_prefix("MemTotal:")?.trim().strip_suffix(" kB")?.trim().parse().ok());
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let dirty = !output(Command::new("git").args(["status", "--porcelain", "--untracked-files=no"]))?.is_empty();
    let version = |component: &str| component.rsplit_once('-').map_or(String::new(), |(_, version)| version.to_owned());
    Ok(format!(
        "Measured on {}, d2o {} ({}{}), {}, ONNX Runtime {}, libtorch {}; {}, {cores} cores, {vectors}, {:.0} GiB.",
        output(Command::new("date").args(["-u", "+%F"]))?,
        env!("CARGO_PKG_VERSION"),
        output(Command::new("git").args(["rev-parse", "--short", "HEAD"]))?,
        if dirty { " with changes" } else { "" },
        output(Command::new("rustc").arg("--version"))?.split(" (").next().unwrap_or_default(),
        version(component::ONNXRUNTIME),
        version(component::LIBTORCH),
        field("model name").unwrap_or_else(|| "unknown processor".to_owned()),
        kib.unwrap_or(0.0_f64) / f64::from(1 << 20),
    ))
}

/// Replaces the text between two marks in `file`.
///
/// # Errors
/// If `file` lacks a mark, or cannot be read or written.
pub(crate) fn write_between(file: &Path, marks: [&str; 2], text: &str) -> anyhow::Result<()> {
    let old = fs::read_to_string(file)?;
    let parts = old.split_once(marks[0]).and_then(|(before, rest)| Some((before, rest.split_once(marks[1])?.1)));
    let (before, after) = parts.with_context(|| format!("`{}` lacks {:?}", file.display(), marks[0]))?;
    Ok(fs::write(file, format!("{before}{}{text}{}{after}", marks[0], marks[1]))?)
}

/// Standard output of `command`, run in the root of the repository.
fn output(command: &mut Command) -> anyhow::Result<String> {
    let output = command.current_dir(root()).output().with_context(|| format!("run {command:?}"))?;
    ensure!(output.status.success(), "{command:?} failed ({})", output.status);
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_stamp_has_date_versions_and_machine() {
        let stamp = super::stamp().unwrap();
        assert!(
            stamp.starts_with("Measured on 20") && stamp.contains(", rustc 1.") && stamp.ends_with(" GiB."),
            "{stamp}"
        );
        assert!(stamp.contains("ONNX Runtime 1.") && stamp.contains("libtorch 2."), "{stamp}");
    }
}
