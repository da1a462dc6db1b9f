//! HTTP requests for one file: redirects, secrets, and a response that arrives piece by piece.

use std::io::{self, Read as _};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::Duration;

use fs_err as fs;
use ureq::http::{HeaderMap, Request, StatusCode, header};
use ureq::tls::{Certificate, PemItem, RootCerts, TlsConfig, parse_pem};
use ureq::{Agent, Timeout};

use crate::error::{Error, Result, status};
use crate::hub::Announced;
use crate::progress::{Event, TICK, Watch};
use crate::settings::Settings;
use crate::source::Source;
use crate::url::Url;

/// Most redirects that are followed in a row.
const MAX_REDIRECTS: usize = 10;
/// Bytes of a file that are passed on at a time.
const BLOCK: usize = 1 << 16;
/// Most blocks that wait to be written.
const WAITING: usize = 16;
/// Longest message of a server that is shown, characters.
const MAX_MESSAGE: usize = 200;

/// Parameters of a request in addition to the address.
#[derive(Debug, Clone, Default)]
pub(crate) struct Ask {
    /// First requested byte; `None` for the whole file.
    pub(crate) from: Option<u64>,
    /// Validator for `If-Range`: if the file has changed, the server sends all of it.
    pub(crate) if_range: Option<String>,
}

/// The response after all redirects.
#[derive(Debug)]
pub(crate) struct Answer {
    /// The address of the first request, without query.
    pub(crate) asked: String,
    /// The address of the response, without query.
    pub(crate) url: String,
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) announced: Announced,
    exchange: Exchange,
}

/// A piece of the body of a response.
#[derive(Debug)]
pub(crate) enum Piece {
    Bytes(Vec<u8>),
    End,
}

impl Answer {
    pub(crate) fn text(&self, name: impl header::AsHeaderName) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok()).map(str::trim)
    }

    pub(crate) fn content_type(&self) -> Option<String> {
        self.text(header::CONTENT_TYPE).map(short)
    }

    /// Whether the end of the body can be distinguished from a lost connection.
    pub(crate) fn has_end(&self) -> bool {
        self.headers.contains_key(header::CONTENT_LENGTH) || self.headers.contains_key(header::TRANSFER_ENCODING)
    }

    /// The next piece of the body. `done` and `total` are for progress and errors.
    pub(crate) fn next(&mut self, done: u64, total: Option<u64>, watch: &mut Watch<'_>) -> Result<Piece> {
        match self.exchange.next(&Event::Receiving { done, total }, watch)? {
            Message::Bytes(bytes) => Ok(Piece::Bytes(bytes)),
            Message::End => Ok(Piece::End),
            Message::Head(..) => Err(protocol(&self.url, "the server sent two responses")),
            Message::Failed(failure) => Err(failure.at(&self.url, done, total)),
        }
    }
}

/// Requests `source` and follows redirects.
pub(crate) fn ask(source: &Source, settings: &Settings, ask: &Ask, watch: &mut Watch<'_>) -> Result<Answer> {
    let mut url = source.url(settings)?;
    // An invalid endpoint does not matter for other sources.
    let endpoint = settings.endpoint().ok();
    let asked = url.shown();
    let mut announced = Announced::default();
    for _ in 0..=MAX_REDIRECTS {
        let shown = url.shown();
        let from_hub = endpoint.as_ref().is_some_and(|hub| url.same_origin(hub));
        let token = settings.hf_token.as_ref().filter(|_| from_hub);
        let mut request = Request::get(url.to_string()).header(header::ACCEPT_ENCODING, "identity");
        if let Some(token) = token {
            request = request.header(header::AUTHORIZATION, format!("Bearer {}", token.reveal()));
        }
        if let Some(from) = ask.from {
            request = request.header(header::RANGE, format!("bytes={from}-"));
        }
        if let Some(validator) = &ask.if_range {
            request = request.header(header::IF_RANGE, validator);
        }
        let request = request.body(()).map_err(|error| bad_request(&shown, token.is_some(), &error))?;
        let mut exchange = Exchange::start(agent(settings, &url)?, request)?;
        let (status, headers) = match exchange.next(&Event::Connecting { url: &shown }, watch)? {
            Message::Head(status, headers) => (status, headers),
            Message::Failed(failure) => return Err(failure.at(&shown, 0, None)),
            Message::Bytes(_) | Message::End => {
                return Err(protocol(&shown, "the server sent data before the response header"));
            }
        };
        if from_hub && source.hub().is_some() {
            announced = announced.or(Announced::read(&headers));
        }
        let location = headers.get(header::LOCATION).filter(|_| matches!(status.as_u16(), 301..=303 | 307 | 308));
        let Some(location) = location else {
            return Ok(Answer { asked, url: shown, status, headers, announced, exchange });
        };
        url = follow(&url, &String::from_utf8_lossy(location.as_bytes()))?;
    }
    let problem = "more than 10 redirects in a row";
    Err(Error::Redirect { url: asked, to: url.shown(), problem })
}

/// The address to which a response from `url` redirects.
fn follow(url: &Url, location: &str) -> Result<Url> {
    let refused = |to: &str, problem| Error::Redirect { url: url.shown(), to: short(to), problem };
    let to = url.join(location).map_err(|p| refused(location.split('?').next().unwrap_or_default(), p))?;
    if url.is_https() && !to.is_https() {
        return Err(refused(&to.shown(), "it downgrades https to http"));
    }
    to.ensure_secure().map_err(|problem| refused(&to.shown(), problem))?;
    Ok(to)
}

/// The error for a response that is not the file.
pub(crate) fn refused(answer: &Answer) -> Error {
    Error::Status {
        url: answer.url.clone(),
        code: answer.status.as_u16(),
        message: answer.text("x-error-message").map_or_else(String::new, short),
        retry_after: answer.text(header::RETRY_AFTER).and_then(|wait| retry_after(wait, answer.text(header::DATE))),
    }
}

/// A wait in seconds, or until a time. The time is relative to `date`, the `Date` of the response.
fn retry_after(text: &str, date: Option<&str>) -> Option<Duration> {
    if let Ok(seconds) = text.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let time = |text| httpdate::parse_http_date(text).ok();
    Some(time(text)?.duration_since(time(date?)?).unwrap_or_default())
}

/// Text of a server, in one line and with limited length.
fn short(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(MAX_MESSAGE).collect()
}

fn protocol(url: &str, problem: impl Into<String>) -> Error {
    Error::Protocol { url: url.to_owned(), problem: problem.into() }
}

/// The error for a request that cannot be built.
fn bad_request(url: &str, with_token: bool, error: &ureq::http::Error) -> Error {
    if with_token && error.is::<header::InvalidHeaderValue>() {
        Error::setting("HF_TOKEN", "…", "expected letters, digits and underscores")
    } else {
        protocol(url, error.to_string())
    }
}

/// A client for one request to `url`.
fn agent(settings: &Settings, url: &Url) -> Result<Agent> {
    let roots = settings.ca_file.as_deref().filter(|_| url.is_https()).map(|file| {
        let problem = |problem: String| Error::setting("SSL_CERT_FILE", &file.display().to_string(), problem);
        let text = fs::read(file).map_err(|error| problem(error.kind().to_string()))?;
        let found: Vec<Certificate<'static>> = parse_pem(&text)
            .filter_map(|item| match item {
                Ok(PemItem::Certificate(found)) => Some(found),
                _ => None,
            })
            .collect();
        if found.is_empty() { Err(problem("it contains no PEM certificate".to_owned())) } else { Ok(found) }
    });
    let roots = roots.transpose()?.map_or(RootCerts::WebPki, RootCerts::from);
    let config = Agent::config_builder()
        .http_status_as_error(false)
        .max_redirects(0)
        .max_idle_connections(0)
        .proxy(settings.proxy_for(url)?)
        .tls_config(TlsConfig::builder().root_certs(roots).build())
        .user_agent(&settings.user_agent)
        .timeout_resolve(Some(settings.connect_timeout))
        .timeout_connect(Some(settings.connect_timeout))
        .timeout_per_read(Some(settings.idle_timeout))
        .timeout_per_write(Some(settings.idle_timeout));
    Ok(Agent::new_with_config(config.build()))
}

/// A message from the thread of an exchange.
#[derive(Debug)]
enum Message {
    Head(StatusCode, HeaderMap),
    Bytes(Vec<u8>),
    End,
    Failed(Failure),
}

/// Why an exchange ended.
#[derive(Debug)]
enum Failure {
    Connection(Box<dyn std::error::Error + Send + Sync>),
    Tls(String),
    Proxy(String),
    Stalled(Duration),
    BrokenOff,
    Protocol(String),
}

impl Failure {
    fn at(self, url: &str, done: u64, total: Option<u64>) -> Error {
        let url = url.to_owned();
        match self {
            Self::Connection(source) => Error::Connection { url, source },
            Self::Tls(problem) => Error::Tls { url, problem },
            Self::Proxy(problem) => Error::Proxy { url, problem },
            Self::Stalled(idle) => Error::Stalled { url, idle, done, total },
            Self::BrokenOff => Error::BrokenOff { url, done, total },
            Self::Protocol(problem) => Error::Protocol { url, problem },
        }
    }

    /// Classifies `error`, which occurred before a response (`answered` false) or within one.
    fn new(error: ureq::Error, answered: bool, idle: Duration) -> Self {
        match error {
            ureq::Error::Timeout(Timeout::Resolve | Timeout::Connect) => {
                Self::Connection("connection timed out".into())
            }
            ureq::Error::Timeout(_) => Self::Stalled(idle),
            ureq::Error::ConnectProxyFailed(problem) => Self::Proxy(proxy_problem(problem)),
            ureq::Error::Rustls(error) => Self::Tls(error.to_string()),
            ureq::Error::Tls(problem) => Self::Tls(problem.to_owned()),
            ureq::Error::Io(error) => match error.kind() {
                io::ErrorKind::InvalidData if !answered => Self::Tls(error.to_string()),
                io::ErrorKind::UnexpectedEof
                | io::ErrorKind::ConnectionReset
                | io::ErrorKind::ConnectionAborted
                | io::ErrorKind::BrokenPipe => Self::BrokenOff,
                _ if answered => Self::BrokenOff,
                _ => Self::Connection(error.into()),
            },
            ureq::Error::HostNotFound => Self::Connection("host not found".into()),
            ureq::Error::ConnectionFailed => Self::Connection("connection refused".into()),
            error => Self::Protocol(format!("invalid HTTP response: {error}")),
        }
    }
}

/// The problem of a proxy that ureq reports, with the name of the status code.
fn proxy_problem(problem: String) -> String {
    let code = problem.strip_prefix("proxy server responded ").and_then(|codes| codes.split('/').next()?.parse().ok());
    code.map_or(problem, |code| format!("it responded with {}", status(code)))
}

/// A request in its own thread: lookup, connecting and reading can take long, and the download can be interrupted at
/// any time. Dropping it closes the connection; then the thread ends by itself.
#[derive(Debug)]
struct Exchange {
    agent: Option<Agent>,
    messages: Receiver<Message>,
}

impl Exchange {
    fn start(agent: Agent, request: Request<()>) -> io::Result<Self> {
        let (sender, messages) = sync_channel(WAITING);
        let own = agent.clone();
        std::thread::Builder::new().name("d2o-fetch".to_owned()).spawn(move || {
            let last = run(&own, request, &sender);
            // The receiver is gone once the exchange is dropped.
            let _ = sender.send(last);
        })?;
        Ok(Self { agent: Some(agent), messages })
    }

    /// Waits for the next message, and reports `event` meanwhile.
    fn next(&mut self, event: &Event<'_>, watch: &mut Watch<'_>) -> Result<Message> {
        watch.report_throttled(event)?;
        loop {
            match self.messages.recv_timeout(TICK) {
                Ok(message) => return Ok(message),
                Err(RecvTimeoutError::Timeout) => watch.report(event)?,
                // The thread has panicked.
                Err(RecvTimeoutError::Disconnected) => return Ok(Message::Failed(Failure::BrokenOff)),
            }
        }
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        if let Some(agent) = self.agent.take() {
            agent.shutdown();
        }
    }
}

/// Sends the request and passes the response on; returns the last message.
fn run(agent: &Agent, request: Request<()>, sender: &SyncSender<Message>) -> Message {
    let idle = agent.config().timeout_per_read().unwrap_or_default();
    let (head, body) = match agent.run(request) {
        Ok(answer) => answer.into_parts(),
        Err(error) => return Message::Failed(Failure::new(error, false, idle)),
    };
    if sender.send(Message::Head(head.status, head.headers)).is_err() {
        return Message::End;
    }
    let mut body = body.into_reader();
    loop {
        let mut block = vec![0; BLOCK];
        match body.read(&mut block) {
            Ok(0) => return Message::End,
            Ok(count) => {
                block.truncate(count);
                if sender.send(Message::Bytes(block)).is_err() {
                    return Message::End;
                }
            }
            Err(error) => return Message::Failed(Failure::new(error.into(), true, idle)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_are_seconds_or_dates() {
        let (now, later) = ("Wed, 21 Oct 2015 07:28:00 GMT", "Wed, 21 Oct 2015 07:29:40 GMT");
        assert_eq!(retry_after("7", None), Some(Duration::from_secs(7)));
        assert_eq!(retry_after(later, Some(now)), Some(Duration::from_secs(100)));
        assert_eq!(retry_after(now, Some(later)), Some(Duration::ZERO));
        for (wait, date) in [("-1", None), ("soon", Some(now)), (later, None), (later, Some("now"))] {
            assert_eq!(retry_after(wait, date), None);
        }
    }

    /// Redirects between hosts that the tests with servers cannot use.
    #[test]
    fn redirects_never_leave_https() {
        let url = |text: &str| Url::parse(text).unwrap();
        let to = |from: &str, location: &str| follow(&url(from), location).map(|url| url.to_string());
        assert_eq!(to("https://a/b", "/c?d").unwrap(), "https://a/c?d");
        assert_eq!(to("http://localhost/b", "https://c/").unwrap(), "https://c/");
        for (from, location, problem) in [
            ("https://a/b", "http://a/c?secret", "to `http://a/c`: it downgrades https to http"),
            ("https://a/b", "http://localhost/", "it downgrades https to http"),
            (
                "http://localhost/b",
                "http://a/",
                "d2o downloads over https only; http is allowed for servers on this machine",
            ),
            ("https://a/b", "ftp://a/c?secret", "to `ftp://a/c`: its scheme is neither https nor http"),
        ] {
            let error = to(from, location).unwrap_err().to_string();
            assert!(error.ends_with(problem) && !error.contains("secret"), "{error}");
        }
    }
}
