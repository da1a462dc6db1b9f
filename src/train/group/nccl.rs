//! NCCL on CUDA devices, from a library that is loaded at run time. The library of `PyTorch` is already in the process
//! if the CUDA part of its libtorch is.

use std::ffi::{CStr, OsString, c_char, c_int, c_void};

use anyhow::Context as _;
use libloading::Library;
use tch::{Device, Kind, Tensor};

/// The name of the library.
const STANDARD: &str = "libnccl.so.2";
/// `ncclResult_t` of success.
const SUCCESS: c_int = 0;
/// `ncclRedOp_t` of sums.
const SUM: c_int = 0;
// ncclDataType_t.
const FLOAT32: c_int = 7;
const FLOAT64: c_int = 8;

/// `ncclUniqueId`.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub(super) struct UniqueId([u8; 128]);

impl UniqueId {
    pub(super) const NONE: Self = Self([0; 128]);

    pub(super) fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// # Errors
    /// If there are fewer than 128 bytes.
    pub(super) fn read(bytes: &[u8]) -> anyhow::Result<Self> {
        Ok(Self(bytes.first_chunk().copied().context("expected 128 bytes")?))
    }
}

type Communicator = *mut c_void;
/// CUDA's default stream, which has the null handle. libtorch uses it too, so operations on it run in order.
const STREAM: *mut c_void = std::ptr::null_mut();

type AllReduce =
    unsafe extern "C" fn(*const c_void, *mut c_void, usize, c_int, c_int, Communicator, *mut c_void) -> c_int;
/// `ncclAllGather`. `ncclBroadcast` takes one more number.
type AllGather = unsafe extern "C" fn(*const c_void, *mut c_void, usize, c_int, Communicator, *mut c_void) -> c_int;
type Broadcast =
    unsafe extern "C" fn(*const c_void, *mut c_void, usize, c_int, c_int, Communicator, *mut c_void) -> c_int;

/// The functions of the library.
#[derive(Debug)]
pub(super) struct Nccl {
    unique_id: unsafe extern "C" fn(*mut UniqueId) -> c_int,
    join: unsafe extern "C" fn(*mut Communicator, c_int, UniqueId, c_int) -> c_int,
    all_reduce: AllReduce,
    all_gather: AllGather,
    broadcast: Broadcast,
    error: unsafe extern "C" fn(c_int) -> *const c_char,
    /// Keeps the functions loaded.
    _library: Library,
}

#[allow(unsafe_code, reason = "a function of libtorch's C interface, aoti_torch/c/shim.h of 2.11")]
unsafe extern "C" {
    fn aoti_torch_create_device_guard(index: i32, guard: *mut *mut c_void) -> i32;
}

impl Nccl {
    /// Loads the library that `D2O_NCCL` names, otherwise the one that the loader finds.
    ///
    /// # Errors
    /// If there is no library, or it lacks a function.
    #[allow(unsafe_code, reason = "signatures are those of nccl.h, unchanged since NCCL 2.2")]
    pub(super) fn load() -> anyhow::Result<Self> {
        let path = std::env::var_os("D2O_NCCL").unwrap_or_else(|| OsString::from(STANDARD));
        let missing = || format!("`{}` is not NCCL", path.to_string_lossy());
        // SAFETY: the initialisers of NCCL allocate and read the environment; each type is that of the function with
        // this name.
        unsafe {
            let library = Library::new(&path).context(
                "NCCL was not found: set D2O_NCCL to the path of libnccl.so.2, or add its folder to LD_LIBRARY_PATH",
            )?;
            Ok(Self {
                unique_id: *library.get(b"ncclGetUniqueId\0").with_context(missing)?,
                join: *library.get(b"ncclCommInitRank\0").with_context(missing)?,
                all_reduce: *library.get(b"ncclAllReduce\0").with_context(missing)?,
                all_gather: *library.get(b"ncclAllGather\0").with_context(missing)?,
                broadcast: *library.get(b"ncclBroadcast\0").with_context(missing)?,
                error: *library.get(b"ncclGetErrorString\0").with_context(missing)?,
                _library: library,
            })
        }
    }

    /// The identifier with which all processes of a group connect. Process 0 creates it.
    ///
    /// # Errors
    /// If NCCL fails.
    #[allow(unsafe_code, reason = "NCCL takes pointers")]
    pub(super) fn unique_id(&self) -> anyhow::Result<UniqueId> {
        let mut id = UniqueId::NONE;
        // SAFETY: writes 128 bytes.
        self.checked("ncclGetUniqueId", unsafe { (self.unique_id)(&raw mut id) })?;
        Ok(id)
    }

    /// Joins the group `id` of `size` processes as rank `rank` on CUDA device `device`, which becomes the current
    /// device of this thread.
    ///
    /// # Errors
    /// If NCCL or libtorch fails, for example because two processes use one device.
    #[allow(unsafe_code, reason = "NCCL and libtorch take pointers")]
    pub(super) fn join(self, id: UniqueId, rank: usize, size: usize, device: usize) -> anyhow::Result<Group> {
        let mut guard = std::ptr::null_mut();
        // SAFETY: writes a pointer. The guard is never freed: its device stays the current one.
        let code = unsafe { aoti_torch_create_device_guard(i32::try_from(device)?, &raw mut guard) };
        anyhow::ensure!(code == 0, "libtorch cannot make CUDA device {device} the current one");
        let mut communicator = std::ptr::null_mut();
        // SAFETY: writes a pointer, once the other processes have called it too.
        let code = unsafe { (self.join)(&raw mut communicator, i32::try_from(size)?, id, i32::try_from(rank)?) };
        self.checked("ncclCommInitRank", code)?;
        Ok(Group { nccl: self, communicator, size })
    }

    #[allow(unsafe_code, reason = "NCCL gives a text")]
    fn checked(&self, name: &str, code: c_int) -> anyhow::Result<()> {
        if code == SUCCESS {
            return Ok(());
        }
        // SAFETY: NCCL has a constant text for every number.
        let text = unsafe { CStr::from_ptr((self.error)(code)) };
        anyhow::bail!("{name}: {} (NCCL_DEBUG=INFO says more)", text.to_string_lossy())
    }
}

/// Processes with one CUDA device each. Operations are enqueued on CUDA's default stream without waiting for the other
/// processes. NCCL computes each element once and sends it to all processes, so all get the same bits.
#[derive(Debug)]
pub(super) struct Group {
    nccl: Nccl,
    communicator: Communicator,
    size: usize,
}

impl Group {
    /// Replaces the values of `tensor`, contiguous, by the sums over all processes.
    ///
    /// # Errors
    /// If NCCL fails.
    #[allow(unsafe_code, reason = "NCCL takes pointers")]
    pub(super) fn sum(&self, tensor: &Tensor) -> anyhow::Result<()> {
        let (at, count, kind) = on_device(tensor)?;
        // SAFETY: in place on the memory of a tensor, which libtorch frees in stream order.
        let code = unsafe { (self.nccl.all_reduce)(at, at, count, kind, SUM, self.communicator, STREAM) };
        self.nccl.checked("ncclAllReduce", code)
    }

    /// The tensors `own [...]` of all processes as `[processes, ...]`.
    ///
    /// # Errors
    /// If NCCL or libtorch fails.
    #[allow(unsafe_code, reason = "NCCL takes pointers")]
    pub(super) fn gather(&self, own: &Tensor) -> anyhow::Result<Tensor> {
        let (at, count, kind) = on_device(own)?;
        let dims = [&[i64::try_from(self.size)?], own.size().as_slice()].concat();
        let all = Tensor::f_empty(dims, (own.kind(), own.device()))?;
        // SAFETY: `all` has `size` times the elements of `own`; both are contiguous. Memory is freed as in `sum`.
        let code = unsafe { (self.nccl.all_gather)(at, all.data_ptr(), count, kind, self.communicator, STREAM) };
        self.nccl.checked("ncclAllGather", code)?;
        Ok(all)
    }

    /// Replaces the values of `tensor`, contiguous, by those of process 0.
    ///
    /// # Errors
    /// If NCCL fails.
    #[allow(unsafe_code, reason = "NCCL takes pointers")]
    pub(super) fn broadcast(&self, tensor: &Tensor) -> anyhow::Result<()> {
        let (at, count, kind) = on_device(tensor)?;
        // SAFETY: as in `sum`.
        let code = unsafe { (self.nccl.broadcast)(at, at, count, kind, 0, self.communicator, STREAM) };
        self.nccl.checked("ncclBroadcast", code)
    }
}

/// Address, number of elements and element type of `tensor`.
fn on_device(tensor: &Tensor) -> anyhow::Result<(*mut c_void, usize, c_int)> {
    let kind = match tensor.kind() {
        Kind::Float => FLOAT32,
        Kind::Double => FLOAT64,
        other => anyhow::bail!("expected f32 or f64, found {other:?}"),
    };
    anyhow::ensure!(
        tensor.device() != Device::Cpu && tensor.is_contiguous(),
        "expected a contiguous tensor on a device"
    );
    Ok((tensor.data_ptr(), tensor.numel(), kind))
}
