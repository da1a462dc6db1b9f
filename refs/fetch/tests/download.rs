//! Downloads from servers that follow the protocol and from servers that do not.

#![allow(clippy::unwrap_used, reason = "a test")]

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use common::{Cache, Server, answer, break_off, bytes, hashed, serve, sha256, stall, wanted};
use d2o_fetch::{Error, HashCheck, Origin, PublishedHash, Request};
use fs_err as fs;

const FULL: HashCheck = HashCheck::Published { bits: 256 };

/// A server that drops the first connection after `count` bytes, and the bytes of the file.
fn breaking(headers: &'static str, etag: &'static str, count: usize) -> (Server, Vec<u8>) {
    let body = bytes(300_000);
    let served = body.clone();
    let server = Server::start(move |n, request, stream| match n {
        0 => break_off(stream, &served, headers, count),
        _ => serve(request, stream, &served, etag),
    });
    (server, body)
}

#[test]
fn a_file_is_downloaded_once() {
    let body = bytes(300_000);
    let served = body.clone();
    let server = Server::start(move |_, request, stream| serve(request, stream, &served, "\"a\""));
    let (cache, request) = (Cache::new(), hashed(&[&server.url("/dir/x.bin?q=1")], &body));
    let file = cache.get(&request);
    assert_eq!((file.origin, file.hash, file.bytes), (Origin::Download, FULL, 300_000));
    assert_eq!((file.path.clone(), file.sha256.clone()), (cache.path("x.bin"), sha256(&body)));
    assert_eq!(file.source.as_deref(), Some(server.url("/dir/x.bin?q=1").as_str()));
    assert_eq!(fs::read(&file.path).unwrap(), body);
    assert_eq!(cache.names(), ["x.bin", "x.bin.d2o-record.json"]);
    let again = cache.get(&request);
    assert_eq!(again, {
        let mut file = file;
        file.origin = Origin::Cache;
        file
    });
    let seen = server.seen();
    assert_eq!(server.lines(), ["GET /dir/x.bin?q=1"]);
    assert_eq!(seen[0].header("user-agent"), Some("d2o/0.1.0"));
    assert_eq!(seen[0].header("accept-encoding"), Some("identity"));
    assert_eq!((seen[0].header("range"), seen[0].header("authorization")), (None, None));
}

#[test]
fn an_empty_file_is_a_file() {
    let server = Server::start(|_, request, stream| serve(request, stream, b"", ""));
    let cache = Cache::new();
    let file = cache.get(&hashed(&[&server.url("/x")], b""));
    assert_eq!((file.bytes, file.hash), (0, FULL));
    assert_eq!(cache.names(), ["x.bin", "x.bin.d2o-record.json"]);
}

#[test]
fn names_may_have_folders() {
    let server = Server::start(|_, request, stream| serve(request, stream, b"abc", ""));
    let cache = Cache::new();
    let request = Request::of(common::source(&server.url("/a/x.pt")));
    let file = cache.get(&request);
    assert_eq!(file.path, cache.path(&format!("web/127.0.0.1_{}/a/x.pt", server.port)));
}

#[test]
fn a_broken_connection_is_continued_where_it_broke() {
    let (server, body) = breaking("; ETag: \"a\"", "\"a\"", 100_000);
    let cache = Cache::new();
    let (file, told) = cache.fetch(&wanted(&[&server.url("/x")]));
    assert_eq!(fs::read(file.unwrap().path).unwrap(), body);
    assert_eq!(server.ranges(), [None, Some(100_000)]);
    assert_eq!(server.seen()[1].header("if-range"), Some("\"a\""));
    let broke = format!("retry 1/3: {}: the connection was lost, 100000 of 300000 bytes received", server.url("/x"));
    assert_eq!(told, [broke]);
}

#[test]
fn a_time_of_change_tells_versions_apart_only_if_it_is_past() {
    let old = "; Last-Modified: Wed, 21 Oct 2015 07:28:00 GMT; Date: Wed, 21 Oct 2015 07:28:01 GMT";
    let (server, body) = breaking(old, "Wed, 21 Oct 2015 07:28:00 GMT", 7);
    assert_eq!(fs::read(Cache::new().get(&wanted(&[&server.url("/x")])).path).unwrap(), body);
    assert_eq!(server.seen()[1].header("if-range"), Some("Wed, 21 Oct 2015 07:28:00 GMT"));
    assert_eq!(server.ranges(), [None, Some(7)]);
    let new = "; Last-Modified: Wed, 21 Oct 2015 07:28:00 GMT; Date: Wed, 21 Oct 2015 07:28:00 GMT";
    let (server, _) = breaking(new, "", 7);
    Cache::new().get(&wanted(&[&server.url("/x")]));
    assert_eq!(server.ranges(), [None, None]);
}

#[test]
fn versions_that_cannot_be_told_apart_are_not_joined() {
    for headers in ["", "; ETag: W/\"a\"", "; ETag: a"] {
        let (server, body) = breaking(headers, "", 100_000);
        let cache = Cache::new();
        let (file, told) = cache.fetch(&wanted(&[&server.url("/x")]));
        assert_eq!(fs::read(file.unwrap().path).unwrap(), body);
        assert_eq!(server.ranges(), [None, None]);
        assert_eq!(told[1..], ["started over: the server does not identify the version of the file"]);
        // With the whole published hash they are joined: the hash is checked at the end.
        let (server, body) = breaking(headers, "", 100_000);
        let cache = Cache::new();
        let file = cache.get(&hashed(&[&server.url("/x")], &body));
        assert_eq!((fs::read(file.path).unwrap(), file.hash), (body.clone(), FULL));
        assert_eq!(server.ranges(), [None, Some(100_000)]);
        assert_eq!(server.seen()[1].header("if-range"), None);
        // The first digits of the hash are not enough.
        let (server, body) = breaking(headers, "", 100_000);
        let sha256 = PublishedHash::parse(&sha256(&body)[..8]).unwrap();
        Cache::new().get(&Request { sha256, ..wanted(&[&server.url("/x")]) });
        assert_eq!(server.ranges(), [None, None]);
    }
}

#[test]
fn a_server_that_ignores_ranges_sends_all() {
    let body = bytes(300_000);
    let served = body.clone();
    let server = Server::start(move |n, _, stream| break_off(stream, &served, "; ETag: \"a\"", [100_000, 300_000][n]));
    let cache = Cache::new();
    let (file, told) = cache.fetch(&wanted(&[&server.url("/x")]));
    assert_eq!(fs::read(file.unwrap().path).unwrap(), body);
    assert_eq!(server.ranges(), [None, Some(100_000)]);
    assert_eq!(told[1..], ["started over: the server sends the whole file"]);
}

#[test]
fn a_file_that_changes_meanwhile_is_not_mixed() {
    let (old, new) = (bytes(300_000), bytes(200_000).into_iter().rev().collect::<Vec<_>>());
    let served = new.clone();
    let server = Server::start(move |n, request, stream| match n {
        0 => break_off(stream, &old, "; ETag: \"a\"", 100_000),
        _ => serve(request, stream, &served, "\"b\""),
    });
    let cache = Cache::new();
    let (file, told) = cache.fetch(&wanted(&[&server.url("/x")]));
    assert_eq!(fs::read(file.unwrap().path).unwrap(), new);
    assert_eq!(told[1..], ["started over: the server sends the whole file"]);
}

#[test]
fn wrong_parts_are_not_joined() {
    for head in [
        "206 Partial Content; Content-Length: 299999; Content-Range: bytes 1-299999/300000",
        "206 Partial Content; Content-Length: 200000; Content-Range: bytes 100000-299999/300001",
        "206 Partial Content; Content-Length: 200001; Content-Range: bytes 100000-300000/300001",
        "206 Partial Content; Content-Length: 200000; Content-Range: bytes 100000-299999/300000; ETag: \"b\"",
        "206 Partial Content; Content-Length: 100; Content-Range: bytes 100000-100099/300000",
        "206 Partial Content; Content-Length: 200000",
        "416 Range Not Satisfiable; Content-Length: 0; Content-Range: bytes */100000",
        "416 Range Not Satisfiable; Content-Length: 0",
    ] {
        let body = bytes(300_000);
        let served = body.clone();
        let server = Server::start(move |n, _, stream| match n {
            0 => break_off(stream, &served, "; ETag: \"a\"", 100_000),
            1 => answer(stream, head, &vec![0; 300_000]),
            _ => break_off(stream, &served, "; ETag: \"a\"", 300_000),
        });
        let cache = Cache::new();
        let (file, told) = cache.fetch(&wanted(&[&server.url("/x")]));
        assert_eq!(fs::read(file.unwrap().path).unwrap(), body, "{head}");
        assert_eq!(server.ranges(), [None, Some(100_000), None], "{head}");
        assert!(told[1].starts_with("started over: "), "{told:?}");
    }
}

#[test]
fn a_range_that_begins_at_the_end_completes_the_file() {
    // All bytes have arrived, but the end of the last chunk is missing.
    let server = Server::start(|n, request, stream| match n {
        0 => answer(stream, "200 OK; Transfer-Encoding: chunked; ETag: \"a\"", b"3\r\nabc\r\n"),
        _ => serve(request, stream, b"abc", "\"a\""),
    });
    let cache = Cache::new();
    assert_eq!(fs::read(cache.get(&wanted(&[&server.url("/x")])).path).unwrap(), b"abc");
    assert_eq!(server.ranges(), [None, Some(3)]);
    // A file that is shorter now is a different file.
    let server = Server::start(|n, request, stream| match n {
        0 => answer(stream, "200 OK; Transfer-Encoding: chunked; ETag: \"a\"", b"3\r\nabc\r\n"),
        1 => answer(stream, "416 Range Not Satisfiable; Content-Length: 0; Content-Range: bytes */2", b""),
        _ => serve(request, stream, b"ab", "\"b\""),
    });
    let cache = Cache::new();
    assert_eq!(fs::read(cache.get(&wanted(&[&server.url("/x")])).path).unwrap(), b"ab");
    assert_eq!(server.ranges(), [None, Some(3), None]);
}

#[test]
fn pieces_that_do_not_make_the_file_are_discarded_once() {
    let body = bytes(300_000);
    let served = body.clone();
    let server = Server::start(move |n, request, stream| match n {
        0 => break_off(stream, &vec![0; 300_000], "", 100_000),
        _ => serve(request, stream, &served, ""),
    });
    let cache = Cache::new();
    let (file, told) = cache.fetch(&hashed(&[&server.url("/x")], &body));
    assert_eq!(fs::read(file.unwrap().path).unwrap(), body);
    assert_eq!(server.ranges(), [None, Some(100_000), None]);
    assert_eq!(told[1..], ["started over: the file received in several parts failed verification"]);
}

#[test]
fn a_chunked_file_needs_no_length() {
    let server = Server::start(|n, _, stream| match n {
        0 => answer(stream, "200 OK; Transfer-Encoding: chunked", b"3\r\nabc\r\n5\r\nde"),
        _ => answer(stream, "200 OK; Transfer-Encoding: chunked", b"3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n"),
    });
    let cache = Cache::new();
    let (file, told) = cache.fetch(&wanted(&[&server.url("/x")]));
    assert_eq!(fs::read(file.unwrap().path).unwrap(), b"abcde");
    assert_eq!(
        told[0],
        format!("retry 1/3: {}: the connection was lost, 5 of an unknown number of bytes received", server.url("/x"))
    );
    let error = cache.error(&Request { bytes: Some(6), name: "y.bin".to_owned(), ..wanted(&[&server.url("/x")]) });
    assert_eq!(error.to_string(), format!("{}: expected 6 bytes, found 5", server.url("/x")));
}

#[test]
fn a_file_that_ends_with_the_connection_needs_a_hash_or_a_length() {
    let server = Server::start(|_, _, stream| answer(stream, "200 OK", b"abc"));
    let (cache, url) = (Cache::new(), server.url("/x"));
    let error = cache.error(&wanted(&[&url]));
    let text = "the server does not send the length of the file, and neither its length nor its sha256 is known";
    assert_eq!(error.to_string(), format!("{url}: {text}"));
    assert_eq!(cache.names(), [""; 0]);
    assert_eq!(cache.get(&Request { bytes: Some(3), ..wanted(&[&url]) }).bytes, 3);
    assert_eq!(Cache::new().get(&hashed(&[&url], b"abc")).hash, FULL);
    let prefix = PublishedHash::parse(&sha256(b"abc")[..10]).unwrap();
    let cache = Cache::new();
    let file = cache.get(&Request { sha256: prefix, ..wanted(&[&url]) });
    assert_eq!(file.hash, HashCheck::Published { bits: 40 });
}

#[test]
fn lengths_that_are_not_kept_are_found() {
    let cache = Cache::new();
    // Fewer bytes than announced in every response. The rest is never sent.
    let server = Server::start(|_, request, stream| match request.from() {
        None => break_off(stream, &[1; 200], "; ETag: \"a\"", 150),
        Some(from) => {
            let head = format!(
                "206 Partial Content; Content-Length: {}; Content-Range: bytes {from}-199/200; ETag: \"a\"",
                200 - from
            );
            answer(stream, &head, b"");
        }
    });
    let (result, told) = cache.fetch(&wanted(&[&server.url("/x")]));
    let text = format!("{}: the connection was lost, 150 of 200 bytes received", server.url("/x"));
    assert_eq!(result.unwrap_err().to_string(), text);
    assert_eq!((told.len(), server.ranges()), (2, vec![None, Some(150), Some(150)]));
    // The received bytes stay for the next run.
    assert_eq!(cache.names(), ["x.bin.d2o-partial", "x.bin.d2o-partial.json"]);
    // More bytes than announced: the excess is not part of the response.
    let server = Server::start(|_, _, stream| answer(stream, "200 OK; Content-Length: 2", b"abc"));
    let (cache, url) = (Cache::new(), server.url("/x"));
    let error = cache.error(&hashed(&[&url], b"abc"));
    let (wanted_hash, found) = (sha256(b"abc"), sha256(b"ab"));
    assert_eq!(error.to_string(), format!("{url}: expected sha256 {wanted_hash}, found {found}"));
    let error = cache.error(&Request { bytes: Some(3), ..wanted(&[&url]) });
    assert_eq!(error.to_string(), format!("{url}: expected 3 bytes, found 2"));
    // Chunks without end are cut off.
    let server = Server::start(|_, _, stream| {
        answer(stream, "200 OK; Transfer-Encoding: chunked", b"");
        while stream.write_all(b"4\r\nabcd\r\n").is_ok() {}
    });
    let error = cache.error(&Request { bytes: Some(3), ..wanted(&[&server.url("/x")]) });
    assert!(matches!(error, Error::WrongSize { expected: 3, found: 4.., .. }), "{error}");
    assert_eq!(cache.names(), [""; 0]);
}

#[test]
fn a_server_that_falls_silent_is_asked_again() {
    let body = bytes(300_000);
    let served = body.clone();
    let server = Server::start(move |n, request, stream| match n {
        0 => {
            break_off(stream, &served, "; ETag: \"a\"", 1000);
            stall(stream);
        }
        1 => stall(stream),
        _ => serve(request, stream, &served, "\"a\""),
    });
    let mut cache = Cache::new();
    cache.settings.idle_timeout = Duration::from_millis(1200);
    let (file, told) = cache.fetch(&wanted(&[&server.url("/x")]));
    assert_eq!(fs::read(file.unwrap().path).unwrap(), body);
    assert_eq!(server.ranges(), [None, Some(1000), Some(1000)]);
    let url = server.url("/x");
    assert_eq!(
        told,
        [
            format!("retry 1/3: {url}: no response or data for 1.2 s, 1000 of 300000 bytes received"),
            format!("retry 2/3: {url}: no response or data for 1.2 s, 0 of an unknown number of bytes received"),
        ]
    );
}

#[test]
fn slow_servers_are_waited_for() {
    let server = Server::start(|_, _, stream| {
        answer(stream, "200 OK; Content-Length: 6", b"");
        for byte in b"abcdef" {
            std::thread::sleep(Duration::from_millis(300));
            stream.write_all(&[*byte]).unwrap();
        }
    });
    let start = Instant::now();
    let mut cache = Cache::new();
    cache.settings.idle_timeout = Duration::from_millis(1200);
    assert_eq!(cache.get(&wanted(&[&server.url("/x")])).bytes, 6);
    assert!(start.elapsed() > cache.settings.idle_timeout, "longer than the idle timeout");
}

#[test]
fn redirects_are_followed_to_the_file() {
    let server = Server::start(|_, request, stream| match request.line.as_str() {
        "GET /a/x" => answer(stream, "302 Found; Location: ../b/y?z=1; Content-Length: 4", b"gone"),
        "GET /b/y?z=1" => answer(stream, "308 Permanent Redirect; Location: /c; Content-Length: 0", b""),
        _ => serve(request, stream, b"abc", ""),
    });
    let cache = Cache::new();
    let file = cache.get(&wanted(&[&server.url("/a/x")]));
    assert_eq!((file.bytes, file.source), (3, Some(server.url("/a/x"))));
    assert_eq!(server.lines(), ["GET /a/x", "GET /b/y?z=1", "GET /c"]);
}

#[test]
fn redirects_that_lead_nowhere_are_errors() {
    let server = Server::start(|_, request, stream| match request.line.as_str() {
        "GET /out" => answer(stream, "302 Found; Location: http://example.com/x?secret; Content-Length: 0", b""),
        "GET /bad" => answer(stream, "302 Found; Location: ftp://x/y; Content-Length: 0", b""),
        "GET /none" => answer(stream, "302 Found; Content-Length: 0", b""),
        _ => answer(stream, "307 Temporary Redirect; Location: /loop; Content-Length: 0", b""),
    });
    let (cache, url) = (Cache::new(), |path: &str| server.url(path));
    for (path, text) in [
        (
            "/out",
            "cannot follow the redirect to `http://example.com/x`: d2o downloads over https only; http is allowed for servers on this machine",
        ),
        ("/bad", "cannot follow the redirect to `ftp://x/y`: its scheme is neither https nor http"),
        ("/none", "the server responded with 302 Found"),
    ] {
        assert_eq!(cache.error(&wanted(&[&url(path)])).to_string(), format!("{}: {text}", url(path)));
    }
    let before = server.seen().len();
    let text = format!("{0}: cannot follow the redirect to `{0}`: more than 10 redirects in a row", url("/loop"));
    assert_eq!(cache.error(&wanted(&[&url("/loop")])).to_string(), text);
    assert_eq!(server.seen().len() - before, 11);
    assert_eq!(cache.names(), [""; 0]);
}

#[test]
fn refusals_are_named() {
    let server = Server::start(|_, request, stream| {
        let head = match request.line.as_str() {
            "GET /401" => "401 Unauthorized; Content-Length: 0",
            "GET /403" => "403 Forbidden; X-Error-Message: Access to model o/r is restricted.; Content-Length: 0",
            "GET /404" => "404 Not Found; Content-Length: 0",
            "GET /429" => "429 Too Many Requests; Retry-After: 3600; Content-Length: 0",
            "GET /204" => "204 No Content",
            "GET /206" => "206 Partial Content; Content-Length: 1; Content-Range: bytes 0-0/3",
            _ => "418; Content-Length: 0",
        };
        answer(stream, head, b"");
    });
    let cache = Cache::new();
    for (path, text, hint) in [
        (
            "/401",
            "401 Unauthorized",
            Some("the server requires a login; download the file manually and place it in the cache"),
        ),
        (
            "/403",
            "403 Forbidden: Access to model o/r is restricted.",
            Some("the server requires a login; download the file manually and place it in the cache"),
        ),
        ("/404", "404 Not Found", None),
        ("/429", "429 Too Many Requests", Some("the server is busy; try again later")),
        ("/204", "204 No Content", None),
        ("/206", "206 Partial Content", None),
        ("/418", "418 I'm a teapot", None),
    ] {
        let before = server.seen().len();
        let error = cache.error(&wanted(&[&server.url(path)]));
        assert_eq!(error.to_string(), format!("{}: the server responded with {text}", server.url(path)));
        assert_eq!(error.hint().as_deref(), hint);
        assert_eq!(server.seen().len() - before, 1, "asked once: {path}");
    }
    assert_eq!(cache.names(), [""; 0]);
}

#[test]
fn busy_servers_are_asked_again_when_they_say() {
    let server = Server::start(|n, request, stream| match n {
        0 => answer(stream, "429 Too Many Requests; Retry-After: 1; Content-Length: 0", b""),
        1 => answer(stream, "503 Service Unavailable; Content-Length: 0", b""),
        _ => serve(request, stream, b"abc", ""),
    });
    let start = Instant::now();
    let cache = Cache::new();
    let (file, told) = cache.fetch(&wanted(&[&server.url("/x")]));
    assert_eq!(file.unwrap().bytes, 3);
    let (url, took) = (server.url("/x"), start.elapsed());
    assert_eq!(
        told,
        [
            format!("retry 1/3: {url}: the server responded with 429 Too Many Requests"),
            format!("retry 2/3: {url}: the server responded with 503 Service Unavailable"),
        ]
    );
    assert!(took >= Duration::from_secs(1), "{took:?}");
}

#[test]
fn retries_have_an_end_that_progress_puts_off() {
    let server = Server::start(|_, _, stream| answer(stream, "500 Internal Server Error; Content-Length: 0", b""));
    let error = Cache::new().error(&wanted(&[&server.url("/x")]));
    assert_eq!(error.to_string(), format!("{}: the server responded with 500 Internal Server Error", server.url("/x")));
    assert_eq!(server.seen().len(), 3);
    // The connection drops every 1 MiB, which is more often than there are retries.
    let body = bytes(5 << 20);
    let served = body.clone();
    let server = Server::start(move |_, request, stream| {
        let (from, all) = (request.from().unwrap_or(0), served.len());
        let head = match from {
            0 => format!("200 OK; ETag: \"a\"; Content-Length: {all}"),
            _ => {
                let range = format!("Content-Length: {}; Content-Range: bytes {from}-{}/{all}", all - from, all - 1);
                format!("206 Partial Content; ETag: \"a\"; {range}")
            }
        };
        answer(stream, &head, &served[from..(from + (1 << 20)).min(all)]);
    });
    assert_eq!(fs::read(Cache::new().get(&wanted(&[&server.url("/x")])).path).unwrap(), body);
    assert_eq!(server.seen().len(), 5);
}

#[test]
fn wrong_bytes_are_kept_under_no_name() {
    let server = Server::start(|_, request, stream| serve(request, stream, b"abd", ""));
    let (cache, url) = (Cache::new(), server.url("/x"));
    let (expected, found) = (sha256(b"abc"), sha256(b"abd"));
    let error = cache.error(&hashed(&[&url], b"abc"));
    assert_eq!(error.to_string(), format!("{url}: expected sha256 {expected}, found {found}"));
    assert_eq!((error.hint(), cache.names()), (None, vec![]));
    let prefix = PublishedHash::parse(&expected[..8]).unwrap();
    let error = cache.error(&Request { sha256: prefix, ..wanted(&[&url]) });
    assert_eq!(error.to_string(), format!("{url}: expected a sha256 that begins {}, found {found}", &expected[..8]));
    let error = cache.error(&Request { bytes: Some(4), ..wanted(&[&url]) });
    assert_eq!(error.to_string(), format!("{url}: expected 4 bytes, found 3"));
    assert_eq!((server.seen().len(), cache.names()), (3, vec![]));
}

#[test]
fn web_pages_are_no_files() {
    let page = b"<html>log in";
    let server = Server::start(|_, _, stream| {
        answer(
            stream,
            "200 OK; Content-Type: text/html; charset=utf-8; Content-Length: 12".replace("; c", ";c").as_str(),
            page,
        );
    });
    let cache = Cache::new();
    let url = server.url("/o/r/blob/main/x");
    let error = cache.error(&wanted(&[&url]));
    assert_eq!(error.to_string(), format!("{url}: the server sent a web page (text/html;charset=utf-8), not a file"));
    let file = server.url("/o/r/resolve/main/x");
    assert_eq!(error.hint().unwrap(), format!("`{file}` may be the file itself"));
    let hint =
        "the server sent a web page, perhaps a login page; download the file with a browser and place it in the cache";
    let error = cache.error(&hashed(&[&url], b"abc"));
    let (expected, found) = (sha256(b"abc"), sha256(page));
    assert_eq!(
        error.to_string(),
        format!("{url}: expected sha256 {expected}, found {found} (sent as text/html;charset=utf-8)")
    );
    assert_eq!(error.hint().unwrap(), hint);
    let error = cache.error(&Request { bytes: Some(3), ..wanted(&[&url]) });
    assert_eq!(error.to_string(), format!("{url}: expected 3 bytes, found 12 (sent as text/html;charset=utf-8)"));
    assert_eq!(error.hint().unwrap(), hint);
    assert_eq!(cache.names(), [""; 0]);
    // A page is accepted if it is the requested file.
    assert_eq!(cache.get(&Request { name: "x.html".to_owned(), ..wanted(&[&url]) }).bytes, 12);
    assert_eq!(cache.get(&hashed(&[&url], page)).bytes, 12);
}

#[test]
fn answers_that_are_not_http_are_errors() {
    let server = Server::start(|_, _, stream| stream.write_all(b"SSH-2.0-OpenSSH_9.9\r\n\r\n").unwrap());
    let error = Cache::new().error(&wanted(&[&server.url("/x")]));
    assert!(error.to_string().starts_with(&format!("{}: invalid HTTP response: ", server.url("/x"))), "{error}");
    assert_eq!(server.seen().len(), 1);
    let server = Server::start(|_, _, _| {});
    let error = Cache::new().error(&wanted(&[&server.url("/x")]));
    let text = "the connection was lost, 0 of an unknown number of bytes received";
    assert_eq!(error.to_string(), format!("{}: {text}", server.url("/x")));
}

#[test]
fn servers_that_are_not_there_are_errors() {
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let (result, told) = Cache::new().fetch(&wanted(&[&format!("http://{closed}/x")]));
    let error = result.unwrap_err();
    assert_eq!(error.to_string(), format!("http://{closed}/x: cannot connect"));
    let cause = std::error::Error::source(&error).unwrap().to_string();
    assert!(cause.starts_with("Connection refused"), "{cause}");
    assert_eq!(error.hint().as_deref(), Some("if your network requires a proxy, set HTTPS_PROXY"));
    assert_eq!(told.len(), 2);
}

#[test]
fn the_next_source_is_asked_when_one_fails() {
    let body = bytes(300_000);
    let served = body.clone();
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let server = Server::start(move |_, request, stream| match request.line.as_str() {
        "GET /missing" => answer(stream, "404 Not Found; Content-Length: 0", b""),
        "GET /wrong" => answer(stream, "200 OK; Content-Length: 3", b"abc"),
        _ => serve(request, stream, &served, ""),
    });
    let gone = format!("http://{closed}/x");
    let urls = [gone.clone(), server.url("/missing"), server.url("/wrong"), server.url("/good")];
    let urls = urls.each_ref().map(String::as_str);
    let cache = Cache::new();
    let (file, told) = cache.fetch(&hashed(&urls, &body));
    assert_eq!(file.unwrap().source.as_deref(), Some(urls[3]));
    assert_eq!(told.len(), 3, "a host that is not reached is asked once: {told:?}");
    let (result, _) = Cache::new().fetch(&hashed(&urls[..3], &body));
    let text = format!(
        "none of 3 sources could be used; 1. {gone}: cannot connect: Connection refused (os error 111); \
         2. {}: the server responded with 404 Not Found; 3. {}: expected sha256 {}, found {}",
        urls[1],
        urls[2],
        sha256(&body),
        sha256(b"abc")
    );
    let error = result.unwrap_err();
    assert_eq!(error.to_string(), text);
    assert_eq!(error.hint().as_deref(), Some("if your network requires a proxy, set HTTPS_PROXY"));
}

#[test]
fn sources_continue_each_other_only_if_the_hash_can_tell() {
    let body = bytes(300_000);
    let served = body.clone();
    let server = Server::start(move |_, request, stream| match request.line.as_str() {
        "GET /a" => match request.from() {
            None => break_off(stream, &served, "; ETag: \"e\"", 100_000),
            Some(_) => answer(stream, "404 Not Found; Content-Length: 0", b""),
        },
        _ => serve(request, stream, &served, "\"e\""),
    });
    let (a, b) = (server.url("/a"), server.url("/b"));
    let cache = Cache::new();
    let file = cache.get(&hashed(&[&a, &b], &body));
    assert_eq!(fs::read(file.path).unwrap(), body);
    assert_eq!(server.ranges(), [None, Some(100_000), Some(100_000)]);
    assert_eq!(server.seen()[2].header("if-range"), None);
    let cache = Cache::new();
    let (file, told) = cache.fetch(&wanted(&[&a, &b]));
    assert_eq!(fs::read(file.unwrap().path).unwrap(), body);
    assert_eq!(server.ranges()[3..], [None, Some(100_000), None]);
    assert_eq!(told[2..], ["started over: the partial file is from another source, and no sha256 is published"]);
}

#[test]
fn parts_of_a_file_that_cannot_be_the_one_are_removed() {
    let body = bytes(300_000);
    let served = body.clone();
    let server = Server::start(move |_, request, stream| match request.from() {
        None => break_off(stream, &served, "; ETag: \"a\"", 100_000),
        Some(from) => {
            let range = format!("Content-Range: bytes {from}-299999/300000");
            answer(stream, &format!("206 Partial Content; Content-Length: 200000; {range}; ETag: \"a\""), b"");
        }
    });
    let (cache, url) = (Cache::new(), server.url("/x"));
    cache.error(&wanted(&[&url]));
    assert_eq!(cache.names(), ["x.bin.d2o-partial", "x.bin.d2o-partial.json"]);
    let error = cache.error(&Request { bytes: Some(400_000), ..wanted(&[&url]) });
    assert_eq!(error.to_string(), format!("{url}: expected 400000 bytes, found 300000"));
    assert_eq!((server.ranges().last(), cache.names()), (Some(&Some(100_000)), vec![]));
}

#[test]
fn threads_that_want_one_file_download_it_once() {
    let body = bytes(300_000);
    let (served, asked) = (body.clone(), Arc::new(AtomicUsize::new(0)));
    let count = asked.clone();
    let server = Server::start(move |_, request, stream| {
        count.fetch_add(1, Ordering::SeqCst);
        std::thread::sleep(Duration::from_millis(300));
        serve(request, stream, &served, "");
    });
    let (cache, request) = (Cache::new(), hashed(&[&server.url("/x")], &body));
    let mut origins: Vec<Origin> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4).map(|_| scope.spawn(|| cache.get(&request).origin)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    origins.sort_by_key(|origin| *origin == Origin::Download);
    assert_eq!(origins, [Origin::Cache, Origin::Cache, Origin::Cache, Origin::Download]);
    assert_eq!(asked.load(Ordering::SeqCst), 1);
    assert_eq!(cache.names(), ["x.bin", "x.bin.d2o-record.json"]);
}
