//! ONNX files, as the inference service's own evaluator loads them in its enclave; what loads is run on numbers. Whether rows are
//! independent of each other is looked at in every file, and believed of no one's: where it is said to be, other rows change nothing.
#![no_main]

use enclos_inference_engine::{Data, DataType, Engine as _, Evaluator, Port, Tensor, independent_rows};
use libfuzzer_sys::fuzz_target;

/// Elements of an input: a model of few bytes may ask for any number.
const MOST: usize = 4096;

fuzz_target!(|bytes: &[u8]| {
    let independent = independent_rows(bytes);
    match Evaluator::load(bytes) {
        Ok(engine) => {
            assert!(!engine.name().is_empty());
            let inputs = |rows: &[usize]| -> Option<Vec<Tensor>> {
                engine.inputs().iter().map(|port| some(port, rows)).collect()
            };
            let Some(two) = inputs(&[0, 0]) else { return };
            let results = engine.run(&two);
            match &results {
                Ok(outputs) => assert_eq!(outputs.len(), engine.outputs().len()),
                Err(error) => assert!(!error.to_string().is_empty()),
            }
            // Nor do inputs that are not what the model says break anything.
            let _ = engine.run(&[]);
            // Where rows are said to be independent, the first result is the same whatever comes behind.
            if let (Ok(()), Some(others), Some(one)) = (independent, inputs(&[0, 1, 2]), inputs(&[0]))
                && let (Ok(others), Ok(one)) = (engine.run(&others), engine.run(&one))
            {
                for (together, alone) in others.iter().zip(&one) {
                    assert_eq!(together.shape().first(), Some(&3));
                    assert_eq!(together.shape()[1..], alone.shape()[1..]);
                    assert_eq!(alone.shape().first(), Some(&1));
                    assert!(begins_with(together, alone), "{together:?} {alone:?}");
                }
            }
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
});

/// A tensor that fits: what may be any length is two, but for the first dimension, which has a row for each number; rows of the same
/// number are the same.
fn some(port: &Port, rows: &[usize]) -> Option<Tensor> {
    let dimensions = port.shape.clone().unwrap_or_else(|| vec![None]);
    let shape = dimensions.iter().enumerate().map(|(i, d)| d.unwrap_or(if i == 0 { rows.len() } else { 2 }));
    let shape: Vec<usize> = shape.collect();
    let count =
        shape.iter().try_fold(1_usize, |product, d| product.checked_mul(*d)).filter(|n| *n <= MOST)?;
    let row = count.checked_div(rows.len())?.max(1);
    let numbers = (0..count).map(|i| {
        let number = rows.get(i / row).copied().unwrap_or_default();
        (i % row + 5 * number) as f32 / 3.0 - 1.0
    });
    let data = match port.data_type {
        DataType::F32 => Data::F32(numbers.collect()),
        DataType::I64 => Data::I64(numbers.map(|n| n as i64).collect()),
        _ => return None,
    };
    Tensor::new(shape, data)
}

/// Whether the elements of one begin with those of the other, to the bit; NaN is NaN.
fn begins_with(all: &Tensor, first: &Tensor) -> bool {
    let count = first.data().len();
    match (all.data(), first.data()) {
        (Data::F32(a), Data::F32(b)) => {
            a[..count].iter().zip(b).all(|(a, b)| a == b || (a.is_nan() && b.is_nan()))
        }
        (Data::I64(a), Data::I64(b)) => a[..count] == b[..],
        (Data::Text(a), Data::Text(b)) => a[..count] == b[..],
        (Data::Bool(a), Data::Bool(b)) => a[..count] == b[..],
        (a, b) => a.data_type() == b.data_type(),
    }
}
