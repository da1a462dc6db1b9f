//! HTTP addresses: the part of RFC 3986 that downloads need.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};

/// `http` or `https`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scheme {
    Http,
    Https,
}

impl Scheme {
    const fn name(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Https => "https",
        }
    }

    const fn port(self) -> u16 {
        match self {
            Self::Http => 80,
            Self::Https => 443,
        }
    }
}

/// An absolute address without user and fragment. The path begins with `/`, has no dot segments, and contains only
/// characters that may be sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Url {
    scheme: Scheme,
    /// In lower case; IPv6 addresses in brackets.
    host: String,
    port: u16,
    path: String,
    query: Option<String>,
}

impl Url {
    /// Parses an absolute address. The error is the problem.
    pub(crate) fn parse(text: &str) -> Result<Self, &'static str> {
        let (scheme, rest) = split_scheme(text).ok_or("it has no scheme")?;
        let scheme = match scheme.to_ascii_lowercase().as_str() {
            "http" => Scheme::Http,
            "https" => Scheme::Https,
            _ => return Err("its scheme is neither https nor http"),
        };
        Self::after_scheme(scheme, rest)
    }

    fn after_scheme(scheme: Scheme, rest: &str) -> Result<Self, &'static str> {
        let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
        let (authority, rest) = rest.split_at(end);
        if authority.contains('@') {
            return Err("it contains a user name, which d2o does not send");
        }
        let (host, port) = split_port(authority);
        let port = match port {
            None | Some("") => scheme.port(),
            Some(digits) => digits.parse().map_err(|_| "its port is not a number below 65536")?,
        };
        let host = host.to_ascii_lowercase();
        if !is_host(&host) {
            return Err("its host is not a name of ASCII letters, digits, dots and hyphens, nor an IP address");
        }
        let (path, query) = path_and_query(rest);
        Ok(Self { scheme, host, port, path: without_dots(&path), query })
    }

    /// Resolves `reference`, the `Location` in a response from this address.
    pub(crate) fn join(&self, reference: &str) -> Result<Self, &'static str> {
        if split_scheme(reference).is_some() {
            return Self::parse(reference);
        }
        if let Some(rest) = reference.strip_prefix("//") {
            return Self::after_scheme(self.scheme, rest);
        }
        let (path, query) = path_and_query(reference);
        let mut url = self.clone();
        if reference.starts_with('/') {
            (url.path, url.query) = (without_dots(&path), query);
        } else if !reference.is_empty() && !reference.starts_with(['?', '#']) {
            let folder = self.path.rfind('/').map_or("/", |at| &self.path[..=at]);
            (url.path, url.query) = (without_dots(&format!("{folder}{path}")), query);
        } else if query.is_some() {
            url.query = query;
        }
        Ok(url)
    }

    /// This address with `path` appended to its own path, without query. `path` is already encoded.
    pub(crate) fn with_path(&self, path: &str) -> Self {
        Self { path: format!("{}/{path}", self.path.trim_end_matches('/')), query: None, ..self.clone() }
    }

    /// Checks that a download from this address is protected. The error is the reason why not.
    pub(crate) fn ensure_secure(&self) -> Result<(), &'static str> {
        if self.is_https() || self.is_loopback() {
            return Ok(());
        }
        Err("d2o downloads over https only; http is allowed for servers on this machine")
    }

    pub(crate) const fn is_https(&self) -> bool {
        matches!(self.scheme, Scheme::Https)
    }

    /// The host, without brackets.
    pub(crate) fn host(&self) -> &str {
        self.host.trim_start_matches('[').trim_end_matches(']')
    }

    pub(crate) const fn port(&self) -> u16 {
        self.port
    }

    pub(crate) fn path(&self) -> &str {
        &self.path
    }

    pub(crate) fn query(&self) -> Option<&str> {
        self.query.as_deref()
    }

    /// Whether both have the same scheme, host and port. Only then a secret for one may be sent to the other.
    pub(crate) fn same_origin(&self, other: &Self) -> bool {
        (self.scheme, &self.host, self.port) == (other.scheme, &other.host, other.port)
    }

    /// Whether the host is this machine.
    pub(crate) fn is_loopback(&self) -> bool {
        let host = self.host();
        host == "localhost"
            || host.ends_with(".localhost")
            || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
    }

    /// The host, and the port if it is not the default of the scheme.
    pub(crate) fn authority(&self) -> String {
        if self.port == self.scheme.port() { self.host.clone() } else { format!("{}:{}", self.host, self.port) }
    }

    /// The address without its query, which can contain a signature.
    pub(crate) fn shown(&self) -> String {
        format!("{}://{}{}", self.scheme.name(), self.authority(), self.path)
    }
}

impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.shown())?;
        self.query.as_ref().map_or(Ok(()), |query| write!(f, "?{query}"))
    }
}

/// The scheme of `text` and the text after `://`; `None` without a valid scheme.
pub(crate) fn split_scheme(text: &str) -> Option<(&str, &str)> {
    let (scheme, rest) = text.split_once("://")?;
    let named = scheme.starts_with(|c: char| c.is_ascii_alphabetic())
        && scheme.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '+' | '-' | '.'));
    named.then_some((scheme, rest))
}

/// The host and the text after its colon.
pub(crate) fn split_port(authority: &str) -> (&str, Option<&str>) {
    match authority.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') && (host.starts_with('[') || !host.contains(':')) => {
            (host, Some(port))
        }
        _ => (authority, None),
    }
}

fn is_host(host: &str) -> bool {
    if let Some(address) = host.strip_prefix('[') {
        return address.strip_suffix(']').is_some_and(|a| a.parse::<Ipv6Addr>().is_ok());
    }
    let part =
        |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'));
    host.strip_suffix('.').unwrap_or(host).split('.').all(part)
}

/// Path and query of the text after a host, encoded and without the fragment.
fn path_and_query(text: &str) -> (String, Option<String>) {
    let text = text.split('#').next().unwrap_or_default();
    match text.split_once('?') {
        Some((path, query)) => (encode(path, is_sent), Some(encode(query, is_sent))),
        None => (encode(text, is_sent), None),
    }
}

/// Whether a byte of an address is sent unchanged.
const fn is_sent(byte: u8) -> bool {
    byte.is_ascii_graphic() && !matches!(byte, b'"' | b'<' | b'>' | b'\\' | b'^' | b'`' | b'{' | b'|' | b'}')
}

/// Whether a byte of a name is sent unchanged in a path segment.
pub(crate) const fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~')
}

/// `text` with `%XX` for every byte for which `kept` returns false.
pub(crate) fn encode(text: &str, kept: impl Fn(u8) -> bool) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if kept(byte) { out.push(char::from(byte)) } else { out.push_str(&format!("%{byte:02X}")) }
    }
    out
}

/// `path` without `.` and `..` (RFC 3986, 5.2.4). The result begins with `/`.
fn without_dots(path: &str) -> String {
    let mut kept: Vec<&str> = Vec::new();
    let mut segments = path.strip_prefix('/').unwrap_or(path).split('/').peekable();
    while let Some(segment) = segments.next() {
        match segment {
            "." | ".." => {
                if segment == ".." {
                    kept.pop();
                }
                if segments.peek().is_none() {
                    kept.push("");
                }
            }
            segment => kept.push(segment),
        }
    }
    format!("/{}", kept.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_and_shown() {
        for (text, shown) in [
            ("HTTPS://Example.COM", "https://example.com/"),
            ("https://example.com:443/a", "https://example.com/a"),
            ("https://example.com:8443?q=1", "https://example.com:8443/?q=1"),
            ("http://[::1]:80/a b/ü#f", "http://[::1]/a%20b/%C3%BC"),
            ("https://h/a/../b/./c/..?x=a/../b", "https://h/b/?x=a/../b"),
            ("https://h/../..", "https://h/"),
            ("https://h/%2e%2E/a%20b", "https://h/%2e%2E/a%20b"),
        ] {
            assert_eq!(Url::parse(text).unwrap().to_string(), shown, "{text}");
        }
        assert_eq!(Url::parse("https://h/a?Signature=x").unwrap().shown(), "https://h/a");
    }

    #[test]
    fn what_is_no_address_is_refused() {
        for (text, problem) in [
            ("example.com/a", "scheme"),
            ("ftp://example.com", "scheme"),
            ("https://", "host"),
            ("https:///a", "host"),
            ("https://a..b/", "host"),
            ("https://exa mple/", "host"),
            ("https://ü.de/", "host"),
            ("https://[::1/", "host"),
            ("https://h:x/", "port"),
            ("https://h:65536/", "port"),
            ("https://u:p@h/", "user name"),
        ] {
            let error = Url::parse(text).unwrap_err();
            assert!(error.contains(problem), "{text}: {error}");
        }
    }

    /// The examples of RFC 3986, 5.4, that concern HTTP.
    #[test]
    fn references_are_resolved() {
        let base = Url::parse("http://a/b/c/d;p?q").unwrap();
        for (reference, wanted) in [
            ("g", "http://a/b/c/g"),
            ("./g", "http://a/b/c/g"),
            ("g/", "http://a/b/c/g/"),
            ("/g", "http://a/g"),
            ("//g", "http://g/"),
            ("?y", "http://a/b/c/d;p?y"),
            ("g?y", "http://a/b/c/g?y"),
            ("#s", "http://a/b/c/d;p?q"),
            ("g#s", "http://a/b/c/g"),
            (";x", "http://a/b/c/;x"),
            ("", "http://a/b/c/d;p?q"),
            (".", "http://a/b/c/"),
            ("./", "http://a/b/c/"),
            ("..", "http://a/b/"),
            ("../", "http://a/b/"),
            ("../g", "http://a/b/g"),
            ("../..", "http://a/"),
            ("../../g", "http://a/g"),
            ("../../../g", "http://a/g"),
            ("/./g", "http://a/g"),
            ("/../g", "http://a/g"),
            ("g.", "http://a/b/c/g."),
            ("..g", "http://a/b/c/..g"),
            ("./../g", "http://a/b/g"),
            ("g/../h", "http://a/b/c/h"),
            ("g?y/../x", "http://a/b/c/g?y/../x"),
            ("https://c/d?u=http://x", "https://c/d?u=http://x"),
            ("g?u=http://x", "http://a/b/c/g?u=http://x"),
        ] {
            assert_eq!(base.join(reference).unwrap().to_string(), wanted, "{reference}");
        }
        assert!(base.join("ftp://x/").is_err());
    }

    #[test]
    fn origins_and_this_machine() {
        let url = |text: &str| Url::parse(text).unwrap();
        assert!(url("https://H/a").same_origin(&url("https://h:443/b?c")));
        for other in ["http://h/", "https://h:444/", "https://h.x/"] {
            assert!(!url("https://h/").same_origin(&url(other)), "{other}");
        }
        for (text, here) in [
            ("http://localhost:1/", true),
            ("http://a.localhost/", true),
            ("http://127.8.0.1/", true),
            ("http://[::1]:8/", true),
            ("http://localhost.com/", false),
            ("http://10.0.0.1/", false),
            ("http://127.0.0.1.nip.io/", false),
        ] {
            assert_eq!(url(text).is_loopback(), here, "{text}");
        }
    }

    #[test]
    fn ports_of_authorities() {
        for (text, split) in [
            ("h", ("h", None)),
            ("h:1", ("h", Some("1"))),
            ("[::1]", ("[::1]", None)),
            ("[::1]:1", ("[::1]", Some("1"))),
            ("::1", ("::1", None)),
        ] {
            assert_eq!(split_port(text), split);
        }
    }
}
