//! Search for the ONNX Runtime library, if none is named on the command line.

use std::env;
use std::path::{Path, PathBuf};

use anyhow::anyhow;
use d2o_runtime::ort::OLDEST_MINOR;
use fs_err as fs;

use super::{INSTALLED, cache};
use crate::error::with_hint;

/// Name of the library up to its version.
const STEM: &str = "libonnxruntime.so.";

/// Inputs of the search.
#[derive(Debug, Default)]
pub(super) struct Places {
    /// Path of this program.
    executable: Option<PathBuf>,
    /// Folder of the files that `cargo xtask setup` installs.
    cache: Option<PathBuf>,
    /// Active Python environments, and `~/.local` of the user.
    active: Vec<PathBuf>,
}

/// A place to search, and the folders in it that can hold the library.
struct Place {
    shown: PathBuf,
    folders: Vec<PathBuf>,
}

impl Places {
    /// Places of this process.
    pub(super) fn here() -> Self {
        let named = |name| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let user = named("HOME").map(|home| home.join(".local"));
        Self {
            executable: env::current_exe().ok(),
            cache: cache(),
            active: ["VIRTUAL_ENV", "CONDA_PREFIX"].into_iter().filter_map(named).chain(user).collect(),
        }
    }

    /// Returns the newest suitable library of the first place that has one. Order: the Python environment of this
    /// program, the `lib` folders beside it, the cache, the active environments.
    ///
    /// # Errors
    /// If there is none. The error lists the searched places, the unsuitable libraries found, and how to install one.
    pub(super) fn find(&self) -> anyhow::Result<PathBuf> {
        let mut unfit = Vec::new();
        let places = self.all();
        for place in &places {
            let found = place.folders.iter().flat_map(|folder| libraries(folder));
            let (fit, other): (Vec<_>, Vec<_>) =
                found.partition(|(version, _)| matches!(version[..], [1, minor, ..] if minor >= OLDEST_MINOR));
            if let Some((_, newest)) = fit.into_iter().max() {
                return Ok(newest);
            }
            unfit.extend(other.into_iter().map(|(_, path)| format!("`{}`", path.display())));
        }
        let shown: Vec<String> = places.iter().map(|place| format!("`{}`", place.shown.display())).collect();
        let found = if unfit.is_empty() { "none".to_owned() } else { format!("only {}", unfit.join(", ")) };
        Err(with_hint(
            anyhow!(
                "ONNX Runtime 1.{OLDEST_MINOR} or newer was not found: looked in {}; found {found}",
                shown.join(", ")
            ),
            format!(
                "run `pip install 'onnxruntime>=1.{OLDEST_MINOR}'` (`onnxruntime-gpu[cuda,cudnn]` for CUDA) in the Python environment of d2o or in an \
                 active one, or pass the library with --onnxruntime or D2O_ONNXRUNTIME"
            ),
        ))
    }

    /// All places, in order of preference.
    fn all(&self) -> Vec<Place> {
        let mut programs: Vec<PathBuf> = self.executable.iter().cloned().collect();
        // The program can be started through a symbolic link, so the folder of its target is searched too.
        programs.extend(self.executable.iter().filter_map(|program| program.canonicalize().ok()));
        programs.dedup();
        let folders: Vec<&Path> = programs.iter().filter_map(|program| program.parent()).collect();
        let mut places = Vec::new();
        for prefix in folders.iter().filter_map(|folder| folder.parent()) {
            places.extend(environments(prefix));
        }
        for folder in folders {
            for lib in [Some(folder.join("lib")), folder.parent().map(|prefix| prefix.join("lib"))] {
                places.extend(lib.map(|lib| Place { folders: vec![lib.clone()], shown: lib }));
            }
        }
        if let Some(lib) = self.cache.as_ref().and_then(|cache| Some(cache.join(INSTALLED).parent()?.to_owned())) {
            places.push(Place { folders: vec![lib.clone()], shown: lib });
        }
        places.extend(self.active.iter().flat_map(|prefix| environments(prefix)));
        places
    }
}

/// The Python environment at `prefix` and, if it is a virtual environment with access to system packages, the
/// environment of its base interpreter.
fn environments(prefix: &Path) -> Vec<Place> {
    let mut prefixes = vec![prefix.to_owned()];
    if let Ok(settings) = fs::read_to_string(prefix.join("pyvenv.cfg")) {
        let value = |key| {
            settings
                .lines()
                .filter_map(|line| line.split_once('='))
                .find(|(name, _)| name.trim() == key)
                .map(|(_, v)| v.trim())
        };
        if value("include-system-site-packages").is_some_and(|v| v.eq_ignore_ascii_case("true")) {
            // `home` is the folder of the base interpreter.
            prefixes.extend(value("home").and_then(|bin| Path::new(bin).parent()).map(Path::to_owned));
        }
    }
    prefixes.iter().map(|prefix| environment(prefix)).collect()
}

/// Package folders of every Python 3 at `prefix`. Debian names the folder `dist-packages`.
fn environment(prefix: &Path) -> Place {
    let mut folders = Vec::new();
    for lib in ["lib", "lib64"] {
        let entries = fs::read_dir(prefix.join(lib)).into_iter().flatten().filter_map(Result::ok);
        for entry in entries.filter(|entry| entry.file_name().to_string_lossy().starts_with("python3")) {
            let packages = ["site-packages", "dist-packages"].map(|name| entry.path().join(name));
            folders.extend(packages.map(|packages| packages.join("onnxruntime/capi")));
        }
    }
    Place { shown: prefix.join("lib*/python3*/*-packages/onnxruntime/capi"), folders }
}

/// Libraries in `folder` with their versions. The version of a symbolic link, e.g. `libonnxruntime.so.1`, is that of
/// its target.
fn libraries(folder: &Path) -> Vec<(Vec<u32>, PathBuf)> {
    let entries = fs::read_dir(folder).into_iter().flatten().filter_map(Result::ok);
    let library = |path: PathBuf| {
        path.file_name()?.to_str()?.strip_prefix(STEM)?;
        let real = path.canonicalize().ok()?;
        let version: Option<Vec<u32>> =
            real.file_name()?.to_str()?.strip_prefix(STEM)?.split('.').map(|part| part.parse().ok()).collect();
        Some((version?, path))
    };
    entries.filter_map(|entry| library(entry.path())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::render;

    struct Tree(tempfile::TempDir);

    impl Tree {
        fn new(files: &[&str]) -> Self {
            let tree = Self(tempfile::tempdir().unwrap());
            for file in files {
                tree.write(file, "");
            }
            tree
        }

        fn at(&self, path: &str) -> PathBuf {
            self.0.path().canonicalize().unwrap().join(path)
        }

        fn write(&self, path: &str, text: &str) {
            fs::create_dir_all(self.at(path).parent().unwrap()).unwrap();
            fs::write(self.at(path), text).unwrap();
        }

        fn find(&self, executable: &str) -> anyhow::Result<PathBuf> {
            let active = vec![self.at("active")];
            Places { executable: Some(self.at(executable)), cache: Some(self.at("cache")), active }.find()
        }

        #[track_caller]
        fn expect(&self, executable: &str, library: &str) {
            assert_eq!(self.find(executable).unwrap(), self.at(library));
        }
    }

    #[test]
    fn each_kind_of_environment_is_searched() {
        for library in [
            "env/lib/python3.11/site-packages/onnxruntime/capi/libonnxruntime.so.1.32.0",
            "env/lib64/python3.12/site-packages/onnxruntime/capi/libonnxruntime.so.1.32.0",
            "env/lib/python3.13/dist-packages/onnxruntime/capi/libonnxruntime.so.1.32.0",
            "env/lib/python3/dist-packages/onnxruntime/capi/libonnxruntime.so.1.32.0",
            "env/lib/libonnxruntime.so.1.31.0",
            "env/bin/lib/libonnxruntime.so.1.31.0",
            "cache/onnxruntime-1.32.0/lib/libonnxruntime.so.1.32.0",
            "active/lib/python3.11/site-packages/onnxruntime/capi/libonnxruntime.so.1.32.0",
        ] {
            Tree::new(&["env/bin/d2o", library]).expect("env/bin/d2o", library);
        }
    }

    #[test]
    fn places_have_an_order() {
        let libraries = [
            "env/lib/python3.11/site-packages/onnxruntime/capi/libonnxruntime.so.1.31.0",
            "env/bin/lib/libonnxruntime.so.1.32.0",
            "env/lib/libonnxruntime.so.1.33.0",
            "cache/onnxruntime-1.32.0/lib/libonnxruntime.so.1.34.0",
            "active/lib/python3.11/site-packages/onnxruntime/capi/libonnxruntime.so.1.35.0",
        ];
        let tree = Tree::new(&libraries);
        for library in libraries {
            tree.expect("env/bin/d2o", library);
            fs::remove_file(tree.at(library)).unwrap();
        }
        assert!(tree.find("env/bin/d2o").is_err());
    }

    #[test]
    fn the_newest_that_fits_is_taken() {
        let at = |python: &str, version: &str| {
            format!("env/lib/{python}/site-packages/onnxruntime/capi/libonnxruntime.so.{version}")
        };
        let names = [
            at("python3.11", "1.9.0"),
            at("python3.11", "1.31.2"),
            at("python3.12", "1.100.0"),
            at("python3.9", "1.31.10"),
            at("python3.13", "2.40.0"),
            at("python3.14", "2.40.debug"),
        ];
        let tree = Tree::new(&names.each_ref().map(String::as_str));
        tree.expect("env/bin/d2o", &names[2]);
        fs::remove_file(tree.at(&names[2])).unwrap();
        tree.expect("env/bin/d2o", &names[3]);
    }

    #[cfg(unix)]
    #[test]
    fn links_are_followed() {
        use std::os::unix::fs::symlink;
        let library = "venvs/d2o/lib/python3.11/site-packages/onnxruntime/capi/libonnxruntime.so.1.32.0";
        let tree = Tree::new(&["venvs/d2o/bin/d2o", library, "home/bin/other"]);
        symlink(tree.at("venvs/d2o/bin/d2o"), tree.at("home/bin/d2o")).unwrap();
        tree.expect("home/bin/d2o", library);

        let tree = Tree::new(&["bin/d2o", "lib/real/libonnxruntime.so.1.32.0"]);
        symlink("real/libonnxruntime.so.1.32.0", tree.at("lib/libonnxruntime.so.1")).unwrap();
        tree.expect("bin/d2o", "lib/libonnxruntime.so.1");
    }

    #[test]
    fn system_packages_count_where_the_environment_lets_them_in() {
        let library = "usr/lib/python3/dist-packages/onnxruntime/capi/libonnxruntime.so.1.32.0";
        let tree = Tree::new(&["env/bin/d2o", library]);
        let settings =
            |include| format!("home = {}\ninclude-system-site-packages = {include}\n", tree.at("usr/bin").display());
        tree.write("env/pyvenv.cfg", &settings("false"));
        assert!(tree.find("env/bin/d2o").is_err());
        tree.write("env/pyvenv.cfg", &settings("true"));
        tree.expect("env/bin/d2o", library);
    }

    #[test]
    fn the_error_says_what_was_looked_at_and_what_to_do() {
        let old = "env/lib/python3.11/site-packages/onnxruntime/capi/libonnxruntime.so.1.20.1";
        let tree = Tree::new(&["env/bin/d2o", old]);
        let text = render(&tree.find("env/bin/d2o").unwrap_err());
        for part in [
            format!("`{}`", tree.at("env/lib*/python3*/*-packages/onnxruntime/capi").display()),
            format!("`{}`", tree.at("env/lib").display()),
            format!("`{}`", tree.at("cache/onnxruntime-1.32.0/lib").display()),
            format!("found only `{}`", tree.at(old).display()),
            "hint: run `pip install 'onnxruntime>=1.31'`".to_owned(),
            "D2O_ONNXRUNTIME".to_owned(),
        ] {
            assert!(text.contains(&part), "no {part} in\n{text}");
        }
        let text = render(&Places::default().find().unwrap_err());
        assert!(text.contains("found none"), "{text}");
    }
}
