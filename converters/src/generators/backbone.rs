//! Raw networks F(x; c_noise, labels). With a preconditioner they become denoisers.

use super::args::{Args, within};
use crate::backend::{Backend, Ops as _};
use crate::error::{Result, config};
use crate::layers::Linear;

/// Maximum number of channels and of augmentation labels. The maximum number of classes is its square.
pub(crate) const MAX_CHANNELS: usize = 1 << 14;

/// Sizes of the input and output tensors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// Height and width of the images, pixels.
    pub resolution: usize,
    /// Channels of the input.
    pub inputs: usize,
    /// Channels of the output.
    pub outputs: usize,
    /// Number of classes; 0 if unconditional.
    pub label_dim: usize,
}

/// Labels of the images of an evaluation.
#[derive(Debug)]
pub struct Labels<'a, V> {
    /// One-hot classes `[N, label_dim]`; `None` for no class.
    pub classes: Option<&'a V>,
    /// Augmentation labels `[N, augment_dim]`, used only in training; `None` for images without augmentation.
    pub augment: Option<&'a V>,
}

impl<V> Clone for Labels<'_, V> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<V> Copy for Labels<'_, V> {}

impl<'a, V> From<Option<&'a V>> for Labels<'a, V> {
    /// Classes of images without augmentation.
    fn from(classes: Option<&'a V>) -> Self {
        Self { classes, augment: None }
    }
}

/// The configuration of a raw network, with methods that read, check and build it.
pub trait Backbone: Sized {
    /// Name of the class in checkpoints.
    const CLASS: &'static str;

    /// The network on a backend with values of type `V`. Its `forward(b, x, noise, labels)` maps `x [N, inputs, R, R]`,
    /// `noise [N or 1]` and [`Labels`] to `[N, outputs, R, R]`.
    type Net<V: Clone>;

    /// Reads the constructor arguments that remain after those of the preconditioner, which has the class `precond`.
    ///
    /// # Errors
    /// `Config` for an unknown or missing argument.
    fn read(args: Args, precond: &str) -> Result<Self>;

    /// Checks the sizes.
    ///
    /// # Errors
    /// `Config` for a value out of range.
    fn check(&self, shape: Shape) -> Result<()>;

    /// Probability with which training drops the class label of an image.
    fn label_dropout(&self) -> f64 {
        0.0
    }

    /// Number of augmentation labels; 0 if the network takes none.
    fn augment_dim(&self) -> usize {
        0
    }

    /// Number of output channels if the preconditioner expects `channels`.
    fn outputs(&self, channels: usize) -> usize {
        channels
    }

    /// Builds the network and takes its tensors.
    ///
    /// # Errors
    /// Those of [`Backend::param`].
    fn build<B: Backend>(&self, b: &mut B, shape: Shape) -> Result<Self::Net<B::Value>>;
}

/// Sizes that are common to all U-Nets.
pub(crate) struct Sizes {
    pub(crate) model_channels: usize,
    pub(crate) channel_mult: Vec<f64>,
    pub(crate) num_blocks: usize,
}

impl Sizes {
    /// Sizes with integer multipliers.
    pub(crate) fn whole(model_channels: usize, channel_mult: &[usize], num_blocks: usize) -> Self {
        Self { model_channels, channel_mult: channel_mult.iter().map(|m| *m as f64).collect(), num_blocks }
    }

    pub(crate) fn check(&self, shape: Shape) -> Result<()> {
        const MAX_RESOLUTION: usize = 4096;
        let levels = self.channel_mult.len();
        within("img_resolution", shape.resolution, 1, MAX_RESOLUTION)?;
        within("img_channels", shape.inputs, 1, MAX_CHANNELS)?;
        within("label_dim", shape.label_dim, 0, MAX_CHANNELS * MAX_CHANNELS)?;
        within("model_channels", self.model_channels, 4, MAX_CHANNELS)?;
        within("channel_mult (length)", levels, 1, 12)?;
        within("num_blocks", self.num_blocks, 1, 64)?;
        if let Some(m) = self.channel_mult.iter().find(|m| !(0.125..=64.0).contains(*m)) {
            return Err(config(format!("`channel_mult`: expected 0.125 to 64, found {m}")));
        }
        let unit = 1 << (levels - 1);
        if !shape.resolution.is_multiple_of(unit) {
            let found = shape.resolution;
            return Err(config(format!(
                "`img_resolution`: expected a multiple of {unit} for {levels} levels, found {found}"
            )));
        }
        Ok(())
    }
}

/// Adds the embedding of the augmentation `labels` by `map` to `emb`. Without labels, `emb` is returned unchanged.
///
/// # Errors
/// `Config` if there are labels but no `map`; `Engine` if an operation fails.
pub(crate) fn augmented<B: Backend>(
    b: &mut B,
    emb: B::Value,
    map: Option<&Linear<B::Value>>,
    labels: Option<&B::Value>,
) -> Result<B::Value> {
    let Some(labels) = labels else { return Ok(emb) };
    let map = map.ok_or_else(|| config("the network does not take augmentation labels".to_owned()))?;
    let augment = map.forward(b, labels)?;
    b.add(&emb, &augment)
}

/// Checks the arguments for embeddings that both U-Nets of EDM have.
pub(crate) fn check_embedding(augment_dim: usize, channel_mult_emb: usize, label_dropout: f64) -> Result<()> {
    within("augment_dim", augment_dim, 0, MAX_CHANNELS)?;
    within("channel_mult_emb", channel_mult_emb, 1, 64)?;
    if !(0.0..1.0).contains(&label_dropout) {
        return Err(config(format!("`label_dropout`: expected 0 to below 1, found {label_dropout}")));
    }
    Ok(())
}
