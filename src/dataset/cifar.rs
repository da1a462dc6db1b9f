//! CIFAR-10 and CIFAR-100 as published by their authors: a gzipped tar of pickled batches. The pickles are parsed and
//! never executed.

use std::collections::HashMap;
use std::io::Read;
use std::path::Path;

use anyhow::{Context as _, bail, ensure};
use d2o_converters::checkpoint::pickle::{Id, Node, Pickle};
use flate2::read::GzDecoder;
use fs_err as fs;
use ndarray::{Array3, ArrayView3};

/// Height and width of the images, pixels.
const SIDE: usize = 32;
/// Values of one image: three planes.
const VALUES: usize = 3 * SIDE * SIDE;
/// Largest size of all batch files together, bytes; the one of CIFAR-100 has 155 MB.
const MAX_MEMBER: u64 = 256 << 20;
/// Largest number of unpacked bytes that are read to find the batches.
const MAX_TAR: u64 = 1 << 30;

/// A variant of CIFAR: member files in the order of their images, and the key of the labels.
struct Variant {
    members: &'static [&'static str],
    labels: &'static str,
}

const VARIANTS: [Variant; 2] = [
    Variant {
        members: &[
            "cifar-10-batches-py/data_batch_1",
            "cifar-10-batches-py/data_batch_2",
            "cifar-10-batches-py/data_batch_3",
            "cifar-10-batches-py/data_batch_4",
            "cifar-10-batches-py/data_batch_5",
        ],
        labels: "labels",
    },
    Variant { members: &["cifar-100-python/train"], labels: "fine_labels" },
];

/// Images of one batch file.
#[derive(Debug)]
struct Batch {
    bytes: Vec<u8>,
    /// Offset of the first image in `bytes`.
    start: usize,
    labels: Vec<i64>,
}

/// The training images, in the order of their batches.
#[derive(Debug)]
pub(super) struct Cifar {
    batches: Vec<Batch>,
}

impl Cifar {
    /// Reads the gzipped tar at `path`; the batches (150 MB) stay in memory.
    ///
    /// # Errors
    /// If a batch is missing or damaged.
    pub(super) fn open(path: &Path) -> anyhow::Result<Self> {
        let unpacked = GzDecoder::new(std::io::BufReader::new(fs::File::open(path)?)).take(MAX_TAR);
        let mut tar = tar::Archive::new(unpacked);
        let mut found: HashMap<&str, Vec<u8>> = HashMap::new();
        let damaged = || format!("`{}` is not a readable gzipped tar archive", path.display());
        for entry in tar.entries().with_context(damaged)? {
            let entry = entry.with_context(damaged)?;
            let name = entry.path().with_context(damaged)?.to_string_lossy().into_owned();
            let name = name.strip_prefix("./").unwrap_or(&name);
            let wanted = VARIANTS.iter().flat_map(|v| v.members).find(|m| **m == name);
            let Some(member) = wanted else { continue };
            let held: usize = found.iter().filter(|(m, _)| *m != member).map(|(_, bytes)| bytes.len()).sum();
            let size = entry.size().saturating_add(held as u64);
            ensure!(
                size <= MAX_MEMBER,
                "`{}`: `{name}`: expected at most {MAX_MEMBER} bytes, found {size}",
                path.display()
            );
            let mut bytes = Vec::new();
            entry.take(MAX_MEMBER).read_to_end(&mut bytes).with_context(damaged)?;
            found.insert(member, bytes);
        }
        let Some(variant) = VARIANTS.iter().find(|v| v.members.iter().any(|m| found.contains_key(m))) else {
            bail!("`{}` holds neither `{}` nor `{}`", path.display(), VARIANTS[0].members[0], VARIANTS[1].members[0]);
        };
        let batch = |member: &&'static str| {
            let bytes = found.remove(*member).with_context(|| format!("`{}` lacks `{member}`", path.display()))?;
            Batch::parse(bytes, &path.join(member), variant.labels)
        };
        Ok(Self { batches: variant.members.iter().map(batch).collect::<anyhow::Result<_>>()? })
    }

    /// Number of images.
    #[must_use]
    pub(super) fn len(&self) -> usize {
        self.batches.iter().map(|b| b.labels.len()).sum()
    }

    /// Each image, u8 `[32, 32, 3]`, with its class.
    pub(super) fn images(self) -> impl Iterator<Item = anyhow::Result<(Array3<u8>, i64)>> {
        self.batches.into_iter().flat_map(|Batch { bytes, start, labels }| {
            labels.into_iter().enumerate().map(move |(i, label)| {
                let at = start + i * VALUES;
                let planes = ArrayView3::from_shape((3, SIDE, SIDE), &bytes[at..at + VALUES])?;
                Ok((planes.permuted_axes([1, 2, 0]).as_standard_layout().into_owned(), label))
            })
        })
    }
}

impl Batch {
    /// Finds `data`, a u8 array `[N, 3072]`, and the N labels in a pickled dict.
    fn parse(bytes: Vec<u8>, file: &Path, labels_key: &str) -> anyhow::Result<Self> {
        let (pickle, _) = Pickle::parse(&bytes, file)?;
        let value = |key: &str| {
            pickle
                .get(pickle.root(), key)
                .with_context(|| format!("`{}`: no `{key}` in the pickled dict", file.display()))
        };
        let (start, rows) = rows(&pickle, value("data")?, &bytes).with_context(|| {
            format!("`{}`: `data`: expected a NumPy array of u8 [N, {VALUES}] in C order", file.display())
        })?;
        let class = |id: &Id| match pickle.node(*id) {
            Node::Int(class) => Some(*class),
            _ => None,
        };
        let labels =
            pickle.sequence(value(labels_key)?).and_then(|ids| ids.iter().map(class).collect::<Option<Vec<_>>>());
        let labels =
            labels.with_context(|| format!("`{}`: `{labels_key}`: expected a list of integers", file.display()))?;
        ensure!(
            labels.len() == rows,
            "`{}`: `{labels_key}`: expected {rows} labels, one for each image, found {}",
            file.display(),
            labels.len()
        );
        Ok(Self { bytes, start, labels })
    }
}

/// Offset in `bytes` and number of rows of a pickled NumPy array of u8 `[N, 3072]`; `None` for anything else. NumPy
/// pickles an array as an empty one with the state (version, shape, dtype, Fortran order, bytes).
fn rows(pickle: &Pickle, id: Id, bytes: &[u8]) -> Option<(usize, usize)> {
    let Node::Call { function, state: Some(state), .. } = pickle.node(id) else { return None };
    let constructor = pickle.global(*function)?;
    if !matches!(constructor, "numpy.core.multiarray._reconstruct" | "numpy._core.multiarray._reconstruct") {
        return None;
    }
    let [_, shape, dtype, fortran, data] = *pickle.sequence(*state)? else { return None };
    let [rows, columns] = *pickle.sequence(shape)? else { return None };
    let (rows, columns) = (pickle.size(rows)?, pickle.size(columns)?);
    let Node::Call { function, arguments, .. } = pickle.node(dtype) else { return None };
    let kind = pickle.text(*pickle.sequence(*arguments)?.first()?)?;
    let plain = pickle.global(*function) == Some("numpy.dtype") && kind == "u1";
    let row_major = matches!(pickle.node(fortran), Node::Bool(false) | Node::Int(0));
    let Node::Bytes(range) = pickle.node(data) else { return None };
    let complete = rows.checked_mul(VALUES)? == range.len() && range.end <= bytes.len();
    (plain && row_major && columns == VALUES && complete).then_some((range.start, rows))
}
