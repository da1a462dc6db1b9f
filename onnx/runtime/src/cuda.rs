//! CUDA devices as the driver lists them, and CUDA libraries of Python environments.

use std::ffi::{CStr, c_char, c_int, c_uint};
use std::path::{Path, PathBuf};

use libloading::{Library, Symbol};

use crate::error::{Error, Result};

/// Library of the driver.
const DRIVER: &str = "libcuda.so.1";
/// Libraries of CUDA 13 and cuDNN 9 that ONNX Runtime's CUDA provider links to or opens by name. Each depends only on
/// libraries before it.
const LINKED: [&str; 7] = [
    "libcudart.so.13",
    "libcublasLt.so.13",
    "libcublas.so.13",
    "libnvrtc.so.13",
    "libcurand.so.10",
    "libcufft.so.12",
    "libcudnn.so.9",
];
/// `CUDA_SUCCESS`.
const SUCCESS: c_int = 0;
/// `CUDA_ERROR_NO_DEVICE`.
const NO_DEVICE: c_int = 100;
/// `CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT`.
const MULTIPROCESSORS: c_int = 16;
/// `CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_MULTIPROCESSOR`.
const THREADS_PER_MULTIPROCESSOR: c_int = 39;

type Init = unsafe extern "C" fn(c_uint) -> c_int;
type Count = unsafe extern "C" fn(*mut c_int) -> c_int;
type Name = unsafe extern "C" fn(*mut c_char, c_int, c_int) -> c_int;
type Memory = unsafe extern "C" fn(*mut usize, c_int) -> c_int;
type Attribute = unsafe extern "C" fn(*mut c_int, c_int, c_int) -> c_int;

/// A CUDA device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CudaDevice {
    /// Name, e.g. `NVIDIA H100 80GB HBM3`.
    pub name: String,
    /// Number of multiprocessors.
    pub multiprocessors: u32,
    /// Maximum number of resident threads of a multiprocessor.
    pub threads_per_multiprocessor: u32,
    /// Memory, bytes.
    pub memory: u64,
}

/// The CUDA devices in the order of the driver, restricted by `CUDA_VISIBLE_DEVICES`. Empty without a driver or a
/// device.
///
/// # Errors
/// `Library` if there is a driver, but it lacks a function or a call fails.
pub fn devices() -> Result<Vec<CudaDevice>> {
    devices_of(Path::new(DRIVER))
}

/// Free and total memory of the CUDA device that this thread uses, bytes. `None` if the thread has not used a device
/// yet, or without a driver.
#[must_use]
#[allow(unsafe_code, reason = "a function of the driver's C interface")]
pub fn memory() -> Option<(u64, u64)> {
    type Info = unsafe extern "C" fn(*mut usize, *mut usize) -> c_int;
    let (mut free, mut total) = (0, 0);
    // SAFETY: loading the driver runs its initialisers, as in every CUDA program. The signature is that of cuda.h. The
    // call writes two sizes.
    let code = unsafe {
        let library = Library::new(DRIVER).ok()?;
        let info: Symbol<'_, Info> = library.get(b"cuMemGetInfo_v2\0").ok()?;
        info(&raw mut free, &raw mut total)
    };
    (code == SUCCESS).then_some((free as u64, total as u64))
}

/// Loads the CUDA libraries that the provider next to `library` (libonnxruntime in a Python environment) needs.
/// Libraries that the dynamic loader finds by itself, e.g. through `LD_LIBRARY_PATH`, take precedence over the `nvidia`
/// packages of the environment. The dynamic loader does not search these packages, but uses libraries that are loaded
/// already.
pub(crate) fn preload(library: &Path) {
    preload_named(&LINKED, library);
}

fn preload_named(names: &[&str], library: &Path) {
    let Some(packages) = library.ancestors().nth(3) else { return };
    let entries = fs_err::read_dir(packages.join("nvidia")).into_iter().flatten().filter_map(|entry| entry.ok());
    let folders: Vec<PathBuf> = entries.map(|entry| entry.path().join("lib")).collect();
    for name in names {
        let there = folders.iter().map(|folder| folder.join(name)).filter(|path| path.exists());
        if let Some(library) = std::iter::once(PathBuf::from(name)).chain(there).find_map(load) {
            // The provider uses the library until the process ends.
            std::mem::forget(library);
        }
    }
}

/// The library at `path`, if the dynamic loader can load it.
#[allow(unsafe_code, reason = "a library of CUDA, which the provider would load")]
fn load(path: PathBuf) -> Option<Library> {
    // SAFETY: loading the library runs its initialisers, as loading the provider would.
    unsafe { Library::new(path) }.ok()
}

#[allow(
    unsafe_code,
    reason = "the driver's C interface; names and types are those of cuda.h, pointers live for the call"
)]
fn devices_of(driver: &Path) -> Result<Vec<CudaDevice>> {
    let unusable = |expected: String, found: String, source| Error::Library {
        library: driver.to_owned(),
        expected,
        found,
        source,
    };
    let failed = |call: &str, code: c_int| unusable(format!("{call} to succeed"), format!("error {code}"), None);
    // SAFETY: loading the driver runs its initialisers, as in every CUDA program.
    let Ok(library) = (unsafe { Library::new(driver) }) else { return Ok(Vec::new()) };
    let missing = |e: libloading::Error| {
        unusable("the functions of the CUDA driver".to_owned(), "a library without one".to_owned(), Some(e.into()))
    };
    // SAFETY: the signatures, here and below, are those of cuda.h, unchanged since CUDA 3.2.
    let (init, count, name): (Symbol<'_, Init>, Symbol<'_, Count>, Symbol<'_, Name>) = unsafe {
        (
            library.get(b"cuInit\0").map_err(missing)?,
            library.get(b"cuDeviceGetCount\0").map_err(missing)?,
            library.get(b"cuDeviceGetName\0").map_err(missing)?,
        )
    };
    // SAFETY: as above.
    let (memory, attribute): (Symbol<'_, Memory>, Symbol<'_, Attribute>) = unsafe {
        (
            library.get(b"cuDeviceTotalMem_v2\0").map_err(missing)?,
            library.get(b"cuDeviceGetAttribute\0").map_err(missing)?,
        )
    };
    let checked = |call: &str, code: c_int| if code == SUCCESS { Ok(()) } else { Err(failed(call, code)) };
    // SAFETY: the only argument is flags, which must be 0.
    match unsafe { init(0) } {
        NO_DEVICE => return Ok(Vec::new()),
        code => checked("cuInit", code)?,
    }
    let mut found = 0;
    // SAFETY: the call writes one integer.
    checked("cuDeviceGetCount", unsafe { count(&raw mut found) })?;
    (0..found)
        .map(|device| {
            const LENGTH: u8 = 255;
            let mut text = [0 as c_char; LENGTH as usize + 1];
            // SAFETY: the call writes at most the given length, zero-terminated. The handle of a device is its index.
            checked("cuDeviceGetName", unsafe { name(text.as_mut_ptr(), LENGTH.into(), device) })?;
            // SAFETY: the last byte of the array is zero.
            let text = unsafe { CStr::from_ptr(text.as_ptr()) }.to_string_lossy().into_owned();
            let number = |which: c_int| -> Result<u32> {
                let mut value = 0;
                // SAFETY: the call writes one integer.
                checked("cuDeviceGetAttribute", unsafe { attribute(&raw mut value, which, device) })?;
                u32::try_from(value).map_err(|_| failed("cuDeviceGetAttribute", value))
            };
            let mut bytes = 0;
            // SAFETY: the call writes one size.
            checked("cuDeviceTotalMem", unsafe { memory(&raw mut bytes, device) })?;
            Ok(CudaDevice {
                name: text,
                memory: bytes as u64,
                multiprocessors: number(MULTIPROCESSORS)?,
                threads_per_multiprocessor: number(THREADS_PER_MULTIPROCESSOR)?,
            })
        })
        .collect()
}

#[cfg(test)]
#[cfg(unix)]
mod tests {
    use super::*;

    fn driver(dir: &Path, source: &str) -> PathBuf {
        library(dir, "driver.so", source)
    }

    fn library(dir: &Path, name: &str, source: &str) -> PathBuf {
        let (from, to) = (dir.join("source.c"), dir.join(name));
        fs_err::write(&from, source).unwrap();
        let mut build = std::process::Command::new("cc");
        build.arg("-shared").arg("-fPIC").arg(format!("-Wl,-soname,{name}")).arg("-o").arg(&to).arg(&from);
        assert!(build.status().unwrap().success());
        to
    }

    #[test]
    fn devices_are_what_the_driver_says() {
        let dir = tempfile::tempdir().unwrap();
        let source = r#"
            #include <stdio.h>
            int cuInit(unsigned flags) { return flags == 0 ? 0 : 1; }
            int cuDeviceGetCount(int *n) { *n = 2; return 0; }
            int cuDeviceGetName(char *to, int length, int device) { snprintf(to, length, "Device %d", device); return 0; }
            int cuDeviceTotalMem_v2(size_t *bytes, int device) { *bytes = (size_t)80 << 30; return 0; }
            int cuDeviceGetAttribute(int *value, int which, int device) {
                *value = which == 16 ? 100 + device : which == 39 ? 2048 : -1;
                return 0;
            }"#;
        let found = devices_of(&driver(dir.path(), source)).unwrap();
        let device = |i: u32| CudaDevice {
            name: format!("Device {i}"),
            multiprocessors: 100 + i,
            threads_per_multiprocessor: 2048,
            memory: 80 << 30,
        };
        assert_eq!(found, [device(0), device(1)]);
    }

    #[test]
    fn a_missing_driver_is_not_an_error_and_a_failing_one_is() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(devices_of(&dir.path().join("absent.so")).unwrap(), []);
        let rest = "int cuDeviceGetCount(int *n) { return 1; } int cuDeviceGetName() { return 1; } int cuDeviceTotalMem_v2() { return 1; } \
                    int cuDeviceGetAttribute() { return 1; }";
        let none = driver(dir.path(), &format!("int cuInit(unsigned f) {{ return 100; }} {rest}"));
        assert_eq!(devices_of(&none).unwrap(), []);
        let other = tempfile::tempdir().unwrap();
        let broken = driver(other.path(), &format!("int cuInit(unsigned f) {{ return 999; }} {rest}"));
        let error = devices_of(&broken).unwrap_err().to_string();
        assert!(error.contains("expected cuInit to succeed, found error 999"), "{error}");
    }

    #[test]
    fn cuda_libraries_of_the_environment_are_loaded() {
        // Names that exist on no machine.
        let (first, second, other) = ("libd2ofirst.so.13", "libd2osecond.so.9", "libd2ofirst.so.12");
        let dir = tempfile::tempdir().unwrap();
        for (package, name) in [("cu13", first), ("cudnn", second), ("cu13", other)] {
            let lib = dir.path().join("nvidia").join(package).join("lib");
            fs_err::create_dir_all(&lib).unwrap();
            library(&lib, name, "int answer(void) { return 1; }");
        }
        let by_name = |name: &str| load(PathBuf::from(name)).is_some();
        assert!(!by_name(first) && !by_name(second));
        preload_named(&[first, second], &dir.path().join("onnxruntime/capi/libonnxruntime.so.1.31.1"));
        assert!(by_name(first) && by_name(second));
        assert!(!by_name(other));
        preload(Path::new("libonnxruntime.so"));
    }
}
