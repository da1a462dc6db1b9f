//! Weights by path. Every tensor is requested with its shape, and a load reports which tensors were read.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use crate::error::{Error, Result};
use d2o_checkpoint::TensorSource;

/// Position in a network, used as weight key, ONNX node name and path in errors, e.g. `model.enc.32x32_block0.conv0`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Scope(String);

impl Scope {
    /// The outermost scope.
    #[must_use]
    pub fn root() -> Self {
        Self::default()
    }

    /// The scope `name` inside this one.
    #[must_use]
    pub fn child(&self, name: impl fmt::Display) -> Self {
        Self(self.key(name))
    }

    /// Full path of the tensor or scope `name` inside this one.
    #[must_use]
    pub fn key(&self, name: impl fmt::Display) -> String {
        if self.0.is_empty() { name.to_string() } else { format!("{}.{name}", self.0) }
    }

    /// The path as text; empty for the root.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Initial values of a parameter that is not read from a checkpoint.
#[derive(Debug, Clone, PartialEq)]
pub enum Init {
    /// All elements equal.
    Constant(f32),
    /// These values, row-major.
    Values(Vec<f32>),
    /// Uniform on ±`bound`.
    Uniform {
        /// Half width.
        bound: f64,
    },
    /// Normal with mean 0.
    Normal {
        /// Standard deviation.
        std: f64,
    },
}

impl Init {
    /// Glorot and Bengio 2010: uniform on ±√(6/(fan_in+fan_out)), times `gain`.
    #[must_use]
    pub fn xavier_uniform(fan_in: usize, fan_out: usize, gain: f64) -> Self {
        Self::Uniform { bound: gain * (6.0 / (fan_in + fan_out) as f64).sqrt() }
    }

    /// He et al. 2015 in the form of EDM: uniform on ±√(3/fan_in), times `gain`.
    #[must_use]
    pub fn kaiming_uniform(fan_in: usize, gain: f64) -> Self {
        Self::Uniform { bound: gain * (3.0 / fan_in as f64).sqrt() }
    }

    /// PyTorch default for weight and bias of convolutions and linear layers: uniform on ±1/√fan_in.
    #[must_use]
    pub fn torch_default(fan_in: usize) -> Self {
        Self::Uniform { bound: 1.0 / (fan_in as f64).sqrt() }
    }

    /// The `count` initial values of the tensor `path` with this `seed`. [`Init::Values`] are returned unchanged.
    ///
    /// The random generator is SplitMix64 with the initial state `seed ^ FNV-1a64(path)`, so the values depend only on
    /// seed and path. A uniform number uses the top 24 bits of a word. A normal number is the cosine branch of
    /// Box–Muller, applied to two uniform numbers.
    #[must_use]
    pub fn values(&self, seed: u64, path: &str, count: usize) -> Vec<f32> {
        let mut rng = SplitMix64::for_path(seed, path);
        match self {
            Self::Constant(v) => vec![*v; count],
            Self::Values(v) => v.clone(),
            Self::Uniform { bound } => (0..count).map(|_| narrow((rng.uniform() * 2.0 - 1.0) * bound)).collect(),
            Self::Normal { std } => (0..count).map(|_| narrow(rng.normal() * std)).collect(),
        }
    }
}

#[allow(clippy::cast_possible_truncation, reason = "initial values are stored as f32")]
fn narrow(v: f64) -> f32 {
    v as f32
}

/// The random generator of [`Init`]: SplitMix64 (Steele, Lea and Flood 2014).
#[derive(Debug, Clone)]
pub struct SplitMix64(u64);

impl SplitMix64 {
    /// The generator for the tensor `path` with this `seed`.
    #[must_use]
    pub fn for_path(seed: u64, path: &str) -> Self {
        const FNV_OFFSET: u64 = 0xcbf2_9ce4_8422_2325;
        const FNV_PRIME: u64 = 0x0000_0100_0000_01b3;
        let hash = path.bytes().fold(FNV_OFFSET, |h, b| (h ^ u64::from(b)).wrapping_mul(FNV_PRIME));
        Self(seed ^ hash)
    }

    /// Next 64-bit word.
    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Next uniform number on [0, 1), 24 bits.
    pub fn uniform(&mut self) -> f64 {
        (self.next_u64() >> 40) as f64 / f64::from(1u32 << 24)
    }

    /// Next standard normal number.
    pub fn normal(&mut self) -> f64 {
        let (u, v) = (self.uniform(), self.uniform());
        (-2.0 * (1.0 - u).ln()).sqrt() * (std::f64::consts::TAU * v).cos()
    }
}

/// Source of the tensors of a network, and the tensors taken so far.
pub struct Weights {
    source: Source,
    replaced: BTreeMap<String, Vec<f32>>,
    taken: BTreeMap<String, Vec<usize>>,
    may_remain: BTreeSet<String>,
}

enum Source {
    Checkpoint { tensors: Box<dyn TensorSource>, prefix: String },
    Initializer { seed: u64 },
}

impl fmt::Debug for Weights {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Weights").field("taken", &self.taken.len()).finish_non_exhaustive()
    }
}

/// Summary of a finished load.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoadReport {
    /// Number of tensors read.
    pub tensors: usize,
    /// Number of scalars read.
    pub scalars: usize,
    /// Tensors of the checkpoint that were not read, in the order of the checkpoint.
    pub unused: Vec<String>,
}

impl Weights {
    /// Weights from a checkpoint. Only tensors with names that start with `prefix` are used; it may be empty.
    #[must_use]
    pub fn checkpoint(tensors: Box<dyn TensorSource>, prefix: &str) -> Self {
        Self {
            source: Source::Checkpoint { tensors, prefix: prefix.to_owned() },
            replaced: BTreeMap::new(),
            taken: BTreeMap::new(),
            may_remain: BTreeSet::new(),
        }
    }

    /// Weights initialised by [`Init::values`] from `seed`.
    #[must_use]
    pub fn initialised(seed: u64) -> Self {
        Self {
            source: Source::Initializer { seed },
            replaced: BTreeMap::new(),
            taken: BTreeMap::new(),
            may_remain: BTreeSet::new(),
        }
    }

    /// Allows tensors of the checkpoint with these `paths` to remain unread.
    #[must_use]
    pub fn allowing_unused(mut self, paths: impl IntoIterator<Item = String>) -> Self {
        self.may_remain.extend(paths);
        self
    }

    /// Replaces values of the source, by path.
    #[must_use]
    pub fn replacing(mut self, values: BTreeMap<String, Vec<f32>>) -> Self {
        self.replaced.extend(values);
        self
    }

    /// Whether the source contains `path`; always true for initialised weights.
    #[must_use]
    pub fn contains(&self, path: &str) -> bool {
        match &self.source {
            Source::Checkpoint { tensors, prefix } => tensors.info(&format!("{prefix}{path}")).is_some(),
            Source::Initializer { .. } => true,
        }
    }

    /// Takes the tensor `scope.name` of shape `dims` as row-major f32. Without a checkpoint, `init` gives the values.
    ///
    /// # Errors
    /// `MissingTensor` if the checkpoint lacks the tensor, `ShapeMismatch` if it or its replacement has another shape,
    /// `DuplicateTensor` if it was taken before; errors of reading it.
    pub fn take(&mut self, scope: &Scope, name: &str, dims: &[usize], init: &Init) -> Result<Vec<f32>> {
        let path = scope.key(name);
        if self.taken.insert(path.clone(), dims.to_vec()).is_some() {
            return Err(Error::DuplicateTensor { path });
        }
        match &self.source {
            Source::Initializer { seed } => {
                let count = dims.iter().product();
                let values = match self.replaced.get(&path) {
                    Some(values) => values.clone(),
                    None => init.values(*seed, &path, count),
                };
                filling(values, path, dims)
            }
            Source::Checkpoint { tensors, prefix } => {
                let full = format!("{prefix}{path}");
                let info = tensors.info(&full).ok_or_else(|| Error::MissingTensor {
                    similar: similar_names(&full, &tensors.names()),
                    path: full.clone(),
                })?;
                if info.dims != dims {
                    return Err(Error::ShapeMismatch { path: full, expected: dims.to_vec(), found: info.dims });
                }
                match self.replaced.get(&path) {
                    Some(values) => filling(values.clone(), path, dims),
                    None => Ok(tensors.read_f32(&full)?),
                }
            }
        }
    }

    /// Ends the load and checks that every tensor of the checkpoint was read or may remain unread.
    ///
    /// # Errors
    /// `UnusedTensors` with the other tensors.
    pub fn finish(&self) -> Result<LoadReport> {
        let report = self.report();
        let paths: Vec<_> = report.unused.iter().filter(|p| !self.may_remain.contains(*p)).cloned().collect();
        if paths.is_empty() { Ok(report) } else { Err(Error::UnusedTensors { paths }) }
    }

    /// Path and dimensions of the tensors taken so far, sorted by path.
    pub fn taken(&self) -> impl Iterator<Item = (&str, &[usize])> {
        self.taken.iter().map(|(path, dims)| (path.as_str(), dims.as_slice()))
    }

    /// Summary of the load so far.
    #[must_use]
    pub fn report(&self) -> LoadReport {
        let unused = match &self.source {
            Source::Initializer { .. } => Vec::new(),
            Source::Checkpoint { tensors, prefix } => tensors
                .names()
                .into_iter()
                .filter_map(|n| n.strip_prefix(prefix.as_str()).map(str::to_owned))
                .filter(|n| !self.taken.contains_key(n))
                .collect(),
        };
        LoadReport {
            tensors: self.taken.len(),
            scalars: self.taken.values().map(|d| d.iter().product::<usize>()).sum(),
            unused,
        }
    }
}

/// `values`, if their number matches `dims`.
fn filling(values: Vec<f32>, path: String, dims: &[usize]) -> Result<Vec<f32>> {
    if Some(values.len()) == dims.iter().try_fold(1, |n: usize, d| n.checked_mul(*d)) {
        Ok(values)
    } else {
        Err(Error::ShapeMismatch { path, expected: dims.to_vec(), found: vec![values.len()] })
    }
}

/// Up to three names of `among` that resemble `path`. Names with the same last part come first, then those with the
/// longest common start and end.
fn similar_names(path: &str, among: &[String]) -> Vec<String> {
    const SHOWN: usize = 3;
    let leaf = |p: &str| p.rsplit('.').next().unwrap_or(p).to_owned();
    let common = |a: &str, b: &str| a.bytes().zip(b.bytes()).take_while(|(x, y)| x == y).count();
    let tail = |a: &str, b: &str| a.bytes().rev().zip(b.bytes().rev()).take_while(|(x, y)| x == y).count();
    let mut scored: Vec<_> = among
        .iter()
        .map(|n| (usize::from(leaf(n) == leaf(path)), common(n, path) + tail(n, path), n))
        .filter(|(_, score, _)| *score > 0)
        .collect();
    scored.sort_by(|a, b| (b.0, b.1).cmp(&(a.0, a.1)).then(a.2.cmp(b.2)));
    scored.into_iter().take(SHOWN).map(|(_, _, n)| n.clone()).collect()
}
