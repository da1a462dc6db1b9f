//! Forecast of the memory of a run, from a trial of its largest stages on two images.

use std::fmt;

use fs_err as fs;
use tch::Device;

use super::stats::resident;

/// Number of images in the trial.
pub(super) const TRIAL: u32 = 2;

/// A forecast, bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Forecast {
    /// Memory in use before the first iteration: libraries, images, networks.
    pub base: u64,
    /// Gradients and moments of the optimisers.
    pub optimizers: u64,
    /// Tensors kept between the forward and the backward pass, for all images that are processed at a time.
    pub activations: u64,
    /// Images that are processed at a time.
    pub images: u32,
    /// Memory available in addition to the base.
    pub available: u64,
}

impl Forecast {
    /// Total memory, bytes.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.base + self.optimizers + self.activations
    }

    /// Whether the run needs more memory than is available.
    #[must_use]
    pub fn exceeds(&self) -> bool {
        self.optimizers + self.activations > self.available
    }
}

impl fmt::Display for Forecast {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { base, optimizers, activations, images, available } = self;
        let mib = |bytes: u64| bytes >> 20;
        let (total, base) = (mib(self.total()), mib(*base));
        write!(
            f,
            "memory: about {total} MiB ({} for {images} images at a time, {} for gradients and moments, {base} in use); {} MiB free",
            mib(*activations),
            mib(*optimizers),
            mib(*available)
        )
    }
}

/// Memory in use, bytes: by this process, or by all processes on a CUDA device. `None` if the system does not report
/// it.
pub(super) fn used(device: Device) -> Option<u64> {
    match device {
        Device::Cpu => resident(),
        _ => d2o_runtime::cuda::memory().map(|(free, total)| total - free),
    }
}

/// Memory that can still be used, bytes. `None` if the system does not report it.
pub(super) fn available(device: Device) -> Option<u64> {
    match device {
        Device::Cpu => {
            let host = host(&fs::read_to_string("/proc/meminfo").ok()?)?;
            let of_group = |name: &str| fs::read_to_string(format!("/sys/fs/cgroup/memory.{name}")).ok();
            let group = of_group("max").zip(of_group("current")).and_then(|(most, now)| left(&most, &now));
            Some(group.map_or(host, |group| group.min(host)))
        }
        _ => d2o_runtime::cuda::memory().map(|(free, _)| free),
    }
}

/// `MemAvailable` of `/proc/meminfo`, bytes.
fn host(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|l| l.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib << 10)
}

/// Memory below the limit of a control group, if it has a limit.
fn left(most: &str, now: &str) -> Option<u64> {
    let number = |text: &str| text.trim().parse::<u64>().ok();
    Some(number(most)?.saturating_sub(number(now)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_those_of_the_system() {
        assert_eq!(host("MemTotal:       24641232 kB\nMemAvailable:   22000000 kB\n"), Some(22_000_000 << 10));
        assert_eq!((left("max\n", "5\n"), left("1000\n", "400\n"), left("10\n", "11\n")), (None, Some(600), Some(0)));
        let forecast =
            Forecast { base: 3 << 20, optimizers: 5 << 20, activations: 7 << 20, images: 4, available: 11 << 20 };
        assert!(forecast.exceeds() && !Forecast { available: 12 << 20, ..forecast }.exceeds());
        let text =
            "memory: about 15 MiB (7 for 4 images at a time, 5 for gradients and moments, 3 in use); 11 MiB free";
        assert_eq!(forecast.to_string(), text);
    }
}
