//! Sizes of the images that feature networks see, and the nominal sizes of their maps.

use d2o_converters::error::{Error, Result};

/// Maps of a projector, and heads on them.
pub(super) const SCALES: usize = 4;
/// Size that images are resized to by the original's rule, and always before a vision transformer, pixels.
pub(super) const RESIZED: usize = 224;
/// Size whose nominal maps resized images have by the original's rule, pixels.
const NOMINAL: usize = 256;

/// How images are resized before a convolutional feature network. A vision transformer sees them at 224 pixels in any case.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FeatureSize {
    /// The original's `interp224=True`: smaller images are resized to 224 pixels and have the nominal sizes of 256; others are left as they are.
    Interp224,
    /// The original's `interp224=False`: never.
    Unchanged,
    /// To this many pixels, which also determine the nominal sizes: less work, not the original's rule.
    Pixels(usize),
}

/// What a [`FeatureSize`] means for images of one size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sizes {
    /// Height and width that a convolutional feature network sees, pixels.
    pub input: usize,
    /// Nominal heights and widths of the maps, finest first. The depth of the heads follows from them, whatever the sizes of the maps are.
    pub nominal: [usize; SCALES],
}

impl FeatureSize {
    /// The sizes for images of `image` pixels.
    ///
    /// # Errors
    /// `Config` if the maps of the feature network would not be multiples of each other, or no heads are defined for their nominal sizes.
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
    /// Nominal size at which the heads end.
    pub(super) fn end(&self) -> usize {
        self.nominal[SCALES - 1].min(8)
    }

    /// Kernel of the last convolution of the heads.
    pub(super) fn kernel(&self) -> usize {
        if self.end() == 8 { 4 } else { self.end() / 2 }
    }

    /// Convolutions of each head before its last.
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

/// The power of two from 1 to 1024 nearest to `size`, the smaller one of two equally near.
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
