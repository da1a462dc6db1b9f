//! Sources of datasets: images in any container, one after another.

use std::borrow::Cow;
use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::io::{Read as _, Seek as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail, ensure};
use d2o_refs::archive::Archive;
use d2o_refs::batch::{self, ImageSource};
use d2o_refs::decode;
use d2o_refs::image_zip::{LABEL_FILE, MAX_ENTRY, MAX_JSON};
use d2o_refs::limits::Unpacked;
use d2o_refs::listing::{self, Found, LeftOut};
use flate2::read::GzDecoder;
use fs_err as fs;
use ndarray::Array3;
use serde::Deserialize as _;
use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::Value;
use serde_json::value::RawValue;

use super::cifar::Cifar;
use super::lmdb::{self, Lmdb};
use super::mnist::{self, Idx};
use crate::error::with_hint;

/// Magic bytes of gzip.
pub(crate) const GZIP: [u8; 2] = [0x1f, 0x8b];
/// Largest number of bytes of pixels read from an array container at once, unless one image has more.
const ARRAY_CHUNK: usize = 16 << 20;
/// Largest number of class folders listed in the note.
const MAX_LISTED: usize = 12;

/// Source of the labels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Labels {
    /// `dataset.json` or the labels of the container; in a folder without `dataset.json`, the top-level folders if they
    /// look like classes.
    Auto,
    /// `dataset.json` or the labels of the container.
    Source,
    /// The top-level folders, in the order of their names.
    Folders,
    /// No labels.
    None,
}

/// Selection of the images of a source, and of their labels.
#[derive(Debug, Clone)]
pub struct Selection {
    /// Excludes files with a path in the source that contains one of these texts.
    pub exclude: Vec<String>,
    /// Largest number of images, taken from the start.
    pub max_images: Option<usize>,
    /// Source of the labels.
    pub labels: Labels,
}

/// One image of a source.
#[derive(Debug)]
pub struct Item {
    /// Name within the source, for messages.
    pub name: String,
    /// The image.
    pub content: Content,
    /// Label: a number, or a list of numbers.
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
    /// File or folder.
    pub path: PathBuf,
    /// Number of images that [`Source::items`] gives.
    pub len: usize,
    /// The images in order.
    pub items: Items,
    /// Limit on the decoded size of the images.
    pub unpacked: Unpacked,
    /// Notes for the user, one line each.
    pub notes: Vec<String>,
}

impl std::fmt::Debug for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Source").field("path", &self.path).field("len", &self.len).finish_non_exhaustive()
    }
}

impl Source {
    /// Opens a folder or zip of images, an npz, npy or HDF5 file, the gzipped tar of CIFAR, an IDX file of MNIST, or an
    /// LMDB of encoded images. The content determines which.
    ///
    /// # Errors
    /// If `path` is none of these, holds no image, or does not have the labels that `selection` requires.
    pub fn open(path: &Path, selection: &Selection) -> anyhow::Result<Self> {
        let (file, _) = batch::split_name(path);
        if d2o_refs::metadata(file)?.is_dir() {
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

/// Kind of a file, by its content.
fn kind(path: &Path) -> anyhow::Result<Kind> {
    /// Position of the magic in a tar header, bytes.
    const USTAR: std::ops::Range<usize> = 257..262;
    /// Length of the name at the start of a tar header, bytes.
    const NAME: usize = 100;
    let mut head = Vec::new();
    let mut file = d2o_refs::open_file(path, "a file of images")?;
    file.by_ref().take(512).read_to_end(&mut head)?;
    if head.starts_with(b"PK") {
        let archive = Archive::open(path, "a zip archive")?;
        return Ok(if archive.has_arrays() { Kind::Array } else { Kind::Zip(archive) });
    }
    if head.starts_with(&GZIP) {
        head.clear();
        file.rewind()?;
        let unpacked = GzDecoder::new(file).take(512).read_to_end(&mut head);
        unpacked.with_context(|| format!("`{}` is not a readable gzip file", path.display()))?;
        // Tars in the format before 1988 have no magic, so the name of the first member is checked as well.
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
    // Sort paths by component, as Python does: `a/x` comes before `a-b/x`.
    found.sort_unstable_by(|a, b| a.name.split('/').cmp(b.name.split('/')));
    let json = path.join(LABEL_FILE);
    let json = if json.is_file() { Some(d2o_refs::whole(&json, path, LABEL_FILE, MAX_JSON)?) } else { None };
    let mut packed = 0;
    for file in &found {
        packed += fs::metadata(path.join(&file.path))?.len();
    }
    let root = path.to_owned();
    let read = move |file: &Found| Ok(d2o_refs::whole(&root.join(&file.path), &root, &file.name, MAX_ENTRY)?);
    files(path, selection, (found, left), json, Container::Folder(packed), read)
}

fn zip(path: &Path, mut archive: Archive, selection: &Selection) -> anyhow::Result<Source> {
    archive.retain(|name| !name.ends_with(['/', '\\']));
    let json = archive.label_file()?;
    let container = Container::Zip(archive.packed());
    let name = |i| archive.name(i).to_owned();
    let found = (0..archive.len()).map(name).map(|name| Found { path: PathBuf::from(&name), name }).collect();
    files(path, selection, (found, LeftOut::default()), json, container, move |file| {
        archive.file(&file.name, MAX_ENTRY)?.context("no entry of this name")
    })
}

/// Container of named files, with its size in bytes.
#[derive(Clone, Copy)]
enum Container {
    Folder(u64),
    Zip(u64),
}

/// A source of the images among `files`. Labels are read from `json`, the text of `dataset.json`, or are the folders.
fn files(
    path: &Path,
    selection: &Selection,
    (mut files, mut left): (Vec<Found>, LeftOut),
    json: Option<Vec<u8>>,
    container: Container,
    mut read: impl FnMut(&Found) -> anyhow::Result<Vec<u8>> + 'static,
) -> anyhow::Result<Source> {
    files.retain(|f| left.takes_if(&f.name, |name| decode::is_image(name) || is_drawing(name)));
    let mut notes = left.notes();
    let found = files.len();
    files.retain(|f| !selection.exclude.iter().any(|x| f.name.contains(x.as_str())));
    if files.len() < found {
        notes.push(format!("--exclude skipped {} of {found} images", found - files.len()));
    }
    if files.is_empty() {
        bail!("`{}` holds no images{}", path.display(), if found > 0 { " besides the excluded ones" } else { "" });
    }
    let names: Vec<&str> = files.iter().map(|f| f.name.as_str()).collect();
    let labels = match (selection.labels, json) {
        (Labels::None, _) | (Labels::Source, None) => None,
        (Labels::Auto | Labels::Source, Some(json)) => {
            let labels = labels_of_json(path, &json, &names)?;
            notes.extend(labels.as_ref().map(|(_, classes)| format!("labels of `{LABEL_FILE}`: {classes}")));
            labels.map(|(labels, _)| labels)
        }
        (mode @ (Labels::Auto | Labels::Folders), _) => {
            let (folders, labels) = labels_of_folders(&names);
            if mode == Labels::Folders
                || (matches!(container, Container::Folder(_)) && d2o_refs::folders_are_classes(&folders))
            {
                ensure!(
                    folders.len() > 1,
                    "`{}`: --labels folders requires several top-level folders with images, found one",
                    path.display()
                );
                let hint = if mode == Labels::Auto { " (--labels none omits them)" } else { "" };
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
        let label = labels.next().map(|text| serde_json::from_str(&text)).transpose()?;
        let bytes = read(&file).with_context(|| format!("{root}: cannot read `{}`", file.name))?;
        let content = if is_drawing(&file.name) { Content::Drawing(bytes) } else { Content::Encoded(bytes) };
        Ok(Item { name: file.name, content, label })
    });
    let (Container::Folder(packed) | Container::Zip(packed)) = container;
    Ok(Source { path: path.to_owned(), len, items: Box::new(items), unpacked: Unpacked::of(packed), notes })
}

/// A source of unnamed images. `origin` names the place of their labels, if they have any.
fn array(
    path: &Path,
    selection: &Selection,
    len: usize,
    origin: Option<&str>,
    labelled: impl Iterator<Item = anyhow::Result<(Array3<u8>, Option<Value>)>> + 'static,
) -> anyhow::Result<Source> {
    ensure!(selection.exclude.is_empty(), "--exclude: `{}` contains no file names", path.display());
    ensure!(selection.labels != Labels::Folders, "--labels folders: `{}` contains no folders", path.display());
    ensure!(len > 0, "`{}` holds no images", path.display());
    let keep = selection.labels != Labels::None;
    let notes = origin.filter(|_| keep).map(|origin| format!("labels of {origin}")).into_iter().collect();
    let items = labelled.enumerate().map(move |(i, item)| {
        let (pixels, label) = item?;
        Ok(Item { name: format!("image {i}"), content: Content::Pixels(pixels), label: label.filter(|_| keep) })
    });
    let len = selection.max_images.map_or(len, |n| n.min(len));
    // The unpacked size was checked when the source was opened.
    Ok(Source { path: path.to_owned(), len, items: Box::new(items.take(len)), unpacked: Unpacked::of(0), notes })
}

fn idx(path: &Path, selection: &Selection) -> anyhow::Result<Source> {
    let images = Idx::open(path)?;
    let file = mnist::label_file(path).filter(|_| selection.labels != Labels::None);
    let labels = file.as_ref().map(|file| mnist::labels(file, images.len)).transpose()?;
    if selection.labels == Labels::Source && labels.is_none() {
        bail!("`{}`: no label file next to it", path.display());
    }
    let origin = file.map(|f| format!("`{}`", f.display()));
    let mut labels = labels.unwrap_or_default().into_iter().map(Value::from);
    let len = images.len;
    array(path, selection, len, origin.as_deref(), images.map(move |image| image.map(|pixels| (pixels, labels.next()))))
}

fn lmdb(path: &Path, selection: &Selection) -> anyhow::Result<Source> {
    ensure!(selection.exclude.is_empty(), "--exclude: `{}` contains no file names", path.display());
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
    let unpacked = Unpacked::of(fs::metadata(path.join(lmdb::DATA_FILE))?.len());
    Ok(Source { path: path.to_owned(), len, items: Box::new(items.take(len)), unpacked, notes: Vec::new() })
}

/// Whether the labels of an array container are used.
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
    with_hint(error, "--labels none writes a dataset without labels")
}

/// Images of an array container, read in chunks.
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

/// Largest size of the text of one label, bytes, and largest number of its characters in a message.
const MAX_LABEL: usize = 1 << 20;
const SHOWN: usize = 80;

/// Labels of `names` as JSON texts, from `dataset.json`: `{"labels": [["path", 3], …]}`, with integers or lists of
/// numbers. Also returns a text on the number of classes, or of numbers per label. `None` if there is no list of
/// labels.
fn labels_of_json(path: &Path, json: &[u8], names: &[&str]) -> anyhow::Result<Option<(Vec<Box<str>>, String)>> {
    let place = || format!("`{}`: `{LABEL_FILE}`", path.display());
    let mut found = LabelTexts { by_name: names.iter().map(|name| (*name, None)).collect(), is_list: false };
    let mut reader = serde_json::Deserializer::from_slice(json);
    let is_object = json.trim_ascii_start().starts_with(b"{");
    let parsed =
        if is_object { reader.deserialize_map(&mut found) } else { IgnoredAny::deserialize(&mut reader).map(drop) };
    parsed.and_then(|()| reader.end()).with_context(place)?;
    if !found.is_list {
        return Ok(None);
    }
    let label = |name: &&str| {
        let label = found.by_name.get(*name).cloned().flatten();
        label.ok_or_else(|| without_labels(anyhow::anyhow!("{}: no label for `{name}`", place())))
    };
    let labels = names.iter().map(label).collect::<anyhow::Result<Vec<_>>>()?;
    let vector = labels.iter().find(|text| text.starts_with('[')).map(|text| serde_json::from_str::<Vec<Value>>(text));
    let what = match vector.transpose()? {
        Some(vector) => format!("vectors of {} numbers", vector.len()),
        None => format!("{} classes", labels.iter().collect::<BTreeSet<_>>().len()),
    };
    Ok(Some((labels, what)))
}

/// Labels found while parsing: only those of known names are kept, as text.
struct LabelTexts<'n> {
    by_name: HashMap<&'n str, Option<Box<str>>>,
    is_list: bool,
}

impl LabelTexts<'_> {
    fn add(&mut self, row: &RawValue) -> Result<(), String> {
        let shown = |text: &RawValue| text.get().chars().take(SHOWN).collect::<String>();
        let Ok((name, label)) = serde_json::from_str::<(Cow<'_, str>, &RawValue)>(row.get()) else {
            return Err(format!("expected rows of [path, label], found {}", shown(row)));
        };
        let text = label.get();
        if text.len() > MAX_LABEL {
            return Err(format!("`{name}`: expected a label of at most {MAX_LABEL} bytes, found {}", text.len()));
        }
        let is_label = match serde_json::from_str(text) {
            Ok(Value::Number(number)) => number.is_i64(),
            Ok(Value::Array(vector)) => vector.iter().all(Value::is_number),
            _ => false,
        };
        if !is_label {
            return Err(format!("`{name}`: expected an integer or a list of numbers, found {}", shown(label)));
        }
        if let Some(slot) = self.by_name.get_mut(&*name) {
            *slot = Some(text.into());
        }
        Ok(())
    }
}

impl<'de> Visitor<'de> for &mut LabelTexts<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("`labels` as a list or null")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(key) = map.next_key::<Cow<'de, str>>()? {
            if key == "labels" {
                map.next_value_seed(&mut *self)?;
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        Ok(())
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut rows: A) -> Result<(), A::Error> {
        self.is_list = true;
        while let Some(row) = rows.next_element::<&RawValue>()? {
            self.add(row).map_err(serde::de::Error::custom)?;
        }
        Ok(())
    }
}

/// Reads the value of `labels`.
impl<'de> DeserializeSeed<'de> for &mut LabelTexts<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

/// Top-level folders of `names`, sorted (an empty text for files outside any folder), and the index of the folder of
/// each file.
fn labels_of_folders<'a>(names: &[&'a str]) -> (Vec<&'a str>, Vec<Box<str>>) {
    let top = |name: &'a str| name.split_once('/').map_or("", |(folder, _)| folder);
    let folders: BTreeSet<&str> = names.iter().map(|n| top(n)).collect();
    let index: HashMap<&str, usize> = folders.iter().copied().zip(0..).collect();
    let labels = names.iter().map(|n| index[top(n)].to_string().into_boxed_str()).collect();
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

/// Whether `name` has the extension of an SVG.
fn is_drawing(name: &str) -> bool {
    name.rsplit_once('.').is_some_and(|(_, ending)| ending.eq_ignore_ascii_case("svg"))
}
