//! Training images in memory, drawn in an order that depends on the seed and the position alone.

use d2o_converters::weights::SplitMix64;
use d2o_refs::batch::{self, ImageSource};
use tch::{Device, Kind, Tensor};

/// All images of a dataset as u8 `[N, C, H, W]`, with one-hot labels if the network is conditional.
#[derive(Debug)]
pub struct TrainingSet {
    images: Tensor,
    labels: Option<Vec<i64>>,
    label_dim: usize,
    count: usize,
    seed: u64,
    xflip: bool,
}

/// One batch.
#[derive(Debug)]
pub struct Batch {
    /// `[B, C, H, W]` f32 in [-1, 1].
    pub images: Tensor,
    /// `[B, label_dim]` one-hot, if conditional.
    pub labels: Option<Tensor>,
}

impl TrainingSet {
    /// Reads every image of `source`. `label_dim` is the network's; 0 leaves labels out.
    ///
    /// # Errors
    /// Unreadable images; no labels, or a label out of range, for a conditional network.
    pub fn load(source: &mut dyn ImageSource, label_dim: usize, seed: u64, xflip: bool) -> anyhow::Result<Self> {
        let count = source.len();
        anyhow::ensure!(count > 0, "the dataset is empty");
        let dims = batch::uniform(source)?;
        let pixels = source.read(0..count)?;
        let pixels = pixels.as_standard_layout();
        let flat = pixels.as_slice().ok_or_else(|| anyhow::anyhow!("the images are not contiguous"))?;
        let shape = [count, dims.height, dims.width, dims.channels].map(|d| i64::try_from(d).unwrap_or(i64::MAX));
        let images = Tensor::f_from_slice(flat)?.f_reshape(shape)?.f_permute([0, 3, 1, 2])?.f_contiguous()?;
        let labels = if label_dim == 0 {
            None
        } else {
            let labels = source.labels().ok_or_else(|| {
                anyhow::anyhow!("the network is conditional ({label_dim} classes), the dataset has no labels")
            })?;
            if let Some(bad) = labels.iter().find(|l| usize::try_from(**l).map_or(true, |l| l >= label_dim)) {
                anyhow::bail!("label {bad} of the dataset: expected 0 to {}", label_dim - 1);
            }
            Some(labels.to_vec())
        };
        Ok(Self { images, labels, label_dim, count, seed, xflip })
    }

    /// Number of images.
    #[must_use]
    pub fn len(&self) -> usize {
        self.count
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The `size` images from `position` on in an endless sequence of seeded permutations of the set.
    ///
    /// # Errors
    /// libtorch's own.
    pub fn batch(&self, position: u64, size: usize, device: Device) -> anyhow::Result<Batch> {
        let (mut index, mut flips) = (Vec::with_capacity(size), Vec::with_capacity(size));
        let count = self.count as u64;
        let mut epoch = u64::MAX;
        let mut order = Vec::new();
        for at in position..position + size as u64 {
            if at / count != epoch {
                epoch = at / count;
                order = permutation(self.count, self.seed, epoch);
            }
            let place = usize::try_from(at % count).unwrap_or(0);
            index.push(order[place]);
            let flip = self.xflip && SplitMix64::for_path(self.seed ^ at, "xflip").next_u64() & 1 == 1;
            flips.push(flip);
        }
        let mut images = self.images.f_index_select(0, &Tensor::f_from_slice(&index)?)?;
        if flips.contains(&true) {
            let mask = Tensor::f_from_slice(&flips)?.f_reshape([-1, 1, 1, 1])?;
            images = images.f_flip([3])?.f_where_self(&mask, &images)?;
        }
        let images = images.f_to_device(device)?.f_to_kind(Kind::Float)?.f_div_scalar(127.5)?.f_sub_scalar(1.0)?;
        let labels = match &self.labels {
            None => None,
            Some(labels) => {
                let chosen: Vec<i64> =
                    index.iter().filter_map(|i| usize::try_from(*i).ok()).map(|i| labels[i]).collect();
                let classes = i64::try_from(self.label_dim)?;
                Some(Tensor::f_from_slice(&chosen)?.f_one_hot(classes)?.f_to_kind(Kind::Float)?.f_to_device(device)?)
            }
        };
        Ok(Batch { images, labels })
    }
}

/// Fisher–Yates under a stream of its own for each epoch.
fn permutation(count: usize, seed: u64, epoch: u64) -> Vec<i64> {
    let mut rng = SplitMix64::for_path(seed, &format!("epoch{epoch}"));
    let mut order: Vec<i64> = (0..i64::try_from(count).unwrap_or(i64::MAX)).collect();
    for i in (1..count).rev() {
        let j = usize::try_from(rng.next_u64() % (i as u64 + 1)).unwrap_or(0);
        order.swap(i, j);
    }
    order
}
