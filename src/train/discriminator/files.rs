//! Checkpoints of feature networks.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use d2o_converters::known;
use d2o_converters::weights::Weights;
use d2o_converters::{Checkpoint, Network};
use d2o_refs::batch::container_sha256;

use super::backbones::Backbone;

/// Checkpoints by feature network.
pub(super) type Files = BTreeMap<Backbone, Opened>;

/// The checkpoint of a feature network.
#[derive(Debug)]
pub(super) struct Opened {
    path: PathBuf,
    network: Network,
}

/// Opens the checkpoints of `backbones`, which are recognised by their tensors.
///
/// # Errors
/// If a file is unreadable, damaged or of another network, two files contain the same network, or a network has no
/// file.
pub(super) fn open(backbones: &[Backbone], paths: &[PathBuf]) -> anyhow::Result<Files> {
    let mut files = Files::new();
    for path in paths {
        let (backbone, network) =
            recognised(backbones, path).with_context(|| format!("cannot use the backbone `{}`", path.display()))?;
        if let Some(Opened { path: other, .. }) = files.insert(backbone, Opened { path: path.clone(), network }) {
            anyhow::bail!("`{}` and `{}` both contain {}", other.display(), path.display(), backbone.name());
        }
    }
    match backbones.iter().find(|b| !files.contains_key(b)) {
        None => Ok(files),
        Some(missing) => {
            let network = missing.extractor().name();
            let known: Vec<String> = known::all()
                .iter()
                .filter(|k| k.extractor().is_some_and(|e| e.network == network))
                .map(|k| format!("`{}` from {}", k.file, k.urls.first().unwrap_or(&k.page)))
                .collect();
            anyhow::bail!(
                "the discriminator requires the weights of {}: pass {} with --backbone-weights; the file name contains the first 8 hexadecimal digits of its SHA-256",
                missing.name(),
                known.join(" or ")
            )
        }
    }
}

/// The network among `backbones` that the checkpoint at `path` contains.
fn recognised(backbones: &[Backbone], path: &Path) -> anyhow::Result<(Backbone, Network)> {
    let checkpoint = Checkpoint::open(path)?;
    let network = checkpoint.network(None)?;
    let fits = |b: &&Backbone| network.architecture.extractor().is_some_and(|found| b.is_trunk_of(found));
    let Some(backbone) = backbones.iter().find(fits) else {
        let (expected, found) = (backbones.iter().map(|b| b.extractor().name()), network.architecture.name());
        let expected: Vec<_> = expected.collect();
        let sizes = if expected.contains(&found) { " of a different size" } else { "" };
        anyhow::bail!("expected {}, found {found}{sizes}", expected.join(" or "));
    };
    ensure_undamaged(path)?;
    Ok((*backbone, network.described_as(network.architecture.clone())))
}

/// An error if the file at `path` has the name of a published checkpoint but another SHA-256.
///
/// # Errors
/// If the SHA-256 differs, or reading fails.
pub(in crate::train) fn ensure_undamaged(path: &Path) -> anyhow::Result<()> {
    let name = path.file_name().map(|n| n.to_string_lossy()).unwrap_or_default();
    if let Some(published) = known::all().iter().find(|k| k.file == name && k.extractor().is_some()) {
        let found = container_sha256(path)?;
        anyhow::ensure!(
            published.hash().matches(&found),
            "the file is corrupt or not the published `{name}`: its SHA-256 {found} differs"
        );
    }
    Ok(())
}

/// Weights of `backbone`, which must be among `files`. Tensors after the last tap may remain unread.
pub(super) fn weights(files: &Files, backbone: Backbone) -> Weights {
    let network = &files[&backbone].network;
    let unused = network.tensors.names().into_iter().filter(|n| backbone.leaves_unused(n));
    network.weights().allowing_unused(unused)
}

#[cfg(test)]
mod tests {
    use d2o_converters::checkpoint::safetensors::{self, Tensor};
    use d2o_converters::extractors::efficientnet_lite::EfficientNetLite0;
    use d2o_converters::extractors::vgg16::{Vgg16, VggConfig};
    use d2o_converters::onnx::OnnxBackend;
    use d2o_converters::weights::{Init, Scope};
    use fs_err as fs;

    use super::super::backbones::FeatureNetwork;
    use super::Backbone::{DeitBase, Lite0, Vgg16Bn};
    use super::*;
    use crate::train::libtorch::LibTorch;

    #[test]
    fn files_are_recognised_by_their_tensors_and_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let file = |name: &str| dir.path().join(name);
        let mut b = OnnxBackend::new("names", Weights::initialised(1));
        EfficientNetLite0::build(&mut b, &Scope::root()).unwrap();
        let constant = |name: &str, dims: &[usize]| {
            let values = Init::Constant(1.0).values(0, name, dims.iter().product());
            Tensor { name: name.to_owned(), dims: dims.to_vec(), values }
        };
        let tensors: Vec<Tensor> = b.weights().taken().map(|(name, dims)| constant(name, dims)).collect();
        safetensors::write(&file("a.safetensors"), &tensors, &BTreeMap::new()).unwrap();
        let (copy, named) = (file("b.safetensors"), file("tf_efficientnet_lite0-0aa007d2.pth"));
        for to in [&copy, &named] {
            fs::copy(file("a.safetensors"), to).unwrap();
        }

        let files = open(&[Lite0], &[file("a.safetensors")]).unwrap();
        // Only the classifier may remain unread.
        let like = LibTorch::running(tch::Device::Cpu, true);
        assert!(FeatureNetwork::build(&like, Lite0, &|| weights(&files, Lite0)).is_ok());
        let all = || files[&Lite0].network.weights();
        let unread = FeatureNetwork::build(&like, Lite0, &all).unwrap_err().to_string();
        assert!(unread.contains("7 unexpected tensor(s) in the checkpoint"), "{unread}");

        // Another classifier is accepted, other widths are not.
        let vgg = |name: &str, config: &VggConfig| {
            let mut b = OnnxBackend::new("names", Weights::initialised(1));
            Vgg16::build(&mut b, &Scope::root(), config).unwrap();
            let tensors: Vec<Tensor> = b.weights().taken().map(|(name, dims)| constant(name, dims)).collect();
            safetensors::write(&file(name), &tensors, &BTreeMap::new()).unwrap();
        };
        let other_classifier = VggConfig { hidden: [1, 1], classes: 2, ..VggConfig::torchvision(true) };
        vgg("c.safetensors", &other_classifier);
        assert!(open(&[Vgg16Bn], &[file("c.safetensors")]).is_ok());
        vgg("d.safetensors", &VggConfig { widths: [64; 13], ..other_classifier });

        let refused = |backbones: &[Backbone], paths: &[PathBuf]| format!("{:#}", open(backbones, paths).unwrap_err());
        let text = refused(&[Vgg16Bn, Lite0], &[file("a.safetensors")]);
        for part in ["vgg16_bn-6c64b313.pth", "https://download.pytorch.org/models/", "--backbone-weights", "SHA-256"] {
            assert!(text.contains(part), "{part}: {text}");
        }
        let text = refused(&[Vgg16Bn], &[file("d.safetensors")]);
        assert!(text.contains("expected vgg16-bn, found vgg16-bn of a different size"), "{text}");
        let text = refused(&[DeitBase], &[]);
        assert!(text.contains("deit_base_distilled_patch16_224-df68dfff.pth") && !text.contains("_384"), "{text}");
        let text = refused(&[Lite0], &[]);
        assert!(text.contains("tf_efficientnet_lite0-0aa007d2.pth") && text.contains("57934424.pth"), "{text}");
        let text = refused(&[Vgg16Bn, DeitBase], &[file("a.safetensors")]);
        assert!(
            text.contains("expected vgg16-bn or deit-b-distilled-patch16-224, found tf_efficientnet_lite0"),
            "{text}"
        );
        let text = refused(&[Lite0], &[file("a.safetensors"), copy]);
        assert!(text.contains("both contain tf_efficientnet_lite0"), "{text}");
        let text = refused(&[Lite0], &[named]);
        assert!(
            text.contains("the file is corrupt or not the published `tf_efficientnet_lite0-0aa007d2.pth`"),
            "{text}"
        );
    }
}
