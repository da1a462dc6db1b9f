//! The trained part of a discriminator.

use d2o_converters::backend::{Backend as _, Conv2d};
use d2o_converters::error::Result;
use d2o_converters::weights::{Init, Scope};

use super::class_map::{ClassMap, MAPPED};
use super::projector::WIDTH;
use super::sizes::{SCALES, Sizes, nearest_size};
use crate::train::libtorch::{LibTorch, Value, int};

/// One small discriminator for each map.
#[derive(Debug, Clone)]
pub(super) struct MultiScaleHeads {
    heads: Vec<Head>,
}

#[derive(Debug, Clone)]
struct Head {
    downs: Vec<Down>,
    last: NormedConv,
    classes: Option<ClassMap>,
}

#[derive(Debug, Clone)]
struct Down {
    conv: NormedConv,
    weight: Value,
    bias: Value,
}

/// Spectrally normalised convolution: `weight_orig`, `weight_u [out]`, `weight_v [in·k·k]`, optional `bias`.
#[derive(Debug, Clone)]
struct NormedConv {
    scope: Scope,
    weight: Value,
    u: Value,
    v: Value,
    bias: Option<Value>,
    options: Conv2d,
}

impl NormedConv {
    fn build(
        b: &mut LibTorch,
        scope: Scope,
        inputs: usize,
        outputs: usize,
        kernel: usize,
        bias: bool,
        options: Conv2d,
    ) -> Result<Self> {
        let fan_in = inputs * kernel * kernel;
        let init = Init::torch_default(fan_in);
        let bias = if bias { Some(b.param(&scope, "bias", &[outputs], &init)?) } else { None };
        let weight = b.param(&scope, "weight_orig", &[outputs, inputs, kernel, kernel], &init)?;
        let unit = |n: usize| Init::Normal { std: 1.0 / (n as f64).sqrt() };
        let u = b.state(&scope, "weight_u", &[outputs], &unit(outputs))?;
        let v = b.state(&scope, "weight_v", &[fan_in], &unit(fan_in))?;
        Ok(Self { scope, weight, u, v, bias, options })
    }

    fn forward(&self, b: &mut LibTorch, x: &Value) -> Result<Value> {
        b.enter(&self.scope);
        let w = b.spectral_norm(&self.weight, &self.u, &self.v)?;
        b.conv2d(x, &w, self.bias.as_ref(), self.options)
    }
}

impl MultiScaleHeads {
    /// Takes `discriminators.<backbone>.mini_discs.*`. `classes` gives the initial values of the class tables
    /// `[1000, 320]` of a conditional discriminator.
    pub(super) fn build(b: &mut LibTorch, backbone: &str, sizes: &Sizes, classes: Option<&Init>) -> Result<Self> {
        const MAP_CHANNELS: [usize; SCALES] = [WIDTH, WIDTH, 2 * WIDTH, 4 * WIDTH];
        let (end, kernel) = (sizes.end(), sizes.kernel());
        let discs = Scope::root().child("discriminators").child(backbone).child("mini_discs");
        let mut heads = Vec::new();
        for (k, (inputs, start)) in MAP_CHANNELS.into_iter().zip(sizes.nominal).enumerate() {
            let scope = discs.child(k);
            let mut size = nearest_size(start);
            let (mut downs, mut width) = (Vec::new(), inputs);
            while size > end {
                size /= 2;
                let layer = scope.child("main").child(downs.len()).child("main");
                let outputs = table_width(size);
                let options = Conv2d { stride: 2, pads: [1; 4], groups: 1 };
                let conv = NormedConv::build(b, layer.child(0), width, outputs, 4, true, options)?;
                let norm = layer.child(1);
                let weight = b.param(&norm, "weight", &[outputs], &Init::Constant(1.0))?;
                let bias = b.param(&norm, "bias", &[outputs], &Init::Constant(0.0))?;
                downs.push(Down { conv, weight, bias });
                width = outputs;
            }
            let options = Conv2d::padded(0);
            let (last, classes) = match classes {
                Some(rows) => {
                    let last = NormedConv::build(b, scope.child("cls"), width, MAPPED, kernel, false, options)?;
                    (last, Some(ClassMap::build(b, scope, rows)?))
                }
                None => {
                    let layer = scope.child("main").child(downs.len());
                    (NormedConv::build(b, layer, width, 1, kernel, false, options)?, None)
                }
            };
            heads.push(Head { downs, last, classes });
        }
        Ok(Self { heads })
    }

    /// Logits `[N, L]` of the maps of a projector, head 0 first. `labels [N, label_dim]` are one-hot and belong to a
    /// conditional discriminator.
    pub(super) fn forward(&self, b: &mut LibTorch, maps: &[Value], labels: Option<&Value>) -> Result<Value> {
        let mut logits = Vec::new();
        for (head, map) in self.heads.iter().zip(maps) {
            let mut x = map.clone();
            for down in &head.downs {
                x = down.conv.forward(b, &x)?;
                x = b.batch_norm(&x, 1e-5, &down.weight, &down.bias, None)?;
                x = b.leaky_relu(&x, 0.2)?;
            }
            x = head.last.forward(b, &x)?;
            if let (Some(classes), Some(labels)) = (&head.classes, labels) {
                x = classes.forward(b, &x, labels)?;
            }
            let count = b.dim(&x, 2).unwrap_or(0) * b.dim(&x, 3).unwrap_or(0);
            logits.push(b.reshape(&x, &[-1, int(count)])?);
        }
        b.concat(&logits, 1)
    }
}

/// Channels of a head at a nominal map size (table of MiDaS, as used by Projected GAN).
fn table_width(size: usize) -> usize {
    const TABLE: [(usize, usize); 11] = [
        (1, 2048),
        (2, 1024),
        (4, 512),
        (8, 512),
        (16, 256),
        (32, 128),
        (64, 64),
        (128, 64),
        (256, 32),
        (512, 16),
        (1024, 8),
    ];
    TABLE.iter().find(|(s, _)| *s == size).map_or(8, |(_, w)| *w)
}
