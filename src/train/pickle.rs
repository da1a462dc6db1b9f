//! Snapshots as pickles for the original programs: `pickle.load(file)["ema"]` in their `generate.py` returns the
//! network.
//!
//! The pickle names classes of the program that loads it and contains no code.
//! `functools.partial(training.networks.CLASS, **init_kwargs)()` creates the network, `load_state_dict` sets its
//! tensors, and `requires_grad_(False)` and `eval` bring it to the state that the originals store.

use std::io::{self, Write};
use std::path::Path;

use d2o_converters::denoiser::NetConfig;
use d2o_files::AtomicFile;
use serde_json::Value;

use super::snapshot::Stored;
use super::trained::Metadata;

/// Writes `networks` of the class and configuration `net`, `augment_pipe` as None, and `metadata` under the key `d2o`,
/// which the originals do not read. Each of `tensors` is named after its network and its path in the module.
///
/// # Errors
/// If writing fails.
pub fn write(
    path: &Path,
    net: &NetConfig,
    networks: &[&str],
    tensors: &[Stored],
    metadata: &Metadata,
) -> io::Result<()> {
    let mut out = Pickler { out: AtomicFile::create(path)?, memos: 0 };
    out.op(b"\x80\x04}(")?;
    for name in networks {
        let own = |t| Some((Stored::name_below(t, name)?, t));
        out.text(name)?;
        out.network(net, tensors.iter().filter_map(own))?;
    }
    out.text("augment_pipe")?;
    out.op(b"N")?;
    out.text("d2o")?;
    out.op(b"}(")?;
    metadata.iter().flat_map(|(key, value)| [key, value]).try_for_each(|text| out.text(text))?;
    out.op(b"uu.")?;
    out.out.commit()
}

/// Writes opcodes of protocol 4.
struct Pickler {
    out: AtomicFile,
    memos: u32,
}

impl Pickler {
    fn op(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.out.write_all(bytes)
    }

    fn text(&mut self, text: &str) -> io::Result<()> {
        self.op(b"X")?;
        let length = u32::try_from(text.len()).map_err(io::Error::other)?;
        self.op(&length.to_le_bytes())?;
        self.op(text.as_bytes())
    }

    fn global(&mut self, module: &str, name: &str) -> io::Result<()> {
        self.text(module)?;
        self.text(name)?;
        self.op(b"\x93")
    }

    fn value(&mut self, value: &Value) -> io::Result<()> {
        match value {
            Value::Null => self.op(b"N"),
            Value::Bool(true) => self.op(b"\x88"),
            Value::Bool(false) => self.op(b"\x89"),
            Value::Number(n) => match n.as_i64() {
                Some(n) => {
                    self.op(b"\x8a\x08")?;
                    self.op(&n.to_le_bytes())
                }
                None => {
                    self.op(b"G")?;
                    self.op(&n.as_f64().unwrap_or(f64::NAN).to_be_bytes())
                }
            },
            Value::String(text) => self.text(text),
            Value::Array(values) => {
                self.op(b"](")?;
                values.iter().try_for_each(|v| self.value(v))?;
                self.op(b"e")
            }
            Value::Object(entries) => {
                self.op(b"}(")?;
                for (key, value) in entries {
                    self.text(key)?;
                    self.value(value)?;
                }
                self.op(b"u")
            }
        }
    }

    /// `torch.from_numpy(numpy.ndarray(dims, "<f4", bytearray(…)))`.
    fn tensor(&mut self, tensor: &Stored) -> io::Result<()> {
        self.global("torch", "from_numpy")?;
        self.global("numpy", "ndarray")?;
        self.op(b"((")?;
        for dim in tensor.dims() {
            self.value(&Value::from(dim))?;
        }
        self.op(b"t")?;
        self.text("<f4")?;
        self.global("builtins", "bytearray")?;
        self.op(b"\x8e")?;
        let values = tensor.values().map_err(io::Error::other)?;
        self.op(&(4 * values.len() as u64).to_le_bytes())?;
        for value in &values {
            self.op(&value.to_le_bytes())?;
        }
        self.op(b"\x85RtR\x85R")
    }

    fn network<'a>(&mut self, net: &NetConfig, tensors: impl Iterator<Item = (&'a str, &'a Stored)>) -> io::Result<()> {
        let class = self.memos;
        self.memos += 1;
        self.global("functools", "partial")?;
        self.global("training.networks", net.class())?;
        self.op(b"\x94\x85R(h")?;
        self.op(&[u8::try_from(class).map_err(io::Error::other)?])?;
        self.op(b")")?;
        self.value(&net.init_kwargs())?;
        // The new network is the argument of the calls that follow. Their results are dropped.
        self.op(b"Ntb)R\x94")?;
        let made = u8::try_from(self.memos).map_err(io::Error::other)?;
        self.memos += 1;
        self.global("torch.nn", "Module.load_state_dict")?;
        self.op(&[b'h', made])?;
        self.op(b"}(")?;
        for (name, tensor) in tensors {
            self.text(name)?;
            self.tensor(tensor)?;
        }
        self.op(b"u\x86R0")?;
        self.global("torch.nn", "Module.requires_grad_")?;
        self.op(b"(")?;
        self.op(&[b'h', made, 0x89])?;
        self.op(b"tR0")?;
        self.global("torch.nn", "Module.eval")?;
        self.op(&[b'h', made])?;
        // Only the network remains on the stack.
        self.op(b"\x85R0")
    }
}
