//! The engine tract (crate `tract-onnx`).

use std::path::Path;
use std::sync::Arc;

use tract_onnx::Onnx;
use tract_onnx::data_resolver::ModelDataResolver;
use tract_onnx::prelude::{
    Datum, DatumType, Framework as _, InferenceModelExt as _, IntoRunnable as _, IntoTValue as _, TValue,
    Tensor as TractTensor, TractResult, TypedRunnableModel, tract_ndarray as ndarray,
};

use crate::{Data, DataType, Engine, Port, RunError, Tensor, check};

pub(crate) const NAME: &str = "tract";

pub(crate) struct Tract {
    inputs: Vec<Port>,
    outputs: Vec<Port>,
    plan: Arc<TypedRunnableModel>,
}

/// Models lie in one file: whatever else they name is not read.
struct NoFiles;

impl ModelDataResolver for NoFiles {
    fn read_bytes_from_path(&self, _: &mut Vec<u8>, _: &Path, _: usize, _: Option<usize>) -> TractResult<()> {
        Err(std::io::Error::other("its data lie in another file; export the model into one file").into())
    }
}

impl Tract {
    /// Loads a model with these inputs and outputs. Errors are tract's words.
    pub(crate) fn load(model: &[u8], inputs: &[Port], outputs: &[Port]) -> Result<Self, String> {
        let onnx = Onnx { provider: Arc::new(NoFiles), ..tract_onnx::onnx() };
        let plan = onnx
            .model_for_read(&mut &*model)
            .and_then(|model| model.into_optimized())
            .and_then(|model| model.into_runnable())
            .map_err(|e| words(&e))?;
        let (takes, gives) = (plan.model().inputs.len(), plan.model().outputs.len());
        if (takes, gives) != (inputs.len(), outputs.len()) {
            return Err(format!("it finds {takes} inputs and {gives} outputs in it"));
        }
        Ok(Self { inputs: inputs.to_vec(), outputs: outputs.to_vec(), plan })
    }
}

impl Engine for Tract {
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
        let failed = |reason| RunError::Engine { engine: NAME, reason };
        let given = inputs.iter().map(|t| to_tract(t).map_err(|e| failed(words(&e))));
        let given = given.collect::<Result<_, _>>()?;
        let results = self.plan.run(given).map_err(|e| failed(words(&e)))?;
        let results = results.iter().zip(&self.outputs).map(|(result, port)| {
            from_tract(result, port.data_type)
                .map_err(|reason| failed(format!("the output {:?}: {reason}", port.name)))
        });
        results.collect()
    }
}

/// The chain of causes on one line. The last is what matters; what precedes it says where.
fn words(error: &tract_onnx::prelude::TractError) -> String {
    let mut all = error.chain().map(ToString::to_string).collect::<Vec<_>>();
    all.dedup();
    let all = all.join(": ").split_whitespace().collect::<Vec<_>>().join(" ");
    crate::choice::shortened(&all)
}

fn to_tract(tensor: &Tensor) -> TractResult<TValue> {
    fn of<T: Datum + Copy>(shape: &[usize], data: &[T]) -> TractResult<TractTensor> {
        TractTensor::from_shape(shape, data)
    }
    let shape = tensor.shape();
    let made = match tensor.data() {
        Data::F16(v) => of(shape, v),
        Data::F32(v) => of(shape, v),
        Data::F64(v) => of(shape, v),
        Data::I8(v) => of(shape, v),
        Data::I16(v) => of(shape, v),
        Data::I32(v) => of(shape, v),
        Data::I64(v) => of(shape, v),
        Data::U8(v) => of(shape, v),
        Data::U16(v) => of(shape, v),
        Data::U32(v) => of(shape, v),
        Data::U64(v) => of(shape, v),
        Data::Bool(v) => of(shape, v),
        Data::Text(v) => Ok(ndarray::ArrayD::from_shape_vec(shape, v.clone())?.into()),
    };
    Ok(made?.into_tvalue())
}

fn from_tract(tensor: &TractTensor, declared: DataType) -> Result<Tensor, String> {
    fn of<T: Datum>(tensor: &TractTensor) -> Result<Vec<T>, String> {
        // Numbers that tract knows as symbols (shapes) are INT64 to everyone else.
        let cast;
        let tensor = match (tensor.datum_type(), T::datum_type()) {
            (DatumType::TDim, DatumType::I64) => {
                cast = tensor.cast_to::<T>().map_err(|e| words(&e))?;
                &*cast
            }
            (given, wanted) if given == wanted => tensor,
            (given, _) => return Err(format!("it is of tract's type {given:?}, not what the model says")),
        };
        Ok(tensor.to_plain_array_view::<T>().map_err(|e| words(&e))?.iter().cloned().collect())
    }
    let data = match declared {
        DataType::F16 => Data::F16(of(tensor)?),
        DataType::F32 => Data::F32(of(tensor)?),
        DataType::F64 => Data::F64(of(tensor)?),
        DataType::I8 => Data::I8(of(tensor)?),
        DataType::I16 => Data::I16(of(tensor)?),
        DataType::I32 => Data::I32(of(tensor)?),
        DataType::I64 => Data::I64(of(tensor)?),
        DataType::U8 => Data::U8(of(tensor)?),
        DataType::U16 => Data::U16(of(tensor)?),
        DataType::U32 => Data::U32(of(tensor)?),
        DataType::U64 => Data::U64(of(tensor)?),
        DataType::Bool => Data::Bool(of(tensor)?),
        DataType::Text => Data::Text(of(tensor)?),
    };
    Tensor::new(tensor.shape().to_vec(), data).ok_or_else(|| "it is too large".into())
}
