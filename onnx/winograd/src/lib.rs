//! Convolutions of stride 1 by Winograd's minimal filtering, on images in blocks of channels.
//!
//! Kernels over arrays: no runtime, no graph. The loops want their sums unchecked, so this crate alone is built without overflow checks; what reads files is
//! not here.
//!
//! ```
//! use d2o_winograd::{Convolution, Images, Pool};
//!
//! let (weights, image) = (vec![1.0; 8 * 8 * 9], vec![1.0; 8 * 4 * 4]);
//! let convolution = Convolution::new(&weights, [8, 8, 3, 3], None, [1; 4], false, 8).ok_or("an unsuited shape")?;
//! let mut out = vec![0.0; 8 * 4 * 4];
//! let images = Images { values: &image, sum: None, batch: 1, height: 4, width: 4 };
//! convolution.run(&images, &mut out, &Pool::default(), |tasks, task| {
//!     (0..tasks).for_each(task);
//!     Ok::<(), ()>(())
//! }).map_err(|()| "a task failed")?;
//! // A corner sees four pixels of each of the eight channels.
//! assert!((out[0] - 32.0).abs() < 1e-4);
//! # Ok::<(), &str>(())
//! ```
#![forbid(unsafe_code)]
#![deny(missing_docs)]

mod axis;
mod convolution;

pub use convolution::{Convolution, Images, Pool};
