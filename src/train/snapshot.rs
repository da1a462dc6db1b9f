//! Snapshots of the EMA and trained weights, and the training state for resuming.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use d2o_converters::checkpoint::TensorSource as _;
use d2o_converters::checkpoint::safetensors::{self, SafetensorsFile};
use d2o_converters::denoiser::NetConfig;
use d2o_converters::weights::Weights;
use tch::{Device, TchError, Tensor};

use super::libtorch::{tensor_of, values_of};

/// Metadata of every snapshot.
#[must_use]
pub fn metadata(config: &NetConfig, networks: &[&str], images: u64) -> BTreeMap<String, String> {
    let entry = |k: &str, v: String| (k.to_owned(), v);
    BTreeMap::from([
        entry("class", config.class().to_owned()),
        entry("init_kwargs", config.init_kwargs().to_string()),
        entry("networks", serde_json::json!(networks).to_string()),
        entry("images", images.to_string()),
        entry("d2o_version", env!("CARGO_PKG_VERSION").to_owned()),
    ])
}

/// A tensor to be written: a handle, not a copy.
#[derive(Debug)]
pub struct Stored {
    /// Name in the file.
    pub name: String,
    /// The tensor.
    pub tensor: Tensor,
}

impl Stored {
    /// The name after the prefix `network.`, if it has this prefix.
    #[must_use]
    pub fn name_below(&self, network: &str) -> Option<&str> {
        self.name.strip_prefix(network)?.strip_prefix('.')
    }

    /// Dimensions, outermost first.
    #[must_use]
    pub fn dims(&self) -> Vec<usize> {
        self.tensor.size().iter().map(|d| usize::try_from(*d).unwrap_or(0)).collect()
    }

    /// Row-major values.
    ///
    /// # Errors
    /// If libtorch fails.
    pub fn values(&self) -> Result<Vec<f32>, TchError> {
        values_of(&self.tensor)
    }
}

/// Writes tensors and metadata; the file is complete or absent.
///
/// # Errors
/// If writing or libtorch fails.
pub fn write(path: &Path, tensors: &[Stored], metadata: &BTreeMap<String, String>) -> anyhow::Result<()> {
    let dims: Vec<Vec<usize>> = tensors.iter().map(Stored::dims).collect();
    let shapes: Vec<(&str, &[usize])> =
        tensors.iter().zip(&dims).map(|(t, dims)| (t.name.as_str(), dims.as_slice())).collect();
    safetensors::write_each(path, &shapes, metadata, |i| anyhow::Ok(tensors[i].values()?))
        .with_context(|| format!("write `{}`", path.display()))
}

/// Path of the snapshot after `images` images in `outdir`: `network-snapshot-NNNNNN` with NNNNNN thousand images. If an
/// earlier snapshot of the same thousand exists, it keeps this name, to which evaluations refer, and the new one is
/// `network-snapshot-NNNNNN_RRR` with the remaining RRR images.
#[must_use]
pub fn snapshot_path(outdir: &Path, images: u64) -> PathBuf {
    let thousands = outdir.join(format!("network-snapshot-{:06}.safetensors", images / 1000));
    let earlier = State::open(&thousands).and_then(|s| s.number("images")).is_ok_and(|there| there < images);
    if earlier {
        outdir.join(format!("network-snapshot-{:06}_{:03}.safetensors", images / 1000, images % 1000))
    } else {
        thousands
    }
}

/// Path of the training state of the run in `outdir`.
#[must_use]
pub fn state_path(outdir: &Path) -> PathBuf {
    outdir.join("training-state.safetensors")
}

/// A state file opened for resuming.
#[derive(Debug)]
pub struct State {
    path: PathBuf,
    file: SafetensorsFile,
}

impl State {
    /// Opens `path`.
    ///
    /// # Errors
    /// If reading fails.
    pub fn open(path: &Path) -> anyhow::Result<Self> {
        Ok(Self { path: path.to_owned(), file: SafetensorsFile::open(path)? })
    }

    /// Path of the file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The weights of `network`. A network built from them also has the constants that are derived from its buffers.
    ///
    /// # Errors
    /// If reading fails.
    pub fn weights(&self, network: &str) -> anyhow::Result<Weights> {
        Ok(Weights::checkpoint(Box::new(SafetensorsFile::open(&self.path)?), &format!("{network}.")))
    }

    /// A metadata entry.
    ///
    /// # Errors
    /// If it is missing.
    pub fn get(&self, key: &str) -> anyhow::Result<&str> {
        let found = self.file.metadata().iter().find(|(k, _)| k == key);
        found.map(|(_, v)| v.as_str()).with_context(|| format!("the training state has no `{key}`"))
    }

    /// Copies tensor `name` into `target`, which must have the same shape.
    ///
    /// # Errors
    /// If it is missing or has another shape.
    pub fn restore(&self, name: &str, target: &mut Tensor) -> anyhow::Result<()> {
        let info = self.file.info(name).with_context(|| format!("the training state has no `{name}`"))?;
        let tensor = tensor_of(&self.file.read_f32(name)?, &info.dims, Device::Cpu)?;
        anyhow::ensure!(
            tensor.size() == target.size(),
            "`{name}` of the training state: expected {:?}, found {:?}",
            target.size(),
            tensor.size()
        );
        let _guard = tch::no_grad_guard();
        target.f_copy_(&tensor)?;
        Ok(())
    }

    /// A metadata entry that is a whole number.
    ///
    /// # Errors
    /// If it is missing or not a number.
    pub fn number(&self, key: &str) -> anyhow::Result<u64> {
        self.get(key)?
            .parse()
            .with_context(|| format!("metadata `{key}` of the training state: expected a whole number"))
    }
}
