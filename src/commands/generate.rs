//! `d2o generate`.

use std::cell::Cell;
use std::path::Path;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use anyhow::Context as _;
use d2o_refs::batch::ImageDims;
use d2o_refs::image_zip::LABEL_FILE;
use d2o_refs::record;
use d2o_runtime::Session;
use ndarray::Axis;
use serde_json::Value;

use super::ExitStatus;
use super::known::recommended;
use crate::cli::{Generate, Global};
use crate::engine::{Engine, OnCpu};
use crate::error::with_hint;
use crate::interrupt::{self, Interrupted};
use crate::outputs::{ensure_new_file, ensure_new_folder};
use crate::pipeline::turns::in_turn;
use crate::printer::{Printer, Progress};
use crate::sampling::journal::{Claim, Journal, Part, differences};
use crate::sampling::latents::{Drawn, LatentSource, LatentsWriter};
use crate::sampling::plan::Plan;
use crate::sampling::request::SamplingRequest;
use crate::sampling::sink::{Form, Grid, Sink, ensure_replaceable, name_of};

/// Number of batches that may wait between two stages.
const AHEAD: usize = 2;

/// Generates images.
///
/// # Errors
/// If the graph is not a generator, an option does not apply to it, an output exists already, the runtime fails, or
/// writing fails.
pub fn run(args: &Generate, global: &Global, printer: Printer) -> anyhow::Result<ExitStatus> {
    let form = Form::of(&args.out)?;
    let claim = Claim::new(&args.out).with_context(|| format!("cannot write `{}`", args.out.display()))?;
    if !claim.is_locked() {
        printer.warn("this file system has no locks: make sure that no other d2o writes the same output");
    }
    ensure_outputs(args, form, &claim)?;
    let engine = Engine::new(args.provider, &args.accelerator, global, printer)?;
    let mut sessions = engine.open(&args.model, OnCpu::Plain)?;
    let session = sessions.first().context("no device")?;
    let (info, runtime) = (session.model().clone(), session.runtime().to_owned());
    let cannot = || format!("cannot generate with `{}`", args.model.display());
    let sampling = SamplingRequest::from(&recommended(&args.sampling, &info, &printer).with_context(cannot)?);
    let plan = Plan::new(&sampling, &info).with_context(cannot)?;
    let seeds = plan.seeds.as_slice();
    let record = plan.record(&sampling, &args.model, &info, &runtime)?;
    if args.resume && is_complete(args, form, &claim, &record, seeds)? {
        printer.note(&format!("`{}` is already complete", args.out.display()));
        return Ok(ExitStatus::Done);
    }
    let mut expected = record.clone();
    expected["batch"] = args.batch.into();
    expected["subdirs"] = args.subdirs.into();
    let section = interrupt::cooperative();
    let journal = claim.open(&expected, other_outputs(args).map(Path::to_owned).collect())?;
    let mut progress = printer.progress("generate", seeds.len() as u64);
    let resumed = journal.done();
    if resumed > 0 {
        printer.note(&format!("resuming: {resumed} of {} images are already done", seeds.len()));
        progress.skip(resumed as u64);
    }
    let writer = Writer::new(args, &plan, journal)?;
    let (drawn_in, drawn) = sync_channel(AHEAD);
    let (parts, parts_out) = sync_channel(AHEAD);
    let (saved_in, saved) = sync_channel(1);
    let faults = std::thread::scope(|scope| -> anyhow::Result<Option<[usize; 2]>> {
        let (drawing, save, batch, record) =
            (&plan.drawing, args.save_latents.as_deref(), args.batch as usize, &record);
        let drawer = scope.spawn(move || {
            draw(drawing, seeds, resumed, batch, save, &drawn_in)?;
            // After a write error the receiver is gone.
            let _ = saved_in.send(());
            anyhow::Ok(())
        });
        let writing = scope.spawn(move || writer.run(parts_out, &saved, record));
        let computed = compute(&plan, &mut sessions, drawn, parts, &mut progress);
        let written = writing.join().map_err(|_| anyhow::anyhow!("writing failed"))?;
        let drawn = drawer.join().map_err(|_| anyhow::anyhow!("sampling failed"))?;
        computed.with_context(cannot)?;
        drawn?;
        written.with_context(|| format!("cannot write `{}`", args.out.display()))
    })?;
    progress.finish();
    let Some([not_finite, constant]) = faults else {
        interrupt::check().map_err(|_| Interrupted::then(format!("--resume continues `{}`", args.out.display())))?;
        anyhow::bail!("the images ended early");
    };
    section.complete();
    if not_finite > 0 {
        printer.warn(&format!("{not_finite} images contain NaN or infinity"));
    }
    if constant > 0 {
        printer.warn(&format!("{constant} images are constant (a single value)"));
    }
    printer.note(&format!("{} images in `{}` ({})", seeds.len(), args.out.display(), runtime));
    Ok(ExitStatus::Done)
}

/// Outputs besides OUT.
fn other_outputs(args: &Generate) -> impl Iterator<Item = &Path> {
    args.save_latents.as_deref().into_iter().chain(args.grid.as_deref())
}

/// Whether OUT exists; a folder counts once its label file is written.
fn output_exists(out: &Path, form: Form) -> bool {
    if form == Form::Folder { out.join(LABEL_FILE).exists() } else { out.exists() }
}

/// Checks, before any work is done, that the outputs can be written and that nothing is replaced without a request.
fn ensure_outputs(args: &Generate, form: Form, claim: &Claim) -> anyhow::Result<()> {
    if !args.resume {
        claim.ensure_fresh()?;
    }
    let overwrite = args.output.overwrite;
    // With --resume, `is_complete` checks the record of an existing OUT. A folder without a record is accepted only if
    // an unfinished run is left: that run wrote its images.
    let kept = args.resume && (claim.is_left() || output_exists(&args.out, form));
    if form == Form::Folder {
        ensure_new_folder(&args.out, overwrite || kept)?;
        if overwrite && !kept && args.out.exists() {
            ensure_replaceable(&args.out)?;
        }
    } else {
        ensure_new_file(&args.out, overwrite || kept)?;
    }
    let finished = args.resume && !claim.is_left() && output_exists(&args.out, form);
    other_outputs(args).try_for_each(|path| ensure_new_file(path, overwrite || finished || claim.writes(path)))
}

/// Whether, with `--resume`, nothing remains to do: OUT exists and is the complete output of the run of `record`.
///
/// # Errors
/// If OUT is the output of another run, or an image or another output is missing, unless OUT may be replaced.
fn is_complete(args: &Generate, form: Form, claim: &Claim, record: &Value, seeds: &[u64]) -> anyhow::Result<bool> {
    let out = &args.out;
    if !output_exists(out, form) {
        return Ok(false);
    }
    let replace = |what: String| match (args.output.overwrite, form) {
        (true, Form::Folder) => ensure_replaceable(out).map(|()| false),
        (true, _) => Ok(false),
        (false, _) => Err(with_hint(anyhow::anyhow!(what), "--overwrite replaces it")),
    };
    let found = match record::read(out) {
        Ok(Some(found)) => found,
        Ok(None) => return replace(format!("`{}` exists and does not record which run wrote it", out.display())),
        Err(error) => return replace(format!("`{}` exists and was not written by this run: {error}", out.display())),
    };
    let differing = differences(&found, record);
    if !differing.is_empty() {
        return replace(format!("`{}` is the output of another run: {}", out.display(), differing.join("; ")));
    }
    if claim.is_left() {
        // The run was killed after it finished OUT and before it removed its journal.
        return Ok(false);
    }
    let missing = |seed: &&u64| form == Form::Folder && !out.join(name_of(**seed, args.subdirs)).exists();
    if let Some(seed) = seeds.iter().find(missing) {
        return replace(format!("`{}` is complete except for `{}`", out.display(), name_of(*seed, args.subdirs)));
    }
    if let Some(path) = other_outputs(args).find(|p| !p.exists()) {
        return replace(format!("`{}` is complete, but `{}` does not exist", out.display(), path.display()));
    }
    Ok(true)
}

/// Draws the starting points of every batch after the first `resumed` images and sends them to `to`. With `save`, draws
/// those of all images and writes them to this file.
fn draw(
    drawing: &LatentSource,
    seeds: &[u64],
    resumed: usize,
    batch: usize,
    save: Option<&Path>,
    to: &SyncSender<Drawn>,
) -> anyhow::Result<()> {
    let unwritten = || format!("cannot write `{}`", save.unwrap_or(Path::new("")).display());
    let file = save.map(|p| LatentsWriter::create(p, seeds.len(), &drawing.dims)).transpose();
    let mut file = file.with_context(unwritten)?;
    let first = if file.is_some() { 0 } else { resumed };
    for (i, chunk) in seeds[first..].chunks(batch).enumerate() {
        let drawn = drawing.draw(chunk)?;
        if let Some(file) = &mut file {
            file.append(drawn.latents.view(), drawn.labels.as_deref()).with_context(unwritten)?;
        }
        if first + i * batch >= resumed && to.send(drawn).is_err() {
            return Ok(());
        }
    }
    file.map_or(Ok(()), |f| f.finish(seeds)).with_context(unwritten)
}

/// Encodes and writes batches in a separate thread.
struct Writer<'a> {
    out: &'a Path,
    seeds: &'a [u64],
    dims: ImageDims,
    subdirs: bool,
    journal: Journal,
    grid: Option<Grid>,
}

impl<'a> Writer<'a> {
    fn new(args: &'a Generate, plan: &'a Plan, journal: Journal) -> anyhow::Result<Self> {
        let dims = plan.dims;
        let grid = args.grid.as_ref().map(|path| Grid::new(path, args.grid_size as usize, dims));
        Ok(Self { out: &args.out, seeds: &plan.seeds, dims, subdirs: args.subdirs, journal, grid })
    }

    /// Number of images with values that are not finite, and number of constant images. `None` if the images end early,
    /// or their starting points were not written completely: `saved` then closes without a message.
    fn run(
        mut self,
        parts: Receiver<Part>,
        saved: &Receiver<()>,
        record: &Value,
    ) -> anyhow::Result<Option<[usize; 2]>> {
        let mut sink = Sink::create(self.out, self.journal.folder(), self.seeds, self.dims, self.subdirs)?;
        let mut grid = self.grid.take();
        let (mut faults, mut count) = ([0, 0], 0);
        let mut take = |part: &Part| -> anyhow::Result<()> {
            if let Some(grid) = &mut grid {
                grid.add(&part.images);
            }
            faults = [faults[0] + part.faults[0], faults[1] + part.faults[1]];
            count += part.images.dim().0;
            sink.append(&part.images, part.labels.as_deref())
        };
        self.journal.replay(self.dims, |part| take(&part))?;
        for part in parts {
            take(&part)?;
            self.journal.append(part)?;
        }
        // Finish OUT only after the starting points are written: a complete output is not resumed.
        if count < self.seeds.len() || saved.recv().is_err() {
            self.journal.flush()?;
            return Ok(None);
        }
        sink.finish(record)?;
        if let Some(grid) = grid {
            grid.save()?;
        }
        self.journal.remove()?;
        Ok(Some(faults))
    }
}

/// Computes images from starting points until there are no more, or the user interrupts. The batches are distributed
/// over `sessions` in turn.
fn compute(
    plan: &Plan,
    sessions: &mut [Box<dyn Session>],
    drawn: Receiver<Drawn>,
    parts: SyncSender<Part>,
    progress: &mut Progress,
) -> anyhow::Result<()> {
    // A closed channel means that writing failed; the writer thread returns the error.
    let stop = Cell::new(false);
    let wanted = drawn.into_iter().take_while(|_| !interrupt::asked() && !stop.get()).map(Ok);
    let work = |session: &mut Box<dyn Session>, drawn: Drawn| plan.sample(session.as_mut(), drawn);
    in_turn(sessions, wanted, work, |part| {
        let count = part.images.len_of(Axis(0));
        stop.set(stop.get() || parts.send(part).is_err());
        progress.advance(count as u64);
        Ok(())
    })
}
