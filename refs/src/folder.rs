//! Folders of images, searched recursively, in the order of their paths.

use std::ops::Range;
use std::path::{Path, PathBuf};

use fs_err as fs;
use ndarray::Array4;

use crate::batch::{ImageDims, ImageSource, check_range};
use crate::decode;
use crate::error::{Error, Result};
use crate::image_zip::{LABEL_FILE, decode_all, labels_of};

/// Deepest nesting of folders that is followed.
const MAX_DEPTH: usize = 64;

/// A folder of images.
#[derive(Debug)]
pub struct Folder {
    path: PathBuf,
    names: Vec<String>,
    dims: ImageDims,
    labels: Option<Vec<i64>>,
}

impl Folder {
    /// Lists `path` and decodes its first image.
    ///
    /// # Errors
    /// `Empty` without images, `Format` for a bad `dataset.json`, `Image` for a bad first image.
    pub fn open(path: &Path) -> Result<Self> {
        let mut names = files(path)?;
        names.retain(|n| decode::is_image(n));
        let Some(first) = names.first() else { return Err(Error::Empty { file: path.to_owned() }) };
        let (height, width, channels) = decode::rgb(path, first, &fs::read(path.join(first))?)?.dim();
        let json = path.join(LABEL_FILE);
        let labels = if json.exists() { labels_of(path, &fs::read(json)?, &names)? } else { None };
        Ok(Self { path: path.to_owned(), names, dims: ImageDims { height, width, channels }, labels })
    }
}

/// Paths of all files below `path`, sorted.
///
/// # Errors
/// The file system's own.
pub fn files(path: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    list(path, path, 0, &mut names)?;
    names.sort_unstable();
    Ok(names)
}

fn list(root: &Path, folder: &Path, depth: usize, names: &mut Vec<String>) -> Result<()> {
    if depth > MAX_DEPTH {
        return Err(Error::format(root, folder.display().to_string(), format!("at most {MAX_DEPTH} levels"), "more"));
    }
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            list(root, &path, depth + 1, names)?;
        } else if let Ok(name) = path.strip_prefix(root) {
            names.push(name.to_string_lossy().replace('\\', "/"));
        }
    }
    Ok(())
}

impl ImageSource for Folder {
    fn len(&self) -> usize {
        self.names.len()
    }

    fn dims(&self) -> Option<ImageDims> {
        Some(self.dims)
    }

    fn container(&self) -> &Path {
        &self.path
    }

    fn labels(&self) -> Option<&[i64]> {
        self.labels.as_deref()
    }

    fn name(&self, index: usize) -> String {
        self.names.get(index).map_or_else(|| format!("image {index}"), |n| format!("`{n}`"))
    }

    fn read(&mut self, range: Range<usize>) -> Result<Array4<u8>> {
        check_range(&self.path, &range, self.names.len())?;
        let mut encoded = Vec::with_capacity(range.len());
        for name in &self.names[range] {
            encoded.push((name.clone(), fs::read(self.path.join(name))?));
        }
        decode_all(&self.path, &self.names[0], self.dims, &encoded)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn png(path: &Path, image: &image::DynamicImage) {
        image.save(path).unwrap();
    }

    #[test]
    fn grey_alpha_and_nesting() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("b")).unwrap();
        png(
            &dir.path().join("a.png"),
            &image::DynamicImage::ImageLuma8(image::GrayImage::from_pixel(2, 2, image::Luma([7]))),
        );
        let rgba = image::RgbaImage::from_pixel(2, 2, image::Rgba([1, 2, 3, 4]));
        png(&dir.path().join("b/c.png"), &image::DynamicImage::ImageRgba8(rgba));
        let mut folder = Folder::open(dir.path()).unwrap();
        let images = folder.read(0..2).unwrap();
        assert_eq!(images[[0, 0, 0, 2]], 7);
        assert_eq!([images[[1, 1, 1, 0]], images[[1, 1, 1, 1]], images[[1, 1, 1, 2]]], [1, 2, 3]);
    }

    #[test]
    fn bad_images_are_named() {
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(Folder::open(dir.path()), Err(Error::Empty { .. })));
        png(&dir.path().join("a.png"), &image::DynamicImage::new_rgb8(2, 2));
        fs::write(dir.path().join("b.png"), b"\x89PNG\r\n\x1a\nbroken").unwrap();
        let error = Folder::open(dir.path()).unwrap().read(0..2).unwrap_err();
        assert!(error.to_string().contains("b.png"), "{error}");
        png(&dir.path().join("b.png"), &image::DynamicImage::new_rgb16(2, 2));
        let error = Folder::open(dir.path()).unwrap().read(0..2).unwrap_err();
        assert!(error.to_string().contains("8 bits a channel"), "{error}");
    }
}
