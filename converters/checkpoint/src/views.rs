//! Tensors as strided views of storages in a mapped file, used for all torch formats and TensorFlow constants.

use std::collections::HashMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use fs_err as fs;
use memmap2::Mmap;

use crate::error::{Error, Result};
use crate::input::Input;
use crate::{Dtype, TensorInfo, TensorSource};

/// Maximum number of axes of a tensor.
const MAX_RANK: usize = 16;

/// Maps a file into memory for reading.
pub(crate) fn map(path: &Path) -> Result<Arc<Mmap>> {
    let file = fs::File::open(path)?;
    #[allow(
        unsafe_code,
        reason = "a map of a file opened for reading; another process truncating it is outside our model"
    )]
    // SAFETY: the map is only read, and lives as long as the values that own it.
    let map = unsafe { Mmap::map(file.file())? };
    Ok(Arc::new(map))
}

/// Lets the system free the memory of `range` after it was read. A later read loads it from the file again.
pub(crate) fn release(map: &Mmap, range: std::ops::Range<usize>) {
    /// Minimum length, bytes. Shorter ranges are not worth a system call.
    const LEAST: usize = 1 << 16;
    if range.len() < LEAST {
        return;
    }
    #[cfg(unix)]
    #[allow(unsafe_code, reason = "the map is of a file and only read, so its pages can be fetched again")]
    // SAFETY: the map is never written, so its pages contain only bytes of the file.
    let _ = unsafe { map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, range.start, range.len()) };
}

/// Bytes of tensor elements: a range of the file, or of `owned` if they had to be decoded.
#[derive(Debug, Clone)]
pub(crate) struct Storage {
    pub(crate) owned: Option<Arc<Vec<u8>>>,
    pub(crate) start: usize,
    pub(crate) bytes: usize,
    /// Checksum of the archive entry that contains the bytes.
    pub(crate) crc: Option<Arc<Checksum>>,
}

/// Checksum of an archive entry. It is compared when a tensor of the entry is read for the first time. `torch.load`
/// does not compare it, so damaged files go unnoticed there.
#[derive(Debug)]
pub(crate) struct Checksum {
    pub(crate) entry: String,
    pub(crate) place: Range<usize>,
    pub(crate) crc32: u32,
    pub(crate) holds: AtomicBool,
}

impl Checksum {
    /// # Errors
    /// `Format` if the bytes of the entry have another checksum.
    pub(crate) fn check(&self, path: &Path, file: &[u8]) -> Result<()> {
        if !self.holds.load(Ordering::Relaxed) {
            let found = crc32fast::hash(&file[self.place.clone()]);
            if found != self.crc32 {
                let expected = format!("bytes with the checksum {:08x} recorded in the archive", self.crc32);
                let found = format!("{found:08x}: the file is damaged");
                return Err(Error::format(path, format!("entry `{}`", self.entry), expected, found));
            }
            self.holds.store(true, Ordering::Relaxed);
        }
        Ok(())
    }
}

/// A tensor: elements `offset + Σ index·stride` of a storage. Offset and strides count elements.
#[derive(Debug, Clone)]
pub(crate) struct View {
    pub(crate) dtype: Dtype,
    pub(crate) storage: Storage,
    pub(crate) offset: usize,
    pub(crate) dims: Vec<usize>,
    pub(crate) strides: Vec<usize>,
    /// Whether the values are the negated stored values.
    pub(crate) negative: bool,
}

impl View {
    /// A tensor that fills `storage` in row-major order.
    pub(crate) fn contiguous(dtype: Dtype, storage: Storage, dims: Vec<usize>) -> Self {
        let mut strides = vec![1_usize; dims.len()];
        for axis in (1..dims.len()).rev() {
            strides[axis - 1] = strides[axis].saturating_mul(dims[axis]);
        }
        Self { dtype, storage, offset: 0, dims, strides, negative: false }
    }

    /// Checks that the view is inside its storage. Repeated elements (expanded tensors) are charged to the budget,
    /// which bounds the memory for reading the view.
    fn check(&self, input: &Input<'_>, name: &str) -> Result<()> {
        let elements = self.storage.bytes / self.dtype.size();
        let held = || format!("a storage of {elements} elements");
        if self.dims.len() > MAX_RANK || self.dims.len() != self.strides.len() {
            let expected = format!("at most {MAX_RANK} axes, each with a stride");
            return Err(input.bad(name, expected, format!("{} axes, {} strides", self.dims.len(), self.strides.len())));
        }
        let count = self.dims.iter().try_fold(1_usize, |n, d| n.checked_mul(*d));
        let repeated = count.unwrap_or(usize::MAX).saturating_sub(elements);
        input.charge(repeated.saturating_mul(size_of::<f32>()), || {
            format!("{name}, of shape {:?} on {}", self.dims, held())
        })?;
        let last = self.dims.iter().zip(&self.strides).try_fold(self.offset, |n, (d, s)| {
            d.saturating_sub(1).checked_mul(*s).and_then(|step| n.checked_add(step))
        });
        if count != Some(0) && last.is_none_or(|l| l >= elements) {
            let (offset, strides) = (self.offset, &self.strides);
            let view =
                format!("a view inside its storage: shape {:?}, strides {strides:?}, offset {offset}", self.dims);
            return Err(input.bad(name, view, held()));
        }
        Ok(())
    }
}

/// Named views of one file, read on request.
#[derive(Debug)]
pub(crate) struct Views {
    path: PathBuf,
    map: Arc<Mmap>,
    tensors: Vec<(String, View)>,
    index: HashMap<String, usize>,
}

impl Views {
    /// Checks the `tensors` of the file `input`, which is mapped as `map`.
    ///
    /// # Errors
    /// `Format` naming the tensor, if it or its storage is out of bounds, if it has too many axes, if it repeats
    /// elements beyond the budget, or if another tensor has the same name.
    pub(crate) fn new(input: &Input<'_>, map: Arc<Mmap>, tensors: Vec<(String, View)>) -> Result<Self> {
        let mut index = HashMap::new();
        for (i, (name, view)) in tensors.iter().enumerate() {
            view.check(input, name)?;
            let length = view.storage.owned.as_ref().map_or(map.len(), |o| o.len());
            if view.storage.start.checked_add(view.storage.bytes).is_none_or(|end| end > length) {
                return Err(input.bad(name, "a storage inside the file", format!("{length} bytes")));
            }
            if index.insert(name.clone(), i).is_some() {
                return Err(input.bad(name, "one tensor of this name", "two"));
            }
        }
        Ok(Self { path: input.path.to_owned(), map, tensors, index })
    }

    fn view(&self, name: &str) -> Option<&View> {
        self.index.get(name).map(|i| &self.tensors[*i].1)
    }
}

impl TensorSource for Views {
    fn names(&self) -> Vec<String> {
        self.tensors.iter().map(|(n, _)| n.clone()).collect()
    }

    fn info(&self, name: &str) -> Option<TensorInfo> {
        self.view(name).map(|v| TensorInfo { dtype: v.dtype, dims: v.dims.clone() })
    }

    fn read_f32(&self, name: &str) -> Result<Vec<f32>> {
        let missing = || Error::Missing { name: name.to_owned() };
        let view = self.view(name).ok_or_else(missing)?;
        let Storage { owned, start, bytes, crc } = &view.storage;
        if let Some(crc) = crc {
            crc.check(&self.path, &self.map)?;
        }
        let mut values = self.elements(name, view)?;
        if view.negative {
            values.iter_mut().for_each(|v| *v = -*v);
        }
        if owned.is_none() {
            release(&self.map, *start..start + bytes);
        }
        Ok(values)
    }
}

impl Views {
    fn elements(&self, name: &str, view: &View) -> Result<Vec<f32>> {
        let all: &[u8] = view.storage.owned.as_ref().map_or(&self.map, |o| o.as_slice());
        let bytes = &all[view.storage.start..view.storage.start + view.storage.bytes];
        let (count, size) = (view.dims.iter().product::<usize>(), view.dtype.size());
        let mut values = Vec::new();
        values
            .try_reserve_exact(count)
            .map_err(|e| Error::format(&self.path, name, "a tensor that fits in memory", e.to_string()))?;
        if count == 0 {
            return Ok(values);
        }
        let row_major = View::contiguous(view.dtype, view.storage.clone(), view.dims.clone());
        let strides_match =
            view.dims.iter().zip(&view.strides).zip(&row_major.strides).all(|((d, a), b)| *d == 1 || a == b);
        if strides_match {
            let from = view.offset * size;
            values.extend(bytes[from..from + count * size].chunks_exact(size).map(|b| view.dtype.element(b)));
            return Ok(values);
        }
        // Row by row along the last axis. `check` has verified that every element is inside the storage.
        let (Some((inner, outer)), Some((step, outer_strides))) = (view.dims.split_last(), view.strides.split_last())
        else {
            return Ok(values);
        };
        let mut index = vec![0_usize; outer.len()];
        for _ in 0..count / inner {
            let start = view.offset + index.iter().zip(outer_strides).map(|(i, s)| i * s).sum::<usize>();
            values.extend((0..*inner).map(|i| {
                let at = (start + i * step) * size;
                view.dtype.element(&bytes[at..at + size])
            }));
            for (i, d) in index.iter_mut().zip(outer).rev() {
                *i += 1;
                if *i < *d {
                    break;
                }
                *i = 0;
            }
        }
        Ok(values)
    }
}
