//! Downloads over TLS, through proxies and with other certificate authorities.

#![allow(clippy::unwrap_used, reason = "a test")]

mod common;

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use common::{Cache, Seen, Server, Stream, answer, break_off, bytes, hashed, serve, wanted};
use d2o_fetch::{Error, Secret};
use fs_err as fs;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};

fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name)
}

/// A server with the certificate of `tests/data`.
fn secure(handler: impl Fn(usize, &Seen, &mut dyn Stream) + Send + Sync + 'static) -> Server {
    let chain = vec![CertificateDer::from_pem_file(data("server.pem")).unwrap()];
    let key = PrivateKeyDer::from_pem_file(data("server-key.pem")).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let config = Arc::new(config.with_no_client_auth().with_single_cert(chain, key).unwrap());
    let wrap = move |stream: TcpStream| Some(StreamOwned::new(ServerConnection::new(config.clone()).unwrap(), stream));
    Server::wrapped(wrap, handler)
}

/// A cache whose settings trust the authority of `tests/data`.
fn trusting() -> Cache {
    let mut cache = Cache::new();
    cache.settings.ca_file = Some(data("ca.pem"));
    cache
}

/// A proxy that connects to `port` of this machine, whatever host is requested. Returns its port and the requests.
fn proxy(port: u16) -> (u16, Arc<Mutex<Vec<Seen>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let own = listener.local_addr().unwrap().port();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let log = seen.clone();
    std::thread::spawn(move || {
        for client in listener.incoming() {
            let mut client = client.unwrap();
            let Some(request) = Seen::read(&mut client) else { continue };
            log.lock().unwrap().push(request);
            client.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n").unwrap();
            let server = TcpStream::connect(("127.0.0.1", port)).unwrap();
            for (mut from, mut to) in [
                (client.try_clone().unwrap(), server.try_clone().unwrap()),
                (server.try_clone().unwrap(), client.try_clone().unwrap()),
            ] {
                std::thread::spawn(move || {
                    let _ = std::io::copy(&mut from, &mut to);
                    let _ = to.shutdown(Shutdown::Write);
                });
            }
        }
    });
    (own, seen)
}

#[test]
fn files_come_over_tls_and_are_continued() {
    let body = bytes(300_000);
    let served = body.clone();
    let server = secure(move |n, request, stream| match n {
        0 => break_off(stream, &served, "; ETag: \"a\"", 100_000),
        _ => serve(request, stream, &served, "\"a\""),
    });
    let cache = trusting();
    let file = cache.get(&hashed(&[&format!("https://localhost:{}/x", server.port)], &body));
    assert_eq!(fs::read(file.path).unwrap(), body);
    assert_eq!(server.ranges(), [None, Some(100_000)]);
}

#[test]
fn servers_that_nobody_vouches_for_are_not_asked() {
    let server = secure(|_, request, stream| serve(request, stream, b"abc", ""));
    let plain = Server::wrapped(
        |mut stream| {
            let _ = stream.read(&mut [0; 4096]).unwrap();
            stream.write_all(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n").unwrap();
            None::<TcpStream>
        },
        |_, _, _| {},
    );
    let localhost = format!("https://localhost:{}/x", server.port);
    let (mut proxied, named) = (trusting(), "https://other.example/x".to_owned());
    proxied.settings.proxy = Some(Secret::new(format!("127.0.0.1:{}", proxy(server.port).0)));
    let no_tls = format!("https://localhost:{}/x", plain.port);
    let built_in = Cache::new();
    for (cache, url, problem) in [
        (&built_in, &localhost, "invalid peer certificate: UnknownIssuer"),
        (&proxied, &named, "invalid peer certificate: certificate not valid for name \"other.example\""),
        (&trusting(), &no_tls, "received corrupt message of type InvalidContentType"),
    ] {
        let error = cache.error(&wanted(&[url]));
        assert!(
            error.to_string().starts_with(&format!("{url}: cannot establish a TLS connection: {problem}")),
            "{error}"
        );
        let hint = "if a proxy of your network intercepts TLS, set SSL_CERT_FILE to a PEM file with its certificate, such as /etc/ssl/certs/ca-certificates.crt";
        assert_eq!((error.hint().as_deref(), cache.names()), (Some(hint), vec![]));
    }
    assert_eq!(server.seen().len(), 0);
}

#[test]
fn a_file_of_authorities_holds_some() {
    let mut cache = Cache::new();
    let empty = cache.path("empty.pem");
    fs::write(&empty, "no certificate").unwrap();
    let none = cache.path("none.pem");
    for (file, problem) in [(empty, "it contains no PEM certificate"), (none, "entity not found")] {
        let text = format!("SSL_CERT_FILE is `{}`: {problem}", file.display());
        cache.settings.ca_file = Some(file);
        assert_eq!(cache.error(&wanted(&["https://localhost:1/x"])).to_string(), text);
    }
}

#[test]
fn redirects_do_not_leave_tls() {
    let plain = Server::start(|_, request, stream| serve(request, stream, b"abc", ""));
    let to = plain.url("/x");
    let server =
        secure(move |_, _, stream| answer(stream, &format!("302 Found; Location: {to}; Content-Length: 0"), b""));
    let url = format!("https://localhost:{}/x", server.port);
    let error = trusting().error(&wanted(&[&url]));
    let text = format!("{url}: cannot follow the redirect to `{}`: it downgrades https to http", plain.url("/x"));
    assert_eq!(error.to_string(), text);
    assert_eq!(plain.seen().len(), 0);
}

#[test]
fn proxies_pass_tls_on() {
    let body = bytes(300_000);
    let served = body.clone();
    let server = secure(move |_, request, stream| serve(request, stream, &served, ""));
    let (port, seen) = proxy(server.port);
    let mut cache = trusting();
    cache.settings.proxy = Some(Secret::new(format!("http://user:p%40ss@127.0.0.1:{port}")));
    let file = cache.get(&hashed(&["https://files.example/x"], &body));
    assert_eq!(fs::read(file.path).unwrap(), body);
    let asked = seen.lock().unwrap().clone();
    assert_eq!(asked.iter().map(|request| request.line.as_str()).collect::<Vec<_>>(), ["CONNECT files.example:443"]);
    // "user:p@ss"
    assert_eq!(asked[0].header("proxy-authorization"), Some("Basic dXNlcjpwQHNz"));
    assert_eq!((server.lines(), server.seen()[0].header("proxy-authorization")), (vec!["GET /x".to_owned()], None));
    // Servers on this machine are contacted directly.
    let request = common::wanted(&[&format!("https://localhost:{}/x", server.port)]);
    cache.get(&d2o_fetch::Request { name: "y.bin".to_owned(), ..request });
    assert_eq!(seen.lock().unwrap().len(), 1);
    // So are hosts in NO_PROXY. This host does not exist.
    cache.settings.no_proxy = "files.example".to_owned();
    let request = wanted(&["https://files.example/x"]);
    let error = cache.error(&d2o_fetch::Request { name: "z.bin".to_owned(), ..request });
    assert!(matches!(error, Error::Connection { .. }), "{error}");
    assert_eq!(seen.lock().unwrap().len(), 1);
}

#[test]
fn proxies_that_refuse_are_named() {
    let server =
        Server::start(|_, _, stream| answer(stream, "407 Proxy Authentication Required; Content-Length: 0", b""));
    let mut cache = Cache::new();
    cache.settings.proxy = Some(Secret::new(format!("127.0.0.1:{}", server.port)));
    let error = cache.error(&wanted(&["https://files.example:8443/x"]));
    let text = "https://files.example:8443/x: cannot connect through the proxy: it responded with 407 Proxy Authentication Required";
    assert_eq!(error.to_string(), text);
    let hint = "the proxy is set by HTTPS_PROXY or ALL_PROXY; NO_PROXY lists hosts that bypass it";
    assert_eq!(error.hint().as_deref(), Some(hint));
    assert_eq!(server.lines(), ["CONNECT files.example:8443"]);
    cache.settings.proxy = Some(Secret::new("ftp://user:secret@proxy"));
    let error = cache.error(&wanted(&["https://files.example/x"]));
    let problem = "expected [SCHEME://][USER:PASSWORD@]HOST[:PORT], where the scheme is http, https, socks4, socks4a, socks5 or socks5h";
    assert_eq!(error.to_string(), format!("HTTPS_PROXY is `…@proxy`: {problem}"));
}

#[test]
fn socks_proxies_are_asked_too() {
    let server = secure(|_, request, stream| serve(request, stream, b"abc", ""));
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (own, port) = (listener.local_addr().unwrap().port(), server.port);
    let asked = std::thread::spawn(move || {
        // RFC 1928: methods, then a connection to a host by its name.
        let (mut client, _) = listener.accept().unwrap();
        let mut head = [0; 2];
        client.read_exact(&mut head).unwrap();
        client.read_exact(&mut vec![0; usize::from(head[1])]).unwrap();
        client.write_all(&[5, 0]).unwrap();
        let mut request = [0; 5];
        client.read_exact(&mut request).unwrap();
        let mut host = vec![0; usize::from(request[4]) + 2];
        client.read_exact(&mut host).unwrap();
        client.write_all(&[5, 0, 0, 1, 0, 0, 0, 0, 0, 0]).unwrap();
        let target = TcpStream::connect(("127.0.0.1", port)).unwrap();
        let (mut from, mut to) = (client.try_clone().unwrap(), target.try_clone().unwrap());
        std::thread::spawn(move || std::io::copy(&mut from, &mut to));
        std::thread::spawn(move || std::io::copy(&mut { target }, &mut { client }));
        (request[..4].to_vec(), host)
    });
    let mut cache = trusting();
    cache.settings.proxy = Some(Secret::new(format!("socks5h://127.0.0.1:{own}")));
    assert_eq!(cache.get(&wanted(&["https://files.example/x"])).bytes, 3);
    assert_eq!(asked.join().unwrap(), (vec![5, 1, 0, 3], b"files.example\x01\xbb".to_vec()));
}
