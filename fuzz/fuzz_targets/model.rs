//! ONNX files, as the inference service's own evaluator loads them in its enclave; what loads is run on numbers.
#![no_main]

use enclos_inference_engine::{Data, DataType, Engine as _, Evaluator, Port, Tensor};
use libfuzzer_sys::fuzz_target;

/// Elements of an input: a model of few bytes may ask for any number.
const MOST: usize = 4096;

fuzz_target!(|bytes: &[u8]| {
    match Evaluator::load(bytes) {
        Ok(engine) => {
            assert!(!engine.name().is_empty());
            let inputs: Option<Vec<Tensor>> = engine.inputs().iter().map(some).collect();
            let Some(inputs) = inputs else { return };
            match engine.run(&inputs) {
                Ok(outputs) => assert_eq!(outputs.len(), engine.outputs().len()),
                Err(error) => assert!(!error.to_string().is_empty()),
            }
            // Nor do inputs that are not what the model says break anything.
            let _ = engine.run(&[]);
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
});

/// A tensor that fits: what may be any length is two.
fn some(port: &Port) -> Option<Tensor> {
    let shape: Vec<usize> =
        port.shape.clone().unwrap_or_else(|| vec![None]).into_iter().map(|d| d.unwrap_or(2)).collect();
    let count =
        shape.iter().try_fold(1_usize, |product, d| product.checked_mul(*d)).filter(|n| *n <= MOST)?;
    let numbers = (0..count).map(|i| i as f32 / 3.0 - 1.0);
    let data = match port.data_type {
        DataType::F32 => Data::F32(numbers.collect()),
        DataType::I64 => Data::I64(numbers.map(|n| n as i64).collect()),
        _ => return None,
    };
    Tensor::new(shape, data)
}
