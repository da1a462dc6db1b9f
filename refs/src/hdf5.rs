//! HDF5: images (`images` u8 [N, H, W, 3], `labels`, `seeds`), chunked and compressed.

use std::collections::HashSet;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use ::hdf5::types::TypeDescriptor;
use ::hdf5::{Dataset, H5Type, IndexType, IterationOrder, Selection};
use d2o_budget::Budget;
use d2o_files::AtomicPath;
use ndarray::{Array, Array4, s};

use crate::batch::{ImageDims, ImageSource, check_range};
use crate::error::{Error, Result};
use crate::features::MATRICES;
use crate::inflate;
use crate::kind;
use crate::labels::{self, Labels, Values};
use crate::limits::{Unpacked, exceeded};
use crate::pixels::{self, Layout};
use crate::virtual_map;

/// Name of the image dataset in written files.
const IMAGES: &str = "images";
/// Names of a class dataset, in order of preference.
const LABEL_NAMES: [&str; 2] = ["labels", "arr_1"];
/// Images per chunk in written files.
const CHUNK: usize = 16;
const GZIP: u8 = 4;
/// First bytes of an HDF5 file or, after a user block, of its superblock.
const MAGIC: &[u8; 8] = b"\x89HDF\r\n\x1a\n";
/// The expected kind of file, for messages.
const EXPECTED: &str = "an HDF5 file";
/// Smallest user block, bytes. Others are a power of two times as large.
const USER_BLOCK: u64 = 512;
/// Deepest nesting of virtual datasets that is followed.
const MAX_VIRTUAL: usize = 8;
/// Steps charged for each source of a virtual dataset and each external file.
const SOURCE_STEPS: usize = 1 << 10;
/// Most objects at the top level of a file, and most that [`walk`] visits.
const MAX_MEMBERS: usize = 1 << 16;
/// Deepest nesting of groups in which [`walk`] searches for datasets.
const MAX_DEPTH: usize = 8;
/// Most names or datasets in a message.
const SHOWN: usize = 12;
/// Most bytes of the chunks that one row needs. They are kept from read to read.
const MAX_BAND: usize = 256 << 20;
/// Bytes of the chunk cache of libhdf5 by default.
const CACHE: usize = 1 << 20;
/// Most values of an image of a type other than u8, which is converted to pixels.
const MAX_CONVERTED: usize = 1 << 25;
/// Values that are converted to pixels at a time.
const BLOCK: usize = 1 << 22;

/// Whether `file` is HDF5, with or without a user block.
///
/// # Errors
/// Reading errors.
pub(crate) fn is_hdf5(file: &mut fs_err::File) -> Result<bool> {
    let length = file.metadata()?.len();
    let (mut at, mut found) = (0, [0; MAGIC.len()]);
    while at + MAGIC.len() as u64 <= length {
        file.seek(SeekFrom::Start(at))?;
        file.read_exact(&mut found)?;
        if found == *MAGIC {
            return Ok(true);
        }
        at = if at == 0 { USER_BLOCK } else { 2 * at };
    }
    Ok(false)
}

/// Examines the file at a path before this process opens it. The error says what was found.
pub type Check = fn(&Path) -> std::result::Result<(), String>;

static CHECK: OnceLock<Check> = OnceLock::new();

/// Sets a check that is called for every HDF5 file before libhdf5 opens it in this process. Sources of virtual datasets
/// are not checked again. Only the first call has an effect. libhdf5 crashes or never returns on some damaged files, so
/// `check` can run [`walk`] in another process.
pub fn check_first(check: Check) {
    CHECK.get_or_init(|| check);
}

/// Opens the HDF5 file at `path` in every way that this crate does, and reads samples of its datasets. Errors are
/// ignored: the purpose is to find out whether libhdf5 returns. Returns false if memory was exhausted.
#[must_use]
pub fn walk(path: &Path) -> bool {
    let mut faults: Vec<Error> = Vec::new();
    faults.extend(crate::features::FeatureFile::open(path).err());
    faults.extend(crate::record::read(path).err());
    match Opened::open(path) {
        Ok(file) => {
            for name in members(&file.file) {
                let Ok(data) = file.member(&name) else { continue };
                let _ = describe(&data);
                faults.extend(Data::check(path, &name, data).and_then(|data| data.sample()).err());
            }
        }
        Err(error) => faults.push(error),
    }
    !faults.iter().any(lacks_memory)
}

/// Whether libhdf5 failed to allocate memory.
fn lacks_memory(error: &Error) -> bool {
    use ::hdf5::MinorErrorCode::{CantAlloc, NoSpace};
    matches!(error, Error::Hdf5 { source, .. } if source.contains_minor(NoSpace) || source.contains_minor(CantAlloc))
}

/// Paths of the datasets in `file` and its groups.
fn members(file: &::hdf5::File) -> Vec<String> {
    let mut found = Vec::new();
    let mut groups = vec![(String::new(), 0)];
    let mut seen = 0;
    while let Some((group, depth)) = groups.pop() {
        let inside = if group.is_empty() { file.as_group() } else { file.group(&group) };
        let Ok(inside) = inside else { continue };
        let names = inside.member_names().unwrap_or_default();
        for name in names {
            seen += 1;
            let path = if group.is_empty() { name } else { format!("{group}/{name}") };
            if seen > MAX_MEMBERS {
                return found;
            }
            if file.dataset(&path).is_ok() {
                found.push(path);
            } else if depth < MAX_DEPTH {
                groups.push((path, depth + 1));
            }
        }
    }
    found
}

/// An HDF5 file that is open for reading. Links into other files are not followed.
#[derive(Debug)]
pub(crate) struct Opened {
    path: PathBuf,
    file: ::hdf5::File,
    /// Bytes of the file.
    pub(crate) packed: u64,
    /// Names of the objects at the top level.
    pub(crate) names: Vec<String>,
}

impl Opened {
    /// Opens the file at `path` after the check set by [`check_first`]. libhdf5 does not print its errors.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        if let Some(check) = CHECK.get()
            && is_hdf5(&mut kind::open(path, EXPECTED)?)?
        {
            check(path).map_err(|found| Error::format(path, "", "an HDF5 file that libhdf5 can read", found))?;
        }
        Self::with_cache(path, CACHE)
    }

    /// Opens the file at `path` without the check of [`check_first`]. libhdf5 keeps `cache` bytes of chunks per dataset
    /// from read to read.
    pub(crate) fn with_cache(path: &Path, cache: usize) -> Result<Self> {
        // Defaults of libhdf5: number of hash slots, and preference for dropping chunks that are read completely.
        const SLOTS: usize = 521;
        const WEIGHT: f64 = 0.75;
        let mut file = kind::open(path, EXPECTED)?;
        if !is_hdf5(&mut file)? {
            return Err(kind::unexpected(&mut file, path, EXPECTED));
        }
        let packed = file.metadata()?.len();
        drop(file);
        inflate::guard();
        ::hdf5::silence_errors(true);
        let mut builder = ::hdf5::FileBuilder::new();
        if cache > CACHE {
            builder.with_fapl(|p| p.chunk_cache(SLOTS, cache, WEIGHT));
        }
        let file = builder.open(path).map_err(|e| truncated(path, &e).unwrap_or_else(|| failed(path, e)))?;
        let mut names = Vec::new();
        // A damaged tree of links can lead to the same links without end.
        let more = file.find_link(IndexType::Name, IterationOrder::Native, |name, _| {
            names.push(name.to_owned());
            Ok((names.len() > MAX_MEMBERS).then_some(()))
        });
        if more.map_err(|e| failed(path, e))?.is_some() {
            return Err(Error::format(path, "", format!("at most {MAX_MEMBERS} objects side by side"), "more"));
        }
        Ok(Self { path: path.to_owned(), file, packed, names })
    }

    /// Whether there is an object `name` at the top level.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.names.iter().any(|n| n == name)
    }

    /// The names of the first objects at the top level, for messages.
    pub(crate) fn shown(&self) -> String {
        listed(self.names.iter().map(String::as_str))
    }

    /// Dataset `name`, which can lie in a group. Its parts are not checked.
    pub(crate) fn member(&self, name: &str) -> Result<Dataset> {
        self.file.dataset(name).map_err(|source| failed(&self.path, source))
    }

    /// Dataset `name`, with its parts checked.
    ///
    /// # Errors
    /// `Hdf5` if there is none; those of [`Data::check`].
    pub(crate) fn dataset(&self, name: &str) -> Result<Data> {
        Data::check(&self.path, name, self.member(name)?)
    }

    /// The bytes of the u8 dataset `name`.
    ///
    /// # Errors
    /// Those of [`Opened::dataset`]; `Format` for more than `limit` bytes.
    pub(crate) fn bytes(&self, name: &str, limit: u64) -> Result<Vec<u8>> {
        let data = self.dataset(name)?;
        let found = data.data.size() as u64;
        if found > limit {
            return Err(Error::format(&self.path, name, format!("at most {limit} bytes"), found.to_string()));
        }
        data.all()
    }
}

/// The first [`SHOWN`] of `names`, separated by commas.
fn listed<'a>(names: impl Iterator<Item = &'a str>) -> String {
    let mut names: Vec<&str> = names.take(SHOWN + 1).collect();
    if names.len() > SHOWN {
        names[SHOWN] = "…";
    }
    names.join(", ")
}

/// A dataset with all parts present, and no larger than the size of its files allows.
#[derive(Debug)]
pub(crate) struct Data {
    file: PathBuf,
    name: String,
    data: Dataset,
    /// Bytes of its largest chunk, and of all chunks that one row needs.
    chunk: usize,
    pub(crate) row_chunk_bytes: usize,
}

impl Data {
    /// Checks that every chunk of `data` and every file with parts of it exists. HDF5 reads a missing part as zeros,
    /// without an error. `data` is called `name` in `file`.
    ///
    /// # Errors
    /// `Format` naming what is missing, or what is larger than the size of the file allows.
    fn check(file: &Path, name: &str, data: Dataset) -> Result<Self> {
        let packed = fs_err::metadata(file)?.len();
        let mut walk =
            Walk { steps: Budget::of_file(packed), packed, files: HashSet::new(), chunk: 0, row_chunk_bytes: 0 };
        walk.parts(file, name, &data, 0)?;
        let size = data.dtype().map_or(1, |t| t.size()) as u64;
        let bytes = data.shape().iter().fold(size, |n, d| n.saturating_mul(*d as u64));
        Unpacked::of(walk.packed).add(file, name, bytes)?;
        Ok(Self {
            file: file.to_owned(),
            name: name.to_owned(),
            data,
            chunk: walk.chunk,
            row_chunk_bytes: walk.row_chunk_bytes,
        })
    }

    /// Length of each axis.
    pub(crate) fn shape(&self) -> Vec<usize> {
        self.data.shape()
    }

    /// All values.
    pub(crate) fn all<T: H5Type>(&self) -> Result<Vec<T>> {
        self.read(|data| data.read_raw())
    }

    /// The values of `selection`.
    pub(crate) fn slice<T, D, S>(&self, selection: S) -> Result<Array<T, D>>
    where
        T: H5Type,
        D: ndarray::Dimension,
        S: TryInto<Selection>,
        ::hdf5::Error: From<S::Error>,
    {
        self.read(|data| data.read_slice(selection))
    }

    /// For [`walk`]: reads all rows if they have at most 2^20 values, else the first row if it has at most 2^20 values.
    fn sample(&self) -> Result<()> {
        const SMALL: usize = 1 << 20;
        let shape = self.shape();
        let row = shape.iter().skip(1).fold(1_usize, |n, d| n.saturating_mul(*d));
        let rows = shape.first().copied().unwrap_or(0);
        let rows = if rows.saturating_mul(row) <= SMALL { rows } else { rows.min(1) };
        if row > SMALL {
            return Ok(());
        }
        match kind(&self.data) {
            Some(Kind::Bytes) => self.first::<u8>(rows),
            Some(Kind::Integers) => self.first::<i64>(rows),
            Some(Kind::Unsigned) => self.first::<u64>(rows),
            Some(Kind::Floats) => self.first::<f64>(rows),
            None => Ok(()),
        }
    }

    fn first<T: H5Type>(&self, rows: usize) -> Result<()> {
        match self.data.ndim() {
            1 => self.slice::<T, ndarray::Ix1, _>(s![..rows]).map(drop),
            2 => self.slice::<T, ndarray::Ix2, _>(s![..rows, ..]).map(drop),
            3 => self.slice::<T, ndarray::Ix3, _>(s![..rows, .., ..]).map(drop),
            4 => self.slice::<T, ndarray::Ix4, _>(s![..rows, .., .., ..]).map(drop),
            _ => Ok(()),
        }
    }

    fn read<V>(&self, read: impl FnOnce(&Dataset) -> ::hdf5::Result<V>) -> Result<V> {
        ::hdf5::silence_errors(true);
        let (found, larger) = inflate::with_limit(self.chunk, || read(&self.data));
        if larger {
            let expected = format!("chunks that inflate to at most {} bytes", self.chunk);
            return Err(Error::format(&self.file, &self.name, expected, "a larger one"));
        }
        found.map_err(|source| failed(&self.file, source))
    }
}

/// The error for a truncated file, if libhdf5 reports one:
/// "truncated file: eof = 96, sblock->base_addr = 0, stored_eof = 2048".
fn truncated(path: &Path, error: &::hdf5::Error) -> Option<Error> {
    let stack = error.stack()?;
    let text = stack.iter().map(::hdf5::ErrorFrame::desc).find(|d| d.starts_with("truncated file"))?;
    let number =
        |name: &str| text.split_once(name).map(|(_, rest)| rest.chars().take_while(char::is_ascii_digit).collect());
    let (found, expected): (String, String) = (number(": eof = ")?, number("stored_eof = ")?);
    Some(Error::format(path, "", format!("an HDF5 file of {expected} bytes"), format!("{found} bytes, truncated")))
}

/// The error for `source` at `path`: `Io` if the operating system caused it, e.g. by a full disk, else `Hdf5`.
pub(crate) fn failed(path: &Path, source: ::hdf5::Error) -> Error {
    match system_error(&source) {
        Some(system) => Error::Io(std::io::Error::new(system.kind(), format!("{}: {system}", path.display()))),
        None => Error::Hdf5 { file: path.to_owned(), source },
    }
}

/// The operating system error in a libhdf5 error: "… errno = 28, error message = 'No space left on device', buf = …".
fn system_error(error: &::hdf5::Error) -> Option<std::io::Error> {
    let stack = error.stack()?;
    let code = stack.iter().find_map(|frame| {
        let (_, rest) = frame.desc().split_once("errno = ")?;
        rest.split(',').next()?.trim().parse().ok()
    })?;
    Some(std::io::Error::from_raw_os_error(code))
}

/// Writer of an HDF5 file that is complete or absent.
///
/// If a flush fails, e.g. on a full disk, libhdf5 crashes or prints when it closes the file and its datasets. In that
/// case they stay open, and the process ends without a further attempt (the HDF5 crate calls `H5dont_atexit`).
#[derive(Debug)]
pub(crate) struct Output {
    partial: Option<AtomicPath>,
    target: PathBuf,
    open: Option<(::hdf5::File, Vec<Dataset>)>,
}

impl Output {
    /// Starts a file that appears at `path` once it is finished. Times are not stored, so equal content gives equal
    /// bytes.
    pub(crate) fn create(path: &Path) -> Result<Self> {
        let partial = AtomicPath::create(path)?;
        ::hdf5::silence_errors(true);
        let mut builder = ::hdf5::FileBuilder::new();
        builder.with_fcpl(|plist| plist.obj_track_times(false));
        // The temporary file is already locked.
        builder.with_fapl(|plist| plist.file_locking(false));
        let file = builder.create(partial.path()).map_err(|source| failed(path, source))?;
        Ok(Self { partial: Some(partial), target: path.to_owned(), open: Some((file, Vec::new())) })
    }

    /// Creates a dataset with `make` and keeps it open until the file is closed.
    pub(crate) fn dataset(&mut self, make: impl FnOnce(&::hdf5::File) -> ::hdf5::Result<Dataset>) -> Result<Dataset> {
        ::hdf5::silence_errors(true);
        let failed = |source| failed(&self.target, source);
        let Some((file, datasets)) = &mut self.open else {
            return Err(failed(::hdf5::Error::from("the file is closed")));
        };
        let made = make(file).map_err(failed)?;
        datasets.push(made.clone());
        Ok(made)
    }

    /// Flushes and closes the file and moves it to its path. No other handle of its datasets may be open.
    pub(crate) fn finish(mut self) -> Result<()> {
        self.close()?;
        Ok(self.partial.take().map_or(Ok(()), AtomicPath::commit)?)
    }

    fn close(&mut self) -> Result<()> {
        let Some((file, datasets)) = self.open.take() else { return Ok(()) };
        ::hdf5::silence_errors(true);
        let failed = |source| failed(&self.target, source);
        if let Err(e) = file.flush() {
            std::mem::forget((file, datasets));
            return Err(failed(e));
        }
        drop(datasets);
        file.close().map_err(failed)
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        // The file is removed anyway.
        let _ = self.close();
    }
}

/// Type in which the values of a dataset are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// u8.
    Bytes,
    /// Integers that fit i64, and booleans.
    Integers,
    /// u64.
    Unsigned,
    Floats,
}

fn kind(data: &Dataset) -> Option<Kind> {
    use ::hdf5::types::IntSize;
    match data.dtype().and_then(|t| t.to_descriptor()).ok()? {
        TypeDescriptor::Unsigned(IntSize::U1) => Some(Kind::Bytes),
        TypeDescriptor::Unsigned(IntSize::U8) => Some(Kind::Unsigned),
        TypeDescriptor::Integer(_) | TypeDescriptor::Unsigned(_) | TypeDescriptor::Boolean => Some(Kind::Integers),
        TypeDescriptor::Float(_) => Some(Kind::Floats),
        _ => None,
    }
}

/// Type and shape, for messages.
fn describe(data: &Dataset) -> String {
    let kind =
        data.dtype().and_then(|t| t.to_descriptor()).map_or_else(|_| "unknown type".to_owned(), |t| t.to_string());
    format!("{kind} {:?}", data.shape())
}

/// Counts over the parts of a dataset.
struct Walk {
    steps: Budget,
    /// Bytes of all files with parts of the dataset, each counted once.
    packed: u64,
    files: HashSet<PathBuf>,
    chunk: usize,
    row_chunk_bytes: usize,
}

impl Walk {
    fn parts(&mut self, file: &Path, name: &str, data: &Dataset, depth: usize) -> Result<()> {
        use ::hdf5::plist::dataset_create::Layout as Storage;
        let failed = |source| failed(file, source);
        let shape = data.get_shape().map_err(failed)?;
        let plist = data.dcpl().map_err(failed)?;
        let elements = shape.iter().try_fold(1_usize, |n, d| n.checked_mul(*d));
        let Some(elements) = elements else {
            return Err(Error::format(file, name, "a dataset of at most 2^64 values", format!("{shape:?}")));
        };
        match plist.get_layout().map_err(failed)? {
            Storage::Chunked => {
                let chunk = data.chunk().unwrap_or_default();
                let count = |d: &usize, c: &usize| d.div_ceil((*c).max(1));
                let expected = shape.iter().zip(&chunk).try_fold(1_usize, |n, (d, c)| n.checked_mul(count(d, c)));
                let size = data.dtype().map_err(failed)?.size();
                let bytes = chunk.iter().fold(size, |n, c| n.saturating_mul(*c));
                let chunks_per_row =
                    shape.iter().zip(&chunk).skip(1).fold(1_usize, |n, (d, c)| n.saturating_mul(count(d, c)));
                let row_chunk_bytes = bytes.saturating_mul(chunks_per_row);
                if row_chunk_bytes > MAX_BAND {
                    let expected = format!("at most {MAX_BAND} bytes in the chunks of one row");
                    return Err(Error::format(
                        file,
                        name,
                        expected,
                        format!("{row_chunk_bytes} in chunks of {chunk:?}"),
                    ));
                }
                (self.chunk, self.row_chunk_bytes) = (self.chunk.max(bytes), self.row_chunk_bytes.max(row_chunk_bytes));
                self.steps.steps(expected.unwrap_or(usize::MAX)).map_err(exceeded(file, name))?;
                // A damaged tree of chunks can lead to the same chunks without end.
                let mut found = 0;
                data.chunks_visit(|_| {
                    found += 1;
                    i32::from(expected.is_none_or(|n| found > n))
                })
                .map_err(failed)?;
                if expected != Some(found) {
                    let expected = expected.map_or("more".to_owned(), |n| n.to_string());
                    let found = format!("{found}: the file was not written completely");
                    return Err(Error::format(file, name, format!("{expected} chunks"), found));
                }
            }
            Storage::Virtual => self.sources(file, name, &shape, elements, depth)?,
            Storage::Contiguous => {
                let parts = plist.get_external().map_err(failed)?;
                for part in &parts {
                    self.steps.steps(SOURCE_STEPS).map_err(exceeded(file, name))?;
                    self.external(file, name, part)?;
                }
                if parts.is_empty() && data.storage_size() == 0 && elements > 0 {
                    return Err(Error::format(file, name, "data", "none: the dataset was never written"));
                }
            }
            Storage::Compact => {}
        }
        Ok(())
    }

    /// HDF5 looks for external files in the current folder and reads zeros beyond their end.
    fn external(&mut self, file: &Path, name: &str, part: &::hdf5::plist::dataset_create::ExternalFile) -> Result<()> {
        let expected = |what: &str| format!("{what} external file `{}`, relative to the current folder", part.name);
        let Ok(found) = fs_err::metadata(&part.name) else {
            let next_to_it = file.parent().is_some_and(|folder| folder.join(&part.name).exists());
            let hint = if next_to_it { "; it is next to the HDF5 file: run d2o in that folder" } else { "" };
            return Err(Error::format(file, name, expected("the"), format!("no such file{hint}")));
        };
        self.check_part_file(file, name, Path::new(&part.name))?;
        // A size beyond any file means "to its end".
        let end = (part.offset as u64).checked_add(part.size as u64).filter(|end| i64::try_from(*end).is_ok());
        if end.is_some_and(|end| end > found.len()) {
            let end = end.unwrap_or(0);
            return Err(Error::format(file, name, expected(&format!("{end} bytes in the")), found.len().to_string()));
        }
        Ok(())
    }

    fn sources(&mut self, file: &Path, name: &str, shape: &[usize], elements: usize, depth: usize) -> Result<()> {
        if depth >= MAX_VIRTUAL {
            return Err(Error::format(file, name, format!("at most {MAX_VIRTUAL} nested virtual datasets"), "more"));
        }
        for mappings in virtual_map::mappings(file, shape)? {
            let mut mapped = 0_u64;
            for part in mappings {
                mapped = mapped.saturating_add(part.covered);
                self.steps.steps(SOURCE_STEPS).map_err(exceeded(file, name))?;
                let place = format!("{name}, part `{}` of `{}`", part.dataset, part.file);
                // `%b` stands for the number of a source. HDF5 uses all sources that exist.
                if part.file.contains('%') || part.dataset.contains('%') {
                    return Err(Error::format(file, place, "sources with fixed names", "a pattern"));
                }
                let path = if part.file == "." { Some(file.to_owned()) } else { source_path(file, &part.file) };
                let Some(path) = path else {
                    return Err(Error::format(file, place, "the source of a virtual dataset", "no such file"));
                };
                self.check_part_file(file, name, &path)?;
                // The check of the main file opens its sources too.
                let source = Opened::with_cache(&path, CACHE)?;
                let Ok(data) = source.member(&part.dataset) else {
                    return Err(Error::format(file, place, "the source of a virtual dataset", "no such dataset"));
                };
                let found = data.shape();
                if let Some(expected) = &part.source
                    && (expected.len() != found.len() || expected.iter().zip(&found).any(|(e, f)| (*f as u64) < *e))
                {
                    let expected = format!("a source of shape {expected:?} or more");
                    return Err(Error::format(file, place, expected, format!("{found:?}")));
                }
                let values = found.iter().try_fold(1_u64, |n, d| n.checked_mul(*d as u64));
                if part.source.is_none() && values.is_none_or(|n| n < part.covered) {
                    let expected = format!("a source of {} values", part.covered);
                    return Err(Error::format(file, place, expected, format!("{found:?}")));
                }
                self.parts(&path, &part.dataset, &data, depth + 1)?;
            }
            if mapped < elements as u64 {
                let expected = format!("sources for all {elements} values of the virtual dataset");
                return Err(Error::format(file, name, expected, format!("sources for {mapped}")));
            }
        }
        Ok(())
    }

    /// Checks that `other`, which contains parts of dataset `name` in `file`, is a regular file in the folder of `file`
    /// or below it, and counts its bytes.
    fn check_part_file(&mut self, file: &Path, name: &str, other: &Path) -> Result<()> {
        let expected = || format!("parts in files next to it, such as `{}`", other.display());
        let length = kind::open(other, &expected())?.metadata()?.len();
        let folder = fs_err::canonicalize(file)?;
        let other = fs_err::canonicalize(other)?;
        if folder.parent().is_none_or(|folder| !other.starts_with(folder)) {
            return Err(Error::format(file, name, expected(), "one in another folder"));
        }
        if other != folder && self.files.insert(other) {
            self.packed = self.packed.saturating_add(length);
        }
        Ok(())
    }
}

/// Path at which HDF5 finds the source `name` of a virtual dataset in `file`.
fn source_path(file: &Path, name: &str) -> Option<PathBuf> {
    let folder = file.parent().unwrap_or(Path::new(""));
    let name = Path::new(name);
    let beside = name.file_name().map(|n| folder.join(n));
    let candidates =
        [Some(name.to_owned()).filter(|n| n.is_absolute()), Some(folder.join(name)), beside, Some(name.to_owned())];
    candidates.into_iter().flatten().find(|path| path.exists())
}

/// Classes of `count` images from dataset `name`. Its size is checked before it is read.
pub(crate) fn labels_of(file: &Opened, name: &str, data: Dataset, count: usize) -> Labels {
    let shape = data.shape();
    if let Err(problem) = labels::check_shape(name, &shape, count) {
        return Labels::Problem(problem);
    }
    let bytes = shape.iter().fold(size_of::<i64>(), |n, d| n.saturating_mul(*d));
    if let Err(e) = Budget::of_file(file.packed).bytes(bytes) {
        return Labels::Problem(format!("`{name}` has shape {shape:?}: {e}"));
    }
    let Some(kind) = kind(&data) else { return Labels::Problem(format!("`{name}` holds {}", describe(&data))) };
    let values = Data::check(&file.path, name, data).and_then(|data| match kind {
        Kind::Bytes | Kind::Integers => data.all().map(Values::Integers),
        Kind::Unsigned => data.all().map(Values::Unsigned),
        Kind::Floats => data.all().map(Values::Floats),
    });
    match values {
        Ok(values) => labels::of_array(name, &shape, &values, count),
        Err(e @ Error::Format { .. }) => Labels::Problem(e.to_string()),
        Err(e) => Labels::Problem(format!("`{name}` cannot be read: {e:#}")),
    }
}

/// Images of an HDF5 file, in the layouts and types of [`crate::npz::Pack`].
#[derive(Debug)]
pub struct Hdf5Images {
    path: PathBuf,
    name: String,
    images: Data,
    kind: Kind,
    layout: Layout,
    len: usize,
    dims: ImageDims,
    labels: Labels,
}

impl Hdf5Images {
    /// Opens the only image dataset of `path`, and its classes in `labels` or `arr_1`.
    ///
    /// # Errors
    /// `Hdf5` if it is damaged; `Format` without an image dataset, with several of them, or if parts of it are missing.
    pub fn open(path: &Path) -> Result<Self> {
        Self::open_dataset(path, None)
    }

    /// Same as [`Hdf5Images::open`], for the image dataset `name`, which can lie in a group; `None` selects the only
    /// one.
    ///
    /// # Errors
    /// Those of [`Hdf5Images::open`]; `Format` if there is no dataset `name`.
    pub fn open_dataset(path: &Path, name: Option<&str>) -> Result<Self> {
        let failed = |source| failed(path, source);
        let mut file = Opened::open(path)?;
        let name = match name {
            Some(name) => name.to_owned(),
            None => choose(&file)?,
        };
        let Ok(images) = file.member(&name) else {
            let found = format!("only {}", file.shown());
            return Err(Error::format(path, "datasets", format!("images in `{name}`"), found));
        };
        let shape = images.get_shape().map_err(failed)?;
        let (layout, dims) = pixels::layout(&shape).map_err(|problem| {
            Error::format(path, &name, pixels::EXPECTED, format!("{}: {problem}", describe(&images)))
        })?;
        let Some(kind) = kind(&images) else {
            return Err(Error::format(path, &name, "integers or floats", describe(&images)));
        };
        let len = shape.first().copied().unwrap_or(0);
        if len == 0 {
            return Err(Error::empty(path, ""));
        }
        let row: usize = shape.iter().skip(1).product();
        if kind != Kind::Bytes && row > MAX_CONVERTED {
            let expected = format!("u8 for images of more than {MAX_CONVERTED} values");
            return Err(Error::format(path, &name, expected, describe(&images)));
        }
        let mut images = Data::check(path, &name, images)?;
        if images.row_chunk_bytes > CACHE {
            // With a smaller cache, every read would inflate the chunks of its rows again.
            let cache = images.row_chunk_bytes;
            drop((images, file));
            file = Opened::with_cache(path, cache)?;
            images = file.dataset(&name)?;
        }
        let candidates = LABEL_NAMES.map(str::to_owned).into_iter().chain([name.replace("images", "labels")]);
        let labels = candidates
            .filter(|n| *n != name)
            .find_map(|n| file.member(&n).ok().filter(|d| pixels::layout(&d.shape()).is_err()).map(|d| (n, d)))
            .map_or(Labels::None, |(n, data)| labels_of(&file, &n, data, len));
        let mut opened = Self { path: path.to_owned(), name, images, kind, layout, len, dims, labels };
        if kind == Kind::Floats {
            let (path, name) = (opened.path.clone(), opened.name.clone());
            pixels::check_floats(&mut opened, CHUNK, &path, &name)?;
        } else if kind != Kind::Bytes {
            opened.read(0..1)?;
        }
        Ok(opened)
    }

    fn slice<T: H5Type>(&self, range: Range<usize>) -> Result<Vec<T>> {
        let values = match self.images.data.ndim() {
            3 => self.images.slice::<T, ndarray::Ix3, _>(s![range, .., ..])?.into_raw_vec_and_offset(),
            _ => self.images.slice::<T, ndarray::Ix4, _>(s![range, .., .., ..])?.into_raw_vec_and_offset(),
        };
        Ok(values.0)
    }

    /// Values of images `range` as pixels: whole numbers from 0 to 255 only.
    fn converted<T: H5Type + Copy + std::fmt::Display>(
        &self,
        range: Range<usize>,
        expected: &str,
        convert: impl Fn(T) -> Option<u8>,
    ) -> Result<Vec<u8>> {
        let shape = self.images.shape();
        let row: usize = shape.iter().skip(1).product();
        let rows = (BLOCK / row.max(1)).max(1);
        let mut out = Vec::new();
        for start in range.clone().step_by(rows) {
            for value in self.slice::<T>(start..(start + rows).min(range.end))? {
                let pixel = convert(value).ok_or_else(|| {
                    let at = pixels::unravel(range.start * row + out.len(), &shape, false);
                    Error::format(&self.path, format!("{}, value {at:?}", self.name), expected, value.to_string())
                })?;
                out.push(pixel);
            }
        }
        Ok(out)
    }
}

/// The only image dataset among the members of `file`.
fn choose(file: &Opened) -> Result<String> {
    let (path, names) = (&file.path, &file.names);
    let members: Vec<_> = names.iter().filter_map(|n| Some((n.clone(), file.member(n).ok()?))).collect();
    let arrays = members.iter().filter_map(|(n, data)| {
        let kind = kind(data)?;
        Some((n.clone(), data.shape(), kind == Kind::Floats, describe(data)))
    });
    if let Some(name) = pixels::choose(path, arrays)? {
        return Ok(name);
    }
    let show = |(name, data): &(String, Dataset)| format!("`{name}` {}", describe(data));
    let features: Vec<_> = members.iter().filter(|(n, _)| MATRICES.contains(&n.as_str())).map(show).collect();
    if !features.is_empty() {
        let found = format!("features of images: {}", features.join(", "));
        return Err(Error::format(path, "datasets", "images", found));
    }
    let lost = names.iter().filter(|n| !members.iter().any(|(m, _)| m == *n)).map(|n| format!("`{n}`, not a dataset"));
    let found: Vec<_> = members.iter().map(show).chain(lost).take(SHOWN + 1).collect();
    let found = listed(found.iter().map(String::as_str));
    Err(Error::format(path, "datasets", "`images`, u8 [N, H, W, 3]", format!("only {found}")))
}

impl ImageSource for Hdf5Images {
    fn len(&self) -> usize {
        self.len
    }

    fn dims(&self) -> Option<ImageDims> {
        Some(self.dims)
    }

    fn container(&self) -> &Path {
        &self.path
    }

    fn labels(&self) -> Option<&[i64]> {
        self.labels.classes()
    }

    fn label_problem(&self) -> Option<&str> {
        self.labels.problem()
    }

    fn read(&mut self, range: Range<usize>) -> Result<Array4<u8>> {
        check_range(&self.path, &range, self.len)?;
        let (count, whole) = (range.len(), "pixels from 0 to 255");
        let values = match self.kind {
            Kind::Bytes => self.slice(range)?,
            Kind::Integers => self.converted(range, whole, |v: i64| u8::try_from(v).ok())?,
            Kind::Unsigned => self.converted(range, whole, |v: u64| u8::try_from(v).ok())?,
            Kind::Floats => self.converted(range, pixels::FLOATS, pixels::from_float)?,
        };
        Array4::from_shape_vec(
            (count, self.dims.height, self.dims.width, 3),
            pixels::to_rgb(self.layout, self.dims, values),
        )
        .map_err(|e| Error::format(&self.path, &self.name, "images of one size", e.to_string()))
    }
}

/// Writes images chunk by chunk. The file appears at its path once it is complete.
#[derive(Debug)]
pub struct Hdf5Writer {
    target: PathBuf,
    images: Dataset,
    output: Output,
    /// Number of images of the file, and of those written.
    len: usize,
    at: usize,
    /// Images that do not fill a chunk yet. Only whole chunks are written, so the bytes do not depend on how the images
    /// are split over calls.
    waiting: Vec<u8>,
    dims: ImageDims,
}

impl Hdf5Writer {
    /// Starts a file with `len` images of size `dims` that appears at `path` once it is finished.
    ///
    /// # Errors
    /// `Hdf5` or `Io` if the file cannot be created.
    pub fn create(path: &Path, len: usize, dims: ImageDims) -> Result<Self> {
        let mut output = Output::create(path)?;
        let images = output.dataset(|file| {
            file.new_dataset::<u8>()
                .shape((len, dims.height, dims.width, dims.channels))
                .chunk((CHUNK.min(len.max(1)), dims.height, dims.width, dims.channels))
                .deflate(GZIP)
                .obj_track_times(false)
                .create(IMAGES)
        })?;
        Ok(Self { target: path.to_owned(), images, output, len, at: 0, waiting: Vec::new(), dims })
    }

    /// Appends u8 `images [n, H, W, 3]`.
    ///
    /// # Errors
    /// `Format` for images of another size; `Hdf5` or `Io` if writing fails; `Hdf5` also for more than `len` images.
    pub fn append(&mut self, images: &Array4<u8>) -> Result<()> {
        let ImageDims { height, width, channels } = self.dims;
        if images.shape()[1..] != [height, width, channels] {
            let expected = format!("[N, {height}, {width}, {channels}]");
            return Err(Error::format(&self.target, IMAGES, expected, format!("{:?}", images.shape())));
        }
        self.waiting.extend(images.iter());
        let chunk = CHUNK * height * width * channels;
        let whole = self.waiting.len() / chunk * chunk;
        let ready: Vec<u8> = self.waiting.drain(..whole).collect();
        self.write(ready)
    }

    fn write(&mut self, pixels: Vec<u8>) -> Result<()> {
        let ImageDims { height, width, channels } = self.dims;
        let count = pixels.len() / (height * width * channels).max(1);
        let array = Array4::from_shape_vec((count, height, width, channels), pixels)
            .map_err(|e| Error::format(&self.target, IMAGES, "whole images", e.to_string()))?;
        for start in (0..count).step_by(CHUNK) {
            let chunk = array.slice(s![start..(start + CHUNK).min(count), .., .., ..]);
            let end = self.at + chunk.dim().0;
            self.images
                .write_slice(chunk, s![self.at..end, .., .., ..])
                .map_err(|source| failed(&self.target, source))?;
            self.at = end;
        }
        Ok(())
    }

    /// Adds a dataset of one dimension: labels, seeds or bytes.
    ///
    /// # Errors
    /// `Hdf5` or `Io` if writing fails.
    pub fn values<T: H5Type>(&mut self, name: &str, values: &[T]) -> Result<()> {
        let data = self
            .output
            .dataset(|file| file.new_dataset::<T>().obj_track_times(false).shape(values.len()).create(name))?;
        data.write_raw(values).map_err(|source| failed(&self.target, source))
    }

    /// Closes the file and moves it to its path.
    ///
    /// # Errors
    /// `Format` if fewer images arrived than [`Hdf5Writer::create`] was told; `Hdf5` or `Io` if writing fails.
    pub fn finish(mut self) -> Result<()> {
        let rest = std::mem::take(&mut self.waiting);
        self.write(rest)?;
        let Self { target, images, output, len, at, .. } = self;
        if at != len {
            return Err(Error::format(&target, IMAGES, format!("{len} images"), format!("{at} images")));
        }
        drop(images);
        output.finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trip() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.h5");
        let images = Array4::from_shape_fn((20, 4, 4, 3), |(i, y, x, c)| u8::try_from(i + y + x + c).unwrap());
        let mut writer = Hdf5Writer::create(&path, 20, ImageDims { height: 4, width: 4, channels: 3 }).unwrap();
        writer.append(&images.slice(s![..13, .., .., ..]).to_owned()).unwrap();
        writer.append(&images.slice(s![13.., .., .., ..]).to_owned()).unwrap();
        writer.values("labels", &(0..20_i64).collect::<Vec<_>>()).unwrap();
        assert!(!path.exists());
        writer.finish().unwrap();
        let mut fewer = Hdf5Writer::create(&path, 20, ImageDims { height: 4, width: 4, channels: 3 }).unwrap();
        fewer.append(&images.slice(s![..13, .., .., ..]).to_owned()).unwrap();
        let text = fewer.finish().unwrap_err().to_string();
        assert!(text.contains("expected 20 images, found 13 images"), "{text}");
        let mut source = crate::batch::open(&path).unwrap();
        assert_eq!(source.read(3..19).unwrap(), images.slice(s![3..19, .., .., ..]));
        assert_eq!(source.labels().unwrap()[7], 7);
    }

    #[test]
    fn bytes_do_not_depend_on_how_images_arrive() {
        let dir = tempfile::tempdir().unwrap();
        let images =
            Array4::from_shape_fn((50, 8, 8, 3), |(i, y, x, c)| u8::try_from((i * 7 + y * x + c) % 256).unwrap());
        let write = |name: &str, step: usize| {
            let path = dir.path().join(name);
            let mut writer = Hdf5Writer::create(&path, 50, ImageDims { height: 8, width: 8, channels: 3 }).unwrap();
            for start in (0..50).step_by(step) {
                writer.append(&images.slice(s![start..(start + step).min(50), .., .., ..]).to_owned()).unwrap();
            }
            writer.values("labels", &[3_i64; 50]).unwrap();
            writer.values("d2o", b"{}").unwrap();
            writer.finish().unwrap();
            fs_err::read(path).unwrap()
        };
        let first = write("a.h5", 50);
        // If HDF5 stored times, in seconds, the files would differ.
        std::thread::sleep(std::time::Duration::from_millis(1100));
        for step in [50, 1, 3, 16, 40] {
            let found = write("b.h5", step);
            let differing: Vec<usize> = (0..found.len().min(first.len())).filter(|i| found[*i] != first[*i]).collect();
            let sizes = (found.len(), first.len());
            assert!(
                found == first,
                "in steps of {step}: {sizes:?} bytes, {} differ, first at {:?}",
                differing.len(),
                differing.first()
            );
        }
    }

    #[test]
    fn truncated_is_an_error_naming_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.h5");
        fs_err::write(&path, b"\x89HDF\r\n\x1a\n broken").unwrap();
        assert!(crate::batch::open(&path).err().expect("opens").to_string().contains("x.h5"));
    }

    fn images(n: usize) -> Array4<u8> {
        Array4::from_shape_fn((n, 4, 5, 3), |(i, y, x, c)| u8::try_from((i * 50 + y * 9 + x * 3 + c) % 256).unwrap())
    }

    fn failure(path: &Path) -> String {
        crate::batch::open(path).err().expect("opens").to_string()
    }

    #[test]
    fn a_user_block_may_come_first() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.mat");
        let mut builder = ::hdf5::FileBuilder::new();
        builder.with_fcpl(|p| p.userblock(2048));
        let file = builder.create(&path).unwrap();
        file.new_dataset::<u8>().shape((3, 4, 5, 3)).create("images").unwrap().write(&images(3)).unwrap();
        drop(file);
        let mut bytes = fs_err::read(&path).unwrap();
        bytes[..20].copy_from_slice(b"MATLAB 7.3 MAT-file ");
        fs_err::write(&path, bytes).unwrap();
        assert_eq!(crate::batch::open(&path).unwrap().read(0..3).unwrap(), images(3));
    }

    #[test]
    fn types_and_layouts_are_those_of_npz() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.h5");
        let rgb = images(4);
        let grey = rgb.slice(s![.., .., .., 0]).to_owned();
        let expected = grey.clone().insert_axis(ndarray::Axis(3)).broadcast((4, 4, 5, 3)).unwrap().to_owned();
        fn write<T: H5Type>(path: &Path, array: ndarray::ArrayViewD<'_, T>) {
            let file = ::hdf5::File::create(path).unwrap();
            file.new_dataset::<T>().shape(array.shape()).create("images").unwrap().write(array).unwrap();
        }
        let read = || crate::batch::open(&path).and_then(|mut s| s.read(0..4));
        write(&path, grey.view().into_dyn());
        assert_eq!(read().unwrap(), expected);
        write(&path, rgb.view().permuted_axes([0, 3, 1, 2]).as_standard_layout().view().into_dyn());
        assert_eq!(read().unwrap(), rgb);
        write(&path, grey.mapv(i32::from).view().into_dyn());
        assert_eq!(read().unwrap(), expected);
        write(&path, grey.mapv(u64::from).view().into_dyn());
        assert_eq!(read().unwrap(), expected);
        write(&path, grey.mapv(f32::from).view().into_dyn());
        assert_eq!(read().unwrap(), expected);
        write(&path, grey.mapv(|v| f32::from(v) / 255.0).view().into_dyn());
        assert!(failure(&path).contains("astype('uint8')"));
        write(&path, grey.mapv(|v| i16::from(v) + 100).view().into_dyn());
        let text = read().unwrap_err().to_string();
        assert!(text.contains("images, value [") && text.contains("pixels from 0 to 255"), "{text}");
    }

    #[test]
    fn half_written_files_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.h5");
        let file = ::hdf5::File::create(&path).unwrap();
        let data = file.new_dataset::<u8>().shape((16, 4, 5, 3)).chunk((4, 4, 5, 3)).create("images").unwrap();
        data.write_slice(&images(8), s![..8, .., .., ..]).unwrap();
        drop((data, file));
        let text = failure(&path);
        assert!(text.contains("images: expected 4 chunks, found 2"), "{text}");
        let file = ::hdf5::File::create(&path).unwrap();
        file.new_dataset::<u8>().shape((16, 4, 5, 3)).create("images").unwrap();
        drop(file);
        assert!(failure(&path).contains("never written"));
    }

    #[test]
    fn virtual_datasets_need_all_their_sources() {
        let dir = tempfile::tempdir().unwrap();
        let part = |i: usize| dir.path().join(format!("part{i}.h5"));
        let write_part = |i: usize, rows: usize| {
            let file = ::hdf5::File::create(part(i)).unwrap();
            let rows = images(8).slice(s![4 * i..4 * i + rows, .., .., ..]).to_owned();
            file.new_dataset::<u8>().shape(rows.dim()).create("x").unwrap().write(&rows).unwrap();
        };
        let whole = dir.path().join("whole.h5");
        let write_whole = |parts: usize| {
            let file = ::hdf5::File::create(&whole).unwrap();
            let mut builder = file.new_dataset::<u8>().shape((8, 4, 5, 3));
            for i in 0..parts {
                let name = format!("part{i}.h5");
                builder =
                    builder.virtual_map(name, "x", (4, 4, 5, 3), .., (8, 4, 5, 3), (4 * i..4 * i + 4, .., .., ..));
            }
            builder.create("images").unwrap();
        };
        write_part(0, 4);
        write_part(1, 4);
        write_whole(2);
        assert_eq!(crate::batch::open(&whole).unwrap().read(0..8).unwrap(), images(8));
        write_part(1, 3);
        assert!(
            failure(&whole).contains("`part1.h5`: expected a source of 240 values, found [3, 4, 5, 3]"),
            "{}",
            failure(&whole)
        );
        write_part(1, 4);
        let file = ::hdf5::File::create(&whole).unwrap();
        let map = ("part1.h5", "x", (6, 4, 5, 3), (2..6, .., .., ..), (4, 4, 5, 3), (..4, .., .., ..));
        let builder =
            file.new_dataset::<u8>().shape((4, 4, 5, 3)).virtual_map(map.0, map.1, map.2, map.3, map.4, map.5);
        builder.create("images").unwrap();
        drop((builder, file));
        let text = failure(&whole);
        assert!(text.contains("expected a source of shape [6, 4, 5, 3] or more, found [4, 4, 5, 3]"), "{text}");
        write_whole(2);
        fs_err::remove_file(part(1)).unwrap();
        assert!(failure(&whole).contains("`part1.h5`: expected the source of a virtual dataset, found no such file"));
        write_whole(1);
        assert!(failure(&whole).contains("sources for all 480 values of the virtual dataset, found sources for 240"));
    }

    #[test]
    fn external_files_must_hold_all_their_bytes() {
        let dir = tempfile::tempdir().unwrap();
        let (path, raw) = (dir.path().join("x.h5"), dir.path().join("raw.bin"));
        let pixels: Vec<u8> = images(2).iter().copied().collect();
        fs_err::write(&raw, &pixels).unwrap();
        let write = |name: &str| {
            let file = ::hdf5::File::create(&path).unwrap();
            file.new_dataset::<u8>().external(name, 0, 120).shape((2, 4, 5, 3)).create("images").unwrap();
        };
        write(raw.to_str().unwrap());
        assert_eq!(crate::batch::open(&path).unwrap().read(0..2).unwrap(), images(2));
        fs_err::write(&raw, &pixels[..100]).unwrap();
        assert!(failure(&path).contains("expected 120 bytes in the external file"), "{}", failure(&path));
        write("raw.bin");
        let text = failure(&path);
        assert!(
            text.contains("`raw.bin`, relative to the current folder") && text.contains("run d2o in that folder"),
            "{text}"
        );
    }

    #[test]
    fn chunks_inflate_to_their_size_and_no_further() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.h5");
        for filter in ["deflate", "nbit", "scale-offset"] {
            let file = ::hdf5::File::create(&path).unwrap();
            let builder = file.new_dataset::<u8>().shape((640, 4, 5, 3)).chunk((640, 4, 5, 3));
            let builder = match filter {
                "deflate" => builder.deflate(9),
                "nbit" => builder.nbit(),
                _ => builder.scale_offset(::hdf5::filters::ScaleOffset::Integer(0)),
            };
            builder.create("images").unwrap().write(&images(640)).unwrap();
            drop((builder, file));
            let mut data = Opened::open(&path).unwrap().dataset("images").unwrap();
            assert_eq!(data.all::<u8>().unwrap(), images(640).into_raw_vec_and_offset().0, "{filter}");
            drop(data);
            // Simulates a smaller stated chunk size. libhdf5 keeps no inflated chunk of the closed file.
            data = Opened::open(&path).unwrap().dataset("images").unwrap();
            data.chunk = 1000;
            let text = data.all::<u8>().unwrap_err().to_string();
            assert!(text.contains("images: expected chunks that inflate to at most 1000 bytes"), "{filter}: {text}");
        }
    }

    #[test]
    fn large_chunks_and_many_members_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.h5");
        let file = ::hdf5::File::create(&path).unwrap();
        file.new_dataset::<u8>().shape((1 << 24, 8, 8, 3)).chunk((1 << 24, 8, 1, 1)).create("images").unwrap();
        drop(file);
        assert!(failure(&path).contains("at most 268435456 bytes in the chunks of one row"), "{}", failure(&path));
        let file = ::hdf5::File::create(&path).unwrap();
        file.new_dataset::<u8>().shape((2, 4, 5, 3)).create("images").unwrap().write(&images(2)).unwrap();
        for i in 0..MAX_MEMBERS {
            file.link_soft("images", &format!("m{i}")).unwrap();
        }
        drop(file);
        assert!(failure(&path).contains("at most 65536 objects side by side"), "{}", failure(&path));
    }

    #[test]
    fn claimed_sizes_are_checked_before_memory_is_taken() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.h5");
        const HUGE: usize = 1_000_000_000_000;
        let file = ::hdf5::File::create(&path).unwrap();
        file.new_dataset::<u8>().shape((HUGE, 4, 5, 3)).chunk((1 << 20, 4, 5, 3)).create("images").unwrap();
        drop(file);
        assert!(fs_err::metadata(&path).unwrap().len() < 10_000);
        assert!(failure(&path).contains("chunks, found 0"));
        let file = ::hdf5::File::create(&path).unwrap();
        file.new_dataset::<u8>().shape((2, 4, 5, 3)).create("images").unwrap().write(&images(2)).unwrap();
        file.new_dataset::<i64>().shape(HUGE).chunk(1 << 20).create("labels").unwrap();
        drop(file);
        let mut source = crate::batch::open(&path).unwrap();
        assert_eq!(source.label_problem(), Some("`labels` has 1000000000000 rows for 2 images"));
        assert_eq!(source.read(0..2).unwrap(), images(2));
        drop(source);
        for name in ["labels", "image_sha256", "features"] {
            let file = ::hdf5::File::create(&path).unwrap();
            let rows = if name == "image_sha256" { HUGE } else { 2 };
            let data = file.new_dataset::<f32>().shape((rows, 3)).chunk((2, 3)).create("features").unwrap();
            match name {
                "labels" => file.new_dataset::<i64>().shape(HUGE).chunk(1 << 20).create(name).map(drop).unwrap(),
                "image_sha256" => {
                    file.new_dataset::<u8>().shape((HUGE, 32)).chunk((1, 32)).create(name).map(drop).unwrap()
                }
                _ => {}
            }
            if name == "labels" {
                data.write_raw(&[0.5_f32; 6]).unwrap();
            }
            drop((data, file));
            match crate::features::FeatureFile::open(&path) {
                Ok(found) => assert!(found.label_problem().is_some_and(|p| p.contains("rows for 2 images"))),
                Err(e) => assert!(e.to_string().contains("features: expected"), "{e}"),
            }
        }
    }

    /// From a chunk that is shorter than its checksum, the filter of libhdf5 reads on until it reaches unmapped memory.
    #[test]
    fn chunks_shorter_than_their_checksum_are_errors() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.h5");
        let file = ::hdf5::File::create(&path).unwrap();
        let data =
            file.new_dataset::<u8>().shape((1, 4, 5, 3)).chunk((1, 4, 5, 3)).fletcher32().create("images").unwrap();
        data.write(&images(1)).unwrap();
        drop((data, file));
        let whole = fs_err::read(&path).unwrap();
        // A tree of chunks: signature, type 1, level, entries and two addresses; then the size of the first chunk.
        let at = whole.windows(5).position(|w| w == b"TREE\x01").unwrap() + 24;
        assert_eq!(whole[at..at + 4], 64_u32.to_le_bytes());
        for size in [0_u32, 3, 63] {
            let mut bytes = whole.clone();
            bytes[at..at + 4].copy_from_slice(&size.to_le_bytes());
            fs_err::write(&path, bytes).unwrap();
            let found = crate::batch::open(&path).and_then(|mut s| s.read(0..1));
            assert!(found.is_err(), "{size} bytes");
        }
    }

    #[test]
    fn labels_are_classes_or_a_problem() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.h5");
        let open = |labels: &dyn Fn(&::hdf5::File)| {
            let file = ::hdf5::File::create(&path).unwrap();
            file.new_dataset::<u8>().shape((4, 4, 5, 3)).create("images").unwrap().write(&images(4)).unwrap();
            labels(&file);
            drop(file);
            let mut source = crate::batch::open(&path).unwrap();
            assert_eq!(source.read(0..4).unwrap(), images(4));
            (source.labels().map(<[i64]>::to_vec), source.label_problem().unwrap_or_default().to_owned())
        };
        let classes = Some(vec![0, 1, 2, 1]);
        fn put<T: H5Type>(file: &::hdf5::File, shape: &[usize], values: &[T]) {
            file.new_dataset::<T>().shape(shape).create("labels").unwrap().write_raw(values).unwrap();
        }
        assert_eq!(open(&|f| put(f, &[4], &[0_u8, 1, 2, 1])).0, classes);
        assert_eq!(open(&|f| put(f, &[4, 1], &[0_i32, 1, 2, 1])).0, classes);
        assert_eq!(open(&|f| put(f, &[4], &[0.0_f32, 1.0, 2.0, 1.0])).0, classes);
        assert_eq!(open(&|f| put(f, &[4], &[0_u64, 1, 2, 1])).0, classes);
        assert_eq!(open(&|f| put(f, &[4], &[false, true, true, false])).0, Some(vec![0, 1, 1, 0]));
        assert_eq!(open(&|f| put(f, &[4, 2], &[1_u8, 0, 0, 1, 1, 0, 1, 0])).0, Some(vec![0, 1, 0, 0]));
        for (found, text) in [
            (open(&|f| put(f, &[4], &[0.7_f64, 1.2, 2.9, 0.1])), "row 0 of `labels` is 0.7"),
            (open(&|f| put(f, &[4, 6], &[0.5_f64; 24])), "not one-hot"),
            (open(&|f| put(f, &[3], &[0_i64; 3])), "3 rows for 4 images"),
            (open(&|f| put(f, &[4], &[u64::MAX; 4])), "18446744073709551615"),
            (open(&|f| put(f, &[4], &[0_i64, -1, 0, 0])), "is -1"),
            (open(&|f| put(f, &[4], &[::hdf5::types::FixedAscii::<3>::default(); 4])), "`labels` holds"),
        ] {
            assert!(found.0.is_none() && found.1.contains(text), "{found:?}");
        }
    }

    #[test]
    fn several_image_datasets_need_a_choice_and_features_are_no_images() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.h5");
        let file = ::hdf5::File::create(&path).unwrap();
        file.new_dataset::<u8>().shape((2, 4, 5, 3)).create("images").unwrap().write(&images(2)).unwrap();
        let group = file.create_group("more").unwrap();
        group.new_dataset::<u8>().shape((1, 4, 5, 3)).create("fake").unwrap().write(&images(1)).unwrap();
        file.new_dataset::<u8>().shape((1, 4, 5, 3)).create("masks").unwrap().write(&images(1)).unwrap();
        drop((file, group));
        let text = failure(&path);
        assert!(text.contains("x.h5::images") && text.contains("`masks` uint8 [1, 4, 5, 3]"), "{text}");
        let named = |name: &str| crate::batch::open(&dir.path().join(format!("x.h5::{name}")));
        assert_eq!(named("images").unwrap().len(), 2);
        assert_eq!(named("more/fake").unwrap().read(0..1).unwrap(), images(1));
        let text = named("none").err().unwrap().to_string();
        assert!(text.contains("found only images"), "{text}");
        let file = ::hdf5::File::create(&path).unwrap();
        file.new_dataset::<f32>().shape((2, 3)).create("features").unwrap().write_raw(&[0_f32; 6]).unwrap();
        drop(file);
        let text = failure(&path);
        assert!(text.contains("expected images, found features of images: `features` float32 [2, 3]"), "{text}");
    }
}
