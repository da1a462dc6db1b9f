//! Numerical settings of libtorch on CUDA that tch does not offer, set through C++ symbols of libtorch.
//!
//! The symbols are those of libtorch 2.11 for the Itanium C++ ABI, the version and platform that d2o is built for. With
//! another version, linking fails.

use std::ffi::{c_int, c_void};

/// Numerical settings of libtorch, valid for the whole process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Numerics {
    /// Whether CUDA may compute f32 convolutions and matrix products in TF32. libtorch by default allows it for
    /// convolutions.
    pub tf32: bool,
    /// Whether only deterministic kernels are used, which give the same bits in every run. Otherwise cuDNN times its
    /// kernels and uses the fastest.
    pub deterministic: bool,
}

// Float32Backend, Float32Op and Float32Precision of ATen/Context.h.
const CUDA: c_int = 1;
const CONV: c_int = 1;
const MATMUL: c_int = 3;
const TF32: c_int = 2;

#[allow(unsafe_code, reason = "setters and getters of at::Context, which take and give plain integers")]
mod context {
    use super::{c_int, c_void};

    unsafe extern "C" {
        #[link_name = "_ZN2at13globalContextEv"]
        pub(super) fn global() -> *mut c_void;
        #[link_name = "_ZN2at7Context17setAllowTF32CuDNNEb"]
        pub(super) fn set_tf32_cudnn(context: *mut c_void, allow: bool);
        #[link_name = "_ZN2at7Context18setAllowTF32CuBLASEb"]
        pub(super) fn set_tf32_cublas(context: *mut c_void, allow: bool);
        #[link_name = "_ZN2at7Context27setAllowFP16ReductionCuBLASEbb"]
        pub(super) fn set_f16_reduction(context: *mut c_void, allow: bool, split_k: bool);
        #[link_name = "_ZN2at7Context17setBenchmarkCuDNNEb"]
        pub(super) fn set_benchmark(context: *mut c_void, on: bool);
        #[link_name = "_ZN2at7Context21setDeterministicCuDNNEb"]
        pub(super) fn set_deterministic_cudnn(context: *mut c_void, on: bool);
        #[link_name = "_ZN2at7Context26setDeterministicAlgorithmsEbb"]
        pub(super) fn set_deterministic(context: *mut c_void, on: bool, warn_only: bool);
        #[link_name = "_ZNK2at7Context14benchmarkCuDNNEv"]
        pub(super) fn benchmark(context: *const c_void) -> bool;
        #[link_name = "_ZNK2at7Context23deterministicAlgorithmsEv"]
        pub(super) fn deterministic(context: *const c_void) -> bool;
        #[link_name = "_ZNK2at7Context16float32PrecisionENS_14Float32BackendENS_9Float32OpE"]
        pub(super) fn precision(context: *const c_void, backend: c_int, op: c_int) -> c_int;
    }
}

impl Numerics {
    /// Applies the settings to the process. As in the original, f16 matrix products are always accumulated in full
    /// precision.
    #[allow(unsafe_code, reason = "the context is libtorch's own static object")]
    pub fn apply(self) {
        /// Without this setting, cuBLAS may change its summation order from call to call, and libtorch refuses to use
        /// it in deterministic mode.
        const WORKSPACE: (&str, &str) = ("CUBLAS_WORKSPACE_CONFIG", ":4096:8");
        if self.deterministic && std::env::var_os(WORKSPACE.0).is_none() {
            // SAFETY: training begins here, and no other thread of d2o reads or writes the environment.
            unsafe { std::env::set_var(WORKSPACE.0, WORKSPACE.1) };
        }
        // SAFETY: the pointer is to an object that lives as long as the process, and each call sets one flag of it.
        unsafe {
            let context = context::global();
            context::set_tf32_cudnn(context, self.tf32);
            context::set_tf32_cublas(context, self.tf32);
            context::set_f16_reduction(context, false, true);
            context::set_benchmark(context, !self.deterministic);
            context::set_deterministic_cudnn(context, self.deterministic);
            // An operation without a deterministic kernel fails with an error that names it.
            context::set_deterministic(context, self.deterministic, false);
        }
    }

    /// The settings in force.
    #[must_use]
    #[allow(unsafe_code, reason = "the context is libtorch's own static object")]
    pub fn current() -> Self {
        // SAFETY: as in `apply`; each call reads one flag.
        unsafe {
            let context = context::global();
            let tf32 = |op| context::precision(context, CUDA, op) == TF32;
            let deterministic = context::deterministic(context) && !context::benchmark(context);
            Self { tf32: tf32(CONV) || tf32(MATMUL), deterministic }
        }
    }
}
