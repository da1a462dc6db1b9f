//! Reference statistics in the layouts of existing evaluators: npz with `mu`, `sigma` and further arrays that depend on
//! the layout.

use std::path::Path;

use ndarray::{Array1, Array2};
use serde_json::Value;

use crate::error::{Error, Result};
use crate::npy::Dtype;
use crate::npz::{IMAGES, Npz, NpzWriter};

const FEATURES: &str = "features";
const MANIFOLD: &str = "manifold";
const LABELS: &str = "labels";
/// Name of the array that describes how d2o made the file.
pub const META: &str = "d2o_meta";

/// Layout of a statistics file, by the tools that read it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// EDM, D2O, pytorch-fid: `mu`, `sigma` in f64.
    Edm,
    /// guided-diffusion: `arr_0` images, `mu`, `sigma`, `mu_s`, `sigma_s`.
    Adm,
    /// clean-fid: `mu` in f32, `sigma` in f64.
    Clean,
}

/// Statistics of a reference set.
#[derive(Debug, Clone, PartialEq)]
pub struct ReferenceStats {
    /// Mean of the features, `[D]`.
    pub mu: Array1<f64>,
    /// Covariance, `[D, D]`.
    pub sigma: Array2<f64>,
    /// Mean and covariance of the spatial features (sFID).
    pub spatial: Option<(Array1<f64>, Array2<f64>)>,
    /// Mean and covariance of the CLIP features, in the arrays of consistency models (`mu_clip`, `sigma_clip`).
    pub clip: Option<(Array1<f64>, Array2<f64>)>,
    /// Features, `[N, D]`, if the file contains them (an extension of d2o to any layout).
    pub features: Option<Array2<f32>>,
    /// Features for precision and recall from another network, `[N, D]`, used instead of `features` (an extension of d2o).
    pub manifold: Option<Array2<f32>>,
    /// Class of each row of `features` and `manifold` (an extension of d2o).
    pub labels: Option<Vec<i64>>,
    /// Description of how the file was made (an extension of d2o), or null.
    pub meta: Value,
}

impl ReferenceStats {
    /// Reads the npz at `path`.
    ///
    /// # Errors
    /// `Format` if `mu` or `sigma` is missing, an array has the wrong shape, `labels` does not fit the rows of the
    /// features, a mean or covariance contains a value that is not finite, or the description is not JSON. Those of
    /// [`Npz`].
    pub fn read(path: &Path) -> Result<Self> {
        let mut npz = Npz::open(path)?;
        let (mu, sigma) = gaussian(&mut npz, path, "mu", "sigma")?;
        let mut pair = |mu: &str, sigma: &str| {
            let both = npz.contains(mu) && npz.contains(sigma);
            both.then(|| gaussian(&mut npz, path, mu, sigma)).transpose()
        };
        let (spatial, clip) = (pair("mu_s", "sigma_s")?, pair("mu_clip", "sigma_clip")?);
        let mut matrix = |name: &str| -> Result<Option<Array2<f32>>> {
            if !npz.contains(name) {
                return Ok(None);
            }
            let rows = npz.f32(name)?;
            let shape = format!("{:?}", rows.shape());
            Ok(Some(rows.into_dimensionality().map_err(|_| Error::format(path, name, "two axes", shape))?))
        };
        let (features, manifold) = (matrix(FEATURES)?, matrix(MANIFOLD)?);
        let labels = if npz.contains(LABELS) { Some(npz.i64(LABELS)?) } else { None };
        for rows in [&features, &manifold].into_iter().flatten() {
            let (rows, classes) = (rows.nrows(), labels.as_ref().map(Vec::len));
            if let Some(classes) = classes.filter(|n| *n != rows) {
                return Err(Error::format(path, LABELS, format!("{rows} classes"), classes.to_string()));
            }
        }
        let meta = meta_of(&mut npz, path)?;
        Ok(Self { mu, sigma, spatial, clip, features, manifold, labels, meta })
    }

    /// Writes the statistics in `layout`. Only [`Layout::Adm`] uses `images`, and requires them: all images of the
    /// source are written.
    ///
    /// # Errors
    /// `Format` if [`Layout::Adm`] gets no images; `MixedSizes` or `Empty` for images without one shared size; errors
    /// of reading and writing.
    pub fn write(&self, path: &Path, layout: Layout, images: Option<&mut dyn crate::batch::ImageSource>) -> Result<()> {
        let mut npz = NpzWriter::create(path)?;
        if layout == Layout::Adm {
            let Some(images) = images else {
                return Err(Error::format(path, IMAGES, "images for the adm layout", "none"));
            };
            let dims = crate::batch::uniform(images)?;
            npz.start(IMAGES, Dtype::U8, &[images.len(), dims.height, dims.width, dims.channels])?;
            const CHUNK: usize = 256;
            for range in crate::batch::parts(images, 0..images.len(), CHUNK) {
                let chunk = images.read(range)?;
                npz.raw(chunk.as_standard_layout().as_slice().unwrap_or(&[]))?;
            }
        }
        match layout {
            Layout::Clean => {
                #[allow(clippy::cast_possible_truncation, reason = "clean-fid keeps the mean in f32")]
                let mu = self.mu.mapv(|v| v as f32);
                npz.f32("mu", mu.view().into_dyn())?;
            }
            Layout::Edm | Layout::Adm => npz.f64("mu", self.mu.view().into_dyn())?,
        }
        npz.f64("sigma", self.sigma.view().into_dyn())?;
        for (pair, [mean, cov]) in [(&self.spatial, ["mu_s", "sigma_s"]), (&self.clip, ["mu_clip", "sigma_clip"])] {
            if let Some((mu, sigma)) = pair {
                npz.f64(mean, mu.view().into_dyn())?;
                npz.f64(cov, sigma.view().into_dyn())?;
            }
        }
        for (name, rows) in [(FEATURES, &self.features), (MANIFOLD, &self.manifold)] {
            if let Some(rows) = rows {
                npz.f32(name, rows.view().into_dyn())?;
            }
        }
        if let Some(labels) = &self.labels {
            npz.i64(LABELS, labels)?;
        }
        if !self.meta.is_null() {
            npz.bytes(META, self.meta.to_string().as_bytes())?;
        }
        npz.finish()
    }
}

/// Reads the mean `mu`, f64 `[D]`, and the covariance `sigma`, f64 `[D, D]`, from `npz`, which is the file at `path`.
///
/// # Errors
/// `Format` if one is missing, has the wrong shape, or contains a value that is not finite.
pub fn gaussian(npz: &mut Npz, path: &Path, mu: &str, sigma: &str) -> Result<(Array1<f64>, Array2<f64>)> {
    let mean = npz.f64(mu)?;
    let shape = format!("{:?}", mean.shape());
    let mean: Array1<f64> = mean.into_dimensionality().map_err(|_| Error::format(path, mu, "one axis", shape))?;
    let cov = npz.f64(sigma)?;
    let (d, shape) = (mean.len(), format!("{:?}", cov.shape()));
    let cov: Array2<f64> = cov
        .into_dimensionality()
        .ok()
        .filter(|c: &Array2<f64>| c.dim() == (d, d))
        .ok_or_else(|| Error::format(path, sigma, format!("[{d}, {d}]"), shape))?;
    for (name, bad) in [(mu, mean.iter().any(|v| !v.is_finite())), (sigma, cov.iter().any(|v| !v.is_finite()))] {
        if bad {
            return Err(Error::format(path, name, "finite numbers", "NaN or infinity"));
        }
    }
    Ok((mean, cov))
}

/// Description of how the reference at `path` was made, or null.
///
/// # Errors
/// `Format` if the description is not JSON; those of [`Npz::open`] and [`Npz::bytes`].
pub fn meta(path: &Path) -> Result<Value> {
    meta_of(&mut Npz::open(path)?, path)
}

fn meta_of(npz: &mut Npz, path: &Path) -> Result<Value> {
    if !npz.contains(META) {
        return Ok(Value::Null);
    }
    let text = npz.bytes(META)?;
    serde_json::from_slice(&text).map_err(|e| Error::format(path, META, "JSON", e.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stats() -> ReferenceStats {
        ReferenceStats {
            mu: Array1::linspace(0.1, 0.5, 3),
            sigma: Array2::eye(3),
            spatial: None,
            clip: Some((Array1::zeros(2), Array2::eye(2))),
            labels: Some(vec![0, 1, 0, 7]),
            features: Some(Array2::from_shape_fn((4, 3), |(i, j)| i as f32 - j as f32)),
            manifold: Some(Array2::from_shape_fn((4, 2), |(i, j)| i as f32 * j as f32)),
            meta: serde_json::json!({"extractor": "x"}),
        }
    }

    #[test]
    fn layouts_round_trip() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("r.npz");
        stats().write(&path, Layout::Edm, None).unwrap();
        assert_eq!(ReferenceStats::read(&path).unwrap(), stats());
        stats().write(&path, Layout::Clean, None).unwrap();
        let back = ReferenceStats::read(&path).unwrap();
        assert!((&back.mu - &stats().mu).iter().all(|d| d.abs() < 1e-7));
    }

    #[test]
    fn adm_layout_carries_images() {
        let dir = tempfile::tempdir().unwrap();
        let zip = dir.path().join("d.zip");
        let mut writer = crate::image_zip::DatasetWriter::create(&zip).unwrap();
        writer.append(&ndarray::Array4::from_elem((5, 2, 2, 3), 9), None).unwrap();
        writer.finish().unwrap();
        let path = dir.path().join("r.npz");
        let mut images = crate::batch::open(&zip).unwrap();
        stats().write(&path, Layout::Adm, Some(images.as_mut())).unwrap();
        assert_eq!(crate::batch::open(&path).unwrap().len(), 5);
        assert!(stats().write(&path, Layout::Adm, None).unwrap_err().to_string().contains("images"));
    }

    #[test]
    fn bad_statistics_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("r.npz");
        let mut bad = stats();
        bad.sigma[[1, 1]] = f64::NAN;
        bad.write(&path, Layout::Edm, None).unwrap();
        assert!(ReferenceStats::read(&path).unwrap_err().to_string().contains("sigma: expected finite numbers"));
        bad.sigma = Array2::eye(2);
        bad.write(&path, Layout::Edm, None).unwrap();
        assert!(ReferenceStats::read(&path).unwrap_err().to_string().contains("[3, 3]"));
    }
}
