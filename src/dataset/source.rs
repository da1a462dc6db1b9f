//! What a dataset is made of: images in any container, one after another.

use std::collections::{BTreeSet, HashMap};
use std::io::Read as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail, ensure};
use d2o_refs::archive::Archive;
use d2o_refs::batch::{self, ImageSource};
use d2o_refs::decode;
use d2o_refs::image_zip::{LABEL_FILE, MAX_ENTRY, MAX_JSON};
use d2o_refs::listing::{self, Found, LeftOut};
use flate2::read::GzDecoder;
use fs_err as fs;
use ndarray::Array3;
use serde_json::Value;

use super::cifar::Cifar;
use super::lmdb::{self, Lmdb};
use super::mnist::{self, Idx};
use crate::error::with_hint;

/// Start of a gzip stream.
pub(crate) const GZIP: [u8; 2] = [0x1f, 0x8b];
/// Most bytes of pixels read from an array container at once.
const ARRAY_CHUNK: usize = 16 << 20;
/// Most class folders whose names are listed in the note.
const MAX_LISTED: usize = 12;

/// Where labels come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Labels {
    /// `dataset.json` or the container's own; in a folder without `dataset.json`, its top-level folders if there are several.
    Auto,
    /// `dataset.json` or the container's own.
    Source,
    /// The top-level folders, in the order of their names.
    Folders,
    /// No labels.
    None,
}

/// Which images are taken from a source, and their labels.
#[derive(Debug, Clone)]
pub struct Selection {
    /// Leave out files whose path within the source contains one of these.
    pub exclude: Vec<String>,
    /// Take at most this many, from the start.
    pub max_images: Option<usize>,
    /// Where labels come from.
    pub labels: Labels,
}

/// One image of a source.
#[derive(Debug)]
pub struct Item {
    /// Its name within the source, for messages.
    pub name: String,
    /// The image.
    pub content: Content,
    /// Its label: a number, or a list of numbers.
    pub label: Option<Value>,
}

/// An image, decoded or not.
#[derive(Debug)]
pub enum Content {
    /// The bytes of a bitmap file.
    Encoded(Vec<u8>),
    /// The bytes of an SVG file.
    Drawing(Vec<u8>),
    /// Pixels, u8 `[H, W, C]`, C = 1 or 3.
    Pixels(Array3<u8>),
}

type Items = Box<dyn Iterator<Item = anyhow::Result<Item>>>;

/// An opened source.
pub struct Source {
    /// Its file or folder.
    pub path: PathBuf,
    /// Number of images that [`Source::items`] gives.
    pub len: usize,
    /// The images in order.
    pub items: Items,
    /// What the user should know, one line each.
    pub notes: Vec<String>,
}

impl std::fmt::Debug for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Source").field("path", &self.path).field("len", &self.len).finish_non_exhaustive()
    }
}

impl Source {
    /// Opens a folder or zip of images, an npz, npy or HDF5 file, CIFAR's gzipped tar, an IDX file of MNIST, or an LMDB of encoded images; the content
    /// decides which.
    ///
    /// # Errors
    /// If `path` is none of these, holds no image, or its labels are not those that `selection` asks for.
    pub fn open(path: &Path, selection: &Selection) -> anyhow::Result<Self> {
        let (file, _) = batch::split_name(path);
        if fs::metadata(file)?.is_dir() {
            return if path.join(lmdb::DATA_FILE).is_file() { lmdb(path, selection) } else { folder(path, selection) };
        }
        match kind(file)? {
            Kind::Zip(archive) => zip(path, archive, selection),
            Kind::Tar => {
                let cifar = Cifar::open(path)?;
                let len = cifar.len();
                let labelled =
                    cifar.images().map(|item| item.map(|(pixels, class)| (pixels, Some(Value::from(class)))));
                array(path, selection, len, Some("the batches"), labelled)
            }
            Kind::Idx => idx(path, selection),
            Kind::Array => {
                let source = batch::open(path)?;
                let len = source.len();
                let has_labels = labels_of_array(&*source, selection)?;
                array(
                    path,
                    selection,
                    len,
                    has_labels.then_some("the file"),
                    Rows { source, at: 0, has_labels }.flatten_rows(),
                )
            }
        }
    }
}

enum Kind {
    Zip(Archive),
    Tar,
    Idx,
    Array,
}

/// What the bytes of a file say it is.
fn kind(path: &Path) -> anyhow::Result<Kind> {
    /// Where a tar header has its magic.
    const USTAR: std::ops::Range<usize> = 257..262;
    /// Where a tar header has the name.
    const NAME: usize = 100;
    let mut head = Vec::new();
    fs::File::open(path)?.take(512).read_to_end(&mut head)?;
    if head.starts_with(b"PK") {
        let archive = Archive::open(path, "a zip archive")?;
        return Ok(if archive.has_arrays() { Kind::Array } else { Kind::Zip(archive) });
    }
    if head.starts_with(&GZIP) {
        head.clear();
        let unpacked = GzDecoder::new(fs::File::open(path)?).take(512).read_to_end(&mut head);
        unpacked.with_context(|| format!("`{}` is not a readable gzip file", path.display()))?;
        // Tars of before 1988 have no magic.
        let cifar = head.get(..NAME).is_some_and(|name| name.starts_with(b"cifar-10"));
        if cifar || head.get(USTAR) == Some(b"ustar") {
            return Ok(Kind::Tar);
        }
        ensure!(
            head.starts_with(&mnist::IMAGES_MAGIC),
            "`{}`: expected a gzipped CIFAR tar or IDX file of images, found other gzipped data",
            path.display()
        );
    }
    Ok(if head.starts_with(&mnist::IMAGES_MAGIC) { Kind::Idx } else { Kind::Array })
}

fn folder(path: &Path, selection: &Selection) -> anyhow::Result<Source> {
    let (mut found, left) = listing::files(path)?;
    // Component by component, as Python sorts paths: `a/x` comes before `a-b/x`.
    found.sort_unstable_by(|a, b| a.name.split('/').cmp(b.name.split('/')));
    let json = path.join(LABEL_FILE);
    let json = if json.is_file() { Some(bounded(&json, MAX_JSON)?) } else { None };
    let root = path.to_owned();
    files(path, selection, (found, left), json, true, move |file| bounded(&root.join(&file.path), MAX_ENTRY))
}

fn zip(path: &Path, mut archive: Archive, selection: &Selection) -> anyhow::Result<Source> {
    archive.retain(|name| !name.ends_with(['/', '\\']));
    let json = archive.file(LABEL_FILE, MAX_JSON)?;
    let name = |i| archive.name(i).to_owned();
    let found = (0..archive.len()).map(name).map(|name| Found { path: PathBuf::from(&name), name }).collect();
    files(path, selection, (found, LeftOut::default()), json, false, move |file| {
        archive.file(&file.name, MAX_ENTRY)?.context("no entry of this name")
    })
}

/// A source of named files: the images among `files`, labelled by `json`, the text of `dataset.json`, or by their folders.
fn files(
    path: &Path,
    selection: &Selection,
    (mut files, mut left): (Vec<Found>, LeftOut),
    json: Option<Vec<u8>>,
    is_folder: bool,
    mut read: impl FnMut(&Found) -> anyhow::Result<Vec<u8>> + 'static,
) -> anyhow::Result<Source> {
    files.retain(|f| left.takes_if(&f.name, |name| decode::is_image(name) || is_drawing(name)));
    let mut notes = left.notes();
    let found = files.len();
    files.retain(|f| !selection.exclude.iter().any(|x| f.name.contains(x.as_str())));
    if files.len() < found {
        notes.push(format!("--exclude left out {} of {found} images", found - files.len()));
    }
    if files.is_empty() {
        bail!("`{}` holds no images{}", path.display(), if found > 0 { " besides the excluded ones" } else { "" });
    }
    let names: Vec<&str> = files.iter().map(|f| f.name.as_str()).collect();
    let labels = match (selection.labels, json) {
        (Labels::None, _) | (Labels::Source, None) => None,
        (Labels::Auto | Labels::Source, Some(json)) => {
            let labels = labels_of_json(path, &json, &names)?;
            notes.extend(labels.as_ref().map(|labels| format!("labels of `{LABEL_FILE}`: {}", classes(labels))));
            labels
        }
        (mode @ (Labels::Auto | Labels::Folders), _) => {
            let (folders, labels) = labels_of_folders(&names);
            if mode == Labels::Folders || (is_folder && d2o_refs::folders_are_classes(&folders)) {
                ensure!(
                    folders.len() > 1,
                    "`{}`: --labels folders needs several top-level folders with images, found one",
                    path.display()
                );
                let hint = if mode == Labels::Auto { " (--labels none stores none)" } else { "" };
                notes.push(format!("{} classes from the top-level folders: {}{hint}", folders.len(), listed(&folders)));
                Some(labels)
            } else {
                None
            }
        }
    };
    files.truncate(selection.max_images.unwrap_or(usize::MAX));
    let len = files.len();
    let mut labels = labels.unwrap_or_default().into_iter();
    let root = path.display().to_string();
    let items = files.into_iter().map(move |file| {
        let label = labels.next();
        let bytes = read(&file).with_context(|| format!("{root}: cannot read `{}`", file.name))?;
        let content = if is_drawing(&file.name) { Content::Drawing(bytes) } else { Content::Encoded(bytes) };
        Ok(Item { name: file.name, content, label })
    });
    Ok(Source { path: path.to_owned(), len, items: Box::new(items), notes })
}

/// A source of unnamed images, `labelled` by `origin` if that is there.
fn array(
    path: &Path,
    selection: &Selection,
    len: usize,
    origin: Option<&str>,
    labelled: impl Iterator<Item = anyhow::Result<(Array3<u8>, Option<Value>)>> + 'static,
) -> anyhow::Result<Source> {
    ensure!(selection.exclude.is_empty(), "`{}` holds no file names that --exclude could apply to", path.display());
    ensure!(
        selection.labels != Labels::Folders,
        "`{}` holds no folders that --labels folders could use",
        path.display()
    );
    ensure!(len > 0, "`{}` holds no images", path.display());
    let keep = selection.labels != Labels::None;
    let notes = origin.filter(|_| keep).map(|origin| format!("labels of {origin}")).into_iter().collect();
    let items = labelled.enumerate().map(move |(i, item)| {
        let (pixels, label) = item?;
        Ok(Item { name: format!("image {i}"), content: Content::Pixels(pixels), label: label.filter(|_| keep) })
    });
    let len = selection.max_images.map_or(len, |n| n.min(len));
    Ok(Source { path: path.to_owned(), len, items: Box::new(items.take(len)), notes })
}

fn idx(path: &Path, selection: &Selection) -> anyhow::Result<Source> {
    let images = Idx::open(path)?;
    let file = mnist::label_file(path).filter(|_| selection.labels != Labels::None);
    let labels = file.as_ref().map(|file| mnist::labels(file, images.len)).transpose()?;
    if selection.labels == Labels::Source && labels.is_none() {
        bail!("`{}`: no file of labels beside it", path.display());
    }
    let origin = file.map(|f| format!("`{}`", f.display()));
    let mut labels = labels.unwrap_or_default().into_iter().map(Value::from);
    let len = images.len;
    array(path, selection, len, origin.as_deref(), images.map(move |image| image.map(|pixels| (pixels, labels.next()))))
}

fn lmdb(path: &Path, selection: &Selection) -> anyhow::Result<Source> {
    ensure!(selection.exclude.is_empty(), "`{}` holds no file names that --exclude could apply to", path.display());
    ensure!(
        matches!(selection.labels, Labels::Auto | Labels::None),
        "`{}`: an LMDB of images holds no labels",
        path.display()
    );
    let database = Lmdb::open(path)?;
    let len = selection.max_images.map_or(database.len, |n| n.min(database.len));
    ensure!(len > 0, "`{}` holds no images", path.display());
    let items = database.map(|entry| {
        let (key, bytes) = entry?;
        let name = String::from_utf8_lossy(&key).into_owned();
        Ok(Item { name, content: Content::Encoded(bytes), label: None })
    });
    Ok(Source { path: path.to_owned(), len, items: Box::new(items.take(len)), notes: Vec::new() })
}

/// Whether the labels of an array container are taken.
fn labels_of_array(source: &dyn ImageSource, selection: &Selection) -> anyhow::Result<bool> {
    if selection.labels == Labels::None {
        return Ok(false);
    }
    if let Some(problem) = source.label_problem() {
        return Err(without_labels(anyhow::anyhow!("the labels are not classes: {problem}")));
    }
    ensure!(
        selection.labels != Labels::Source || source.labels().is_some(),
        "`{}` holds no labels",
        source.container().display()
    );
    Ok(source.labels().is_some())
}

fn without_labels(error: anyhow::Error) -> anyhow::Error {
    with_hint(error, "--labels none makes a dataset without labels")
}

/// Images of an array container, chunk by chunk.
struct Rows {
    source: Box<dyn ImageSource>,
    at: usize,
    has_labels: bool,
}

/// An image, u8 `[H, W, C]`, and its label.
type Row = (Array3<u8>, Option<Value>);

impl Rows {
    fn flatten_rows(mut self) -> impl Iterator<Item = anyhow::Result<Row>> {
        let chunks = std::iter::from_fn(move || self.chunk());
        chunks.flat_map(|chunk| match chunk {
            Ok(rows) => rows.into_iter().map(Ok).collect::<Vec<_>>(),
            Err(error) => vec![Err(error)],
        })
    }

    fn chunk(&mut self) -> Option<anyhow::Result<Vec<Row>>> {
        let size = self.source.size(self.at)?;
        let rows = ARRAY_CHUNK / (size.height * size.width * size.channels).max(1);
        let end = self.source.len().min(self.at + rows.max(1));
        let range = std::mem::replace(&mut self.at, end)..end;
        let images = match self.source.read_each(range.clone()) {
            Ok(images) => images,
            Err(error) => {
                self.at = self.source.len();
                return Some(Err(error.into()));
            }
        };
        let labels = self.source.labels().filter(|_| self.has_labels);
        let label = |i: usize| labels.and_then(|l| l.get(range.start + i)).copied().map(Value::from);
        Some(Ok(images.into_iter().enumerate().map(|(i, image)| (image, label(i))).collect()))
    }
}

/// Labels of `names` from `dataset.json`, `{"labels": [["path", 3], …]}`: integers, or lists of numbers.
fn labels_of_json(path: &Path, json: &[u8], names: &[&str]) -> anyhow::Result<Option<Vec<Value>>> {
    let place = || format!("`{}`: `{LABEL_FILE}`", path.display());
    let parsed: Value = serde_json::from_slice(json).with_context(place)?;
    let rows = match parsed.get("labels") {
        None | Some(Value::Null) => return Ok(None),
        Some(Value::Array(rows)) => rows,
        Some(other) => bail!("{}: expected `labels` as a list or null, found {other}", place()),
    };
    let mut by_name = HashMap::with_capacity(rows.len());
    for row in rows {
        let (Some(name), Some(label)) = (row.get(0).and_then(Value::as_str), row.get(1)) else {
            bail!("{}: expected rows of [path, label], found {row}", place());
        };
        let is_label = label.is_i64() || label.as_array().is_some_and(|vector| vector.iter().all(Value::is_number));
        ensure!(is_label, "{}: `{name}`: expected an integer or a list of numbers, found {label}", place());
        by_name.insert(name, label);
    }
    let label = |name: &&str| {
        let label = by_name.get(*name).map(|label| (*label).clone());
        label.ok_or_else(|| without_labels(anyhow::anyhow!("{}: no label for `{name}`", place())))
    };
    names.iter().map(label).collect::<anyhow::Result<_>>().map(Some)
}

/// Top-level folders of `names`, sorted (empty for files outside any), and the index of each file's.
fn labels_of_folders<'a>(names: &[&'a str]) -> (Vec<&'a str>, Vec<Value>) {
    let top = |name: &'a str| name.split_once('/').map_or("", |(folder, _)| folder);
    let folders: BTreeSet<&str> = names.iter().map(|n| top(n)).collect();
    let index: HashMap<&str, usize> = folders.iter().copied().zip(0..).collect();
    let labels = names.iter().map(|n| Value::from(index[top(n)])).collect();
    (folders.into_iter().collect(), labels)
}

fn listed(folders: &[&str]) -> String {
    let shown = folders.iter().take(MAX_LISTED).enumerate();
    let mut text: Vec<String> = shown.map(|(i, f)| format!("{i} = `{}`", if f.is_empty() { "." } else { f })).collect();
    if folders.len() > MAX_LISTED {
        text.push("…".to_owned());
    }
    text.join(", ")
}

fn classes(labels: &[Value]) -> String {
    let integers: BTreeSet<i64> = labels.iter().filter_map(Value::as_i64).collect();
    match (integers.len(), labels.iter().find_map(Value::as_array)) {
        (_, Some(vector)) => format!("vectors of {} numbers", vector.len()),
        (count, None) => format!("{count} classes"),
    }
}

/// Whether `name` ends as an SVG's.
fn is_drawing(name: &str) -> bool {
    name.rsplit_once('.').is_some_and(|(_, ending)| ending.eq_ignore_ascii_case("svg"))
}

/// The bytes of a file of at most `limit` bytes.
fn bounded(path: &Path, limit: u64) -> anyhow::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    fs::File::open(path)?.take(limit + 1).read_to_end(&mut bytes)?;
    ensure!(bytes.len() as u64 <= limit, "`{}`: expected at most {limit} bytes, found more", path.display());
    Ok(bytes)
}
