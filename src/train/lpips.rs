//! LPIPS with VGG16 (Zhang et al. 2018), as the package `lpips` 0.1.4 computes it.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use d2o_converters::Checkpoint;
use d2o_converters::backend::{Backend as _, Ops as _};
use d2o_converters::error::Result as NetResult;
use d2o_converters::extractors::conv_trunk::{ConvTrunk, Statistics};
use d2o_converters::extractors::vgg16::{VggConfig, trunk};
use d2o_converters::registry::Extractor;
use d2o_converters::weights::{Init, Scope, Weights};
use d2o_refs::batch::container_sha256;
use tch::{TchError, Tensor};

use super::discriminator::ensure_undamaged;
use super::libtorch::{LibTorch, Value};

/// Added to the norm of the features of a pixel.
const EPS: f64 = 1e-10;
/// Mean and standard deviation for the normalisation of images in [−1, 1].
const SHIFT: [f64; 3] = [-0.030, -0.088, -0.188];
const SCALE: [f64; 3] = [0.458, 0.448, 0.450];

/// File name and SHA-256 of the linear weights, `lpips/weights/v0.1/vgg.pth` in the wheel
/// `lpips-0.1.4-py3-none-any.whl`. The file in torchmetrics 1.9.0 is the same.
const LINEAR: (&str, &str) = ("vgg.pth", "a78928a0af1e5f0fcb1f3b9e8f8c3a2a5a3de244d830ad5c1feddc79b8432868");

/// LPIPS: VGG16 without batch norms, and the linear weights of its channels.
#[derive(Debug)]
pub struct Lpips {
    minus_shift: Value,
    scale: Value,
    trunk: ConvTrunk<Value>,
    /// `[1, C, 1, 1]` for each tap.
    linear: Vec<Value>,
}

impl Lpips {
    /// Loads the weights of VGG16 and the linear weights from two files, in any order, to the device and with the
    /// element type of `like`.
    ///
    /// # Errors
    /// If a file is missing, unreadable, damaged, or contains something else.
    pub fn load(like: &LibTorch, paths: &[PathBuf]) -> anyhow::Result<Self> {
        let (mut vgg, mut linear) = (None, None);
        for path in paths {
            let describe = || format!("cannot use `{}` for LPIPS", path.display());
            let (which, weights) = opened(path).with_context(describe)?;
            let place = if which == Part::Vgg16 { &mut vgg } else { &mut linear };
            let twice = place.replace(weights).is_some();
            anyhow::ensure!(!twice, "`{}`: a second file of {} for LPIPS", path.display(), which.name());
        }
        let (Some(vgg), Some(linear)) = (vgg, linear) else {
            anyhow::bail!(
                "distillation requires LPIPS: pass `vgg16-397923af.pth` of torchvision (https://download.pytorch.org/models/vgg16-397923af.pth) and `vgg.pth` of the \
                 Python package `lpips` 0.1.4 (`lpips/weights/v0.1/vgg.pth` in its wheel), each with --lpips-weights"
            );
        };
        Ok(Self::build(like, vgg, linear)?)
    }

    /// Takes VGG16's convolutions from `vgg` and the linear weights from `linear`.
    ///
    /// # Errors
    /// The errors of [`Weights::take`].
    pub fn build(like: &LibTorch, vgg: Weights, linear: Weights) -> NetResult<Self> {
        let (root, config) = (Scope::root(), VggConfig::torchvision(false));
        let backend = |weights| LibTorch::with_weights(weights, like.device()).in_kind(like.kind()).frozen();
        let mut b = backend(vgg);
        let blocks = trunk(&root, &config);
        let channels: Vec<usize> = blocks.iter().filter_map(|b| Some(b.layers.last()?.outputs)).collect();
        let trunk = ConvTrunk::build(&mut b, blocks, &Statistics::new())?;
        let mut image = |name, values: [f64; 3]| b.constant(&root, name, &[1, 3, 1, 1], values.to_vec());
        let (minus_shift, scale) = (image("minus_shift", SHIFT.map(|s| -s))?, image("scale", SCALE)?);
        b.finish()?;
        let mut b = backend(linear);
        let weight = |(i, channels): (usize, usize)| {
            let scope = root.child(format!("lin{i}")).child("model").child(1);
            b.param(&scope, "weight", &[1, channels, 1, 1], &Init::torch_default(channels))
        };
        let linear = channels.into_iter().enumerate().map(weight).collect::<NetResult<_>>()?;
        b.finish()?;
        Ok(Self { minus_shift, scale, trunk, linear })
    }

    /// Distances `[B, 1, 1, 1]` between the images `x` and `y`, `[B, 3, H, W]` in [-1, 1]. Features are normalised at
    /// each pixel. Their weighted squared differences are averaged over pixels and summed over the taps.
    ///
    /// # Errors
    /// `Engine` if libtorch fails.
    pub fn distances(&self, b: &mut LibTorch, x: &Tensor, y: &Tensor) -> NetResult<Tensor> {
        let [x, y] = [self.taps(b, x)?, self.taps(b, y)?];
        let mut sum: Option<Tensor> = None;
        for ((x, y), weight) in x.iter().zip(&y).zip(&self.linear) {
            let distance = b.ok("lpips", distance(&x.0, &y.0, &weight.0))?;
            sum = Some(match sum {
                Some(sum) => sum + distance,
                None => distance,
            });
        }
        Ok(sum.unwrap_or_else(|| x[0].0.zeros_like()))
    }

    fn taps(&self, b: &mut LibTorch, x: &Tensor) -> NetResult<Vec<Value>> {
        let x = b.add(&Value(x.shallow_clone()), &self.minus_shift)?;
        let x = b.div(&x, &self.scale)?;
        self.trunk.taps(b, &x)
    }
}

/// Weighted squared difference `[B, 1, 1, 1]` of the maps `x` and `y`, `[B, C, H, W]`.
fn distance(x: &Tensor, y: &Tensor, weight: &Tensor) -> Result<Tensor, TchError> {
    let unit = |f: &Tensor| {
        let norm = f.f_square()?.f_sum_dim_intlist([1_i64].as_slice(), true, f.kind())?.f_sqrt()?;
        f.f_div(&norm.f_add_scalar(EPS)?)
    };
    let square = unit(x)?.f_sub(&unit(y)?)?.f_square()?;
    let none: Option<&Tensor> = None;
    let weighted = square.f_conv2d(weight, none, [1, 1], [0, 0], [1, 1], 1)?;
    weighted.f_mean_dim([2_i64, 3].as_slice(), true, weighted.kind())
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    Vgg16,
    Linear,
}

impl Part {
    fn name(self) -> &'static str {
        match self {
            Self::Vgg16 => "VGG16",
            Self::Linear => "linear weights",
        }
    }
}

/// The part of LPIPS in the file at `path`, recognised by its tensors, and its weights.
fn opened(path: &Path) -> anyhow::Result<(Part, Weights)> {
    let checkpoint = Checkpoint::open(path)?;
    let network = checkpoint.network(None)?;
    let vgg16 = VggConfig::torchvision(false);
    if matches!(network.architecture.extractor(), Some(Extractor::Vgg16(found)) if found.has_trunk_of(&vgg16)) {
        ensure_undamaged(path)?;
        let classifier = network.tensors.names().into_iter().filter(|n| n.starts_with("classifier."));
        return Ok((Part::Vgg16, network.weights().allowing_unused(classifier)));
    }
    let is_linear_weight = |name: &str| network.tensors.info(name).is_some_and(|t| t.dims == [1, 64, 1, 1]);
    anyhow::ensure!(
        is_linear_weight("lin0.model.1.weight"),
        "expected VGG16 without batch norms, or LPIPS's linear weights for it; found {}",
        network.architecture.name()
    );
    if path.file_name().is_some_and(|name| name == LINEAR.0) {
        let found = container_sha256(path)?;
        anyhow::ensure!(
            found == LINEAR.1,
            "the file is corrupt or not `{}` of lpips: its SHA-256 {found} differs",
            LINEAR.0
        );
    }
    Ok((Part::Linear, network.weights()))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use d2o_converters::checkpoint::safetensors::{self, Tensor as Stored};
    use d2o_converters::extractors::vgg16::Vgg16;
    use d2o_converters::onnx::OnnxBackend;
    use fs_err as fs;
    use tch::{Device, Kind};

    use super::*;

    #[test]
    fn distances_are_weighted_and_normalised() {
        let like = LibTorch::running(Device::Cpu, false).in_kind(Kind::Double);
        let lpips = Lpips::build(&like, Weights::initialised(1), Weights::initialised(2)).unwrap();
        let mut b = LibTorch::running(Device::Cpu, false).in_kind(Kind::Double);
        let images = |seed| {
            tch::manual_seed(seed);
            Tensor::rand([2, 3, 32, 32], (Kind::Double, Device::Cpu)) * 2.0 - 1.0
        };
        let (x, y) = (images(1), images(2));
        let found = lpips.distances(&mut b, &x, &y).unwrap();
        assert_eq!(found.size(), [2, 1, 1, 1]);
        assert_eq!(lpips.distances(&mut b, &x, &x).unwrap().abs().max().double_value(&[]), 0.0);
        // (3, 4) and (0, 2) are (0.6, 0.8) and (0, 1) after normalisation; a pixel of zeros stays zero.
        let map = |a: f64, b: f64| Tensor::from_slice(&[a, 0.0, b, 0.0]).reshape([1, 2, 1, 2]);
        let weight = Tensor::from_slice(&[2.0, 3.0]).reshape([1, 2, 1, 1]);
        let found = distance(&map(3.0, 4.0), &map(0.0, 2.0), &weight).unwrap().double_value(&[0, 0, 0, 0]);
        assert!((found - (2.0 * 0.36 + 3.0 * 0.04) / 2.0).abs() < 1e-9, "{found}");
    }

    #[test]
    fn files_are_recognised_by_their_tensors_and_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let write = |name: &str, tensors: Vec<(String, Vec<usize>)>| {
            let stored = |(name, dims): (String, Vec<usize>)| {
                let values = vec![1.0; dims.iter().product()];
                Stored { name, dims, values }
            };
            let tensors: Vec<Stored> = tensors.into_iter().map(stored).collect();
            safetensors::write(&at(name), &tensors, &BTreeMap::new()).unwrap();
        };
        let linear = [64, 128, 256, 512, 512].into_iter().enumerate();
        write(
            "linear.safetensors",
            linear.map(|(i, c)| (format!("lin{i}.model.1.weight"), vec![1, c, 1, 1])).collect(),
        );
        for batch_norm in [false, true] {
            let mut b = OnnxBackend::new("names", Weights::initialised(1));
            // The classifier is not used.
            let config = VggConfig { hidden: [1, 1], classes: 1, ..VggConfig::torchvision(batch_norm) };
            Vgg16::build(&mut b, &Scope::root(), &config).unwrap();
            let taken = b.weights().taken().map(|(name, dims)| (name.to_owned(), dims.to_vec()));
            write(if batch_norm { "bn.safetensors" } else { "vgg.safetensors" }, taken.collect());
        }
        let load = |names: &[&str]| {
            let like = LibTorch::running(Device::Cpu, false);
            Lpips::load(&like, &names.iter().map(|n| at(n)).collect::<Vec<_>>())
        };
        load(&["linear.safetensors", "vgg.safetensors"]).unwrap();
        let refused = |names: &[&str]| format!("{:#}", load(names).unwrap_err());
        for missing in [&[][..], &["vgg.safetensors"], &["linear.safetensors"]] {
            let text = refused(missing);
            for part in ["vgg16-397923af.pth", "https://download.pytorch.org/models/", "vgg.pth", "--lpips-weights"] {
                assert!(text.contains(part), "{part}: {text}");
            }
        }
        assert!(refused(&["vgg.safetensors", "vgg.safetensors"]).contains("a second file of VGG16"));
        let text = refused(&["bn.safetensors"]);
        assert!(text.contains("expected VGG16 without batch norms") && text.contains("found vgg16-bn"), "{text}");
        for (from, to) in [("linear.safetensors", "vgg.pth"), ("vgg.safetensors", "vgg16-397923af.pth")] {
            fs::copy(at(from), at(to)).unwrap();
            let text = refused(&[to]);
            assert!(text.contains("is corrupt or not"), "{text}");
        }
    }
}
