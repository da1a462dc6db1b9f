//! Settings of downloads.

use std::ffi::OsString;
use std::fmt;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use fs_err as fs;

use crate::error::{Error, Result};
use crate::url::{Url, split_port};

/// Address of the Hub.
const HF_ENDPOINT: &str = "https://huggingface.co";
/// Longest token file that is read, bytes.
const MAX_TOKEN_FILE: u64 = 4096;

/// Cache folder of the user: `XDG_CACHE_HOME`, else `HOME`/.cache.
fn user_cache(lookup: impl Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    let path = |name| lookup(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    // A relative XDG_CACHE_HOME is invalid and must be ignored.
    let named = path("XDG_CACHE_HOME").filter(|folder| folder.is_absolute());
    named.or_else(|| Some(path("HOME")?.join(".cache")))
}

/// Folder of d2o for files that can be created again: `D2O_CACHE`, else d2o in `XDG_CACHE_HOME` or in `HOME`/.cache.
/// `lookup` returns the values of environment variables. Empty ones count as unset.
///
/// # Errors
/// [`Error::NoCache`] if no variable names the folder.
pub fn cache_folder(lookup: impl Fn(&str) -> Option<OsString>) -> Result<PathBuf> {
    let named = lookup("D2O_CACHE").filter(|value| !value.is_empty()).map(PathBuf::from);
    named.or_else(|| Some(user_cache(lookup)?.join("d2o"))).ok_or(Error::NoCache)
}

/// A text that `Debug` does not show.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// A secret with the content `text`.
    #[must_use]
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    pub(crate) fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// Location of files, and settings for connections to servers.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Settings {
    /// Folder in which files are kept.
    pub cache: PathBuf,
    /// Cache of the Hugging Face Hub (`…/huggingface/hub`). Its files are used in place. Nothing is written into it.
    pub hf_cache: Option<PathBuf>,
    /// Address of the Hub in `hf://` sources: the Hub itself, or a mirror.
    pub hf_endpoint: String,
    /// Access token for the Hub, sent only to the scheme, host and port of `hf_endpoint`.
    pub hf_token: Option<Secret>,
    /// Whether downloads are disabled.
    pub offline: bool,
    /// Whether downloads from `hf://` sources are disabled.
    pub hf_offline: bool,
    /// Address of the proxy for `https`: `[http|https|socks4|socks4a|socks5|socks5h://][USER:PASSWORD@]HOST[:PORT]`.
    /// Servers on this machine are contacted directly.
    pub proxy: Option<Secret>,
    /// Hosts that are contacted directly, separated by commas or spaces: `example.com` (its subdomains too),
    /// `.example.com`, `example.com:8443`, an IP address, a block of them (`10.0.0.0/8`), or `*` for all.
    pub no_proxy: String,
    /// PEM file of the certificate authorities to trust instead of the built-in list of Mozilla.
    pub ca_file: Option<PathBuf>,
    /// Longest time to look up a host, and to connect to it.
    pub connect_timeout: Duration,
    /// Longest time without a byte.
    pub idle_timeout: Duration,
    /// Number of retries after failures in a row. An attempt that receives at least 1 MiB resets the count.
    pub retries: u32,
    /// Wait before the second attempt. It doubles with each further attempt, up to 64 times the first wait. A longer
    /// `Retry-After` of the server replaces it.
    pub backoff: Duration,
    /// Longest `Retry-After`. A source with a longer one is given up.
    pub longest_wait: Duration,
    /// Sent as `User-Agent`.
    pub user_agent: String,
}

impl Settings {
    /// Settings with a cache in `cache`, no proxy, no token and the defaults: 20 s to connect, 30 s without a byte, 5 retries after 1, 2, 4, 8
    /// and 16 s, waits of up to 2 minutes.
    #[must_use]
    pub fn new(cache: impl Into<PathBuf>) -> Self {
        Self {
            cache: cache.into(),
            hf_cache: None,
            hf_endpoint: HF_ENDPOINT.to_owned(),
            hf_token: None,
            offline: false,
            hf_offline: false,
            proxy: None,
            no_proxy: String::new(),
            ca_file: None,
            connect_timeout: Duration::from_secs(20),
            idle_timeout: Duration::from_secs(30),
            retries: 5,
            backoff: Duration::from_secs(1),
            longest_wait: Duration::from_secs(120),
            user_agent: concat!("d2o/", env!("CARGO_PKG_VERSION")).to_owned(),
        }
    }

    /// Settings from environment variables. `lookup` returns their values. Empty ones count as unset.
    ///
    /// | setting | variables, the first that is set |
    /// |---|---|
    /// | `cache` | `D2O_CACHE`/downloads, `XDG_CACHE_HOME`/d2o/downloads, `HOME`/.cache/d2o/downloads |
    /// | `hf_cache` | `HF_HUB_CACHE`, `HUGGINGFACE_HUB_CACHE`, `HF_HOME`/hub, huggingface/hub in the cache of the user |
    /// | `hf_endpoint` | `HF_ENDPOINT` |
    /// | `hf_token` | `HF_TOKEN`, `HUGGING_FACE_HUB_TOKEN`, the file `HF_TOKEN_PATH`, the file token in `HF_HOME` or in huggingface in the cache of the user |
    /// | `offline`, `hf_offline` | `D2O_OFFLINE`, `HF_HUB_OFFLINE`: `1`, `true`, `yes` or `on` |
    /// | `proxy` | `HTTPS_PROXY`, `https_proxy`, `ALL_PROXY`, `all_proxy` |
    /// | `no_proxy` | `NO_PROXY`, `no_proxy` |
    /// | `ca_file` | `SSL_CERT_FILE` |
    ///
    /// A stored token is not used if `HF_HUB_DISABLE_IMPLICIT_TOKEN` is on. `HTTP_PROXY` is ignored, since plain HTTP
    /// is used only for servers on this machine.
    ///
    /// # Errors
    /// [`Error::NoCache`] if no variable names the cache; [`Error::Setting`] for a value that is not UTF-8.
    pub fn from_env(lookup: impl Fn(&str) -> Option<OsString>) -> Result<Self> {
        let first = |names: &[&'static str]| {
            names.iter().find_map(|name| Some((*name, lookup(name).filter(|value| !value.is_empty())?)))
        };
        let path = |names: &[&'static str]| first(names).map(|(_, value)| PathBuf::from(value));
        let text = |names: &[&'static str]| match first(names) {
            None => Ok(None),
            Some((name, value)) => {
                let problem = "it is not UTF-8";
                value.into_string().map(Some).map_err(|value| Error::setting(name, &value.to_string_lossy(), problem))
            }
        };
        let on = |name: &'static str| -> Result<bool> {
            let value = text(&[name])?.unwrap_or_default().to_ascii_lowercase();
            Ok(matches!(value.as_str(), "1" | "true" | "yes" | "on"))
        };
        let mut settings = Self::new(cache_folder(&lookup)?.join("downloads"));
        let hf_home = path(&["HF_HOME"]).or_else(|| Some(user_cache(&lookup)?.join("huggingface")));
        settings.hf_cache = path(&["HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"])
            .or_else(|| hf_home.as_ref().map(|folder| folder.join("hub")));
        if let Some(endpoint) = text(&["HF_ENDPOINT"])? {
            settings.hf_endpoint = endpoint;
        }
        settings.hf_token = match text(&["HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"])? {
            Some(token) => Some(token.trim().to_owned()),
            None if on("HF_HUB_DISABLE_IMPLICIT_TOKEN")? => None,
            None => path(&["HF_TOKEN_PATH"]).or_else(|| hf_home.map(|f| f.join("token"))).and_then(|f| stored(&f)),
        }
        .filter(|token| !token.is_empty())
        .map(Secret);
        settings.offline = on("D2O_OFFLINE")?;
        settings.hf_offline = on("HF_HUB_OFFLINE")?;
        settings.proxy = text(&["HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"])?.map(Secret);
        settings.no_proxy = text(&["NO_PROXY", "no_proxy"])?.unwrap_or_default();
        settings.ca_file = path(&["SSL_CERT_FILE"]);
        Ok(settings)
    }

    /// The address of the Hub.
    pub(crate) fn endpoint(&self) -> Result<Url> {
        Url::parse(&self.hf_endpoint)
            .and_then(|url| url.ensure_secure().map(|()| url))
            .map_err(|problem| Error::setting("HF_ENDPOINT", &self.hf_endpoint, problem))
    }

    /// The proxy for `url`; `None` if its host is contacted directly.
    pub(crate) fn proxy_for(&self, url: &Url) -> Result<Option<ureq::Proxy>> {
        let Some(proxy) = &self.proxy else { return Ok(None) };
        if url.is_loopback() || self.no_proxy.split([',', ' ']).any(|entry| no_proxy_matches(entry, url)) {
            return Ok(None);
        }
        let proxy = proxy.reveal();
        let problem = "expected [SCHEME://][USER:PASSWORD@]HOST[:PORT], where the scheme is http, https, socks4, socks4a, socks5 or socks5h";
        // Messages do not show the user and password.
        let shown = || proxy.rsplit_once('@').map_or_else(|| proxy.to_owned(), |(_, host)| format!("…@{host}"));
        ureq::Proxy::new(proxy).map(Some).map_err(|_| Error::setting("HTTPS_PROXY", &shown(), problem))
    }
}

/// The token in a file, if there is one.
fn stored(path: &Path) -> Option<String> {
    let small = fs::metadata(path).is_ok_and(|found| found.is_file() && found.len() <= MAX_TOKEN_FILE);
    small.then(|| fs::read_to_string(path).ok())?.map(|text| text.trim().to_owned())
}

/// Whether an entry of `NO_PROXY` names the host of `url`.
fn no_proxy_matches(entry: &str, url: &Url) -> bool {
    let host = url.host();
    if entry == "*" {
        return true;
    }
    if let Some((network, bits)) = entry.split_once('/') {
        return match (network.parse(), bits.parse(), host.parse()) {
            (Ok(network), Ok(bits), Ok(address)) => is_in(network, bits, address),
            _ => false,
        };
    }
    let (name, port) = split_port(entry);
    if port.is_some_and(|port| port.parse() != Ok(url.port())) {
        return false;
    }
    let name = name.trim_start_matches('[').trim_end_matches(']');
    if let (Ok(named), Ok(address)) = (name.parse::<IpAddr>(), host.parse::<IpAddr>()) {
        return named == address;
    }
    let name = name.trim_start_matches("*").to_ascii_lowercase();
    let domain = name.trim_start_matches('.');
    !domain.is_empty() && (host == domain || host.strip_suffix(domain).is_some_and(|rest| rest.ends_with('.')))
}

/// Whether the first `bits` of both addresses are the same.
fn is_in(network: IpAddr, bits: u32, address: IpAddr) -> bool {
    match (network, address) {
        (IpAddr::V4(a), IpAddr::V4(b)) if bits <= 32 => {
            (u32::from(a) ^ u32::from(b)).checked_shr(32 - bits).unwrap_or(0) == 0
        }
        (IpAddr::V6(a), IpAddr::V6(b)) if bits <= 128 => {
            (u128::from(a) ^ u128::from(b)).checked_shr(128 - bits).unwrap_or(0) == 0
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    fn from(variables: &[(&str, &str)]) -> Result<Settings> {
        let variables: HashMap<_, _> = variables.iter().copied().collect();
        Settings::from_env(|name| variables.get(name).map(OsString::from))
    }

    #[test]
    fn folders_follow_the_environment() {
        for (variables, cache, hub) in [
            (&[("HOME", "/h")][..], "/h/.cache/d2o/downloads", Some("/h/.cache/huggingface/hub")),
            (&[("HOME", "/h"), ("XDG_CACHE_HOME", "/x")], "/x/d2o/downloads", Some("/x/huggingface/hub")),
            (&[("HOME", "/h"), ("XDG_CACHE_HOME", "x")], "/h/.cache/d2o/downloads", Some("/h/.cache/huggingface/hub")),
            (&[("HOME", "/h"), ("D2O_CACHE", "/d")], "/d/downloads", Some("/h/.cache/huggingface/hub")),
            (&[("D2O_CACHE", "/d"), ("HF_HOME", "/f")], "/d/downloads", Some("/f/hub")),
            (&[("D2O_CACHE", "/d"), ("HF_HOME", "/f"), ("HUGGINGFACE_HUB_CACHE", "/g")], "/d/downloads", Some("/g")),
            (
                &[("D2O_CACHE", "/d"), ("HUGGINGFACE_HUB_CACHE", "/g"), ("HF_HUB_CACHE", "/c")],
                "/d/downloads",
                Some("/c"),
            ),
            (&[("D2O_CACHE", "/d"), ("HOME", "")], "/d/downloads", None),
        ] {
            let settings = from(variables).unwrap();
            assert_eq!((settings.cache, settings.hf_cache), (cache.into(), hub.map(PathBuf::from)), "{variables:?}");
        }
        assert!(matches!(from(&[("XDG_CACHE_HOME", "x")]), Err(Error::NoCache)));
    }

    #[test]
    fn switches_and_proxies_follow_the_environment() {
        let home = ("HOME", "/h");
        let settings = from(&[home]).unwrap();
        assert_eq!((settings.offline, settings.hf_offline, settings.no_proxy.as_str()), (false, false, ""));
        assert_eq!((settings.proxy, settings.ca_file, settings.hf_token), (None, None, None));
        assert_eq!((settings.hf_endpoint.as_str(), settings.user_agent.as_str()), (HF_ENDPOINT, "d2o/0.1.0"));
        for (value, on) in [("1", true), ("TRUE", true), ("on", true), ("Yes", true), ("0", false), ("false", false)] {
            assert_eq!(from(&[home, ("D2O_OFFLINE", value)]).unwrap().offline, on, "{value}");
            assert_eq!(from(&[home, ("HF_HUB_OFFLINE", value)]).unwrap().hf_offline, on, "{value}");
        }
        for (variables, proxy) in [
            (&[home, ("all_proxy", "a")][..], Some("a")),
            (&[home, ("all_proxy", "a"), ("ALL_PROXY", "A")], Some("A")),
            (&[home, ("ALL_PROXY", "A"), ("https_proxy", "s")], Some("s")),
            (&[home, ("https_proxy", "s"), ("HTTPS_PROXY", "S")], Some("S")),
            (&[home, ("HTTP_PROXY", "H"), ("http_proxy", "h")], None),
        ] {
            assert_eq!(from(variables).unwrap().proxy, proxy.map(Secret::new), "{variables:?}");
        }
        assert_eq!(from(&[home, ("no_proxy", "n")]).unwrap().no_proxy, "n");
        assert_eq!(from(&[home, ("no_proxy", "n"), ("NO_PROXY", "N")]).unwrap().no_proxy, "N");
        assert_eq!(from(&[home, ("SSL_CERT_FILE", "/c.pem")]).unwrap().ca_file, Some("/c.pem".into()));
        assert_eq!(from(&[home, ("HF_ENDPOINT", "https://m/")]).unwrap().hf_endpoint, "https://m/");
    }

    #[test]
    fn tokens_come_from_variables_then_files() {
        let dir = tempfile::tempdir().unwrap();
        let (home, other) = (dir.path().to_str().unwrap(), dir.path().join("other"));
        fs::write(dir.path().join("token"), " hf_file\n").unwrap();
        fs::write(&other, "hf_other").unwrap();
        let base = [("D2O_CACHE", "/d"), ("HF_HOME", home)];
        let token = |more: &[(&str, &str)]| from(&[&base, more].concat()).unwrap().hf_token;
        assert_eq!(token(&[]), Some(Secret::new("hf_file")));
        assert_eq!(token(&[("HF_TOKEN_PATH", other.to_str().unwrap())]), Some(Secret::new("hf_other")));
        assert_eq!(token(&[("HF_TOKEN_PATH", "/nowhere")]), None);
        assert_eq!(token(&[("HUGGING_FACE_HUB_TOKEN", "old")]), Some(Secret::new("old")));
        assert_eq!(token(&[("HUGGING_FACE_HUB_TOKEN", "old"), ("HF_TOKEN", "new ")]), Some(Secret::new("new")));
        assert_eq!(token(&[("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")]), None);
        assert_eq!(token(&[("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1"), ("HF_TOKEN", "new")]), Some(Secret::new("new")));
        let shown = format!("{:?}", from(&[&base[..], &[("https_proxy", "http://u:p@h")]].concat()).unwrap());
        assert!(!shown.contains("hf_file") && !shown.contains("u:p") && shown.contains("Secret(…)"), "{shown}");
    }

    #[cfg(unix)]
    #[test]
    fn values_are_utf8() {
        use std::os::unix::ffi::OsStringExt as _;
        let error = Settings::from_env(|name| match name {
            "HOME" => Some("/h".into()),
            "NO_PROXY" => Some(OsString::from_vec(vec![b'a', 0xff])),
            _ => None,
        });
        assert_eq!(error.unwrap_err().to_string(), "NO_PROXY is `a\u{fffd}`: it is not UTF-8");
    }

    #[test]
    fn no_proxy_names_hosts() {
        for (entry, host, named) in [
            ("example.com", "example.com", true),
            ("example.com", "sub.example.com", true),
            ("example.com", "notexample.com", false),
            (".example.com", "sub.example.com", true),
            ("*.Example.com", "sub.example.com", true),
            ("example.com:443", "example.com", true),
            ("example.com:8443", "example.com", false),
            ("example.com:x", "example.com", false),
            ("*", "example.com", true),
            ("", "example.com", false),
            (".", "example.com", false),
            ("10.1.2.3", "10.1.2.3", true),
            ("10.0.0.0/8", "10.1.2.3", true),
            ("10.0.0.0/8", "11.1.2.3", false),
            ("0.0.0.0/0", "11.1.2.3", true),
            ("10.0.0.0/33", "10.0.0.0", false),
            ("10.0.0.0/8", "example.com", false),
            ("2001:db8::/32", "[2001:db8::1]", true),
            ("2001:db8::1", "[2001:db8::1]", true),
            ("[2001:db8::1]:443", "[2001:db8::1]", true),
            ("::/0", "[2001:db8::1]", true),
            ("::/0", "10.0.0.1", false),
        ] {
            let url = Url::parse(&format!("https://{host}/")).unwrap();
            assert_eq!(no_proxy_matches(entry, &url), named, "{entry} {host}");
        }
        let mut settings = Settings::new("/c");
        settings.proxy = Some(Secret::new("http://u:p@proxy:3128"));
        settings.no_proxy = "a.example, b.example".to_owned();
        let proxied = |host: &str| settings.proxy_for(&Url::parse(&format!("https://{host}/")).unwrap()).unwrap();
        for (host, by_proxy) in [("a.example", false), ("b.example", false), ("c.example", true), ("localhost", false)]
        {
            assert_eq!(proxied(host).is_some(), by_proxy, "{host}");
        }
    }
}
