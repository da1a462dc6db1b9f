//! The cache of the Hugging Face Hub, and the facts that the Hub announces about a file.

use std::path::{Path, PathBuf};

use fs_err as fs;
use ureq::http::HeaderMap;

use crate::hash;
use crate::source::{HubFile, is_part};

/// Longest file with the name of a commit, bytes.
const MAX_REF: u64 = 256;

/// Path of `file` in the cache of the Hub, if it exists there: `models--OWNER--REPO/snapshots/COMMIT/PATH`.
pub(crate) fn cached(cache: &Path, file: &HubFile) -> Option<PathBuf> {
    let repo = cache.join(format!("{}--{}--{}", file.kind.cached(), file.owner, file.repo));
    let inside = |revision: &str| {
        let path = file.path.iter().fold(repo.join("snapshots").join(revision), |path, part| path.join(part));
        fs::metadata(&path).is_ok_and(|found| found.is_file()).then_some(path)
    };
    if !file.revision.contains('/')
        && let Some(path) = inside(&file.revision)
    {
        return Some(path);
    }
    // For a branch or tag, the file of that name contains the commit.
    let named = repo.join("refs").join(&file.revision);
    let small = fs::metadata(&named).is_ok_and(|found| found.is_file() && found.len() <= MAX_REF);
    let commit = small.then(|| fs::read_to_string(&named).ok())??;
    let commit = commit.trim();
    (is_part(commit) && !commit.contains('/')).then(|| inside(commit))?
}

/// Facts that the Hub announces about a file that it sends or redirects to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Announced {
    pub(crate) sha256: Option<String>,
    pub(crate) bytes: Option<u64>,
}

impl Announced {
    /// Reads `X-Linked-Etag`, which is the SHA-256 of large files, and `X-Linked-Size`.
    pub(crate) fn read(headers: &HeaderMap) -> Self {
        let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).map(str::trim);
        let sha256 = text("x-linked-etag")
            .map(|tag| tag.trim_start_matches("W/").trim_matches('"').to_ascii_lowercase())
            .filter(|tag| hash::is_sha256(tag));
        let bytes = text("x-linked-size").and_then(|size| size.parse().ok());
        Self { sha256, bytes }
    }

    /// Takes missing facts from a later response.
    pub(crate) fn or(self, later: Self) -> Self {
        Self { sha256: self.sha256.or(later.sha256), bytes: self.bytes.or(later.bytes) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::Source;

    #[test]
    fn snapshots_are_found_by_commit_branch_and_nested_reference() {
        let dir = tempfile::tempdir().unwrap();
        let repo = dir.path().join("models--o--r");
        let snapshot = repo.join("snapshots/abc123");
        fs::create_dir_all(snapshot.join("a")).unwrap();
        fs::create_dir_all(repo.join("refs/refs/pr")).unwrap();
        fs::write(snapshot.join("a/x.pt"), "x").unwrap();
        fs::write(repo.join("refs/main"), "abc123\n").unwrap();
        fs::write(repo.join("refs/refs/pr/1"), "abc123").unwrap();
        fs::write(repo.join("refs/evil"), "../snapshots/abc123").unwrap();
        fs::write(repo.join("refs/gone"), "def456").unwrap();
        for (source, found) in [
            ("hf://o/r/a/x.pt", true),
            ("hf://o/r/a/x.pt@abc123", true),
            ("hf://o/r/a/x.pt@refs/pr/1", true),
            ("hf://o/r/a/x.pt@gone", false),
            ("hf://o/r/a/x.pt@evil", false),
            ("hf://o/r/a/x.pt@v2", false),
            ("hf://o/r/a", false),
            ("hf://datasets/o/r/a/x.pt", false),
        ] {
            let source = Source::parse(source).unwrap().unwrap();
            let path = cached(dir.path(), source.hub().unwrap());
            assert_eq!(path, found.then(|| snapshot.join("a/x.pt")), "{source}");
        }
    }

    #[test]
    fn announcements_are_read_from_headers() {
        let read = |name: &'static str, value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(name, value.parse().unwrap());
            Announced::read(&headers)
        };
        let sha256 = "ab".repeat(32);
        assert_eq!(read("x-linked-etag", &format!("\"{sha256}\"")).sha256, Some(sha256.clone()));
        assert_eq!(read("x-linked-etag", &format!("W/\"{}\"", sha256.to_uppercase())).sha256, Some(sha256));
        assert_eq!(read("x-linked-etag", "\"5d41402abc4b2a76b9719d911017c592\"").sha256, None);
        assert_eq!((read("x-linked-size", "12").bytes, read("x-linked-size", "-1").bytes), (Some(12), None));
    }
}
