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
    use anyhow::Context as _;
    use d2o_converters::denoiser::NetConfig;
    use d2o_converters::generators::song::SongConfig;
    use d2o_converters::{Architecture, Checkpoint};
    use d2o_refs::batch;
    use serde_json::json;

    use super::{ExitStatus, Global, Printer, Train};
    use crate::cli::{Adversary, Arch, BackbonesArg, Fresh, LossArg, LossTypeArg};
    use crate::interrupt::{self, Interrupted};
    use crate::train::dataset::TrainingSet;
    use crate::train::device;
    use crate::train::discriminator::{Backbone, ClassRows, CriticConfig, FeatureSize};
    use crate::train::loss::LossType;
    use crate::train::numerics::Numerics;
    use crate::train::trainer::{self, Adversarial, Objective, Status, TrainConfig};

    /// Trains.
    ///
    /// # Errors
    /// Bad settings, unreadable files.
    pub fn run(args: &Train, global: &Global, printer: Printer) -> anyhow::Result<ExitStatus> {
        if let Some(threads) = global.threads {
            device::set_threads(threads)?;
        }
        let mut source =
            batch::open(&args.data).with_context(|| format!("cannot train on `{}`", args.data.display()))?;
        let dims = batch::uniform(source.as_ref())?;
        anyhow::ensure!(
            dims.height == dims.width,
            "training images must be square, not {}×{}",
            dims.width,
            dims.height
        );
        let net = network(args, dims.height)?;
        anyhow::ensure!(
            net.img_resolution == dims.height,
            "the network makes {}-pixel images, `{}` holds {}-pixel ones",
            net.img_resolution,
            args.data.display(),
            dims.height
        );
        let data = TrainingSet::load(source.as_mut(), net.label_dim, args.seed, args.xflip)?;
        let config = settings(args, net)?;
        if args.adversary.random_class_embeddings {
            printer.note("the discriminator starts from random class embeddings, which is not the recipe");
        }
        printer.note(&format!(
            "{} images · {} · {} · batch {} · {}",
            data.len(),
            device::describe(config.device),
            config.net.class(),
            config.batch,
            config.net.init_kwargs()
        ));
        let mut line = |s: &Status| printer.note(&render(s));
        let section = interrupt::cooperative();
        let outcome = trainer::train(&config, &data, &mut line, &interrupt::asked)?;
        section.complete();
        printer.note(&format!(
            "{} of {} parameters trained on {} images in {:.0} s",
            outcome.trained, outcome.parameters, outcome.images, outcome.seconds
        ));
        printer.data(&outcome.snapshot.display().to_string())?;
        if outcome.stopped {
            let outdir = args.outdir.display();
            return Err(Interrupted::then(format!("the state is saved, --resume continues `{outdir}`")).into());
        }
        Ok(ExitStatus::Done)
    }

    fn network(args: &Train, resolution: usize) -> anyhow::Result<NetConfig> {
        match (&args.transfer, args.loss) {
            (None, LossArg::D2o) => {
                anyhow::bail!("--loss d2o fine-tunes a pre-trained denoiser: give it with --transfer")
            }
            (None, LossArg::Edm) => fresh(&args.fresh, resolution),
            (Some(path), loss) => {
                let describe = || format!("cannot start from `{}`", path.display());
                let checkpoint = Checkpoint::open(path).with_context(describe)?;
                let network = checkpoint.network(None).with_context(describe)?;
                let Architecture::Denoiser(config) = &network.architecture else {
                    return Err(
                        anyhow::anyhow!("the checkpoint does not say which network it holds").context(describe())
                    );
                };
                Ok(match loss {
                    LossArg::Edm => config.clone(),
                    LossArg::D2o => config.into_one_step(0.0)?,
                })
            }
        }
    }

    fn fresh(f: &Fresh, resolution: usize) -> anyhow::Result<NetConfig> {
        let mut kwargs = json!({
            "img_resolution": resolution,
            "img_channels": 3,
            "label_dim": f.label_dim,
            "model_type": if f.arch == Arch::Adm { "DhariwalUNet" } else { "SongUNet" },
            "model_channels": f.model_channels,
            "channel_mult": f.channel_mult,
            "num_blocks": f.num_blocks,
            "attn_resolutions": f.attn_resolutions,
            "dropout": f.dropout,
        });
        if f.arch == Arch::Ncsnpp {
            let n = SongConfig::ncsnpp();
            kwargs["embedding_type"] = json!(n.embedding_type);
            kwargs["channel_mult_noise"] = json!(n.channel_mult_noise);
            kwargs["encoder_type"] = json!(n.encoder_type);
            kwargs["resample_filter"] = json!(n.resample_filter);
        }
        Ok(NetConfig::new("EDMPrecond", &kwargs)?)
    }

    fn settings(args: &Train, net: NetConfig) -> anyhow::Result<TrainConfig> {
        let (lr, rampup) = match args.loss {
            LossArg::Edm => (1e-3, 10.0),
            LossArg::D2o => (1e-4, 0.0),
        };
        let objective = match args.loss {
            LossArg::Edm => Objective::Edm,
            LossArg::D2o => Objective::D2o(adversarial(&args.adversary)?),
        };
        Ok(TrainConfig {
            objective,
            net,
            transfer: args.transfer.clone(),
            outdir: args.outdir.clone(),
            resume: args.resume,
            duration_kimg: args.duration_kimg,
            max_seconds: args.max_seconds,
            batch: args.batch as usize,
            lr: args.lr.unwrap_or(lr),
            lr_rampup_kimg: args.lr_rampup_kimg.unwrap_or(rampup),
            ema_kimg: args.ema_kimg,
            ema_rampup: args.ema_rampup,
            seed: args.seed,
            snap_kimg: args.snap_kimg,
            tick_kimg: args.tick_kimg,
            device: device::select(args.device, args.tf32)?,
            numerics: Numerics { tf32: args.tf32, deterministic: args.deterministic },
        })
    }

    fn adversarial(a: &Adversary) -> anyhow::Result<Adversarial> {
        use Backbone::{DeitBase, Lite0, Vgg16Bn};
        let backbones = match a.backbones {
            BackbonesArg::Lite0 => vec![Lite0],
            BackbonesArg::Vgg16BnLite0 => vec![Vgg16Bn, Lite0],
            BackbonesArg::DeitLite0 => vec![DeitBase, Lite0],
            BackbonesArg::VitEfficientNetB0 => anyhow::bail!(
                "--backbones: the hub's ViT-B/16 with EfficientNet-B0 is not supported: its weights are those of a timm release of its time"
            ),
        };
        let feature_size = match (a.feature_resolution, a.interp224) {
            (Some(pixels), _) => FeatureSize::Pixels(pixels),
            (None, true) => FeatureSize::Interp224,
            (None, false) => FeatureSize::Unchanged,
        };
        let classes = match &a.class_embeddings {
            Some(path) => Some(ClassRows::File(path.clone())),
            None => a.random_class_embeddings.then_some(ClassRows::Random),
        };
        Ok(Adversarial {
            critic: CriticConfig { backbones, weights: a.backbone_weights.clone(), feature_size, classes },
            loss: match a.loss_type {
                LossTypeArg::Ns => LossType::NonSaturating,
                LossTypeArg::Hinge => LossType::Hinge,
            },
            d_lr: a.d_lr,
            r1_gamma: a.r1_gamma,
            r1_interval: a.r1_interval,
            freeze: a.freeze,
        })
    }

    fn render(s: &Status) -> String {
        let loss = |name: &str, v: Option<f64>| v.map(|v| format!(" · {name} {v:.4}")).unwrap_or_default();
        let l = &s.losses;
        format!(
            "{:>9.1} kimg · {:>6.0} s · {:>6.1} images/s · ETA {:.0} s{}{}{}{}{}{}",
            s.kimg,
            s.seconds,
            s.images_per_second,
            s.eta_seconds,
            loss("loss", l.edm),
            loss("G", l.generator),
            loss("D", l.discriminator),
            loss("R1", l.r1),
            loss("real", l.logits_real),
            loss("fake", l.logits_fake),
        )
    }
}
