//! Features of images from an exported feature network.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::sync_channel;
use std::time::Instant;

use anyhow::Context as _;
use d2o_evaluations::preprocess::{Resize, Resizer, Scaling};
use d2o_evaluations::protocol::{INCEPTION, Protocol};
use d2o_evaluations::result::Extractor;
use d2o_onnx::graph::Dim;
use d2o_onnx::read::ModelInfo;
use d2o_onnx::session::{Session, Tensor};
use d2o_refs::batch::{ContentHash, ImageSource, hex};
use fs_err as fs;
use ndarray::{Array4, ArrayView2, Axis};
use rayon::prelude::*;
use sha2::{Digest as _, Sha256};

use crate::error::with_hint;
use crate::interrupt;
use crate::printer::Printer;

/// Names a feature network's input may have: bytes, which it resizes itself, or floats 0..255 of its own size, resized by d2o.
const INPUTS: [&str; 2] = ["images_u8", "images_f32"];
/// Names its features may have.
const FEATURES: [&str; 2] = ["pool3", "features"];
/// Batches read and resized ahead of the network.
const AHEAD: usize = 2;

/// SHA-256 of the file at `path`.
///
/// # Errors
/// Reading errors.
pub fn file_sha256(path: &Path) -> anyhow::Result<String> {
    let mut hash = Sha256::new();
    std::io::copy(&mut fs::File::open(path)?, &mut HashWriter(&mut hash))?;
    Ok(hex(&hash.finalize()))
}

struct HashWriter<'a>(&'a mut Sha256);

impl std::io::Write for HashWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Who `model` at `path` is, if it is a feature network.
///
/// # Errors
/// If it is none, or calls itself Inception without its 1008 classes.
pub fn describe(model: &ModelInfo, path: &Path) -> anyhow::Result<Extractor> {
    const CLASSES: usize = 1008;
    let Some(dims) = feature_dims(model).filter(|_| input_of(model).is_ok()) else {
        return Err(with_hint(
            anyhow::anyhow!("`{}` is no feature network", path.display()),
            "export one with `d2o export WEIGHTS --kind features`",
        ));
    };
    let name = model.metadata.get("extractor").map_or_else(|| path.display().to_string(), Clone::clone);
    if name == INCEPTION
        && let Some(classes) = output_dims(model, "logits")
    {
        anyhow::ensure!(
            classes == CLASSES,
            "`{}` calls itself {INCEPTION}, which has {CLASSES} classes, but has {classes}, as torchvision's Inception",
            path.display()
        );
    }
    Ok(Extractor { name, path: path.display().to_string(), sha256: file_sha256(path)?, dims })
}

/// Length of the features of `model`, if it has any.
#[must_use]
pub fn feature_dims(model: &ModelInfo) -> Option<usize> {
    FEATURES.iter().find_map(|n| output_dims(model, n))
}

/// Length of the output `name` of `model`, if it has it.
#[must_use]
pub fn output_dims(model: &ModelInfo, name: &str) -> Option<usize> {
    match model.output(name)?.dims.as_slice() {
        &[_, Dim::Known(dims)] => Some(dims),
        _ => None,
    }
}

fn input_of(model: &ModelInfo) -> anyhow::Result<&'static str> {
    INPUTS.into_iter().find(|n| model.input(n).is_some()).context("the graph is no feature network")
}

/// Where `model` departs from what `protocol` does to images.
#[must_use]
pub fn deviations(model: &ModelInfo, extractor: &Extractor, protocol: &Protocol) -> Vec<String> {
    let mut found = Vec::new();
    if extractor.name != INCEPTION {
        found.push(format!("features of {} instead of {INCEPTION}", extractor.name));
    }
    if model.input(INPUTS[0]).is_some() {
        let resize = model.metadata.get("resize").map_or("not stated", String::as_str);
        let word = match protocol.resize {
            Resize::TensorFlow => "asymmetric",
            Resize::Torch => "half-pixel",
            Resize::PilBicubic => "bicubic",
        };
        if !resize.contains(word) {
            found.push(format!("resize in the network ({resize}) instead of {}", protocol.resize.describe()));
        }
        if protocol.scaling == Scaling::Unit && extractor.name == INCEPTION {
            found.push(format!("scaling in the network instead of {}", protocol.scaling.describe()));
        }
    }
    found
}

/// What the network says of a batch of images, one row an image.
#[derive(Debug)]
pub struct Rows<'a> {
    /// Features `[n, D]`: `pool3` or `features`.
    pub features: ArrayView2<'a, f32>,
    /// Classes `[n, K]`, if it has them.
    pub logits: Option<ArrayView2<'a, f32>>,
    /// Spatial features `[n, S]` (sFID), if it has them.
    pub spatial: Option<ArrayView2<'a, f32>>,
}

/// What [`extract`] found out on the way. Stages overlap, so their seconds add up to more than the whole.
#[derive(Debug, Clone, Default)]
pub struct Extracted {
    /// Hash of the images, as `batch::content_sha256`.
    pub images_sha256: String,
    /// Seconds spent in each stage.
    pub seconds: BTreeMap<String, f64>,
}

/// One batch on its way to the network.
struct Prepared {
    /// What its images are called.
    names: Vec<String>,
    tensor: Tensor,
}

/// Runs every image of `source` through `session` and hands the outputs to `each`, in the source's order. Reading and resizing run ahead
/// of the network on a thread of their own, a few batches at most.
///
/// # Errors
/// Images of another size than the network takes, unreadable images, features that are not finite (naming the image), a failing runtime,
/// Ctrl-C.
pub fn extract(
    session: &mut dyn Session,
    source: &mut dyn ImageSource,
    batch: usize,
    protocol: &Protocol,
    printer: Printer,
    each: &mut dyn FnMut(Rows<'_>) -> anyhow::Result<()>,
) -> anyhow::Result<Extracted> {
    let dims = source.dims();
    let input = input_of(session.model())?;
    let known = session.model().input(input).map(|i| i.dims.clone()).unwrap_or_default();
    let resizer = match known.as_slice() {
        [_, Dim::Known(h), Dim::Known(w), _] if input == INPUTS[1] => {
            Some(Resizer::new(protocol.resize, protocol.scaling, [dims.height, dims.width], [*h, *w]))
        }
        [_, Dim::Known(h), Dim::Known(w), _] if (*h, *w) != (dims.height, dims.width) => {
            return Err(with_hint(
                anyhow::anyhow!("the extractor takes {w}×{h} images, these are {}×{}", dims.width, dims.height),
                format!("export it with `--image-size {}`", dims.height),
            ));
        }
        _ if input == INPUTS[1] => anyhow::bail!("the extractor's input `{input}` has no fixed height and width"),
        _ => None,
    };
    let len = source.len();
    let mut progress = printer.progress("features", len as u64);
    let stop = AtomicBool::new(false);
    let mut network = 0.0;
    let (sender, receiver) = sync_channel::<anyhow::Result<Prepared>>(AHEAD);
    let (images_sha256, reading, resizing) = std::thread::scope(|scope| -> anyhow::Result<(String, f64, f64)> {
        let stop = &stop;
        let reader = scope.spawn(move || {
            let mut hash = ContentHash::new(len, dims);
            let (mut reading, mut resizing) = (0.0, 0.0);
            for start in (0..len).step_by(batch) {
                if stop.load(Ordering::Relaxed) {
                    break;
                }
                let clock = Instant::now();
                let range = start..(start + batch).min(len);
                let images = match source.read(range.clone()) {
                    Ok(images) => images,
                    Err(error) => {
                        let _ = sender.send(Err(error.into()));
                        break;
                    }
                };
                hash.update(&images);
                let names = range.map(|i| source.name(i)).collect();
                reading += clock.elapsed().as_secs_f64();
                let clock = Instant::now();
                let tensor = match &resizer {
                    Some(resizer) => Tensor::F32(resized(resizer, &images).into_dyn()),
                    None => Tensor::U8(images.into_dyn()),
                };
                resizing += clock.elapsed().as_secs_f64();
                if sender.send(Ok(Prepared { names, tensor })).is_err() {
                    break;
                }
            }
            (hash.finish(), reading, resizing)
        });
        let mut consume = || -> anyhow::Result<()> {
            for prepared in &receiver {
                anyhow::ensure!(!interrupt::asked(), "interrupted");
                let Prepared { names, tensor } = prepared?;
                let count = names.len();
                let clock = Instant::now();
                let outputs = session.run(&[(input, tensor)])?;
                network += clock.elapsed().as_secs_f64();
                let matrix = |name: &str| {
                    let tensor = outputs.iter().find(|(n, _)| n == name).and_then(|(_, t)| t.as_f32());
                    let rows: Option<ArrayView2<'_, f32>> = tensor.map(|t| t.into_dimensionality()).transpose()?;
                    if let Some(rows) = &rows {
                        finite(name, rows, &names)?;
                    }
                    anyhow::Ok(rows)
                };
                let features = match matrix(FEATURES[0])? {
                    Some(rows) => rows,
                    None => matrix(FEATURES[1])?.context("the network gives no features")?,
                };
                anyhow::ensure!(features.nrows() == count, "{count} images gave {} feature rows", features.nrows());
                each(Rows { features, logits: matrix("logits")?, spatial: matrix("spatial")? })?;
                progress.advance(count as u64);
            }
            Ok(())
        };
        let result = consume();
        stop.store(true, Ordering::Relaxed);
        drop(receiver);
        let read = reader.join().map_err(|_| anyhow::anyhow!("reading images failed"))?;
        result.map(|()| read)
    })?;
    progress.finish();
    let seconds = [("read", reading), ("resize", resizing), ("network", network)];
    Ok(Extracted { images_sha256, seconds: seconds.into_iter().map(|(k, v)| (k.to_owned(), v)).collect() })
}

fn resized(resizer: &Resizer, images: &Array4<u8>) -> Array4<f32> {
    let [h, w] = resizer.output();
    let mut out = Array4::zeros((images.dim().0, h, w, 3));
    out.axis_iter_mut(Axis(0))
        .into_par_iter()
        .zip(images.axis_iter(Axis(0)))
        .for_each(|(slot, image)| resizer.apply(image, slot));
    out
}

fn finite(output: &str, rows: &ArrayView2<'_, f32>, names: &[String]) -> anyhow::Result<()> {
    match rows.outer_iter().position(|r| r.iter().any(|v| !v.is_finite())) {
        None => Ok(()),
        Some(row) => {
            let name = names.get(row).map_or("an image", String::as_str);
            Err(anyhow::anyhow!("{name}: the network's `{output}` holds NaN or infinity"))
        }
    }
}
