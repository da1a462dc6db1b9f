//! Published layouts of the weights.

use std::collections::HashSet;
use std::sync::Arc;

use d2o_checkpoint::{Renamed, TensorSource};

use super::config::Parts;
use super::net::{BLOCKS, Block, Branch, CLASSES, STEM};
use crate::error::{Error, Result};
use crate::recognise::Recognised;

/// Paths of all convolutions below `layers`, in the order of the network.
fn paths() -> impl Iterator<Item = String> {
    let blocks = BLOCKS.iter().flat_map(|Block(name, branches)| {
        branches.iter().flat_map(move |Branch(_, specs)| specs.iter().map(move |s| format!("{name}.{}", s.0)))
    });
    STEM.iter().map(|s| s.0.to_owned()).chain(blocks)
}

/// A published layout of the weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Layout {
    /// The port by NVIDIA, as a pickle, TorchScript or state dict.
    Nvidia,
    /// The PyTorch ports: pytorch-fid, torch-fidelity.
    PyTorch,
    /// The module of pytorch-fid in memory: the layers in numbered blocks, without the head.
    Blocks,
    /// The TensorFlow graph.
    TensorFlow,
}

/// The layout of a file with these tensor names; `None` if they are not the names of this network.
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

/// Recognises the network by the tensor names of its layouts.
pub(crate) fn recognise(tensors: &Arc<dyn TensorSource>) -> Recognised<Parts> {
    let layout = layout(|n| tensors.info(n).is_some())?;
    let mut list = names(layout);
    if layout != Layout::TensorFlow {
        // Other tensors stay visible, so that loading another network reports them as unused.
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

/// Names and axis order of each tensor of `layout`, as (ours, theirs, axes). Axis i of our tensor is axis `axes[i]` of
/// theirs; empty `axes` mean the same order.
///
/// `gamma` of TensorFlow is omitted because its norms do not scale.
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

/// Name of the convolution `path` in the PyTorch ports.
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

/// Name in the module of pytorch-fid for the tensor `path` of the PyTorch ports.
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

/// The TensorFlow scope of the convolution `path`. Dots become slashes. In the last two blocks, underscores before and
/// after `mixed` and between `tower` and `conv` become slashes too.
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

/// Checks the number of classes of the head, `rows`. Inception-v3 of torchvision has the same tensor names and another
/// number of classes.
///
/// # Errors
/// `Config` if the head is missing or does not have [`CLASSES`] rows.
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
