//! Sizes of the network, inferred from tensor shapes.

use d2o_checkpoint::TensorSource;

use crate::error::{Result, config};

/// Convolutions in each group; a pool follows each group.
pub(super) const GROUPS: [usize; 5] = [2, 2, 3, 3, 3];
const CONVS: usize = 13;
/// Height and width of the last feature map after the last pool.
pub(super) const LAST: usize = 7;

/// Sizes of the network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VggConfig {
    /// Whether a batch norm follows each convolution.
    pub batch_norm: bool,
    /// Channels after each convolution.
    pub widths: [usize; CONVS],
    /// Widths of the two hidden fully connected layers.
    pub hidden: [usize; 2],
    /// Number of classes.
    pub classes: usize,
}

impl VggConfig {
    /// Sizes of the network in torchvision.
    #[must_use]
    pub fn torchvision(batch_norm: bool) -> Self {
        let widths = [64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512];
        Self { batch_norm, widths, hidden: [4096; 2], classes: 1000 }
    }

    /// Infers the sizes from `tensors` with the names of torchvision.
    ///
    /// # Errors
    /// `Config` if a convolution or the classifier is missing.
    pub fn of(batch_norm: bool, tensors: &dyn TensorSource) -> Result<Self> {
        let rows = |name: String| {
            let dims = tensors.info(&name).map(|i| i.dims).unwrap_or_default();
            dims.first().copied().filter(|n| *n > 0).ok_or_else(|| config(format!("a VGG16 without `{name}`")))
        };
        let mut widths = [0; CONVS];
        for (width, index) in widths.iter_mut().zip(indices(batch_norm)) {
            *width = rows(format!("features.{index}.weight"))?;
        }
        let [first, second, classes] = [0, 3, 6].map(|i| rows(format!("classifier.{i}.weight")));
        Ok(Self { batch_norm, widths, hidden: [first?, second?], classes: classes? })
    }

    /// Whether both networks have the same convolutions and norms.
    #[must_use]
    pub fn has_trunk_of(&self, other: &Self) -> bool {
        (self.batch_norm, self.widths) == (other.batch_norm, other.widths)
    }
}

/// Index of each convolution in `features`. After a convolution come its norm (if `batch_norm`), its ReLU and, at the
/// end of a group, the pool.
pub(super) fn indices(batch_norm: bool) -> impl Iterator<Item = usize> {
    let step = if batch_norm { 3 } else { 2 };
    GROUPS
        .into_iter()
        .enumerate()
        .flat_map(|(pools, convs)| std::iter::repeat_n(pools, convs))
        .enumerate()
        .map(move |(before, pools)| before * step + pools)
}
