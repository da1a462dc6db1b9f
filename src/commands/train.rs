//! `d2o train`.

use super::ExitStatus;
use crate::cli::{Global, Train};
use crate::printer::Printer;

/// Trains.
///
/// # Errors
/// Bad settings, unreadable files; always in a build without the feature `train`.
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
    use std::cell::RefCell;
    use std::fs::TryLockError;
    use std::io::Write as _;
    use std::path::{Path, PathBuf};

    use anyhow::Context as _;
    use d2o_converters::denoiser::NetConfig;
    use d2o_converters::generators::song::SongConfig;
    use d2o_converters::{Architecture, Checkpoint};
    use d2o_files::AtomicFile;
    use d2o_refs::batch::{self, ImageDims};
    use fs_err as fs;
    use serde_json::{Value, json};

    use super::{ExitStatus, Global, Printer, Train};
    use crate::cli::{Arch, LossArg};
    use crate::interrupt::{self, Interrupted};
    use crate::train::augment::edm::EdmSettings;
    use crate::train::dataset::TrainingSet;
    use crate::train::device;
    use crate::train::options::{self, Options, Settled};
    use crate::train::snapshot::{State, state_path};
    use crate::train::trainer::{Run, Status, Trainer};

    /// Trains.
    ///
    /// # Errors
    /// Bad settings, unreadable files.
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
        let state = args.outdir.as_deref().filter(|_| args.resume).map(open_state).transpose()?;
        let settled = settle(args, state.as_ref())?;
        let options = &settled.options;
        let mut source =
            batch::open(&options.data).with_context(|| format!("cannot train on `{}`", options.data.display()))?;
        let dims = batch::uniform(source.as_ref())?;
        let net = network(options, dims.height, state.as_ref())?;
        check(options, &net, dims)?;
        let device = device::select(args.device, options.tf32)?;
        let mut record = json!({
            "d2o-version": env!("CARGO_PKG_VERSION"), "options": settled.values, "network": {"class": net.class(), "init_kwargs": net.init_kwargs()},
            "dataset": {"images": source.len(), "height": dims.height, "width": dims.width}, "device": device::describe(device),
        });
        if args.dry_run {
            printer.data(&serde_json::to_string_pretty(&record)?)?;
            return Ok(ExitStatus::Done);
        }
        let outdir = args.outdir.as_deref().context("no folder for the run: give one with --outdir")?;
        if !args.resume && !args.numbered {
            check_unused(outdir)?;
        }
        let data = TrainingSet::load(source.as_mut(), net.label_dim, options.max_size, options.xflip)?;
        drop(source);
        let Settled { options, values, changes } = settled;
        let outdir = if args.numbered { numbered(outdir, args.desc.as_deref())? } else { outdir.to_owned() };
        let (other_files, max_seconds) = (args.resume_with, args.max_seconds);
        let kind = tch::Kind::Float;
        let run = Run { options, values, net, outdir, state, other_files, max_seconds, device, kind };
        let mut trainer = Trainer::new(&run, &data)?;

        // Nothing is written before everything is read.
        fs::create_dir_all(&run.outdir)?;
        let log = fs::OpenOptions::new().create(true).append(true).open(run.outdir.join("log.txt"))?;
        // Held until the process ends. Some file systems have no locks.
        if let Err(TryLockError::WouldBlock) = log.file().try_lock() {
            anyhow::bail!("another process trains in `{}`", run.outdir.display());
        }
        let log = RefCell::new(log);
        let note = |text: &str| {
            printer.note(text);
            // What the log lacks is on the screen.
            let _ = writeln!(log.borrow_mut(), "{text}");
        };
        record["dataset"]["pixels_sha256"] = json!(data.content_sha256());
        let mut file = AtomicFile::create(&run.outdir.join("training_options.json"))?;
        writeln!(file, "{}", serde_json::to_string_pretty(&record)?)?;
        file.commit()?;
        if run.options.bf16 && !device.is_cuda() {
            note("the CPU computes in f32, as the original does: --bf16 is for CUDA");
        }
        if run.options.random_class_embeddings == Some(true) {
            note("the discriminator starts from random class embeddings, which is not the recipe");
        }
        for change in &changes {
            note(&format!("resumed with {change}"));
        }
        note(&format!(
            "{} images · {} · {} · preset {} · batch {}{} · {}",
            data.len(),
            device::describe(device),
            run.net.class(),
            run.options.preset,
            run.options.batch,
            if run.options.ranks() > 1 { format!(" in {} parts", run.options.ranks()) } else { String::new() },
            run.net.init_kwargs()
        ));
        let mut line = |s: &Status| note(&render(s));
        let section = interrupt::cooperative();
        let outcome = trainer.run(&data, &mut line, &interrupt::asked)?;
        section.complete();
        note(&format!(
            "{} of {} parameters trained on {} images in {:.0} s",
            outcome.trained, outcome.parameters, outcome.images, outcome.seconds
        ));
        printer.data(&outcome.snapshot.display().to_string())?;
        if outcome.stopped {
            let outdir = run.outdir.display();
            return Err(Interrupted::then(format!("the state is saved, --resume continues `{outdir}`")).into());
        }
        Ok(ExitStatus::Done)
    }

    /// The state of the run in `outdir`.
    fn open_state(outdir: &Path) -> anyhow::Result<State> {
        let path = state_path(outdir);
        anyhow::ensure!(path.exists(), "nothing to resume: `{}` does not exist", path.display());
        State::open(&path).with_context(|| format!("resume from `{}`", path.display()))
    }

    fn settle(args: &Train, state: Option<&State>) -> anyhow::Result<Settled> {
        let preset = args.preset.as_deref();
        match state {
            None => options::settle(preset, &args.settings),
            Some(state) => options::settle_resumed(state.get("options")?, preset, &args.settings, args.resume_with),
        }
    }

    /// An error if `outdir` holds a run.
    fn check_unused(outdir: &Path) -> anyhow::Result<()> {
        let other = [state_path(outdir), outdir.join("training_options.json"), outdir.join("stats.jsonl")];
        match other.iter().find(|f| f.exists()) {
            None => Ok(()),
            Some(file) => anyhow::bail!(
                "`{}` holds another run (`{}`): --resume continues it, --numbered creates a folder in it",
                outdir.display(),
                file.file_name().unwrap_or_default().display()
            ),
        }
    }

    /// The folder of a numbered run in `outdir`, which does not exist.
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

    /// The network that is trained: that of the state, of the checkpoint to start from, or a new one.
    fn network(options: &Options, resolution: usize, state: Option<&State>) -> anyhow::Result<NetConfig> {
        if let Some(state) = state {
            return Ok(NetConfig::new(state.get("class")?, &serde_json::from_str(state.get("init_kwargs")?)?)?);
        }
        let Some(path) = &options.transfer else { return fresh(options, resolution) };
        let describe = || format!("cannot start from `{}`", path.display());
        let checkpoint = Checkpoint::open(path).with_context(describe)?;
        let network = checkpoint.network(None).with_context(describe)?;
        let Architecture::Denoiser(config) = &network.architecture else {
            return Err(anyhow::anyhow!("the checkpoint does not say which network it holds").context(describe()));
        };
        match options.loss {
            LossArg::D2o => Ok(config.into_one_step(options.dropout)?),
            loss => {
                let class = loss.precond().unwrap_or_default();
                anyhow::ensure!(
                    config.class() == class,
                    "{}: this loss trains {class}, found {}",
                    describe(),
                    config.class()
                );
                let mut kwargs = config.init_kwargs();
                kwargs["dropout"] = json!(options.dropout);
                Ok(NetConfig::new(class, &kwargs)?)
            }
        }
    }

    /// A new network with the defaults of EDM's train.py for its architecture.
    fn fresh(options: &Options, resolution: usize) -> anyhow::Result<NetConfig> {
        let arch = options.arch.unwrap_or(Arch::Ddpmpp);
        let mut kwargs = json!({
            "img_resolution": resolution,
            "img_channels": 3,
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
        Ok(NetConfig::new(options.loss.precond().context("a new network needs a loss of denoising")?, &kwargs)?)
    }

    /// Checks that the network fits the images and the options.
    fn check(options: &Options, net: &NetConfig, dims: ImageDims) -> anyhow::Result<()> {
        let data = options.data.display();
        anyhow::ensure!(dims.height == dims.width, "training images must be square, those of `{data}` are {dims}");
        anyhow::ensure!(
            net.img_resolution == dims.height,
            "the network makes {}-pixel images, `{data}` holds {}-pixel ones; `d2o dataset --resolution {}` converts them",
            net.img_resolution,
            dims.height,
            net.img_resolution
        );
        anyhow::ensure!(
            net.img_channels == dims.channels,
            "the network makes images of {} channels, those of `{data}` have {}",
            net.img_channels,
            dims.channels
        );
        if options.loss != LossArg::D2o && options.augment_p > 0.0 {
            anyhow::ensure!(
                net.augment_dim() == EdmSettings::EDM_LABELS,
                "--augment-p {}: the network takes {} augmentation labels, EDM's pipe gives {}; --augment-p 0 trains it without",
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
