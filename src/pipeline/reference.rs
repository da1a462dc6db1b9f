//! What samples are compared with.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::Context as _;
use d2o_evaluations::frechet::Gaussian;
use d2o_evaluations::gaussian::Accumulator;
use d2o_refs::features::NetworkMeta;
use d2o_refs::npz::{IMAGES, Npz};
use d2o_refs::stats::ReferenceStats;
use ndarray::{Array1, Array2};
use serde_json::Value;

use crate::pipeline::network::{Network, Role};
use crate::pipeline::pass::{How, Set, Walk, Wants, sums};

/// The reference, as far as the metrics need it.
pub struct Reference {
    /// Moments of the features.
    pub features: Option<Gaussian>,
    /// Moments of the spatial features.
    pub spatial: Option<Gaussian>,
    /// Moments of CLIP's features.
    pub clip: Option<Gaussian>,
    /// The features.
    pub rows: Option<Array2<f32>>,
    /// What enters precision and recall instead.
    pub manifold: Option<Array2<f32>>,
    /// Class of each image.
    pub labels: Option<Vec<i64>>,
    /// Number of images.
    pub count: Option<usize>,
    /// Hash and name of the network it was made with, by role, where it says so.
    networks: BTreeMap<Role, (String, String)>,
}

fn gaussian((mu, sigma): (Array1<f64>, Array2<f64>)) -> Gaussian {
    Gaussian { mu, sigma }
}

fn networks_in(walk: &Walk) -> BTreeMap<Role, (String, String)> {
    let made_by = |role: Role| {
        let network = walk.networks.get(role.name())?;
        Some((role, (network.sha256.clone(), network.name.clone())))
    };
    Role::ALL.into_iter().filter_map(made_by).collect()
}

impl Reference {
    /// Reads `path`, and takes features of the images in it where statistics do not suffice.
    ///
    /// # Errors
    /// A file that is no reference; images the networks do not take; those of the runtime.
    pub fn open(path: &Path, networks: &mut [Network], wants: &Wants, how: &How<'_>) -> anyhow::Result<Self> {
        let npz = if path.is_file() { Npz::open(path).ok() } else { None };
        let (statistics, images) = npz.map_or((false, true), |n| (n.contains("mu"), n.contains(IMAGES)));
        if !statistics {
            return Self::of_images(path, networks, wants, how);
        }
        let mut reference = Self::of_statistics(path, wants)?;
        let lacking = Wants {
            keep: wants.keep && reference.rows.is_none(),
            spatial: wants.spatial && reference.spatial.is_none(),
            clip: wants.clip && reference.clip.is_none(),
            manifold: wants.manifold && reference.manifold.is_none(),
            ..Wants::default()
        };
        if images && (lacking.keep || lacking.spatial || lacking.clip || lacking.manifold) {
            let mut found = Self::of_images(path, networks, &lacking, how)?;
            for (role, taken) in [(Role::Clip, found.clip.is_some()), (Role::Manifold, found.manifold.is_some())] {
                if taken {
                    reference.take_network(role, &mut found);
                }
            }
            if found.rows.is_some() || found.manifold.is_some() {
                reference.labels = found.labels;
            }
            reference.rows = reference.rows.or(found.rows);
            reference.manifold = reference.manifold.or(found.manifold);
            reference.spatial = reference.spatial.or(found.spatial);
            reference.clip = reference.clip.or(found.clip);
        }
        Ok(reference)
    }

    /// What the npz of statistics at `path` holds.
    fn of_statistics(path: &Path, wants: &Wants) -> anyhow::Result<Self> {
        let stats = ReferenceStats::read(path)?;
        let text = |key: &str| stats.meta.get(key).and_then(Value::as_str).map(str::to_owned);
        let named = |role: Role| {
            let sha256 = text(&format!("{}_sha256", role.key()))?;
            Some((role, (sha256, text(role.key()).unwrap_or_else(|| "unknown".to_owned()))))
        };
        let networks = Role::ALL.into_iter().filter_map(named).collect();
        let count = stats.meta.get("count").and_then(Value::as_u64).and_then(|n| usize::try_from(n).ok());
        let main = gaussian((stats.mu, stats.sigma));
        let clip = stats.clip.map(gaussian);
        // A file of CLIP's statistics alone, as clean-fid keeps them.
        let alone = clip.is_none() && !wants.features && !wants.manifold;
        let (features, clip) = if alone { (None, Some(main)) } else { (Some(main), clip) };
        Ok(Self {
            features,
            spatial: stats.spatial.map(gaussian),
            clip,
            rows: stats.features,
            manifold: stats.manifold,
            labels: stats.labels,
            count,
            networks,
        })
    }

    /// What the networks say of the images at `path`.
    fn of_images(path: &Path, networks: &mut [Network], wants: &Wants, how: &How<'_>) -> anyhow::Result<Self> {
        let mut set = Set::open(path)?;
        let found = sums(&mut set, networks, wants, how, None)
            .with_context(|| format!("cannot take features of the reference `{}`", path.display()))?;
        let moments = |sums: Option<Accumulator>| sums.map(|s| s.finish(how.protocol.ddof)).transpose();
        Ok(Self {
            features: moments(found.features)?,
            spatial: moments(found.spatial)?,
            clip: moments(found.clip)?,
            rows: found.kept,
            manifold: found.manifold,
            labels: set.labels(),
            count: Some(set.len()),
            networks: networks_in(&found.walk),
        })
    }

    /// Takes CLIP's moments from `other` instead.
    pub fn take_clip(&mut self, mut other: Self) {
        self.take_network(Role::Clip, &mut other);
        self.clip = other.clip;
    }

    /// What `role` was made with is what `other` was made with, and unknown where that is.
    fn take_network(&mut self, role: Role, other: &mut Self) {
        match other.networks.remove(&role) {
            Some(network) => self.networks.insert(role, network),
            None => self.networks.remove(&role),
        };
    }

    /// Length of the features of `role`, if it has them.
    fn width(&self, role: Role) -> Option<usize> {
        let moments = |g: &Option<Gaussian>| g.as_ref().map(|g| g.mu.len());
        match role {
            Role::Features => moments(&self.features),
            Role::Clip => moments(&self.clip),
            Role::Manifold => self.manifold.as_ref().map(Array2::ncols),
        }
    }

    /// Makes sure that what is called `path` was made with `network`; the warning if it does not say so.
    ///
    /// # Errors
    /// Features of another length, or of another network.
    pub fn ensure_of(&self, role: Role, network: &NetworkMeta, path: &Path) -> anyhow::Result<Option<String>> {
        let path = path.display();
        if let Some(there) = self.width(role) {
            let (here, what) = (network.dims, role.features());
            anyhow::ensure!(here == there, "`{path}` has {there} {what}, `{}` gives {here}", network.name);
        }
        let Some((sha256, name)) = self.networks.get(&role) else {
            return Ok(Some(format!("`{path}` does not say which extractor made it")));
        };
        anyhow::ensure!(
            *sha256 == network.sha256,
            "`{path}` was made with another extractor ({name}) than `{}`",
            network.path
        );
        Ok(None)
    }
}
