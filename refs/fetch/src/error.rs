//! Errors of this crate.

use std::fmt::{self, Formatter};
use std::path::{Path, PathBuf};
use std::time::Duration;

use ureq::http::StatusCode;

use crate::hash::PublishedHash;

/// Why a file is not available. [`Error::hint`] suggests a remedy.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A text is not the address of a file.
    #[error("`{text}`: {problem}")]
    Source {
        /// The text.
        text: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// A text is not a SHA-256 or the beginning of one.
    #[error("`{text}` is not a SHA-256: expected 8 to 64 hexadecimal digits")]
    Hash {
        /// The text.
        text: String,
    },
    /// A name is not valid for a file in the cache.
    #[error("`{name}` cannot name a file in the cache: {problem}")]
    Name {
        /// The name.
        name: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// A setting has an invalid value.
    #[error("{name} is `{value}`: {problem}")]
    Setting {
        /// The environment variable that it is usually taken from.
        name: &'static str,
        /// Its value, without user and password.
        value: String,
        /// What is wrong with it.
        problem: String,
    },
    /// No cache folder is configured.
    #[error("no folder for downloads: none of D2O_CACHE, XDG_CACHE_HOME and HOME is set")]
    NoCache,
    /// A file is not in the cache, and downloads are disabled or no address is known.
    #[error(fmt = offline)]
    Offline {
        /// Path of the file in the cache.
        file: PathBuf,
        /// Addresses of the file, best first.
        urls: Vec<String>,
        /// Length of the file, bytes.
        bytes: Option<u64>,
        /// Published hash of the file.
        sha256: PublishedHash,
        /// The hash of an earlier download, if none is published.
        learned: Option<String>,
    },
    /// No connection to a server.
    #[error("{url}: cannot connect")]
    Connection {
        /// The address.
        url: String,
        /// The cause.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A server has no valid certificate, or does not support TLS.
    #[error("{url}: cannot establish a TLS connection: {problem}")]
    Tls {
        /// The address.
        url: String,
        /// The cause.
        problem: String,
    },
    /// A connection through a proxy fails.
    #[error("{url}: cannot connect through the proxy: {problem}")]
    Proxy {
        /// The address.
        url: String,
        /// The cause.
        problem: String,
    },
    /// A server sent nothing for too long.
    #[error("{url}: no response or data for {} s, {done} of {} bytes received", .idle.as_secs_f64(), known(.total))]
    Stalled {
        /// The address.
        url: String,
        /// Time without a byte.
        idle: Duration,
        /// Bytes received.
        done: u64,
        /// Bytes of the whole file.
        total: Option<u64>,
    },
    /// A connection ended early.
    #[error("{url}: the connection was lost, {done} of {} bytes received", known(.total))]
    BrokenOff {
        /// The address.
        url: String,
        /// Bytes received.
        done: u64,
        /// Bytes of the whole file.
        total: Option<u64>,
    },
    /// A server does not follow HTTP.
    #[error("{url}: {problem}")]
    Protocol {
        /// The address.
        url: String,
        /// The violation.
        problem: String,
    },
    /// A server redirects to an address that is not allowed.
    #[error("{url}: cannot follow the redirect to `{to}`: {problem}")]
    Redirect {
        /// The address.
        url: String,
        /// The target address, without its query.
        to: String,
        /// Why it is not followed.
        problem: &'static str,
    },
    /// A server responds with a status that does not deliver the file.
    #[error("{url}: the server responded with {}{}", status(*.code), after(.message))]
    Status {
        /// The address.
        url: String,
        /// Status code.
        code: u16,
        /// Message of the server; can be empty.
        message: String,
        /// Wait that the server asks for.
        retry_after: Option<Duration>,
    },
    /// A file does not have the published or announced length.
    #[error("{place}: expected {expected} bytes, found {found}{}", sent_as(.content_type))]
    WrongSize {
        /// Address or file.
        place: String,
        /// The published or announced length.
        expected: u64,
        /// The length found or announced.
        found: u64,
        /// Content type according to the server.
        content_type: Option<String>,
    },
    /// A file does not have the published or announced hash.
    #[error("{place}: expected {expected}, found {found}{}", sent_as(.content_type))]
    WrongHash {
        /// Address or file.
        place: String,
        /// The published or announced hash.
        expected: PublishedHash,
        /// The hash found or announced.
        found: String,
        /// Content type according to the server.
        content_type: Option<String>,
    },
    /// A file without published hash differs from the first download.
    #[error("{place}: expected sha256 {learned} as in the first download, found {found}{}", sent_as(.content_type))]
    Changed {
        /// Address or file.
        place: String,
        /// The hash of the first download.
        learned: String,
        /// The hash found or announced.
        found: String,
        /// Content type according to the server.
        content_type: Option<String>,
        /// The file that records the first download.
        record: PathBuf,
    },
    /// A server sends a web page instead of a file with unknown length and hash.
    #[error("{url}: the server sent a web page ({content_type}), not a file")]
    WebPage {
        /// The address.
        url: String,
        /// Content type according to the server.
        content_type: String,
    },
    /// The end of a file cannot be distinguished from a lost connection.
    #[error("{url}: the server does not send the length of the file, and neither its length nor its sha256 is known")]
    NoLength {
        /// The address.
        url: String,
    },
    /// The disk is full.
    #[error("{}: no space left, {done} of {} bytes written", .file.display(), known(.total))]
    NoSpace {
        /// The partial file.
        file: PathBuf,
        /// Bytes written.
        done: u64,
        /// Bytes of the whole file.
        total: Option<u64>,
        /// The error of the file system.
        #[source]
        source: std::io::Error,
    },
    /// A file cannot be locked, so two downloads of it would conflict.
    #[error("{}: the file system has no file locks", .file.display())]
    NoLocks {
        /// The partial file.
        file: PathBuf,
        /// The error of the file system.
        #[source]
        source: std::io::Error,
    },
    /// No source could be used.
    #[error(fmt = all_failed)]
    AllFailed {
        /// The error of each source, best source first.
        errors: Vec<Error>,
    },
    /// [`Progress::update`](crate::Progress::update) ended the download.
    #[error("interrupted")]
    Interrupted,
    /// Reading or writing the cache failed.
    #[error(transparent)]
    Io(#[from] std::io::Error),
}

/// Result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    pub(crate) fn setting(name: &'static str, value: &str, problem: impl Into<String>) -> Self {
        Self::Setting { name, value: value.to_owned(), problem: problem.into() }
    }

    /// Suggested remedy, in one line.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        let text = match self {
            Self::NoCache => "set D2O_CACHE to a folder for downloads",
            Self::Offline { urls, .. } if !urls.is_empty() => {
                "downloads are disabled by D2O_OFFLINE, HF_HUB_OFFLINE or --offline"
            }
            Self::Tls { .. } => {
                "if a proxy of your network intercepts TLS, set SSL_CERT_FILE to a PEM file with its certificate, such as /etc/ssl/certs/ca-certificates.crt"
            }
            Self::Connection { .. } | Self::Stalled { .. } => "if your network requires a proxy, set HTTPS_PROXY",
            Self::Proxy { .. } => "the proxy is set by HTTPS_PROXY or ALL_PROXY; NO_PROXY lists hosts that bypass it",
            Self::Status { url, code, .. } => return status_hint(url, *code).map(str::to_owned),
            Self::WrongHash { content_type: Some(kind), .. } | Self::WrongSize { content_type: Some(kind), .. }
                if is_page(kind) =>
            {
                "the server sent a web page, perhaps a login page; download the file with a browser and place it in the cache"
            }
            Self::Changed { record, .. } => {
                return Some(format!("if the file was republished and you trust it, remove `{}`", record.display()));
            }
            Self::WebPage { url, .. } => return Some(page_hint(url)),
            Self::NoSpace { .. } => {
                "the next run continues the download; set D2O_CACHE to use a folder on another file system"
            }
            Self::NoLocks { .. } => "set D2O_CACHE to a folder on another file system",
            Self::AllFailed { errors } => return errors.iter().find_map(Self::hint),
            Self::Io(error)
                if matches!(
                    error.kind(),
                    std::io::ErrorKind::PermissionDenied | std::io::ErrorKind::ReadOnlyFilesystem
                ) =>
            {
                "set D2O_CACHE to a writable folder"
            }
            _ => return None,
        };
        Some(text.to_owned())
    }
}

/// Whether a content type is that of a web page.
pub(crate) fn is_page(content_type: &str) -> bool {
    let kind = content_type.split(';').next().unwrap_or_default().trim();
    kind.eq_ignore_ascii_case("text/html") || kind.eq_ignore_ascii_case("application/xhtml+xml")
}

fn status_hint(url: &str, code: u16) -> Option<&'static str> {
    let hub = url.contains("/resolve/");
    match code {
        401 | 403 if hub => Some(
            "if the repository is private or gated, request access on its page and set HF_TOKEN to your access token",
        ),
        401 | 403 => Some("the server requires a login; download the file manually and place it in the cache"),
        404 | 410 if hub => Some("check owner, repository, revision and path"),
        429 | 503 => Some("the server is busy; try again later"),
        _ => None,
    }
}

fn page_hint(url: &str) -> String {
    for (page, file) in [("/blob/", "/resolve/"), ("/tree/", "/resolve/")] {
        let file = if url.contains("://github.com/") { "/raw/" } else { file };
        if url.contains(page) {
            return format!("`{}` may be the file itself", url.replacen(page, file, 1));
        }
    }
    "use the address of the file itself, not of its page".to_owned()
}

fn known(total: &Option<u64>) -> String {
    total.map_or_else(|| "an unknown number of".to_owned(), |total| total.to_string())
}

/// The content type in parentheses, or nothing.
fn sent_as(content_type: &Option<String>) -> String {
    content_type.as_ref().map_or_else(String::new, |kind| format!(" (sent as {kind})"))
}

/// A status code and its name.
pub(crate) fn status(code: u16) -> String {
    let name = StatusCode::from_u16(code).ok().and_then(|code| code.canonical_reason());
    name.map_or_else(|| code.to_string(), |name| format!("{code} {name}"))
}

fn after(message: &str) -> String {
    if message.is_empty() { String::new() } else { format!(": {message}") }
}

fn offline(
    file: &Path,
    urls: &[String],
    bytes: &Option<u64>,
    sha256: &PublishedHash,
    learned: &Option<String>,
    f: &mut Formatter<'_>,
) -> fmt::Result {
    write!(f, "`{}` does not exist, and ", file.display())?;
    if urls.is_empty() {
        write!(f, "no download address is known; place the file there")?;
    } else {
        write!(f, "downloads are disabled; place the file there from {}", urls.join(" or "))?;
    }
    if let Some(bytes) = bytes {
        write!(f, ", {bytes} bytes")?;
    }
    match learned {
        Some(learned) if sha256.bits() == 0 => write!(f, ", sha256 {learned} as in the first download"),
        _ => write!(f, ", {sha256}"),
    }
}

fn all_failed(errors: &[Error], f: &mut Formatter<'_>) -> fmt::Result {
    write!(f, "none of {} sources could be used", errors.len())?;
    for (i, error) in errors.iter().enumerate() {
        write!(f, "; {}. {error}", i + 1)?;
        let mut cause = std::error::Error::source(error);
        while let Some(inner) = cause {
            write!(f, ": {inner}")?;
            cause = inner.source();
        }
    }
    Ok(())
}
