//! The cache: files that are kept, found again and verified, and downloads that other processes continue.

#![allow(clippy::unwrap_used, reason = "a test")]

mod common;

use std::io::Write as _;
use std::ops::ControlFlow;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use common::{Cache, Server, answer, break_off, bytes, hashed, serve, sha256, source, stall, wanted};
use d2o_fetch::{Error, Event, HashCheck, Origin, PublishedHash, Request, Settings, Source};
use fs_err as fs;

const FULL: HashCheck = HashCheck::Published { bits: 256 };
const RECORD: &str = "x.bin.d2o-record.json";
const PARTIAL: &str = "x.bin.d2o-partial";

/// A server of one small file.
fn server(body: &'static [u8]) -> Server {
    Server::start(move |_, request, stream| serve(request, stream, body, ""))
}

fn offline(mut cache: Cache) -> Cache {
    cache.settings.offline = true;
    cache
}

#[test]
fn a_hash_is_learned_and_compared_later() {
    let server = Server::start(|n, request, stream| serve(request, stream, [b"abc", b"abc", b"abd", b"abd"][n], ""));
    let (cache, url) = (Cache::new(), server.url("/x"));
    let request = wanted(&[&url]);
    let file = cache.get(&request);
    assert_eq!((file.origin, file.hash), (Origin::Download, HashCheck::LearnedNow));
    assert_eq!((cache.get(&request).origin, cache.get(&request).hash), (Origin::Cache, HashCheck::LearnedBefore));
    // The record outlives the file.
    fs::remove_file(&file.path).unwrap();
    let file = cache.get(&request);
    assert_eq!((file.origin, file.hash), (Origin::Download, HashCheck::LearnedBefore));
    fs::remove_file(&file.path).unwrap();
    let error = cache.error(&request);
    let (learned, found) = (sha256(b"abc"), sha256(b"abd"));
    assert_eq!(error.to_string(), format!("{url}: expected sha256 {learned} as in the first download, found {found}"));
    let record = cache.path(RECORD);
    let hint = format!("if the file was republished and you trust it, remove `{}`", record.display());
    assert_eq!((error.hint(), cache.names()), (Some(hint), vec![RECORD.to_owned()]));
    fs::remove_file(record).unwrap();
    assert_eq!(cache.get(&request).hash, HashCheck::LearnedNow);
    assert_eq!(server.seen().len(), 4);
}

#[test]
fn a_published_hash_outranks_a_learned_one_and_a_prefix_does_not() {
    let server = Server::start(|n, request, stream| serve(request, stream, [b"abc", b"abd", b"abc"][n], ""));
    let (cache, url) = (Cache::new(), server.url("/x"));
    cache.get(&wanted(&[&url]));
    assert_eq!(cache.get(&hashed(&[&url], b"abc")).hash, FULL);
    let prefix = |bytes| PublishedHash::parse(&sha256(bytes)[..8]).unwrap();
    let request = Request { sha256: prefix(b"abc"), ..wanted(&[&url]) };
    assert_eq!(cache.get(&request).hash, HashCheck::Published { bits: 32 });
    assert_eq!(server.seen().len(), 1);
    // Now a different file is requested under the same name.
    let (file, told) = cache.fetch(&hashed(&[&url], b"abd"));
    let unusable = format!("unusable: {}: expected sha256 {}", cache.path("x.bin").display(), sha256(b"abd"));
    assert_eq!(told, [format!("{unusable}, found {}", sha256(b"abc"))]);
    assert_eq!((file.unwrap().origin, fs::read(cache.path("x.bin")).unwrap()), (Origin::Download, b"abd".to_vec()));
    // Its record is compared in addition to a prefix.
    fs::remove_file(cache.path("x.bin")).unwrap();
    let error = cache.error(&request);
    assert!(matches!(&error, Error::Changed { learned, .. } if *learned == sha256(b"abd")), "{error}");
}

#[test]
fn a_file_that_was_changed_in_the_cache_is_replaced() {
    let server = server(b"abc");
    for request in [hashed(&[&server.url("/x")], b"abc"), wanted(&[&server.url("/x")])] {
        let (cache, before) = (Cache::new(), server.seen().len());
        let path = cache.get(&request).path;
        for content in [&b"abcd"[..], b"xyz"] {
            fs::write(&path, content).unwrap();
            // A modification time can be as coarse as the tick of the clock.
            let later = std::time::SystemTime::now() + Duration::from_secs(2);
            fs::File::options().write(true).open(&path).unwrap().file().set_modified(later).unwrap();
            let (file, told) = cache.fetch(&request);
            assert_eq!((file.unwrap().origin, fs::read(&path).unwrap()), (Origin::Download, b"abc".to_vec()));
            assert!(told[0].starts_with(&format!("unusable: {}: expected sha256", path.display())), "{told:?}");
        }
        assert_eq!(server.seen().len() - before, 3);
        // A different length shows a change, even with the same modification time.
        let time = fs::metadata(&path).unwrap().modified().unwrap();
        fs::write(&path, b"abcd").unwrap();
        fs::File::options().write(true).open(&path).unwrap().file().set_modified(time).unwrap();
        assert_eq!(cache.get(&request).origin, Origin::Download);
        // A file with the same content and a new modification time is hashed again and kept.
        fs::write(&path, b"abc").unwrap();
        assert_eq!(cache.get(&request).origin, Origin::Cache);
        assert_eq!(server.seen().len() - before, 4);
    }
}

#[test]
fn a_file_is_hashed_once() {
    let server = server(b"abc");
    let (cache, request) = (Cache::new(), hashed(&[&server.url("/x")], b"abc"));
    let verified = || {
        let mut count = 0;
        let mut progress = |event: &Event<'_>| {
            count += usize::from(matches!(event, Event::Verifying { .. }));
            ControlFlow::Continue(())
        };
        d2o_fetch::fetch(&request, &cache.settings, &mut progress).unwrap();
        count
    };
    assert_eq!([verified(), verified()], [0, 0], "while it is downloaded");
    fs::remove_file(cache.path(RECORD)).unwrap();
    assert!(verified() > 0);
    assert_eq!(verified(), 0);
}

#[test]
fn a_file_placed_by_hand_is_taken_if_it_is_the_one() {
    let cache = offline(Cache::new());
    fs::write(cache.path("x.bin"), b"abc").unwrap();
    let file = cache.get(&hashed(&["https://example.com/x"], b"abc"));
    assert_eq!((file.origin, file.hash, file.source), (Origin::Cache, FULL, None));
    assert_eq!(cache.get(&wanted(&[])).hash, HashCheck::LearnedBefore);
    let error = cache.error(&hashed(&["https://example.com/x"], b"abd"));
    let (path, expected, found) = (cache.path("x.bin"), sha256(b"abd"), sha256(b"abc"));
    assert_eq!(error.to_string(), format!("{}: expected sha256 {expected}, found {found}", path.display()));
    let error = cache.error(&Request { bytes: Some(4), ..wanted(&[]) });
    assert_eq!(error.to_string(), format!("{}: expected 4 bytes, found 3", path.display()));
    assert_eq!(fs::read(path).unwrap(), b"abc", "it is left alone");
}

#[test]
fn offline_says_which_file_to_place_where() {
    let cache = offline(Cache::new());
    let path = cache.path("x.bin");
    let text = format!("`{}` does not exist, and downloads are disabled; place the file there from ", path.display());
    let urls = ["hf://o/r/a/x.bin@v1", "https://example.com/x?id=1"];
    let request = Request { bytes: Some(3), ..hashed(&urls, b"abc") };
    let error = cache.error(&request);
    let places = "https://huggingface.co/o/r/resolve/v1/a/x.bin or https://example.com/x?id=1";
    assert_eq!(error.to_string(), format!("{text}{places}, 3 bytes, sha256 {}", sha256(b"abc")));
    let hint = "downloads are disabled by D2O_OFFLINE, HF_HUB_OFFLINE or --offline";
    assert_eq!(error.hint().as_deref(), Some(hint));
    let prefix = Request { sha256: PublishedHash::parse("6726825d").unwrap(), ..wanted(&["https://example.com/x"]) };
    let text = format!("{text}https://example.com/x, ");
    assert_eq!(cache.error(&prefix).to_string(), format!("{text}a sha256 that begins 6726825d"));
    let request = wanted(&["https://example.com/x"]);
    assert_eq!(cache.error(&request).to_string(), format!("{text}no published sha256"));
    assert_eq!(cache.names(), [""; 0]);
    fs::write(&path, b"abc").unwrap();
    cache.get(&request);
    fs::remove_file(&path).unwrap();
    let learned = format!("{text}sha256 {} as in the first download", sha256(b"abc"));
    assert_eq!(cache.error(&request).to_string(), learned);
    // A file without an address can only be placed by hand.
    let error = Cache::new().error(&Request { name: "y.bin".to_owned(), ..wanted(&[]) });
    assert!(error.to_string().ends_with(
        "y.bin` does not exist, and no download address is known; place the file there, no published sha256"
    ));
    assert_eq!(error.hint(), None);
}

#[test]
fn the_hub_alone_may_be_offline() {
    let server = server(b"abc");
    let mut cache = Cache::new();
    (cache.settings.hf_offline, cache.settings.hf_endpoint) = (true, server.url(""));
    let error = cache.error(&wanted(&["hf://o/r/x"]));
    assert!(matches!(error, Error::Offline { .. }), "{error}");
    assert_eq!(server.seen().len(), 0);
    assert_eq!(cache.get(&wanted(&["hf://o/r/x", &server.url("/x")])).origin, Origin::Download);
    assert_eq!(server.lines(), ["GET /x"]);
}

/// Creates a cache of the Hub with `content` as `a/x.bin` of o/r; returns the path of that file.
fn hub(cache: &mut Cache, content: &[u8]) -> std::path::PathBuf {
    let repo = cache.dir.path().join("hub/models--o--r");
    let path = repo.join("snapshots/c0ffee/a/x.bin");
    for folder in ["snapshots/c0ffee/a", "refs", "blobs"] {
        fs::create_dir_all(repo.join(folder)).unwrap();
    }
    fs::write(repo.join("refs/main"), "c0ffee").unwrap();
    fs::write(repo.join("blobs/1"), content).unwrap();
    fs::os::unix::fs::symlink("../../../blobs/1", &path).unwrap();
    cache.settings.hf_cache = Some(cache.dir.path().join("hub"));
    cache.settings.cache = cache.dir.path().join("d2o");
    path
}

#[test]
fn files_in_the_cache_of_the_hub_are_used_where_they_are() {
    let mut cache = offline(Cache::new());
    let path = hub(&mut cache, b"abc");
    let request = hashed(&["hf://o/r/a/x.bin"], b"abc");
    for told in ["hashed", "known"] {
        let mut verified = 0;
        let mut progress = |event: &Event<'_>| {
            verified += usize::from(matches!(event, Event::Verifying { .. }));
            ControlFlow::Continue(())
        };
        let file = d2o_fetch::fetch(&request, &cache.settings, &mut progress).unwrap();
        assert_eq!((file.path.as_path(), file.origin, file.hash), (&*path, Origin::HuggingFaceCache, FULL));
        assert_eq!((file.bytes, file.source, verified > 0), (3, None, told == "hashed"));
    }
    assert_eq!(cache.get(&wanted(&["hf://o/r/a/x.bin@c0ffee"])).hash, HashCheck::LearnedBefore);
    // Its record does not apply to another file, even with the same length and modification time.
    let time = fs::metadata(&path).unwrap().modified().unwrap();
    fs::write(cache.path("d2o/x.bin"), b"abd").unwrap();
    fs::File::options().write(true).open(cache.path("d2o/x.bin")).unwrap().file().set_modified(time).unwrap();
    let (file, told) = cache.fetch(&request);
    assert_eq!((file.unwrap().origin, told.len()), (Origin::HuggingFaceCache, 1));
    fs::remove_file(cache.path("d2o/x.bin")).unwrap();
    // A replaced file is hashed again.
    fs::write(cache.path("hub/models--o--r/blobs/1"), b"abcd").unwrap();
    let error = cache.error(&request);
    let (expected, found) = (sha256(b"abc"), sha256(b"abcd"));
    assert_eq!(error.to_string(), format!("{}: expected sha256 {expected}, found {found}", path.display()));
}

#[test]
fn other_files_in_the_cache_of_the_hub_are_passed_over() {
    let server = server(b"abc");
    let mut cache = Cache::new();
    let path = hub(&mut cache, b"abd");
    cache.settings.hf_endpoint = server.url("");
    let (file, told) = cache.fetch(&hashed(&["hf://o/r/a/x.bin"], b"abc"));
    assert_eq!(file.unwrap().origin, Origin::Download);
    assert!(told[0].starts_with(&format!("unusable: {}: expected sha256", path.display())), "{told:?}");
    assert_eq!(fs::read(path).unwrap(), b"abd");
    assert_eq!(server.lines(), ["GET /o/r/resolve/main/a/x.bin"]);
}

/// The Hub, which redirects to another host, and that host.
fn hub_and_host(linked: String, body: &'static [u8]) -> (Server, std::sync::Arc<Server>) {
    let host = std::sync::Arc::new(Server::start(move |n, request, stream| match n {
        0 => break_off(stream, body, "; ETag: \"cdn\"", 1),
        _ => serve(request, stream, body, "\"cdn\""),
    }));
    let port = host.port;
    let hub = Server::start(move |_, request, stream| match request.line.as_str() {
        "GET /moved/r/resolve/main/x.bin" => {
            let head = format!("302 Found; Location: http://localhost:{port}/blob?sign=1; Content-Length: 0; {linked}");
            answer(stream, &head, b"");
        }
        _ => answer(stream, "307 Temporary Redirect; Location: /moved/r/resolve/main/x.bin; Content-Length: 0", b""),
    });
    (hub, host)
}

fn to_hub(hub: &Server) -> Cache {
    let mut cache = Cache::new();
    cache.settings.hf_endpoint = hub.url("");
    cache.settings.hf_token = Some(d2o_fetch::Secret::new("hf_secret"));
    cache
}

#[test]
fn the_token_goes_to_the_hub_alone() {
    let (hub, host) = hub_and_host(String::new(), b"abc");
    let cache = to_hub(&hub);
    assert_eq!(cache.get(&wanted(&["hf://o/r/x.bin"])).bytes, 3);
    let token = |server: &Server| -> Vec<Option<String>> {
        server.seen().iter().map(|request| request.header("authorization").map(str::to_owned)).collect()
    };
    let secret = Some("Bearer hf_secret".to_owned());
    assert_eq!(hub.lines()[..2], ["GET /o/r/resolve/main/x.bin", "GET /moved/r/resolve/main/x.bin"]);
    assert_eq!(token(&hub), vec![secret.clone(); 4]);
    assert_eq!(host.lines(), ["GET /blob?sign=1"; 2]);
    assert_eq!((token(&host), host.ranges()), (vec![None, None], vec![None, Some(1)]));
    // The token is not sent to another host that is requested first, nor to the Hub under another name. It is sent to
    // the Hub under its own address.
    let name = "y.bin".to_owned();
    cache.get(&Request { name, ..wanted(&[&host.url("/x")]) });
    assert_eq!(token(&host)[2..], [None]);
    let port = hub.port;
    cache.get(&Request { name: "z.bin".to_owned(), ..wanted(&[&format!("http://localhost:{port}/a")]) });
    assert_eq!(token(&hub)[4..], [None, None]);
    cache.get(&Request { name: "w.bin".to_owned(), ..wanted(&[&format!("http://127.0.0.1:{port}/a")]) });
    assert_eq!(token(&hub)[6..], [secret.clone(), secret]);
}

#[test]
fn what_the_hub_announces_is_compared() {
    let announce = |hash: &str, size: u64| format!("X-Linked-Etag: \"{hash}\"; X-Linked-Size: {size}");
    let (right, other) = (sha256(b"abc"), sha256(b"abd"));
    let request = wanted(&["hf://o/r/x.bin"]);
    let (hub, host) = hub_and_host(announce(&right, 3), b"abc");
    assert_eq!(to_hub(&hub).get(&request).hash, HashCheck::LearnedNow);
    assert_eq!(host.seen().len(), 2);
    // A hash other than the published or learned one: nothing is downloaded.
    let (hub, host) = hub_and_host(announce(&other, 3), b"abc");
    let (cache, url) = (to_hub(&hub), hub.url("/o/r/resolve/main/x.bin"));
    let error = cache.error(&hashed(&["hf://o/r/x.bin"], b"abc"));
    assert_eq!(error.to_string(), format!("{url}: expected sha256 {right}, found {other}"));
    fs::write(cache.path("x.bin"), b"abc").unwrap();
    cache.get(&request);
    fs::remove_file(cache.path("x.bin")).unwrap();
    assert!(matches!(cache.error(&request), Error::Changed { .. }));
    assert_eq!(
        (cache.names(), host.seen().iter().filter(|s| s.from().is_some()).count()),
        (vec![RECORD.to_owned()], 0)
    );
    // A file other than the announced one.
    let (hub, _) = hub_and_host(announce(&other, 3), b"abc");
    let (cache, url) = (to_hub(&hub), hub.url("/o/r/resolve/main/x.bin"));
    assert_eq!(cache.error(&request).to_string(), format!("{url}: expected sha256 {other}, found {right}"));
    let (hub, _) = hub_and_host(announce(&right, 4), b"abc");
    let (cache, url) = (to_hub(&hub), hub.url("/o/r/resolve/main/x.bin"));
    assert_eq!(cache.error(&request).to_string(), format!("{url}: expected 4 bytes, found 3"));
    assert_eq!(cache.names(), [""; 0]);
    // Announcements of other servers are ignored.
    let head = "200 OK; Content-Length: 3; X-Linked-Size: 4";
    let server = Server::start(move |_, _, stream| answer(stream, head, b"abc"));
    assert_eq!(Cache::new().get(&wanted(&[&server.url("/x")])).bytes, 3);
}

#[test]
fn refusals_of_the_hub_say_what_may_help() {
    let hub = Server::start(|_, request, stream| match request.line.as_str() {
        "GET /o/gated/resolve/main/x" => answer(stream, "403 Forbidden; Content-Length: 0", b""),
        _ => answer(stream, "404 Not Found; X-Error-Message: Entry not found; Content-Length: 0", b""),
    });
    let cache = to_hub(&hub);
    let error = cache.error(&wanted(&["hf://o/gated/x"]));
    assert_eq!(
        error.to_string(),
        format!("{}: the server responded with 403 Forbidden", hub.url("/o/gated/resolve/main/x"))
    );
    let hint =
        "if the repository is private or gated, request access on its page and set HF_TOKEN to your access token";
    assert_eq!(error.hint().as_deref(), Some(hint));
    let error = cache.error(&wanted(&["hf://datasets/o/r/x@v1"]));
    let url = hub.url("/datasets/o/r/resolve/v1/x");
    assert_eq!(error.to_string(), format!("{url}: the server responded with 404 Not Found: Entry not found"));
    assert_eq!(error.hint().as_deref(), Some("check owner, repository, revision and path"));
}

#[test]
fn settings_without_sense_are_named() {
    let server = server(b"abc");
    let mut cache = Cache::new();
    for (endpoint, problem) in [
        ("huggingface.co", "it has no scheme"),
        ("http://example.com", "d2o downloads over https only; http is allowed for servers on this machine"),
    ] {
        cache.settings.hf_endpoint = endpoint.to_owned();
        let error = cache.error(&wanted(&["hf://o/r/x"]));
        assert_eq!(error.to_string(), format!("HF_ENDPOINT is `{endpoint}`: {problem}"));
    }
    assert_eq!(cache.get(&wanted(&[&server.url("/x")])).bytes, 3, "other sources do without it");
    let mut cache = to_hub(&server);
    cache.settings.hf_token = Some(d2o_fetch::Secret::new("a\nb"));
    let error = cache.error(&wanted(&["hf://o/r/x"]));
    assert_eq!(error.to_string(), "HF_TOKEN is `…`: expected letters, digits and underscores");
    let error = Settings::from_env(|_| None).unwrap_err();
    assert_eq!(error.to_string(), "no folder for downloads: none of D2O_CACHE, XDG_CACHE_HOME and HOME is set");
    assert_eq!(error.hint().as_deref(), Some("set D2O_CACHE to a folder for downloads"));
}

#[test]
fn names_that_lead_elsewhere_are_refused() {
    let cache = Cache::new();
    let parts = "expected components separated by slashes, without `..`, `.`, control characters and backslashes";
    let long = "y".repeat(231);
    for (name, problem) in [
        ("../x", parts),
        ("/x", parts),
        ("a//b", parts),
        ("", parts),
        ("a/./b", parts),
        ("a\\b", parts),
        ("a\nb", parts),
        (&*long, "a component is longer than 230 bytes"),
        ("x.d2o-partial", "this extension is reserved for sidecar files"),
        ("x.d2o-partial.json", "this extension is reserved for sidecar files"),
        (RECORD, "this extension is reserved for sidecar files"),
    ] {
        let error = cache.error(&Request { name: name.to_owned(), ..wanted(&[]) });
        assert_eq!(error.to_string(), format!("`{name}` cannot name a file in the cache: {problem}"));
    }
    let error = Source::parse("hf://o").unwrap().unwrap_err();
    let form = "expected hf://OWNER/REPO/PATH[@REVISION] or hf://datasets/OWNER/REPO/PATH[@REVISION]";
    assert_eq!(error.to_string(), format!("`hf://o`: {form}"));
    let error = PublishedHash::parse("abc").unwrap_err();
    assert_eq!(error.to_string(), "`abc` is not a SHA-256: expected 8 to 64 hexadecimal digits");
}

#[test]
fn a_cache_that_cannot_be_written_is_read() {
    let server = server(b"abc");
    let cache = Cache::new();
    fs::write(cache.path("x.bin"), b"abc").unwrap();
    // A folder at the path of the record prevents writing the record.
    fs::create_dir(cache.path(RECORD)).unwrap();
    for _ in 0..2 {
        assert_eq!(cache.get(&hashed(&[], b"abc")).origin, Origin::Cache);
    }
    // A file at the path of a folder.
    let request = Request { name: "x.bin/y".to_owned(), ..wanted(&[&server.url("/x")]) };
    let error = cache.error(&request);
    assert!(matches!(error, Error::Io(_)) && error.to_string().contains("x.bin"), "{error}");
    // A folder at the path of a file.
    fs::create_dir(cache.path("folder")).unwrap();
    let error = cache.error(&Request { name: "folder".to_owned(), ..wanted(&[&server.url("/x")]) });
    assert_eq!(error.to_string(), format!("`{}` is not a regular file", cache.path("folder").display()));
    // A partial file that is not a regular file.
    fs::remove_file(cache.path("x.bin")).unwrap();
    fs::os::unix::fs::symlink("/dev/null", cache.path(PARTIAL)).unwrap();
    let error = cache.error(&hashed(&[&server.url("/x")], b"abc"));
    assert_eq!(error.to_string(), format!("`{}` is not a regular file", cache.path(PARTIAL).display()));
    assert_eq!(server.seen().len(), 0);
    for kind in [std::io::ErrorKind::PermissionDenied, std::io::ErrorKind::ReadOnlyFilesystem] {
        let hint = Error::Io(kind.into()).hint();
        assert_eq!(hint.as_deref(), Some("set D2O_CACHE to a writable folder"));
    }
    let file = "/c/x.d2o-partial".into();
    let error = Error::NoLocks { file, source: std::io::ErrorKind::Unsupported.into() };
    assert_eq!(error.to_string(), "/c/x.d2o-partial: the file system has no file locks");
    assert_eq!(error.hint().as_deref(), Some("set D2O_CACHE to a folder on another file system"));
}

#[test]
fn sidecars_that_are_damaged_count_as_none() {
    let body = bytes(300_000);
    let served = body.clone();
    let server = Server::start(move |_, request, stream| serve(request, stream, &served, ""));
    let request = hashed(&[&server.url("/x")], &body);
    for entity in [None, Some("{"), Some("{}"), Some("{\"source\": 1}")] {
        let cache = Cache::new();
        fs::write(cache.path(RECORD), "{\"sha256\": \"abc\", \"bytes\": 3}").unwrap();
        fs::write(cache.path(PARTIAL), &body[..1000]).unwrap();
        if let Some(entity) = entity {
            fs::write(cache.path("x.bin.d2o-partial.json"), entity).unwrap();
        }
        let (file, told) = cache.fetch(&request);
        assert_eq!(fs::read(file.unwrap().path).unwrap(), body);
        assert_eq!(told, ["started over: the source of the partial file is unknown"]);
    }
    let cache = Cache::new();
    fs::write(cache.path(RECORD), "{\"sha256\": \"abc\", \"bytes\": 3}").unwrap();
    assert_eq!(cache.get(&wanted(&[&server.url("/x")])).hash, HashCheck::LearnedNow);
}

#[test]
fn an_interruption_keeps_what_has_come() {
    let body = bytes(300_000);
    let served = body.clone();
    let server = Server::start(move |n, request, stream| match n {
        0 => {
            break_off(stream, &served, "; ETag: \"a\"", 200_000);
            stall(stream);
        }
        _ => serve(request, stream, &served, "\"a\""),
    });
    let (mut cache, request) = (Cache::new(), wanted(&[&server.url("/x")]));
    cache.settings.idle_timeout = Duration::from_secs(60);
    let start = Instant::now();
    let mut progress = |event: &Event<'_>| match event {
        Event::Receiving { done: 200_000.., total: Some(300_000) } => ControlFlow::Break(()),
        _ => ControlFlow::Continue(()),
    };
    let error = d2o_fetch::fetch(&request, &cache.settings, &mut progress).unwrap_err();
    assert_eq!((error.to_string().as_str(), error.hint()), ("interrupted", None));
    assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
    assert_eq!(fs::metadata(cache.path(PARTIAL)).unwrap().len(), 200_000);
    assert_eq!(fs::read(cache.get(&request).path).unwrap(), body);
    assert_eq!(server.ranges(), [None, Some(200_000)]);
    assert_eq!(cache.names(), ["x.bin", RECORD]);
}

/// Every state can be interrupted quickly.
#[test]
fn interruptions_are_heard_while_a_download_waits() {
    let server = Server::start(|_, request, stream| match request.line.as_str() {
        "GET /busy" => answer(stream, "503 Service Unavailable; Retry-After: 60; Content-Length: 0", b""),
        _ => stall(stream),
    });
    let mut cache = Cache::new();
    cache.settings.idle_timeout = Duration::from_secs(60);
    cache.settings.longest_wait = Duration::from_secs(60);
    let interrupted = |request: &Request, state: fn(&Event<'_>) -> bool| {
        let (start, mut seen) = (Instant::now(), 0);
        let mut progress = |event: &Event<'_>| {
            seen += usize::from(state(event));
            // The second report of the state ends the download.
            if seen == 2 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        };
        let error = d2o_fetch::fetch(request, &cache.settings, &mut progress).unwrap_err();
        assert!(matches!(error, Error::Interrupted) && start.elapsed() < Duration::from_secs(10), "{error}");
    };
    interrupted(&wanted(&[&server.url("/silent")]), |event| matches!(event, Event::Connecting { .. }));
    interrupted(&wanted(&[&server.url("/busy")]), |event| matches!(event, Event::Retrying { .. }));
    assert_eq!(cache.names(), [""; 0]);
    fs::write(cache.path("x.bin"), bytes(3 << 20)).unwrap();
    interrupted(&wanted(&[]), |event| matches!(event, Event::Verifying { .. }));
    fs::remove_file(cache.path("x.bin")).unwrap();
    let locked = fs::File::create(cache.path(PARTIAL)).unwrap();
    locked.file().lock().unwrap();
    interrupted(&wanted(&[&server.url("/x")]), |event| matches!(event, Event::Waiting { .. }));
}

/// Not a test: a process that fetches a file for the other tests and prints the result.
#[test]
#[ignore = "the other tests run it in processes of its own"]
fn child() {
    let variable = |name: &str| std::env::var(name).unwrap();
    let mut settings = common::quick(variable("D2O_TEST_CACHE").as_ref());
    settings.idle_timeout = Duration::from_secs(60);
    let hash = PublishedHash::parse(&variable("D2O_TEST_SHA256")).unwrap();
    let request = Request { sha256: hash, ..wanted(&[&variable("D2O_TEST_URL")]) };
    let result = d2o_fetch::fetch(&request, &settings, &mut |_: &Event<'_>| ControlFlow::Continue(()));
    let text =
        result.map_or_else(|error| format!("{error}; hint: {:?}", error.hint()), |file| format!("{:?}", file.origin));
    writeln!(std::io::stdout(), "result: {text}").unwrap();
}

/// Starts [`child`], in a shell that runs `before` first.
fn start_child(before: &str, cache: &Cache, url: &str, body: &[u8]) -> Child {
    Command::new("sh")
        .args(["-c", &format!("{before} exec \"$0\" --exact child --ignored --nocapture")])
        .arg(std::env::current_exe().unwrap())
        .envs([("D2O_TEST_CACHE", cache.dir.path().to_str().unwrap()), ("D2O_TEST_URL", url)])
        .env("D2O_TEST_SHA256", sha256(body))
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

/// The result that a [`child`] prints.
fn result(child: Child) -> String {
    let output = child.wait_with_output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines().find_map(|line| Some(line.split_once("result: ")?.1)).unwrap_or_else(|| panic!("{text}")).to_owned()
}

#[test]
fn processes_that_want_one_file_download_it_once() {
    let body = bytes(300_000);
    let served = body.clone();
    let server = Server::start(move |_, request, stream| {
        std::thread::sleep(Duration::from_millis(500));
        serve(request, stream, &served, "");
    });
    let cache = Cache::new();
    let children = [(); 3].map(|()| start_child("", &cache, &server.url("/x"), &body));
    let mut results = children.map(result);
    results.sort_unstable();
    assert_eq!(results, ["Cache", "Cache", "Download"]);
    assert_eq!(server.seen().len(), 1);
    assert_eq!(cache.names(), ["x.bin", RECORD]);
}

#[test]
fn what_a_killed_process_has_received_is_continued() {
    let body = bytes(300_000);
    let served = body.clone();
    let server = Server::start(move |n, request, stream| match n {
        0 => {
            break_off(stream, &served, "; ETag: \"a\"", 123_456);
            stall(stream);
        }
        _ => serve(request, stream, &served, "\"a\""),
    });
    let cache = Cache::new();
    let mut child = start_child("", &cache, &server.url("/x"), &body);
    let start = Instant::now();
    while fs::metadata(cache.path(PARTIAL)).map_or(0, |found| found.len()) < 123_456 {
        assert!(start.elapsed() < Duration::from_secs(20), "the child downloads nothing");
        std::thread::sleep(Duration::from_millis(10));
    }
    // While it runs, no other process changes its file.
    let mut progress = |event: &Event<'_>| match event {
        Event::Waiting { .. } => ControlFlow::Break(()),
        _ => ControlFlow::Continue(()),
    };
    let request = wanted(&[&server.url("/x")]);
    assert!(d2o_fetch::fetch(&request, &cache.settings, &mut progress).is_err());
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(cache.names(), [PARTIAL, "x.bin.d2o-partial.json"]);
    let (file, told) = cache.fetch(&request);
    assert_eq!(fs::read(file.unwrap().path).unwrap(), body);
    assert_eq!((server.ranges(), told), (vec![None, Some(123_456)], vec![]));
    assert_eq!(server.seen()[1].header("if-range"), Some("\"a\""));
}

#[test]
fn all_that_was_received_needs_no_server() {
    let body = bytes(300_000);
    let cache = Cache::new();
    fs::write(cache.path(PARTIAL), &body).unwrap();
    let url = "http://127.0.0.1:9/x";
    let entity = format!("{{\"source\": \"{url}\", \"validator\": null, \"length\": 300000, \"announced\": null}}");
    fs::write(cache.path("x.bin.d2o-partial.json"), entity).unwrap();
    let file = cache.get(&wanted(&[url]));
    assert_eq!((fs::read(file.path).unwrap(), file.hash), (body, HashCheck::LearnedNow));
    assert_eq!(file.source.as_deref(), Some(url));
    // The bytes are discarded if they are from another source and no hash is published.
    let server = server(b"abc");
    let cache = Cache::new();
    fs::write(cache.path(PARTIAL), b"xyz").unwrap();
    let entity = format!("{{\"source\": \"{url}\", \"validator\": null, \"length\": 3, \"announced\": null}}");
    fs::write(cache.path("x.bin.d2o-partial.json"), entity).unwrap();
    let (file, told) = cache.fetch(&wanted(&[&server.url("/x")]));
    assert_eq!(fs::read(file.unwrap().path).unwrap(), b"abc");
    assert_eq!(told, ["started over: the source of the partial file is unknown"]);
}

/// A limit on the size of files simulates a full disk: writes fail in the same way.
#[test]
fn a_full_disk_keeps_what_has_come() {
    let body = bytes(300_000);
    let served = body.clone();
    let server = Server::start(move |_, request, stream| serve(request, stream, &served, "\"a\""));
    let cache = Cache::new();
    let said = result(start_child("trap '' XFSZ; ulimit -f 300;", &cache, &server.url("/x"), &body));
    let done = fs::metadata(cache.path(PARTIAL)).unwrap().len();
    assert!((1..300_000).contains(&done), "{done}");
    let hint = "the next run continues the download; set D2O_CACHE to use a folder on another file system";
    let text = format!("no space left, {done} of 300000 bytes written; hint: Some({hint:?})");
    assert_eq!(said, format!("{}: {text}", cache.path(PARTIAL).display()));
    assert_eq!(fs::read(cache.get(&wanted(&[&server.url("/x")])).path).unwrap(), body);
    assert_eq!(server.ranges(), [None, Some(usize::try_from(done).unwrap())]);
}

#[test]
fn a_source_names_its_file() {
    let request = Request::of(source("hf://o/r/a/x.bin@v1"));
    assert_eq!((request.name.as_str(), request.sources.len()), ("hf/o/r/v1/a/x.bin", 1));
}
