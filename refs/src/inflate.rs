//! Limits on libhdf5 for untrusted files: chunks inflate to their stated size at most, and external links are not
//! followed.
//!
//! The filters of libhdf5 take their output size from the file, or double it until the data end. This module replaces
//! them, once per process: deflate, n-bit and scale-offset stop at the chunk size, and Fletcher-32 checks that the
//! chunk contains a checksum. It also unregisters the link kind "external", so libhdf5 rejects such links as unknown.

#![allow(unsafe_code, reason = "libhdf5 takes filters and link kinds by its C functions only")]

use std::cell::Cell;
use std::ffi::{c_char, c_int, c_uint, c_void};
use std::sync::Once;

use flate2::{Decompress, FlushDecompress, Status};

/// Bytes that a checksum, or a filter that could not shrink its data, can add to a chunk.
const SLACK: usize = 1 << 12;
/// Flag of a filter that decodes (`H5Z_FLAG_REVERSE`).
const REVERSE: c_uint = 0x100;
/// Number of the link kind "external" (`H5L_TYPE_EXTERNAL`).
const EXTERNAL: c_int = 64;
/// Indices of the number of values and of the size of one value in the parameters of n-bit and scale-offset.
const VALUES: usize = 2;
const SIZE: usize = 4;

thread_local! {
    /// Bytes of the largest chunk of the dataset that this thread reads, and whether a chunk turned out larger.
    static LIMIT: Cell<(usize, bool)> = const { Cell::new((0, false)) };
}

type Function = unsafe extern "C" fn(c_uint, usize, *const c_uint, usize, *mut usize, *mut *mut c_void) -> usize;

/// `H5Z_class2_t`.
#[repr(C)]
struct Class {
    version: c_int,
    id: c_int,
    encoder: c_uint,
    decoder: c_uint,
    name: *const c_char,
    can_apply: *const c_void,
    set_local: *const c_void,
    filter: Function,
}

unsafe extern "C" {
    static H5Z_DEFLATE: Class;
    static H5Z_FLETCHER32: Class;
    static H5Z_NBIT: Class;
    static H5Z_SCALEOFFSET: Class;
    fn H5Z_register(class: *const Class) -> c_int;
    fn H5Lunregister(kind: c_int) -> c_int;
    fn H5allocate_memory(size: usize, clear: bool) -> *mut c_void;
    fn H5free_memory(memory: *mut c_void) -> c_int;
}

/// Registers the filters and unregisters external links, once per process.
pub(crate) fn guard() {
    static DONE: Once = Once::new();
    DONE.call_once(|| {
        // SAFETY: the calls run under the lock of the library, which also initialises it. The library copies the
        // classes. Their functions and names are valid until the process ends.
        ::hdf5::sync::sync(|| unsafe {
            H5Z_register(&Class { filter: deflate, ..of(&H5Z_DEFLATE) });
            H5Z_register(&Class { filter: checksum, ..of(&H5Z_FLETCHER32) });
            H5Z_register(&Class { filter: packed::<false>, ..of(&H5Z_NBIT) });
            H5Z_register(&Class { filter: packed::<true>, ..of(&H5Z_SCALEOFFSET) });
            H5Lunregister(EXTERNAL);
        });
    });
}

fn of(class: &Class) -> Class {
    Class { ..*class }
}

/// Calls `read` with a limit of `chunk` bytes per chunk. The second value is true if a chunk turned out larger.
pub(crate) fn with_limit<T>(chunk: usize, read: impl FnOnce() -> T) -> (T, bool) {
    guard();
    LIMIT.set((chunk, false));
    let found = read();
    (found, LIMIT.take().1)
}

fn too_large() -> usize {
    LIMIT.set((LIMIT.get().0, true));
    0
}

/// SAFETY: the caller is libhdf5 or follows its contract for filters (`H5Z_func_t`).
unsafe extern "C" fn deflate(
    flags: c_uint,
    count: usize,
    values: *const c_uint,
    bytes: usize,
    size: *mut usize,
    buffer: *mut *mut c_void,
) -> usize {
    // SAFETY: the buffer has `bytes` bytes and comes from the allocator of the library, as does its replacement.
    unsafe {
        if flags & REVERSE == 0 {
            return (H5Z_DEFLATE.filter)(flags, count, values, bytes, size, buffer);
        }
        let most = LIMIT.get().0.saturating_add(SLACK);
        let out = H5allocate_memory(most, false).cast::<u8>();
        if out.is_null() {
            return 0;
        }
        let packed = std::slice::from_raw_parts((*buffer).cast::<u8>(), bytes);
        let room = std::slice::from_raw_parts_mut(out.cast::<std::mem::MaybeUninit<u8>>(), most);
        let mut inflate = Decompress::new(true);
        let status = inflate.decompress_uninit(packed, room, FlushDecompress::Finish);
        let found = usize::try_from(inflate.total_out()).unwrap_or(usize::MAX);
        if !matches!(status, Ok(Status::StreamEnd)) || found == 0 {
            H5free_memory(out.cast());
            return if found >= most { too_large() } else { 0 };
        }
        H5free_memory(*buffer);
        *buffer = out.cast();
        *size = most;
        found
    }
}

/// The Fletcher-32 filter. The filter of libhdf5 subtracts the checksum size from the chunk size without a check.
///
/// SAFETY: same as [`deflate`].
unsafe extern "C" fn checksum(
    flags: c_uint,
    count: usize,
    values: *const c_uint,
    bytes: usize,
    size: *mut usize,
    buffer: *mut *mut c_void,
) -> usize {
    const SUM: usize = 4;
    if flags & REVERSE != 0 && bytes < SUM {
        return 0;
    }
    // SAFETY: the filter of libhdf5 gets the arguments of this call.
    unsafe { (H5Z_FLETCHER32.filter)(flags, count, values, bytes, size, buffer) }
}

/// The n-bit and scale-offset filters, which pack integers.
///
/// SAFETY: same as [`deflate`].
unsafe extern "C" fn packed<const SCALE_OFFSET: bool>(
    flags: c_uint,
    count: usize,
    values: *const c_uint,
    bytes: usize,
    size: *mut usize,
    buffer: *mut *mut c_void,
) -> usize {
    // SAFETY: `values` has `count` elements. The filter of libhdf5 gets the arguments of this call.
    unsafe {
        if flags & REVERSE != 0 {
            let values = std::slice::from_raw_parts(values, count);
            let stated = values.get(VALUES).zip(values.get(SIZE)).map(|(n, size)| u64::from(*n) * u64::from(*size));
            if stated.is_none_or(|stated| stated > LIMIT.get().0 as u64) {
                return too_large();
            }
        }
        let original = if SCALE_OFFSET { &H5Z_SCALEOFFSET } else { &H5Z_NBIT };
        (original.filter)(flags, count, values, bytes, size, buffer)
    }
}
