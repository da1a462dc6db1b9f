//! MPI through the standard ABI of MPI 5, from a library that is loaded at run time. It needs no header and no compiler
//! wrapper, and works with any implementation of the ABI.
//!
//! MPI only transfers bytes. Sums are computed here: each process adds its slice of the elements in rank order. All
//! processes get the same bits, and every run gives the same bits.

use std::ffi::{OsString, c_int, c_void};

use anyhow::Context as _;
use libloading::Library;
use tch::Tensor;

use crate::engine::installed;

/// Elements of the slice of a process that are exchanged at a time.
const CHUNK: i64 = 1 << 20;
/// The library that `cargo xtask setup` installs, relative to its cache.
const INSTALLED: &str = "mpich-5.0.2/lib/libmpi_abi.so.1";
/// Name of the library in the standard.
const STANDARD: &str = "libmpi_abi.so.1";

/// `MPI_Comm` and `MPI_Datatype`: pointers. The standard fixes the values of predefined handles.
type Handle = *mut c_void;
/// `MPI_Alltoall` and `MPI_Allgather`.
type Exchange = unsafe extern "C" fn(*const c_void, c_int, Handle, *mut c_void, c_int, Handle, Handle) -> c_int;
/// `MPI_Bcast`.
type Broadcast = unsafe extern "C" fn(*mut c_void, c_int, Handle, c_int, Handle) -> c_int;
/// `MPI_Comm_rank` and `MPI_Comm_size`.
type Number = unsafe extern "C" fn(Handle, *mut c_int) -> c_int;

const WORLD: usize = 0x101;
const BYTE: usize = 0x247;
/// Major version of the standard ABI.
const ABI: c_int = 1;
const THREAD_FUNNELED: c_int = 1024;

/// `MPI_COMM_WORLD`. By default, a failing operation ends all processes with a message of MPI.
#[derive(Debug)]
pub(super) struct World {
    size: usize,
    all_to_all: Exchange,
    all_gather: Exchange,
    broadcast: Broadcast,
    abort: unsafe extern "C" fn(Handle, c_int) -> c_int,
    finalize: unsafe extern "C" fn() -> c_int,
    /// Keeps the functions loaded.
    _library: Library,
}

impl World {
    /// Joins the `size` processes of the launcher as rank `rank`, both from the variables of the launcher.
    ///
    /// # Errors
    /// If there is no library, it lacks the standard ABI, or rank or size differ because the launcher belongs to
    /// another implementation.
    #[allow(unsafe_code, reason = "signatures and constants are those of mpi_abi.h of MPI 5")]
    pub(super) fn join(rank: usize, size: usize) -> anyhow::Result<Self> {
        let (library, path) = load()?;
        let missing = || format!("`{}` is not a library of the standard MPI ABI", path.to_string_lossy());
        // SAFETY: each type is that of the function with this name.
        let (version, init, rank_of, size_of, world) = unsafe {
            let version: unsafe extern "C" fn(*mut c_int, *mut c_int) -> c_int =
                *library.get(b"MPI_Abi_get_version\0").with_context(missing)?;
            let init: unsafe extern "C" fn(*mut c_int, *mut c_void, c_int, *mut c_int) -> c_int =
                *library.get(b"MPI_Init_thread\0").with_context(missing)?;
            let rank_of: Number = *library.get(b"MPI_Comm_rank\0").with_context(missing)?;
            let size_of: Number = *library.get(b"MPI_Comm_size\0").with_context(missing)?;
            let world = Self {
                size,
                all_to_all: *library.get(b"MPI_Alltoall\0").with_context(missing)?,
                all_gather: *library.get(b"MPI_Allgather\0").with_context(missing)?,
                broadcast: *library.get(b"MPI_Bcast\0").with_context(missing)?,
                abort: *library.get(b"MPI_Abort\0").with_context(missing)?,
                finalize: *library.get(b"MPI_Finalize\0").with_context(missing)?,
                _library: library,
            };
            (version, init, rank_of, size_of, world)
        };
        let (mut abi, mut provided, mut found) = ([0; 2], 0, [0; 2]);
        // SAFETY: writes two integers; may be called before MPI is initialised. A library of another ABI has other
        // constants, and returns -1.
        checked("MPI_Abi_get_version", unsafe { version(&raw mut abi[0], &raw mut abi[1]) })?;
        anyhow::ensure!(abi[0] == ABI, missing());
        // SAFETY: null for no arguments is allowed since MPI-2; each call writes one integer. `MPI_Init_thread` is the
        // first call, and all calls come from one thread.
        unsafe {
            checked(
                "MPI_Init_thread",
                init(std::ptr::null_mut(), std::ptr::null_mut(), THREAD_FUNNELED, &raw mut provided),
            )?;
            checked("MPI_Comm_rank", rank_of(handle(WORLD), &raw mut found[0]))?;
            checked("MPI_Comm_size", size_of(handle(WORLD), &raw mut found[1]))?;
        }
        let found = found.map(|n| usize::try_from(n).unwrap_or(usize::MAX));
        anyhow::ensure!(
            found == [rank, size],
            "this is process {rank} of {size} according to the launcher, but process {1} of {2} according to `{0}`: use the launcher of this library, or srun --mpi=pmi2",
            path.to_string_lossy(),
            found[0],
            found[1]
        );
        Ok(world)
    }

    /// `own` of all processes, concatenated in rank order. All must have the same length.
    ///
    /// # Errors
    /// If MPI fails, or `own` has 2 GiB or more.
    #[allow(unsafe_code, reason = "MPI takes pointers")]
    pub(super) fn gather_bytes(&self, own: &[u8]) -> anyhow::Result<Vec<u8>> {
        let mut all = vec![0_u8; own.len() * self.size];
        // SAFETY: `own` holds the bytes to send, and `all` those of all processes.
        unsafe {
            self.exchange("MPI_Allgather", self.all_gather, own.as_ptr().cast(), own.len(), all.as_mut_ptr().cast())?
        };
        Ok(all)
    }

    /// The tensors `own [...]` of all processes as `[processes, ...]`.
    ///
    /// # Errors
    /// If MPI or libtorch fails, or `own` has 2 GiB or more.
    #[allow(unsafe_code, reason = "MPI takes pointers")]
    pub(super) fn gather(&self, own: &Tensor) -> anyhow::Result<Tensor> {
        let (own, bytes) = on_cpu(own)?;
        let all = Tensor::f_empty(
            [&[i64::try_from(self.size)?], own.size().as_slice()].concat(),
            (own.kind(), own.device()),
        )?;
        // SAFETY: both tensors are contiguous, on the CPU and alive; the second has `size` times the elements of the first.
        unsafe { self.exchange("MPI_Allgather", self.all_gather, own.data_ptr(), bytes, all.data_ptr())? };
        Ok(all)
    }

    /// Replaces the values of `tensor`, a contiguous vector on the CPU, by the sums over all processes.
    ///
    /// # Errors
    /// If MPI or libtorch fails.
    #[allow(unsafe_code, reason = "MPI takes pointers")]
    pub(super) fn sum(&self, tensor: &Tensor) -> anyhow::Result<()> {
        let _guard = tch::no_grad_guard();
        let processes = i64::try_from(self.size)?;
        let length = tensor.size1()?;
        let mut start = 0;
        while start < length {
            let count = (processes * CHUNK).min(length - start);
            let mut part = tensor.f_narrow(0, start, count)?;
            // Slice k of each process is sent to process k.
            let slice = (count + processes - 1) / processes;
            let all = Tensor::f_zeros([processes * slice], (tensor.kind(), tensor.device()))?;
            all.f_narrow(0, 0, count)?.f_copy_(&part)?;
            let received = Tensor::f_empty([processes, slice], (tensor.kind(), tensor.device()))?;
            let bytes = usize::try_from(slice)? * tensor.kind().elt_size_in_bytes();
            // SAFETY: both tensors are contiguous, on the CPU and alive, and hold `size` slices.
            unsafe { self.exchange("MPI_Alltoall", self.all_to_all, all.data_ptr(), bytes, received.data_ptr())? };
            let mut sum = received.f_select(0, 0)?;
            for k in 1..processes {
                let _ = sum.f_add_(&received.f_select(0, k)?)?;
            }
            // SAFETY: `sum` is the first row of `received`, contiguous; `all` holds `size` slices.
            unsafe { self.exchange("MPI_Allgather", self.all_gather, sum.data_ptr(), bytes, all.data_ptr())? };
            part.f_copy_(&all.f_narrow(0, 0, count)?)?;
            start += count;
        }
        Ok(())
    }

    /// Replaces the values of `tensor`, contiguous on the CPU, by those of process 0.
    ///
    /// # Errors
    /// If MPI fails, or `tensor` has 2 GiB or more.
    #[allow(unsafe_code, reason = "MPI takes pointers")]
    pub(super) fn broadcast(&self, tensor: &Tensor) -> anyhow::Result<()> {
        let (tensor, bytes) = on_cpu(tensor)?;
        // SAFETY: the tensor is contiguous, on the CPU and alive.
        let code =
            unsafe { (self.broadcast)(tensor.data_ptr(), c_int::try_from(bytes)?, handle(BYTE), 0, handle(WORLD)) };
        checked("MPI_Bcast", code)
    }

    /// # Safety
    /// `receive` holds `bytes` bytes per process. `send` holds `bytes` bytes per process for `MPI_Alltoall`, and
    /// `bytes` bytes for `MPI_Allgather`.
    #[allow(unsafe_code, reason = "MPI takes pointers")]
    unsafe fn exchange(
        &self,
        name: &str,
        function: Exchange,
        send: *const c_void,
        bytes: usize,
        receive: *mut c_void,
    ) -> anyhow::Result<()> {
        let count = c_int::try_from(bytes).with_context(|| format!("{name} of {bytes} bytes"))?;
        // SAFETY: guaranteed by the caller.
        let code = unsafe { function(send, count, handle(BYTE), receive, count, handle(BYTE), handle(WORLD)) };
        checked(name, code)
    }

    /// Finalises MPI once all processes have called this.
    #[allow(unsafe_code, reason = "a function of MPI")]
    pub(super) fn finalize(&self) {
        // SAFETY: no operation is under way, and none follows.
        unsafe { (self.finalize)() };
    }

    /// Ends all processes; the launcher's exit code is `code`.
    #[allow(unsafe_code, reason = "a function of MPI")]
    pub(super) fn abort(&self, code: u8) {
        // SAFETY: takes numbers only.
        unsafe { (self.abort)(handle(WORLD), code.into()) };
    }
}

/// A predefined handle.
fn handle(value: usize) -> Handle {
    std::ptr::without_provenance_mut(value)
}

/// `tensor` and its size in bytes, if MPI can read and write it in place.
fn on_cpu(tensor: &Tensor) -> anyhow::Result<(&Tensor, usize)> {
    anyhow::ensure!(
        tensor.device() == tch::Device::Cpu && tensor.is_contiguous(),
        "expected a contiguous tensor on the CPU"
    );
    Ok((tensor, tensor.numel() * tensor.kind().elt_size_in_bytes()))
}

fn checked(name: &str, code: c_int) -> anyhow::Result<()> {
    anyhow::ensure!(code == 0, "{name} failed with error {code}");
    Ok(())
}

/// Loads the library that `D2O_MPI` names, otherwise the one that the loader finds, otherwise the installed one.
/// Returns it with its name.
#[allow(unsafe_code, reason = "loading a library runs its initialisers")]
fn load() -> anyhow::Result<(Library, OsString)> {
    let tried: Vec<OsString> = match std::env::var_os("D2O_MPI") {
        Some(path) => vec![path],
        None => [Some(STANDARD.into()), installed(INSTALLED).map(Into::into)].into_iter().flatten().collect(),
    };
    let mut failed = anyhow::anyhow!("no library given");
    for path in tried {
        // SAFETY: the initialisers of an MPI library allocate and read the environment.
        match unsafe { Library::new(&path) } {
            Ok(library) => return Ok((library, path)),
            Err(error) => failed = error.into(),
        }
    }
    Err(crate::error::with_hint(
        failed.context("no library of the standard MPI ABI was found"),
        "set D2O_MPI to the path of libmpi_abi.so.1; MPICH 5 and later contain it, and `cargo xtask setup` installs it",
    ))
}
