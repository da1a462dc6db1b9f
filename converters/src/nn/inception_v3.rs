//! Inception-v3 of 2015-12-05, the network behind FID, Inception Score, sFID, precision and recall.
//!
//! Tensors have the names of NVIDIA's port, `layers.<path>.{weight, beta, mean, var}` and `output.{weight, bias}`; [`layout`] finds which
//! of the published layouts a file has and gives its names and axis orders in these terms. Batch norm (eps 1e-3) is folded in f64.
//! Source: `classify_image_graph_def.pb` of Szegedy et al. 2015.

use std::collections::HashSet;
use std::sync::Arc;

use d2o_checkpoint::{Renamed, TensorSource};

use crate::error::{Error, Result};
use crate::nn::backend::{Backend, Conv2d, Pool};
use crate::nn::layers::{Norm, fold_norm, signed};
use crate::registry::Recognised;
use crate::weights::{Init, Scope};

/// Height and width the network sees, pixels.
pub const INPUT_SIZE: usize = 299;
/// Length of `pool3`.
pub const POOL3: usize = 2048;
/// Rows of the head: 1000 ImageNet classes and 8 unused ones.
pub const CLASSES: usize = 1008;
/// Length of `spatial`.
pub const SPATIAL: usize = SPATIAL_CHANNELS * SPATIAL_SIZE * SPATIAL_SIZE;
/// Lengths of the taps that pytorch-fid and torch-fidelity offer beside `pool3`.
pub const TAPS: [usize; 3] = [64, 192, 768];

const SPATIAL_CHANNELS: usize = 7;
const SPATIAL_SIZE: usize = 17;
const BN_EPS: f64 = 1e-3;

/// A convolution in the table of the network: path, output channels, kernel, stride, padding.
struct Spec(&'static str, usize, [usize; 2], usize, Pad);

#[derive(Clone, Copy, PartialEq)]
enum Pad {
    /// None.
    Valid,
    /// Half the kernel on each side.
    Same,
}
use Pad::{Same, Valid};

/// How a branch of a block starts.
#[derive(Clone, Copy, PartialEq)]
enum Entry {
    /// With the block's input.
    Input,
    /// With the 3×3 average of it, stride 1, padding not counted.
    Average,
    /// With the 3×3 maximum of it, stride 1.
    Maximum,
    /// With the 3×3 maximum of it, stride 2, and nothing after.
    Reduce,
    /// With what the branch above this one gave before its last convolution.
    Fork,
}

struct Branch(Entry, &'static [Spec]);
struct Block(&'static str, &'static [Branch]);

const fn point(path: &'static str, outputs: usize) -> Spec {
    Spec(path, outputs, [1, 1], 1, Same)
}

const fn same(path: &'static str, outputs: usize, kernel: [usize; 2]) -> Spec {
    Spec(path, outputs, kernel, 1, Same)
}

macro_rules! block_35 {
    ($name:literal, $pool:literal) => {
        Block(
            $name,
            &[
                Branch(Entry::Input, &[point("conv", 64)]),
                Branch(Entry::Input, &[point("tower.conv", 48), same("tower.conv_1", 64, [5, 5])]),
                Branch(
                    Entry::Input,
                    &[
                        point("tower_1.conv", 64),
                        same("tower_1.conv_1", 96, [3, 3]),
                        same("tower_1.conv_2", 96, [3, 3]),
                    ],
                ),
                Branch(Entry::Average, &[point("tower_2.conv", $pool)]),
            ],
        )
    };
}

macro_rules! block_17 {
    ($name:literal, $c:literal) => {
        Block(
            $name,
            &[
                Branch(Entry::Input, &[point("conv", 192)]),
                Branch(
                    Entry::Input,
                    &[point("tower.conv", $c), same("tower.conv_1", $c, [1, 7]), same("tower.conv_2", 192, [7, 1])],
                ),
                Branch(
                    Entry::Input,
                    &[
                        point("tower_1.conv", $c),
                        same("tower_1.conv_1", $c, [7, 1]),
                        same("tower_1.conv_2", $c, [1, 7]),
                        same("tower_1.conv_3", $c, [7, 1]),
                        same("tower_1.conv_4", 192, [1, 7]),
                    ],
                ),
                Branch(Entry::Average, &[point("tower_2.conv", 192)]),
            ],
        )
    };
}

macro_rules! block_8 {
    ($name:literal, $pool:expr) => {
        Block(
            $name,
            &[
                Branch(Entry::Input, &[point("conv", 320)]),
                Branch(Entry::Input, &[point("tower_conv", 384), same("tower_mixed_conv", 384, [1, 3])]),
                Branch(Entry::Fork, &[same("tower_mixed_conv_1", 384, [3, 1])]),
                Branch(
                    Entry::Input,
                    &[
                        point("tower_1_conv", 448),
                        same("tower_1_conv_1", 384, [3, 3]),
                        same("tower_1_mixed_conv", 384, [1, 3]),
                    ],
                ),
                Branch(Entry::Fork, &[same("tower_1_mixed_conv_1", 384, [3, 1])]),
                Branch($pool, &[point("tower_2_conv", 192)]),
            ],
        )
    };
}

const STEM: [Spec; 5] = [
    Spec("conv", 32, [3, 3], 2, Valid),
    Spec("conv_1", 32, [3, 3], 1, Valid),
    Spec("conv_2", 64, [3, 3], 1, Same),
    Spec("conv_3", 80, [1, 1], 1, Valid),
    Spec("conv_4", 192, [3, 3], 1, Valid),
];
/// Convolutions of the stem after which the 3×3 maximum of stride 2 is taken.
const STEM_POOLS: [usize; 2] = [2, 4];

const BLOCKS: [Block; 11] = [
    block_35!("mixed", 32),
    block_35!("mixed_1", 64),
    block_35!("mixed_2", 64),
    Block(
        "mixed_3",
        &[
            Branch(Entry::Input, &[Spec("conv", 384, [3, 3], 2, Valid)]),
            Branch(
                Entry::Input,
                &[
                    point("tower.conv", 64),
                    same("tower.conv_1", 96, [3, 3]),
                    Spec("tower.conv_2", 96, [3, 3], 2, Valid),
                ],
            ),
            Branch(Entry::Reduce, &[]),
        ],
    ),
    block_17!("mixed_4", 128),
    block_17!("mixed_5", 160),
    block_17!("mixed_6", 160),
    block_17!("mixed_7", 192),
    Block(
        "mixed_8",
        &[
            Branch(Entry::Input, &[point("tower.conv", 192), Spec("tower.conv_1", 320, [3, 3], 2, Valid)]),
            Branch(
                Entry::Input,
                &[
                    point("tower_1.conv", 192),
                    same("tower_1.conv_1", 192, [1, 7]),
                    same("tower_1.conv_2", 192, [7, 1]),
                    Spec("tower_1.conv_3", 192, [3, 3], 2, Valid),
                ],
            ),
            Branch(Entry::Reduce, &[]),
        ],
    ),
    block_8!("mixed_9", Entry::Average),
    block_8!("mixed_10", Entry::Maximum),
];
/// The block whose branch `conv` gives `spatial`, and the one after which the 768-tap is taken.
const SPATIAL_BLOCK: &str = "mixed_6";
const LAST_17: &str = "mixed_7";

/// A convolution with its batch norm folded in, and ReLU.
#[derive(Debug, Clone)]
struct FoldedConv<V> {
    scope: Scope,
    weight: V,
    bias: V,
    stride: usize,
    pads: [usize; 4],
}

impl<V: Clone> FoldedConv<V> {
    fn build<B: Backend<Value = V>>(b: &mut B, scope: Scope, inputs: usize, spec: &Spec, gamma: bool) -> Result<Self> {
        let Spec(_, outputs, [kh, kw], stride, pad) = *spec;
        let dims = [outputs, inputs, kh, kw];
        let std = (2.0 / (inputs * kh * kw) as f64).sqrt();
        let mut weight = b.buffer(&scope, "weight", &dims, &Init::Normal { std })?;
        let beta = b.buffer(&scope, "beta", &[outputs], &Init::Constant(0.0))?;
        let mean = b.buffer(&scope, "mean", &[outputs], &Init::Constant(0.0))?;
        let var = b.buffer(&scope, "var", &[outputs], &Init::Constant(1.0))?;
        let gamma = if gamma { Some(b.buffer(&scope, "gamma", &[outputs], &Init::Constant(1.0))?) } else { None };
        let bias = fold_norm(&mut weight, None, &Norm { gamma, beta, mean, var }, BN_EPS);
        let weight = b.constant(&scope, "weight", &dims, weight)?;
        let bias = b.constant(&scope, "bias", &[outputs], bias)?;
        let pads = if pad == Same { [kh / 2, kw / 2, kh / 2, kw / 2] } else { [0; 4] };
        Ok(Self { scope, weight, bias, stride, pads })
    }

    fn forward<B: Backend<Value = V>>(&self, b: &mut B, x: &V) -> Result<V> {
        b.enter(&self.scope);
        let how = Conv2d { stride: self.stride, pads: self.pads, groups: 1 };
        let x = b.conv2d(x, &self.weight, Some(&self.bias), how)?;
        b.clamp(&x, 0.0, f64::INFINITY)
    }
}

type BuiltBranch<V> = (Entry, Vec<FoldedConv<V>>);

/// What of the network a file holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Parts {
    /// Whether batch norms have a scale `gamma`.
    pub gamma: bool,
    /// Whether the head is there, without which there are no logits.
    pub head: bool,
}

/// The network.
#[derive(Clone)]
pub struct InceptionV3<V> {
    scope: Scope,
    stem: Vec<FoldedConv<V>>,
    blocks: Vec<(&'static str, Scope, Vec<BuiltBranch<V>>)>,
    head: Option<V>,
}

impl<V> std::fmt::Debug for InceptionV3<V> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("InceptionV3").field("scope", &self.scope).finish_non_exhaustive()
    }
}

/// What the network gives for a batch of N images.
#[derive(Debug, Clone)]
pub struct Outputs<V> {
    /// Mean of the last feature map over its pixels, `[N, 2048]`.
    pub pool3: V,
    /// `pool3` times the head's weight, without its bias, `[N, 1008]`, if the network has its head.
    pub logits: Option<V>,
    /// First 7 channels of `mixed_6/conv` after ReLU, pixels outermost, `[N, 2023]`.
    pub spatial: V,
    /// Means over the pixels after the first and the second maximum of the stem and after `mixed_7`: `[N, 64]`, `[N, 192]`, `[N, 768]`; empty if not asked for.
    pub taps: Vec<V>,
}

impl<V: Clone> InceptionV3<V> {
    /// Takes all tensors below `scope`: those that `parts` says are there.
    ///
    /// # Errors
    /// Those of [`Backend::buffer`].
    pub fn build<B: Backend<Value = V>>(b: &mut B, scope: &Scope, parts: Parts) -> Result<Self> {
        let Parts { gamma, head } = parts;
        let layers = scope.child("layers");
        let (mut stem, mut width) = (Vec::new(), 3);
        for spec in &STEM {
            stem.push(FoldedConv::build(b, layers.child(spec.0), width, spec, gamma)?);
            width = spec.1;
        }
        let mut blocks = Vec::new();
        for Block(name, branches) in &BLOCKS {
            let at = layers.child(name);
            let (mut built, mut total, mut before_last) = (Vec::new(), 0, width);
            for Branch(entry, specs) in *branches {
                let mut channels = if *entry == Entry::Fork { before_last } else { width };
                let mut convs = Vec::new();
                for spec in *specs {
                    before_last = channels;
                    convs.push(FoldedConv::build(b, at.child(spec.0), channels, spec, gamma)?);
                    channels = spec.1;
                }
                total += channels;
                built.push((*entry, convs));
            }
            blocks.push((*name, at, built));
            width = total;
        }
        let head = if head {
            let output = scope.child("output");
            let init = Init::torch_default(POOL3);
            // Read, so that the load is complete: no metric uses it.
            b.buffer(&output, "bias", &[CLASSES], &Init::Constant(0.0))?;
            Some(b.param(&output, "weight", &[CLASSES, POOL3], &init)?)
        } else {
            None
        };
        Ok(Self { scope: scope.clone(), stem, blocks, head })
    }

    /// `x [N, 3, 299, 299]`, (pixel - 128) / 128; `taps` asks for those.
    ///
    /// # Errors
    /// `Engine`.
    pub fn forward<B: Backend<Value = V>>(&self, b: &mut B, x: &V, taps: bool) -> Result<Outputs<V>> {
        let (mut x, mut maps, mut spatial) = (x.clone(), Vec::new(), x.clone());
        for (i, conv) in self.stem.iter().enumerate() {
            x = conv.forward(b, &x)?;
            if STEM_POOLS.contains(&i) {
                x = b.max_pool2d(&x, Pool { kernel: 3, stride: 2, pad: 0 })?;
                maps.push(x.clone());
            }
        }
        for (name, scope, branches) in &self.blocks {
            let (mut parts, mut before_last) = (Vec::new(), x.clone());
            for (entry, convs) in branches {
                b.enter(scope);
                let mut h = match entry {
                    Entry::Input => x.clone(),
                    Entry::Average => b.avg_pool2d(&x, Pool { kernel: 3, stride: 1, pad: 1 })?,
                    Entry::Maximum => b.max_pool2d(&x, Pool { kernel: 3, stride: 1, pad: 1 })?,
                    Entry::Reduce => b.max_pool2d(&x, Pool { kernel: 3, stride: 2, pad: 0 })?,
                    Entry::Fork => before_last.clone(),
                };
                for conv in convs {
                    before_last = h.clone();
                    h = conv.forward(b, &h)?;
                }
                parts.push(h);
            }
            if *name == SPATIAL_BLOCK {
                spatial = parts[0].clone();
            }
            b.enter(scope);
            x = b.concat(&parts, 1)?;
            if *name == LAST_17 {
                maps.push(x.clone());
            }
        }
        b.enter(&self.scope.child("output"));
        let pool3 = b.mean(&x, &[2, 3], false)?;
        let pool3 = b.reshape(&pool3, &[-1, signed(POOL3)])?;
        let logits = match &self.head {
            Some(head) => Some(b.linear(&pool3, head, None)?),
            None => None,
        };
        b.enter(&self.scope.child("spatial"));
        let spatial = b.slice(&spatial, 1, 0, SPATIAL_CHANNELS)?;
        let spatial = b.transpose(&spatial, &[0, 2, 3, 1])?;
        let spatial = b.reshape(&spatial, &[-1, signed(SPATIAL)])?;
        b.enter(&self.scope.child("taps"));
        let mut tapped = Vec::new();
        for (map, length) in maps.iter().zip(TAPS).filter(|_| taps) {
            let mean = b.mean(map, &[2, 3], false)?;
            tapped.push(b.reshape(&mean, &[-1, signed(length)])?);
        }
        Ok(Outputs { pool3, logits, spatial, taps: tapped })
    }
}

/// Paths of all convolutions below `layers`, in the network's order.
fn paths() -> impl Iterator<Item = String> {
    let blocks = BLOCKS.iter().flat_map(|Block(name, branches)| {
        branches.iter().flat_map(move |Branch(_, specs)| specs.iter().map(move |s| format!("{name}.{}", s.0)))
    });
    STEM.iter().map(|s| s.0.to_owned()).chain(blocks)
}

/// A published layout of the weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// NVIDIA's port, as a pickle, TorchScript or state dict.
    Nvidia,
    /// The PyTorch ports: pytorch-fid, torch-fidelity.
    PyTorch,
    /// pytorch-fid's own module as it lies in memory: the layers in numbered blocks, without the head.
    Blocks,
    /// The TensorFlow graph.
    TensorFlow,
}

/// Which layout a file with these tensor names has, if it holds this network or one of the same names.
fn layout(has: impl Fn(&str) -> bool) -> Option<Layout> {
    if has("layers.conv.weight") && has("layers.mixed_10.tower_2_conv.weight") {
        Some(Layout::Nvidia)
    } else if has("Conv2d_1a_3x3.conv.weight") && has("Mixed_7c.branch_pool.conv.weight") {
        Some(Layout::PyTorch)
    } else if has("blocks.0.0.conv.weight") && has("blocks.3.2.branch_pool.conv.weight") {
        Some(Layout::Blocks)
    } else if has("conv/conv2d_params") && has("mixed_10/tower_2/conv/conv2d_params") {
        Some(Layout::TensorFlow)
    } else {
        None
    }
}

/// This network, if `tensors` have one of its layouts.
pub(crate) fn recognise(tensors: &Arc<dyn TensorSource>) -> Recognised<Parts> {
    let layout = layout(|n| tensors.info(n).is_some())?;
    let mut list = names(layout);
    if layout != Layout::TensorFlow {
        // Whatever else is there stays visible, so that a load of another network is not clean.
        let known: HashSet<_> = list.iter().map(|(_, theirs, _)| theirs.clone()).collect();
        let rest = tensors.names().into_iter().filter(|n| !known.contains(n) && !n.ends_with(".num_batches_tracked"));
        list.extend(rest.map(|n| (n.clone(), n, &[][..])));
    }
    let renamed = Renamed::listed(Arc::clone(tensors), list);
    let rows = renamed.info("output.weight").and_then(|i| i.dims.first().copied());
    let parts = Parts { gamma: matches!(layout, Layout::PyTorch | Layout::Blocks), head: layout != Layout::Blocks };
    let head = if parts.head { check_head(rows) } else { Ok(()) };
    Some((head.map(|()| parts), Arc::new(renamed)))
}

/// Our name and axis order (empty: the same) of each tensor of `layout`, as (ours, theirs, axes). Axis i of ours is axis `axes[i]` of theirs.
///
/// TensorFlow's `gamma` is left out: its norms do not scale.
#[must_use]
pub fn names(layout: Layout) -> Vec<(String, String, &'static [usize])> {
    let mut all = Vec::new();
    for path in paths() {
        let ours = |leaf: &str| format!("layers.{path}.{leaf}");
        match layout {
            Layout::Nvidia => all.extend(["weight", "beta", "mean", "var"].map(|l| (ours(l), ours(l), &[][..]))),
            Layout::PyTorch | Layout::Blocks => {
                let theirs = pytorch_path(&path);
                let theirs = if layout == Layout::Blocks { blocks_path(&theirs) } else { theirs };
                all.extend(
                    [
                        ("weight", "conv.weight"),
                        ("gamma", "bn.weight"),
                        ("beta", "bn.bias"),
                        ("mean", "bn.running_mean"),
                        ("var", "bn.running_var"),
                    ]
                    .map(|(l, t)| (ours(l), format!("{theirs}.{t}"), &[][..])),
                );
            }
            Layout::TensorFlow => {
                let theirs = tensorflow_path(&path);
                all.push((ours("weight"), format!("{theirs}/conv2d_params"), &[3, 2, 0, 1][..]));
                all.extend(
                    [("beta", "beta"), ("mean", "moving_mean"), ("var", "moving_variance")]
                        .map(|(l, t)| (ours(l), format!("{theirs}/batchnorm/{t}"), &[][..])),
                );
            }
        }
    }
    let (weight, bias, axes) = match layout {
        Layout::Nvidia => ("output.weight", "output.bias", &[][..]),
        Layout::PyTorch => ("fc.weight", "fc.bias", &[][..]),
        Layout::Blocks => return all,
        Layout::TensorFlow => ("softmax/weights", "softmax/biases", &[1, 0][..]),
    };
    all.push(("output.weight".to_owned(), weight.to_owned(), axes));
    all.push(("output.bias".to_owned(), bias.to_owned(), &[]));
    all
}

/// What the PyTorch ports call the convolution `path`.
fn pytorch_path(path: &str) -> String {
    let Some((block, conv)) = path.split_once('.') else {
        let stem = ["Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3", "Conv2d_3b_1x1", "Conv2d_4a_3x3"];
        return stem[STEM.iter().position(|s| s.0 == path).unwrap_or(0)].to_owned();
    };
    const MODULES: [&str; 11] = [
        "Mixed_5b", "Mixed_5c", "Mixed_5d", "Mixed_6a", "Mixed_6b", "Mixed_6c", "Mixed_6d", "Mixed_6e", "Mixed_7a",
        "Mixed_7b", "Mixed_7c",
    ];
    let index = BLOCKS.iter().position(|b| b.0 == block).unwrap_or(0);
    let branch = match (index, conv) {
        (3, "conv") => "branch3x3",
        (3, "tower.conv") => "branch3x3dbl_1",
        (3, "tower.conv_1") => "branch3x3dbl_2",
        (3, "tower.conv_2") => "branch3x3dbl_3",
        (8, "tower.conv") => "branch3x3_1",
        (8, "tower.conv_1") => "branch3x3_2",
        (8, "tower_1.conv") => "branch7x7x3_1",
        (8, "tower_1.conv_1") => "branch7x7x3_2",
        (8, "tower_1.conv_2") => "branch7x7x3_3",
        (8, "tower_1.conv_3") => "branch7x7x3_4",
        (_, "conv") => "branch1x1",
        (_, "tower_2.conv" | "tower_2_conv") => "branch_pool",
        (0..=2, "tower.conv") => "branch5x5_1",
        (0..=2, "tower.conv_1") => "branch5x5_2",
        (0..=2, "tower_1.conv") => "branch3x3dbl_1",
        (0..=2, "tower_1.conv_1") => "branch3x3dbl_2",
        (0..=2, "tower_1.conv_2") => "branch3x3dbl_3",
        (_, "tower.conv") => "branch7x7_1",
        (_, "tower.conv_1") => "branch7x7_2",
        (_, "tower.conv_2") => "branch7x7_3",
        (_, "tower_1.conv") => "branch7x7dbl_1",
        (_, "tower_1.conv_1") => "branch7x7dbl_2",
        (_, "tower_1.conv_2") => "branch7x7dbl_3",
        (_, "tower_1.conv_3") => "branch7x7dbl_4",
        (_, "tower_1.conv_4") => "branch7x7dbl_5",
        (_, "tower_conv") => "branch3x3_1",
        (_, "tower_mixed_conv") => "branch3x3_2a",
        (_, "tower_mixed_conv_1") => "branch3x3_2b",
        (_, "tower_1_conv") => "branch3x3dbl_1",
        (_, "tower_1_conv_1") => "branch3x3dbl_2",
        (_, "tower_1_mixed_conv") => "branch3x3dbl_3a",
        (_, "tower_1_mixed_conv_1") => "branch3x3dbl_3b",
        (_, other) => other,
    };
    format!("{}.{branch}", MODULES[index])
}

/// Where pytorch-fid's module keeps what the PyTorch ports call `path`.
fn blocks_path(path: &str) -> String {
    const BLOCKS: [&[&str]; 4] = [
        &["Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3"],
        &["Conv2d_3b_1x1", "Conv2d_4a_3x3"],
        &["Mixed_5b", "Mixed_5c", "Mixed_5d", "Mixed_6a", "Mixed_6b", "Mixed_6c", "Mixed_6d", "Mixed_6e"],
        &["Mixed_7a", "Mixed_7b", "Mixed_7c"],
    ];
    let (module, rest) = path.split_once('.').map_or((path, ""), |(module, _)| (module, &path[module.len()..]));
    let found = BLOCKS.iter().enumerate().find_map(|(i, b)| b.iter().position(|m| *m == module).map(|j| (i, j)));
    found.map_or_else(|| path.to_owned(), |(i, j)| format!("blocks.{i}.{j}{rest}"))
}

/// The TensorFlow scope of the convolution `path`: dots are slashes, and so are the underscores after `tower` and `mixed` in the last two blocks.
fn tensorflow_path(path: &str) -> String {
    let slashed = path.replace('.', "/");
    let Some((block @ ("mixed_9" | "mixed_10"), conv)) = slashed.split_once('/') else { return slashed };
    let conv = conv.replace("_mixed_conv", "/mixed/conv");
    let conv = ["tower_1_conv", "tower_2_conv", "tower_conv"]
        .iter()
        .find_map(|t| conv.strip_prefix(t).map(|rest| format!("{}/conv{rest}", t.trim_end_matches("_conv"))))
        .unwrap_or(conv);
    format!("{block}/{conv}")
}

/// Refuses what has the PyTorch layout and is another network: torchvision's Inception-v3 with `rows` classes.
///
/// # Errors
/// `Config` saying why.
fn check_head(rows: Option<usize>) -> Result<()> {
    match rows {
        Some(CLASSES) => Ok(()),
        Some(rows) => Err(Error::Config {
            what: format!(
                "an Inception-v3 head of {rows} classes: expected {CLASSES}. torchvision's own Inception-v3 has other weights and pools \
                 differently from Inception-2015-12-05, so distances computed with it are not FID"
            ),
        }),
        None => Err(Error::Config { what: "Inception-2015-12-05 without its head (`fc` or `output`)".to_owned() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_are_94_convolutions_of_the_published_sizes() {
        assert_eq!(paths().count(), 94);
        assert_eq!(names(Layout::Nvidia).len(), 378);
        assert_eq!(names(Layout::PyTorch).len(), 472);
        assert_eq!(names(Layout::Blocks).len(), 470);
        for layout in [Layout::Nvidia, Layout::PyTorch, Layout::Blocks, Layout::TensorFlow] {
            let mut theirs: Vec<_> = names(layout).into_iter().map(|n| n.1).collect();
            theirs.sort();
            theirs.dedup();
            assert_eq!(theirs.len(), names(layout).len(), "{layout:?}");
        }
    }

    #[test]
    fn names_are_those_of_the_published_files() {
        assert_eq!(pytorch_path("conv_4"), "Conv2d_4a_3x3");
        assert_eq!(pytorch_path("mixed_1.tower_1.conv_2"), "Mixed_5c.branch3x3dbl_3");
        assert_eq!(pytorch_path("mixed_3.conv"), "Mixed_6a.branch3x3");
        assert_eq!(pytorch_path("mixed_6.tower_1.conv_4"), "Mixed_6d.branch7x7dbl_5");
        assert_eq!(pytorch_path("mixed_8.tower_1.conv_3"), "Mixed_7a.branch7x7x3_4");
        assert_eq!(pytorch_path("mixed_10.tower_1_mixed_conv_1"), "Mixed_7c.branch3x3dbl_3b");
        assert_eq!(blocks_path("Conv2d_4a_3x3"), "blocks.1.1");
        assert_eq!(blocks_path("Mixed_6e.branch7x7dbl_5"), "blocks.2.7.branch7x7dbl_5");
        assert_eq!(blocks_path("Mixed_7c.branch3x3dbl_3b"), "blocks.3.2.branch3x3dbl_3b");
        assert_eq!(tensorflow_path("conv_1"), "conv_1");
        assert_eq!(tensorflow_path("mixed_6.tower_1.conv_4"), "mixed_6/tower_1/conv_4");
        assert_eq!(tensorflow_path("mixed_9.tower_conv"), "mixed_9/tower/conv");
        assert_eq!(tensorflow_path("mixed_9.tower_mixed_conv_1"), "mixed_9/tower/mixed/conv_1");
        assert_eq!(tensorflow_path("mixed_10.tower_1_conv_1"), "mixed_10/tower_1/conv_1");
        assert_eq!(tensorflow_path("mixed_10.tower_1_mixed_conv"), "mixed_10/tower_1/mixed/conv");
        assert_eq!(tensorflow_path("mixed_10.tower_2_conv"), "mixed_10/tower_2/conv");
    }

    #[test]
    fn another_head_is_refused() {
        assert!(check_head(Some(1008)).is_ok());
        assert!(check_head(Some(1000)).unwrap_err().to_string().contains("torchvision"));
        assert!(check_head(None).is_err());
    }
}
