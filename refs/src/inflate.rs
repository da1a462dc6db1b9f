//! What libhdf5 may not do with files from outside: inflate a chunk beyond its size, follow links into other files.
//!
//! Its filters size their output by what the file says, or double it until the data end. Those that do are replaced here, once for the process, by
//! ones that stop at the size of a chunk, and that of checksums by one that looks whether there is a sum; external links become an unknown kind of link.

#![allow(unsafe_code, reason = "libhdf5 takes filters and link kinds by its C functions only")]

use std::cell::Cell;
use std::ffi::{c_char, c_int, c_uint, c_void};
use std::sync::Once;

use flate2::{Decompress, FlushDecompress, Status};

/// Bytes that a checksum, or a filter that could not shrink its data, may add to a chunk.
const SLACK: usize = 1 << 12;
/// Flag of a filter that is undone.
const REVERSE: c_uint = 0x100;
/// Number of the link kind "external".
const EXTERNAL: c_int = 64;
/// Where the filters of packed integers keep the number of values and the size of one.
const VALUES: usize = 2;
const SIZE: usize = 4;

thread_local! {
    /// Bytes of the largest chunk of what this thread reads, and whether a chunk was found to be larger.
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

/// Puts the limits in place, if they are not yet.
pub(crate) fn guard() {
    static DONE: Once = Once::new();
    DONE.call_once(|| {
        // SAFETY: under the library's lock, which also starts it; it copies the classes, whose functions and names live as long as the process.
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

/// Reads by `read` what has chunks of at most `chunk` bytes. The second value tells whether one turned out to be larger.
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

/// SAFETY: as libhdf5 calls its filters, of which this is one.
unsafe extern "C" fn deflate(
    flags: c_uint,
    count: usize,
    values: *const c_uint,
    bytes: usize,
    size: *mut usize,
    buffer: *mut *mut c_void,
) -> usize {
    // SAFETY: the buffer holds `bytes` bytes and belongs to the library's allocator, which the new one is taken from.
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

/// The filter that compares a checksum: the library's own takes the sum's length from that of the chunk, which may be less.
///
/// SAFETY: as above.
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
    // SAFETY: the library's own filter is called as this one was.
    unsafe { (H5Z_FLETCHER32.filter)(flags, count, values, bytes, size, buffer) }
}

/// The filters of packed integers: scale-offset, or n-bit.
///
/// SAFETY: as above.
unsafe extern "C" fn packed<const SCALE_OFFSET: bool>(
    flags: c_uint,
    count: usize,
    values: *const c_uint,
    bytes: usize,
    size: *mut usize,
    buffer: *mut *mut c_void,
) -> usize {
    // SAFETY: there are `count` values; the library's own filter is called as this one was.
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
