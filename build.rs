//! With the feature `train`, lets the binary and the tests find libtorch without `LD_LIBRARY_PATH`.

fn main() {
    println!("cargo:rerun-if-env-changed=LIBTORCH");
    if std::env::var_os("CARGO_FEATURE_TRAIN").is_none() {
        return;
    }
    match std::env::var("LIBTORCH") {
        Ok(dir) => println!("cargo:rustc-link-arg=-Wl,-rpath,{dir}/lib"),
        Err(_) => {
            println!("cargo:warning=LIBTORCH is not set; run `cargo xtask setup` and `eval \"$(cargo xtask env)\"`")
        }
    }
}
