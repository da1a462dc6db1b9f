//! Discrete noise schedules.

/// The noise levels with which a DDPM was trained.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Levels {
    /// Noise levels in descending order. The last level of an iDDPM is 0.
    pub sigmas: Vec<f32>,
    /// c_noise of the lowest level, before multiplication by `time_scale`.
    pub(super) first: f64,
    /// Factor of c_noise.
    pub(super) time_scale: f64,
}

impl Levels {
    /// Midpoints between successive levels, ascending. If k of them are at or below a noise level, the level nearest to
    /// it is the k-th from the lowest, counted from 0.
    pub(super) fn thresholds(&self) -> Vec<f32> {
        self.sigmas.windows(2).rev().map(|pair| (pair[0] + pair[1]) / 2.0).collect()
    }

    /// c_noise at `sigma`.
    pub(super) fn noise(&self, sigma: f64) -> f64 {
        #[allow(clippy::cast_possible_truncation, reason = "the original takes sigma as f32")]
        let sigma = sigma as f32;
        let index = self.thresholds().iter().filter(|t| sigma >= **t).count() as f64;
        (index + self.first) * self.time_scale
    }

    /// The lowest level above 0, and the highest level.
    pub(super) fn range(&self) -> [f64; 2] {
        let positive = || self.sigmas.iter().copied().filter(|l| *l > 0.0);
        let [low, high] = [positive().reduce(f32::min), positive().reduce(f32::max)].map(|bound| bound.map(f64::from));
        [low.unwrap_or(0.0), high.unwrap_or(f64::INFINITY)]
    }
}

#[cfg(test)]
mod tests {
    use super::super::gaussian::{NoiseSchedule, gaussian_levels};
    use super::super::iddpm::iddpm_levels;
    use super::*;

    #[test]
    fn c_noise_of_an_iddpm_is_the_index_of_the_nearest_level() {
        let sigmas = iddpm_levels(0.001, 0.008, 1000);
        assert!((sigmas[0] - 20291.0).abs() < 1.0 && (sigmas[999] - 0.006425).abs() < 1e-5 && sigmas[1000] == 0.0);
        let cosine = gaussian_levels(NoiseSchedule::Cosine, 1000);
        assert!(cosine.iter().zip(&sigmas).all(|(a, b)| (a - b).abs() <= 1e-4 * a), "both are the cosine schedule");
        let levels = Levels { sigmas: sigmas.clone(), first: -1.0, time_scale: 1.0 };
        for sigma in [0.0_f32, 0.003, 0.0033, 0.1, 1.0, 2.5, 80.0, 1e6] {
            let nearest =
                (0..sigmas.len()).min_by(|a, b| (sigmas[*a] - sigma).abs().total_cmp(&(sigmas[*b] - sigma).abs()));
            assert_eq!(levels.noise(sigma.into()), 999.0 - nearest.unwrap() as f64, "{sigma}");
        }
        assert_eq!(levels.range(), [sigmas[999], sigmas[0]].map(f64::from));
    }
}
