//! The device that training runs on.

use tch::Device;

use crate::cli::TrainDevice;
use crate::engine::cuda_devices;

/// The device that was asked for, or the first CUDA device, or the CPU.
///
/// # Errors
/// A CUDA device that libtorch does not find; `tf32` without one.
pub fn select(asked: Option<TrainDevice>, tf32: bool) -> anyhow::Result<Device> {
    let device = match asked {
        Some(TrainDevice::Cpu) => Device::Cpu,
        Some(TrainDevice::Cuda(n)) => {
            let present = tch::Cuda::device_count();
            anyhow::ensure!(
                i64::from(n) < present,
                "--device {n}: libtorch finds {present} CUDA devices{}",
                why(present)
            );
            Device::Cuda(n as usize)
        }
        None => Device::cuda_if_available(),
    };
    anyhow::ensure!(device.is_cuda() || !tf32, "--tf32 is for CUDA, and training runs on the CPU");
    Ok(device)
}

/// Why libtorch finds no CUDA device.
fn why(present: i64) -> &'static str {
    match (present, cuda_devices().is_empty()) {
        (0, true) => " (the driver finds none either)",
        (0, false) => {
            " (the driver finds some: this libtorch is for the CPU only; put PyTorch's torch/lib into LD_LIBRARY_PATH)"
        }
        _ => "",
    }
}

/// What `device` is, for the user.
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

/// Lets libtorch use so many CPU threads.
///
/// # Errors
/// A number that libtorch cannot take.
pub fn set_threads(threads: usize) -> anyhow::Result<()> {
    tch::set_num_threads(i32::try_from(threads)?);
    Ok(())
}
