#![doc = include_str!("../README.md")]
#![deny(missing_docs)]

mod error;
#[cfg(any(feature = "ort", feature = "tract"))]
mod inputs;
mod session;
mod tensor;

#[cfg(feature = "ort")]
pub mod cuda;
#[cfg(feature = "ort")]
pub mod ort;
#[cfg(feature = "ort")]
mod placement;
#[cfg(feature = "tract")]
pub mod tract;
#[cfg(feature = "ort")]
mod winograd;

pub use error::{Error, Result};
/// The arrays of [`Tensor`] and [`TensorView`].
pub use ndarray;
pub use session::{PlacedNode, Session, SessionValue};
pub use tensor::{Tensor, TensorView};
