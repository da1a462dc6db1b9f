//! Training images in memory.

use anyhow::Context as _;
use d2o_converters::denoiser::NetConfig;
use d2o_evaluations::numpy_random::RandomState;
use d2o_refs::batch::{self, ContentHash, ImageSource};
use ndarray::{ArrayView3, Axis};
use tch::{Device, Kind, Tensor};

use super::libtorch::Value;
use crate::engine::cuda_devices;

/// Images that are decoded at a time.
const CHUNK: usize = 256;

/// All images of a dataset as u8 `[N, C, H, W]`, with their classes if the network is conditional.
#[derive(Debug)]
pub struct TrainingSet {
    images: Tensor,
    classes: Option<(Vec<i64>, i64)>,
    count: u32,
    xflip: bool,
    grey: bool,
    content: String,
}

/// Properties of the images and labels that a network requires.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// Colour channels: 3, or 1 for grey images.
    pub channels: usize,
    /// Number of classes; 0 ignores labels.
    pub label_dim: usize,
}

impl Shape {
    /// Requirements of `net`.
    #[must_use]
    pub fn of(net: &NetConfig) -> Self {
        Self { channels: net.img_channels, label_dim: net.label_dim }
    }
}

/// One batch.
#[derive(Debug)]
pub struct Batch {
    /// `[B, C, H, W]` f32 in [-1, 1].
    pub images: Tensor,
    /// `[B, label_dim]` one-hot, if conditional.
    pub labels: Option<Tensor>,
}

impl Batch {
    /// The labels as input of a network.
    #[must_use]
    pub fn label_input(&self) -> Option<Value> {
        self.labels.as_ref().map(|labels| Value(labels.shallow_clone()))
    }

    /// The batch with element type `kind`.
    #[must_use]
    pub fn in_kind(self, kind: Kind) -> Self {
        Self { images: self.images.to_kind(kind), labels: self.labels.map(|l| l.to_kind(kind)) }
    }
}

impl TrainingSet {
    /// Reads images of `source` into one tensor, in the order of the source: all, or `max_size` of them, chosen at
    /// random as in the original datasets. With `xflip` the set also contains the mirror image of each image, after all
    /// images, as in the original datasets.
    ///
    /// # Errors
    /// If an image is unreadable, the sizes of images differ, an image is coloured and the network has one channel, or
    /// the network is conditional and labels are missing or out of range.
    pub fn load(
        source: &mut dyn ImageSource,
        Shape { channels, label_dim }: Shape,
        max_size: Option<u32>,
        xflip: bool,
    ) -> anyhow::Result<Self> {
        anyhow::ensure!(!source.is_empty(), "the dataset is empty");
        let chosen = chosen(source.len(), max_size);
        let images = chosen.len();
        let copies = if xflip { 2 } else { 1 };
        let count = images.checked_mul(copies).and_then(|n| u32::try_from(n).ok());
        let count = count.with_context(|| format!("{images} images: expected at most 2^32"))?;
        let classes = (label_dim > 0).then(|| classes(source, label_dim, &chosen)).transpose()?;
        let dims = batch::uniform(source)?;
        anyhow::ensure!(
            matches!(channels, 1 | 3),
            "the network generates images of {channels} channels; expected 1 or 3"
        );
        let shape = [images, channels, dims.height, dims.width].map(|d| i64::try_from(d).unwrap_or(i64::MAX));
        let tensor = Tensor::f_empty(shape, (Kind::Uint8, Device::Cpu))?;
        let mut hash = ContentHash::new(images, dims);
        let (mut start, mut grey) = (0, true);
        for range in batch::parts(source, 0..source.len(), CHUNK) {
            let wanted: Vec<usize> = chosen.iter().filter(|i| range.contains(i)).map(|i| i - range.start).collect();
            if wanted.is_empty() {
                continue;
            }
            let first = range.start;
            let pixels = source.read(range)?;
            let pixels = if wanted.len() == pixels.dim().0 { pixels } else { pixels.select(Axis(0), &wanted) };
            let pixels = pixels.as_standard_layout();
            hash.update(&batch::digests(&pixels.view()));
            if let Some(coloured) = grey.then(|| pixels.outer_iter().position(|image| !is_grey(&image))).flatten() {
                let name = source.name(first + wanted[coloured]);
                anyhow::ensure!(
                    channels == 3,
                    "the network generates greyscale images, but {name} of the dataset is a colour image"
                );
                grey = false;
            }
            let flat = pixels.as_slice().context("the images are not contiguous")?;
            let (n, h, w, c) = pixels.dim();
            let part =
                Tensor::f_from_slice(flat)?.f_reshape([n, h, w, c].map(|d| i64::try_from(d).unwrap_or(i64::MAX)))?;
            let part = part.f_narrow(3, 0, shape[1])?;
            tensor.f_narrow(0, start, part.size()[0])?.f_copy_(&part.f_permute([0, 3, 1, 2])?)?;
            start += part.size()[0];
        }
        source.verify()?;
        Ok(Self { images: tensor, classes, count, xflip, grey, content: hash.finish() })
    }

    /// Moves the images to `device`, unless they take more than a quarter of its memory. Does nothing for the CPU.
    ///
    /// # Errors
    /// If libtorch fails.
    pub fn place(&mut self, device: Device) -> anyhow::Result<()> {
        const SHARE: u64 = 4;
        let Device::Cuda(number) = device else { return Ok(()) };
        let memory = cuda_devices().get(number).map_or(0, |d| d.memory);
        if self.images.numel() as u64 <= memory / SHARE {
            self.images = self.images.f_to_device(device)?;
        }
        Ok(())
    }

    /// Whether all images are grey.
    #[must_use]
    pub fn is_grey(&self) -> bool {
        self.grey
    }

    /// Number of images, including mirror images.
    #[must_use]
    pub fn len(&self) -> u32 {
        self.count
    }

    /// Whether there are no images.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// SHA-256 of the images without mirror images, as computed by [`batch::content_sha256`].
    #[must_use]
    pub fn content_sha256(&self) -> &str {
        &self.content
    }

    /// The images at `indices`, each below [`TrainingSet::len`], on `device`.
    ///
    /// # Errors
    /// If libtorch fails.
    pub fn batch(&self, indices: &[u32], device: Device) -> anyhow::Result<Batch> {
        let stored = i64::from(self.count) / if self.xflip { 2 } else { 1 };
        let index: Vec<i64> = indices.iter().map(|i| i64::from(*i) % stored).collect();
        let mirrored: Vec<bool> = indices.iter().map(|i| i64::from(*i) >= stored).collect();
        let here = self.images.device();
        let mut images = self.images.f_index_select(0, &Tensor::f_from_slice(&index)?.f_to_device(here)?)?;
        if mirrored.contains(&true) {
            let mask = Tensor::f_from_slice(&mirrored)?.f_reshape([-1, 1, 1, 1])?.f_to_device(here)?;
            images = images.f_flip([3])?.f_where_self(&mask, &images)?;
        }
        if device.is_cuda() && here == Device::Cpu {
            // The copy runs while the device computes.
            images = images.f_pin_memory(device)?.f_to_device_(device, Kind::Uint8, true, false)?;
        }
        let images = images.f_to_device(device)?.f_to_kind(Kind::Float)?.f_div_scalar(127.5)?.f_sub_scalar(1.0)?;
        let labels = match &self.classes {
            None => None,
            Some((classes, label_dim)) => {
                let chosen: Vec<i64> =
                    index.iter().filter_map(|i| classes.get(usize::try_from(*i).ok()?)).copied().collect();
                Some(
                    Tensor::f_from_slice(&chosen)?
                        .f_one_hot(*label_dim)?
                        .f_to_kind(Kind::Float)?
                        .f_to_device(device)?,
                )
            }
        };
        Ok(Batch { images, labels })
    }
}

/// Whether the channels of `image [H, W, C]` are equal.
fn is_grey(image: &ArrayView3<'_, u8>) -> bool {
    image.lanes(Axis(2)).into_iter().all(|pixel| pixel.iter().all(|v| *v == pixel[0]))
}

/// Sorted indices of `max_size` random images of `count`, or of all.
fn chosen(count: usize, max_size: Option<u32>) -> Vec<usize> {
    let most = max_size.map_or(count, |n| n as usize);
    if most >= count {
        return (0..count).collect();
    }
    // The originals use seed 0 for this choice.
    let mut chosen = RandomState::new(0).choice(count, most);
    chosen.sort_unstable();
    chosen
}

/// Classes of the images at `chosen` of `source`, each below `label_dim`; and `label_dim`.
fn classes(source: &dyn ImageSource, label_dim: usize, chosen: &[usize]) -> anyhow::Result<(Vec<i64>, i64)> {
    let labels = source.labels().with_context(|| {
        let why = source.label_problem().map_or(String::new(), |p| format!(": {p}"));
        format!("the network is conditional ({label_dim} classes), but the dataset has no labels{why}")
    })?;
    if let Some(bad) = labels.iter().find(|l| usize::try_from(**l).map_or(true, |l| l >= label_dim)) {
        anyhow::bail!("label {bad} of the dataset: expected 0 to {}", label_dim - 1);
    }
    Ok((chosen.iter().map(|i| labels[*i]).collect(), i64::try_from(label_dim)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mirror_images_follow_the_images() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.npz");
        let mut npz = d2o_refs::npz::NpzWriter::create(&path).unwrap();
        npz.start("arr_0", d2o_refs::npy::Dtype::U8, &[2, 1, 2, 3]).unwrap();
        npz.raw(&[0, 0, 0, 255, 255, 255, 51, 51, 51, 102, 102, 102]).unwrap();
        npz.finish().unwrap();
        let load = |xflip| {
            let shape = Shape { channels: 3, label_dim: 0 };
            TrainingSet::load(batch::open(&path).unwrap().as_mut(), shape, None, xflip).unwrap()
        };
        let plain = load(false);
        assert_eq!((plain.len(), load(true).len(), plain.is_grey()), (2, 4, true));
        let mut source = batch::open(&path).unwrap();
        assert_eq!(plain.content_sha256(), batch::content_sha256(source.as_mut()).unwrap());
        let batch = load(true).batch(&[1, 3, 2], Device::Cpu).unwrap();
        let first = |i: i64| [0, 1].map(|x| batch.images.double_value(&[i, 0, 0, x]));
        let close = |a: [f64; 2], b: [f64; 2]| (a[0] - b[0]).abs() < 1e-6 && (a[1] - b[1]).abs() < 1e-6;
        assert!(close(first(0), [-0.6, -0.2]) && close(first(1), [-0.2, -0.6]) && close(first(2), [1.0, -1.0]));
        assert!(batch.labels.is_none());
    }

    #[test]
    fn a_coloured_image_among_grey_ones_is_named() {
        let dir = tempfile::tempdir().unwrap();
        for (i, green) in [7, 7, 8].into_iter().enumerate() {
            let image = image::RgbImage::from_pixel(2, 2, image::Rgb([7, green, 7]));
            image.save(dir.path().join(format!("{i}.png"))).unwrap();
        }
        let load = |channels| {
            let shape = Shape { channels, label_dim: 0 };
            TrainingSet::load(batch::open(dir.path()).unwrap().as_mut(), shape, None, false)
        };
        let error = load(1).unwrap_err().to_string();
        assert!(error.contains("2.png") && error.contains("a colour image"), "{error}");
        assert!(!load(3).unwrap().is_grey());
        fs_err::remove_file(dir.path().join("2.png")).unwrap();
        assert!(load(3).unwrap().is_grey());
    }

    // NumPy 2.4.6: RandomState(0).shuffle(arange(10)), the first four, sorted.
    #[test]
    fn a_part_of_the_images_is_the_originals() {
        assert_eq!(chosen(10, Some(4)), [2, 4, 8, 9]);
        assert_eq!(chosen(3, Some(3)), [0, 1, 2]);
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.npz");
        let mut npz = d2o_refs::npz::NpzWriter::create(&path).unwrap();
        npz.start("arr_0", d2o_refs::npy::Dtype::U8, &[10, 1, 1, 3]).unwrap();
        npz.raw(&(0..30).map(|i| i / 3).collect::<Vec<u8>>()).unwrap();
        npz.i64("arr_1", &[0, 1, 2, 3, 4, 5, 6, 7, 8, 9]).unwrap();
        npz.finish().unwrap();
        let shape = Shape { channels: 1, label_dim: 10 };
        let set = TrainingSet::load(batch::open(&path).unwrap().as_mut(), shape, Some(4), true).unwrap();
        assert_eq!(set.len(), 8);
        assert_eq!(set.batch(&[0], Device::Cpu).unwrap().images.size(), [1, 1, 1, 1]);
        let batch = set.batch(&[0, 1, 2, 3, 7], Device::Cpu).unwrap();
        let bytes = Vec::<f32>::try_from(&((batch.images.select(1, 0).reshape([-1]) + 1.0) * 127.5).round()).unwrap();
        assert_eq!(bytes, [2.0, 4.0, 8.0, 9.0, 9.0]);
        let classes = Vec::<i64>::try_from(&batch.labels.unwrap().argmax(1, false)).unwrap();
        assert_eq!(classes, [2, 4, 8, 9, 9]);
    }
}
