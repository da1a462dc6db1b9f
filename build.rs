//! Tells the program its commit. With the feature `train`, lets the binary and the tests find libtorch without `LD_LIBRARY_PATH`, and find CUDA with it.

use std::process::Command;

/// The commit of an optimised build: `D2O_COMMIT`, else that of the checkout. Development builds have none: every commit would compile them anew.
fn commit() -> String {
    println!("cargo:rerun-if-env-changed=D2O_COMMIT");
    if let Ok(commit) = std::env::var("D2O_COMMIT") {
        return commit;
    }
    if std::env::var("PROFILE").is_ok_and(|profile| profile != "release") {
        return "development build".to_owned();
    }
    let git = |args: &[&str]| {
        let output = Command::new("git").args(args).output().ok().filter(|o| o.status.success())?;
        Some(String::from_utf8(output.stdout).ok()?.trim().to_owned())
    };
    for path in ["HEAD", "index"] {
        if let Some(path) = git(&["rev-parse", "--git-path", path]) {
            println!("cargo:rerun-if-changed={path}");
        }
    }
    let changed = git(&["status", "--porcelain", "--untracked-files=no"]).is_some_and(|files| !files.is_empty());
    let commit = git(&["rev-parse", "--short=12", "HEAD"]).unwrap_or_else(|| "unknown".to_owned());
    if changed { format!("{commit} with changes") } else { commit }
}

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rustc-env=D2O_COMMIT={}", commit());
    println!("cargo:rerun-if-env-changed=LIBTORCH");
    if std::env::var_os("CARGO_FEATURE_TRAIN").is_none() {
        return;
    }
    match std::env::var("LIBTORCH") {
        Ok(dir) => {
            // A RUNPATH: LD_LIBRARY_PATH goes before it, so that a PyTorch with CUDA can take the place of a libtorch without.
            println!("cargo:rustc-link-arg=-Wl,--enable-new-dtags,-rpath,{dir}/lib");
            // Nothing refers to a symbol of libtorch.so, which is only there to load libtorch_cuda.so beside libtorch_cpu.so, so the linker would
            // drop it.
            println!("cargo:rustc-link-arg=-L{dir}/lib");
            for argument in ["-Wl,--push-state,--no-as-needed", "-ltorch", "-Wl,--pop-state"] {
                println!("cargo:rustc-link-arg={argument}");
            }
        }
        Err(_) => {
            println!("cargo:warning=LIBTORCH is not set; run `cargo xtask setup` and `eval \"$(cargo xtask env)\"`")
        }
    }
}
