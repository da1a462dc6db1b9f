//! Packs any container of images (folder, zip, npz, npy, HDF5) into a dataset zip that EDM and StyleGAN read, batch by batch.
//!
//! `cargo run --release -p d2o-refs --example pack -- IMAGES OUT.zip`
#![allow(clippy::print_stdout, reason = "a program")]

use std::error::Error;
use std::path::Path;

use d2o_refs::batch;
use d2o_refs::image_zip::DatasetWriter;

/// Writes the images of `images` and their classes to `out`; returns the number of images.
fn pack(images: &Path, out: &Path) -> Result<usize, Box<dyn Error>> {
    let mut source = batch::open(images)?;
    for note in source.notes() {
        println!("{note}");
    }
    let labels = source.labels().map(<[i64]>::to_vec);
    let mut writer = DatasetWriter::create(out)?;
    for start in (0..source.len()).step_by(64) {
        let range = start..source.len().min(start + 64);
        writer.append(&source.read(range.clone())?, labels.as_ref().map(|labels| &labels[range]))?;
    }
    // The file appears at its path once it is complete.
    writer.finish()?;
    Ok(source.len())
}

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().collect();
    let [_, images, out] = args.as_slice() else { return Err("usage: pack IMAGES OUT.zip".into()) };
    println!("{} images", pack(images.as_ref(), out.as_ref())?);
    Ok(())
}

#[test]
fn pixels_and_classes_are_kept() {
    use d2o_refs::npy::Dtype;
    use d2o_refs::npz::{IMAGES, LABELS, NpzWriter};

    let folder = tempfile::tempdir().unwrap();
    let (npz, zip) = (folder.path().join("images.npz"), folder.path().join("images.zip"));
    let mut writer = NpzWriter::create(&npz).unwrap();
    writer.start(IMAGES, Dtype::U8, &[65, 4, 4, 3]).unwrap();
    let pixels: Vec<u8> = (0..65 * 48).map(|i: u32| (i * 7 % 251) as u8).collect();
    writer.raw(&pixels).unwrap();
    writer.i64(LABELS, &(0..65).collect::<Vec<i64>>()).unwrap();
    writer.finish().unwrap();
    assert_eq!(pack(&npz, &zip).unwrap(), 65);
    let mut packed = batch::open(&zip).unwrap();
    assert_eq!(packed.labels(), Some((0..65).collect::<Vec<i64>>().as_slice()));
    assert_eq!(packed.read(0..65).unwrap().into_raw_vec_and_offset().0, pixels);
}
