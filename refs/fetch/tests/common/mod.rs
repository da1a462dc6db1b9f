//! A small HTTP server with responses that the tests define, and helpers for most tests.

#![allow(dead_code, reason = "each test binary uses a part of it")]

use std::io::{BufRead as _, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use d2o_fetch::{Error, Event, Fetched, PublishedHash, Request, Settings, Source};
use sha2::{Digest as _, Sha256};

/// A received request.
#[derive(Debug, Clone)]
pub(crate) struct Seen {
    /// Its first line, without the version.
    pub(crate) line: String,
    headers: Vec<(String, String)>,
}

impl Seen {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }

    /// First requested byte.
    pub(crate) fn from(&self) -> Option<usize> {
        self.header("range")
            .map(|range| range.strip_prefix("bytes=").unwrap().strip_suffix('-').unwrap().parse().unwrap())
    }

    pub(crate) fn read(stream: &mut impl Read) -> Option<Self> {
        let mut lines = BufReader::with_capacity(1, stream).lines();
        let first = lines.next()?.ok()?.strip_suffix(" HTTP/1.1")?.to_owned();
        let mut headers = Vec::new();
        for header in lines {
            match header.ok()?.split_once(':') {
                Some((name, value)) => headers.push((name.to_owned(), value.trim().to_owned())),
                None => return Some(Self { line: first, headers }),
            }
        }
        None
    }
}

/// A connection to a client. It is closed after the response.
pub(crate) trait Stream: Read + Write + Send {}
impl<T: Read + Write + Send> Stream for T {}

/// Answers the `n`th request, counted from 0.
pub(crate) type Handler = dyn Fn(usize, &Seen, &mut dyn Stream) + Send + Sync;

pub(crate) struct Server {
    pub(crate) port: u16,
    seen: Arc<Mutex<Vec<Seen>>>,
}

impl Server {
    pub(crate) fn start(handler: impl Fn(usize, &Seen, &mut dyn Stream) + Send + Sync + 'static) -> Self {
        Self::wrapped(Some, handler)
    }

    /// A server that passes each accepted connection through `wrap`; `None` ends the connection.
    pub(crate) fn wrapped<S: Stream + 'static>(
        wrap: impl Fn(TcpStream) -> Option<S> + Send + Sync + 'static,
        handler: impl Fn(usize, &Seen, &mut dyn Stream) + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let (log, shared) = (seen.clone(), Arc::new((wrap, handler)));
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (log, shared) = (log.clone(), shared.clone());
                std::thread::spawn(move || {
                    let Some(mut stream) = shared.0(stream.unwrap()) else { return };
                    let Some(request) = Seen::read(&mut stream) else { return };
                    let n = {
                        let mut log = log.lock().unwrap_or_else(PoisonError::into_inner);
                        log.push(request.clone());
                        log.len() - 1
                    };
                    shared.1(n, &request, &mut stream);
                });
            }
        });
        Self { port, seen }
    }

    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }

    /// First lines of all requests.
    pub(crate) fn lines(&self) -> Vec<String> {
        self.seen().into_iter().map(|request| request.line).collect()
    }

    /// First requested byte of each request.
    pub(crate) fn ranges(&self) -> Vec<Option<usize>> {
        self.seen().iter().map(Seen::from).collect()
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.port)
    }
}

/// Writes a response: status line and headers, separated by `; `, and a body. A client that has closed the connection
/// is not an error.
pub(crate) fn answer(stream: &mut dyn Stream, head: &str, body: &[u8]) {
    let _ =
        stream.write_all(format!("HTTP/1.1 {}\r\nConnection: close\r\n\r\n", head.replace("; ", "\r\n")).as_bytes());
    let _ = stream.write_all(body);
    let _ = stream.flush();
}

/// Writes all of `body`, or the rest of it if a range is requested and its condition holds. `etag` has quotes, and can
/// be empty.
pub(crate) fn serve(request: &Seen, stream: &mut dyn Stream, body: &[u8], etag: &str) {
    let tag = if etag.is_empty() { String::new() } else { format!("; ETag: {etag}") };
    let fits = request.header("if-range").is_none_or(|condition| condition == etag);
    match request.from().filter(|_| fits) {
        None => answer(stream, &format!("200 OK; Content-Length: {}{tag}", body.len()), body),
        Some(from) if from < body.len() => {
            let (length, last, all) = (body.len() - from, body.len() - 1, body.len());
            let head =
                format!("206 Partial Content; Content-Length: {length}; Content-Range: bytes {from}-{last}/{all}{tag}");
            answer(stream, &head, &body[from..]);
        }
        Some(_) => {
            let head =
                format!("416 Range Not Satisfiable; Content-Length: 0; Content-Range: bytes */{}{tag}", body.len());
            answer(stream, &head, b"");
        }
    }
}

/// Announces the length of `body`, and sends its first `count` bytes.
pub(crate) fn break_off(stream: &mut dyn Stream, body: &[u8], headers: &str, count: usize) {
    answer(stream, &format!("200 OK; Content-Length: {}{headers}", body.len()), &body[..count]);
}

/// Waits until the client closes the connection.
pub(crate) fn stall(stream: &mut dyn Stream) {
    let _ = stream.read(&mut [0]);
}

/// Pseudo-random bytes.
pub(crate) fn bytes(count: usize) -> Vec<u8> {
    let mut state = 12345_u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state.to_be_bytes()[0]
    };
    (0..count).map(|_| next()).collect()
}

pub(crate) fn sha256(bytes: &[u8]) -> String {
    d2o_files::hex(&Sha256::digest(bytes))
}

/// A cache in its own folder, with short waits.
pub(crate) struct Cache {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) settings: Settings,
}

impl Cache {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let settings = quick(dir.path());
        Self { dir, settings }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Fetches `request`. Returns the result and the events that are reported once.
    pub(crate) fn fetch(&self, request: &Request) -> (Result<Fetched, Error>, Vec<String>) {
        let mut told = Vec::new();
        let result = d2o_fetch::fetch(request, &self.settings, &mut |event: &Event<'_>| {
            match event {
                Event::StartedOver { reason } => told.push(format!("started over: {reason}")),
                Event::NextSource { error } => told.push(format!("next source: {error}")),
                Event::Unusable { error } => told.push(format!("unusable: {error}")),
                Event::Retrying { error, failures, of, wait } if wait.is_zero() => {
                    told.push(format!("retry {failures}/{of}: {error}"));
                }
                _ => {}
            }
            ControlFlow::Continue(())
        });
        (result, told)
    }

    /// The file of `request`, which must be available.
    pub(crate) fn get(&self, request: &Request) -> Fetched {
        let (result, told) = self.fetch(request);
        result.unwrap_or_else(|error| panic!("{error} {told:?}"))
    }

    /// The error of `request`, which must fail.
    pub(crate) fn error(&self, request: &Request) -> Error {
        self.fetch(request).0.unwrap_err()
    }

    /// Names of all files below the cache.
    pub(crate) fn names(&self) -> Vec<String> {
        fn walk(folder: &Path, root: &Path, names: &mut Vec<String>) {
            for entry in fs_err::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    walk(&path, root, names);
                } else {
                    names.push(path.strip_prefix(root).unwrap().to_str().unwrap().to_owned());
                }
            }
        }
        let mut names = Vec::new();
        walk(self.dir.path(), self.dir.path(), &mut names);
        names.sort_unstable();
        names
    }
}

/// Settings with short waits and few retries.
pub(crate) fn quick(cache: &Path) -> Settings {
    let mut settings = Settings::new(cache);
    settings.connect_timeout = Duration::from_secs(20);
    settings.idle_timeout = Duration::from_secs(20);
    settings.backoff = Duration::from_millis(5);
    settings.longest_wait = Duration::from_secs(3);
    settings.retries = 2;
    settings
}

pub(crate) fn source(text: &str) -> Source {
    Source::parse(text).unwrap().unwrap()
}

/// A request for `x.bin` from `urls`, without hash and length.
pub(crate) fn wanted(urls: &[&str]) -> Request {
    let sources = urls.iter().map(|url| source(url)).collect();
    Request { sources, name: "x.bin".to_owned(), sha256: PublishedHash::NONE, bytes: None }
}

/// A request for `x.bin` from `urls`, with the hash of `bytes`.
pub(crate) fn hashed(urls: &[&str], bytes: &[u8]) -> Request {
    Request { sha256: PublishedHash::parse(&sha256(bytes)).unwrap(), ..wanted(urls) }
}
