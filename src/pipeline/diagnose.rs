//! Examines reference files: kind, content, and problems to know before a comparison.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use d2o_evaluations::frechet::spectrum;
use d2o_refs::batch::{self, Digest, ImageDims, ImageSource, container_sha256, digests};
use d2o_refs::features::FeatureFile;
use d2o_refs::npz::{IMAGES, Npz};
use d2o_refs::stats::META;
use ndarray::{Array1, Array2, Array4, ArrayView3, Ix1, Ix2};
use serde::Serialize;
use serde_json::Value;

use super::reference::ToolLayout;
use crate::error::with_hint;

/// Number of features of Inception pool3.
const POOL3: usize = 2048;
/// Matrices of feature files that have a Fréchet distance.
const FRECHET: [&str; 3] = ["features", "spatial", "clip"];
/// Rows, columns and channels of the spatial features of guided-diffusion.
const SPATIAL: [usize; 3] = [17, 17, 7];
/// Number of images in the published references of guided-diffusion.
const PUBLISHED: usize = 10_000;
/// Most features for which a covariance is decomposed regardless of the file size. A larger covariance must be stored
/// in the file nearly uncompressed.
const MAX_DECOMPOSED: usize = 2896;
/// Side of a JPEG block, pixels.
const BLOCK: usize = 8;
/// Number of images examined for JPEG blocks, rounded up to whole chunks.
const EXAMINED: usize = 256;

/// Findings about a reference file.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Diagnosis {
    /// Path of the file or folder.
    pub file: PathBuf,
    /// Tool and content.
    pub kind: String,
    /// Hash of the file or folder.
    pub sha256: String,
    /// Arrays: name, type, shape.
    pub arrays: Vec<Array>,
    /// Means and covariances.
    pub moments: Vec<Moments>,
    /// Images.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub images: Option<Images>,
    /// Number of images it was made from, if known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub count: Option<usize>,
    /// Record of how it was made, if present.
    #[serde(skip_serializing_if = "Value::is_null")]
    pub meta: Value,
    /// Problems a user should know.
    pub warnings: Vec<String>,
}

/// An array in the file.
#[derive(Debug, Clone, Serialize)]
pub struct Array {
    /// Name of the array.
    pub name: String,
    /// NumPy type descriptor, e.g. `<f4`.
    pub dtype: String,
    /// Shape of the array.
    pub shape: Vec<usize>,
}

/// A mean and a covariance.
#[derive(Debug, Clone, Serialize)]
pub struct Moments {
    /// Name of the mean.
    pub name: String,
    /// Number of features.
    pub dims: usize,
    /// Networks with this number of features.
    pub features: &'static str,
    /// Trace of the covariance.
    pub trace: f64,
    /// Rank of the covariance.
    pub rank: usize,
    /// Smallest eigenvalue of the covariance.
    pub smallest_eigenvalue: f64,
    /// Largest eigenvalue of the covariance.
    pub largest_eigenvalue: f64,
    /// Largest difference between mirrored entries of the covariance.
    pub asymmetry: f64,
    /// Layout of spatial features: `NHWC` as in guided-diffusion, `NCHW`, or `unclear`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub order: Option<&'static str>,
}

/// Images in the file.
#[derive(Debug, Clone, Serialize)]
pub struct Images {
    /// Number of images.
    pub count: usize,
    /// Size of the images.
    pub size: ImageDims,
    /// Number of duplicate images.
    pub repeated: usize,
    /// Number of images with a single value.
    pub constant: usize,
    /// Mean pixel step at the borders of JPEG blocks over that elsewhere; about 1 without blocks.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub blockiness: Option<f64>,
    /// Number of images of each class.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub classes: Option<BTreeMap<i64, usize>>,
}

/// Examines the reference at `path` and, with `samples`, whether the samples fit it. Problems become warnings.
///
/// # Errors
/// If the file is not a reference or cannot be read.
pub fn examine(path: &Path, samples: Option<&Path>) -> anyhow::Result<Diagnosis> {
    let mut found = Diagnosis { file: path.to_owned(), sha256: container_sha256(path)?, ..Diagnosis::default() };
    if FeatureFile::is_feature_file(path) {
        feature_file(&mut found)?;
    } else if path.is_file()
        && let Some(kind) = foreign(path)?
    {
        let hint =
            "save its mean and covariance as `mu` and `sigma` with numpy.savez, or make one with `d2o refs make`";
        return Err(with_hint(anyhow::anyhow!("it is {kind}, which d2o does not read"), hint));
    } else if path.is_file() && Npz::open(path).is_ok_and(|n| !n.names().is_empty()) {
        arrays(&mut found)?;
    } else {
        found.kind = "images".to_owned();
        examine_images(&mut found, batch::open(path)?.as_mut())?;
    }
    if let Some(samples) = samples {
        compare(&mut found, samples)?;
    }
    Ok(found)
}

/// Recognises references of other tools that are not npz by their content. Nothing is unpickled.
fn foreign(path: &Path) -> anyhow::Result<Option<&'static str>> {
    const HEAD: u64 = 1 << 16;
    let mut head = Vec::new();
    std::io::Read::read_to_end(&mut std::io::Read::take(d2o_refs::open_file(path, "a reference")?, HEAD), &mut head)?;
    let holds = |text: &str| head.windows(text.len()).any(|w| w == text.as_bytes());
    Ok(if head.starts_with(b"\x80") {
        Some(if holds("raw_mean") || holds("raw_cov") {
            "a pickle of StyleGAN's metrics (FeatureStats)"
        } else if holds("fd_dinov2") || holds("fid") {
            "a pickle of EDM2's reference statistics"
        } else {
            "a pickle"
        })
    } else if head.starts_with(b"PK") && holds("/data.pkl") {
        Some("a torch.save file, such as a cache entry of torch-fidelity")
    } else {
        None
    })
}

fn feature_file(found: &mut Diagnosis) -> anyhow::Result<()> {
    let file = FeatureFile::open(&found.file)?;
    found.kind = match file.meta() {
        Some(meta) if meta.rows.len() < meta.total => "feature file (HDF5), one shard of several".to_owned(),
        Some(_) => "feature file (HDF5)".to_owned(),
        None => "feature file (HDF5) of another tool".to_owned(),
    };
    if let Err(error) = file.verify() {
        found.warnings.push(format!("damaged: {error}"));
    }
    for name in d2o_refs::features::MATRICES {
        if let Some(width) = file.width(name) {
            found.arrays.push(Array { name: name.to_owned(), dtype: "<f4".to_owned(), shape: vec![file.len(), width] });
            if FRECHET.contains(&name) {
                warn_if_few(found, name, width, file.len());
            }
        }
    }
    found.count = Some(file.len());
    match file.meta() {
        Some(meta) => found.meta = serde_json::to_value(meta)?,
        None => found.warnings.push("the feature extractor is not recorded".to_owned()),
    }
    if let Some(labels) = file.labels() {
        let classes = histogram(labels);
        warn_of_imbalance(found, &classes);
    }
    Ok(())
}

fn arrays(found: &mut Diagnosis) -> anyhow::Result<()> {
    let path = found.file.clone();
    let mut npz = Npz::open(&path)?;
    for name in npz.names() {
        let header = npz.header(&name)?;
        found.arrays.push(Array { name, dtype: header.dtype.descr().to_owned(), shape: header.shape });
    }
    let names: Vec<String> = found.arrays.iter().map(|a| a.name.clone()).collect();
    let has = |name: &str| names.iter().any(|n| n == name);
    let mut kind = match ToolLayout::of(&mut npz)? {
        Some(ToolLayout::GuidedDiffusion) => "guided-diffusion reference (ADM): images and statistics".to_owned(),
        Some(layout) => format!("{} statistics", layout.tool()),
        None if has(IMAGES) => "images (`arr_0`) without statistics".to_owned(),
        None if has("feats") => "clean-fid's features for KID (`feats`)".to_owned(),
        None if has("reps") => "dgm-eval's representations (`reps`)".to_owned(),
        None => "not a reference: neither `mu` nor `arr_0`".to_owned(),
    };
    if has(META) && has("mu") {
        found.meta = d2o_refs::stats::meta(&path)?;
        kind = format!("made by d2o, in the layout of {kind}");
    }
    found.kind = kind;
    found.count = found.meta.get("count").and_then(Value::as_u64).and_then(|n| usize::try_from(n).ok());
    for (mu, sigma) in [("mu", "sigma"), ("mu_s", "sigma_s"), ("mu_clip", "sigma_clip")] {
        match (has(mu), has(sigma)) {
            (true, true) => moments(found, &mut npz, mu, sigma)?,
            (false, false) => {}
            (here, _) => {
                let (present, missing) = if here { (mu, sigma) } else { (sigma, mu) };
                found.warnings.push(format!("`{present}` without `{missing}`"));
            }
        }
    }
    if found.arrays.iter().any(|a| a.name == "features") && found.moments.iter().any(|m| m.name == "mu") {
        features(found, &mut npz)?;
    }
    if found.arrays.iter().any(|a| a.name == IMAGES) {
        examine_images(found, batch::open(&path)?.as_mut())?;
        let count = found.images.as_ref().map_or(0, |i| i.count);
        if !found.moments.is_empty() && found.meta.is_null() {
            let note = format!(
                "`mu` and `sigma` describe a whole dataset; the {count} images are for precision and recall only"
            );
            found.warnings.push(note);
            if !found.moments.iter().any(|m| m.name == "mu_s") {
                found.warnings.push("`mu` without `mu_s`: guided-diffusion's evaluator refuses it".to_owned());
            }
        }
        if count < PUBLISHED {
            found
                .warnings
                .push(format!("{count} images; published references contain {PUBLISHED} for precision and recall"));
        }
    }
    Ok(())
}

/// Networks with this number of features.
fn networks_with(name: &str, dims: usize) -> &'static str {
    match (name, dims) {
        ("mu_s", 2023) => "Inception, spatial (17·17·7)",
        (_, 512) => "CLIP ViT-B/32, projected (clean-fid)",
        ("mu_clip", 768) => "CLIP ViT-B/32 before its projection (consistency models)",
        (_, POOL3) => "Inception pool3",
        (_, 64 | 192) => "an early tap of Inception (pytorch-fid, torch-fidelity)",
        (_, 768) => "Inception's 768-dimensional tap, CLIP before its projection, or ViT-B",
        (_, 1024) => "DINOv2 ViT-L/14",
        (_, 1280) => "EfficientNet-Lite0",
        (_, 4096) => "VGG16 fc2",
        _ => "unknown",
    }
}

fn moments(found: &mut Diagnosis, npz: &mut Npz, mu_name: &str, sigma_name: &str) -> anyhow::Result<()> {
    let width = npz.header(sigma_name)?.shape.first().copied().unwrap_or(0);
    let held = (MAX_DECOMPOSED * MAX_DECOMPOSED).max(usize::try_from(fs_err::metadata(&found.file)?.len() / 4)?);
    if width.saturating_mul(width) > held {
        let most = "values for a file of this size";
        anyhow::bail!("`{sigma_name}`: expected a covariance of at most {held} {most}, found {width}×{width}");
    }
    let (mu, sigma) = (npz.f64(mu_name)?, npz.f64(sigma_name)?);
    let shapes = format!("{:?} and {:?}", mu.shape(), sigma.shape());
    let (Ok(mu), Ok(sigma)) = (mu.into_dimensionality::<Ix1>(), sigma.into_dimensionality::<Ix2>()) else {
        found.warnings.push(format!("`{mu_name}` and `{sigma_name}` have the shapes {shapes}, not [D] and [D, D]"));
        return Ok(());
    };
    let dims = mu.len();
    if sigma.dim() != (dims, dims) {
        found.warnings.push(format!("`{mu_name}` and `{sigma_name}` have the shapes {shapes}, not [D] and [D, D]"));
        return Ok(());
    }
    let bad = mu.iter().chain(&sigma).filter(|v| !v.is_finite()).count();
    if bad > 0 {
        found.warnings.push(format!("`{mu_name}`, `{sigma_name}`: {bad} values are NaN or infinite"));
        return Ok(());
    }
    let scale = sigma.iter().fold(0.0_f64, |m, v| m.max(v.abs()));
    let asymmetry = sigma.indexed_iter().fold(0.0_f64, |m, ((i, j), v)| m.max((v - sigma[[j, i]]).abs()));
    if asymmetry > 1e-6 * scale {
        found.warnings.push(format!("`{sigma_name}` is not symmetric: entries differ by up to {asymmetry:.3e}"));
    }
    let spectrum = spectrum(&sigma)?;
    if spectrum.smallest < -1e-6 * spectrum.largest {
        let (low, high) = (spectrum.smallest, spectrum.largest);
        found
            .warnings
            .push(format!("`{sigma_name}` is not positive semidefinite: eigenvalues from {low:.3e} to {high:.3e}"));
    }
    if spectrum.rank < dims {
        let rank = spectrum.rank;
        let what = format!(
            "`{sigma_name}` has rank {rank} of {dims}: computed from {} images, or with constant features",
            rank + 1
        );
        found.warnings.push(what);
    }
    if let Some(count) = found.count {
        warn_if_few(found, mu_name, dims, count);
    }
    let features = networks_with(mu_name, dims);
    if features == "unknown" && found.meta.is_null() {
        found.warnings.push(format!("{dims} features match no known network, and the file does not record one"));
    }
    // Both are means of ReLU outputs, which are not negative.
    let rectified = (mu_name == "mu" && dims == POOL3) || mu_name == "mu_s";
    if rectified && let Some(negative) = mu.iter().position(|v| *v < 0.0) {
        found
            .warnings
            .push(format!("`{mu_name}`: feature {negative} has a negative mean, which {features} cannot have"));
    }
    let order = (mu_name == "mu_s").then(|| order(&mu));
    match order {
        Some("NCHW") => found.warnings.push(
            "`mu_s` is ordered NCHW; guided-diffusion flattens NHWC, so sFID against it would be meaningless"
                .to_owned(),
        ),
        Some("unclear") => found.warnings.push("the order of `mu_s` (NHWC or NCHW) cannot be inferred".to_owned()),
        _ => {}
    }
    found.moments.push(Moments {
        name: mu_name.to_owned(),
        dims,
        features,
        trace: sigma.diag().sum(),
        rank: spectrum.rank,
        smallest_eigenvalue: spectrum.smallest,
        largest_eigenvalue: spectrum.largest,
        asymmetry,
        order,
    });
    Ok(())
}

/// Layout of spatial means. The means of one channel are similar at all positions; those of different channels are not.
fn order(mu: &Array1<f64>) -> &'static str {
    /// Required ratio between the spreads within channels of the two layouts.
    const CLEAR: f64 = 1.5;
    let [h, w, c] = SPATIAL;
    if mu.len() != h * w * c {
        return "unclear";
    }
    // Sum of squared deviations from the channel means. `channel` gives the channel of an entry.
    let spread = |channel: &dyn Fn(usize) -> usize| {
        let mut sums = vec![0.0; c];
        for (i, v) in mu.iter().enumerate() {
            sums[channel(i)] += v / f64::from(u32::try_from(h * w).unwrap_or(1));
        }
        mu.iter().enumerate().map(|(i, v)| (v - sums[channel(i)]).powi(2)).sum::<f64>()
    };
    let (last, first) = (spread(&|i| i % c), spread(&|i| i / (h * w)));
    if last * CLEAR < first {
        "NHWC"
    } else if first * CLEAR < last {
        "NCHW"
    } else {
        "unclear"
    }
}

fn warn_if_few(found: &mut Diagnosis, name: &str, dims: usize, count: usize) {
    if count <= dims {
        found
            .warnings
            .push(format!("`{name}`: {count} images for {dims} features; distances from it are biased upwards"));
    }
}

/// Checks that `mu` is the mean of the features in the file.
fn features(found: &mut Diagnosis, npz: &mut Npz) -> anyhow::Result<()> {
    let Ok(rows) = npz.f64("features")?.into_dimensionality::<Ix2>() else {
        found.warnings.push("`features` is not a matrix".to_owned());
        return Ok(());
    };
    let rows: Array2<f64> = rows;
    found.count = found.count.or(Some(rows.nrows()));
    if rows.iter().any(|v| !v.is_finite()) {
        found.warnings.push("`features` contains NaN or infinity".to_owned());
        return Ok(());
    }
    let mu = npz.f64("mu")?;
    let mean = rows.mean_axis(ndarray::Axis(0)).context("no rows")?;
    let scale = mu.iter().fold(0.0_f64, |m, v| m.max(v.abs()));
    let difference = mu.iter().zip(&mean).fold(0.0_f64, |m, (a, b)| m.max((a - b).abs()));
    if mu.len() != mean.len() || difference > 1e-4 * scale {
        found.warnings.push("the mean of `features` is not `mu`".to_owned());
    }
    Ok(())
}

/// Examines the pixels of the images.
fn examine_images(found: &mut Diagnosis, source: &mut dyn ImageSource) -> anyhow::Result<()> {
    const CHUNK: usize = 128;
    let (count, size) = (source.len(), batch::uniform(source)?);
    let (mut seen, mut repeated, mut constant): (HashMap<Digest, usize>, _, _) = (HashMap::new(), 0, 0);
    let (mut meeting, mut elsewhere) = ([0.0; 2], [0.0; 2]);
    let mut jpegs = 0;
    for range in batch::parts(source, 0..count, CHUNK) {
        let start = range.start;
        let images = source.read(range)?;
        for digest in digests(&images.view()) {
            let times = seen.entry(digest).or_default();
            repeated += usize::from(*times > 0);
            *times += 1;
        }
        let is_constant = |image: &ArrayView3<'_, u8>| {
            let first = image.first().copied();
            image.iter().all(|v| Some(*v) == first)
        };
        constant += images.outer_iter().filter(is_constant).count();
        if start < EXAMINED {
            steps(&images, &mut meeting, &mut elsewhere);
        }
        let jpeg = |i: usize| {
            let name = source.name(i).to_ascii_lowercase();
            name.contains(".jpg") || name.contains(".jpeg")
        };
        jpegs += (start..start + images.dim().0).filter(|i| jpeg(*i)).count();
    }
    let blockiness = (elsewhere[1] > 0.0 && meeting[1] > 0.0 && elsewhere[0] > 0.0)
        .then(|| (meeting[0] / meeting[1]) / (elsewhere[0] / elsewhere[1]));
    if jpegs > 0 {
        found.warnings.push(format!("{jpegs} of {count} files are JPEG; compression changes Fréchet distances"));
    }
    if let Some(ratio) = blockiness.filter(|r| *r > BLOCKY) {
        found.warnings.push(format!(
            "JPEG artefacts: differences between pixels are {ratio:.2} times as large at the borders of 8×8 blocks; compression changes Fréchet distances"
        ));
    }
    for (n, what) in [(repeated, "are duplicates"), (constant, "are constant (a single value)")] {
        if n > 0 {
            found.warnings.push(format!("{n} of {count} images {what}"));
        }
    }
    let classes = source.labels().map(histogram);
    if let Some(classes) = &classes {
        warn_of_imbalance(found, classes);
    }
    found.count = found.count.or(Some(count));
    found.images = Some(Images { count, size, repeated, constant, blockiness, classes });
    Ok(())
}

/// Ratio of steps above which blocks are reported. Images without JPEG stay within a few hundredths of 1.
const BLOCKY: f64 = 1.1;

/// Adds up second differences of brightness between horizontal and vertical neighbours, at the borders of 8×8 blocks
/// and elsewhere. Each array is the sum and the count.
fn steps(images: &Array4<u8>, meeting: &mut [f64; 2], elsewhere: &mut [f64; 2]) {
    /// Columns gathered at a time.
    const COLUMNS: usize = 32;
    let mut add = |line: &[f64]| {
        // Difference between a step and the mean of its two neighbouring steps.
        for i in 1..line.len().saturating_sub(2) {
            let step = line[i + 1] - line[i];
            let around = (line[i] - line[i - 1] + line[i + 2] - line[i + 1]) / 2.0;
            let sum = if (i + 1) % BLOCK == 0 { &mut *meeting } else { &mut *elsewhere };
            sum[0] += (step - around).abs();
            sum[1] += 1.0;
        }
    };
    let light = |pixel: &[u8]| pixel.iter().map(|v| f64::from(*v)).sum::<f64>();
    let images = images.as_standard_layout();
    let (_, height, width, channels) = images.dim();
    let row_bytes = (width * channels).max(1);
    for image in images.as_slice().unwrap_or(&[]).chunks_exact((height * row_bytes).max(1)) {
        let mut line = Vec::with_capacity(width);
        for row in image.chunks_exact(row_bytes) {
            line.clear();
            line.extend(row.chunks_exact(channels).map(light));
            add(&line);
        }
        let mut lines = vec![Vec::with_capacity(height); COLUMNS.min(width)];
        for first in (0..width).step_by(COLUMNS) {
            lines.iter_mut().for_each(Vec::clear);
            for row in image.chunks_exact(row_bytes) {
                for (line, pixel) in lines.iter_mut().zip(row[first * channels..].chunks_exact(channels)) {
                    line.push(light(pixel));
                }
            }
            lines.iter().for_each(|line| add(line));
        }
    }
}

fn histogram(labels: &[i64]) -> BTreeMap<i64, usize> {
    let mut classes = BTreeMap::new();
    labels.iter().for_each(|l| *classes.entry(*l).or_default() += 1);
    classes
}

fn warn_of_imbalance(found: &mut Diagnosis, classes: &BTreeMap<i64, usize>) {
    let (least, most) = (classes.values().min().copied().unwrap_or(0), classes.values().max().copied().unwrap_or(0));
    if most > 2 * least {
        found.warnings.push(format!("unbalanced classes: {least} to {most} images per class"));
    }
    let below = i64::try_from(classes.len()).unwrap_or(i64::MAX) - 1;
    // Classes are 0 or more.
    let missing = classes.keys().max().map_or(0, |most| most.saturating_sub(below));
    if missing > 0 {
        found.warnings.push(format!("{missing} classes below the largest label have no images"));
    }
}

/// Compares the size and the classes of `samples` with those of the reference.
fn compare(found: &mut Diagnosis, samples: &Path) -> anyhow::Result<()> {
    let source = batch::open(samples)?;
    let (ours, name) = (batch::uniform(source.as_ref())?, samples.display());
    let theirs = match (&found.images, found.meta.get("images")) {
        (Some(images), _) => Some(images.size),
        (None, Some(size)) => serde_json::from_value(size.clone()).ok(),
        _ => None,
    };
    match theirs {
        Some(theirs) if theirs != ours => found.warnings.push(format!(
            "the resolution differs: {}×{} in `{name}`, {}×{} in the reference",
            ours.width, ours.height, theirs.width, theirs.height
        )),
        None => found
            .warnings
            .push(format!("the reference does not record its resolution; `{name}` has {}×{}", ours.width, ours.height)),
        _ => {}
    }
    if let (Some(reference), Some(labels)) = (found.images.as_ref().and_then(|i| i.classes.clone()), source.labels()) {
        let ours = histogram(labels);
        let here = ours.keys().filter(|c| !reference.contains_key(c)).count();
        let there = reference.keys().filter(|c| !ours.contains_key(c)).count();
        if here + there > 0 {
            found.warnings.push(format!("{here} classes are in `{name}` only, {there} in the reference only"));
        }
        #[allow(clippy::cast_precision_loss, reason = "image counts")]
        let share = |classes: &BTreeMap<i64, usize>, class: &i64| {
            let all: usize = classes.values().sum();
            classes.get(class).copied().unwrap_or(0) as f64 / all.max(1) as f64
        };
        let difference: f64 = reference
            .keys()
            .chain(ours.keys().filter(|c| !reference.contains_key(c)))
            .map(|c| (share(&reference, c) - share(&ours, c)).abs())
            .sum::<f64>()
            / 2.0;
        if difference > 0.05 {
            found.warnings.push(format!(
                "the class distribution differs from the reference: {:.0} % of `{name}` would have to change class",
                100.0 * difference
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_order_of_spatial_means_is_told() {
        let [h, w, c] = SPATIAL;
        let value =
            |channel: usize, at: usize| [0.1, 0.9, 0.2, 0.5, 0.05, 0.7, 0.3][channel] + 0.0003 * (at % 17) as f64;
        let nhwc = Array1::from_shape_fn(h * w * c, |i| value(i % c, i / c));
        let nchw = Array1::from_shape_fn(h * w * c, |i| value(i / (h * w), i % (h * w)));
        assert_eq!((order(&nhwc), order(&nchw)), ("NHWC", "NCHW"));
        assert_eq!(order(&Array1::from_elem(h * w * c, 0.5)), "unclear");
        assert_eq!(order(&Array1::from_elem(100, 0.5)), "unclear");
    }

    #[test]
    fn classes_are_counted_without_a_walk_over_all_numbers() {
        let mut found = Diagnosis::default();
        warn_of_imbalance(&mut found, &BTreeMap::from([(0, 1), (1, 1), (5, 1)]));
        warn_of_imbalance(&mut found, &BTreeMap::from([(0, 1), (i64::MAX, 1)]));
        warn_of_imbalance(&mut found, &BTreeMap::from([(0, 1), (1, 1)]));
        let missing = |n: i64| format!("{n} classes below the largest label have no images");
        assert_eq!(found.warnings, [missing(3), missing(i64::MAX - 1)]);
    }

    #[test]
    fn jpeg_leaves_traces() {
        let (side, mut plain) = (64, Array4::<u8>::zeros((4, 64, 64, 3)));
        let mut state = 1_u32;
        for (i, mut image) in plain.outer_iter_mut().enumerate() {
            image.indexed_iter_mut().for_each(|((y, x, c), v)| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                let wave = ((x * (i + 2)) as f64 / 9.0).sin() * 50.0 + ((y * (c + 3)) as f64 / 13.0).cos() * 40.0;
                #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a test")]
                let value = (128.0 + wave + f64::from(state >> 28)) as u8;
                *v = value;
            });
        }
        let mut compressed = plain.clone();
        for mut image in compressed.outer_iter_mut() {
            let mut bytes = Vec::new();
            let pixels = image.as_standard_layout().as_slice().unwrap().to_vec();
            let mut encoder = image::codecs::jpeg::JpegEncoder::new_with_quality(&mut bytes, 30);
            encoder.encode(&pixels, side, side, image::ExtendedColorType::Rgb8).unwrap();
            let back = image::load_from_memory(&bytes).unwrap().into_rgb8().into_raw();
            image.assign(&ndarray::Array3::from_shape_vec((64, 64, 3), back).unwrap());
        }
        let ratio = |images: &Array4<u8>| {
            let (mut a, mut b) = ([0.0; 2], [0.0; 2]);
            steps(images, &mut a, &mut b);
            a[0] / a[1] / (b[0] / b[1])
        };
        let (clean, blocky) = (ratio(&plain), ratio(&compressed));
        assert!(clean < BLOCKY && blocky > BLOCKY, "{clean} without JPEG, {blocky} with it");
    }
}
