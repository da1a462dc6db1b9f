//! Published files by name: checkpoints of generators, weights of feature networks, reference statistics.
//!
//! The rows are JSON files in the folder `known/` of this crate. Its README describes every field. Unknown fields are
//! absent.

use std::sync::LazyLock;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// A published file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct Known {
    /// Name in d2o: lower-case letters, digits and dashes.
    pub name: String,
    /// Other names.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub aliases: Vec<String>,
    /// One line of description.
    pub title: String,
    /// Project.
    pub family: String,
    /// File name as published.
    pub file: String,
    /// Direct addresses, best first; empty if there is only a page.
    pub urls: Vec<String>,
    /// Where to download it manually: an address, or the name of a Python package.
    pub page: String,
    /// File size in bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
    /// SHA-256, 64 hexadecimal digits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
    /// The first 8 digits of the SHA-256, if only these are published.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sha256_prefix: Option<String>,
    /// Where the hash is published.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hash_source: Option<String>,
    /// Licence, as the project states it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub license: Option<String>,
    /// Pitfalls.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub notes: Option<String>,
    /// Contents of the file.
    pub kind: Kind,
}

/// Contents of a published file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Kind {
    /// A checkpoint of a generator.
    Generator(Box<Generator>),
    /// Weights of a feature network.
    Extractor(Extractor),
    /// Reference statistics.
    Reference(Reference),
}

/// A checkpoint of a generator.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct Generator {
    /// Class of the network, as in checkpoints of the current repository.
    pub class: String,
    /// Known constructor arguments of the class, not necessarily all.
    pub arguments: Map<String, Value>,
    /// Training dataset.
    pub dataset: String,
    /// Height and width of the images, pixels.
    pub resolution: u32,
    /// Number of classes; 0 if unconditional; `None` if not published.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub classes: Option<u32>,
    /// Options of `d2o generate` for the published numbers, without dashes. `sigma-max` of the samplers `one-step` and
    /// `sid` is an option of `d2o export`. `None` if d2o lacks the sampler or no document gives its settings.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sampler: Option<Map<String, Value>>,
    /// Name of the conversion of images to bytes ([`d2o_onnx::metadata::Quantiser::name`]).
    pub quantiser: String,
    /// Name of the row with the reference of the published numbers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reference: Option<String>,
    /// Name of the row with the feature network of the published numbers.
    pub extractor: String,
    /// Evaluation protocol of the published numbers.
    pub protocol: String,
    /// Published results.
    pub published: Vec<Number>,
}

/// A published result.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct Number {
    /// Key of the metric in results of `d2o evaluate`.
    pub metric: String,
    /// Value, in the unit of results of `d2o evaluate`.
    pub value: f64,
    /// Number of generated images.
    pub images: u32,
    /// `minimum of 3`, `mean of 10`, …, or `not stated`.
    pub statistic: String,
    /// Document and place in the document.
    pub source: String,
    /// Protocol, if it differs from the protocol of the row.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub protocol: Option<String>,
}

/// Weights of a feature network.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct Extractor {
    /// Name of the network, as in the graph metadata `extractor`. The name stands for specific weights: files with
    /// other weights of the same shapes are not listed under it.
    pub network: String,
    /// How the file names and stores the tensors.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub layout: Option<String>,
    /// Digest of the weights ([`crate::published::Digests::trunk`]), if it was computed from a file with the published
    /// hash.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub digest: Option<String>,
    /// Digest of the head ([`crate::published::Digests::head`]), if it was computed from a file with the published
    /// hash.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub head_digest: Option<String>,
}

/// Reference statistics.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct Reference {
    /// Dataset.
    pub dataset: String,
    /// Height and width of the images, pixels.
    pub resolution: u32,
    /// Number of images behind the statistics.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub images: Option<u32>,
    /// Evaluation protocol of the features.
    pub protocol: String,
    /// Names of the arrays in the file; for a pickle, its keys.
    pub contents: Vec<String>,
    /// Divisor of the covariance `sigma`, e.g. `N - 1`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub covariance: Option<String>,
}

/// Published part of the SHA-256 of a file, in lower-case hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum FileHash<'a> {
    /// All 64 digits.
    Full(&'a str),
    /// The first 8 digits (32 bits), which the file name contains by the convention of torch.hub.
    Prefix(&'a str),
    /// No published hash is known.
    Unpublished,
}

impl FileHash<'_> {
    /// Whether `sha256` agrees with the published digits; `false` if none are published.
    #[must_use]
    pub fn matches(self, sha256: &str) -> bool {
        match self {
            Self::Full(hash) => hash == sha256,
            Self::Prefix(prefix) => sha256.starts_with(prefix),
            Self::Unpublished => false,
        }
    }
}

impl Generator {
    /// Whether the sampler evaluates the network once; `None` if no sampler is given.
    #[must_use]
    pub fn is_one_step(&self) -> Option<bool> {
        let sampler = self.sampler.as_ref()?.get("sampler").and_then(Value::as_str);
        Some(matches!(sampler, Some("one-step" | "sid")))
    }

    /// Initial noise level of a one-step graph, if the sampler evaluates the network once and has `sigma-max`.
    #[must_use]
    pub fn one_step_sigma(&self) -> Option<f64> {
        self.sampler.as_ref().filter(|_| self.is_one_step() == Some(true))?.get("sigma-max")?.as_f64()
    }
}

impl Known {
    /// Published part of the SHA-256.
    #[must_use]
    pub fn hash(&self) -> FileHash<'_> {
        match (&self.sha256, &self.sha256_prefix) {
            (Some(hash), _) => FileHash::Full(hash),
            (None, Some(prefix)) => FileHash::Prefix(prefix),
            (None, None) => FileHash::Unpublished,
        }
    }

    /// The generator, if the file is one.
    #[must_use]
    pub fn generator(&self) -> Option<&Generator> {
        if let Kind::Generator(generator) = &self.kind { Some(generator) } else { None }
    }

    /// The feature network, if the file is one.
    #[must_use]
    pub fn extractor(&self) -> Option<&Extractor> {
        if let Kind::Extractor(extractor) = &self.kind { Some(extractor) } else { None }
    }

    /// The reference statistics, if the file contains them.
    #[must_use]
    pub fn reference(&self) -> Option<&Reference> {
        if let Kind::Reference(reference) = &self.kind { Some(reference) } else { None }
    }

    /// Whether `name` is the name or an alias of the row.
    #[must_use]
    pub fn is_named(&self, name: &str) -> bool {
        self.name == name || self.aliases.iter().any(|a| a == name)
    }
}

/// All rows: generators, feature networks, references.
#[must_use]
pub fn all() -> &'static [Known] {
    static ROWS: LazyLock<Vec<Known>> = LazyLock::new(|| {
        [
            include_str!("../known/generators.json"),
            include_str!("../known/extractors.json"),
            include_str!("../known/references.json"),
        ]
        .into_iter()
        // This does not fail: the texts are compiled in, and a test reads every row.
        .flat_map(|text| serde_json::from_str::<Vec<Known>>(text).unwrap_or_default())
        .collect()
    });
    &ROWS
}

/// The row with the name or alias `name`.
#[must_use]
pub fn find(name: &str) -> Option<&'static Known> {
    all().iter().find(|known| known.is_named(name))
}

/// At most `count` names of rows that contain at least one part of `name`, those with the most parts first. Parts are
/// separated by `-`, `_`, `/` or spaces.
#[must_use]
pub fn similar(name: &str, count: usize) -> Vec<&'static str> {
    let parts: Vec<&str> = name.split(['-', '_', '/', ' ']).filter(|p| !p.is_empty()).collect();
    let shared = |known: &Known| parts.iter().filter(|p| known.name.contains(**p)).count();
    let mut rows: Vec<(usize, &str)> = all().iter().map(|k| (shared(k), k.name.as_str())).collect();
    rows.retain(|(n, _)| *n > 0);
    rows.sort_by_key(|(n, _)| std::cmp::Reverse(*n));
    rows.into_iter().take(count).map(|(_, name)| name).collect()
}

/// How a file was recognised as a published one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Match {
    /// The SHA-256 is the published one, all 64 digits.
    Hash,
    /// The file name is that of a row with 8 published digits, and the SHA-256 starts with them.
    Prefix,
    /// The file name is that of a row without a published hash.
    Name,
}

/// Finds the published generator of a file by its hash or name. `file` is the file name, `class` the class of the
/// network, and `bytes` the file size. `sha256` is called at most once, and only if a published hash can decide. `None`
/// if no row matches or the name is ambiguous.
///
/// # Errors
/// Those of `sha256`.
pub fn recognise<E>(
    file: &str,
    class: &str,
    bytes: u64,
    sha256: impl FnOnce() -> std::result::Result<String, E>,
) -> std::result::Result<Option<(&'static Known, Match)>, E> {
    let rows = || all().iter().filter(|k| k.generator().is_some_and(|g| g.class == class));
    let candidate = |k: &&Known| k.hash() != FileHash::Unpublished && k.bytes.is_none_or(|b| b == bytes);
    if rows().any(|k| candidate(&k)) {
        let sha256 = sha256()?;
        for known in rows() {
            match known.hash() {
                FileHash::Full(hash) if hash == sha256 => return Ok(Some((known, Match::Hash))),
                FileHash::Prefix(prefix) if known.file == file && sha256.starts_with(prefix) => {
                    return Ok(Some((known, Match::Prefix)));
                }
                _ => {}
            }
        }
    }
    let mut named = rows().filter(|k| k.file == file && k.hash() == FileHash::Unpublished);
    // If two rows have this file name, it is ambiguous.
    Ok(match (named.next(), named.next()) {
        (Some(known), None) => Some((known, Match::Name)),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::convert::Infallible;

    use d2o_onnx::metadata::Quantiser;

    use super::*;

    #[test]
    fn every_row_is_read() {
        let mut rows = 0;
        for text in [
            include_str!("../known/generators.json"),
            include_str!("../known/extractors.json"),
            include_str!("../known/references.json"),
        ] {
            let read: Vec<Known> = serde_json::from_str(text).unwrap();
            rows += read.len();
            // No field is lost, and none is a null.
            assert_eq!(serde_json::to_value(&read).unwrap(), serde_json::from_str::<Value>(text).unwrap());
        }
        assert_eq!(all().len(), rows);
        assert!(rows > 150, "{rows}");
    }

    #[test]
    fn names_are_unique_and_rows_that_rows_name_exist() {
        let mut names = BTreeSet::new();
        for known in all() {
            for name in [&known.name].into_iter().chain(&known.aliases) {
                let plain = name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
                assert!(plain && names.insert(name), "{name}");
            }
            assert!(known.sha256.is_none() || known.sha256_prefix.is_none(), "{}", known.name);
            assert!(known.hash() == FileHash::Unpublished || known.hash_source.is_some(), "{}", known.name);
            assert!(known.urls.iter().all(|u| u.starts_with("https://") || u.starts_with("hf://")), "{}", known.name);
            assert!(!known.page.is_empty() && !known.file.contains(".."), "{}", known.name);
            let Some(generator) = known.generator() else { continue };
            assert!(find(&generator.extractor).is_some_and(|k| k.extractor().is_some()), "{}", known.name);
            let reference = generator.reference.as_deref();
            assert!(reference.is_none_or(|r| find(r).is_some_and(|k| k.reference().is_some())), "{}", known.name);
            let quantisers = [Quantiser::Edm, Quantiser::OpenAi].map(|q| q.name());
            assert!(quantisers.contains(&generator.quantiser.as_str()), "{}", known.name);
            for number in &generator.published {
                assert!(!number.source.is_empty() && number.images > 0 && number.value.is_finite(), "{}", known.name);
            }
        }
    }

    #[test]
    fn hashes_are_hashes() {
        let hexadecimal = |text: &str, digits: usize| {
            text.len() == digits && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
        };
        let mut hashes = BTreeSet::new();
        for known in all() {
            let Known { file, urls, .. } = known;
            // By the convention of torch.hub, eight hexadecimal digits at the end of a name are the first digits of the
            // hash.
            let stem = file.rsplit_once('.').map_or(file.as_str(), |(stem, _)| stem);
            let in_name = stem.rsplit_once('-').map(|(_, last)| last).filter(|last| hexadecimal(last, 8));
            match known.hash() {
                FileHash::Full(sha256) => {
                    assert!(hexadecimal(sha256, 64) && hashes.insert(sha256), "{file}");
                    assert!(in_name.is_none_or(|prefix| sha256.starts_with(prefix)), "{file}");
                    let in_url = urls.iter().flat_map(|u| u.split('/')).find(|part| hexadecimal(part, 64));
                    assert!(in_url.is_none_or(|h| h == sha256), "{file}");
                }
                FileHash::Prefix(prefix) => assert!(in_name == Some(prefix) && hashes.insert(prefix), "{file}"),
                FileHash::Unpublished => {}
            }
            if let Some(Extractor { digest, head_digest, .. }) = known.extractor() {
                assert!([digest, head_digest].into_iter().flatten().all(|d| hexadecimal(d, 64)), "{file}");
                let verified = digest.is_none() || known.hash() != FileHash::Unpublished;
                assert!(verified, "{file}: a digest of a file that was not verified");
            }
        }
    }

    #[test]
    fn files_are_recognised_by_hash_then_by_name() {
        let recognise = |file: &str, class: &str, sha256: &str| {
            let found = recognise(file, class, 1, || Ok::<_, Infallible>(sha256.to_owned()));
            let Ok(found) = found;
            found.map(|(known, by)| (known.name.as_str(), by))
        };
        let vp = find("edm-cifar10-32x32-uncond-vp").unwrap();
        let hash = vp.sha256.as_deref().unwrap();
        assert_eq!(recognise("renamed.pkl", "EDMPrecond", hash), Some((vp.name.as_str(), Match::Hash)));
        assert_eq!(recognise("renamed.pkl", "VPPrecond", hash), None);
        // The hash is published, so the file name alone is not sufficient.
        assert_eq!(recognise(&vp.file, "EDMPrecond", "00"), None);
        let named = recognise("edm-ffhq-64x64-uncond-vp.pkl", "EDMPrecond", "00");
        assert_eq!(named, Some(("edm-ffhq-64x64-uncond-vp", Match::Name)));
        assert_eq!(recognise("network-snapshot-000001.pkl", "EDMPrecond", "00"), None);
    }

    #[test]
    fn similar_names() {
        assert!(similar("cifar10-vp", 3).iter().all(|n| n.contains("cifar10") && n.contains("vp")));
        assert_eq!(similar("qqq", 3), [""; 0]);
    }
}
