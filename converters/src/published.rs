//! Determines whether a checkpoint or a graph has the weights of a published feature network.
//!
//! A feature network is recognised by the names and shapes of its tensors. Random and fine-tuned weights have the same
//! names and shapes as published weights. Two hashes distinguish them:
//!
//! - the SHA-256 of the checkpoint file, which [`crate::known`] lists for files with a published hash;
//! - the weights digest ([`Digests`]), which is the same for every layout of the same tensors and for every export option.
//!
//! Both detect accidental differences, not manipulation: graph metadata can be edited, and a hash prefix of 8 digits
//! has only 32 bits.

use std::fmt;

use d2o_files::hex;
use d2o_onnx::metadata::Metadata;
use sha2::{Digest as _, Sha256};

use crate::error::{Error, Result};
use crate::extractors::Part;
use crate::known::{self, Extractor, Known};
use crate::network::Network;

/// Metadata value of a graph with weights that are not known to be published.
pub const UNVERIFIED: &str = "unverified";

/// Digests of the tensors of a feature network.
///
/// A digest is the SHA-256, in hexadecimal, of a text. The text consists of the line `d2o weights 1` and one line per
/// tensor, sorted. The line of a tensor consists of its name, its dimensions as in `[2048, 768]`, and the SHA-256 of
/// its values (little-endian f32, row-major), separated by spaces. Every line ends with a line feed.
///
/// Names and axis orders are those of the networks in [`crate::extractors`], independent of the file layout. Queries,
/// keys and values are three tensors: `attn.q_proj`, `attn.k_proj`, `attn.v_proj`. Scales of an Inception batch norm
/// that are all 1, counters of batch norms, and `mask_token` of DINOv2 are omitted. Values are those of the file,
/// before folding, interpolation and rounding.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Digests {
    /// Digest of the tensors that features depend on.
    pub trunk: String,
    /// Digest of the tensors that only logits depend on; `None` if the checkpoint has none.
    pub head: Option<String>,
}

impl Digests {
    /// The digests of `network`; `None` if it is not a feature network.
    ///
    /// # Errors
    /// `Config` if the tensors have more values than any published feature network, which is possible if views share a
    /// storage; errors of reading the tensors.
    pub fn of(network: &Network) -> Result<Option<Self>> {
        /// Maximum number of values of a network: twice that of the largest published transformer.
        const MAX_VALUES: usize = 1 << 32;
        let Some(extractor) = network.architecture.extractor() else { return Ok(None) };
        let dims = |name: &String| network.tensors.info(name).map(|i| i.dims).unwrap_or_default();
        let size = |name: &String| dims(name).into_iter().fold(1, usize::saturating_mul);
        let values = network.tensors.names().iter().map(size).fold(0, usize::saturating_add);
        if values > MAX_VALUES {
            let what = format!("expected a feature extractor of at most {MAX_VALUES} values, found {values}");
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

/// Whether the weights of a feature network are those of a published file.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct WeightsState {
    /// [`Digests::trunk`]; `None` for a graph of an earlier d2o version, which did not record it.
    pub digest: Option<String>,
    /// [`Digests::head`].
    pub head_digest: Option<String>,
    /// Name of the published file that has these weights ([`Known::file`]); `None` if the weights are unverified.
    pub verified: Option<String>,
    /// SHA-256 of the checkpoint file, if it verified the weights.
    pub source_sha256: Option<String>,
}

impl WeightsState {
    /// The state of `network`, which is exported as `extractor`, from a file with the SHA-256 `file_sha256`. `None` if
    /// it is not a feature network.
    ///
    /// # Errors
    /// Those of [`Digests::of`].
    pub fn of_network(network: &Network, extractor: &str, file_sha256: &str) -> Result<Option<Self>> {
        Ok(Digests::of(network)?.map(|digests| Self::found(known::all(), extractor, digests, file_sha256)))
    }

    fn found(table: &[Known], extractor: &str, digests: Digests, file_sha256: &str) -> Self {
        let files = || table.iter().filter_map(|k| Some((k, k.extractor().filter(|e| e.network == extractor)?)));
        let by_file = files().find(|(known, _)| known.hash().matches(file_sha256));
        let by_digest = || files().find(|(_, e)| e.has_weights(&digests.trunk, digests.head.as_deref()));
        let verified = by_file.or_else(by_digest).map(|(known, _)| known.file.clone());
        let source_sha256 = by_file.map(|_| file_sha256.to_owned());
        Self { digest: Some(digests.trunk), head_digest: digests.head, verified, source_sha256 }
    }

    /// The state recorded in the metadata of a graph. The record is accepted only if [`crate::known`] lists the
    /// recorded file for the extractor of the graph, with the recorded hash or digest. Graphs without a record are
    /// unverified.
    #[must_use]
    pub fn of_metadata(metadata: &Metadata) -> Self {
        Self::recorded(known::all(), metadata)
    }

    fn recorded(table: &[Known], metadata: &Metadata) -> Self {
        let Metadata { weights, extractor, .. } = metadata;
        let (digest, head_digest) = (metadata.weights_digest.clone(), metadata.head_digest.clone());
        let source_sha256 = metadata.source_sha256.clone();
        let confirmed = |known: &&Known| {
            let network = known.extractor().filter(|e| extractor.as_ref() == Some(&e.network));
            network.is_some_and(|network| {
                weights.as_ref() == Some(&known.file)
                    && (source_sha256.as_ref().is_some_and(|s| known.hash().matches(s))
                        || digest.as_ref().is_some_and(|d| network.has_weights(d, head_digest.as_deref())))
            })
        };
        let verified = table.iter().find(confirmed).map(|known| known.file.clone());
        Self { digest, head_digest, verified, source_sha256 }
    }

    /// Writes the state into the metadata of a graph. For unverified weights the record depends only on the tensors, so
    /// that all layouts of a network give the same graph.
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

impl Extractor {
    /// Whether the published weights have these digests; a missing head is accepted.
    fn has_weights(&self, trunk: &str, head: Option<&str>) -> bool {
        self.digest.as_deref() == Some(trunk) && (head.is_none() || head == self.head_digest.as_deref())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::{Value, json};

    use super::*;
    use crate::extractors::Activation;
    use crate::extractors::efficientnet_lite::EfficientNetLite0;
    use crate::extractors::vgg16::{Vgg16, VggConfig};
    use crate::extractors::vision_transformer::{Family, VisionTransformer, VitConfig};
    use crate::known::FileHash;
    use crate::onnx::OnnxBackend;
    use crate::weights::{Init, Scope, Weights};
    use d2o_checkpoint::{Dtype, TensorInfo, TensorSource};

    #[test]
    fn the_documentation_lists_the_table() {
        let page = include_str!("../../docs/export.md");
        for known in known::all() {
            let Some(Extractor { network, .. }) = known.extractor() else { continue };
            let file = &known.file;
            let hash = match known.hash() {
                FileHash::Full(hash) | FileHash::Prefix(hash) => format!("`{hash}`"),
                FileHash::Unpublished => "none found".to_owned(),
            };
            let row = format!("| `{network}` | `{file}` | {hash} |");
            assert!(page.contains(&row), "docs/export.md lacks the row {row}");
        }
    }

    fn table() -> Vec<Known> {
        let row = |file: &str, hash: (&str, &str), network: Value| json!({"name": "n", "title": "", "family": "", "file": file, "urls": [], "page": "", hash.0: hash.1, "kind": {"extractor": network}});
        let rows = json!([
            row("full.pt", ("sha256", "aabbccdd00"), json!({"network": "net", "digest": "t1", "head_digest": "h1"})),
            row("prefix-11223344.pt", ("sha256_prefix", "11223344"), json!({"network": "net"})),
            row("other.pt", ("sha256", "eeff"), json!({"network": "other"})),
        ]);
        serde_json::from_value(rows).unwrap()
    }

    fn state(network: &str, trunk: &str, head: Option<&str>, file: &str) -> WeightsState {
        let digests = Digests { trunk: trunk.to_owned(), head: head.map(str::to_owned) };
        WeightsState::found(&table(), network, digests, file)
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
            // The metadata of a graph give the same state.
            let mut metadata = Metadata { extractor: Some(network.to_owned()), ..Metadata::default() };
            found.record(&mut metadata);
            assert_eq!(WeightsState::recorded(&table(), &metadata), found, "{network} {trunk} {head:?} {file}");
        }
    }

    #[test]
    fn a_record_that_the_table_does_not_confirm_is_unverified() {
        let record = |entries: &[(&str, &str)]| {
            let metadata = entries.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
            WeightsState::recorded(&table(), &Metadata::read(&metadata).unwrap())
        };
        // A graph of an earlier d2o version.
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
        /// Random tensors with the names and shapes that `b` took.
        fn of(b: &OnnxBackend) -> Self {
            let drawn = b.weights().taken().map(|(name, dims)| {
                // Values that f16 represents exactly.
                let values = Init::Uniform { bound: 1.0 }.values(5, name, dims.iter().product());
                let values = values.iter().map(|v| half::f16::from_f32(*v).to_f32()).collect();
                (name.to_owned(), dims.to_vec(), values)
            });
            Self(drawn.collect(), Dtype::F32)
        }

        fn renamed(&self, name: impl Fn(&str) -> String) -> Self {
            Self(self.0.iter().map(|(n, d, v)| (name(n), d.clone(), v.clone())).collect(), self.1)
        }

        /// Splits packed tensors with names ending in `weight` or `bias` into queries, keys and values, named by
        /// `parts`.
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

        /// Checks that changing one value of a tensor changes the digest of its part and no other digest.
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
        // The weight of the head, and the last norm before the pooled features.
        for (name, head) in [("classifier.weight", true), ("bn2.running_var", false)] {
            let mut changed = timm.clone();
            changed.0.iter_mut().find(|t| t.0 == name).unwrap().2[0] += 0.5;
            let changed = changed.digests();
            assert_eq!((changed.trunk == digests.trunk, changed.head == digests.head), (head, !head), "{name}");
        }
    }
}
