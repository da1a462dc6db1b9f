//! Networks that generate images, one folder each: denoisers (a backbone and a preconditioner) and single-evaluation
//! generators.

pub mod args;
pub mod backbone;
pub mod dhariwal;
pub mod inferred;
pub mod latent;
pub mod openai;
pub mod precond;
pub mod song;
pub mod stylegan2;

mod edm_block;
