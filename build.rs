//! With the feature `train`, lets the binary and the tests find libtorch without `LD_LIBRARY_PATH`, and find CUDA with it.

fn main() {
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
