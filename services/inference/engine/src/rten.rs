//! The engine rten.
//!
//! rten has elements of four types: FP32, INT32, INT8 and UINT8. It takes INT64 and BOOL as INT32; what does not fit is refused
//! here. Models with other types are not for it ([`refuses`]).

use std::sync::{Arc, Mutex, PoisonError};

use rten::{Model, ModelOptions, NodeId, RunOptions, ThreadPool, Value, ValueOrView, ValueView};
use rten_tensor::AsView as _;

use crate::choice::{Contents, shortened};
use crate::{Data, DataType, Engine, Port, RunError, Tensor, check};

pub(crate) const NAME: &str = "rten";

pub(crate) struct Rten {
    inputs: Vec<Port>,
    outputs: Vec<Port>,
    input_ids: Vec<NodeId>,
    output_ids: Vec<NodeId>,
    model: Model,
}

/// Why rten would compute something else than the model says.
pub(crate) fn refuses(contents: &Contents) -> Option<String> {
    use DataType::{Bool, F32, I8, I32, I64, U8};
    let has = |t: &i64| DataType::from_onnx(*t).is_some_and(|t| [Bool, F32, I8, I32, I64, U8].contains(&t));
    if let Some(other) = contents.types.iter().find(|t| !has(t)) {
        let name = DataType::from_onnx(*other).map_or(format!("ONNX's type {other}"), |t| t.to_string());
        return Some(format!("it has no {name}"));
    }
    let wide = contents.wide.as_ref()?;
    Some(format!("it takes INT64 as INT32, in which the constant {wide:?} does not fit"))
}

impl Rten {
    /// Loads a model with these inputs and outputs. Errors are rten's words.
    pub(crate) fn load(model: &[u8], inputs: &[Port], outputs: &[Port]) -> Result<Self, String> {
        let bytes = model.to_vec();
        let pool = Pool::take();
        let model = pool.0.run(move || ModelOptions::with_all_ops().prepack_weights(true).load(bytes));
        let model = model.map_err(|e| shortened(&e.to_string()))?;
        let ids = |ports: &[Port]| {
            let all =
                ports.iter().map(|port| model.node_id(&port.name).map_err(|e| shortened(&e.to_string())));
            all.collect::<Result<Vec<_>, _>>()
        };
        let (input_ids, output_ids) = (ids(inputs)?, ids(outputs)?);
        Ok(Self { inputs: inputs.to_vec(), outputs: outputs.to_vec(), input_ids, output_ids, model })
    }
}

impl Engine for Rten {
    fn name(&self) -> &'static str {
        NAME
    }

    fn inputs(&self) -> &[Port] {
        &self.inputs
    }

    fn outputs(&self) -> &[Port] {
        &self.outputs
    }

    fn run(&self, inputs: &[Tensor]) -> Result<Vec<Tensor>, RunError> {
        check(&self.inputs, inputs)?;
        let mut given = Vec::with_capacity(inputs.len());
        for ((tensor, port), id) in inputs.iter().zip(&self.inputs).zip(&self.input_ids) {
            let value = to_rten(tensor)
                .map_err(|reason| RunError::Input { reason: format!("{:?}: {reason}", port.name) })?;
            given.push((*id, value));
        }
        let failed = |reason| RunError::Engine { engine: NAME, reason };
        let pool = Pool::take();
        let mut options = RunOptions::default();
        options.thread_pool = Some(pool.0.clone());
        let results = self.model.run(given, &self.output_ids, Some(options));
        let results = results.map_err(|e| failed(shortened(&e.to_string())))?;
        let results = results.into_iter().zip(&self.outputs).map(|(result, port)| {
            from_rten(result, port.data_type)
                .map_err(|reason| failed(format!("the output {:?}: {reason}", port.name)))
        });
        results.collect()
    }
}

fn to_rten(tensor: &Tensor) -> Result<ValueOrView<'_>, String> {
    let shape = tensor.shape();
    let narrow = |v: i64| {
        i32::try_from(v).map_err(|_| format!("{v} is outside of INT32, which this engine computes in"))
    };
    Ok(match tensor.data() {
        Data::F32(v) => ValueView::from_shape(shape, v).map_err(|e| e.to_string())?.into(),
        Data::I32(v) => ValueView::from_shape(shape, v).map_err(|e| e.to_string())?.into(),
        Data::I8(v) => ValueView::from_shape(shape, v).map_err(|e| e.to_string())?.into(),
        Data::U8(v) => ValueView::from_shape(shape, v).map_err(|e| e.to_string())?.into(),
        Data::I64(v) => {
            let narrowed = v.iter().map(|v| narrow(*v)).collect::<Result<Vec<_>, _>>()?;
            Value::from_shape(shape, narrowed).map_err(|e| e.to_string())?.into()
        }
        Data::Bool(v) => {
            let numbers = v.iter().map(|b| i32::from(*b)).collect::<Vec<_>>();
            Value::from_shape(shape, numbers).map_err(|e| e.to_string())?.into()
        }
        other => return Err(format!("{} is not among this engine's types", other.data_type())),
    })
}

fn from_rten(value: Value, declared: DataType) -> Result<Tensor, String> {
    let given = value.dtype();
    let (shape, data) = match (value, declared) {
        (Value::FloatTensor(t), DataType::F32) => {
            (rten_tensor::Layout::shape(&t).to_vec(), Data::F32(t.to_vec()))
        }
        (Value::Int32Tensor(t), DataType::I32) => {
            (rten_tensor::Layout::shape(&t).to_vec(), Data::I32(t.to_vec()))
        }
        (Value::Int32Tensor(t), DataType::I64) => {
            (rten_tensor::Layout::shape(&t).to_vec(), Data::I64(t.iter().map(|x| i64::from(*x)).collect()))
        }
        (Value::Int32Tensor(t), DataType::Bool) => {
            (rten_tensor::Layout::shape(&t).to_vec(), Data::Bool(t.iter().map(|x| *x != 0).collect()))
        }
        (Value::Int8Tensor(t), DataType::I8) => {
            (rten_tensor::Layout::shape(&t).to_vec(), Data::I8(t.to_vec()))
        }
        (Value::UInt8Tensor(t), DataType::U8) => {
            (rten_tensor::Layout::shape(&t).to_vec(), Data::U8(t.to_vec()))
        }
        _ => return Err(format!("it is of rten's type {given}, not {declared}")),
    };
    Tensor::new(shape, data).ok_or_else(|| "it is too large".into())
}

/// A pool of one thread, which rten runs a model in. Each call has its own, so that calls run side by side, and a call on one
/// thread; they are kept for the next calls.
struct Pool(Arc<ThreadPool>);

static IDLE: Mutex<Vec<Arc<ThreadPool>>> = Mutex::new(Vec::new());

impl Pool {
    fn take() -> Self {
        let idle = IDLE.lock().unwrap_or_else(PoisonError::into_inner).pop();
        Self(idle.unwrap_or_else(|| Arc::new(ThreadPool::with_num_threads(1))))
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        IDLE.lock().unwrap_or_else(PoisonError::into_inner).push(self.0.clone());
    }
}
