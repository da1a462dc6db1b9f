//! Limits on the unpacked size of containers and on the decoded images held at a time.

use std::path::Path;

use d2o_budget::Exceeded;

use crate::batch::{ImageDims, ImageSource};
use crate::error::{Error, Result};

/// Bytes that a container of any size can unpack to. The largest image accepted has 0.7 GB.
const FREE: u64 = 768 << 20;
/// Bytes that a container can unpack to per byte of its size, in addition to [`FREE`]. The published dataset dSprites
/// needs 115.
const PER_BYTE: u64 = 128;
/// Bytes of decoded images that are held at a time, unless a single image is larger.
pub const HELD: usize = 64 << 20;

/// Counts the unpacked size of a container against its limit. A small file that unpacks to a large size is rejected
/// before it is unpacked.
#[derive(Debug, Clone)]
pub struct Unpacked {
    packed: u64,
    found: u64,
}

impl Unpacked {
    /// Starts the count for a container of `packed` bytes.
    #[must_use]
    pub fn of(packed: u64) -> Self {
        Self { packed, found: 0 }
    }

    /// Adds the `bytes` that `place` in `file` unpacks to.
    ///
    /// # Errors
    /// `Format` if the limit is exceeded.
    pub fn add(&mut self, file: &Path, place: &str, bytes: u64) -> Result<()> {
        self.found = self.found.saturating_add(bytes);
        let most = FREE.saturating_add(self.packed.saturating_mul(PER_BYTE));
        if self.found <= most {
            return Ok(());
        }
        let expected = format!("at most {most} bytes when unpacked, of {} packed", self.packed);
        Err(Error::format(file, place, expected, format!("{} or more", self.found)))
    }

    /// Adds the RGB pixels of all images of `source`.
    pub(crate) fn images(mut self, source: &dyn ImageSource) -> Result<()> {
        let bytes = |d: ImageDims| (d.height as u64).saturating_mul(d.width as u64).saturating_mul(3);
        if let Some(dims) = source.dims() {
            return self.add(source.container(), "images", bytes(dims).saturating_mul(source.len() as u64));
        }
        (0..source.len())
            .filter_map(|i| source.size(i))
            .try_for_each(|d| self.add(source.container(), "images", bytes(d)))
    }
}

/// `Format` for `place` in `file`, which needs more memory or steps than the size of the file allows.
pub(crate) fn exceeded(file: &Path, place: &str) -> impl Fn(Exceeded) -> Error {
    move |e| Error::format(file, place, e.expected(), "more")
}
