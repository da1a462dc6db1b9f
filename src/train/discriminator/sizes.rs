//! Sizes of the images that feature networks see, and the nominal sizes of their maps.

use d2o_converters::error::{Error, Result};

/// Number of feature maps of a projector, each with one head.
pub(super) const SCALES: usize = 4;
/// Size to which images are resized with `interp224`, and always for a vision transformer, pixels.
pub(super) const RESIZED: usize = 224;
/// Image size that gives the nominal map sizes of images resized with `interp224`, pixels.
const NOMINAL: usize = 256;

/// Resizing of images before a convolutional feature network. A vision transformer always gets 224 pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FeatureSize {
    /// `interp224=True` of the original: images below 224 pixels are resized to 224, with the nominal map sizes of 256.
    /// Other images are not resized.
    Interp224,
    /// `interp224=False` of the original: no resizing.
    Unchanged,
    /// Resizing to this many pixels, which also determine the nominal map sizes. Not an option of the original.
    Pixels(usize),
}

/// Input size and nominal map sizes for images of one size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sizes {
    /// Height and width of the input of a convolutional feature network, pixels.
    pub input: usize,
    /// Nominal heights and widths of the maps, finest first. They determine the depth of the heads, even if the maps
    /// have other sizes.
    pub nominal: [usize; SCALES],
}

impl FeatureSize {
    /// The sizes for images of `image` pixels.
    ///
    /// # Errors
    /// `Config` if the input is not a multiple of 32 pixels, or heads are not defined for the nominal map sizes.
    pub fn of(self, image: usize) -> Result<Sizes> {
        let (input, nominal) = match self {
            Self::Interp224 if image < RESIZED => (RESIZED, NOMINAL),
            Self::Interp224 | Self::Unchanged => (image, image),
            Self::Pixels(pixels) => (pixels, pixels),
        };
        let nominal = [4, 8, 16, 32].map(|stride| 2 * (nominal / stride));
        let sizes = Sizes { input, nominal };
        if !input.is_multiple_of(32) || ![2, 4, 8].contains(&sizes.end()) {
            let what = format!(
                "backbones of a discriminator require images of 32, 64 or at least 128 pixels, a multiple of 32, found {input}"
            );
            return Err(Error::Config { what });
        }
        Ok(sizes)
    }
}

impl Sizes {
    /// Nominal map size before the last convolution of the heads.
    pub(super) fn end(&self) -> usize {
        self.nominal[SCALES - 1].min(8)
    }

    /// Kernel size of the last convolution of the heads.
    pub(super) fn kernel(&self) -> usize {
        if self.end() == 8 { 4 } else { self.end() / 2 }
    }

    /// Number of convolutions of each head before its last.
    #[must_use]
    pub fn depths(&self) -> [usize; SCALES] {
        self.nominal.map(|start| halvings(nearest_size(start), self.end()))
    }
}

/// How many times `from` is halved until it is not above `to`.
fn halvings(mut from: usize, to: usize) -> usize {
    let mut count = 0;
    while from > to {
        from /= 2;
        count += 1;
    }
    count
}

/// The power of two from 1 to 1024 nearest to `size`; the smaller one if two are equally near.
pub(super) fn nearest_size(size: usize) -> usize {
    (0..=10).map(|e| 1_usize << e).min_by_key(|p| p.abs_diff(size)).unwrap_or(size)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_depths_are_the_originals() {
        let sizes = |rule: FeatureSize, image| {
            let sizes = rule.of(image).unwrap();
            (sizes.input, sizes.nominal, sizes.depths(), sizes.kernel())
        };
        use FeatureSize::{Interp224, Pixels, Unchanged};
        for (rule, image, expected) in [
            (Interp224, 32, (224, [128, 64, 32, 16], [4, 3, 2, 1], 4)),
            (Interp224, 64, (224, [128, 64, 32, 16], [4, 3, 2, 1], 4)),
            (Interp224, 224, (224, [112, 56, 28, 14], [4, 3, 2, 1], 4)),
            (Interp224, 256, (256, [128, 64, 32, 16], [4, 3, 2, 1], 4)),
            (Unchanged, 32, (32, [16, 8, 4, 2], [3, 2, 1, 0], 1)),
            (Unchanged, 64, (64, [32, 16, 8, 4], [3, 2, 1, 0], 2)),
            (Unchanged, 128, (128, [64, 32, 16, 8], [3, 2, 1, 0], 4)),
            (Unchanged, 224, (224, [112, 56, 28, 14], [4, 3, 2, 1], 4)),
            (Unchanged, 256, (256, [128, 64, 32, 16], [4, 3, 2, 1], 4)),
            (Unchanged, 512, (512, [256, 128, 64, 32], [5, 4, 3, 2], 4)),
            (Pixels(64), 32, (64, [32, 16, 8, 4], [3, 2, 1, 0], 2)),
            (Pixels(224), 32, (224, [112, 56, 28, 14], [4, 3, 2, 1], 4)),
        ] {
            assert_eq!(sizes(rule, image), expected, "{rule:?} of {image}");
        }
        for (rule, image) in [(Unchanged, 16), (Unchanged, 48), (Unchanged, 96), (Interp224, 250), (Pixels(100), 32)] {
            let error = rule.of(image).unwrap_err().to_string();
            assert!(error.contains("a multiple of 32, found"), "{rule:?} of {image}: {error}");
        }
    }
}
