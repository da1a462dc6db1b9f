//! tract, a runtime in pure Rust for the CPU.

use std::cell::Cell;
use std::collections::VecDeque;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Once};

use d2o_onnx::graph::{ElementType, PRODUCER};
use d2o_onnx::read::{ModelInfo, ValueInfo};
use ndarray::{ArrayD, ArrayViewD, Axis, Slice, concatenate};
use tract_linalg::multithread;
use tract_onnx::prelude::*;

use crate::error::{Error, Result};
use crate::inputs::arrange;
use crate::{Session, Tensor, TensorView};

const NAME: &str = "tract";
/// Maximum number of plans in memory. There is one plan for each combination of input shapes.
const PLANS: usize = 4;
/// Maximum number of nodes. The planning time of tract is quadratic in it.
const MAX_NODES: usize = 10_000;

/// Shapes of the inputs of a model.
type Shapes = Vec<Vec<usize>>;

/// A model on tract. The first run with new input shapes plans the model for them.
pub struct TractSession {
    path: PathBuf,
    info: ModelInfo,
    threads: usize,
    executor: multithread::Executor,
    /// The plans in memory, least recently used first.
    plans: VecDeque<(Shapes, Arc<TypedRunnableModel>)>,
}

impl std::fmt::Debug for TractSession {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TractSession").field("path", &self.path).finish_non_exhaustive()
    }
}

fn failed(action: impl Into<String>, e: TractError) -> Error {
    Error::Runtime { runtime: NAME.to_owned(), action: action.into(), source: e.into() }
}

impl TractSession {
    /// Opens `model` for `threads` CPU threads; `None` for one per core.
    ///
    /// # Errors
    /// `Model` if the file is not a valid model, is refused, or has more than 10 000 nodes. Models that tract does not
    /// support fail in [`Session::run`].
    pub fn open(model: &Path, threads: Option<usize>) -> Result<Self> {
        let info = ModelInfo::open(model)?;
        if info.nodes > MAX_NODES {
            let expected = format!("at most {MAX_NODES} nodes, for tract");
            let (file, place, found) = (model.to_owned(), "graph".to_owned(), info.nodes.to_string());
            return Err(d2o_onnx::Error::Format { file, place, expected, found, source: None }.into());
        }
        let threads = threads.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from));
        let executor = multithread::Executor::multithread(threads);
        Ok(Self { path: model.to_owned(), info, threads, executor, plans: VecDeque::new() })
    }

    /// Runs a part of the batch on each thread. Valid only if [`is_batch_independent`]. Faster than all threads on one
    /// sample at a time.
    fn run_split(&mut self, arranged: &[&TensorView<'_>], batch: usize) -> Result<Vec<Tensor>> {
        let size = batch.div_ceil(self.threads);
        let ranges: Vec<Range<usize>> = (0..batch).step_by(size).map(|a| a..(a + size).min(batch)).collect();
        let mut plans = Vec::with_capacity(ranges.len());
        for range in &ranges {
            let shapes = arranged.iter().map(|t| [&[range.len()], &t.dims()[1..]].concat()).collect();
            plans.push(self.plan(shapes)?);
        }
        let one = |(range, plan): (&Range<usize>, &Arc<TypedRunnableModel>)| {
            let values = arranged.iter().map(|t| to_value(&rows(t, range))).collect();
            self.outputs(multithread::Executor::SingleThread, plan, values)
        };
        let parts = std::thread::scope(|scope| {
            let all: Vec<_> = ranges.iter().zip(&plans).map(|job| scope.spawn(move || one(job))).collect();
            let panicked = |_| Err(failed("run", TractError::msg("a thread panicked")));
            all.into_iter().map(|t| t.join().unwrap_or_else(panicked)).collect::<Result<Vec<_>>>()
        })?;
        (0..self.info.outputs.len()).map(|i| join(parts.iter().map(|part| &part[i]))).collect()
    }

    /// The outputs of `plan` for `inputs`, in the order of the model.
    fn outputs(
        &self,
        executor: multithread::Executor,
        plan: &Arc<TypedRunnableModel>,
        inputs: TVec<TValue>,
    ) -> Result<Vec<Tensor>> {
        let run = || multithread::multithread_tract_scope(executor, || plan.run(inputs));
        let values = caught(run).map_err(|e| failed("run", e))?;
        let outputs = &self.info.outputs;
        if values.len() != outputs.len() {
            let found = format!("expected {} outputs, found {}", outputs.len(), values.len());
            return Err(failed("run", TractError::msg(found)));
        }
        let read =
            |(o, value): (&ValueInfo, _)| from_value(value).map_err(|e| failed(format!("read output `{}`", o.name), e));
        outputs.iter().zip(&values).map(read).collect()
    }

    fn plan(&mut self, shapes: Shapes) -> Result<Arc<TypedRunnableModel>> {
        let known = self.plans.iter().position(|(s, _)| *s == shapes).and_then(|i| self.plans.remove(i));
        let plan = match known {
            Some((_, plan)) => plan,
            None => {
                let build = || {
                    let mut model = tract_onnx::onnx().model_for_path(&self.path)?;
                    for (i, (input, dims)) in self.info.inputs.iter().zip(&shapes).enumerate() {
                        let fact = InferenceFact::dt_shape(datum_type(input.element)?, dims);
                        model = model.with_input_fact(i, fact)?;
                    }
                    for i in 0..model.output_outlets()?.len() {
                        model = model.with_output_fact(i, InferenceFact::default())?;
                    }
                    model.into_optimized()?.into_runnable()
                };
                let describe = || format!("plan `{}` for inputs of {shapes:?}", self.path.display());
                caught(build).map_err(|e| failed(describe(), e))?
            }
        };
        if self.plans.len() == PLANS {
            self.plans.pop_front();
        }
        self.plans.push_back((shapes, Arc::clone(&plan)));
        Ok(plan)
    }
}

thread_local! {
    /// Whether [`caught`] runs on this thread.
    static CAUGHT: Cell<bool> = const { Cell::new(false) };
}

/// Runs `work` and returns its panics as errors, because tract asserts properties of the file and successful
/// allocation. The panic hook is not called for panics on this thread.
fn caught<T>(work: impl FnOnce() -> TractResult<T>) -> TractResult<T> {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            if !CAUGHT.get() {
                before(panic);
            }
        }));
    });
    let outer = CAUGHT.replace(true);
    let result = catch_unwind(AssertUnwindSafe(work));
    CAUGHT.set(outer);
    result.unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
        Err(TractError::msg(format!("it panicked: {}", text.unwrap_or("no message"))))
    })
}

fn datum_type(element: ElementType) -> TractResult<DatumType> {
    Ok(match element {
        ElementType::F32 => DatumType::F32,
        ElementType::F16 => DatumType::F16,
        ElementType::F64 => DatumType::F64,
        ElementType::U8 => DatumType::U8,
        ElementType::I32 => DatumType::I32,
        ElementType::I64 => DatumType::I64,
        ElementType::Bool => DatumType::Bool,
        other => return Err(TractError::msg(format!("inputs of {other} are not supported"))),
    })
}

impl Session for TractSession {
    fn runtime(&self) -> &str {
        NAME
    }

    fn model(&self) -> &ModelInfo {
        &self.info
    }

    fn run(&mut self, inputs: &[(&str, TensorView<'_>)]) -> Result<Vec<Tensor>> {
        let arranged = arrange(&self.info, inputs, |view| (view.element(), view.dims()))?;
        let batch = arranged.first().and_then(|t| t.dims().first()).copied().unwrap_or(1);
        if batch > 1 && self.threads > 1 && is_batch_independent(&self.info) {
            return self.run_split(&arranged, batch);
        }
        let plan = self.plan(arranged.iter().map(|t| t.dims().to_vec()).collect())?;
        self.outputs(self.executor.clone(), &plan, arranged.into_iter().map(to_value).collect())
    }
}

/// Whether the outputs of a sample depend on that sample only. This holds for graphs that d2o exports. Graphs of other
/// producers may mix samples.
fn is_batch_independent(model: &ModelInfo) -> bool {
    let batch = model.inputs.first().and_then(|v| v.symbols.first()).filter(|symbol| symbol.is_some());
    let batched = |v: &ValueInfo| batch.is_some() && v.symbols.first() == batch;
    model.producer == PRODUCER
        && model.described().is_ok_and(|metadata| metadata.kind.is_some())
        && model.inputs.iter().chain(&model.outputs).all(batched)
}

/// Rows `range` of the first axis.
fn rows<'a>(view: &TensorView<'a>, range: &Range<usize>) -> TensorView<'a> {
    fn of<'a, T>(view: &ArrayViewD<'a, T>, range: &Range<usize>) -> ArrayViewD<'a, T> {
        let mut rows = view.clone();
        rows.slice_axis_inplace(Axis(0), Slice::from(range.clone()));
        rows
    }
    match view {
        TensorView::F32(a) => TensorView::F32(of(a, range)),
        TensorView::U8(a) => TensorView::U8(of(a, range)),
        TensorView::I64(a) => TensorView::I64(of(a, range)),
    }
}

/// `parts` concatenated along the first axis.
fn join<'a>(parts: impl Iterator<Item = &'a Tensor>) -> Result<Tensor> {
    fn of<T: Clone>(parts: &[ArrayViewD<'_, T>]) -> Result<ArrayD<T>> {
        concatenate(Axis(0), parts).map_err(|e| failed("concatenate the outputs of the parts of a batch", e.into()))
    }
    let (mut floats, mut bytes, mut integers) = (Vec::new(), Vec::new(), Vec::new());
    for part in parts {
        match part {
            Tensor::F32(a) => floats.push(a.view()),
            Tensor::U8(a) => bytes.push(a.view()),
            Tensor::I64(a) => integers.push(a.view()),
        }
    }
    if !bytes.is_empty() {
        of(&bytes).map(Tensor::U8)
    } else if !integers.is_empty() {
        of(&integers).map(Tensor::I64)
    } else {
        of(&floats).map(Tensor::F32)
    }
}

fn to_value(view: &TensorView<'_>) -> TValue {
    match view {
        TensorView::F32(a) => tract_onnx::prelude::Tensor::from(a.to_owned()).into(),
        TensorView::U8(a) => tract_onnx::prelude::Tensor::from(a.to_owned()).into(),
        TensorView::I64(a) => tract_onnx::prelude::Tensor::from(a.to_owned()).into(),
    }
}

fn from_value(value: &TValue) -> TractResult<Tensor> {
    Ok(match value.datum_type() {
        DatumType::U8 => value.to_plain_array_view::<u8>()?.to_owned().into(),
        DatumType::I64 => value.to_plain_array_view::<i64>()?.to_owned().into(),
        DatumType::F32 => value.to_plain_array_view::<f32>()?.to_owned().into(),
        other => return Err(TractError::msg(format!("expected f32, u8 or i64, found {other:?}"))),
    })
}

#[cfg(test)]
mod tests {
    use d2o_onnx::graph::{Dim, GraphBuilder};
    use d2o_onnx::metadata::{Kind, Metadata};
    use d2o_onnx::write;
    use fs_err as fs;

    use super::*;

    /// `y = x - mean of x over the batch`, with `kind` in its metadata.
    fn centred(path: &Path, producer: &[u8; 3]) {
        let mut g = GraphBuilder::new("g");
        let x = g.input("x", ElementType::F32, &[Dim::Batch, Dim::Known(2)]).unwrap();
        let mean = g.mean(&x, &[0], true).unwrap();
        let y = g.sub(&x, &mean).unwrap();
        g.output("y", &y).unwrap();
        g.describe(&Metadata { kind: Some(Kind::Features), ..Metadata::default() });
        let mut bytes = write::to_bytes(&g.finish().unwrap()).unwrap();
        // Field 2 of the model, the producer, comes after the two bytes of the IR version.
        assert_eq!(bytes[2..7], *b"\x12\x03d2o");
        bytes[4..7].copy_from_slice(producer);
        fs::write(path, bytes).unwrap();
    }

    fn ramp(rows: usize) -> Tensor {
        Tensor::F32(ArrayD::from_shape_fn(vec![rows, 2], |i| (2 * i[0] + i[1]) as f32))
    }

    #[test]
    fn batches_of_other_producers_are_not_split() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.onnx");
        centred(&path, b"not");
        let y = TractSession::open(&path, Some(2)).unwrap().run(&[("x", (&ramp(4)).into())]).unwrap();
        assert_eq!(y[0].as_f32().unwrap().as_slice().unwrap(), [-3.0, -3.0, -1.0, -1.0, 1.0, 1.0, 3.0, 3.0]);
        centred(&path, b"d2o");
        let y = TractSession::open(&path, Some(2)).unwrap().run(&[("x", (&ramp(4)).into())]).unwrap();
        assert_eq!(y[0].as_f32().unwrap().as_slice().unwrap(), [-1.0, -1.0, 1.0, 1.0, -1.0, -1.0, 1.0, 1.0]);
    }

    #[test]
    fn the_least_recently_used_plan_is_dropped() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.onnx");
        centred(&path, b"not");
        let mut session = TractSession::open(&path, Some(1)).unwrap();
        for rows in [5, 1, 2, 3, 5, 4] {
            session.run(&[("x", (&ramp(rows)).into())]).unwrap();
        }
        let kept: Vec<usize> = session.plans.iter().map(|(shapes, _)| shapes[0][0]).collect();
        assert_eq!(kept, [2, 3, 5, 4]);
    }

    #[test]
    fn a_panic_is_an_error() {
        let text = caught(|| -> TractResult<()> { panic!("cannot have {} bytes", 7) }).unwrap_err().to_string();
        assert!(text.contains("cannot have 7 bytes"), "{text}");
        assert!(!CAUGHT.get());
    }
}
