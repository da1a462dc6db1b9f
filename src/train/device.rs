//! The device that training runs on.

pub use tch::{Device, Kind};

use crate::cli::TrainDevice;
use crate::engine::cuda_devices;

/// The device that was asked for. Otherwise the CUDA device with the local rank of this process, or the CPU if libtorch
/// finds no CUDA device.
///
/// # Errors
/// If libtorch does not find the CUDA device.
pub fn select(asked: Option<TrainDevice>, local_rank: usize) -> anyhow::Result<Device> {
    let present = tch::Cuda::device_count();
    match asked {
        Some(TrainDevice::Cpu) => Ok(Device::Cpu),
        Some(TrainDevice::Cuda(n)) => {
            anyhow::ensure!(
                i64::from(n) < present,
                "--device {n}: libtorch finds {present} CUDA devices{}",
                why(present)
            );
            Ok(Device::Cuda(n as usize))
        }
        None if !Device::cuda_if_available().is_cuda() => Ok(Device::Cpu),
        None => {
            anyhow::ensure!(
                i64::try_from(local_rank)? < present,
                "process {local_rank} of this host has no CUDA device: libtorch finds {present}; use --device 0 if each process sees a different device"
            );
            Ok(Device::Cuda(local_rank))
        }
    }
}

/// Why libtorch finds no CUDA device.
fn why(present: i64) -> &'static str {
    match (present, cuda_devices().is_empty()) {
        (0, true) => " (the driver finds none either)",
        (0, false) => " (the driver finds some: this libtorch is CPU-only; add PyTorch's torch/lib to LD_LIBRARY_PATH)",
        _ => "",
    }
}

/// Description of `device` for the user.
#[must_use]
pub fn describe(device: Device) -> String {
    match device {
        Device::Cuda(n) => {
            let devices = cuda_devices();
            format!("CUDA device {n} ({})", devices.get(n).map_or("unknown", |d| d.name.as_str()))
        }
        other => format!("{other:?}").to_uppercase(),
    }
}

/// Sets the number of CPU threads of libtorch.
///
/// # Errors
/// If the number does not fit in an `i32`.
pub fn set_threads(threads: usize) -> anyhow::Result<()> {
    tch::set_num_threads(i32::try_from(threads)?);
    Ok(())
}
