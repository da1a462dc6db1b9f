//! Preconditioners: D(x; σ) = c_skip·x + c_out·F(c_in·x; c_noise). One file each.

pub mod d2o;
pub mod ecm;
pub mod edm;
pub mod gaussian;
pub mod iddpm;
pub mod karras;
pub mod ve;
pub mod vp;

mod consistency;
mod discrete;
mod levels;
mod preconditioner;

pub use levels::Levels;
pub use preconditioner::{Coefficients, Convention, Preconditioner, Scalars};
