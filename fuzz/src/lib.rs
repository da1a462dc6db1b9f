//! Shared by the fuzz targets: gives the bytes to a reader and uses its result.
//!
//! Readers map files, so the bytes are written to a file first, on a file system in memory if there is one.

pub mod hdf5;

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use d2o_converters::Checkpoint;

/// Writes `bytes` to a file of this process and passes its path to `read`.
pub fn with_file(bytes: &[u8], read: impl FnOnce(&Path)) {
    static FILE: OnceLock<PathBuf> = OnceLock::new();
    let file = FILE.get_or_init(|| {
        let memory = Path::new("/dev/shm");
        let dir = if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() };
        dir.join(format!("d2o-fuzz-{}", std::process::id()))
    });
    // A new file each time: the previous one may still be mapped.
    let _ = std::fs::remove_file(file);
    std::fs::write(file, bytes).expect("the fuzzer's own file");
    read(file);
}

/// Opens `bytes` as a checkpoint and reads all its tensors.
pub fn checkpoint(bytes: &[u8]) {
    with_file(bytes, |path| {
        let Ok(checkpoint) = Checkpoint::open(path) else { return };
        for network in &checkpoint.networks {
            let _ = network.architecture.name();
            for name in network.tensors.names() {
                let Some(info) = network.tensors.info(&name) else { continue };
                if let Ok(values) = network.tensors.read_f32(&name) {
                    assert_eq!(values.len(), info.dims.iter().product::<usize>(), "{name}");
                }
            }
        }
    });
}

/// The bytes of a stored (not compressed) zip archive of `entries`.
pub fn stored_zip(entries: &[(&str, &[u8])]) -> Vec<u8> {
    let (mut out, mut central) = (Vec::new(), Vec::new());
    for (name, data) in entries {
        let crc = crc32(data).to_le_bytes();
        let size = u32::try_from(data.len()).unwrap_or(u32::MAX).to_le_bytes();
        let length = u16::try_from(name.len()).unwrap_or(u16::MAX).to_le_bytes();
        let at = u32::try_from(out.len()).unwrap_or(u32::MAX).to_le_bytes();
        let common = [&[20, 0, 0, 0, 0, 0, 0, 0, 0, 0][..], &crc, &size, &size, &length, &[0, 0]].concat();
        out.extend([b"PK\x03\x04", &common[..], name.as_bytes(), data].concat());
        central.extend([b"PK\x01\x02", &[20, 0][..], &common, &[0; 10], &at, name.as_bytes()].concat());
    }
    let count = u16::try_from(entries.len()).unwrap_or(u16::MAX).to_le_bytes();
    let size = u32::try_from(central.len()).unwrap_or(u32::MAX).to_le_bytes();
    let at = u32::try_from(out.len()).unwrap_or(u32::MAX).to_le_bytes();
    out.extend(central);
    out.extend([b"PK\x05\x06", &[0; 4][..], &count, &count, &size, &at, &[0, 0]].concat());
    out
}

fn crc32(data: &[u8]) -> u32 {
    !data.iter().fold(!0_u32, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |c, _| if c & 1 == 1 { (c >> 1) ^ 0xedb8_8320 } else { c >> 1 })
    })
}
