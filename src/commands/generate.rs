//! `d2o generate`.

use std::path::Path;

use anyhow::Context as _;
use d2o_onnx::graph::Dim;
use d2o_onnx::read::ModelInfo;
use d2o_onnx::session::{Session, Tensor};
use d2o_refs::atomic::AtomicFile;
use d2o_refs::batch::ImageDims;
use d2o_refs::hdf5::Hdf5Writer;
use d2o_refs::image_zip::DatasetWriter;
use d2o_refs::npy::Dtype;
use d2o_refs::npz::{IMAGES, LABELS, NpzWriter};
use d2o_refs::png;
use ndarray::{Array2, Array4, ArrayD, s};

use super::ExitStatus;
use super::verify::{kind_of, quantiser_of};
use crate::cli::{Generate, Global, Rng, Sampler};
use crate::generate::rng::{TorchCpu, TorchCuda};
use crate::generate::sampler::{Heun, images};
use crate::interrupt;
use crate::printer::Printer;
use crate::runtime;

/// Draws images.
///
/// # Errors
/// A graph that is no generator, options that do not fit it, a failing runtime, writing errors.
pub fn run(args: &Generate, global: &Global, printer: Printer) -> anyhow::Result<ExitStatus> {
    let mut session = runtime::open(&args.model, args.provider, global, printer)?;
    let info = session.model().clone();
    let plan = Plan::new(args, &info).with_context(|| format!("cannot generate with `{}`", args.model.display()))?;
    let quantiser = quantiser_of(&info);
    let seeds = &args.seeds.0;
    let [_, height, width] = plan.dims;
    let mut sink = Sink::create(&args.out, seeds.len(), ImageDims { height, width, channels: 3 })?;
    let mut grid = args.grid.as_ref().map(|path| Grid::new(path, args.grid_size as usize, height, width));
    let mut progress = printer.progress("generate", seeds.len() as u64);
    let (mut not_finite, mut constant) = (0, 0);
    let mut classes = Vec::new();
    for chunk in seeds.chunks(args.batch as usize) {
        anyhow::ensure!(!interrupt::asked(), "interrupted; `{}` was not written", args.out.display());
        let (latents, labels) = plan.draw(chunk)?;
        let images = plan.sample(session.as_mut(), &latents, labels.as_deref())?;
        for image in images.outer_iter() {
            not_finite += usize::from(image.iter().any(|v| !v.is_finite()));
            constant += usize::from(image.iter().all(|v| *v == image[[0, 0, 0]]));
        }
        let pixels = images.mapv(|v| quantiser.apply(v)).permuted_axes([0, 2, 3, 1]).as_standard_layout().into_owned();
        if let Some(labels) = labels {
            classes.extend(labels.into_iter().map(|l| l as i64));
        }
        let start = classes.len().saturating_sub(chunk.len());
        sink.append(&pixels, (plan.classes > 0).then(|| &classes[start..]), chunk)?;
        if let Some(grid) = &mut grid {
            grid.add(&pixels);
        }
        progress.advance(chunk.len() as u64);
    }
    progress.finish();
    sink.finish(&classes, seeds)?;
    if let Some(grid) = grid {
        grid.save()?;
    }
    if not_finite > 0 {
        printer.warn(&format!("{not_finite} images hold values that are not finite"));
    }
    if constant > 0 {
        printer.warn(&format!("{constant} images are of a single value"));
    }
    printer.note(&format!("{} images in `{}` ({})", seeds.len(), args.out.display(), session.runtime()));
    Ok(ExitStatus::Done)
}

/// How one batch is made.
struct Plan {
    dims: [usize; 3],
    classes: usize,
    class: Option<usize>,
    rng: Rng,
    heun: Option<Heun>,
}

impl Plan {
    fn new(args: &Generate, info: &ModelInfo) -> anyhow::Result<Self> {
        let kind = kind_of(info)?;
        let sampler = match (args.sampler, kind) {
            (None | Some(Sampler::OneStep), "one-step") => Sampler::OneStep,
            (None | Some(Sampler::Heun), "denoiser") => Sampler::Heun,
            (Some(sampler), kind @ ("one-step" | "denoiser")) => {
                let need = if sampler == Sampler::Heun { "denoiser" } else { "one-step" };
                anyhow::bail!("the sampler needs a graph of kind {need}, this one is of kind {kind}");
            }
            (_, kind) => anyhow::bail!("the graph is of kind {kind}, not a generator"),
        };
        let input = info.inputs.first().context("the graph has no input")?;
        let &[_, Dim::Known(c), Dim::Known(h), Dim::Known(w)] = input.dims.as_slice() else {
            anyhow::bail!("input `{}` is no batch of images", input.name);
        };
        anyhow::ensure!(c == 3, "images of {c} channels cannot be written");
        let classes = match info.input("class_labels").map(|v| v.dims.as_slice()) {
            Some(&[_, Dim::Known(n)]) => n,
            _ => 0,
        };
        match args.class {
            Some(_) if classes == 0 => anyhow::bail!("--class: the generator is unconditional"),
            Some(k) if k >= classes => anyhow::bail!("--class {k}: the generator has classes 0 to {}", classes - 1),
            _ => {}
        }
        let heun = (sampler == Sampler::Heun).then_some(Heun {
            steps: args.num_steps,
            sigma_min: args.sigma_min,
            sigma_max: args.sigma_max,
            rho: args.rho,
        });
        if heun.is_some() {
            anyhow::ensure!(
                args.sigma_min > 0.0 && args.sigma_min < args.sigma_max && args.rho > 0.0,
                "--sigma-min must lie between 0 and --sigma-max, --rho above 0"
            );
        }
        Ok(Self { dims: [c, h, w], classes, class: args.class, rng: args.rng, heun })
    }

    /// Latents `[N, C, H, W]` and classes of `seeds`. A class is drawn from a seed's stream even where one is given.
    fn draw(&self, seeds: &[u64]) -> anyhow::Result<(Array4<f32>, Option<Vec<usize>>)> {
        let [c, h, w] = self.dims;
        let one = c * h * w;
        let bound = u32::try_from(self.classes)?;
        let (mut values, mut labels) = (Vec::with_capacity(one * seeds.len()), Vec::new());
        for seed in seeds {
            let (latent, label) = match self.rng {
                Rng::TorchCpu => {
                    let mut rng = TorchCpu::new(*seed);
                    (rng.randn(one), (bound > 0).then(|| rng.randint(bound)))
                }
                Rng::TorchCuda => {
                    let mut rng = TorchCuda::new(seed % (1 << 32));
                    (rng.randn(one), (bound > 0).then(|| rng.randint(bound)))
                }
            };
            values.extend(latent);
            labels.extend(label.map(|l| self.class.unwrap_or(l as usize)));
        }
        let latents = Array4::from_shape_vec((seeds.len(), c, h, w), values)?;
        Ok((latents, (bound > 0).then_some(labels)))
    }

    fn sample(
        &self,
        session: &mut dyn Session,
        latents: &Array4<f32>,
        labels: Option<&[usize]>,
    ) -> anyhow::Result<Array4<f32>> {
        let one_hot: Option<ArrayD<f32>> = labels.map(|labels| {
            Array2::from_shape_fn((labels.len(), self.classes), |(i, k)| f32::from(u8::from(labels[i] == k))).into_dyn()
        });
        if let Some(heun) = &self.heun {
            return heun.sample(session, latents, one_hot.as_ref());
        }
        let mut inputs = vec![("latents", Tensor::F32(latents.clone().into_dyn()))];
        inputs.extend(one_hot.map(|l| ("class_labels", Tensor::F32(l))));
        images(session.run(&inputs)?, "images")
    }
}

/// Where images go.
enum Sink {
    Npz(NpzWriter),
    Hdf5(Hdf5Writer),
    Zip(DatasetWriter),
    Folder(std::path::PathBuf),
}

impl Sink {
    fn create(path: &Path, len: usize, dims: ImageDims) -> anyhow::Result<Self> {
        let ending = path.extension().map(|e| e.to_string_lossy().to_ascii_lowercase());
        Ok(match ending.as_deref() {
            Some("npz") => {
                let mut npz = NpzWriter::create(path)?;
                npz.start(IMAGES, Dtype::U8, &[len, dims.height, dims.width, dims.channels])?;
                Self::Npz(npz)
            }
            Some("h5" | "hdf5") => Self::Hdf5(Hdf5Writer::create(path, len, dims)?),
            Some("zip") => Self::Zip(DatasetWriter::create(path)?),
            None => {
                fs_err::create_dir_all(path)?;
                Self::Folder(path.to_owned())
            }
            Some(other) => anyhow::bail!("--out: expected .npz, .h5, .zip or a folder, found .{other}"),
        })
    }

    fn append(&mut self, images: &Array4<u8>, labels: Option<&[i64]>, seeds: &[u64]) -> anyhow::Result<()> {
        match self {
            Self::Npz(npz) => npz.raw(images.as_slice().context("contiguous images")?)?,
            Self::Hdf5(h5) => h5.append(images)?,
            Self::Zip(zip) => zip.append(images, labels)?,
            Self::Folder(path) => {
                for (image, seed) in images.outer_iter().zip(seeds) {
                    let target = path.join(format!("{seed:06}.png"));
                    AtomicFile::write_all_to(&target, &png(&target, "", image)?)?;
                }
            }
        }
        Ok(())
    }

    fn finish(self, classes: &[i64], seeds: &[u64]) -> anyhow::Result<()> {
        match self {
            Self::Npz(mut npz) => {
                if !classes.is_empty() {
                    npz.i64(LABELS, classes)?;
                }
                npz.finish()?;
            }
            Self::Hdf5(mut h5) => {
                if !classes.is_empty() {
                    h5.i64("labels", classes)?;
                }
                h5.i64("seeds", &seeds.iter().map(|s| s.cast_signed()).collect::<Vec<_>>())?;
                h5.finish()?;
            }
            Self::Zip(zip) => zip.finish()?,
            Self::Folder(_) => {}
        }
        Ok(())
    }
}

/// The first images, side by side.
struct Grid<'a> {
    path: &'a Path,
    columns: usize,
    canvas: ndarray::Array3<u8>,
    placed: usize,
}

impl<'a> Grid<'a> {
    fn new(path: &'a Path, columns: usize, height: usize, width: usize) -> Self {
        Self {
            path,
            columns,
            canvas: ndarray::Array3::from_elem((columns * height, columns * width, 3), 255),
            placed: 0,
        }
    }

    fn add(&mut self, images: &Array4<u8>) {
        let (_, h, w, _) = images.dim();
        for image in images.outer_iter() {
            let (row, column) = (self.placed / self.columns, self.placed % self.columns);
            if row < self.columns {
                let (top, left) = (row * h, column * w);
                self.canvas.slice_mut(s![top..top + h, left..left + w, ..]).assign(&image);
                self.placed += 1;
            }
        }
    }

    fn save(self) -> anyhow::Result<()> {
        AtomicFile::write_all_to(self.path, &png(self.path, "", self.canvas.view())?)
            .with_context(|| format!("write `{}`", self.path.display()))
    }
}
