//! Folders of images: searched recursively, sorted by path.

use std::io::Read as _;
use std::ops::Range;
use std::path::{Path, PathBuf};

use fs_err as fs;
use ndarray::{Array3, Array4};
use rayon::prelude::*;

use crate::batch::{ImageDims, ImageSource, check_range};
use crate::error::Result;
use crate::image_zip::{HEAD, MAX_ENTRY, MAX_JSON, Sizes, decode_each, shown, size_of, stack};
use crate::kind::{self, whole};
use crate::labels::{LABEL_FILE, Labels, of_folders, of_json};
use crate::limits::Unpacked;
use crate::listing::{Listing, list};

/// A folder of images.
///
/// Hidden files and folders (`.ipynb_checkpoints`, `._a.png`), files with other extensions, pipes, sockets and devices are skipped and counted
/// in [`ImageSource::notes`]. Classes come from `dataset.json`, else from folders (`DIR/class/x.png`).
#[derive(Debug)]
pub struct Folder {
    path: PathBuf,
    files: Listing,
    sizes: Sizes,
    labels: Labels,
    notes: Vec<String>,
}

impl Folder {
    /// Lists `path` and reads the header of every image.
    ///
    /// # Errors
    /// `Missing`; `Empty` without images; `Image` or `Format` if the size of an image cannot be read; `Format` if the
    /// images decode to more than [`Unpacked`] allows; errors of the file system.
    pub fn open(path: &Path) -> Result<Self> {
        kind::metadata(path)?;
        let (mut files, mut left) = list(path)?;
        files.retain(|name| left.takes(name));
        if files.len() == 0 {
            return Err(left.empty(path));
        }
        let size = |i| size_of(path, files.name(i), |limit| read(path, files.path(i), limit));
        let sizes = (0..files.len()).into_par_iter().map(size).collect::<Result<Vec<_>>>()?;
        let names: Vec<&str> = (0..files.len()).map(|i| files.name(i)).collect();
        let labels = if path.join(LABEL_FILE).is_file() {
            of_json(&whole(&path.join(LABEL_FILE), path, LABEL_FILE, MAX_JSON)?, &names)
        } else {
            of_folders(&names)
        };
        let opened = Self { path: path.to_owned(), sizes: Sizes::of(sizes), labels, notes: left.notes(), files };
        let length = |i| Ok(fs::metadata(path.join(opened.files.path(i)))?.len());
        let packed = (0..opened.files.len()).map(length).sum::<Result<u64>>()?;
        Unpacked::of(packed).images(&opened)?;
        Ok(opened)
    }

    fn decode(&self, range: Range<usize>) -> Result<Vec<Array3<u8>>> {
        check_range(&self.path, &range, self.files.len())?;
        let encoded = |i| {
            let name = self.files.name(i);
            (name, whole(&self.path.join(self.files.path(i)), &self.path, name, MAX_ENTRY))
        };
        decode_each(&self.path, range.into_par_iter().map(encoded))
    }
}

/// The first `limit` bytes of `file` below `root`, and whether these are all.
fn read(root: &Path, file: &Path, limit: u64) -> Result<(Vec<u8>, bool)> {
    let opened = fs::File::open(root.join(file))?;
    let mut bytes = Vec::with_capacity(usize::try_from(limit.min(HEAD)).unwrap_or(0));
    opened.take(limit + 1).read_to_end(&mut bytes)?;
    let complete = bytes.len() as u64 <= limit;
    bytes.truncate(usize::try_from(limit).unwrap_or(usize::MAX));
    Ok((bytes, complete))
}

impl ImageSource for Folder {
    fn len(&self) -> usize {
        self.files.len()
    }

    fn dims(&self) -> Option<ImageDims> {
        self.sizes.shared()
    }

    fn size(&self, index: usize) -> Option<ImageDims> {
        self.sizes.get(index).filter(|_| index < self.files.len())
    }

    fn container(&self) -> &Path {
        &self.path
    }

    fn labels(&self) -> Option<&[i64]> {
        self.labels.classes()
    }

    fn label_problem(&self) -> Option<&str> {
        self.labels.problem()
    }

    fn notes(&self) -> &[String] {
        &self.notes
    }

    fn name(&self, index: usize) -> String {
        shown(index, self.files.name(index))
    }

    fn read(&mut self, range: Range<usize>) -> Result<Array4<u8>> {
        stack(self, range.clone(), self.decode(range)?)
    }

    fn read_each(&mut self, range: Range<usize>) -> Result<Vec<Array3<u8>>> {
        self.decode(range)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Error;

    fn png(path: &Path, image: &image::DynamicImage) {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        image.save(path).unwrap();
    }

    fn grey(path: &Path, value: u8) {
        png(path, &image::DynamicImage::ImageLuma8(image::GrayImage::from_pixel(2, 2, image::Luma([value]))));
    }

    #[test]
    fn grey_alpha_and_nesting() {
        let dir = tempfile::tempdir().unwrap();
        grey(&dir.path().join("a.png"), 7);
        let rgba = image::RgbaImage::from_pixel(2, 2, image::Rgba([1, 2, 3, 4]));
        png(&dir.path().join("b/c.png"), &image::DynamicImage::ImageRgba8(rgba));
        let mut folder = Folder::open(dir.path()).unwrap();
        let images = folder.read(0..2).unwrap();
        assert_eq!(images[[0, 0, 0, 2]], 7);
        assert_eq!([images[[1, 1, 1, 0]], images[[1, 1, 1, 1]], images[[1, 1, 1, 2]]], [1, 2, 3]);
        assert!(folder.notes().is_empty() && folder.labels().is_none());
    }

    #[test]
    fn bad_images_are_named() {
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(Folder::open(dir.path()), Err(Error::Empty { .. })));
        png(&dir.path().join("a.png"), &image::DynamicImage::new_rgb8(2, 2));
        fs::write(dir.path().join("b.png"), b"\x89PNG\r\n\x1a\nbroken").unwrap();
        let error = Folder::open(dir.path()).and_then(|mut f| f.read(0..2)).unwrap_err();
        assert!(error.to_string().contains("b.png"), "{error}");
    }

    #[test]
    fn hidden_files_and_other_endings_are_left_out_and_counted() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        for (i, name) in ["a.png", "b.PNG", "c/d.png"].iter().enumerate() {
            grey(&at(name), u8::try_from(i).unwrap());
        }
        for name in
            [".ipynb_checkpoints/a-checkpoint.png", "@eaDir/a.png/thumb.png", "__MACOSX/a.png", "c/.thumbnails/x.png"]
        {
            grey(&at(name), 200);
        }
        for name in ["._a.png", ".DS_Store", "Thumbs.db", "c/notes.TXT", "c/more.txt", "labels.json", "README"] {
            fs::write(at(name), b"x").unwrap();
        }
        let mut folder = Folder::open(dir.path()).unwrap();
        assert_eq!((folder.len(), folder.name(2)), (3, "`c/d.png`".to_owned()));
        assert_eq!(folder.read(0..3).unwrap()[[2, 0, 0, 0]], 2);
        let expected = "skipped 7 files (3 hidden, 2 .txt, 1 .json, 1 without an extension); 4 hidden folders";
        assert_eq!(folder.notes(), [expected]);
    }

    #[cfg(unix)]
    #[test]
    fn links_are_followed_once_and_special_files_never_opened() {
        use std::os::unix::fs::symlink;
        let dir = tempfile::tempdir().unwrap();
        let elsewhere = tempfile::tempdir().unwrap();
        grey(&dir.path().join("a.png"), 1);
        grey(&dir.path().join("sub/b.png"), 2);
        grey(&elsewhere.path().join("c.png"), 3);
        grey(&elsewhere.path().join("inner/d.png"), 4);
        symlink(".", dir.path().join("loop")).unwrap();
        symlink("..", dir.path().join("sub/up")).unwrap();
        symlink("sub", dir.path().join("again")).unwrap();
        symlink(elsewhere.path(), dir.path().join("other")).unwrap();
        symlink(elsewhere.path(), dir.path().join("other2")).unwrap();
        symlink(dir.path(), elsewhere.path().join("inner/back")).unwrap();
        symlink("a.png", dir.path().join("z.png")).unwrap();
        let pipe = std::process::Command::new("mkfifo").arg(dir.path().join("pipe.png")).status();
        assert!(pipe.unwrap().success());
        let _socket = std::os::unix::net::UnixListener::bind(dir.path().join("socket.png")).unwrap();
        let mut folder = Folder::open(dir.path()).unwrap();
        let names: Vec<_> = (0..folder.len()).map(|i| folder.name(i)).collect();
        assert_eq!(names, ["`a.png`", "`other/c.png`", "`other/inner/d.png`", "`sub/b.png`", "`z.png`"]);
        assert_eq!(folder.read(0..5).unwrap().slice(ndarray::s![.., 0, 0, 0]).to_vec(), [1, 3, 4, 2, 1]);
        let expected = "skipped 2 files (2 not regular (pipes, sockets or devices)); 5 links to folders already listed";
        assert_eq!(folder.notes(), [expected]);
        crate::batch::container_sha256(dir.path()).unwrap();
        symlink("nowhere", dir.path().join("lost.png")).unwrap();
        assert!(Folder::open(dir.path()).unwrap_err().to_string().contains("lost.png"));
    }

    #[cfg(unix)]
    #[test]
    fn names_of_any_bytes_and_backslashes_work() {
        use std::os::unix::ffi::OsStrExt as _;
        let dir = tempfile::tempdir().unwrap();
        grey(&dir.path().join("back\\slash.png"), 1);
        let odd = dir.path().join(std::ffi::OsStr::from_bytes(b"odd\xff.png"));
        grey(&dir.path().join("x.png"), 2);
        fs::rename(dir.path().join("x.png"), odd).unwrap();
        let mut folder = Folder::open(dir.path()).unwrap();
        assert_eq!(folder.read(0..2).unwrap().slice(ndarray::s![.., 0, 0, 0]).to_vec(), [1, 2]);
        assert_eq!(folder.name(0), "`back\\slash.png`");
    }

    #[test]
    fn deep_nesting_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let deep: PathBuf = std::iter::repeat_n("d", 70).collect();
        grey(&dir.path().join(deep).join("a.png"), 1);
        assert!(Folder::open(dir.path()).unwrap_err().to_string().contains("64 levels"));
    }

    #[test]
    fn sizes_may_differ_and_read_each_takes_them() {
        let dir = tempfile::tempdir().unwrap();
        png(&dir.path().join("a.png"), &image::DynamicImage::new_rgb8(3, 2));
        png(&dir.path().join("b.png"), &image::DynamicImage::new_rgb8(4, 5));
        let mut folder = Folder::open(dir.path()).unwrap();
        assert_eq!(folder.dims(), None);
        let error = crate::batch::uniform(&folder).unwrap_err().to_string();
        assert!(error.contains("`a.png` is 3×2, `b.png` is 4×5"), "{error}");
        assert_eq!(folder.read(0..2).unwrap_err().to_string(), error);
        assert_eq!(folder.read(1..2).unwrap().dim(), (1, 5, 4, 3));
        let each: Vec<_> = folder.read_each(0..2).unwrap().iter().map(Array3::dim).collect();
        assert_eq!(each, [(2, 3, 3), (5, 4, 3)]);
        let hash = crate::batch::content_sha256(&mut folder).unwrap();
        png(&dir.path().join("a.png"), &image::DynamicImage::new_rgb8(2, 3));
        let turned = crate::batch::content_sha256(&mut Folder::open(dir.path()).unwrap()).unwrap();
        assert_ne!(hash, turned, "the same pixels in another shape");
    }

    #[test]
    fn classes_come_from_folders_unless_a_label_file_is_there() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["cat/1.png", "cat/2.png", "dog/1.png"] {
            grey(&dir.path().join(name), 1);
        }
        assert_eq!(Folder::open(dir.path()).unwrap().labels().unwrap(), [0, 0, 1]);
        fs::write(dir.path().join(LABEL_FILE), r#"{"labels": [["cat/1.png", 5]]}"#).unwrap();
        let folder = Folder::open(dir.path()).unwrap();
        assert_eq!(folder.labels(), None);
        assert!(folder.label_problem().unwrap().contains("no label for 2 of 3 images"));
        assert!(folder.notes().is_empty());
    }

    #[test]
    fn a_huge_sparse_file_is_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        grey(&dir.path().join("a.png"), 1);
        fs::File::create(dir.path().join("b.png")).unwrap().set_len(1 << 40).unwrap();
        let text = Folder::open(dir.path()).unwrap_err().to_string();
        assert!(text.contains("b.png: expected at most 268435456 bytes"), "{text}");
    }
}
