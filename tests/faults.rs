//! Full disks, files that may not be read or written, interrupted calls: the error, the files left behind, and the next
//! run, which must succeed.
#![cfg(target_os = "linux")]
#![allow(missing_docs, clippy::unwrap_used, clippy::print_stdout, reason = "a test")]

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use fs_err as fs;
use ndarray::Array3;
use test_support::{Outcome, golden_dir};

mod common;
use common::running::{AT_ONCE, D2O, INTERRUPTED, Running, mask, names};
use common::{d2o, write_images, write_lite0, write_png};

/// Files that commands read: a checkpoint, a generator, a feature network, images, results.
static INPUTS: LazyLock<tempfile::TempDir> = LazyLock::new(|| {
    let inputs = tempfile::tempdir().unwrap();
    let dir = inputs.path();
    fs::copy(golden_dir().join("d2o-adm-cond.safetensors"), dir.join("net.safetensors")).unwrap();
    d2o(dir, &["export", "net.safetensors", "--kind", "one-step", "--out", "x.onnx", "--no-check"]);
    write_lite0(dir, 1, "lite0");
    let small = ["export", "lite0.safetensors", "--image-size", "16", "--input-size", "32", "--no-check"];
    d2o(dir, &[&small[..], &["--out", "lite0-16.onnx"]].concat());
    write_images(&dir.join("real.npz"), 0..24);
    write_images(&dir.join("fake.npz"), 24..48);
    fs::create_dir(dir.join("photos")).unwrap();
    for i in 0..4_u32 {
        // Noise, which does not compress.
        let noise = |(y, x, c): (usize, usize, usize)| {
            let at = u32::try_from((y * 64 + x) * 3 + c).unwrap().wrapping_add(i << 16);
            (at.wrapping_mul(0x9e37_79b9) ^ at.wrapping_mul(0x85eb_ca6b).rotate_left(13)).to_be_bytes()[0]
        };
        write_png(&dir.join(format!("photos/{i}.png")), &Array3::from_shape_fn((64, 64, 3), noise));
    }
    let evaluate = ["evaluate", "fake.npz", "--ref", "real.npz", "--extractor", "lite0.onnx", "--metrics", "fid"];
    d2o(dir, &[&evaluate[..], &["--json", "result.json"]].concat());
    d2o(dir, &[&evaluate[..], &["--batch", "7", "--json", "other.json"]].concat());
    inputs
});

/// A folder of a test, with links to the inputs and folders for the cache and for temporary files.
struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        let folder = Self(tempfile::tempdir().unwrap());
        for name in names(INPUTS.path()) {
            std::os::unix::fs::symlink(INPUTS.path().join(&name), folder.path().join(&name)).unwrap();
        }
        fs::create_dir(folder.path().join("tmp")).unwrap();
        folder
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    /// `program` with the cache and temporary files in this folder.
    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command
            .current_dir(self.path())
            .env("D2O_CACHE", self.path().join("cache"))
            .env("TMPDIR", self.path().join("tmp"));
        for name in ["HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy", "RUST_BACKTRACE"] {
            command.env_remove(name);
        }
        command.env("HF_HOME", self.path().join("hf"));
        command
    }

    /// Runs d2o through the words `before`.
    fn by(&self, before: &[&str], args: &[&str]) -> Outcome {
        let words = [before, &[D2O], args].concat();
        outcome(self.command(words[0]).args(&words[1..]), self.path())
    }

    fn d2o(&self, args: &[&str]) -> Outcome {
        self.by(&[], args)
    }

    /// Names of the entries that the test has made.
    fn made(&self) -> Vec<String> {
        let inputs = names(INPUTS.path());
        names(self.path()).into_iter().filter(|n| n != "tmp" && !inputs.contains(n)).collect()
    }

    /// Fails if temporary files are left anywhere.
    fn assert_swept(&self, what: &str) {
        let mut folders = vec![self.path().to_owned()];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(&folder).unwrap() {
                let entry = entry.unwrap();
                let name = entry.file_name().to_string_lossy().into_owned();
                assert!(!name.starts_with(".d2o-"), "{what} leaves {:?}", entry.path());
                if entry.file_type().unwrap().is_dir() {
                    assert!(!name.starts_with("d2o-"), "{what} leaves {:?}", entry.path());
                    folders.push(entry.path());
                }
            }
        }
        assert_eq!(names(&self.path().join("tmp")), [""; 0], "{what}");
    }
}

fn outcome(command: &mut Command, dir: &Path) -> Outcome {
    let output = command.stdin(Stdio::null()).output().unwrap();
    let clean = |bytes: &[u8]| String::from_utf8_lossy(bytes).replace(&dir.display().to_string(), "DIR");
    Outcome { code: output.status.code().unwrap_or(-1), stdout: clean(&output.stdout), stderr: clean(&output.stderr) }
}

/// The only error of a run that fails, with its causes.
fn error(what: &[&str], outcome: &Outcome) -> String {
    let at = outcome.stderr.find("error: ").unwrap_or_else(|| panic!("{what:?}: {outcome}"));
    let text = &outcome.stderr[at..];
    assert!(outcome.code == 2 && text.matches("error: ").count() == 1, "{what:?}: {outcome}");
    text.to_owned()
}

// --- commands that write

const EVALUATE: [&str; 8] =
    ["evaluate", "fake.npz", "--ref", "real.npz", "--extractor", "lite0.onnx", "--metrics", "fid"];
const GENERATE: [&str; 7] = ["generate", "x.onnx", "--provider", "cpu", "--seeds", "0-127", "--out"];

/// Every command that writes a file: the words before the name of its output, that name, whether its next run continues
/// (as after `generate`), and the limit of file size in bytes for the test of full disks.
fn writers() -> Vec<(Vec<&'static str>, &'static str, bool, u32)> {
    let of = |words: &[&'static str], out: &'static str, most| (words.to_vec(), out, false, most);
    let evaluate =
        |option: &'static str, out: &'static str, most| ([&EVALUATE[..], &[option]].concat(), out, false, most);
    let generate = |out: &'static str| (GENERATE.to_vec(), out, true, 4096);
    vec![
        of(&["export", "net.safetensors", "--no-check", "--out"], "y.onnx", 65536),
        generate("s.npz"),
        generate("s.h5"),
        generate("s.zip"),
        (GENERATE.to_vec(), "s", true, 512),
        (
            vec!["generate", "x.onnx", "--provider", "cpu", "--seeds", "0-3", "--out", "s.npz", "--grid"],
            "g.png",
            true,
            4096,
        ),
        (
            vec!["generate", "x.onnx", "--provider", "cpu", "--seeds", "0-3", "--out", "s.npz", "--save-latents"],
            "l.npz",
            true,
            8192,
        ),
        of(&["dataset", "photos", "--out"], "d.zip", 16384),
        of(&["dataset", "photos", "--out"], "d", 4096),
        of(&["refs", "make", "real.npz", "--extractor", "lite0.onnx", "--out"], "ref.npz", 65536),
        evaluate("--json", "e.json", 512),
        evaluate("--report", "e.html", 8192),
        evaluate("--save-features", "f.h5", 8192),
        of(&["verify", "x.onnx", "--runtimes", "ort-cpu,ort-cpu", "--samples", "2", "--json"], "v.json", 128),
        of(&["report", "result.json", "--out"], "r.html", 8192),
        of(&["draw", "--seeds", "0-63", "--draw", "f32:3072", "--out"], "n.npz", 65536),
        of(&["inspect", "x.onnx", "--json"], "i.json", 128),
        of(&["refs", "inspect", "real.npz", "--json"], "j.json", 128),
        of(&["explain", "result.json", "other.json", "--json"], "k.json", 128),
        of(&["known", "--json"], "t.json", 4096),
        of(&["doctor", "--json"], "o.json", 128),
        of(&["man"], "pages", 4096),
    ]
}

fn limited(folder: &Folder, most: u32, args: &[&str]) -> Outcome {
    folder.by(&["prlimit", &format!("--fsize={most}")], args)
}

#[test]
fn a_full_disk_is_an_error_that_names_the_file_and_leaves_nothing_behind() {
    std::thread::scope(|scope| {
        for half in 0..2 {
            scope.spawn(move || {
                for (words, out, resumes, most) in writers().into_iter().skip(half).step_by(2) {
                    full_disk(&words, out, resumes, most);
                }
            });
        }
    });
}

fn full_disk(words: &[&str], out: &str, resumes: bool, most: u32) {
    let folder = Folder::new();
    let args = [words, &[out]].concat();
    // An existing output stays.
    let replaces = out.ends_with(".npz") && words[0] == "draw";
    let args = if replaces { [&args[..], &["--overwrite"]].concat() } else { args };
    if replaces {
        fs::write(folder.path().join(out), "former").unwrap();
    }
    let failed = limited(&folder, most, &args);
    let text = error(&args, &failed);
    // libhdf5 and panics print messages of their own.
    assert!(!failed.stderr.contains("HDF5-DIAG") && !failed.stderr.contains("panicked"), "{args:?}: {failed}");
    assert!(text.contains(out) && text.contains("File too large"), "{args:?}: {failed}");
    folder.assert_swept(&args.join(" "));
    let partial = format!("{}.partial", words.iter().skip_while(|w| **w != "--out").nth(1).unwrap_or(&out));
    let left: Vec<String> = folder.made().into_iter().filter(|name| !resumes || *name != partial).collect();
    match out {
        _ if replaces => assert_eq!(fs::read(folder.path().join(out)).unwrap(), b"former"),
        // Images appear in the folder one by one, and their list last. Manual pages are separate files.
        "s" => assert!(!folder.path().join("s/dataset.json").exists()),
        "l.npz" => assert!(!folder.path().join("s.npz").exists(), "an output without its latents"),
        "pages" => assert_eq!(names(&folder.path().join(out)).len(), 0, "{args:?}"),
        _ => assert!(left.is_empty() || left == ["s.npz"], "{args:?} leaves {left:?}"),
    }
    // Other tests show that the command succeeds on a disk with room. Only runs that continue or replace are repeated
    // here.
    if !resumes && !replaces {
        return;
    }
    let again = if resumes { [&args[..], &["--resume"]].concat() } else { args };
    let done = folder.d2o(&again);
    assert!(matches!(done.code, 0 | 1) && folder.path().join(out).exists(), "{again:?}: {done}");
    assert!(!folder.path().join(partial).exists(), "{again:?}");
    folder.assert_swept(&again.join(" "));
}

/// Files other than the result: if they cannot be written there is no result, except for the cache of features.
#[test]
fn a_full_disk_under_temporary_files_and_caches() {
    let folder = Folder::new();
    let half = ["export", "net.safetensors", "--precision", "fp16", "--out", "y.onnx"];
    let text = error(&half, &limited(&folder, 65536, &half));
    assert!(text.contains("DIR/tmp/d2o-") && text.contains("File too large"), "{text}");
    folder.assert_swept("export");
    assert_eq!(folder.made(), [""; 0]);

    let graph = ["generate", "net.safetensors", "--provider", "cpu", "--seeds", "0-3", "--out", "s.npz"];
    let text = error(&graph, &limited(&folder, 65536, &graph));
    assert!(
        text.contains("cannot use the checkpoint `net.safetensors` as a graph") && text.contains("File too large"),
        "{text}"
    );
    folder.assert_swept("generate");
    let done = folder.d2o(&graph);
    assert_eq!(done.code, 0, "{done}");

    let cached = [&EVALUATE[..], &["--cache", "features"]].concat();
    let warned = limited(&folder, 8192, &cached);
    assert!(warned.code == 0 && warned.stdout.contains("FD"), "{warned}");
    assert_eq!(warned.stderr.matches("warning: the feature cache cannot be written").count(), 2, "{warned}");
    assert!(warned.stderr.contains("File too large"), "{warned}");
    assert_eq!(names(&folder.path().join("features")), [""; 0]);
    folder.assert_swept("evaluate");
    let written = folder.d2o(&cached);
    assert!(written.code == 0 && written.stdout == warned.stdout, "{written}");
    assert_eq!(names(&folder.path().join("features")).len(), 2);
}

#[test]
fn a_device_that_is_full_is_named() {
    let folder = Folder::new();
    let json = [
        &["inspect", "x.onnx"][..],
        &["refs", "inspect", "real.npz"],
        &["explain", "result.json", "other.json"],
        &["verify", "x.onnx", "--runtimes", "ort-cpu,ort-cpu", "--samples", "2"],
        &["known"],
        &["doctor"],
    ];
    for words in json {
        let args = [words, &["--json", "/dev/full"]].concat();
        let text = error(&args, &folder.d2o(&args));
        assert!(text.contains("/dev/full") && text.contains("No space left on device"), "{args:?}: {text}");
    }
    for args in [
        &["inspect", "x.onnx"][..],
        &["known", "--json", "-"],
        &["completions", "fish"],
        &["report", "result.json", "--format", "markdown", "--out", "-"],
    ] {
        let full = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
        let mut command = folder.command(D2O);
        let output = command.args(args).stdout(full.into_file()).stderr(Stdio::piped()).spawn().unwrap();
        let output = output.wait_with_output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{args:?}: {stderr}");
        assert!(stderr.contains("error: write to standard output\n  caused by: No space left"), "{args:?}: {stderr}");
    }
}

// --- what may not be read or written

/// Words before a command that make modes bind it. Modes do not bind root, as which tests may run, unless it gives up
/// capabilities. `None` if that fails and tests may be skipped.
fn bound(folder: &Folder) -> Option<Vec<&'static str>> {
    const WITHOUT: &str = "-dac_override,-dac_read_search";
    let words = ["setpriv", "--bounding-set", WITHOUT, "--inh-caps", WITHOUT];
    let closed = folder.path().join("closed");
    fs::write(&closed, "").unwrap();
    fs::set_permissions(&closed, std::fs::Permissions::from_mode(0o000)).unwrap();
    let refused = |before: &[&str]| {
        let words = [before, &["cat", "closed"]].concat();
        let output = folder.command(words[0]).args(&words[1..]).output();
        output.is_ok_and(|o| String::from_utf8_lossy(&o.stderr).contains("Permission denied"))
    };
    let found = [&[][..], &words].into_iter().find(|before| refused(before)).map(<[_]>::to_vec);
    fs::remove_file(closed).unwrap();
    if found.is_none() {
        assert!(
            std::env::var_os("D2O_ALLOW_SKIP").is_some(),
            "modes do not bind this user, and setpriv cannot change that"
        );
        println!("skipped: modes do not bind this user");
    }
    found
}

fn chmod(path: &Path, mode: u32) {
    fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

#[test]
fn outputs_that_may_not_be_written_are_refused_before_the_work() {
    let folder = Folder::new();
    let Some(before) = bound(&folder) else { return };
    fs::create_dir(folder.path().join("locked")).unwrap();
    chmod(&folder.path().join("locked"), 0o555);
    fs::write(folder.path().join("file"), "x").unwrap();
    let mut writers = writers();
    if cfg!(feature = "train") {
        let small =
            ["--arch", "ncsnpp", "--cbase", "16", "--cres", "1,1", "--num-blocks", "1", "--duration", "0.000008"];
        let train = ["train", "--loss", "edm", "--data", "real.npz", "--batch", "4"];
        writers.push(([&train[..], &small, &["--outdir"]].concat(), "run", false, 0));
    }
    // All outputs are tested in `locked`. The other places need a few of them only, because kinds of outputs share the
    // check.
    for (i, (words, out, ..)) in writers.into_iter().enumerate() {
        for (place, reasons) in [
            ("locked", &["Permission denied"][..]),
            ("file", &["is not a folder", "Not a directory"]),
            ("/proc/self", &["Operation not permitted", "No such file or directory"]),
        ] {
            if place != "locked" && i % 8 != 1 {
                continue;
            }
            let (out, start) = (format!("{place}/{out}"), Instant::now());
            let args = [&words[..], &[&out]].concat();
            let refused = folder.by(&before, &args);
            let text = error(&args, &refused);
            assert!(text.contains(&out) && reasons.iter().any(|r| text.contains(r)), "{args:?}: {refused}");
            assert!(refused.stdout.is_empty(), "{args:?}: {refused}");
            assert!(start.elapsed() < AT_ONCE * 5, "{args:?}: {:?}", start.elapsed());
        }
    }
    folder.assert_swept("what is refused");
    assert_eq!(names(&folder.path().join("locked")), [""; 0]);
    assert_eq!(folder.made(), ["file", "locked"]);

    // A read-only file is not replaced.
    let kept = folder.path().join("kept.npz");
    fs::write(&kept, "mine").unwrap();
    chmod(&kept, 0o444);
    for words in [&["draw", "--seeds", "0", "--draw", "f32:4"][..], &GENERATE[..6]] {
        let args = [words, &["--out", "kept.npz", "--overwrite"]].concat();
        let text = error(&args, &folder.by(&before, &args));
        assert!(text.contains("`kept.npz` is read-only"), "{args:?}: {text}");
        assert_eq!(fs::read(&kept).unwrap(), b"mine");
    }
}

#[test]
fn inputs_that_may_not_be_read_are_named() {
    let folder = Folder::new();
    let Some(before) = bound(&folder) else { return };
    for name in ["net.safetensors", "x.onnx", "real.npz", "result.json", "lite0.onnx"] {
        let (from, to) = (INPUTS.path().join(name), folder.path().join(format!("closed-{name}")));
        fs::copy(from, &to).unwrap();
        chmod(&to, 0o000);
    }
    let photos = folder.path().join("some");
    fs::create_dir(&photos).unwrap();
    for name in ["0.png", "1.png"] {
        fs::copy(INPUTS.path().join("photos").join(name), photos.join(name)).unwrap();
    }
    chmod(&photos.join("1.png"), 0o000);
    fs::create_dir(folder.path().join("closed-folder")).unwrap();
    chmod(&folder.path().join("closed-folder"), 0o000);
    let evaluate = |samples, reference, extractor| {
        vec!["evaluate", samples, "--ref", reference, "--extractor", extractor, "--metrics", "fid"]
    };
    for (args, file) in [
        (vec!["export", "closed-net.safetensors", "--out", "y.onnx"], "closed-net.safetensors"),
        (vec!["generate", "closed-net.safetensors", "--seeds", "0", "--out", "s.npz"], "closed-net.safetensors"),
        (vec!["generate", "closed-x.onnx", "--seeds", "0", "--out", "s.npz"], "closed-x.onnx"),
        (vec!["verify", "closed-x.onnx"], "closed-x.onnx"),
        (vec!["inspect", "closed-x.onnx"], "closed-x.onnx"),
        (vec!["inspect", "closed-real.npz"], "closed-real.npz"),
        (vec!["refs", "inspect", "closed-real.npz"], "closed-real.npz"),
        (vec!["refs", "make", "closed-real.npz", "--extractor", "lite0.onnx", "--out", "r.npz"], "closed-real.npz"),
        (evaluate("closed-real.npz", "real.npz", "lite0.onnx"), "closed-real.npz"),
        (evaluate("fake.npz", "closed-real.npz", "lite0.onnx"), "closed-real.npz"),
        (evaluate("fake.npz", "real.npz", "closed-lite0.onnx"), "closed-lite0.onnx"),
        (evaluate("some", "real.npz", "lite0.onnx"), "some/1.png"),
        (evaluate("closed-folder", "real.npz", "lite0.onnx"), "closed-folder"),
        (vec!["dataset", "some", "--out", "d.zip"], "some/1.png"),
        (vec!["dataset", "closed-folder", "--out", "d.zip"], "closed-folder"),
        (vec!["dataset", "closed-real.npz", "--out", "d.zip"], "closed-real.npz"),
        (vec!["report", "closed-result.json", "--out", "r.html"], "closed-result.json"),
        (vec!["explain", "closed-result.json", "other.json"], "closed-result.json"),
    ] {
        let refused = folder.by(&before, &args);
        let text = error(&args, &refused);
        assert!(text.contains(file) && text.contains("Permission denied"), "{args:?}: {refused}");
        folder.assert_swept(&args.join(" "));
    }
    let made = folder.made();
    assert!(made.iter().all(|n| n.starts_with("closed-") || n == "some"), "{made:?}");
}

#[test]
fn caches_and_temporary_folders_that_may_not_be_written() {
    let folder = Folder::new();
    let Some(before) = bound(&folder) else { return };
    for name in ["cache", "features"] {
        fs::create_dir(folder.path().join(name)).unwrap();
        chmod(&folder.path().join(name), 0o555);
    }
    let server = Server::start(None);
    let fetch = ["fetch", &server.url];
    let text = error(&fetch, &folder.by(&before, &fetch));
    assert!(text.contains("DIR/cache") && text.contains("Permission denied"), "{text}");
    assert!(text.contains("hint: set D2O_CACHE to a writable folder"), "{text}");
    let graph = ["generate", "net.safetensors", "--provider", "cpu", "--seeds", "0", "--out", "s.npz"];
    let text = error(&graph, &folder.by(&before, &graph));
    assert!(text.contains("DIR/cache/exports") && text.contains("Permission denied"), "{text}");
    assert!(text.contains("hint: set D2O_CACHE to a writable folder"), "{text}");
    // Commands that need no cache work without it.
    let plain = folder.by(&before, &EVALUATE);
    let cached = folder.by(&before, &[&EVALUATE[..], &["--cache", "features"]].concat());
    assert!(plain.code == 0 && cached.code == 0 && plain.stdout == cached.stdout, "{plain}\n{cached}");
    assert!(
        cached.stderr.contains("warning: the feature cache cannot be written: cannot create `features/"),
        "{cached}"
    );

    chmod(&folder.path().join("tmp"), 0o555);
    for args in [
        &["export", "net.safetensors", "--precision", "fp16", "--out", "y.onnx"][..],
        &["verify", "x.onnx", "--runtimes", "ort-cpu,ort-cpu", "--samples", "2", "--profile"],
    ] {
        let text = error(args, &folder.by(&before, args));
        assert!(text.contains("cannot make a temporary folder in `DIR/tmp`"), "{args:?}: {text}");
        assert!(text.contains("Permission denied") && text.contains("TMPDIR"), "{args:?}: {text}");
    }
    // Commands that need no temporary files work without them.
    let done = folder.by(&before, &["generate", "x.onnx", "--provider", "cpu", "--seeds", "0", "--out", "s.npz"]);
    assert_eq!(done.code, 0, "{done}");
}

// --- interrupted calls

/// A server of one file of noise. With `pause` it sends that many bytes to its first client, and then nothing for a
/// minute; otherwise it sends the whole file.
struct Server {
    url: String,
    body: Arc<Vec<u8>>,
}

impl Server {
    fn start(pause: Option<usize>) -> Self {
        let body =
            Arc::new((0..1_u32 << 20).map(|i| i.wrapping_mul(0x9e37_79b9).to_be_bytes()[0]).collect::<Vec<u8>>());
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/noise.bin", listener.local_addr().unwrap());
        let sent = Arc::clone(&body);
        std::thread::spawn(move || {
            for (n, stream) in listener.incoming().enumerate() {
                let (body, pause) = (Arc::clone(&sent), pause.filter(|_| n == 0));
                std::thread::spawn(move || serve(&mut stream.unwrap(), &body, pause));
            }
        });
        Self { url, body }
    }
}

fn serve(stream: &mut TcpStream, body: &[u8], pause: Option<usize>) {
    let (mut request, mut part) = (Vec::new(), [0; 4096]);
    while !request.windows(4).any(|w| w == b"\r\n\r\n") {
        let count = stream.read(&mut part).unwrap();
        request.extend(&part[..count]);
    }
    let text = String::from_utf8(request).unwrap().to_ascii_lowercase();
    let from = text.split("range: bytes=").nth(1).and_then(|r| r.split('-').next()?.parse::<usize>().ok());
    let (status, rest) = match from {
        Some(from) => (
            format!("206 Partial Content\r\nContent-Range: bytes {from}-{}/{}", body.len() - 1, body.len()),
            &body[from..],
        ),
        None => ("200 OK".to_owned(), body),
    };
    let head =
        format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\nETag: \"1\"\r\nConnection: close\r\n\r\n", rest.len());
    let _ = stream.write_all(head.as_bytes());
    let _ = stream.write_all(&rest[..pause.unwrap_or(rest.len())]);
    if pause.is_some() {
        std::thread::sleep(Duration::from_secs(60));
    }
}

fn start(folder: &Folder, args: &[&str]) -> Running {
    let mut command = folder.command(D2O);
    command.args(args);
    Running::of(command)
}

/// Whether `folder` contains a temporary file or folder.
fn is_writing(folder: &Path) -> bool {
    fs::read_dir(folder).is_ok_and(|all| all.flatten().any(|e| e.file_name().to_string_lossy().starts_with(".d2o-")))
}

#[test]
fn what_ends_at_once_leaves_no_temporary_files() {
    let folder = Folder::new();
    let draw = ["draw", "--seeds", "0-8191", "--draw", "f32:3072", "--out", "n.npz"];
    // Shells start background processes with SIGINT ignored, and d2o does not change that.
    let ignored = mask("self", "SigIgn:") >> 1 & 1 == 1;
    for signal in ["TERM", "INT"].into_iter().take(if ignored { 1 } else { 2 }) {
        let mut running = start(&folder, &draw);
        running.wait_for("the file", |_| is_writing(folder.path()));
        running.send(signal);
        let (code, stderr, took) = running.end();
        assert_eq!((code, stderr.as_str()), (Some(INTERRUPTED), "interrupted\n"));
        assert!(took < AT_ONCE, "{took:?}");
        folder.assert_swept("draw");
        assert_eq!(folder.made(), [""; 0]);
    }
    // A graph is written within milliseconds, so some attempts are too late.
    let caught = (0..20).any(|_| {
        let export = ["export", "lite0.safetensors", "--image-size", "32", "--no-check", "--out", "y.onnx"];
        let mut running = start(&folder, &export);
        while !is_writing(folder.path()) && running.0.try_wait().unwrap().is_none() {
            std::hint::spin_loop();
        }
        let _ = Command::new("kill").args(["-s", "STOP", &running.0.id().to_string()]).stderr(Stdio::null()).status();
        let caught = is_writing(folder.path());
        let _ = Command::new("kill").args(["-s", "TERM", &running.0.id().to_string()]).stderr(Stdio::null()).status();
        let _ = Command::new("kill").args(["-s", "CONT", &running.0.id().to_string()]).stderr(Stdio::null()).status();
        let (code, stderr, _) = running.end();
        folder.assert_swept("export");
        match code {
            Some(INTERRUPTED) => assert_eq!(folder.made().len(), usize::from(!caught), "{stderr}"),
            _ => assert_eq!((code, folder.made()), (Some(0), vec!["y.onnx".to_owned()]), "{stderr}"),
        }
        let _ = fs::remove_file(folder.path().join("y.onnx"));
        caught && code == Some(INTERRUPTED)
    });
    assert!(caught, "no signal came while the graph was being written");
}

#[test]
fn work_in_batches_leaves_nothing_after_one_signal_and_after_two() {
    let folder = Folder::new();
    write_images(&folder.path().join("many.npz"), 0..2000);
    let enlarge = ["--resolution", "256", "--transform", "resize"];
    let zip = [&["dataset", "many.npz", "--out", "d.zip"][..], &enlarge].concat();
    let directory = [&["dataset", "many.npz", "--out", "d"][..], &enlarge].concat();
    let features = [
        "evaluate",
        "many.npz",
        "--extractor",
        "lite0.onnx",
        "--batch",
        "16",
        "--metrics",
        "is",
        "--save-features",
        "f.h5",
    ];
    let make = [
        "refs",
        "make",
        "many.npz",
        "--extractor",
        "lite0.onnx",
        "--batch",
        "16",
        "--out",
        "r.npz",
        "--cache",
        "features",
    ];
    // One batch that lasts longer than the test.
    let one = [
        "evaluate",
        "x.onnx",
        "--seeds",
        "0-65535",
        "--batch",
        "65536",
        "--provider",
        "cpu",
        "--extractor",
        "lite0-16.onnx",
    ];
    let one = [&one[..], &["--metrics", "is", "--save-features", "f.h5"]].concat();
    for (args, at, signals) in
        [(&zip[..], "", 1), (&directory, "", 1), (&features, "", 1), (&make, "features", 1), (&one, "", 2)]
    {
        let at = folder.path().join(at);
        let mut running = start(&folder, args);
        running.wait_for("the file", |_| is_writing(&at));
        running.send("TERM");
        if signals == 2 {
            std::thread::sleep(Duration::from_millis(300));
            assert!(running.0.try_wait().unwrap().is_none(), "the first signal waits for the batch");
            running.send("TERM");
        }
        let (code, stderr, took) = running.end();
        assert_eq!(code, Some(INTERRUPTED), "{args:?}: {stderr}");
        assert!(stderr.lines().last().unwrap().starts_with("interrupted"), "{args:?}: {stderr}");
        assert!(took < 5 * AT_ONCE, "{args:?}: {took:?}");
        folder.assert_swept(&args.join(" "));
        let made = folder.made();
        assert!(made.iter().all(|n| n == "many.npz" || n == "features"), "{args:?} leaves {made:?}");
    }
    assert_eq!(names(&folder.path().join("features")), [""; 0]);
}

#[test]
fn an_interrupted_download_goes_on() {
    let folder = Folder::new();
    let server = Server::start(Some(300_000));
    let mut running = start(&folder, &["fetch", &server.url]);
    let partial = || {
        let mut folders = vec![folder.path().join("cache")];
        while let Some(at) = folders.pop() {
            for entry in fs::read_dir(at).into_iter().flatten().flatten() {
                if entry.file_name().to_string_lossy().ends_with(".d2o-partial") {
                    return entry.metadata().map_or(0, |m| m.len());
                }
                folders.extend(entry.file_type().is_ok_and(|t| t.is_dir()).then(|| entry.path()));
            }
        }
        0
    };
    running.wait_for("the first bytes", |_| partial() > 100_000);
    running.send("TERM");
    let (code, stderr, took) = running.end();
    assert_eq!(code, Some(INTERRUPTED), "{stderr}");
    assert!(stderr.ends_with("interrupted; the same command continues the download\n"), "{stderr}");
    assert!(took < AT_ONCE, "{took:?}");
    let done = folder.d2o(&["fetch", &server.url]);
    assert_eq!(done.code, 0, "{done}");
    let path = done.stdout.trim().replace("DIR", &folder.path().display().to_string());
    assert!(fs::read(path).unwrap() == *server.body, "other bytes");
    assert_eq!(partial(), 0);
}

/// System calls are interrupted by stops, and by signals that a run ignores or handles without effect.
#[test]
fn signals_without_meaning_change_no_byte() {
    use rustix::process::{Pid, Signal, kill_process};
    let folder = Folder::new();
    write_images(&folder.path().join("some.npz"), 0..100);
    let server = Server::start(None);
    let url = server.url.clone();
    let runs: [(&[&str], &str); 5] = [
        (&["generate", "x.onnx", "--provider", "cpu", "--seeds", "0-255", "--out"], "s.npz"),
        (&["generate", "x.onnx", "--provider", "cpu", "--seeds", "0-255", "--out"], "s.h5"),
        (&["dataset", "some.npz", "--resolution", "64", "--transform", "resize", "--out"], "d.zip"),
        (&["draw", "--seeds", "0-511", "--draw", "f32:3072", "--out"], "n.npz"),
        (&["evaluate", "some.npz", "--extractor", "lite0.onnx", "--metrics", "is", "--save-features"], "f.h5"),
    ];
    let storm = |running: &mut Running| {
        let pid = Pid::from_child(&running.0);
        let mut sent = 0;
        while running.0.try_wait().unwrap().is_none() {
            for signal in [Signal::WINCH, Signal::URG, Signal::XFSZ, Signal::STOP, Signal::CONT] {
                let _ = kill_process(pid, signal);
                sent += 1;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        sent
    };
    for (words, out) in runs {
        let quiet = folder.d2o(&[words, &[out]].concat());
        assert_eq!(quiet.code, 0, "{words:?}: {quiet}");
        let disturbed = format!("other-{out}");
        let mut running = start(&folder, &[words, &[&disturbed]].concat());
        let sent = storm(&mut running);
        let (code, stderr, _) = running.end();
        assert!(code == Some(0) && sent > 20, "{words:?}: {sent} signals: {stderr}");
        let bytes = |name: &str| fs::read(folder.path().join(name)).unwrap();
        assert!(bytes(out) == bytes(&disturbed), "{words:?}: other bytes");
    }
    let mut running = start(&folder, &["fetch", &url]);
    storm(&mut running);
    let (code, stderr, _) = running.end();
    assert_eq!(code, Some(0), "{stderr}");
    let fetched = folder.d2o(&["fetch", "--offline", &url]);
    assert_eq!(fetched.code, 0, "{fetched}");
    folder.assert_swept("a run that was disturbed");
}

#[test]
fn closed_streams_end_a_command_in_silence_or_do_not_matter() {
    let folder = Folder::new();
    for args in [&["known"][..], &["inspect", "x.onnx"], &["doctor", "--json", "-"], &["completions", "bash"]] {
        let mut child = folder.command(D2O).args(args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        // As in `| true`.
        drop(child.stdout.take());
        let output = child.wait_with_output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code() == Some(2) && stderr.is_empty(), "{args:?}: {:?} {stderr}", output.status);
    }
    let generate = |streams: &str, out: &str| {
        let script = format!("exec \"$0\" \"$@\" {streams}");
        let words = [&["-c", &script, D2O], &GENERATE[..], &[out]].concat();
        let done = outcome(folder.command("sh").args(words), folder.path());
        assert_eq!(done.code, 0, "{streams}: {done}");
        fs::read(folder.path().join(out)).unwrap()
    };
    let expected = generate("", "a.npz");
    for (streams, out) in [("2>&-", "b.npz"), ("<&- >&- 2>&-", "c.npz")] {
        assert!(generate(streams, out) == expected, "{streams}: other bytes");
    }
}
