//! The network Inception-v3. Tensor names are those of the port by NVIDIA: `layers.<path>.{weight, beta, mean, var}`
//! and `output.{weight, bias}`. Layouts with scales also have `layers.<path>.gamma`.

use super::config::Parts;
use crate::backend::{Backend, Conv2d, Ops as _, Pool, signed};
use crate::error::Result;
use crate::extractors::Named;
use crate::layers::{BatchNorm, FoldedConv, wide};
use crate::weights::{Init, Scope};

/// Height and width of the input, pixels.
pub const INPUT_SIZE: usize = 299;
/// Length of `pool3`.
pub const POOL3: usize = 2048;
/// Rows of the head: 1000 ImageNet classes and 8 unused ones.
pub const CLASSES: usize = 1008;
/// Length of `spatial`.
pub const SPATIAL: usize = SPATIAL_CHANNELS * SPATIAL_SIZE * SPATIAL_SIZE;
/// Lengths of the taps that pytorch-fid and torch-fidelity offer in addition to `pool3`.
pub const TAPS: [usize; 3] = [64, 192, 768];

const SPATIAL_CHANNELS: usize = 7;
const SPATIAL_SIZE: usize = 17;
const BN_EPS: f64 = 1e-3;

/// A convolution in the table of the network: path, output channels, kernel, stride, padding.
pub(super) struct Spec(pub(super) &'static str, usize, [usize; 2], usize, Pad);

#[derive(Clone, Copy, PartialEq)]
pub(super) enum Pad {
    /// No padding.
    Valid,
    /// Half the kernel on each side.
    Same,
}
use Pad::{Same, Valid};

/// Input of a branch of a block.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Entry {
    /// The block input.
    Input,
    /// The 3×3 average of the block input, stride 1, padding not counted.
    Average,
    /// The 3×3 maximum of the block input, stride 1.
    Maximum,
    /// The 3×3 maximum of the block input, stride 2. The branch has no convolutions.
    Reduce,
    /// The input of the last convolution of the previous branch.
    Fork,
}

pub(super) struct Branch(pub(super) Entry, pub(super) &'static [Spec]);
pub(super) struct Block(pub(super) &'static str, pub(super) &'static [Branch]);

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

pub(super) const STEM: [Spec; 5] = [
    Spec("conv", 32, [3, 3], 2, Valid),
    Spec("conv_1", 32, [3, 3], 1, Valid),
    Spec("conv_2", 64, [3, 3], 1, Same),
    Spec("conv_3", 80, [1, 1], 1, Valid),
    Spec("conv_4", 192, [3, 3], 1, Valid),
];
/// Indices of the stem convolutions that are followed by a 3×3 max pooling of stride 2.
const STEM_POOLS: [usize; 2] = [2, 4];

pub(super) const BLOCKS: [Block; 11] = [
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
/// The block with the branch `conv` that gives `spatial`, and the block after which `tap_768` is taken.
const SPATIAL_BLOCK: &str = "mixed_6";
const LAST_17: &str = "mixed_7";

/// A convolution with its batch norm folded in, followed by ReLU.
#[derive(Debug, Clone)]
struct ConvRelu<V> {
    conv: FoldedConv<V>,
    options: Conv2d,
}

impl<V: Clone> ConvRelu<V> {
    fn build<B: Backend<Value = V>>(b: &mut B, scope: Scope, inputs: usize, spec: &Spec, gamma: bool) -> Result<Self> {
        let Spec(_, outputs, [kh, kw], stride, pad) = *spec;
        let dims = [outputs, inputs, kh, kw];
        let std = (2.0 / (inputs * kh * kw) as f64).sqrt();
        let weight = b.buffer(&scope, "weight", &dims, &Init::Normal { std })?;
        let mut vector = |name, value| b.buffer(&scope, name, &[outputs], &Init::Constant(value));
        let (beta, mean, var) = (vector("beta", 0.0)?, vector("mean", 0.0)?, vector("var", 1.0)?);
        let gamma = if gamma { Some(vector("gamma", 1.0)?) } else { None };
        let norm = BatchNorm { gamma, beta, mean: wide(mean), var: wide(var) };
        let conv = FoldedConv::build(b, scope, &dims, weight, None, &norm, BN_EPS)?;
        let pads = if pad == Same { [kh / 2, kw / 2, kh / 2, kw / 2] } else { [0; 4] };
        Ok(Self { conv, options: Conv2d { stride, pads, groups: 1 } })
    }

    fn forward<B: Backend<Value = V>>(&self, b: &mut B, x: &V) -> Result<V> {
        let x = self.conv.forward(b, x, self.options)?;
        b.relu(&x)
    }
}

type BuiltBranch<V> = (Entry, Vec<ConvRelu<V>>);

/// The network.
#[derive(Clone)]
pub struct InceptionV3<V> {
    scope: Scope,
    stem: Vec<ConvRelu<V>>,
    blocks: Vec<(&'static str, Scope, Vec<BuiltBranch<V>>)>,
    head: Option<V>,
}

impl<V> std::fmt::Debug for InceptionV3<V> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("InceptionV3").field("scope", &self.scope).finish_non_exhaustive()
    }
}

impl<V: Clone> InceptionV3<V> {
    /// Builds the network and takes all of its tensors below `scope`, as far as `parts` contains them.
    ///
    /// # Errors
    /// Those of [`Backend::buffer`].
    pub fn build<B: Backend<Value = V>>(b: &mut B, scope: &Scope, parts: Parts) -> Result<Self> {
        let Parts { gamma, head } = parts;
        let layers = scope.child("layers");
        let (mut stem, mut width) = (Vec::new(), 3);
        for spec in &STEM {
            stem.push(ConvRelu::build(b, layers.child(spec.0), width, spec, gamma)?);
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
                    convs.push(ConvRelu::build(b, at.child(spec.0), channels, spec, gamma)?);
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
            // The bias is read so that the load is complete. No metric uses it.
            b.buffer(&output, "bias", &[CLASSES], &Init::Constant(0.0))?;
            Some(b.param(&output, "weight", &[CLASSES, POOL3], &init)?)
        } else {
            None
        };
        Ok(Self { scope: scope.clone(), stem, blocks, head })
    }

    /// Maps `x [N, 3, 299, 299]` with values (pixel − 128)/128 to
    ///
    /// - `pool3 [N, 2048]`: the mean of the last feature map over its pixels;
    /// - `logits [N, 1008]`, if the network has a head: `pool3` times the weight of the head, without its bias;
    /// - `spatial [N, 2023]`: the first 7 channels of `mixed_6/conv` after ReLU, pixels outermost;
    /// - `tap_64`, `tap_192`, `tap_768`, if `taps`: means over the pixels after the first and the second max pooling of
    ///   the stem and after `mixed_7`.
    ///
    /// # Errors
    /// `Engine` if an operation fails.
    pub fn forward<B: Backend<Value = V>>(&self, b: &mut B, x: &V, taps: bool) -> Result<Named<V>> {
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
        let mut outputs = vec![("pool3".to_owned(), pool3)];
        outputs.extend(logits.map(|l| ("logits".to_owned(), l)));
        outputs.push(("spatial".to_owned(), spatial));
        outputs.extend(TAPS.map(|length| format!("tap_{length}")).into_iter().zip(tapped));
        Ok(outputs)
    }
}
