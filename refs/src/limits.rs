//! How much the contents of a container may unpack to, and how much of them is held at a time.

use std::path::Path;

use d2o_budget::Exceeded;

use crate::batch::{ImageDims, ImageSource};
use crate::error::{Error, Result};

/// Bytes that a container of any size may unpack to: the largest image alone has 0.7 GB.
const FREE: u64 = 768 << 20;
/// Bytes that each byte of a container may unpack to, beside [`FREE`]: dSprites, a published set of outlines, packs 115 into one.
const PER_BYTE: u64 = 128;
/// Bytes of decoded images that are held at a time, unless a single image has more.
pub const HELD: usize = 64 << 20;

/// What the contents of a container may still unpack to. A small file that unpacks to very much is refused before it is unpacked.
#[derive(Debug, Clone)]
pub struct Unpacked {
    packed: u64,
    found: u64,
}

impl Unpacked {
    /// Of a container of `packed` bytes.
    #[must_use]
    pub fn of(packed: u64) -> Self {
        Self { packed, found: 0 }
    }

    /// Adds to the size of the container, where it is not known from the start.
    pub fn pack(&mut self, bytes: u64) {
        self.packed = self.packed.saturating_add(bytes);
    }

    /// Charges `bytes` that `place` in `file` unpacks to.
    ///
    /// # Errors
    /// `Format` if that is more than is left.
    pub fn add(&mut self, file: &Path, place: &str, bytes: u64) -> Result<()> {
        self.found = self.found.saturating_add(bytes);
        let most = FREE.saturating_add(self.packed.saturating_mul(PER_BYTE));
        if self.found <= most {
            return Ok(());
        }
        let expected = format!("at most {most} bytes when unpacked, of {} packed", self.packed);
        Err(Error::format(file, place, expected, format!("{} or more", self.found)))
    }

    /// Charges the pixels of all images of `source`.
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

/// The error that `place` in `file` asks for more than its size explains.
pub(crate) fn exceeded(file: &Path, place: &str) -> impl Fn(Exceeded) -> Error {
    move |e| Error::format(file, place, e.expected(), "more")
}
