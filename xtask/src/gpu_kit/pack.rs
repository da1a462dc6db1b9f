//! Packs files into numbered parts of a bounded size, with the manifest that `xtask/gpu/unpack.sh` reads.
//!
//! Similar files form a group, which is one xz stream. The streams are concatenated, the shortest first, and the parts
//! are slices of that sequence. So a stream that ends in the first part can be unpacked before the second part arrives.
//! Streams are cached under the digest of their content.

use std::collections::VecDeque;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use anyhow::{Context as _, bail, ensure};
use fs_err as fs;
use liblzma::stream::{Check, Filters, LzmaOptions, PRESET_EXTREME, Stream};
use liblzma::write::XzEncoder;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::setup::hex;

/// Encoding of the streams ([`encoding`]). Part of their names in the cache.
const ENCODING: &str = "9e-128";
/// Large enough to find a match behind a file of 60 MB, bytes.
const DICTIONARY: u32 = 128 << 20;

/// A file of the kit: its path below the destination, and its bytes.
pub(crate) struct File {
    pub(crate) name: String,
    pub(crate) content: Vec<u8>,
}

/// A packed file: its place in its stream, its size and its digest.
pub(crate) struct Packed {
    pub(crate) name: String,
    pub(crate) start: u64,
    pub(crate) bytes: u64,
    pub(crate) sha256: String,
}

/// A group of files, compressed.
pub(crate) struct Piece {
    pub(crate) files: Vec<Packed>,
    /// The xz stream, in the cache.
    pub(crate) stream: PathBuf,
    pub(crate) bytes: u64,
    /// Seconds it took to compress; `None` if it was in the cache.
    pub(crate) seconds: Option<f64>,
}

/// A part of the kit.
pub(crate) struct Part {
    pub(crate) name: String,
    pub(crate) bytes: u64,
    pub(crate) sha256: String,
}

/// Compresses every group that is not in `cache` yet, several in parallel. Returns the pieces, the shortest first.
///
/// # Errors
/// If the manifest cannot hold a name, or a file cannot be written.
pub(crate) fn compress(groups: Vec<Vec<File>>, cache: &Path) -> anyhow::Result<Vec<Piece>> {
    fs::create_dir_all(cache)?;
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(groups.len());
    let waiting = Mutex::new(VecDeque::from(groups));
    let next = || waiting.lock().map_or(None, |mut groups| groups.pop_front());
    let mut pieces = std::thread::scope(|scope| -> anyhow::Result<Vec<Piece>> {
        let workers: Vec<_> = (0..threads)
            .map(|_| {
                scope.spawn(|| std::iter::from_fn(&next).map(|g| piece(&g, cache)).collect::<anyhow::Result<Vec<_>>>())
            })
            .collect();
        let mut pieces = Vec::new();
        for worker in workers {
            match worker.join() {
                Ok(done) => pieces.extend(done?),
                Err(_) => bail!("compression panicked"),
            }
        }
        Ok(pieces)
    })?;
    pieces.sort_by_key(|p| p.bytes);
    Ok(pieces)
}

fn piece(group: &[File], cache: &Path) -> anyhow::Result<Piece> {
    let (mut files, mut start) = (Vec::new(), 0);
    let mut all = Sha256::new();
    for file in group {
        let plain = |c: char| c.is_ascii_alphanumeric() || "._+-/".contains(c);
        let inside = file.name.split('/').all(|part| !matches!(part, "" | "." | ".."));
        ensure!(inside && file.name.chars().all(plain), "`{}`: a name that cannot be packed", file.name);
        let (sha256, bytes) = (hex(&Sha256::digest(&file.content)), file.content.len() as u64);
        all.update(format!("{bytes} {sha256}\n"));
        files.push(Packed { name: file.name.clone(), start, bytes, sha256 });
        start += bytes;
    }
    let stream = cache.join(format!("{}.{ENCODING}.xz", hex(&all.finalize())));
    let mut seconds = None;
    if !stream.exists() {
        let first = group.first().context("a group without files")?;
        eprintln!("gpu-kit: compressing {} and {} more, {start} bytes", first.name, group.len() - 1);
        let began = std::time::Instant::now();
        let partial = stream.with_extension(format!("partial-{}", std::process::id()));
        let mut encoder = XzEncoder::new_stream(fs::File::create(&partial)?, encoding(group.len() == 1)?);
        for file in group {
            encoder.write_all(&file.content)?;
        }
        encoder.finish()?;
        fs::rename(&partial, &stream)?;
        seconds = Some(began.elapsed().as_secs_f64());
    }
    let bytes = fs::metadata(&stream)?.len();
    Ok(Piece { files, stream, bytes, seconds })
}

/// The strongest preset. A single file also passes the filter for x86 code. The filter makes addresses absolute, which
/// hides the similarity of two programs (two builds of d2o: 16.9 MB with it, 16.2 MB without). Files are checked by
/// SHA-256, so streams have no check of their own.
fn encoding(alone: bool) -> anyhow::Result<Stream> {
    let mut options = LzmaOptions::new_preset(9 | PRESET_EXTREME)?;
    options.dict_size(DICTIONARY);
    let mut filters = Filters::new();
    if alone {
        filters.x86();
    }
    filters.lzma2(&options);
    Ok(Stream::new_stream_encoder(&filters, Check::None)?)
}

/// Writes `part-1`, `part-2`, … of at most `limit` bytes each, and `manifest.json`, which includes `about`, into `kit`.
///
/// # Errors
/// If a file cannot be read or written.
pub(crate) fn write(pieces: &[Piece], limit: usize, about: &Value, kit: &Path) -> anyhow::Result<Vec<Part>> {
    let mut all = Vec::new();
    for piece in pieces {
        all.extend(fs::read(&piece.stream)?);
    }
    let mut parts = Vec::new();
    for (i, bytes) in all.chunks(limit).enumerate() {
        let name = format!("part-{}", i + 1);
        fs::write(kit.join(&name), bytes)?;
        parts.push(Part { name, bytes: bytes.len() as u64, sha256: hex(&Sha256::digest(bytes)) });
    }
    fs::write(kit.join("manifest.json"), manifest(pieces, &parts, about))?;
    Ok(parts)
}

/// JSON with one object per line, which a shell script can read without a JSON parser.
fn manifest(pieces: &[Piece], parts: &[Part], about: &Value) -> String {
    let rows = |rows: Vec<Value>| rows.iter().map(Value::to_string).collect::<Vec<_>>().join(",\n");
    let part_rows = parts.iter().map(|p| json!({ "part": p.name, "bytes": p.bytes, "sha256": p.sha256 }));
    let (mut stream_rows, mut file_rows, mut start) = (Vec::new(), Vec::new(), 0);
    for (stream, piece) in pieces.iter().enumerate() {
        stream_rows.push(json!({ "stream": stream, "start": start, "bytes": piece.bytes }));
        start += piece.bytes;
        let row = |f: &Packed| json!({ "file": f.name, "stream": stream, "start": f.start, "bytes": f.bytes, "sha256": f.sha256 });
        file_rows.extend(piece.files.iter().map(row));
    }
    format!(
        "{{\n\"about\": {about},\n\"parts\": [\n{}\n],\n\"streams\": [\n{}\n],\n\"files\": [\n{}\n]\n}}\n",
        rows(part_rows.collect()),
        rows(stream_rows),
        rows(file_rows)
    )
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt as _, symlink};
    use std::process::{Command, Output};

    use super::*;
    use crate::paths::root;

    /// A kit of two parts: a small group of three files, and a large file that spans both parts.
    struct Kit {
        dir: tempfile::TempDir,
        parts: Vec<Part>,
    }

    /// Bytes that do not compress.
    fn noise(len: usize, seed: u32) -> Vec<u8> {
        let mut state = seed;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            state.to_be_bytes()[0]
        };
        (0..len).map(|_| next()).collect()
    }

    fn file(name: &str, content: Vec<u8>) -> File {
        File { name: name.to_owned(), content }
    }

    impl Kit {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let groups = vec![
                vec![file("lib/large.so", noise(5000, 1))],
                vec![
                    file("bin/tool", noise(300, 2)),
                    file("orig/a/empty.py", Vec::new()),
                    file("orig/a/b.py", noise(200, 3)),
                ],
            ];
            let pieces = compress(groups, &dir.path().join("cache")).unwrap();
            fs::create_dir_all(dir.path().join("kit")).unwrap();
            let parts = write(&pieces, 4096, &json!({ "commit": "abc" }), &dir.path().join("kit")).unwrap();
            Self { dir, parts }
        }

        /// Runs the script next to the files `bring`, as on a machine that has received only these. `path` replaces
        /// PATH.
        fn unpack(&self, bring: &[&str], path: Option<&Path>) -> Output {
            let there = tempfile::tempdir().unwrap();
            for name in bring {
                fs::copy(self.dir.path().join("kit").join(name), there.path().join(name)).unwrap();
            }
            fs::copy(root().join("xtask/gpu/unpack.sh"), there.path().join("unpack.sh")).unwrap();
            let mut command = Command::new("bash");
            command.arg(there.path().join("unpack.sh")).arg(self.dir.path().join("dest"));
            if let Some(path) = path {
                command.env("PATH", path);
            }
            command.output().unwrap()
        }

        fn unpacked(&self, name: &str) -> Option<Vec<u8>> {
            fs::read(self.dir.path().join("dest").join(name)).ok()
        }

        fn whole(&self) {
            assert_eq!(self.unpacked("lib/large.so"), Some(noise(5000, 1)));
            assert_eq!(self.unpacked("bin/tool"), Some(noise(300, 2)));
            assert_eq!(self.unpacked("orig/a/empty.py"), Some(Vec::new()));
            assert_eq!(self.unpacked("orig/a/b.py"), Some(noise(200, 3)));
        }
    }

    fn fails(output: &Output, message: &str) {
        assert_eq!(output.status.code(), Some(1));
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(errors.starts_with("error: ") && errors.contains(message) && errors.lines().count() == 1, "{errors}");
    }

    #[test]
    fn the_first_part_unpacks_what_it_holds_and_the_second_the_rest() {
        let kit = Kit::new();
        assert_eq!(kit.parts.iter().map(|p| p.name.as_str()).collect::<Vec<_>>(), ["part-1", "part-2"]);
        assert!(kit.parts.iter().all(|p| p.bytes <= 4096));
        let first = kit.unpack(&["part-1", "manifest.json"], None);
        assert!(first.status.success(), "{first:?}");
        assert!(String::from_utf8_lossy(&first.stdout).contains("1 files wait for part-2"));
        assert!(kit.unpacked("bin/tool").is_some() && kit.unpacked("lib/large.so").is_none());
        for _ in 0..2 {
            let second = kit.unpack(&["part-2", "manifest.json"], None);
            assert!(second.status.success(), "{second:?}");
            assert!(String::from_utf8_lossy(&second.stdout).contains("4 files of 5500 bytes"));
            kit.whole();
        }
        let mode = fs::metadata(kit.dir.path().join("dest/bin/tool")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o755);
        // A damaged file is unpacked again.
        fs::write(kit.dir.path().join("dest/orig/a/b.py"), "x").unwrap();
        assert!(kit.unpack(&["part-1", "part-2", "manifest.json"], None).status.success());
        kit.whole();
    }

    #[test]
    fn what_is_missing_or_spoilt_is_named() {
        let kit = Kit::new();
        fails(&kit.unpack(&["part-1"], None), "manifest.json is missing: bring it along with unpack.sh");
        fails(&kit.unpack(&["manifest.json"], None), "part-1 is missing: bring it along");
        assert!(kit.unpack(&["part-1", "manifest.json"], None).status.success());
        fails(&kit.unpack(&["manifest.json"], None), "part-2 is missing: bring it along");
        let part = kit.dir.path().join("kit/part-2");
        let mut bytes = fs::read(&part).unwrap();
        bytes[100] ^= 1;
        fs::write(&part, bytes).unwrap();
        fails(&kit.unpack(&["part-2", "manifest.json"], None), "part-2 does not match manifest.json");
        fs::write(kit.dir.path().join("dest/.parts/part-1"), "of another kit").unwrap();
        fails(&kit.unpack(&["part-2", "manifest.json"], None), "part-1 in");
        assert!(kit.unpacked("lib/large.so").is_none());
        let kit = Kit::new();
        fails(&kit.unpack(&["part-2", "manifest.json"], None), "part-1 is missing: run the first command again");
        // The second part was kept.
        assert!(kit.unpack(&["part-1", "manifest.json"], None).status.success());
        kit.whole();
    }

    #[test]
    fn python_does_where_xz_is_not() {
        let kit = Kit::new();
        let tools = tempfile::tempdir().unwrap();
        let found = Command::new("bash")
            .args(["-c", "type -P bash cat chmod cp date dirname head mkdir mv rm sha256sum tail"])
            .output()
            .unwrap();
        for program in String::from_utf8(found.stdout).unwrap().lines() {
            symlink(program, tools.path().join(Path::new(program).file_name().unwrap())).unwrap();
        }
        // The interpreter itself: PATH may have a script that needs more programs.
        let python =
            Command::new("python3").args(["-c", "import sys; print(sys.executable, end='')"]).output().unwrap();
        let script = format!("#!/bin/bash\nexec '{}' \"$@\"\n", String::from_utf8(python.stdout).unwrap());
        fs::write(tools.path().join("python3"), script).unwrap();
        fs::set_permissions(tools.path().join("python3"), std::fs::Permissions::from_mode(0o755)).unwrap();
        let output = kit.unpack(&["part-1", "part-2", "manifest.json"], Some(tools.path()));
        assert!(output.status.success(), "{output:?}");
        kit.whole();
    }

    #[test]
    fn a_second_time_nothing_is_compressed() {
        let dir = tempfile::tempdir().unwrap();
        let group = || vec![vec![file("a", noise(100, 4))], vec![file("b", vec![0; 100])]];
        let first = compress(group(), dir.path()).unwrap();
        let second = compress(group(), dir.path()).unwrap();
        assert!(first.iter().all(|p| p.seconds.is_some()) && second.iter().all(|p| p.seconds.is_none()));
        assert_eq!(
            first.iter().map(|p| &p.stream).collect::<Vec<_>>(),
            second.iter().map(|p| &p.stream).collect::<Vec<_>>()
        );
        assert!(second[0].bytes < second[1].bytes, "the shortest first");
    }

    #[test]
    fn names_stay_inside() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["../a", "/a", "a//b", "a b", "a\nb", ""] {
            assert!(compress(vec![vec![file(name, Vec::new())]], dir.path()).is_err(), "{name:?}");
        }
    }
}
