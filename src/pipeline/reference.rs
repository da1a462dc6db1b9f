//! References: statistics files of all supported tools, images, feature files.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use d2o_evaluations::frechet::Gaussian;
use d2o_evaluations::gaussian::Accumulator;
use d2o_evaluations::preprocess::{Preprocessing, Resampling, Resize, Scaling};
use d2o_evaluations::protocol::{ClipFeatures, INCEPTION};
use d2o_refs::batch::ImageDims;
use d2o_refs::npz::{IMAGES, Npz};
use d2o_refs::stats::{META, gaussian};
use ndarray::Array2;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::network::{CLIP, InputRule, Network, Role};
use super::pass::{PassOptions, Seconds};
use super::provenance::{Origin, Records};
use super::source::Source;
use super::statistics::{StatsRequest, statistics};
use crate::error::with_hint;

/// Version of [`StatisticsMeta`].
pub const VERSION: u32 = 2;
/// Number of features of Inception pool3.
const POOL3: usize = 2048;
/// Number of CLIP features before and after the projection.
const CLIP_DIMS: [(usize, ClipFeatures); 2] = [(768, ClipFeatures::Unprojected), (512, ClipFeatures::Projected)];
/// Divisor of the covariance in the files of EDM, guided-diffusion, clean-fid and pytorch-fid: N - 1.
const PUBLISHED_DDOF: usize = 1;

/// Record of how d2o made a statistics file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StatisticsMeta {
    /// [`VERSION`].
    #[serde(default)]
    pub version: u32,
    /// Size of the images; absent if their sizes differ.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub images: Option<ImageDims>,
    /// Name of the protocol.
    pub protocol: String,
    /// Divisor of the covariance: N - ddof.
    pub ddof: usize,
    /// Number of images.
    pub count: usize,
    /// Hash of the images, as `batch::content_sha256`.
    pub images_sha256: String,
    /// Version of d2o.
    pub d2o_version: String,
    /// Networks, by role.
    pub networks: Records,
}

/// Layouts of npz files with `mu` and `sigma`, by tool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ToolLayout {
    /// `mu`, `sigma` in f64, not compressed.
    Edm,
    /// `arr_0`, `mu`, `sigma`, `mu_s`, `sigma_s`.
    GuidedDiffusion,
    /// `mu` in f32, `sigma` in f64.
    CleanFid,
    /// `mu`, `sigma` in f64, compressed.
    PytorchFid,
}

impl ToolLayout {
    /// Layout of `npz`; `None` if it holds no statistics.
    ///
    /// # Errors
    /// If the npz file is damaged.
    pub fn of(npz: &mut Npz) -> anyhow::Result<Option<Self>> {
        if !npz.contains("mu") {
            return Ok(None);
        }
        let dtype = npz.header("mu")?.dtype.descr().to_owned();
        Ok(Some(match (npz.contains(IMAGES), dtype.as_str(), npz.is_compressed("mu")?) {
            (true, ..) => Self::GuidedDiffusion,
            (false, "<f4", _) => Self::CleanFid,
            (false, _, true) => Self::PytorchFid,
            (false, _, false) => Self::Edm,
        }))
    }

    /// Name of the tool.
    #[must_use]
    pub fn tool(self) -> &'static str {
        match self {
            Self::Edm => "EDM",
            Self::GuidedDiffusion => "guided-diffusion",
            Self::CleanFid => "clean-fid",
            Self::PytorchFid => "pytorch-fid",
        }
    }

    /// Preprocessing of the tool before Inception.
    #[must_use]
    pub fn preprocessing(self) -> Preprocessing {
        let (resize, scaling) = match self {
            Self::Edm | Self::GuidedDiffusion => (Resize::TensorFlow, Scaling::TensorFlow),
            Self::CleanFid => (Resize::PilBicubic, Scaling::TensorFlow),
            Self::PytorchFid => (Resize::Torch, Scaling::Unit),
        };
        Preprocessing { resampling: Resampling::Resize(resize), scaling: Some(scaling), in_graph: false }
    }
}

/// Contents of a statistics file, from the headers of its arrays.
#[derive(Debug)]
struct Statistics {
    /// Number of features of `mu`; `None` if `mu` holds CLIP features.
    features: Option<usize>,
    spatial: Option<usize>,
    clip: Option<usize>,
    /// Names of the mean and covariance of CLIP features.
    clip_names: [&'static str; 2],
    /// Shape of the features.
    rows: Option<[usize; 2]>,
    manifold: Option<[usize; 2]>,
    origins: BTreeMap<Role, Origin>,
    ddof: usize,
    /// Number of images behind the moments, if recorded.
    count: Option<usize>,
    /// Hash of the images, if recorded.
    sha256: Option<String>,
    images: Option<ImageDims>,
    /// Whether the statistics belong to the images in the same file: both have the same number of images.
    same_images: bool,
}

/// Where a matrix of a reference comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Supply {
    /// Stored in the file.
    File,
    /// Computed from images, or read from feature files.
    Computed,
    /// Not available.
    None,
}

/// An open reference. Its content is known, but nothing is computed yet.
pub struct OpenReference {
    path: PathBuf,
    statistics: Option<Statistics>,
    /// Images or features.
    source: Option<Source>,
    layout: Option<ToolLayout>,
}

impl std::fmt::Debug for OpenReference {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("OpenReference")
            .field("path", &self.path)
            .field("statistics", &self.statistics)
            .finish_non_exhaustive()
    }
}

/// Mean and covariance, or the sums to compute them.
#[derive(Debug)]
enum Moments {
    /// From a file, with this divisor and number of images (if recorded).
    Fixed { gaussian: Gaussian, ddof: usize, count: Option<usize> },
    /// Computed from images or feature files.
    Sums(Accumulator),
}

impl Moments {
    /// Mean and covariance with the divisor N - `wanted`. Those of a file are rescaled if the file records the number
    /// of images, otherwise returned unchanged.
    #[allow(clippy::cast_precision_loss, reason = "image counts")]
    fn gaussian(&self, wanted: usize) -> anyhow::Result<Cow<'_, Gaussian>> {
        Ok(match self {
            Self::Sums(sums) => Cow::Owned(sums.finish(wanted)?),
            Self::Fixed { gaussian, ddof, count: Some(n) } if *ddof != wanted && *n > wanted.max(*ddof) => {
                let factor = (n - ddof) as f64 / (n - wanted) as f64;
                Cow::Owned(Gaussian { mu: gaussian.mu.clone(), sigma: &gaussian.sigma * factor })
            }
            Self::Fixed { gaussian, .. } => Cow::Borrowed(gaussian),
        })
    }
}

/// Statistics of a reference.
#[derive(Debug, Default)]
pub struct Reference {
    moments: BTreeMap<&'static str, Moments>,
    /// Feature rows.
    pub rows: Option<Array2<f32>>,
    /// Feature rows of another network, for precision and recall.
    pub manifold: Option<Array2<f32>>,
    /// Class of each row.
    pub labels: Option<Vec<i64>>,
    /// Hash of the images of the rows, in the order of the rows, if known.
    pub images_sha256: Option<String>,
    /// Seconds of each stage of the pass over images; empty without a pass.
    pub seconds: Seconds,
}

impl Reference {
    /// Mean and covariance of `matrix` (`features`, `spatial`, `clip`) with the divisor N - `ddof`.
    ///
    /// # Errors
    /// If the reference lacks them, or has too few images.
    pub fn gaussian(&self, matrix: &str, ddof: usize) -> anyhow::Result<Cow<'_, Gaussian>> {
        self.moments
            .get(matrix)
            .with_context(|| format!("the reference contains no statistics of `{matrix}`"))?
            .gaussian(ddof)
    }

    /// Moves the CLIP moments of `other` to `self`.
    pub fn take_clip(&mut self, mut other: Self) {
        if let Some(clip) = other.moments.remove("clip") {
            self.moments.insert("clip", clip);
        }
    }
}

impl OpenReference {
    /// Opens the reference at `path`. With `only_clip`, a single mean and covariance in the file is that of CLIP
    /// features.
    ///
    /// # Errors
    /// If the file is not a reference, or is damaged.
    pub fn open(path: &Path, only_clip: bool) -> anyhow::Result<Self> {
        let describe = || format!("cannot open the reference `{}`", path.display());
        let npz = if path.is_file() { Npz::open(path).ok() } else { None };
        let (statistics, layout) = match npz {
            Some(mut npz) => {
                let layout = ToolLayout::of(&mut npz).with_context(describe)?;
                let found = layout.map(|layout| Statistics::open(&mut npz, path, layout, only_clip)).transpose();
                (found.with_context(describe)?, layout)
            }
            None => (None, None),
        };
        let images = layout.is_none_or(|l| l == ToolLayout::GuidedDiffusion);
        let source = if images { Some(Source::open(path).with_context(describe)?) } else { None };
        let mut reference = Self { path: path.to_owned(), statistics, source, layout };
        if let (Some(statistics), Some(source)) = (&mut reference.statistics, &reference.source) {
            statistics.same_images = statistics.count == Some(source.len());
        }
        Ok(reference)
    }

    /// Path of the file or folder.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Layout of a statistics file.
    #[must_use]
    pub fn layout(&self) -> Option<ToolLayout> {
        self.layout
    }

    /// Number of images behind the statistics, if known.
    #[must_use]
    pub fn count(&self) -> Option<usize> {
        match &self.statistics {
            Some(statistics) => statistics.count,
            None => self.source.as_ref().map(Source::len),
        }
    }

    /// Its images or features; `None` for statistics only.
    #[must_use]
    pub fn source(&self) -> Option<&Source> {
        self.source.as_ref()
    }

    /// Size of the images, if known and the same for all.
    #[must_use]
    pub fn image_dims(&self) -> Option<ImageDims> {
        let stated = self.statistics.as_ref().and_then(|s| s.images);
        stated.or_else(|| self.source.as_ref().and_then(Source::image_dims))
    }

    /// Notes on skipped images.
    #[must_use]
    pub fn notes(&self) -> &[String] {
        self.source.as_ref().map_or(&[], Source::notes)
    }

    /// Reason why the labels are not classes, if so.
    #[must_use]
    pub fn label_problem(&self) -> Option<&str> {
        self.source.as_ref().and_then(Source::label_problem)
    }

    /// Whether the rows have classes.
    #[must_use]
    pub fn has_classes(&self) -> bool {
        let in_file = self.statistics.as_ref().is_some_and(|s| s.rows.is_some() || s.manifold.is_some());
        if in_file {
            return Npz::open(&self.path).is_ok_and(|npz| npz.contains("labels"));
        }
        self.source.as_ref().is_some_and(|s| s.labels().is_some())
    }

    /// Number of rows for precision, recall and KID: those of the matrix `manifold` or `features`.
    #[must_use]
    pub fn row_count(&self, manifold: bool) -> Option<usize> {
        let in_file = self.statistics.as_ref().and_then(|s| if manifold { s.manifold } else { s.rows });
        in_file.map(|[n, _]| n).or_else(|| self.source.as_ref().map(Source::len))
    }

    /// Where the mean and covariance of `matrix` come from, with `networks` under `rule`.
    #[must_use]
    pub fn moments(&self, matrix: &str, networks: &[Network], rule: &InputRule) -> Supply {
        let taken = || match &self.source {
            Some(source) if source.width(matrix, networks, rule).is_some() => Supply::Computed,
            _ => Supply::None,
        };
        match &self.statistics {
            Some(s) => match matrix {
                "features" if s.features.is_some() => Supply::File,
                "spatial" if s.spatial.is_some() => Supply::File,
                "clip" if s.clip.is_some() => Supply::File,
                // Images stored with the statistics of a whole dataset are only a part of it.
                _ if s.same_images => taken(),
                _ => Supply::None,
            },
            None => taken(),
        }
    }

    /// Where the rows of `matrix` (`features` or `manifold`) come from, with `networks` under `rule`.
    #[must_use]
    pub fn rows(&self, matrix: &str, networks: &[Network], rule: &InputRule) -> Supply {
        let in_file = self.statistics.as_ref().is_some_and(|s| match matrix {
            "manifold" => s.manifold.is_some(),
            _ => s.rows.is_some(),
        });
        match &self.source {
            _ if in_file => Supply::File,
            Some(source) if source.width(matrix, networks, rule).is_some() => Supply::Computed,
            _ => Supply::None,
        }
    }

    /// Width of `matrix` in the statistics file; `None` if it is not stored.
    #[must_use]
    pub fn width(&self, matrix: &str) -> Option<usize> {
        let s = self.statistics.as_ref()?;
        match matrix {
            "features" => s.features.or(s.rows.map(|[_, d]| d)),
            "spatial" => s.spatial,
            "clip" => s.clip,
            _ => s.manifold.map(|[_, d]| d),
        }
    }

    /// Divisor of the covariances in the file; `None` if they are computed, or can be rescaled because the file records
    /// the number of images.
    #[must_use]
    pub fn fixed_ddof(&self) -> Option<usize> {
        self.statistics.as_ref().filter(|s| s.count.is_none()).map(|s| s.ddof)
    }

    /// How the features of `role` were made: those in the statistics file for [`Supply::File`], otherwise those of the
    /// images or feature files.
    ///
    /// # Errors
    /// If a network does not take the images.
    pub fn origin(&self, role: Role, supply: Supply, networks: &[Network], rule: &InputRule) -> anyhow::Result<Origin> {
        match (supply, &self.statistics, &self.source) {
            (Supply::File, Some(s), _) => Ok(s.origins.get(&role).cloned().unwrap_or(Origin::Unknown)),
            (_, _, Some(source)) => {
                if let Some(records) = source.records() {
                    let record = records.get(role.name()).cloned();
                    return Ok(record.map_or(Origin::Unknown, |r| Origin::Recorded(Box::new(r))));
                }
                let Some(network) = networks.iter().find(|n| n.spec.role == role) else { return Ok(Origin::Unknown) };
                let record = network
                    .spec
                    .record(source.image_dims(), rule)
                    .with_context(|| format!("cannot extract features of the reference `{}`", self.path.display()))?;
                Ok(Origin::Recorded(Box::new(record)))
            }
            _ => Ok(Origin::Unknown),
        }
    }

    /// Reads or computes what `request` asks for, except Inception Scores. It can be called again under another rule.
    ///
    /// # Errors
    /// If the statistics are damaged; those of [`statistics`].
    pub fn compute(
        &mut self,
        networks: &mut [Network],
        request: &StatsRequest,
        options: &PassOptions<'_>,
    ) -> anyhow::Result<Reference> {
        let describe = |path: &Path| format!("cannot read the reference `{}`", path.display());
        let (mut found, mut lacking) = (Reference::default(), StatsRequest { scores: Vec::new(), ..request.clone() });
        if let Some(s) = &self.statistics {
            let path = &self.path;
            let mut npz = Npz::open(path)?;
            let mut fixed =
                |wanted: &mut bool, held: bool, key: &'static str, names: [&str; 2]| -> anyhow::Result<()> {
                    if *wanted && held {
                        let (mu, sigma) =
                            gaussian(&mut npz, path, names[0], names[1]).with_context(|| describe(path))?;
                        let gaussian = Gaussian { mu, sigma };
                        found.moments.insert(key, Moments::Fixed { gaussian, ddof: s.ddof, count: s.count });
                        *wanted = false;
                    }
                    Ok(())
                };
            fixed(&mut lacking.features, s.features.is_some(), "features", ["mu", "sigma"])?;
            fixed(&mut lacking.spatial, s.spatial.is_some(), "spatial", ["mu_s", "sigma_s"])?;
            fixed(&mut lacking.clip, s.clip.is_some(), "clip", s.clip_names)?;
            let (mut rows, mut manifold) = (None, None);
            for (wanted, held, name, to) in [
                (&mut lacking.keep, s.rows.is_some(), "features", &mut rows),
                (&mut lacking.manifold, s.manifold.is_some(), "manifold", &mut manifold),
            ] {
                if *wanted && held {
                    let matrix = npz.f32(name).with_context(|| describe(path))?;
                    *to = Some(matrix.into_dimensionality::<ndarray::Ix2>()?);
                    *wanted = false;
                }
            }
            if rows.is_some() || manifold.is_some() {
                if npz.contains("labels") {
                    found.labels = Some(npz.i64("labels").with_context(|| describe(path))?);
                }
                found.images_sha256.clone_from(&s.sha256);
            }
            (found.rows, found.manifold) = (rows, manifold);
        }
        let Some(source) = self.source.as_mut().filter(|_| !lacking.is_empty()) else { return Ok(found) };
        let len = source.len();
        let taken = statistics(source, 0..len, networks, &lacking, options, None)
            .with_context(|| format!("cannot extract features of the reference `{}`", self.path.display()))?;
        for (key, sums) in [("features", taken.features), ("spatial", taken.spatial), ("clip", taken.clip)] {
            if let Some(sums) = sums {
                found.moments.insert(key, Moments::Sums(sums));
            }
        }
        if taken.kept.is_some() || taken.manifold.is_some() {
            found.labels = source.labels();
            found.images_sha256 = Some(taken.summary.sha256);
        }
        found.rows = found.rows.or(taken.kept);
        found.manifold = found.manifold.or(taken.manifold);
        found.seconds = taken.summary.seconds;
        Ok(found)
    }
}

impl Statistics {
    fn open(npz: &mut Npz, path: &Path, layout: ToolLayout, only_clip: bool) -> anyhow::Result<Self> {
        let mut length = |mu: &str, sigma: &str| -> anyhow::Result<Option<usize>> {
            match (npz.contains(mu), npz.contains(sigma)) {
                (false, false) => Ok(None),
                (true, true) => {
                    let (mean, covariance) = (npz.header(mu)?.shape, npz.header(sigma)?.shape);
                    let [d] = mean[..] else { anyhow::bail!("`{mu}`: expected the shape [D], found {mean:?}") };
                    anyhow::ensure!(
                        covariance == [d, d],
                        "`{sigma}`: expected the shape [{d}, {d}], found {covariance:?}"
                    );
                    Ok(Some(d))
                }
                (here, _) => {
                    let (there, lacking) = if here { (mu, sigma) } else { (sigma, mu) };
                    anyhow::bail!("`{there}` without `{lacking}`")
                }
            }
        };
        let mut features = length("mu", "sigma")?;
        let spatial = length("mu_s", "sigma_s")?;
        let mut clip = length("mu_clip", "sigma_clip")?;
        let mut clip_names = ["mu_clip", "sigma_clip"];
        let alone = only_clip && clip.is_none();
        if alone {
            (clip, features, clip_names) = (features, None, ["mu", "sigma"]);
        }
        let mut shape = |name: &str| -> anyhow::Result<Option<[usize; 2]>> {
            if !npz.contains(name) {
                return Ok(None);
            }
            let shape = npz.header(name)?.shape;
            let [n, d] = shape[..] else { anyhow::bail!("`{name}`: expected the shape [N, D], found {shape:?}") };
            Ok(Some([n, d]))
        };
        let (rows, manifold) = (shape("features")?, shape("manifold")?);
        let meta = meta(npz, path)?;
        let mut origins = BTreeMap::new();
        match &meta {
            Some(meta) => {
                for role in Role::ALL {
                    if let Some(record) = meta.networks.get(role.name()) {
                        origins.insert(role, Origin::Recorded(Box::new(record.clone())));
                    }
                }
                if alone && let Some(origin) = origins.remove(&Role::Features) {
                    origins.entry(Role::Clip).or_insert(origin);
                }
            }
            None => {
                if features == Some(POOL3) {
                    let (tool, preprocessing) = (layout.tool(), layout.preprocessing());
                    origins.insert(Role::Features, Origin::Layout { tool, network: INCEPTION, preprocessing });
                }
                if let Some((_, features)) = CLIP_DIMS.into_iter().find(|(d, _)| Some(*d) == clip) {
                    let tool = match features {
                        ClipFeatures::Projected => "clean-fid",
                        ClipFeatures::Unprojected => "consistency models",
                    };
                    let preprocessing =
                        Preprocessing { resampling: Resampling::ClipCrop, scaling: None, in_graph: false };
                    origins.insert(Role::Clip, Origin::Layout { tool, network: CLIP, preprocessing });
                }
            }
        }
        let ddof = meta.as_ref().map_or(PUBLISHED_DDOF, |m| m.ddof);
        let (count, sha256, images) =
            meta.map_or((None, None, None), |m| (Some(m.count), Some(m.images_sha256), m.images));
        Ok(Self {
            features,
            spatial,
            clip,
            clip_names,
            rows,
            manifold,
            origins,
            ddof,
            count,
            sha256,
            images,
            same_images: false,
        })
    }
}

/// Record of how d2o made the statistics in `npz`; `None` for files of other tools.
///
/// # Errors
/// If the record is damaged, or has another version.
pub fn meta(npz: &mut Npz, path: &Path) -> anyhow::Result<Option<StatisticsMeta>> {
    if !npz.contains(META) {
        return Ok(None);
    }
    let value: Value = serde_json::from_slice(&npz.bytes(META)?).with_context(|| format!("`{META}`"))?;
    if value.get("version").and_then(Value::as_u64) != Some(u64::from(VERSION)) {
        return Err(with_hint(
            anyhow::anyhow!(
                "`{}` was made by another version of d2o, which does not record preprocessing",
                path.display()
            ),
            "make it again with `d2o refs make`",
        ));
    }
    Ok(Some(serde_json::from_value(value).with_context(|| format!("`{META}`"))?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[allow(clippy::unwrap_used, reason = "a test")]
    fn covariances_of_a_file_are_rescaled_where_their_images_are_counted() {
        let gaussian = Gaussian { mu: ndarray::Array1::zeros(2), sigma: Array2::eye(2) };
        let fixed = |count| Moments::Fixed { gaussian: gaussian.clone(), ddof: 1, count };
        assert_eq!(fixed(Some(10)).gaussian(0).unwrap().sigma[[0, 0]], 0.9);
        assert_eq!(fixed(Some(10)).gaussian(1).unwrap().sigma[[0, 0]], 1.0);
        assert_eq!(fixed(None).gaussian(0).unwrap().sigma[[0, 0]], 1.0);
    }
}
