//! Random inputs for a seed: a latent, a class, and the noise of a stochastic sampler.

use std::collections::HashMap;
use std::path::Path;

use anyhow::Context as _;
use d2o_refs::npy::Dtype;
use d2o_refs::npz::{Npz, NpzWriter};
use ndarray::{ArrayD, ArrayViewD, Axis};

use super::rng::{Family, Streams};

/// Names of the arrays of a latents file.
const LATENTS: &str = "latents";
const LABELS: &str = "labels";
pub(super) const SEEDS: &str = "seeds";

/// Starting points of a batch.
#[derive(Debug)]
pub struct Drawn {
    /// `[N, C, H, W]` or `[N, Z]` of unit variance.
    pub latents: ArrayD<f32>,
    /// Classes, if the generator is conditional.
    pub labels: Option<Vec<usize>>,
    /// Generator of each image, in the state from which its sampler continues to draw.
    pub noise: Streams,
}

/// Rules for drawing starting points.
#[derive(Debug)]
pub struct LatentSource {
    /// Channels, height, width of an image; or the length of a vector.
    pub dims: Vec<usize>,
    /// Number of classes; 0 if unconditional.
    pub classes: usize,
    /// Class of every image, if one is given.
    pub class: Option<usize>,
    /// Random number generator.
    pub rng: Family,
    /// Whether the noise of the sampler directly follows the latent in the stream, without the class in between:
    /// consistency_models draws classes from a separate stream.
    pub noise_first: bool,
    /// Latents and classes from a file.
    pub given: Option<Given>,
}

impl LatentSource {
    /// Draws starting points for `seeds`. The generator of a seed draws the class after the latent, even if another
    /// class is given.
    ///
    /// # Errors
    /// If the given latents lack a seed.
    pub fn draw(&self, seeds: &[u64]) -> anyhow::Result<Drawn> {
        let mut noise = self.rng.streams(seeds);
        let shape = [&[seeds.len()], self.dims.as_slice()].concat();
        let mut latents = ArrayD::from_shape_vec(shape, noise.randn(self.dims.iter().product()))?;
        let bound = u32::try_from(self.classes)?;
        let mut labels = (bound > 0).then(|| {
            let drawn = if self.noise_first { noise.clone().randint(bound) } else { noise.randint(bound) };
            drawn.into_iter().map(|l| l as usize).collect::<Vec<_>>()
        });
        if let Some(given) = &self.given {
            for (i, seed) in seeds.iter().enumerate() {
                let row = *given.rows.get(seed).with_context(|| format!("no latent for seed {seed}"))?;
                latents.index_axis_mut(Axis(0), i).assign(&given.latents.index_axis(Axis(0), row));
                if let (Some(labels), Some(chosen)) = (&mut labels, &given.labels) {
                    labels[i] = chosen[row];
                }
            }
        }
        if let (Some(labels), Some(class)) = (&mut labels, self.class) {
            labels.fill(class);
        }
        Ok(Drawn { latents, labels, noise })
    }
}

/// Latents and classes of a file.
#[derive(Debug)]
pub struct Given {
    latents: ArrayD<f32>,
    labels: Option<Vec<usize>>,
    seeds: Vec<u64>,
    rows: HashMap<u64, usize>,
}

impl Given {
    /// Reads `path`: `latents` f32 `[N, C, H, W]` or `[N, Z]`, `labels [N]` and `seeds [N]` if present. Without
    /// `seeds`, the rows belong to the seeds `asked` in turn, or to 0, 1, ….
    ///
    /// # Errors
    /// If the file does not hold latents of `dims`, a class is not below `classes`, or there are fewer latents than
    /// seeds `asked`.
    pub fn read(path: &Path, dims: &[usize], classes: usize, asked: Option<&[u64]>) -> anyhow::Result<Self> {
        let describe = || format!("cannot use the latents in `{}`", path.display());
        Self::parse(path, dims, classes, asked).with_context(describe)
    }

    fn parse(path: &Path, dims: &[usize], classes: usize, asked: Option<&[u64]>) -> anyhow::Result<Self> {
        let mut npz = Npz::open(path)?;
        let latents = npz.f32(LATENTS)?;
        let shape = latents.shape();
        let wanted = dims.iter().map(usize::to_string).collect::<Vec<_>>().join(", ");
        let fits = shape.get(1..) == Some(dims);
        anyhow::ensure!(fits, "`{LATENTS}`: expected [N, {wanted}], found {shape:?}");
        let count = shape[0];
        let list = |npz: &mut Npz, name: &str| -> anyhow::Result<Option<Vec<u64>>> {
            if !npz.contains(name) {
                return Ok(None);
            }
            let values = npz.u64(name)?;
            anyhow::ensure!(values.len() == count, "`{name}`: expected {count} values, found {}", values.len());
            Ok(Some(values))
        };
        let labels = match list(&mut npz, LABELS)?.filter(|_| classes > 0) {
            Some(labels) => Some(labels.into_iter().map(usize::try_from).collect::<Result<Vec<_>, _>>()?),
            None => None,
        };
        if let Some(bad) = labels.iter().flatten().find(|l| **l >= classes) {
            anyhow::bail!("`{LABELS}`: expected classes below {classes}, found {bad}");
        }
        let seeds = match (list(&mut npz, SEEDS)?, asked) {
            (Some(seeds), _) => seeds,
            (None, Some(asked)) => {
                anyhow::ensure!(asked.len() <= count, "{} seeds, but only {count} latents", asked.len());
                asked.to_vec()
            }
            (None, None) => (0..count as u64).collect(),
        };
        let rows = seeds.iter().enumerate().map(|(row, seed)| (*seed, row)).collect();
        Ok(Self { latents, labels, seeds, rows })
    }

    /// Seeds in the order of the file.
    #[must_use]
    pub fn seeds(&self) -> &[u64] {
        &self.seeds
    }
}

/// `seeds` as i64, the default integer type of NumPy; `None` if a seed exceeds it.
pub(super) fn signed(seeds: &[u64]) -> Option<Vec<i64>> {
    seeds.iter().map(|s| i64::try_from(*s).ok()).collect()
}

/// Writes `seeds` as i64, or as u64 if one exceeds i64.
///
/// # Errors
/// If writing fails.
pub fn write_seeds(npz: &mut NpzWriter, seeds: &[u64]) -> anyhow::Result<()> {
    match signed(seeds) {
        Some(signed) => npz.i64(SEEDS, &signed)?,
        None => npz.u64(SEEDS, seeds)?,
    }
    Ok(())
}

/// Writes latents, labels and seeds, batch by batch.
pub struct LatentsWriter {
    npz: NpzWriter,
    labels: Vec<i64>,
}

impl LatentsWriter {
    /// Starts writing `path`, with `len` latents of shape `dims`. The file appears when it is finished.
    ///
    /// # Errors
    /// If writing fails.
    pub fn create(path: &Path, len: usize, dims: &[usize]) -> anyhow::Result<Self> {
        let mut npz = NpzWriter::create(path)?;
        npz.start(LATENTS, Dtype::F32, &[&[len], dims].concat())?;
        Ok(Self { npz, labels: Vec::new() })
    }

    /// Appends the latents of the next seeds, and their classes if there are any.
    ///
    /// # Errors
    /// If writing fails.
    pub fn append(&mut self, latents: ArrayViewD<'_, f32>, labels: Option<&[usize]>) -> anyhow::Result<()> {
        let bytes: Vec<u8> = latents.iter().flat_map(|v| v.to_le_bytes()).collect();
        self.labels.extend(labels.unwrap_or(&[]).iter().map(|l| *l as i64));
        Ok(self.npz.raw(&bytes)?)
    }

    /// Adds classes and seeds, and moves the file to its path.
    ///
    /// # Errors
    /// If writing fails.
    pub fn finish(mut self, seeds: &[u64]) -> anyhow::Result<()> {
        if !self.labels.is_empty() {
            self.npz.i64(LABELS, &self.labels)?;
        }
        write_seeds(&mut self.npz, seeds)?;
        Ok(self.npz.finish()?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seeds_of_64_bits_come_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("l.npz");
        for seeds in [[3, 1 << 62], [u64::MAX, 1 << 63]] {
            let mut writer = LatentsWriter::create(&path, 2, &[1, 2, 2]).unwrap();
            writer.append(ArrayD::zeros(vec![2, 1, 2, 2]).view(), None).unwrap();
            writer.finish(&seeds).unwrap();
            assert_eq!(Given::read(&path, &[1, 2, 2], 0, None).unwrap().seeds(), seeds);
        }
    }
}
