//! Temporary files of a process that ends without running destructors. There is only one test, since it removes the
//! temporary files of the whole process.
#![allow(clippy::unwrap_used, reason = "a test")]

use std::io::Write as _;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use d2o_files::{AtomicFile, AtomicPath, Scratch, remove_temporary};
use fs_err as fs;

fn names(folder: &Path) -> Vec<String> {
    let names = fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().to_string_lossy().into_owned());
    let mut names: Vec<_> = names.collect();
    names.sort_unstable();
    names
}

#[test]
fn nothing_but_what_was_finished() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let at = |name: &str| dir.join(name);
    AtomicFile::write_all_to(&at("done"), b"abc").unwrap();
    let mut unfinished = AtomicFile::create(&at("file")).unwrap();
    unfinished.write_all(&[7; 3 << 20]).unwrap();
    let by_path = AtomicPath::create(&at("path")).unwrap();
    let folder = Scratch::new_in(dir).unwrap();
    fs::create_dir(folder.path().join("sub")).unwrap();
    fs::write(folder.path().join("sub/x"), "x").unwrap();
    let kept = Scratch::partial_in(dir).unwrap();
    fs::write(kept.path().join("x"), "x").unwrap();
    kept.persist(&at("kept")).unwrap();
    drop(Scratch::new_in(dir).unwrap());
    assert_eq!(names(dir).len(), 5, "{:?}", names(dir));

    let removed = remove_temporary();
    assert_eq!(names(dir), ["done", "kept"]);
    // Other threads wait before they create files.
    let made = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let late = [AtomicFile::create(&at("late")).map(drop), Scratch::new_in(dir).map(drop)];
            made.store(true, Ordering::SeqCst);
            assert!(late.iter().all(Result::is_ok), "{late:?}");
        });
        std::thread::sleep(Duration::from_millis(200));
        assert!(!made.load(Ordering::SeqCst) && names(dir) == ["done", "kept"]);
        drop(removed);
    });
    // A file that another process has written to the same path since then is not removed.
    let temporary = by_path.path().to_owned();
    fs::write(&temporary, "another's").unwrap();
    drop(remove_temporary());
    assert_eq!(fs::read(&temporary).unwrap(), b"another's");
    drop((unfinished, by_path, folder));
    assert!(made.load(Ordering::SeqCst));
}
