//! Statistics of a set of images, computed in one pass.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

use anyhow::Context as _;
use d2o_evaluations::gaussian::Accumulator;
use d2o_evaluations::inception_score::{ScoreRule, ScoreSums};
use d2o_refs::features::{FeatureWriter, MATRICES, Meta};
use ndarray::Array2;

use super::network::Network;
use super::pass::{PassOptions, PassSummary};
use super::source::Source;

/// Statistics to compute from a set.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StatsRequest {
    /// Moments of the features.
    pub features: bool,
    /// The features themselves.
    pub keep: bool,
    /// Inception Scores.
    pub scores: Vec<ScoreRule>,
    /// Moments of the spatial features.
    pub spatial: bool,
    /// Moments of the CLIP features.
    pub clip: bool,
    /// The features of another network, for precision and recall.
    pub manifold: bool,
}

impl StatsRequest {
    /// Everything that either request asks for.
    #[must_use]
    pub fn union(&self, other: &Self) -> Self {
        let mut scores = self.scores.clone();
        scores.extend(other.scores.iter().filter(|s| !self.scores.contains(s)));
        Self {
            features: self.features || other.features,
            keep: self.keep || other.keep,
            scores,
            spatial: self.spatial || other.spatial,
            clip: self.clip || other.clip,
            manifold: self.manifold || other.manifold,
        }
    }

    /// Matrices of feature files that the request needs.
    #[must_use]
    pub fn matrices(&self) -> Vec<&'static str> {
        let needed = [self.features || self.keep, !self.scores.is_empty(), self.spatial, self.clip, self.manifold];
        MATRICES.into_iter().zip(needed).filter(|(_, needed)| *needed).map(|(name, _)| name).collect()
    }

    /// Whether nothing is requested.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.matrices().is_empty()
    }
}

/// Statistics of a set.
#[derive(Debug)]
pub struct SetStatistics {
    /// Moments of the features.
    pub features: Option<Accumulator>,
    /// The features, `[N, D]`.
    pub kept: Option<Array2<f32>>,
    /// Sums of class probabilities, by rule.
    pub scores: Vec<(ScoreRule, ScoreSums)>,
    /// Moments of the spatial features.
    pub spatial: Option<Accumulator>,
    /// Moments of the CLIP features.
    pub clip: Option<Accumulator>,
    /// The features of another network, for precision and recall, `[N, D]`.
    pub manifold: Option<Array2<f32>>,
    /// Summary of the pass.
    pub summary: PassSummary,
}

/// Computes what `request` asks for from images `range` of `source`. With `writer`, all rows are also written to it.
///
/// # Errors
/// Those of [`Source::pass`]; if `source` lacks a requested matrix.
pub fn statistics(
    source: &mut Source,
    range: Range<usize>,
    networks: &mut [Network],
    request: &StatsRequest,
    options: &PassOptions<'_>,
    mut writer: Option<&mut FeatureWriter>,
) -> anyhow::Result<SetStatistics> {
    let width = |matrix: &str| {
        let needed = format!("no network or file provides `{matrix}`, which the metrics require");
        source.width(matrix, networks, &options.rule).context(needed)
    };
    let moments = |matrix: &str, wanted: bool| wanted.then(|| width(matrix).map(Accumulator::new)).transpose();
    let mut features = moments("features", request.features)?;
    let mut spatial = moments("spatial", request.spatial)?;
    let mut clip = moments("clip", request.clip)?;
    let len = range.len();
    let sums = |rule: &ScoreRule| anyhow::Ok((*rule, ScoreSums::new(*rule, len, width("logits")?)?));
    let mut scores: Vec<(ScoreRule, ScoreSums)> = request.scores.iter().map(sums).collect::<anyhow::Result<_>>()?;
    let rows = |matrix: &str, wanted: bool| {
        let dims = wanted.then(|| width(matrix)).transpose()?;
        anyhow::Ok(dims.map(|dims| (dims, Vec::with_capacity(len * dims))))
    };
    let (mut kept, mut manifold) = (rows("features", request.keep)?, rows("manifold", request.manifold)?);
    let wanted = if writer.is_some() { MATRICES.to_vec() } else { request.matrices() };
    let summary = source.pass(range, networks, &wanted, options, &mut |rows| {
        for (name, sums) in [("features", &mut features), ("spatial", &mut spatial), ("clip", &mut clip)] {
            if let (Some(sums), Some(rows)) = (sums, rows.get(name)) {
                sums.push(rows)?;
            }
        }
        if let Some(rows) = rows.get("logits") {
            for (_, sums) in &mut scores {
                sums.push(rows)?;
            }
        }
        for (name, kept) in [("features", &mut kept), ("manifold", &mut manifold)] {
            if let (Some((_, kept)), Some(rows)) = (kept, rows.get(name)) {
                kept.extend(rows.iter());
            }
        }
        if let Some(writer) = &mut writer {
            let matrices: Vec<_> = rows.matrices.iter().map(|(n, m)| (*n, m.view())).collect();
            writer.append(&rows.digests, &matrices)?;
        }
        Ok(())
    })?;
    [&mut features, &mut spatial, &mut clip].into_iter().flatten().for_each(Accumulator::flush);
    let matrix = |kept: Option<(usize, Vec<f32>)>| {
        kept.map(|(dims, rows)| Array2::from_shape_vec((len, dims), rows)).transpose()
    };
    Ok(SetStatistics { features, kept: matrix(kept)?, scores, spatial, clip, manifold: matrix(manifold)?, summary })
}

/// Writes the features of images `range` of `source` to `path`.
///
/// # Errors
/// If the source holds features instead of images, or writing fails; those of [`Source::pass`].
pub fn save(
    source: &mut Source,
    range: Range<usize>,
    networks: &mut [Network],
    options: &PassOptions<'_>,
    path: &Path,
) -> anyhow::Result<()> {
    let meta = meta_of(source, range.clone(), networks, options)?;
    let labels = source.labels().map(|l| l[range.clone()].to_vec());
    let mut writer = FeatureWriter::create(path, meta)?;
    source.pass(range, networks, &MATRICES, options, &mut |rows| {
        let matrices: Vec<_> = rows.matrices.iter().map(|(n, m)| (*n, m.view())).collect();
        Ok(writer.append(&rows.digests, &matrices)?)
    })?;
    Ok(writer.finish(labels.as_deref())?)
}

/// Meta data of a feature file for images `range` of `source`.
///
/// # Errors
/// If the source holds features instead of images, the networks do not take the images, or reading fails.
pub fn meta_of(
    source: &Source,
    range: Range<usize>,
    networks: &[Network],
    options: &PassOptions<'_>,
) -> anyhow::Result<Meta> {
    let origin = match source {
        Source::Images { origin, .. } | Source::Fused { origin, .. } => origin,
        Source::Features { .. } => {
            anyhow::bail!("cannot save features: the samples are features already, not images")
        }
    };
    let images = source.image_dims();
    let describe = |n: &Network| {
        let record = n.spec.record(images, &options.rule)?;
        Ok((n.spec.role.name().to_owned(), serde_json::to_value(record)?))
    };
    Ok(Meta {
        d2o_features: 0,
        source_sha256: origin.sha256()?,
        total: source.len(),
        rows: range,
        images,
        batch: options.batch,
        networks: networks.iter().map(describe).collect::<anyhow::Result<_>>()?,
        generator: source.generator_record().cloned(),
        sha256: BTreeMap::new(),
    })
}
