//! Layouts of images in arrays.

use std::path::Path;

use crate::batch::{ImageDims, ImageSource, parts};
use crate::error::{Error, Result};

/// Supported image arrays, for messages.
pub(crate) const EXPECTED: &str =
    "images of shape [N, H, W, 3], [N, H, W, 1], [N, H, W], [N, H, W, 4], [N, 3, H, W] or [N, 1, H, W]";
/// Why float images are rejected and how to convert them, for messages.
pub(crate) const FLOATS: &str = "whole numbers from 0 to 255 (whether float images range over [0, 1], [-1, 1] or [0, 255] cannot be inferred \
     safely; save them as u8, e.g. (x * 255).round().astype('uint8') for [0, 1])";
/// Most pixels of one image in an array. The image is held as stored and as RGB at the same time.
const MAX_IMAGE: usize = 1 << 27;

/// Order of the values of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Layout {
    /// `[H, W, C]` of 1, 3 or 4 channels; `[H, W]` is one channel.
    ChannelsLast(usize),
    /// `[C, H, W]` of 1 or 3 channels.
    ChannelsFirst(usize),
}

/// Layout and size of the images in an array of `shape`, or why it does not contain images.
pub(crate) fn layout(shape: &[usize]) -> Result<(Layout, ImageDims), String> {
    let (layout, height, width) = match *shape {
        [_, h, w, 3] => (Layout::ChannelsLast(3), h, w),
        [_, 1 | 3, _, 1 | 4] => return Err("it fits both [N, H, W, C] and [N, C, H, W]".to_owned()),
        [_, h, w, c @ (1 | 4)] => (Layout::ChannelsLast(c), h, w),
        [_, c @ (1 | 3), h, w] => (Layout::ChannelsFirst(c), h, w),
        [_, _, 1 | 3 | 4] | [1 | 3, _, _] => {
            return Err("it looks like one image without the axis N; save x[None] for a set of one".to_owned());
        }
        [_, h, w] => (Layout::ChannelsLast(1), h, w),
        _ => return Err("no channel axis of 1, 3 or 4".to_owned()),
    };
    match height.checked_mul(width) {
        Some(1..=MAX_IMAGE) => Ok((layout, ImageDims { height, width, channels: 3 })),
        _ => Err(format!("images of {width}×{height} pixels")),
    }
}

/// `value` as a pixel, if it is a whole number from 0 to 255.
pub(crate) fn from_float(value: f64) -> Option<u8> {
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "checked to be whole and in range")]
    (value.fract() == 0.0 && (0.0..=255.0).contains(&value)).then_some(value as u8)
}

/// Checks that `images`, the float array `name` of the file at `path`, are pixels: every value is a whole number from 0
/// to 255, and some are above 1. Reads at most `rows` images at once.
pub(crate) fn check_floats(images: &mut dyn ImageSource, rows: usize, path: &Path, name: &str) -> Result<()> {
    let mut largest = 0;
    for range in parts(images, 0..images.len(), rows) {
        largest = largest.max(images.read(range)?.iter().copied().max().unwrap_or(0));
    }
    if largest > 1 {
        return Ok(());
    }
    Err(Error::format(path, name, FLOATS, "floats of 0 and 1 only"))
}

/// `pixels` of whole images in `layout` as RGB `[H, W, 3]`: grey is repeated, alpha dropped.
pub(crate) fn to_rgb(layout: Layout, dims: ImageDims, pixels: Vec<u8>) -> Vec<u8> {
    let area = dims.height * dims.width;
    match layout {
        Layout::ChannelsLast(3) => pixels,
        Layout::ChannelsLast(1) | Layout::ChannelsFirst(1) => pixels.iter().flat_map(|v| [*v; 3]).collect(),
        Layout::ChannelsLast(channels) => drop_alpha(pixels, channels),
        Layout::ChannelsFirst(_) => {
            let mut rgb = Vec::with_capacity(pixels.len());
            for image in pixels.chunks_exact(3 * area.max(1)) {
                rgb.extend((0..area).flat_map(|i| [image[i], image[area + i], image[2 * area + i]]));
            }
            rgb
        }
    }
}

/// Keeps the first three of the `channels` values of each pixel, in place.
pub(crate) fn drop_alpha(mut pixels: Vec<u8>, channels: usize) -> Vec<u8> {
    let count = pixels.len() / channels.max(1);
    for i in 0..count {
        pixels.copy_within(i * channels..i * channels + 3, 3 * i);
    }
    pixels.truncate(3 * count);
    pixels
}

/// The only image array among `arrays` (name, shape, whether float, description); `None` if there is none. Float arrays
/// count only if there is no integer array. Several image arrays are an error.
pub(crate) fn choose(
    path: &Path,
    arrays: impl Iterator<Item = (String, Vec<usize>, bool, String)>,
) -> Result<Option<String>> {
    let candidates: Vec<_> = arrays.filter(|(_, shape, ..)| layout(shape).is_ok()).collect();
    let integers = candidates.iter().any(|(_, _, float, _)| !float);
    let mut candidates: Vec<_> = candidates.into_iter().filter(|(_, _, float, _)| !(integers && *float)).collect();
    if candidates.len() > 1 {
        let first = candidates[0].0.clone();
        let found: Vec<_> = candidates.iter().map(|(name, .., shown)| format!("`{name}` {shown}")).collect();
        let expected = format!("one image array, or a choice, e.g. `{}::{first}`", path.display());
        return Err(Error::format(path, "arrays", expected, format!("{}: {}", found.len(), found.join(", "))));
    }
    Ok(candidates.pop().map(|(name, ..)| name))
}

/// Position of element `index`, counted in file order, in an array of `shape`.
pub(crate) fn unravel(mut index: usize, shape: &[usize], fortran_order: bool) -> Vec<usize> {
    let mut position = vec![0; shape.len()];
    let mut axis = |i: usize| {
        position[i] = index % shape[i].max(1);
        index /= shape[i].max(1);
    };
    if fortran_order {
        (0..shape.len()).for_each(&mut axis);
    } else {
        (0..shape.len()).rev().for_each(&mut axis);
    }
    position
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_are_read_only_where_they_mean_one_thing() {
        let dims = |height, width| ImageDims { height, width, channels: 3 };
        for (shape, expected) in [
            (&[5, 28, 30, 3][..], Layout::ChannelsLast(3)),
            (&[5, 28, 30, 1], Layout::ChannelsLast(1)),
            (&[5, 28, 30], Layout::ChannelsLast(1)),
            (&[5, 28, 30, 4], Layout::ChannelsLast(4)),
            (&[5, 3, 28, 30], Layout::ChannelsFirst(3)),
            (&[5, 1, 28, 30], Layout::ChannelsFirst(1)),
        ] {
            assert_eq!(layout(shape), Ok((expected, dims(28, 30))), "{shape:?}");
        }
        assert_eq!(layout(&[5, 1, 1, 3]), Ok((Layout::ChannelsLast(3), dims(1, 1))));
        for shape in [
            &[28, 28, 3][..],
            &[3, 28, 28],
            &[5, 3, 28, 4],
            &[5, 1, 28, 1],
            &[5, 28, 28, 2],
            &[5, 0, 28, 3],
            &[1, 30_000, 30_000, 3],
            &[5, 1 << 31, 1 << 31, 3],
            &[1 << 40, 1 << 40, 1 << 40, 3],
            &[5, 3],
            &[],
        ] {
            assert!(layout(shape).is_err(), "{shape:?}");
        }
    }

    #[test]
    fn every_layout_gives_the_same_image() {
        let dims = ImageDims { height: 1, width: 2, channels: 3 };
        let rgb = vec![1, 2, 3, 4, 5, 6];
        assert_eq!(to_rgb(Layout::ChannelsLast(3), dims, rgb.clone()), rgb);
        assert_eq!(to_rgb(Layout::ChannelsFirst(3), dims, vec![1, 4, 2, 5, 3, 6]), rgb);
        assert_eq!(to_rgb(Layout::ChannelsLast(4), dims, vec![1, 2, 3, 9, 4, 5, 6, 9]), rgb);
        assert_eq!(to_rgb(Layout::ChannelsLast(1), dims, vec![7, 8]), [7, 7, 7, 8, 8, 8]);
        assert_eq!(unravel(23, &[2, 3, 4], false), [1, 2, 3]);
        assert_eq!(unravel(1, &[2, 3, 4], true), [1, 0, 0]);
    }
}
