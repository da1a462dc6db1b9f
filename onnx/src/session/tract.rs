//! tract: a second engine in pure Rust, on the CPU.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ndarray::{ArrayD, Axis, Slice, concatenate};
use tract_linalg::multithread;
use tract_onnx::prelude::*;

use super::{Session, Tensor, arrange};
use crate::error::{Error, Result};
use crate::graph::{Dim, ElementType};
use crate::read::{ModelInfo, ValueInfo};

const NAME: &str = "tract";
/// Plans kept, one for each batch size.
const PLANS: usize = 4;

/// A model on tract. It is planned for each batch size it meets.
pub struct TractSession {
    path: PathBuf,
    info: ModelInfo,
    threads: usize,
    executor: multithread::Executor,
    plans: BTreeMap<usize, Arc<TypedRunnableModel>>,
}

impl std::fmt::Debug for TractSession {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TractSession").field("path", &self.path).finish_non_exhaustive()
    }
}

fn failed(what: String, e: &TractError) -> Error {
    Error::Runtime { runtime: NAME.to_owned(), what, source: format!("{e:#}").into() }
}

impl TractSession {
    /// Opens `model` for `threads` CPU threads (`None` for as many as there are cores).
    ///
    /// # Errors
    /// `Format` if it is no model. What tract cannot run shows in the first [`Session::run`].
    pub fn open(model: &Path, threads: Option<usize>) -> Result<Self> {
        let threads = threads.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from));
        let executor = multithread::Executor::multithread(threads);
        Ok(Self { path: model.to_owned(), info: ModelInfo::open(model)?, threads, executor, plans: BTreeMap::new() })
    }

    /// Runs a part of the batch on each thread: images do not depend on one another where [`by_image`] holds, and one thread computes an image fastest.
    fn run_split(&mut self, arranged: &[&Tensor], batch: usize) -> Result<Vec<(String, Tensor)>> {
        let size = batch.div_ceil(self.threads);
        let ranges: Vec<Range<usize>> = (0..batch).step_by(size).map(|a| a..(a + size).min(batch)).collect();
        let mut plans = Vec::with_capacity(ranges.len());
        for range in &ranges {
            plans.push(self.plan(range.len())?);
        }
        let one = |(range, plan): (&Range<usize>, &Arc<TypedRunnableModel>)| {
            let values = arranged.iter().map(|t| to_value(&rows(t, range))).collect();
            multithread::multithread_tract_scope(multithread::Executor::SingleThread, || plan.run(values))
        };
        let parts = std::thread::scope(|scope| {
            let all: Vec<_> = ranges.iter().zip(&plans).map(|job| scope.spawn(move || one(job))).collect();
            all.into_iter()
                .map(|t| t.join().unwrap_or_else(|_| Err(TractError::msg("a thread panicked"))))
                .collect::<Vec<_>>()
        });
        let parts: Vec<_> =
            parts.into_iter().collect::<TractResult<_>>().map_err(|e| failed("run failed".to_owned(), &e))?;
        let names = self.info.outputs.iter().map(|o| o.name.clone());
        names
            .enumerate()
            .map(|(i, name)| {
                let read = parts.iter().map(|p| from_value(&p[i])).collect::<Result<Vec<_>>>()?;
                Ok((name, join(read)?))
            })
            .collect()
    }

    fn plan(&mut self, batch: usize) -> Result<Arc<TypedRunnableModel>> {
        if let Some(plan) = self.plans.get(&batch) {
            return Ok(Arc::clone(plan));
        }
        let describe = || format!("cannot plan `{}` for a batch of {batch}", self.path.display());
        let build = || -> TractResult<Arc<TypedRunnableModel>> {
            let mut model = tract_onnx::onnx().model_for_path(&self.path)?;
            for (i, input) in self.info.inputs.iter().enumerate() {
                let dims: Vec<usize> =
                    input.dims.iter().map(|d| if let Dim::Known(n) = d { *n } else { batch }).collect();
                model = model.with_input_fact(i, InferenceFact::dt_shape(datum_type(input.element), dims))?;
            }
            for i in 0..model.output_outlets()?.len() {
                model = model.with_output_fact(i, InferenceFact::default())?;
            }
            model.into_optimized()?.into_runnable()
        };
        let plan = build().map_err(|e| failed(describe(), &e))?;
        while self.plans.len() >= PLANS {
            self.plans.pop_first();
        }
        self.plans.insert(batch, Arc::clone(&plan));
        Ok(plan)
    }
}

fn datum_type(element: ElementType) -> DatumType {
    match element {
        ElementType::F32 => DatumType::F32,
        ElementType::F16 => DatumType::F16,
        ElementType::F64 => DatumType::F64,
        ElementType::U8 => DatumType::U8,
        ElementType::I32 => DatumType::I32,
        ElementType::I64 => DatumType::I64,
        ElementType::Bool => DatumType::Bool,
    }
}

impl Session for TractSession {
    fn runtime(&self) -> &str {
        NAME
    }

    fn model(&self) -> &ModelInfo {
        &self.info
    }

    fn run(&mut self, inputs: &[(&str, Tensor)]) -> Result<Vec<(String, Tensor)>> {
        let arranged = arrange(&self.info, inputs)?;
        let sizes = self.info.inputs.iter().zip(&arranged).flat_map(|(v, t)| v.dims.iter().zip(t.dims()));
        let batch = sizes.filter(|(d, _)| **d == Dim::Batch).map(|(_, n)| *n).next().unwrap_or(1);
        if batch > 1 && self.threads > 1 && by_image(&self.info) {
            return self.run_split(&arranged, batch);
        }
        let values: TVec<TValue> = arranged.into_iter().map(to_value).collect();
        let plan = self.plan(batch)?;
        let executor = self.executor.clone();
        let run = || multithread::multithread_tract_scope(executor, || plan.run(values));
        let outputs = run().map_err(|e| failed("run failed".to_owned(), &e))?;
        let names = self.info.outputs.iter().map(|o| o.name.clone());
        names.zip(outputs.iter().map(from_value)).map(|(name, value)| Ok((name, value?))).collect()
    }
}

/// Whether an image's outputs depend on that image alone. What the exporter names the kind of is such a network; of other graphs, which
/// may take statistics of the batch, it is not known.
fn by_image(model: &ModelInfo) -> bool {
    let batched = |v: &ValueInfo| v.dims.first() == Some(&Dim::Batch);
    model.metadata.contains_key("kind") && model.inputs.iter().chain(&model.outputs).all(batched)
}

/// Rows `range` of the first axis.
fn rows(tensor: &Tensor, range: &Range<usize>) -> Tensor {
    let slice = Slice::from(range.clone());
    match tensor {
        Tensor::F32(a) => Tensor::F32(a.slice_axis(Axis(0), slice).to_owned()),
        Tensor::U8(a) => Tensor::U8(a.slice_axis(Axis(0), slice).to_owned()),
        Tensor::I64(a) => Tensor::I64(a.slice_axis(Axis(0), slice).to_owned()),
    }
}

/// `parts` one after the other along the first axis.
fn join(parts: Vec<Tensor>) -> Result<Tensor> {
    fn together<T: Clone>(parts: &[ArrayD<T>]) -> Result<ArrayD<T>> {
        let views: Vec<_> = parts.iter().map(|p| p.view()).collect();
        concatenate(Axis(0), &views).map_err(|e| failed("outputs of a part do not fit".to_owned(), &e.into()))
    }
    let (mut floats, mut bytes, mut ints) = (Vec::new(), Vec::new(), Vec::new());
    for part in parts {
        match part {
            Tensor::F32(a) => floats.push(a),
            Tensor::U8(a) => bytes.push(a),
            Tensor::I64(a) => ints.push(a),
        }
    }
    if !bytes.is_empty() {
        together(&bytes).map(Tensor::U8)
    } else if !ints.is_empty() {
        together(&ints).map(Tensor::I64)
    } else {
        together(&floats).map(Tensor::F32)
    }
}

fn to_value(tensor: &Tensor) -> TValue {
    match tensor {
        Tensor::F32(a) => tract_onnx::prelude::Tensor::from(a.clone()).into(),
        Tensor::U8(a) => tract_onnx::prelude::Tensor::from(a.clone()).into(),
        Tensor::I64(a) => tract_onnx::prelude::Tensor::from(a.clone()).into(),
    }
}

fn from_value(value: &TValue) -> Result<Tensor> {
    let read = || -> TractResult<Tensor> {
        Ok(match value.datum_type() {
            DatumType::U8 => Tensor::U8(value.to_plain_array_view::<u8>()?.to_owned()),
            DatumType::I64 => Tensor::I64(value.to_plain_array_view::<i64>()?.to_owned()),
            _ => Tensor::F32(value.to_plain_array_view::<f32>()?.to_owned()),
        })
    };
    read().map_err(|e| failed("cannot read an output".to_owned(), &e))
}
