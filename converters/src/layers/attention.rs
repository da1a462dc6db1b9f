//! Self-attention over the pixels of a feature map.

use crate::backend::{Backend, signed};
use crate::error::Result;

/// Attention of `[queries, keys, values]`, each `[N·heads, depth, pixels]`, with logits scaled by 1/√depth. The result
/// is `[N·heads, depth, pixels]`.
pub(crate) fn attend<B: Backend>(b: &mut B, [q, k, v]: &[B::Value; 3], depth: usize) -> Result<B::Value> {
    let q = b.transpose(q, &[0, 2, 1])?;
    let k = b.scale(k, 1.0 / (depth as f64).sqrt())?;
    let logits = b.matmul(&q, &k)?;
    let weights = b.softmax(&logits, 2)?;
    let weights = b.transpose(&weights, &[0, 2, 1])?;
    b.matmul(v, &weights)
}

/// Channel order of a convolution that computes queries, keys and values together. Each variant gives the position of
/// channel c in head h of tensor j (0 to 2: queries, keys, values), for C channels in heads of d channels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum QkvOrder {
    /// `j·C + h·d + c`.
    ByTensor,
    /// `h·3·d + j·d + c`.
    ByHead,
    /// `h·3·d + 3·c + j`.
    Interleaved,
}

impl QkvOrder {
    /// Splits `qkv [N, 3·channels, height, width]` into queries, keys and values, each of shape
    /// `[N·heads, depth, height·width]`.
    pub(crate) fn split<B: Backend>(
        self,
        b: &mut B,
        qkv: &B::Value,
        channels: usize,
        heads: usize,
        pixels: usize,
    ) -> Result<[B::Value; 3]> {
        let (depth, area) = (channels / heads, signed(pixels));
        let per_head = [-1, signed(depth), area];
        let whole = match self {
            Self::Interleaved => Some(b.reshape(qkv, &[-1, signed(depth), 3, area])?),
            Self::ByTensor | Self::ByHead => None,
        };
        let mut part = |j: usize| match (self, &whole) {
            (_, Some(whole)) => {
                let t = b.slice(whole, 2, j, 1)?;
                b.reshape(&t, &per_head)
            }
            (Self::ByHead, None) => {
                let h = b.reshape(qkv, &[-1, signed(3 * depth), area])?;
                b.slice(&h, 1, j * depth, depth)
            }
            (_, None) => {
                let h = b.reshape(qkv, &[-1, signed(3 * channels), area])?;
                let t = b.slice(&h, 1, j * channels, channels)?;
                b.reshape(&t, &per_head)
            }
        };
        Ok([part(0)?, part(1)?, part(2)?])
    }
}
