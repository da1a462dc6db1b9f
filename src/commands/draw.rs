//! `d2o draw`.

use anyhow::Context as _;
use d2o_refs::npz::NpzWriter;
use ndarray::Array2;

use super::ExitStatus;
use crate::cli::{Draw, Drawn};
use crate::engine::cuda_devices;
use crate::outputs::ensure_new_file;
use crate::printer::Printer;
use crate::sampling::latents::write_seeds;
use crate::sampling::rng::Family;

/// Writes random numbers drawn from the generator of each seed.
///
/// # Errors
/// If the draws depend on an unknown GPU, or writing fails.
pub fn run(args: &Draw, printer: Printer) -> anyhow::Result<ExitStatus> {
    ensure_new_file(&args.out, args.output.overwrite)?;
    let count = |draw: &Drawn| match draw {
        Drawn::F32(n) | Drawn::F64(n) => *n,
        Drawn::Integer(_) => 1,
    };
    let most = args.draw.iter().map(count).max().unwrap_or(0);
    let family = Family::settle(args.rng, args.rng_gpu, most, cuda_devices)?;
    let seeds = &args.seeds.0;
    let mut streams = family.streams(seeds);
    let mut write = || -> anyhow::Result<()> {
        let mut npz = NpzWriter::create(&args.out)?;
        write_seeds(&mut npz, seeds)?;
        for (i, draw) in args.draw.iter().enumerate() {
            let (name, shape) = (format!("draw{i}"), (seeds.len(), count(draw)));
            match draw {
                Drawn::F32(n) => npz.f32(&name, Array2::from_shape_vec(shape, streams.randn(*n))?.view().into_dyn())?,
                Drawn::F64(n) => {
                    npz.f64(&name, Array2::from_shape_vec(shape, streams.randn64(*n))?.view().into_dyn())?
                }
                Drawn::Integer(bound) => {
                    npz.i64(&name, &streams.randint(*bound).into_iter().map(i64::from).collect::<Vec<_>>())?;
                }
            }
        }
        Ok(npz.finish()?)
    };
    write().with_context(|| format!("cannot write `{}`", args.out.display()))?;
    let of = family.threads(most).map_or_else(String::new, |t| format!(", GPU with {t} resident threads"));
    printer.note(&format!(
        "{} draws for each of {} seeds in `{}` ({}{of})",
        args.draw.len(),
        seeds.len(),
        args.out.display(),
        family.name()
    ));
    Ok(ExitStatus::Done)
}
