//! Class labels in a discriminator: a table of class embeddings, projected onto the channels of a head.

use std::path::Path;

use anyhow::Context as _;
use d2o_converters::backend::{Backend as _, Ops as _};
use d2o_converters::checkpoint::CheckpointFile;
use d2o_converters::error::Result;
use d2o_converters::weights::{Init, Scope};

use crate::train::libtorch::{LibTorch, Value, int};

/// Rows of the table: the classes of ImageNet.
pub(super) const CLASSES: usize = 1000;
/// Length of a row.
const EMBEDDING: usize = 320;
/// Channels that a row is projected onto.
pub(super) const MAPPED: usize = 64;

/// Source of the initial rows of the class tables.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ClassRows {
    /// D2O's `in_embeddings/tf_efficientnet_lite0.pkl`, or another file with one f32 tensor `[1000, 320]`.
    File(std::path::PathBuf),
    /// Normal values of standard deviation 1, not part of the recipe.
    Random,
}

impl ClassRows {
    /// Initial values of a table `[1000, 320]`.
    ///
    /// # Errors
    /// If the file cannot be read, or does not have exactly one tensor of this shape.
    pub fn init(&self) -> anyhow::Result<Init> {
        match self {
            Self::File(path) => {
                let rows = read(path);
                let rows = rows.with_context(|| format!("cannot read class embeddings from `{}`", path.display()))?;
                Ok(Init::Values(rows))
            }
            Self::Random => Ok(Init::Normal { std: 1.0 }),
        }
    }
}

/// Error of a conditional run without class embeddings.
pub(super) fn missing() -> anyhow::Error {
    anyhow::anyhow!(
        "a conditional discriminator requires class embeddings: pass `in_embeddings/tf_efficientnet_lite0.pkl` of the repository \
         https://github.com/Zyriix/D2O (licence CC BY-NC-SA) with --class-embeddings, or use random ones, which deviates from the recipe, \
         with --random-class-embeddings"
    )
}

fn read(path: &Path) -> anyhow::Result<Vec<f32>> {
    let tensors = CheckpointFile::open(path)?.tensors;
    let all: Vec<_> = tensors.names().into_iter().filter_map(|n| Some((tensors.info(&n)?.dims, n))).collect();
    let mut fitting = all.iter().filter(|(dims, _)| dims == &[CLASSES, EMBEDDING]);
    match (fitting.next(), fitting.next()) {
        (Some((_, name)), None) => Ok(tensors.read_f32(name)?),
        _ => anyhow::bail!(
            "expected one tensor [{CLASSES}, {EMBEDDING}], found {:?}",
            all.iter().map(|(d, _)| d).collect::<Vec<_>>()
        ),
    }
}

/// The table and its projection: `embed.weight`, `embed_proj.{weight, bias}`.
#[derive(Debug, Clone)]
pub(super) struct ClassMap {
    scope: Scope,
    embedding: Value,
    weight: Value,
    bias: Value,
}

impl ClassMap {
    /// Takes `embed` and `embed_proj` below `scope`. `rows` gives the initial values of the table `[1000, 320]`.
    pub(super) fn build(b: &mut LibTorch, scope: Scope, rows: &Init) -> Result<Self> {
        let embedding = b.param(&scope.child("embed"), "weight", &[CLASSES, EMBEDDING], rows)?;
        let proj = scope.child("embed_proj");
        let weight = b.param(&proj, "weight", &[MAPPED, EMBEDDING], &Init::Normal { std: 1.0 })?;
        let bias = b.param(&proj, "bias", &[MAPPED], &Init::Constant(0.0))?;
        Ok(Self { scope, embedding, weight, bias })
    }

    /// Logits `[N, 1, H, W]` of `x [N, 64, H, W]` with one-hot `labels [N, K]`:
    /// Σ_c x_c·m_c / 8 with m = √2·lrelu(E·Wᵀ/√320 + b). E is the row of the class of the image.
    pub(super) fn forward(&self, b: &mut LibTorch, x: &Value, labels: &Value) -> Result<Value> {
        b.enter(&self.scope);
        let classes = b.dim(labels, 1).unwrap_or(0);
        let rows = b.slice(&self.embedding, 0, 0, classes)?;
        let rows = b.matmul(labels, &rows)?;
        let weight = b.scale(&self.weight, 1.0 / (EMBEDDING as f64).sqrt())?;
        let map = b.linear(&rows, &weight, Some(&self.bias))?;
        let map = b.leaky_relu(&map, 0.2)?;
        let map = b.scale(&map, std::f64::consts::SQRT_2)?;
        let map = b.reshape(&map, &[-1, int(MAPPED), 1, 1])?;
        let product = b.mul(x, &map)?;
        let mean = b.mean(&product, &[1], true)?;
        b.scale(&mean, (MAPPED as f64).sqrt())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use d2o_converters::checkpoint::safetensors::{self, Tensor};
    use fs_err as fs;

    use super::*;

    fn text(text: &str) -> Vec<u8> {
        let length = u32::try_from(text.len()).unwrap().to_le_bytes();
        [b"X", &length[..], text.as_bytes()].concat()
    }

    /// A storage of f32 as `torch.save` wrote it before PyTorch 1.6.
    fn storage(values: &[f32]) -> Vec<u8> {
        let magic = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.";
        let sizes = [text("short"), b"K\x02".to_vec(), text("int"), b"K\x04".to_vec(), text("long"), b"K\x04".to_vec()];
        let system = [
            b"\x80\x02}(".to_vec(),
            [text("protocol_version"), b"M\xe9\x03".to_vec(), text("little_endian"), b"\x88".to_vec()].concat(),
            [text("type_sizes"), b"}(".to_vec(), sizes.concat(), b"u".to_vec(), b"u.".to_vec()].concat(),
        ];
        let count = u32::try_from(values.len()).unwrap().to_le_bytes();
        let object = [
            [b"\x80\x02(".to_vec(), text("storage"), b"ctorch\nFloatStorage\n".to_vec(), text("1")].concat(),
            [text("cpu"), b"J".to_vec(), count.to_vec(), b"NtQ.".to_vec()].concat(),
        ];
        let keys = [b"\x80\x02]".to_vec(), text("1"), b"a.".to_vec()];
        let data: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        let length = [&count[..], &[0; 4]].concat();
        let parts = [magic.to_vec(), b"\x80\x02M\xe9\x03.".to_vec(), system.concat(), object.concat(), keys.concat()];
        [parts.concat(), length, data].concat()
    }

    /// A dict with an `Embedding` of 1000 rows, as D2O's repository stores it.
    fn pickled(values: &[f32]) -> Vec<u8> {
        let stored = storage(values);
        let ordered = "ccollections\nOrderedDict\n)R";
        let parts = [
            [b"\x80\x03}".to_vec(), text("embed"), b"ctorch.nn.modules.sparse\nEmbedding\n)\x81}(".to_vec()].concat(),
            [text("training"), b"\x88".to_vec(), text("_parameters"), ordered.into(), text("weight")].concat(),
            b"ctorch._utils\n_rebuild_parameter\nctorch._utils\n_rebuild_tensor_v2\n(ctorch.storage\n_load_from_bytes\n".to_vec(),
            [b"B".to_vec(), u32::try_from(stored.len()).unwrap().to_le_bytes().to_vec(), stored, b"\x85R".to_vec()].concat(),
            [b"K\x00M\xe8\x03M\x40\x01\x86M\x40\x01K\x01\x86\x89".to_vec(), ordered.into(), b"tR\x88".to_vec()].concat(),
            [ordered.into(), b"\x87Rs".to_vec(), text("_buffers"), ordered.into(), text("_modules"), ordered.into()].concat(),
            // The file was written by dill, which stores the type `set` as the result of a call.
            [text("_non_persistent_buffers_set"), b"cdill._dill\n_load_type\n".to_vec(), text("set"), b"\x85R]\x85R".to_vec()].concat(),
            [text("num_embeddings"), b"M\xe8\x03".to_vec(), text("embedding_dim"), b"M\x40\x01".to_vec()].concat(),
            b"ubs.".to_vec(),
        ];
        parts.concat()
    }

    #[test]
    fn rows_are_those_of_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let (pickle, other) = (dir.path().join("rows.pkl"), dir.path().join("other.safetensors"));
        let values = Init::Normal { std: 1.0 }.values(3, "rows", CLASSES * EMBEDDING);
        fs::write(&pickle, pickled(&values)).unwrap();
        assert_eq!(ClassRows::File(pickle).init().unwrap(), Init::Values(values));
        assert_eq!(ClassRows::Random.init().unwrap(), Init::Normal { std: 1.0 });
        let ten = Tensor { name: "weight".to_owned(), dims: vec![10, EMBEDDING], values: vec![0.0; 10 * EMBEDDING] };
        safetensors::write(&other, &[ten], &BTreeMap::new()).unwrap();
        let error = format!("{:#}", ClassRows::File(other).init().unwrap_err());
        assert!(error.contains("other.safetensors`: expected one tensor [1000, 320], found [[10, 320]]"), "{error}");
        assert!(missing().to_string().contains("--random-class-embeddings"));
    }

    #[test]
    fn every_table_starts_from_the_rows() {
        let rows = Init::Values(Init::Normal { std: 1.0 }.values(3, "rows", CLASSES * EMBEDDING));
        let mut b = LibTorch::with_weights(d2o_converters::weights::Weights::initialised(1), tch::Device::Cpu);
        for head in ["0", "1"] {
            let map = ClassMap::build(&mut b, Scope::root().child(head), &rows).unwrap();
            let values = crate::train::libtorch::values_of(&map.embedding.0).unwrap();
            assert_eq!(Init::Values(values), rows);
        }
    }
}
