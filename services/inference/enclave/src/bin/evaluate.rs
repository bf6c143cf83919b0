//! Runs models as the enclave of the inference service does, for comparisons with other runtimes and for measurements: by itself, or
//! in an enclave of its own. No part of what is served.
//!
//! Standard input has JSON objects, a line each, and each is answered by one:
//!
//! ```text
//! {"model": path, or null for the one before, "engine": name or null, "unchecked": false, "repeat": 1,
//!  "inputs": [{"datatype": "FP32", "shape": [1, 64], "data": base64 of the elements in binary}]}
//! {"engine": name, "reason": text, "outputs": [{"name", "datatype", "shape", "data"}]}
//! {"error": text, "stage": "load" or "run"}
//! ```
//! Without an engine, it is chosen. `unchecked` has an engine run what it is known to answer wrongly. Inputs may be left out: then
//! the model is loaded only.
#![forbid(unsafe_code)]

use std::io::{BufRead as _, Write as _};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use enclos_inference_engine::{Data, DataType, Engine, Kind, Tensor, load};
use serde::Deserialize;
use serde_json::{Value, json};

#[derive(Deserialize)]
struct Order {
    model: Option<std::path::PathBuf>,
    engine: Option<String>,
    #[serde(default)]
    unchecked: bool,
    inputs: Option<Vec<Input>>,
    repeat: Option<u32>,
}

#[derive(Deserialize)]
struct Input {
    datatype: String,
    shape: Vec<usize>,
    data: String,
}

fn main() -> std::io::Result<()> {
    // Their words are in the answers.
    std::panic::set_hook(Box::new(|_| {}));
    let mut last = None;
    for line in std::io::stdin().lock().lines() {
        let answer = match serde_json::from_str(&line?) {
            Ok(order) => answer(order, &mut last),
            Err(e) => json!({ "error": e.to_string(), "stage": "order" }),
        };
        let mut out = std::io::stdout().lock();
        writeln!(out, "{answer}")?;
        out.flush()?;
    }
    Ok(())
}

/// A model, and why it is this engine that runs it.
type Loaded = (Box<dyn Engine>, String);

fn answer(order: Order, last: &mut Option<Loaded>) -> Value {
    let failed = |stage: &str, error: String| json!({ "error": error, "stage": stage });
    if let Some(path) = &order.model {
        let model = match std::fs::read(path) {
            Ok(model) => model,
            Err(e) => return failed("order", e.to_string()),
        };
        *last = None;
        *last = match loaded(&model, &order) {
            Ok(loaded) => Some(loaded),
            Err(e) => return failed("load", e),
        };
    }
    let Some((engine, reason)) = last else { return failed("order", "there is no model".into()) };
    let Some(inputs) = order.inputs else { return json!({ "engine": engine.name(), "reason": reason }) };
    let inputs = match inputs.iter().map(tensor).collect::<Result<Vec<_>, _>>() {
        Ok(inputs) => inputs,
        Err(e) => return failed("order", e),
    };
    let mut results = Vec::new();
    for _ in 0..order.repeat.unwrap_or(1) {
        results = match engine.run(&inputs) {
            Ok(results) => results,
            Err(e) => return failed("run", e.to_string()),
        };
    }
    let mut outputs = Vec::new();
    for (port, tensor) in engine.outputs().iter().zip(&results) {
        let mut bytes = Vec::new();
        if let Err(e) = tensor.data().to_binary(&mut bytes) {
            return failed("run", e);
        }
        outputs.push(json!({
            "name": port.name,
            "datatype": tensor.data().data_type().to_string(),
            "shape": tensor.shape(),
            "data": BASE64.encode(bytes),
        }));
    }
    json!({ "engine": engine.name(), "reason": reason, "outputs": outputs })
}

fn loaded(model: &[u8], order: &Order) -> Result<Loaded, String> {
    let Some(name) = &order.engine else {
        let choice = load(model).map_err(|e| e.to_string())?;
        let reason = choice.to_string();
        return Ok((choice.engine, reason));
    };
    let kind = Kind::of_name(name).ok_or_else(|| format!("there is no engine {name:?}"))?;
    let engine = kind.load(model, order.unchecked).map_err(|e| e.to_string())?;
    Ok((engine, "as asked".into()))
}

fn tensor(input: &Input) -> Result<Tensor, String> {
    let data_type = DataType::ALL.iter().find(|t| t.to_string() == input.datatype);
    let data_type = data_type.ok_or_else(|| format!("there is no datatype {:?}", input.datatype))?;
    let bytes = BASE64.decode(&input.data).map_err(|e| e.to_string())?;
    let data = Data::from_binary(*data_type, &bytes)?;
    Tensor::new(input.shape.clone(), data).ok_or_else(|| "the elements do not fill the shape".into())
}
