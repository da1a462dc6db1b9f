//! Output paths: checked before any work is done, and replaced only on request.

use std::io;
use std::path::Path;

use anyhow::Context as _;
use fs_err as fs;

use crate::error::with_hint;

/// Whether `path` is `-`, which means standard output.
#[must_use]
pub fn is_stdout(path: &Path) -> bool {
    path == Path::new("-")
}

/// Whether `path` is standard output (`-`), a device, a pipe or a socket. Such outputs are written in place and never
/// replaced.
#[must_use]
pub fn is_stream(path: &Path) -> bool {
    is_stdout(path) || fs::metadata(path).is_ok_and(|m| !m.is_file() && !m.is_dir())
}

/// Checks that the file `path` can be written: it does not exist or `overwrite` is set; it is not a folder and not
/// read-only; its folder exists or can be created, and is writable. Streams ([`is_stream`]) pass.
///
/// # Errors
/// If one of these conditions is not met; the error names `path`.
pub fn ensure_new(path: &Path, overwrite: bool) -> anyhow::Result<()> {
    if is_stream(path) {
        return Ok(());
    }
    let shown = path.display();
    anyhow::ensure!(path.file_name().is_some(), "`{shown}` is not a file name");
    // Check the link and not its target: writing replaces the link.
    if let Ok(found) = fs::symlink_metadata(path) {
        anyhow::ensure!(!path.is_dir(), "`{shown}` is a folder, expected a file name");
        if !overwrite {
            let what = if found.is_symlink() && !path.exists() { "is a link to a missing file" } else { "exists" };
            return Err(with_hint(anyhow::anyhow!("`{shown}` {what}"), "--overwrite replaces it"));
        }
        // A read-only file is never replaced, although its folder would permit it.
        let kept = fs::metadata(path).is_ok_and(|m| m.permissions().readonly());
        anyhow::ensure!(!kept, "`{shown}` is read-only");
    }
    writable(path.parent().unwrap_or(Path::new(""))).with_context(|| format!("cannot write `{shown}`"))
}

/// Same as [`ensure_new`] for an output that is written under a temporary name first, which excludes streams.
///
/// # Errors
/// Same as [`ensure_new`], and if `path` is a stream.
pub fn ensure_new_file(path: &Path, overwrite: bool) -> anyhow::Result<()> {
    anyhow::ensure!(!is_stream(path), "`{}` is a stream, expected a file name", path.display());
    ensure_new(path, overwrite)
}

/// Same as [`ensure_new_file`] for a folder: it does not exist, is empty, or `overwrite` is set; and it is writable.
///
/// # Errors
/// If one of these conditions is not met; the error names `path`.
pub fn ensure_new_folder(path: &Path, overwrite: bool) -> anyhow::Result<()> {
    let shown = path.display();
    anyhow::ensure!(!is_stream(path), "`{shown}` is a stream, expected a folder name");
    if fs::symlink_metadata(path).is_ok() {
        anyhow::ensure!(path.is_dir(), "`{shown}` exists and is not a folder");
        if !overwrite && fs::read_dir(path)?.next().is_some() {
            let error = anyhow::anyhow!("`{shown}` exists and is not empty");
            return Err(with_hint(error, "--overwrite replaces its content"));
        }
    }
    writable(path).with_context(|| format!("cannot write to `{shown}`"))
}

/// Checks that files can be created in `folder`, or in its nearest existing parent, where `folder` can then be created.
pub(crate) fn writable(folder: &Path) -> io::Result<()> {
    let above = folder.ancestors().map(|f| if f.as_os_str().is_empty() { Path::new(".") } else { f });
    for folder in above {
        match fs::metadata(folder) {
            Ok(found) if found.is_dir() => {
                // Permissions and mount options are not conclusive, so create a file. It has no name if the file system
                // supports that.
                return tempfile::tempfile_in(folder).map(drop).map_err(|error| {
                    let cause = d2o_files::without_name(&error);
                    io::Error::new(error.kind(), format!("cannot create files in `{}`: {cause}", folder.display()))
                });
            }
            Ok(_) => {
                return Err(io::Error::new(
                    io::ErrorKind::NotADirectory,
                    format!("`{}` is not a folder", folder.display()),
                ));
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(result: anyhow::Result<()>) -> String {
        result.map_or_else(|e| crate::error::render(&e), |()| String::new())
    }

    #[test]
    fn files_are_new_or_may_be_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::write(at("old"), "x").unwrap();
        fs::create_dir(at("folder")).unwrap();
        for new in ["new", "sub/sub/new"] {
            assert_eq!(text(ensure_new(&at(new), false)), "", "{new}");
        }
        assert!(!at("sub").exists() && fs::read_dir(dir.path()).unwrap().count() == 2, "nothing is left behind");
        let old = text(ensure_new(&at("old"), false));
        assert!(old.contains("old` exists\n") && old.contains("hint: --overwrite"), "{old}");
        assert_eq!(text(ensure_new(&at("old"), true)), "");
        let mut permissions = fs::metadata(at("old")).unwrap().permissions();
        permissions.set_readonly(true);
        fs::set_permissions(at("old"), permissions).unwrap();
        assert!(text(ensure_new(&at("old"), true)).contains("old` is read-only"));
        for overwrite in [false, true] {
            assert!(text(ensure_new(&at("folder"), overwrite)).contains("is a folder"));
            let below = text(ensure_new(&at("old/new"), overwrite));
            assert!(below.contains("cannot write") && below.contains("old` is not a folder"), "{below}");
            assert!(text(ensure_new(&at(".."), overwrite)).contains("is not a file name"));
            assert!(text(ensure_new(Path::new("/"), overwrite)).contains("is not a file name"));
        }
        assert_eq!(text(ensure_new(Path::new("-"), false)), "");
        assert!(text(ensure_new_file(Path::new("-"), false)).contains("is a stream"));
    }

    #[cfg(unix)]
    #[test]
    fn links_and_devices() {
        let dir = tempfile::tempdir().unwrap();
        let link = dir.path().join("link");
        std::os::unix::fs::symlink("missing", &link).unwrap();
        assert!(text(ensure_new(&link, false)).contains("is a link to a missing file"));
        assert_eq!(text(ensure_new(&link, true)), "");
        assert_eq!(text(ensure_new(Path::new("/dev/null"), false)), "");
        assert!(text(ensure_new_file(Path::new("/dev/null"), true)).contains("is a stream"));
        assert!(text(ensure_new_folder(Path::new("/dev/null"), true)).contains("is a stream"));
        // Even root cannot create files there.
        #[cfg(target_os = "linux")]
        assert!(text(ensure_new(Path::new("/proc/self/x"), true)).contains("cannot create files in `/proc/self`"));
    }

    #[test]
    fn folders_are_new_or_empty_or_may_be_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::create_dir_all(at("full/sub")).unwrap();
        fs::create_dir(at("empty")).unwrap();
        fs::write(at("file"), "x").unwrap();
        for (name, overwrite, expected) in [
            ("new", false, ""),
            ("empty", false, ""),
            ("full", false, "is not empty"),
            ("full", true, ""),
            ("file", false, "is not a folder"),
            ("file", true, "is not a folder"),
        ] {
            let found = text(ensure_new_folder(&at(name), overwrite));
            assert!(found.contains(expected) && found.is_empty() == expected.is_empty(), "{name}: {found}");
        }
    }
}
