//! `d2o train`.

use super::ExitStatus;
use crate::cli::{Global, Train};
use crate::printer::Printer;

/// Trains a network.
///
/// # Errors
/// Always: this d2o was built without the feature `train`.
#[cfg(not(feature = "train"))]
pub fn run(_: &Train, _: &Global, _: Printer) -> anyhow::Result<ExitStatus> {
    Err(crate::error::with_hint(
        anyhow::anyhow!("this d2o was built without training"),
        "build it with `cargo build --features train` after `cargo xtask setup`",
    ))
}

#[cfg(feature = "train")]
pub use training::run;

#[cfg(feature = "train")]
mod training {
    use std::cell::{Cell, RefCell};
    use std::ffi::OsString;
    use std::fs::TryLockError;
    use std::io::Write as _;
    use std::path::{Path, PathBuf};
    use std::rc::Rc;
    use std::time::Instant;

    use anyhow::Context as _;
    use d2o_converters::denoiser::NetConfig;
    use d2o_converters::generators::song::SongConfig;
    use d2o_converters::{Architecture, Checkpoint};
    use d2o_evaluations::result::Evaluation;
    use d2o_files::{AtomicFile, Scratch};
    use d2o_refs::batch::{self, ImageDims, ImageSource};
    use fs_err as fs;
    use serde_json::{Value, json};

    use super::{ExitStatus, Global, Printer, Train};
    use crate::cli::{Arch, Command, LossArg};
    use crate::commands;
    use crate::interrupt::{self, Interrupted};
    use crate::train::augment::edm::EdmSettings;
    use crate::train::dataset::{Shape, TrainingSet};
    use crate::train::device::{self, Device, Kind};
    use crate::train::group::{Group, Launch};
    use crate::train::metrics::Evaluate;
    use crate::train::options::{self, Options, Settled};
    use crate::train::snapshot::{State, state_path};
    use crate::train::trainer::{Run, Status, Trainer};

    /// Trains a network.
    ///
    /// # Errors
    /// If a setting is invalid, a file cannot be read, or another process of the run fails.
    pub fn run(args: &Train, global: &Global, printer: Printer) -> anyhow::Result<ExitStatus> {
        if args.preset.as_deref() == Some("list") {
            for preset in options::presets() {
                printer.data(&format!("{:<24} {}", preset.name, preset.about))?;
            }
            return Ok(ExitStatus::Done);
        }
        if let Some(threads) = global.threads {
            device::set_threads(threads)?;
        }
        let launch = Launch::from_environment()?;
        let group = Rc::new(Group::meet(launch.as_ref())?);
        let local_rank = launch.and_then(|l| l.local_rank);
        let outcome = train(args, global, printer, &group, local_rank);
        group.conclude(outcome)
    }

    /// A checked run, before images and weights are read.
    struct Prepared {
        state: Option<State>,
        settled: Settled,
        source: Box<dyn ImageSource>,
        net: NetConfig,
        device: Device,
        /// Content of `training_options.json`.
        record: Value,
        outdir: PathBuf,
    }

    /// Checks everything that takes little time; `None` if only the settings are to be printed.
    fn prepare(
        args: &Train,
        printer: Printer,
        group: &Group,
        local_rank: Option<usize>,
    ) -> anyhow::Result<Option<Prepared>> {
        let state = args.outdir.as_deref().filter(|_| args.resume).map(open_state).transpose()?;
        let settled = settle(args, state.as_ref(), group.size())?;
        let options = &settled.options;
        let source =
            batch::open(&options.data).with_context(|| format!("cannot train on `{}`", options.data.display()))?;
        let dims = batch::uniform(source.as_ref())?;
        let net = network(options, dims.height, state.as_ref())?;
        check(options, &net, dims)?;
        let device = device::select(args.device, local_rank.unwrap_or(0))?;
        anyhow::ensure!(device.is_cuda() || !options.tf32, "--tf32 requires CUDA, but training runs on the CPU");
        let record = json!({
            "d2o-version": env!("CARGO_PKG_VERSION"), "options": settled.values, "network": {"class": net.class(), "init_kwargs": net.init_kwargs()},
            "dataset": {"images": source.len(), "height": dims.height, "width": dims.width}, "processes": group.size(), "device": device::describe(device),
        });
        if args.dry_run {
            if group.leads() {
                printer.data(&serde_json::to_string_pretty(&record)?)?;
            }
            return Ok(None);
        }
        let outdir = args.outdir.as_deref().context("no output folder: pass one with --outdir")?;
        // Only process 0 writes.
        let outdir = match (group.leads(), args.numbered) {
            (true, true) => numbered(outdir, args.desc.as_deref())?,
            _ => outdir.to_owned(),
        };
        if group.leads() && !args.resume && !args.numbered {
            check_unused(&outdir)?;
        }
        Ok(Some(Prepared { state, settled, source, net, device, record, outdir }))
    }

    /// Creates the folder of the run and writes its settings. Returns the log, which locks the folder while it is open.
    fn begin(outdir: &Path, record: &Value) -> anyhow::Result<fs::File> {
        fs::create_dir_all(outdir)?;
        let log = fs::OpenOptions::new().create(true).append(true).open(outdir.join("log.txt"))?;
        // Other errors are ignored, because some file systems have no locks.
        if let Err(TryLockError::WouldBlock) = log.file().try_lock() {
            anyhow::bail!("another process is training in `{}`", outdir.display());
        }
        let mut file = AtomicFile::create(&outdir.join("training_options.json"))?;
        writeln!(file, "{}", serde_json::to_string_pretty(record)?)?;
        file.commit()?;
        Ok(log)
    }

    fn train(
        args: &Train,
        global: &Global,
        printer: Printer,
        group: &Rc<Group>,
        local_rank: Option<usize>,
    ) -> anyhow::Result<ExitStatus> {
        let Some(prepared) = group.agree(prepare(args, printer, group, local_rank))? else {
            return Ok(ExitStatus::Done);
        };
        let Prepared { state, settled, mut source, net, device, mut record, outdir } = prepared;
        let Settled { options, values, changes } = settled;
        group.attach(device)?;
        let data = TrainingSet::load(source.as_mut(), Shape::of(&net), options.max_size, options.xflip);
        let mut data = group.agree(data)?;
        drop(source);
        group.agree(data.place(device))?;
        let (other_files, max_seconds) = (args.resume_with, args.max_seconds);
        let group = Rc::clone(group);
        // Mixed precision only on CUDA, as in the original.
        let (mixed, kind) = (options.bf16 && device.is_cuda(), Kind::Float);
        let run = Run { options, values, net, outdir, state, other_files, max_seconds, device, mixed, kind, group };
        let group = &*run.group;
        let mut trainer = group.agree(Trainer::new(&run, &data))?;

        // Everything is read before anything is written.
        record["dataset"]["pixels_sha256"] = json!(data.content_sha256());
        let log = group.agree(group.leads().then(|| begin(&run.outdir, &record)).transpose())?;
        // Locks the folder until training ends.
        let log = RefCell::new(log);
        let note = |text: &str| {
            if let Some(log) = &mut *log.borrow_mut() {
                printer.note(text);
                // A write error of the log is ignored: the line has been printed.
                let _ = writeln!(log, "{text}");
            }
        };
        if run.options.bf16 && !run.mixed {
            note("--bf16 has no effect on the CPU, which computes in f32 as in the original");
        }
        if data.is_grey() && run.options.channels == Some(3) {
            note("all images are greyscale: `--channels 1` suffices");
        }
        if run.options.random_class_embeddings == Some(true) {
            note("the discriminator starts from random class embeddings, which deviates from the recipe");
        }
        for change in &changes {
            note(&format!("resumed with {change}"));
        }
        note(&format!(
            "{} images · {} · {} · preset {} · batch {}{}{} · {}",
            data.len(),
            device::describe(device),
            run.net.class(),
            run.options.preset,
            run.options.batch,
            if run.options.ranks() > 1 { format!(" in {} parts", run.options.ranks()) } else { String::new() },
            if group.size() > 1 { format!(" on {} processes", group.size()) } else { String::new() },
            run.net.init_kwargs()
        ));
        if group.size() > 1 {
            group.names().iter().for_each(|name| note(name));
        }
        if let Some(forecast) = group.agree(trainer.forecast(&data))? {
            note(&forecast.to_string());
            if forecast.exceeds() {
                note("this exceeds the available memory: --batch-gpu processes the batch in smaller parts");
            }
        }
        let mut line = |s: &Status| note(&render(s));
        let section = interrupt::cooperative();
        let evaluation = SnapshotEvaluation { options: &run.options, global, succeeded: Cell::new(false), note: &note };
        let evaluate = |path: &Path| evaluation.of(path);
        let evaluate: Option<&Evaluate<'_>> = run.options.eval_ref.is_some().then_some(&evaluate);
        let outcome = trainer.run(&data, &mut line, &interrupt::asked, evaluate)?;
        section.complete();
        if !group.leads() {
            return Ok(if outcome.stopped { ExitStatus::Interrupted } else { ExitStatus::Done });
        }
        note(&format!(
            "{} of {} parameters trained on {} images in {:.0} s",
            outcome.trained, outcome.parameters, outcome.images, outcome.seconds
        ));
        printer.data(&outcome.snapshot.display().to_string())?;
        if outcome.stopped {
            let outdir = run.outdir.display();
            let interrupted = Interrupted::then(format!("the state is saved; --resume continues `{outdir}`"));
            return Err(group.shared(interrupted.into()));
        }
        Ok(ExitStatus::Done)
    }

    /// Evaluation of snapshots with `d2o export` and `d2o evaluate`.
    struct SnapshotEvaluation<'a> {
        options: &'a Options,
        global: &'a Global,
        /// Whether an earlier evaluation succeeded.
        succeeded: Cell<bool>,
        note: &'a dyn Fn(&str),
    }

    impl SnapshotEvaluation<'_> {
        /// Evaluates the averaged weights of the snapshot at `path`. `None` if the evaluation is interrupted, or fails
        /// after an earlier one succeeded.
        fn of(&self, path: &Path) -> anyhow::Result<Option<Evaluation>> {
            let clock = Instant::now();
            let evaluation = match self.compute(path) {
                Ok(evaluation) => evaluation,
                Err(error) if error.is::<Interrupted>() || interrupt::asked() => return Ok(None),
                Err(error) if self.succeeded.get() => {
                    (self.note)(&format!("cannot evaluate `{}`: {error:#}", path.display()));
                    return Ok(None);
                }
                Err(error) => return Err(error.context(format!("cannot evaluate `{}`", path.display()))),
            };
            self.succeeded.set(true);
            let metrics: Vec<String> =
                evaluation.metrics.iter().map(|(name, metric)| format!("{name} {}", metric.show())).collect();
            (self.note)(&format!("evaluated in {:.0} s · {}", clock.elapsed().as_secs_f64(), metrics.join(" · ")));
            Ok(Some(evaluation))
        }

        fn compute(&self, path: &Path) -> anyhow::Result<Evaluation> {
            const IMAGES: u32 = 5000;
            const PROTOCOL: &str = "edm";
            let quiet = Printer::new(true);
            let scratch = Scratch::new()?;
            let graph = scratch.path().join("generator.onnx");
            let words = |words: &[&str]| words.iter().map(OsString::from).collect::<Vec<_>>();
            let mut export = words(&["d2o", "export", "--no-check", "--uint8", "--out"]);
            export.extend([graph.clone().into(), path.into()]);
            if self.options.loss != LossArg::D2o {
                export.extend(words(&["--kind", "denoiser"]));
            }
            let export = commands::parsed(export, Command::export)?;
            commands::export::run(&export, self.global, quiet)?;
            let last = self.options.eval_images.unwrap_or(IMAGES) - 1;
            let protocol = self.options.eval_protocol.as_deref().unwrap_or(PROTOCOL);
            let mut evaluate =
                words(&["d2o", "evaluate", "--protocol", protocol, "--seeds", &format!("0-{last}"), "--title"]);
            evaluate.push(path.file_name().unwrap_or_default().into());
            let files = [("--ref", &self.options.eval_ref), ("--extractor", &self.options.eval_extractor)];
            evaluate
                .extend(files.iter().filter_map(|(name, file)| Some([name.into(), file.as_ref()?.into()])).flatten());
            evaluate.push(graph.into());
            let evaluate = commands::parsed(evaluate, Command::evaluate)?;
            let mut found = commands::evaluate::results(&evaluate, self.global, quiet)?;
            let mut evaluation = found.pop().context("no result")?;
            anyhow::ensure!(evaluation.failed.is_empty(), "{:?}", evaluation.failed);
            evaluation.samples.path = path.display().to_string();
            Ok(evaluation)
        }
    }

    /// The state of the run in `outdir`.
    fn open_state(outdir: &Path) -> anyhow::Result<State> {
        let path = state_path(outdir);
        anyhow::ensure!(path.exists(), "nothing to resume: `{}` does not exist", path.display());
        State::open(&path).with_context(|| format!("resume from `{}`", path.display()))
    }

    fn settle(args: &Train, state: Option<&State>, processes: usize) -> anyhow::Result<Settled> {
        let preset = args.preset.as_deref();
        match state {
            None => options::settle(preset, &args.settings, processes),
            Some(state) => {
                options::settle_resumed(state.get("options")?, preset, &args.settings, args.resume_with, processes)
            }
        }
    }

    /// Checks that `outdir` does not contain a run.
    fn check_unused(outdir: &Path) -> anyhow::Result<()> {
        let other = [state_path(outdir), outdir.join("training_options.json"), outdir.join("stats.jsonl")];
        match other.iter().find(|f| f.exists()) {
            None => Ok(()),
            Some(file) => anyhow::bail!(
                "`{}` contains another run (`{}`): --resume continues it, --numbered creates a subfolder",
                outdir.display(),
                file.file_name().unwrap_or_default().display()
            ),
        }
    }

    /// Path of the next numbered run in `outdir`, which does not exist yet.
    fn numbered(outdir: &Path, desc: Option<&str>) -> anyhow::Result<PathBuf> {
        let number = |name: &str| name.split('-').next().and_then(|n| n.parse::<u32>().ok());
        let mut next = 0;
        let entries = if outdir.exists() { fs::read_dir(outdir)?.collect::<Result<_, _>>()? } else { Vec::new() };
        for entry in entries {
            next = next.max(number(&entry.file_name().to_string_lossy()).map_or(0, |n| n + 1));
        }
        let desc = desc.map_or(String::new(), |d| format!("-{d}"));
        Ok(outdir.join(format!("{next:05}{desc}")))
    }

    /// Configuration of the network to train: from the state, from the checkpoint to start from, or new.
    fn network(options: &Options, resolution: usize, state: Option<&State>) -> anyhow::Result<NetConfig> {
        if let Some(state) = state {
            return Ok(NetConfig::new(state.get("class")?, &serde_json::from_str(state.get("init_kwargs")?)?)?);
        }
        let Some(path) = &options.transfer else { return fresh(options, resolution) };
        let describe = || format!("cannot start from `{}`", path.display());
        let checkpoint = Checkpoint::open(path).with_context(describe)?;
        let network = checkpoint.network(None).with_context(describe)?;
        let Architecture::Denoiser(config) = &network.architecture else {
            return Err(anyhow::anyhow!("the checkpoint does not record its network").context(describe()));
        };
        match options.loss {
            LossArg::D2o => Ok(config.into_one_step(options.dropout)?),
            loss => {
                let class = loss.precond().unwrap_or_default();
                anyhow::ensure!(
                    config.class() == class,
                    "{}: this loss requires {class}, found {}",
                    describe(),
                    config.class()
                );
                let mut kwargs = config.init_kwargs();
                kwargs["dropout"] = json!(options.dropout);
                Ok(NetConfig::new(class, &kwargs)?)
            }
        }
    }

    /// Configuration of a new network, with the defaults of EDM's `train.py` for the architecture.
    fn fresh(options: &Options, resolution: usize) -> anyhow::Result<NetConfig> {
        let arch = options.arch.unwrap_or(Arch::Ddpmpp);
        let mut kwargs = json!({
            "img_resolution": resolution,
            "img_channels": options.channels.unwrap_or(3),
            "label_dim": options.label_dim.unwrap_or(0),
            "model_type": if arch == Arch::Adm { "DhariwalUNet" } else { "SongUNet" },
            "dropout": options.dropout,
        });
        let mut set = |name: &str, own: Option<Value>, default: Value| kwargs[name] = own.unwrap_or(default);
        let (channels, mult) = if arch == Arch::Adm { (192, json!([1, 2, 3, 4])) } else { (128, json!([2, 2, 2])) };
        set("model_channels", options.cbase.map(Value::from), json!(channels));
        set("channel_mult", options.cres.as_ref().map(|l| json!(l)), mult);
        let (blocks, attention) = if arch == Arch::Adm { (3, json!([32, 16, 8])) } else { (4, json!([16])) };
        set("num_blocks", options.num_blocks.map(Value::from), json!(blocks));
        set("attn_resolutions", options.attn_resolutions.as_ref().map(|l| json!(l)), attention);
        if options.augment_p > 0.0 {
            kwargs["augment_dim"] = json!(EdmSettings::EDM_LABELS);
        }
        if arch == Arch::Ncsnpp {
            let n = SongConfig::ncsnpp();
            kwargs["embedding_type"] = json!(n.embedding_type);
            kwargs["channel_mult_noise"] = json!(n.channel_mult_noise);
            kwargs["encoder_type"] = json!(n.encoder_type);
            kwargs["resample_filter"] = json!(n.resample_filter);
        }
        Ok(NetConfig::new(options.loss.precond().context("training from scratch requires a denoising loss")?, &kwargs)?)
    }

    /// Checks that the network fits the images and the options.
    fn check(options: &Options, net: &NetConfig, dims: ImageDims) -> anyhow::Result<()> {
        let data = options.data.display();
        anyhow::ensure!(dims.height == dims.width, "training images must be square, those of `{data}` are {dims}");
        anyhow::ensure!(
            net.img_resolution == dims.height,
            "the network generates {}-pixel images, but `{data}` contains {}-pixel images; `d2o dataset --resolution {}` converts them",
            net.img_resolution,
            dims.height,
            net.img_resolution
        );
        if options.loss != LossArg::D2o && options.augment_p > 0.0 {
            anyhow::ensure!(
                net.augment_dim() == EdmSettings::EDM_LABELS,
                "--augment-p {}: the network takes {} augmentation labels, EDM's pipe gives {}; --augment-p 0 disables augmentation",
                options.augment_p,
                net.augment_dim(),
                EdmSettings::EDM_LABELS
            );
        }
        let cond = options.cond.unwrap_or(net.label_dim > 0);
        anyhow::ensure!(cond == (net.label_dim > 0), "--cond {cond}: the network has {} classes", net.label_dim);
        Ok(())
    }

    fn render(s: &Status) -> String {
        let means: String = s.means.iter().map(|(name, v)| format!(" · {name} {v:.4}")).collect();
        format!(
            "{:>9.1} kimg · {:>6.0} s · {:>6.1} images/s · ETA {:.0} s{means}",
            s.kimg, s.seconds, s.images_per_second, s.eta_seconds
        )
    }
}
