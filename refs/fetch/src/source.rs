//! Addresses of published files.

use std::fmt;

use d2o_files::hex;
use sha2::{Digest as _, Sha256};

use crate::error::{Error, Result};
use crate::settings::Settings;
use crate::url::{Url, encode, is_unreserved, split_scheme};

/// The default revision.
const MAIN: &str = "main";
/// The form of Hugging Face Hub addresses, for errors.
const HUB_FORM: &str = "expected hf://OWNER/REPO/PATH[@REVISION] or hf://datasets/OWNER/REPO/PATH[@REVISION]";
/// Longest part of a name in the cache, bytes. File systems allow 255, and the names of sidecars are longer than the
/// name of the file.
const MAX_PART: usize = 200;

/// The address of a published file, in one of two forms:
///
/// - `https://HOST/PATH`, or `http://` if the host is this machine;
/// - `hf://OWNER/REPO/PATH[@REVISION]`, a file of a model repository on the Hugging Face Hub, or on the mirror in
///   [`Settings::hf_endpoint`](crate::Settings); `hf://datasets/…` and `hf://spaces/…` are repositories of these kinds.
///   The last `@` separates the revision (branch, tag or commit), `main` by default. `hf://OWNER/REPO@REVISION/PATH` is
///   accepted too.
///
/// The displayed text parses as the same source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source(Kind);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Kind {
    Web { text: String, url: Url },
    Hub(HubFile),
}

/// A file on the Hugging Face Hub.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct HubFile {
    pub(crate) kind: Repo,
    pub(crate) owner: String,
    pub(crate) repo: String,
    /// Segments of the path, none of them empty, `.` or `..`.
    pub(crate) path: Vec<String>,
    /// Segments separated by `/`, none of them empty, `.` or `..`.
    pub(crate) revision: String,
}

/// Kind of a repository.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Repo {
    Model,
    Dataset,
    Space,
}

impl Repo {
    /// Text before the owner, in addresses of both schemes.
    const fn prefix(self) -> &'static str {
        match self {
            Self::Model => "",
            Self::Dataset => "datasets/",
            Self::Space => "spaces/",
        }
    }

    /// First part of the folder names in the cache of the Hub.
    pub(crate) const fn cached(self) -> &'static str {
        match self {
            Self::Model => "models",
            Self::Dataset => "datasets",
            Self::Space => "spaces",
        }
    }
}

impl Source {
    /// Parses an address; `None` for a text without a scheme, which is a path.
    ///
    /// # Errors
    /// [`Error::Source`] for another scheme or a malformed address, in the inner result.
    #[must_use]
    pub fn parse(text: &str) -> Option<Result<Self>> {
        let (scheme, rest) = split_scheme(text)?;
        let parsed = match scheme.to_ascii_lowercase().as_str() {
            "https" | "http" => Url::parse(text).and_then(|url| {
                url.ensure_secure()?;
                Ok(Kind::Web { text: text.to_owned(), url })
            }),
            "hf" => HubFile::parse(rest).ok_or(HUB_FORM).map(Kind::Hub),
            _ => Err("expected an address that begins with https:// or hf://, or the path of a file"),
        };
        Some(parsed.map(Self).map_err(|problem| Error::Source { text: text.to_owned(), problem }))
    }

    /// A name for the file in the cache that no other source has, with `/` between its parts:
    /// `hf/OWNER/REPO/REVISION/PATH` or `web/HOST/PATH`.
    #[must_use]
    pub fn cache_name(&self) -> String {
        let parts: Vec<String> = match &self.0 {
            Kind::Hub(file) => {
                let prefix = file.kind.prefix().trim_end_matches('/');
                let prefix = (!prefix.is_empty()).then(|| prefix.to_owned());
                let head = [file.owner.clone(), file.repo.clone(), encode(&file.revision, is_unreserved)];
                let names = file.path.iter().map(|part| encode(part, |b| b != b'%' && b != b'\\' && b >= b' '));
                ["hf".to_owned()].into_iter().chain(prefix).chain(head).chain(names).collect()
            }
            Kind::Web { url, .. } => {
                let mut parts = vec!["web".to_owned(), url.authority().replace(':', "_")];
                parts.extend(url.path().split('/').filter(|part| !part.is_empty()).map(str::to_owned));
                if url.path().ends_with('/') {
                    parts.push("file".to_owned());
                }
                if let Some(query) = url.query() {
                    // Files whose addresses differ only in the query are in different folders.
                    parts.insert(parts.len() - 1, format!("q-{}", &hex(&Sha256::digest(query))[..16]));
                }
                parts
            }
        };
        parts.into_iter().map(short).collect::<Vec<_>>().join("/")
    }

    /// The last part of the path, or `file` if the path ends with `/`.
    #[must_use]
    pub fn file_name(&self) -> &str {
        match &self.0 {
            Kind::Hub(file) => file.path.last().map_or("file", String::as_str),
            Kind::Web { url, .. } => url.path().rsplit('/').next().filter(|name| !name.is_empty()).unwrap_or("file"),
        }
    }

    /// The address to request.
    pub(crate) fn url(&self, settings: &Settings) -> Result<Url> {
        match &self.0 {
            Kind::Web { url, .. } => Ok(url.clone()),
            Kind::Hub(file) => {
                let endpoint = settings.endpoint()?;
                let path: Vec<String> = file.path.iter().map(|part| encode(part, is_unreserved)).collect();
                let revision = encode(&file.revision, is_unreserved);
                let HubFile { kind, owner, repo, .. } = file;
                let path = format!("{}{owner}/{repo}/resolve/{revision}/{}", kind.prefix(), path.join("/"));
                Ok(endpoint.with_path(&path))
            }
        }
    }

    pub(crate) const fn hub(&self) -> Option<&HubFile> {
        match &self.0 {
            Kind::Hub(file) => Some(file),
            Kind::Web { .. } => None,
        }
    }
}

impl HubFile {
    /// Parses the text after `hf://`.
    fn parse(text: &str) -> Option<Self> {
        let (kind, text) = [Repo::Dataset, Repo::Space]
            .into_iter()
            .find_map(|kind| Some((kind, text.strip_prefix(kind.prefix())?)))
            .unwrap_or((Repo::Model, text));
        let (owner, text) = text.split_once('/')?;
        let (repo, path) = text.split_once('/')?;
        let (repo, path, revision) = match (repo.split_once('@'), path.rsplit_once('@')) {
            (Some((repo, revision)), _) => (repo, path, revision),
            (None, Some((path, revision))) => (repo, path, revision),
            (None, None) => (repo, path, MAIN),
        };
        let named = |name: &str| {
            name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.')) && is_part(name)
        };
        let sound = named(owner) && named(repo) && path.split('/').all(is_part) && revision.split('/').all(is_part);
        sound.then(|| Self {
            kind,
            owner: owner.to_owned(),
            repo: repo.to_owned(),
            path: path.split('/').map(str::to_owned).collect(),
            revision: revision.to_owned(),
        })
    }
}

/// Whether `part` is a safe part of a path: not empty, `.` or `..`, without control characters and backslashes.
pub(crate) fn is_part(part: &str) -> bool {
    !matches!(part, "" | "." | "..") && !part.chars().any(|c| c.is_control() || c == '\\')
}

/// `part`, with a hash instead of the end if it is longer than [`MAX_PART`].
fn short(part: String) -> String {
    if part.len() <= MAX_PART {
        return part;
    }
    let end = (0..=MAX_PART - 65).rev().find(|at| part.is_char_boundary(*at)).unwrap_or(0);
    format!("{}-{}", &part[..end], hex(&Sha256::digest(&part)))
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Kind::Web { text, .. } => f.write_str(text),
            Kind::Hub(file) => {
                let path = file.path.join("/");
                write!(f, "hf://{}{}/{}/{path}", file.kind.prefix(), file.owner, file.repo)?;
                if file.revision == MAIN && !path.contains('@') { Ok(()) } else { write!(f, "@{}", file.revision) }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Source {
        Source::parse(text).unwrap().unwrap()
    }

    #[test]
    fn sources_map_to_addresses_and_names() {
        let mut settings = Settings::new("/c");
        for (text, url, name) in [
            (
                "hf://openai/clip-vit-base-patch32/pytorch_model.bin",
                "https://huggingface.co/openai/clip-vit-base-patch32/resolve/main/pytorch_model.bin",
                "hf/openai/clip-vit-base-patch32/main/pytorch_model.bin",
            ),
            (
                "hf://datasets/o/r/a/b c.zip@refs/pr/1",
                "https://huggingface.co/datasets/o/r/resolve/refs%2Fpr%2F1/a/b%20c.zip",
                "hf/datasets/o/r/refs%2Fpr%2F1/a/b c.zip",
            ),
            ("hf://o/r/a@b@v1", "https://huggingface.co/o/r/resolve/v1/a%40b", "hf/o/r/v1/a@b"),
            ("hf://spaces/o/r/a", "https://huggingface.co/spaces/o/r/resolve/main/a", "hf/spaces/o/r/main/a"),
            (
                "https://Example.com:8443/a/x%20y.pt",
                "https://example.com:8443/a/x%20y.pt",
                "web/example.com_8443/a/x%20y.pt",
            ),
            (
                "https://example.com/get/x.pt?id=3",
                "https://example.com/get/x.pt?id=3",
                "web/example.com/get/q-3a61b75b7aa22faa/x.pt",
            ),
            ("https://example.com/", "https://example.com/", "web/example.com/file"),
            ("http://localhost:9/x", "http://localhost:9/x", "web/localhost_9/x"),
        ] {
            let source = parsed(text);
            let asked = source.url(&settings).unwrap().to_string();
            assert_eq!((asked.as_str(), source.cache_name().as_str()), (url, name));
            assert_eq!(parsed(&source.to_string()), source);
            assert_eq!(source.to_string(), text);
        }
        assert_eq!(parsed("hf://o/r@v1/a@b").to_string(), "hf://o/r/a@b@v1");
        assert_eq!(parsed("hf://o/r@main/a@b").to_string(), "hf://o/r/a@b@main");
        assert_eq!(parsed("hf://o/r/a@main").to_string(), "hf://o/r/a");
        settings.hf_endpoint = "https://mirror.example/hub/".to_owned();
        let asked = parsed("hf://o/r/a").url(&settings).unwrap();
        assert_eq!(asked.to_string(), "https://mirror.example/hub/o/r/resolve/main/a");
        assert_eq!(parsed("hf://o/r/a/b.pt@v1").file_name(), "b.pt");
        assert_eq!(parsed("https://h/a/b.pt?c/d").file_name(), "b.pt");
        assert_eq!(parsed("https://h/a/").file_name(), "file");
    }

    #[test]
    fn long_names_stay_distinct() {
        let name = |letter: &str| parsed(&format!("https://h/{}{letter}", "ü".repeat(200))).cache_name();
        assert!(name("a").split('/').all(|part| part.len() <= MAX_PART) && name("a") != name("b"));
    }

    #[test]
    fn paths_are_no_sources() {
        for text in ["a/b.pt", "/a", "C:/a", "a://", "1://x", "hf:/a", "x y://a"] {
            assert_eq!(Source::parse(text).is_some(), text == "a://", "{text}");
        }
    }

    #[test]
    fn malformed_sources_are_errors() {
        for (text, problem) in [
            ("hf://o/r", HUB_FORM),
            ("hf://o/r/", HUB_FORM),
            ("hf://o//a", HUB_FORM),
            ("hf://datasets/o/r", HUB_FORM),
            ("hf://o/r/../a", HUB_FORM),
            ("hf://o/../a", HUB_FORM),
            ("hf://o/r/a@", HUB_FORM),
            ("hf://o/r/a@v/../..", HUB_FORM),
            ("hf://o/r@/a", HUB_FORM),
            ("hf://o/r?x/a", HUB_FORM),
            ("s3://b/a", "expected an address that begins with https:// or hf://, or the path of a file"),
            ("http://example.com/a", "d2o downloads over https only; http is allowed for servers on this machine"),
            ("https://u@h/a", "it contains a user name, which d2o does not send"),
        ] {
            let error = Source::parse(text).unwrap().unwrap_err();
            assert_eq!(error.to_string(), format!("`{text}`: {problem}"));
        }
    }
}
