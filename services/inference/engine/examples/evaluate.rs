//! Runs a model on rows of FP32 from standard input, and writes its outputs as JSON.
//!
//! ```text
//! evaluate model.onnx COLUMNS < rows.bin       little-endian, row after row
//! ```
//! It ends with 1 when the model cannot be loaded or run; standard error says why.
#![forbid(unsafe_code)]

use std::io::Read as _;
use std::process::ExitCode;

use enclos_inference_engine::{Data, Tensor, load};
use serde_json::{Value, json};

fn main() -> ExitCode {
    match run() {
        Ok(outputs) => {
            println!("{outputs}");
            ExitCode::SUCCESS
        }
        Err(e) => {
            eprintln!("evaluate: {e}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<Value, Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let (Some(model), Some(columns)) = (arguments.next(), arguments.next()) else {
        return Err("usage: evaluate MODEL COLUMNS < ROWS".into());
    };
    let engine = load(&std::fs::read(model)?)?;
    let mut bytes = Vec::new();
    std::io::stdin().read_to_end(&mut bytes)?;
    let columns = columns.parse::<usize>()?;
    let floats: Vec<f32> = bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
    let rows = floats.len().checked_div(columns).unwrap_or_default();
    let input = Tensor::new(vec![rows, columns], Data::F32(floats)).ok_or("the rows do not fill a table")?;
    let results = engine.run(&[input])?;
    let outputs = engine.outputs().iter().zip(results).map(|(port, tensor)| {
        let data = match tensor.data() {
            Data::F32(v) => json!(v),
            Data::F64(v) => json!(v),
            Data::I32(v) => json!(v),
            Data::I64(v) => json!(v),
            Data::Bool(v) => json!(v),
            Data::Text(v) => json!(v),
        };
        json!({ "name": port.name, "shape": tensor.shape(), "data": data })
    });
    Ok(json!({ "engine": engine.name(), "outputs": outputs.collect::<Vec<_>>() }))
}
