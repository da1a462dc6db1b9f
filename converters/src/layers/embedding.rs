//! Sinusoidal embeddings of noise levels and time steps.

use std::f64::consts::TAU;

use crate::backend::{Backend, Ops as _};
use crate::error::{Error, Result};
use crate::weights::{Init, Scope};

/// Embedding of the noise level: `[N]` -> `[N, channels]`.
#[derive(Debug, Clone)]
pub struct NoiseEmbedding<V> {
    scope: Scope,
    freqs: V,
    sin_first: bool,
}

impl<V: Clone> NoiseEmbedding<V> {
    /// Fixed frequencies 10000^(-i/(channels/2 - e)) with e = 1 if `endpoint`, else 0. The result is `[sin | cos]` if
    /// `sin_first`, else `[cos | sin]`.
    ///
    /// # Errors
    /// `Engine` if an operation fails.
    pub fn positional<B: Backend<Value = V>>(
        b: &mut B,
        scope: Scope,
        channels: usize,
        endpoint: bool,
        sin_first: bool,
    ) -> Result<Self> {
        let half = channels / 2;
        let last = half - usize::from(endpoint);
        #[allow(clippy::cast_precision_loss, reason = "small counts")]
        let frequency = |i: usize| {
            if b.in_f64() {
                1e-4_f64.powf(i as f64 / last as f64)
            } else {
                f64::from(1e-4_f32.powf(i as f32 / last as f32))
            }
        };
        let freqs: Vec<f64> = (0..half).map(frequency).collect();
        let freqs = b.constant(&scope, "freqs", &[1, half], freqs)?;
        Ok(Self { scope, freqs, sin_first })
    }

    /// Fixed frequencies exp(-ln 10000 · i/(channels/2)), for time steps up to thousands. The result is `[cos | sin]`.
    ///
    /// # Errors
    /// `Config` if the number of channels is odd or 0; `Engine` if an operation fails.
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_precision_loss,
        reason = "in f32 step by step, as the original: a last-place error of a frequency times a thousand is an error of the angle"
    )]
    pub fn timestep<B: Backend<Value = V>>(b: &mut B, scope: Scope, channels: usize) -> Result<Self> {
        const PERIOD: f64 = 10000.0;
        if channels < 2 || !channels.is_multiple_of(2) {
            return Err(Error::Config { what: format!("`model_channels`: expected an even number, found {channels}") });
        }
        let half = channels / 2;
        let freqs: Vec<f32> =
            (0..half).map(|i| f64::from(-PERIOD.ln() as f32 * i as f32 / half as f32).exp() as f32).collect();
        let freqs = b.constant(&scope, "freqs", &[1, half], freqs)?;
        Ok(Self { scope, freqs, sin_first: false })
    }

    /// Random frequencies from the buffer `freqs [channels/2]`. They are multiplied by 2π first, then by the noise
    /// level.
    ///
    /// # Errors
    /// Those of [`Backend::buffer`].
    pub fn fourier<B: Backend<Value = V>>(b: &mut B, scope: Scope, channels: usize, sin_first: bool) -> Result<Self> {
        const SCALE: f64 = 16.0;
        let half = channels / 2;
        let freqs = b.buffer(&scope, "freqs", &[half], &Init::Normal { std: SCALE })?;
        #[allow(clippy::cast_possible_truncation, reason = "in f32, as the original")]
        let angular = |f: &f32| if b.in_f64() { TAU * f64::from(*f) } else { f64::from(TAU as f32 * f) };
        let freqs: Vec<f64> = freqs.iter().map(angular).collect();
        let freqs = b.constant(&scope, "angular_freqs", &[1, half], freqs)?;
        Ok(Self { scope, freqs, sin_first })
    }

    /// `t [N]` -> `[N, channels]`.
    ///
    /// # Errors
    /// `Engine` if an operation fails.
    pub fn forward<B: Backend<Value = V>>(&self, b: &mut B, t: &V) -> Result<V> {
        b.enter(&self.scope);
        let t = b.reshape(t, &[-1, 1])?;
        let angle = b.mul(&t, &self.freqs)?;
        let (cos, sin) = (b.cos(&angle)?, b.sin(&angle)?);
        let parts = if self.sin_first { [sin, cos] } else { [cos, sin] };
        b.concat(&parts, 1)
    }
}
