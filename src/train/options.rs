//! Settings of a run: presets, and changes by the command line and by a resumed run.

use std::path::PathBuf;

use anyhow::Context as _;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::discriminator::{Backbone, ClassRows, CriticConfig, FeatureSize};
use super::distillation;
use super::generator::{SIGMA_MAX, Steps};
use crate::cli::{Arch, BackbonesArg, LossArg, LossTypeArg, Rule, TeacherArg, TrainSettings};

/// All settings of a run, with the names of their options.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Options {
    /// Preset the settings started from.
    pub preset: String,
    /// Objective.
    pub loss: LossArg,
    /// Dataset.
    pub data: PathBuf,
    /// Checkpoint to start from.
    pub transfer: Option<PathBuf>,
    /// Whether the network is conditional.
    pub cond: Option<bool>,
    /// Duration, millions of images.
    pub duration: f64,
    /// Batch size over all processes.
    pub batch: u32,
    /// Images per part of a batch; `None` for the whole batch.
    pub batch_gpu: Option<u32>,
    /// Learning rate.
    pub lr: f64,
    /// Images over which the learning rate grows to its full value, thousands.
    pub lr_rampup_kimg: f64,
    /// Optimiser.
    pub optimizer: Rule,
    /// Half-life of the average, millions of images.
    pub ema: f64,
    /// Upper bound of the half-life as a share of the images seen; 0 for no bound.
    pub ema_warmup: f64,
    /// Fixed decay of the average; 0 to use the half-life.
    pub ema_beta: f64,
    /// Dropout probability.
    pub dropout: f64,
    /// Probability of augmentation.
    pub augment_p: f64,
    /// Number of images of the dataset that are used; `None` for all.
    pub max_size: Option<u32>,
    /// Whether mirror images are added to the dataset.
    pub xflip: bool,
    /// Whether the generator computes in bf16 on CUDA.
    pub bf16: bool,
    /// Whether CUDA may use TF32.
    pub tf32: bool,
    /// Whether CUDA kernels are deterministic.
    pub deterministic: bool,
    /// Seed of everything random.
    pub seed: u32,
    /// Thousands of images between status lines.
    pub tick: f64,
    /// Ticks between snapshots; 0 for one at the end.
    pub snap: u32,
    /// Ticks between states; 0 for one at the end.
    pub dump: u32,
    /// Ticks between image grids; 0 for none.
    pub grid: u32,
    /// Whether snapshots are also written as pickles.
    pub pickle: bool,
    /// Architecture of a new network.
    pub arch: Option<Arch>,
    /// Base number of channels of a new network.
    pub cbase: Option<usize>,
    /// Channel multipliers of a new network.
    pub cres: Option<Vec<usize>>,
    /// Residual blocks per resolution of a new network.
    pub num_blocks: Option<usize>,
    /// Resolutions with attention of a new network.
    pub attn_resolutions: Option<Vec<usize>>,
    /// Number of classes of a new network.
    pub label_dim: Option<usize>,
    /// Colour channels of a new network.
    pub channels: Option<usize>,
    /// Evaluations of the generator per image; `None` for one.
    pub multi_step_g: Option<u32>,
    /// Noise level of the second of two evaluations; `None` for 0.8.
    pub middle_sigma: Option<f64>,
    /// Rule of instance distillation.
    pub teacher_type: Option<TeacherArg>,
    /// Whether distillation is the only loss, without a discriminator.
    pub teacher_only: Option<bool>,
    /// Checkpoint of the teacher.
    pub target: Option<PathBuf>,
    /// Number of steps in the grid of noise levels of the teacher; `None` for 1024.
    pub max_steps: Option<u32>,
    /// Weights of LPIPS.
    #[serde(default)]
    pub lpips_weights: Vec<PathBuf>,
    /// Feature networks of the discriminator.
    pub backbones: Option<BackbonesArg>,
    /// Checkpoints of the feature networks.
    #[serde(default)]
    pub backbone_weights: Vec<PathBuf>,
    /// Whether images below 224 pixels are resized to 224 for the feature networks; `None` for yes.
    pub interp224: Option<bool>,
    /// Size to which images are resized for the feature networks instead, pixels.
    pub feature_resolution: Option<usize>,
    /// File of the initial class embeddings.
    pub class_embeddings: Option<PathBuf>,
    /// Whether the initial class embeddings are random.
    pub random_class_embeddings: Option<bool>,
    /// Whether feature networks get images through DiffAugment.
    pub diffaug: Option<bool>,
    /// Target of ADA for the mean sign of the logits of real images; 0 for a fixed strength.
    pub ada_target: Option<f64>,
    /// Learning rate of the discriminator, before the correction for the R1 interval.
    pub dlr: Option<f64>,
    /// Adversarial loss.
    pub loss_type: Option<LossTypeArg>,
    /// Weight of R1; 0 for none.
    pub r1_gamma: Option<f64>,
    /// Iterations between R1 stages.
    pub r1_interval: Option<u32>,
    /// Freeze level of the generator.
    pub freeze: Option<u8>,
    /// Reference that snapshots are evaluated against; `None` for no evaluation.
    pub eval_ref: Option<PathBuf>,
    /// Feature network of the evaluation.
    pub eval_extractor: Option<PathBuf>,
    /// Number of images of an evaluation.
    pub eval_images: Option<u32>,
    /// Protocol of the evaluation.
    pub eval_protocol: Option<String>,
    /// Whether snapshots other than the best and the last are deleted.
    #[serde(default)]
    pub keep_best: bool,
}

/// Options of a new network.
const FRESH: [&str; 7] = ["arch", "cbase", "cres", "num-blocks", "attn-resolutions", "label-dim", "channels"];
/// Options of the teacher.
const TEACHER: [&str; 4] = ["teacher-only", "target", "max-steps", "lpips-weights"];
/// Options of one-step generators.
const GENERATOR: [&str; 4] = ["multi-step-g", "middle-sigma", "teacher-type", "freeze"];
/// Options of the discriminator.
const DISCRIMINATOR: [&str; 12] = [
    "backbones",
    "backbone-weights",
    "interp224",
    "feature-resolution",
    "class-embeddings",
    "random-class-embeddings",
    "diffaug",
    "ada-target",
    "dlr",
    "loss-type",
    "r1-gamma",
    "r1-interval",
];
/// Options that a resumed run may change, because they do not change the result. The trainer compares the contents of
/// the dataset, the teacher, and the LPIPS and feature network weights. The state replaces the checkpoint to start from
/// and the class embeddings.
const FREE: [&str; 18] = [
    "preset",
    "data",
    "transfer",
    "target",
    "lpips-weights",
    "backbone-weights",
    "class-embeddings",
    "duration",
    "tick",
    "snap",
    "dump",
    "grid",
    "pickle",
    "eval-ref",
    "eval-extractor",
    "eval-images",
    "eval-protocol",
    "keep-best",
];

/// Settings that are paths of files for training. They may differ between processes.
pub(super) const PATHS: [&str; 6] =
    ["data", "transfer", "target", "lpips-weights", "backbone-weights", "class-embeddings"];

/// A named set of settings.
#[derive(Debug)]
pub struct Preset {
    /// Name.
    pub name: &'static str,
    /// Description for the user.
    pub about: &'static str,
    values: Value,
}

/// All presets.
#[must_use]
pub fn presets() -> Vec<Preset> {
    let common = json!({
        "lr-rampup-kimg": 0.0, "optimizer": "adam", "ema-warmup": 0.05, "ema-beta": 0.0, "dropout": 0.0, "augment-p": 0.0, "xflip": false, "bf16": false, "tf32": false,
        "deterministic": false, "seed": 42, "snap": 10, "dump": 10, "grid": 10, "pickle": false, "keep-best": false,
    });
    let preset = |name, about, own: Value| Preset { name, about, values: merged(&common, &own) };
    // Settings of train.sh of Zyriix/D2O. Those that it omits are the defaults of its train.py.
    let recipe = |name, about, freeze: u8, own: Value| {
        let shared = json!({
            "loss": "d2o", "duration": 10.0, "batch": 256, "batch-gpu": 64, "lr": 2e-5, "dlr": 4e-5, "ema": 0.5, "tick": 25.0, "bf16": true, "cond": false,
            "backbones": "deit+lite0", "interp224": true, "diffaug": false, "ada-target": 0.0, "loss-type": "ns", "r1-gamma": 1e-4, "r1-interval": 16,
            "freeze": freeze,
        });
        preset(name, about, merged(&shared, &own))
    };
    let cifar =
        |cond: bool| json!({"duration": 5.0, "lr": 1e-4, "dlr": 1e-4, "cond": cond, "backbones": "vgg16_bn+lite0"});
    let imagenet = json!({"batch": 512, "batch-gpu": 128, "lr": 8e-6, "ema": 50.0, "cond": true});
    vec![
        recipe("cifar10-uncond-d2o", "edm-cifar10-32x32-uncond-ve.pkl on CIFAR-10", 0, cifar(false)),
        recipe("cifar10-cond-d2o", "edm-cifar10-32x32-cond-ve.pkl on CIFAR-10 with classes", 0, cifar(true)),
        recipe("afhqv2-uncond-d2o", "edm-afhqv2-64x64-uncond-ve.pkl on AFHQv2", 0, json!({})),
        recipe("ffhq-uncond-d2o", "edm-ffhq-64x64-uncond-ve.pkl on FFHQ", 0, json!({})),
        recipe("imagenet-cond-d2o", "edm-imagenet-64x64-cond-adm.pkl on ImageNet with classes", 0, imagenet.clone()),
        recipe(
            "cifar10-uncond-d2o-f",
            "edm-cifar10-32x32-uncond-ve.pkl on CIFAR-10, most layers frozen",
            1,
            cifar(false),
        ),
        recipe(
            "cifar10-cond-d2o-f",
            "edm-cifar10-32x32-cond-ve.pkl on CIFAR-10 with classes, most layers frozen",
            1,
            cifar(true),
        ),
        recipe("afhqv2-uncond-d2o-f", "edm-afhqv2-64x64-uncond-ve.pkl on AFHQv2, most layers frozen", 1, json!({})),
        recipe("ffhq-uncond-d2o-f", "edm-ffhq-64x64-uncond-ve.pkl on FFHQ, most layers frozen", 1, json!({})),
        recipe(
            "imagenet-cond-d2o-f",
            "edm-imagenet-64x64-cond-adm.pkl on ImageNet with classes, most layers frozen",
            1,
            imagenet,
        ),
        preset(
            "small",
            "D2O-F on a small machine: not a setting of the paper",
            json!({
                "loss": "d2o", "duration": 5.0, "batch": 64, "lr": 1e-4, "ema": 0.5, "tick": 1.0, "backbones": "lite0", "interp224": true, "diffaug": false, "ada-target": 0.0, "dlr": 1e-4,
                "loss-type": "ns", "r1-gamma": 1e-4, "r1-interval": 16, "freeze": 1,
            }),
        ),
        preset(
            "edm",
            "EDM's training from scratch, its train.py's defaults",
            json!({
                "loss": "edm", "duration": 200.0, "batch": 512, "lr": 1e-3, "lr-rampup-kimg": 10_000.0, "ema": 0.5, "dropout": 0.13, "augment-p": 0.12, "tick": 50.0, "snap": 50,
                "dump": 50, "grid": 50, "arch": "ddpmpp", "label-dim": 0, "channels": 3,
            }),
        ),
    ]
}

/// Settled options, and the changes of a resumed run.
#[derive(Debug)]
pub struct Settled {
    /// The options.
    pub options: Options,
    /// The same options by name, without absent ones.
    pub values: Map<String, Value>,
    /// Changes by a resumed run, one per entry.
    pub changes: Vec<String>,
}

impl Settled {
    /// Sorts `values`, so that equal settings have equal bytes in the state, and checks them.
    fn new(mut values: Map<String, Value>, changes: Vec<String>) -> anyhow::Result<Self> {
        values.sort_keys();
        Ok(Self { options: checked(&values)?, values, changes })
    }
}

/// Settles the options for `processes` processes: `given` overrides the preset.
///
/// # Errors
/// If the preset is unknown, the dataset is missing, an option has no effect with the others, or a value is out of
/// range.
pub fn settle(preset: Option<&str>, given: &TrainSettings, processes: usize) -> anyhow::Result<Settled> {
    let given = by_name(given)?;
    let denoising = given.get("loss").is_some_and(|l| l != "d2o");
    let name = preset.unwrap_or(if denoising { "edm" } else { "small" });
    let mut values = base(name)?;
    // As in EDM's train.py, a run that starts from a checkpoint has no warm-up of the average and uses the network of
    // the checkpoint.
    if given.contains_key("transfer") {
        values.retain(|key, _| !FRESH.contains(&key.as_str()));
        if given.get("loss").unwrap_or(&values["loss"]) != "d2o" {
            values.insert("ema-warmup".to_owned(), json!(0.0));
        }
    }
    leave_out_discriminator(&mut values, &given);
    values.extend(given);
    anyhow::ensure!(values.contains_key("data"), "no dataset: pass one with --data");
    settle_batch_parts(&mut values, processes)?;
    Settled::new(values, Vec::new())
}

/// Settles the options of a resumed run for `processes` processes: `given` overrides `preset`, if there is one, which
/// overrides the `stored` options of the state.
///
/// # Errors
/// The errors of [`settle`]. Also if options change the settings of the run, unless `allowed`.
pub fn settle_resumed(
    stored: &str,
    preset: Option<&str>,
    given: &TrainSettings,
    allowed: bool,
    processes: usize,
) -> anyhow::Result<Settled> {
    let mut values: Map<String, Value> = serde_json::from_str(stored).context("the options in the training state")?;
    let mut asked = preset.map(base).transpose()?.unwrap_or_default();
    asked.extend(by_name(given)?);
    let mut changes = Vec::new();
    leave_out_discriminator(&mut values, &asked);
    for (key, new) in asked {
        let old = values.get(&key).cloned().unwrap_or(Value::Null);
        if old != new && !FREE.contains(&key.as_str()) {
            changes.push(format!("--{key}: {old} → {new}"));
        }
        values.insert(key, new);
    }
    if settle_batch_parts(&mut values, processes)? {
        changes.push(format!("--batch-gpu: null → {}", values["batch-gpu"]));
    }
    anyhow::ensure!(
        changes.is_empty() || allowed,
        "this run was started with other settings: {}; --resume-with continues it with the new ones",
        changes.join(", ")
    );
    Settled::new(values, changes)
}

/// The settings of the preset `name`.
fn base(name: &str) -> anyhow::Result<Map<String, Value>> {
    let all = presets();
    let found = all.iter().find(|p| p.name == name).with_context(|| {
        let names: Vec<&str> = all.iter().map(|p| p.name).collect();
        format!("--preset {name}: expected one of {}", names.join(", "))
    })?;
    let mut values = found.values.as_object().cloned().unwrap_or_default();
    values.insert("preset".to_owned(), json!(name));
    Ok(values)
}

/// With several processes, sets `batch-gpu` to the share of each process if it is absent, and otherwise checks that all
/// processes get the same number of parts. Returns whether it was set.
fn settle_batch_parts(values: &mut Map<String, Value>, processes: usize) -> anyhow::Result<bool> {
    let number = |name: &str| values.get(name).and_then(Value::as_u64);
    let (Some(batch), processes) = (number("batch"), u64::try_from(processes)?) else { return Ok(false) };
    match number("batch-gpu") {
        _ if processes == 1 => Ok(false),
        Some(part) => {
            let share = part.checked_mul(processes).filter(|share| *share > 0 && batch.is_multiple_of(*share));
            anyhow::ensure!(
                share.is_some(),
                "--batch {batch} on {processes} processes: expected a multiple of {processes} × --batch-gpu {part}"
            );
            Ok(false)
        }
        None => {
            anyhow::ensure!(
                batch.is_multiple_of(processes),
                "--batch {batch} on {processes} processes: expected a multiple of {processes}"
            );
            values.insert("batch-gpu".to_owned(), json!(batch / processes));
            Ok(true)
        }
    }
}

/// The options that are present, by name.
fn by_name(given: &TrainSettings) -> anyhow::Result<Map<String, Value>> {
    let mut values = serde_json::to_value(given)?.as_object().cloned().unwrap_or_default();
    values.retain(|_, value| !value.is_null() && value.as_array().is_none_or(|list| !list.is_empty()));
    Ok(values)
}

/// Removes the discriminator options of a preset or state if `given` asks for a run without a discriminator.
fn leave_out_discriminator(values: &mut Map<String, Value>, given: &Map<String, Value>) {
    if given.get("teacher-only") == Some(&Value::Bool(true)) {
        values.retain(|key, _| !DISCRIMINATOR.contains(&key.as_str()));
    }
}

fn merged(base: &Value, own: &Value) -> Value {
    let mut values = base.as_object().cloned().unwrap_or_default();
    values.extend(own.as_object().cloned().unwrap_or_default());
    Value::Object(values)
}

fn checked(values: &Map<String, Value>) -> anyhow::Result<Options> {
    let options: Options = serde_json::from_value(Value::Object(values.clone()))?;
    let unused = |names: &[&str], why: &str| match names.iter().find(|name| values.contains_key(**name)) {
        Some(name) => Err(anyhow::anyhow!("--{name} requires {why}")),
        None => Ok(()),
    };
    match options.loss {
        LossArg::Edm | LossArg::Vp | LossArg::Ve => {
            for names in [&GENERATOR[..], &TEACHER, &DISCRIMINATOR] {
                unused(names, "`--loss d2o`")?;
            }
            anyhow::ensure!(!options.bf16, "--bf16 requires `--loss d2o`");
        }
        LossArg::D2o => {
            unused(&FRESH, "`--loss edm` without --transfer")?;
            anyhow::ensure!(
                options.transfer.is_some(),
                "--loss d2o fine-tunes a pre-trained denoiser: pass it with --transfer"
            );
            steps(&options)?;
            teacher(&options, &unused)?;
        }
    }
    if options.transfer.is_some() {
        unused(&FRESH, "training from scratch, without --transfer")?;
    }
    let positive = |name: &str, value: f64| {
        anyhow::ensure!(value > 0.0, "--{name}: expected a number above 0, found {value}");
        Ok(())
    };
    positive("duration", options.duration)?;
    positive("tick", options.tick)?;
    positive("lr", options.lr)?;
    positive("ema", options.ema)?;
    options.dlr.map_or(Ok(()), |dlr| positive("dlr", dlr))?;
    let range = |name: &str, value: f64, below: f64| {
        anyhow::ensure!(
            (0.0..below).contains(&value),
            "--{name}: expected a number from 0 to below {below}, found {value}"
        );
        Ok(())
    };
    range("lr-rampup-kimg", options.lr_rampup_kimg, f64::INFINITY)?;
    range("ema-warmup", options.ema_warmup, f64::INFINITY)?;
    range("ema-beta", options.ema_beta, 1.0)?;
    range("dropout", options.dropout, 1.0)?;
    anyhow::ensure!((0.0..=1.0).contains(&options.augment_p), "--augment-p: expected a number from 0 to 1");
    options.r1_gamma.map_or(Ok(()), |gamma| range("r1-gamma", gamma, f64::INFINITY))?;
    match (&options.eval_ref, &options.eval_extractor) {
        (Some(_), None) => anyhow::bail!("--eval-ref requires a feature extractor: pass one with --eval-extractor"),
        (Some(_), Some(_)) => {}
        (None, _) => {
            anyhow::ensure!(
                !options.keep_best,
                "--keep-best requires an evaluation: pass its reference with --eval-ref"
            );
            unused(&["eval-extractor", "eval-images", "eval-protocol"], "--eval-ref")?;
        }
    }
    if let Some(part) = options.batch_gpu {
        let batch = options.batch;
        anyhow::ensure!(batch.is_multiple_of(part), "--batch-gpu {part}: expected a divisor of --batch {batch}");
    }
    Ok(options)
}

/// Checks the number of steps of the generator and the noise level between two steps.
fn steps(options: &Options) -> anyhow::Result<()> {
    match (options.multi_step_g, options.middle_sigma) {
        (Some(2), None) | (_, None) => Ok(()),
        (Some(2), Some(middle)) => {
            anyhow::ensure!(
                middle > 0.0 && middle < SIGMA_MAX,
                "--middle-sigma: expected a number above 0 and below {SIGMA_MAX}, found {middle}"
            );
            Ok(())
        }
        (_, Some(_)) => anyhow::bail!("--middle-sigma requires `--multi-step-g 2`"),
    }
}

/// Checks the settings of instance distillation.
fn teacher(options: &Options, unused: &dyn Fn(&[&str], &str) -> anyhow::Result<()>) -> anyhow::Result<()> {
    let Some(rule) = options.teacher() else {
        return unused(&TEACHER, "`--teacher-type pd`, `cd`, `ctm` or `rcd`");
    };
    anyhow::ensure!(options.target.is_some(), "distillation requires a teacher: pass its checkpoint with --target");
    let max_steps = options.max_steps();
    // On other grids, no step of the rule has the length of a step of the teacher.
    anyhow::ensure!(
        rule != distillation::Rule::Pd || max_steps.is_power_of_two(),
        "--max-steps {max_steps}: expected a power of 2, since `--teacher-type pd` halves the number of steps"
    );
    if options.teacher_only == Some(true) {
        unused(&DISCRIMINATOR, "a discriminator, but --teacher-only has none")?;
        anyhow::ensure!(
            options.multi_step_g.is_none_or(|n| n == 1),
            "--multi-step-g requires the adversarial loss, but --teacher-only has none"
        );
        anyhow::ensure!(options.augment_p == 0.0, "--augment-p requires a discriminator, but --teacher-only has none");
    }
    Ok(())
}

impl Options {
    /// Evaluations of the generator per image.
    #[must_use]
    pub fn steps(&self) -> Steps {
        match self.multi_step_g {
            None | Some(1) => Steps::One,
            Some(2) => Steps::Two { middle: self.middle_sigma.unwrap_or(0.8) },
            Some(steps) => Steps::Many(steps),
        }
    }

    /// Rule of instance distillation, if there is one.
    #[must_use]
    pub fn teacher(&self) -> Option<distillation::Rule> {
        use distillation::Rule;
        match self.teacher_type? {
            TeacherArg::None => None,
            TeacherArg::Pd => Some(Rule::Pd),
            TeacherArg::Cd => Some(Rule::Cd),
            TeacherArg::Ctm => Some(Rule::Ctm),
            TeacherArg::Rcd => Some(Rule::Rcd),
        }
    }

    /// Number of steps in the grid of noise levels of the teacher.
    #[must_use]
    pub fn max_steps(&self) -> u32 {
        self.max_steps.unwrap_or(1024)
    }

    /// Configuration of the discriminator.
    ///
    /// # Errors
    /// If the feature networks are not supported.
    pub fn critic(&self) -> anyhow::Result<CriticConfig> {
        use Backbone::{DeitBase, Lite0, Vgg16Bn};
        let backbones = match self.backbones.unwrap_or(BackbonesArg::Lite0) {
            BackbonesArg::Lite0 => vec![Lite0],
            BackbonesArg::Vgg16BnLite0 => vec![Vgg16Bn, Lite0],
            BackbonesArg::DeitLite0 => vec![DeitBase, Lite0],
            BackbonesArg::VitEfficientNetB0 => anyhow::bail!(
                "--backbones: ViT-B/16 with EfficientNet-B0 is not supported: the original loads weights that depend on its timm release"
            ),
        };
        let feature_size = match (self.feature_resolution, self.interp224) {
            (Some(pixels), _) => FeatureSize::Pixels(pixels),
            (None, Some(false)) => FeatureSize::Unchanged,
            (None, _) => FeatureSize::Interp224,
        };
        let classes = match &self.class_embeddings {
            Some(path) => Some(ClassRows::File(path.clone())),
            None => (self.random_class_embeddings == Some(true)).then_some(ClassRows::Random),
        };
        Ok(CriticConfig {
            backbones,
            weights: self.backbone_weights.clone(),
            feature_size,
            classes,
            diffaug: self.diffaug == Some(true),
        })
    }

    /// Number of parts in which a batch is processed. Each part corresponds to a device of the original.
    #[must_use]
    pub fn ranks(&self) -> u32 {
        self.batch_gpu.map_or(1, |part| self.batch / part)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn given() -> TrainSettings {
        TrainSettings { data: Some("d.zip".into()), transfer: Some("e.pkl".into()), ..TrainSettings::default() }
    }

    #[test]
    fn options_override_presets() {
        let settled = settle(None, &TrainSettings { lr: Some(5e-5), ..given() }, 1).unwrap().options;
        assert_eq!((settled.preset.as_str(), settled.lr, settled.freeze, settled.batch), ("small", 5e-5, Some(1), 64));
        let edm = TrainSettings { loss: Some(LossArg::Edm), data: Some("d.zip".into()), ..TrainSettings::default() };
        let settled = settle(None, &edm, 1).unwrap().options;
        assert_eq!((settled.lr_rampup_kimg, settled.ema_warmup, settled.arch), (10_000.0, 0.05, Some(Arch::Ddpmpp)));
        let settled = settle(None, &TrainSettings { transfer: Some("e.pkl".into()), ..edm }, 1).unwrap().options;
        assert_eq!((settled.ema_warmup, settled.arch), (0.0, None));
    }

    /// Settings of train.sh, line by line: freeze, backbone, EMA, batch, dlr, lr, cond, duration.
    #[test]
    fn presets_are_train_sh() {
        let rows = [
            ("cifar10-uncond-d2o", 0, 1, 0.5, 256, 1e-4, 1e-4, false, 5.0),
            ("cifar10-cond-d2o", 0, 1, 0.5, 256, 1e-4, 1e-4, true, 5.0),
            ("afhqv2-uncond-d2o", 0, 0, 0.5, 256, 4e-5, 2e-5, false, 10.0),
            ("ffhq-uncond-d2o", 0, 0, 0.5, 256, 4e-5, 2e-5, false, 10.0),
            ("imagenet-cond-d2o", 0, 0, 50.0, 512, 4e-5, 8e-6, true, 10.0),
            ("cifar10-uncond-d2o-f", 1, 1, 0.5, 256, 1e-4, 1e-4, false, 5.0),
            ("cifar10-cond-d2o-f", 1, 1, 0.5, 256, 1e-4, 1e-4, true, 5.0),
            ("afhqv2-uncond-d2o-f", 1, 0, 0.5, 256, 4e-5, 2e-5, false, 10.0),
            ("ffhq-uncond-d2o-f", 1, 0, 0.5, 256, 4e-5, 2e-5, false, 10.0),
            ("imagenet-cond-d2o-f", 1, 0, 50.0, 512, 4e-5, 8e-6, true, 10.0),
        ];
        assert_eq!(presets().len(), rows.len() + 2);
        for (name, freeze, backbone, ema, batch, dlr, lr, cond, duration) in rows {
            let o = settle(Some(name), &given(), 1).unwrap().options;
            let backbones = if backbone == 1 { BackbonesArg::Vgg16BnLite0 } else { BackbonesArg::DeitLite0 };
            assert_eq!((o.freeze, o.backbones, o.ema, o.batch), (Some(freeze), Some(backbones), ema, batch), "{name}");
            assert_eq!((o.dlr, o.lr, o.cond, o.duration), (Some(dlr), lr, Some(cond), duration), "{name}");
            // Equal in all lines, or the defaults of train.py; four GPUs.
            let shared = (o.loss, o.loss_type, o.r1_gamma, o.r1_interval, o.diffaug, o.interp224);
            assert_eq!(shared, (LossArg::D2o, Some(LossTypeArg::Ns), Some(1e-4), Some(16), Some(false), Some(true)));
            let shared =
                (o.dropout, o.bf16, o.ada_target, o.augment_p, o.ema_warmup, o.ema_beta, o.seed, o.tick, o.snap);
            assert_eq!(shared, (0.0, true, Some(0.0), 0.0, 0.05, 0.0, 42, 25.0, 10), "{name}");
            assert_eq!((o.optimizer, o.ranks(), o.xflip, o.tf32), (Rule::Adam, 4, false, false), "{name}");
        }
    }

    #[test]
    fn options_without_effect_are_refused() {
        let refused = |preset, given: &TrainSettings| settle(preset, given, 1).unwrap_err().to_string();
        let edm = TrainSettings { loss: Some(LossArg::Edm), ..given() };
        let mut adversarial = edm;
        adversarial.adversary.freeze = Some(1);
        assert_eq!(refused(None, &adversarial), "--freeze requires `--loss d2o`");
        let mut fresh = given();
        fresh.fresh.arch = Some(Arch::Adm);
        assert!(refused(None, &fresh).starts_with("--arch requires"));
        assert!(refused(None, &TrainSettings { data: None, ..given() }).contains("--data"));
        assert!(refused(None, &TrainSettings { transfer: None, ..given() }).contains("--transfer"));
        assert!(refused(Some("x"), &given()).contains("expected one of cifar10-uncond-d2o, "));
        assert!(refused(None, &TrainSettings { batch_gpu: Some(24), ..given() }).contains("divisor"));
        assert!(refused(None, &TrainSettings { lr: Some(0.0), ..given() }).contains("--lr"));
    }

    #[test]
    fn steps_and_teachers_are_settled_together() {
        let with = |set: &dyn Fn(&mut TrainSettings)| {
            let mut given = given();
            set(&mut given);
            settle(None, &given, 1).map(|s| s.options)
        };
        let refused = |set: &dyn Fn(&mut TrainSettings)| with(set).unwrap_err().to_string();
        let steps = |steps, middle| {
            with(&|g: &mut TrainSettings| (g.teaching.multi_step_g, g.teaching.middle_sigma) = (steps, middle))
        };
        for (number, middle, expected) in [
            (None, None, Steps::One),
            (Some(1), None, Steps::One),
            (Some(2), None, Steps::Two { middle: 0.8 }),
            (Some(2), Some(1.5), Steps::Two { middle: 1.5 }),
            (Some(3), None, Steps::Many(3)),
        ] {
            assert_eq!(steps(number, middle).unwrap().steps(), expected);
        }
        for number in [None, Some(1), Some(3)] {
            assert_eq!(steps(number, Some(0.8)).unwrap_err().to_string(), "--middle-sigma requires `--multi-step-g 2`");
        }
        for middle in [0.0, 80.0] {
            assert!(steps(Some(2), Some(middle)).unwrap_err().to_string().contains("above 0 and below 80"));
        }

        let teacher = |g: &mut TrainSettings, rule| {
            (g.teaching.teacher_type, g.teaching.target) = (Some(rule), Some("t.pkl".into()));
        };
        for (name, set) in [
            (
                "target",
                &(|g: &mut TrainSettings| g.teaching.target = Some("t.pkl".into())) as &dyn Fn(&mut TrainSettings),
            ),
            ("max-steps", &|g| g.teaching.max_steps = Some(8)),
            ("teacher-only", &|g| g.teaching.teacher_only = Some(true)),
            ("lpips-weights", &|g| g.teaching.lpips_weights = vec!["vgg.pth".into()]),
        ] {
            for rule in [None, Some(TeacherArg::None)] {
                let text = refused(&|g: &mut TrainSettings| {
                    set(g);
                    g.teaching.teacher_type = rule;
                });
                assert_eq!(text, format!("--{name} requires `--teacher-type pd`, `cd`, `ctm` or `rcd`"));
            }
        }
        assert!(refused(&|g| g.teaching.teacher_type = Some(TeacherArg::Cd)).contains("--target"));
        let both = with(&|g| teacher(g, TeacherArg::Cd)).unwrap();
        assert_eq!((both.teacher(), both.max_steps()), (Some(distillation::Rule::Cd), 1024));
        assert!(both.backbones.is_some());
        let odd = |rule| {
            move |g: &mut TrainSettings| {
                teacher(g, rule);
                g.teaching.max_steps = Some(1000);
            }
        };
        assert!(refused(&odd(TeacherArg::Pd)).contains("expected a power of 2"));
        assert_eq!(with(&odd(TeacherArg::Ctm)).unwrap().max_steps(), 1000);

        // Discriminator options of the preset are removed; given ones are refused.
        let only = |more: &dyn Fn(&mut TrainSettings)| {
            with(&|g: &mut TrainSettings| {
                teacher(g, TeacherArg::Rcd);
                g.teaching.teacher_only = Some(true);
                more(g);
            })
        };
        let alone = only(&|_| ()).unwrap();
        assert_eq!((alone.backbones, alone.dlr, alone.r1_gamma, alone.freeze), (None, None, None, Some(1)));
        let stored = settle(None, &given(), 1).unwrap();
        let stored = Value::Object(stored.values).to_string();
        let mut later = TrainSettings::default();
        teacher(&mut later, TeacherArg::Rcd);
        later.teaching.teacher_only = Some(true);
        let later = settle_resumed(&stored, None, &later, true, 1).unwrap().options;
        assert_eq!((later.backbones, later.teacher_only), (None, Some(true)));
        for (name, set) in [
            ("dlr", &(|g: &mut TrainSettings| g.adversary.dlr = Some(1e-4)) as &dyn Fn(&mut TrainSettings)),
            ("multi-step-g", &|g| g.teaching.multi_step_g = Some(2)),
            ("augment-p", &|g| g.augment_p = Some(0.1)),
        ] {
            let text = only(set).unwrap_err().to_string();
            assert!(text.starts_with(&format!("--{name} requires ")) && text.contains("--teacher-only"), "{text}");
        }

        let edm = |set: &dyn Fn(&mut TrainSettings)| {
            refused(&|g: &mut TrainSettings| {
                g.loss = Some(LossArg::Edm);
                set(g);
            })
        };
        assert_eq!(edm(&|g| g.teaching.multi_step_g = Some(2)), "--multi-step-g requires `--loss d2o`");
        assert_eq!(edm(&|g| g.teaching.target = Some("t.pkl".into())), "--target requires `--loss d2o`");
    }

    #[test]
    fn a_resumed_run_names_what_changed() {
        let stored = settle(None, &given(), 1).unwrap();
        let stored = Value::Object(stored.values).to_string();
        let same = settle_resumed(&stored, None, &TrainSettings::default(), false, 1).unwrap();
        assert_eq!((same.options.batch, same.changes.len()), (64, 0));
        let longer = TrainSettings { duration: Some(7.0), data: Some("moved.zip".into()), ..TrainSettings::default() };
        let longer = settle_resumed(&stored, None, &longer, false, 1).unwrap();
        assert_eq!((longer.options.duration, longer.options.data), (7.0, "moved.zip".into()));
        let other = TrainSettings { lr: Some(1e-3), batch: Some(32), ..TrainSettings::default() };
        let refused = settle_resumed(&stored, None, &other, false, 1).unwrap_err().to_string();
        assert!(refused.contains("--batch: 64 → 32") && refused.contains("--lr: 0.0001 → 0.001"), "{refused}");
        let allowed = settle_resumed(&stored, None, &other, true, 1).unwrap();
        assert_eq!((allowed.options.lr, allowed.changes.len()), (1e-3, 2));
    }

    #[test]
    fn processes_share_a_batch() {
        let with = |batch_gpu, processes| settle(None, &TrainSettings { batch_gpu, ..given() }, processes);
        let (four, parts) = (with(None, 4).unwrap(), with(Some(16), 1).unwrap());
        assert_eq!((four.options.ranks(), four.options.batch_gpu), (4, Some(16)));
        assert_eq!(Value::Object(four.values.clone()).to_string(), Value::Object(parts.values).to_string());
        assert_eq!(with(Some(8), 4).unwrap().options.ranks(), 8);
        let refused = |batch_gpu, processes| with(batch_gpu, processes).unwrap_err().to_string();
        assert_eq!(refused(None, 3), "--batch 64 on 3 processes: expected a multiple of 3");
        assert_eq!(refused(Some(32), 4), "--batch 64 on 4 processes: expected a multiple of 4 × --batch-gpu 32");
        // A run keeps its parts on any number of processes that divides them. A run without parts gets them only if
        // `allowed`.
        let resumed = |stored: &Map<String, Value>, processes, allowed| {
            let stored = Value::Object(stored.clone()).to_string();
            settle_resumed(&stored, None, &TrainSettings::default(), allowed, processes)
        };
        for processes in [1, 2, 4] {
            let resumed = resumed(&four.values, processes, false).unwrap();
            assert_eq!((resumed.options.ranks(), resumed.changes.len()), (4, 0));
        }
        assert!(resumed(&four.values, 8, false).unwrap_err().to_string().contains("8 × --batch-gpu 16"));
        let whole = with(None, 1).unwrap().values;
        assert!(resumed(&whole, 2, false).unwrap_err().to_string().contains("--batch-gpu: null → 32"));
        assert_eq!(resumed(&whole, 2, true).unwrap().options.ranks(), 2);
    }
}
