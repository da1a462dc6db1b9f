//! Features of images from an exported feature network.

use std::path::Path;

use anyhow::Context as _;
use d2o_evaluations::result::Extractor;
use d2o_onnx::graph::Dim;
use d2o_onnx::read::ModelInfo;
use d2o_onnx::session::{Session, Tensor};
use d2o_refs::batch::{ImageSource, hex};
use fs_err as fs;
use ndarray::ArrayView2;
use sha2::{Digest as _, Sha256};

use crate::error::with_hint;
use crate::interrupt;
use crate::printer::Printer;

/// Name of a feature network's input.
const INPUT: &str = "images_u8";

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
/// If it is none.
pub fn describe(model: &ModelInfo, path: &Path) -> anyhow::Result<Extractor> {
    let features = model.output("features").filter(|_| model.input(INPUT).is_some());
    let Some(&[_, Dim::Known(dims)]) = features.map(|f| f.dims.as_slice()) else {
        return Err(with_hint(
            anyhow::anyhow!("`{}` is no feature network", path.display()),
            "export one with `d2o export WEIGHTS --kind features`",
        ));
    };
    let name = model.metadata.get("extractor").map_or_else(|| path.display().to_string(), Clone::clone);
    Ok(Extractor { name, path: path.display().to_string(), sha256: file_sha256(path)?, dims })
}

/// Takes features `[n, D]` and logits `[n, K]` of a batch.
pub type Each<'a> = dyn FnMut(ArrayView2<'_, f32>, Option<ArrayView2<'_, f32>>) -> anyhow::Result<()> + 'a;

/// Runs every image of `source` through `session` and hands features `[n, D]` and logits `[n, K]` (if the network has them) to `each`,
/// in the source's order.
///
/// # Errors
/// Images of another size than the network takes, unreadable images, a failing runtime, Ctrl-C.
pub fn extract(
    session: &mut dyn Session,
    source: &mut dyn ImageSource,
    batch: usize,
    printer: Printer,
    each: &mut Each<'_>,
) -> anyhow::Result<()> {
    let dims = source.dims();
    let input = session.model().input(INPUT).context("the graph is no feature network")?;
    if let [_, Dim::Known(h), Dim::Known(w), _] = input.dims.as_slice()
        && (*h, *w) != (dims.height, dims.width)
    {
        return Err(with_hint(
            anyhow::anyhow!("the extractor takes {w}×{h} images, these are {}×{}", dims.width, dims.height),
            format!("export it with `--image-size {}`", dims.height),
        ));
    }
    let mut progress = printer.progress("features", source.len() as u64);
    for start in (0..source.len()).step_by(batch) {
        anyhow::ensure!(!interrupt::asked(), "interrupted");
        let images = source.read(start..(start + batch).min(source.len()))?;
        let count = images.dim().0;
        let outputs = session.run(&[(INPUT, Tensor::U8(images.into_dyn()))])?;
        let matrix = |name: &str| {
            let tensor = outputs.iter().find(|(n, _)| n == name).and_then(|(_, t)| t.as_f32());
            tensor.map(|t| t.into_dimensionality()).transpose()
        };
        each(matrix("features")?.context("no output `features`")?, matrix("logits")?)?;
        progress.advance(count as u64);
    }
    progress.finish();
    Ok(())
}
