//! Scalars for TensorBoard: a file of `Event` messages (`tensorflow/core/util/event.proto`) in TFRecord framing.

use std::io::Write as _;
use std::path::Path;

use fs_err as fs;
use prost::Message;

/// A file of events.
#[derive(Debug)]
pub struct Events {
    file: fs::File,
}

#[derive(Clone, PartialEq, Message)]
struct Event {
    #[prost(double, tag = "1")]
    wall_time: f64,
    #[prost(int64, tag = "2")]
    step: i64,
    #[prost(string, optional, tag = "3")]
    file_version: Option<String>,
    #[prost(message, optional, tag = "5")]
    summary: Option<Summary>,
}

#[derive(Clone, PartialEq, Message)]
struct Summary {
    #[prost(message, repeated, tag = "1")]
    value: Vec<Scalar>,
}

#[derive(Clone, PartialEq, Message)]
struct Scalar {
    #[prost(string, tag = "1")]
    tag: String,
    #[prost(float, tag = "2")]
    simple_value: f32,
}

impl Events {
    /// Opens a file in `outdir` named after the time `now`, in seconds since 1970, and writes its header event.
    ///
    /// # Errors
    /// If writing fails.
    pub fn create(outdir: &Path, now: f64) -> anyhow::Result<Self> {
        let path = outdir.join(format!("events.out.tfevents.{now:.0}.d2o"));
        let mut events = Self { file: fs::OpenOptions::new().create(true).append(true).open(path)? };
        events.append(&Event { wall_time: now, file_version: Some("brain.Event:2".to_owned()), ..Event::default() })?;
        Ok(events)
    }

    /// Appends a value for each name, after `images` images at the time `now`, in seconds since 1970.
    ///
    /// # Errors
    /// If writing fails.
    pub fn scalars<'a>(
        &mut self,
        now: f64,
        images: u64,
        values: impl Iterator<Item = (&'a str, f64)>,
    ) -> anyhow::Result<()> {
        #[allow(clippy::cast_possible_truncation, reason = "the format has f32")]
        let value = values.map(|(tag, v)| Scalar { tag: tag.to_owned(), simple_value: v as f32 }).collect();
        let step = i64::try_from(images)?;
        self.append(&Event { wall_time: now, step, summary: Some(Summary { value }), ..Event::default() })
    }

    /// Writes length, checksum of the length, message and checksum of the message in one call.
    fn append(&mut self, event: &Event) -> anyhow::Result<()> {
        let message = event.encode_to_vec();
        let length = (message.len() as u64).to_le_bytes();
        let parts = [&length[..], &masked(&length), &message, &masked(&message)];
        Ok(self.file.write_all(&parts.concat())?)
    }
}

/// CRC-32C as stored in TFRecord: rotated and offset, for data that itself contains checksums.
fn masked(bytes: &[u8]) -> [u8; 4] {
    crc32c::crc32c(bytes).rotate_right(15).wrapping_add(0xa282_ead8).to_le_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    // Output of `RecordWriter` and `event_pb2` of TensorBoard 2.21.
    #[test]
    fn records_are_tensorflows() {
        let dir = tempfile::tempdir().unwrap();
        let mut events = Events::create(dir.path(), 1.0).unwrap();
        events.scalars(2.0, 4000, [("Loss/G/loss", 0.5)].into_iter()).unwrap();
        let bytes = fs::read(dir.path().join("events.out.tfevents.1.d2o")).unwrap();
        assert_eq!(
            d2o_files::hex(&bytes),
            "1800000000000000a37f4b2209000000000000f03f1a0d627261696e2e4576656e743a3286bf577a\
             220000000000000078113dfd09000000000000004010a01f2a140a120a0b4c6f73732f472f6c6f7373150000003ff6ede281"
        );
    }
}
