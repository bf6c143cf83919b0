//! The Open Inference Protocol, version 2, as binary HTTP: JSON in, JSON out. Nothing leaves in plain text.

use std::io::Cursor;
use std::panic::{AssertUnwindSafe, catch_unwind};

use bhttp::{Message, Mode, StatusCode};
use enclos_inference_engine::{Data, DataType, Port, Tensor};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::models::{Model, Models};

/// What a request comes to: HTTP status and JSON.
type Answer = Result<Value, (u16, String)>;

/// The answer to a decrypted request: binary HTTP, always.
pub(crate) fn answer(models: &Models, request: &[u8]) -> Vec<u8> {
    // An engine that panics fails one request, not the service.
    let outcome = catch_unwind(AssertUnwindSafe(|| route(models, request)))
        .unwrap_or_else(|_| Err((500, "the engine failed at this request".into())));
    let (status, body) = match outcome {
        Ok(body) => (200, body),
        Err((status, error)) => (status, json!({ "error": error })),
    };
    let mut message = Message::response(StatusCode::try_from(status).unwrap_or(StatusCode::OK));
    message.put_header("content-type", "application/json");
    message.write_content(body.to_string());
    let mut out = Vec::new();
    // Writing into memory does not fail; an empty reply would say so.
    let _ = message.write_bhttp(Mode::KnownLength, &mut out);
    out
}

fn route(models: &Models, request: &[u8]) -> Answer {
    let message = Message::read_bhttp(&mut Cursor::new(request)).map_err(|e| (400, e.to_string()))?;
    let text = |bytes: Option<&[u8]>| String::from_utf8_lossy(bytes.unwrap_or_default()).into_owned();
    let (method, path) = (text(message.control().method()), text(message.control().path()));
    match (&*method, &*path) {
        ("GET", "/v2") => Ok(json!({
            "name": "enclos", "version": env!("CARGO_PKG_VERSION"), "extensions": [],
        })),
        ("GET", "/v2/health/live") => Ok(json!({ "live": true })),
        ("GET", "/v2/health/ready") => Ok(json!({ "ready": !models.offered().is_empty() })),
        (method, path) => match path.strip_prefix("/v2/models/") {
            Some(rest) => of_model(models, method, rest, message.content()),
            None => Err((404, format!("{method} {path} is nothing that is served"))),
        },
    }
}

/// Below `/v2/models/`: a name, perhaps a version, and what is asked of it.
fn of_model(models: &Models, method: &str, path: &str, content: &[u8]) -> Answer {
    let (name, rest) = path.split_once('/').unwrap_or((path, ""));
    let (version, asked) = match rest.strip_prefix("versions/") {
        Some(rest) => {
            let (version, asked) = rest.split_once('/').unwrap_or((rest, ""));
            (Some(version), asked)
        }
        None => (None, rest),
    };
    let Some(model) = models.find(name, version) else {
        let error = match version {
            Some(version) => format!("there is no version {version:?} of a model {name:?}"),
            None => format!("there is no model {name:?}"),
        };
        return Err((404, format!("{error}; there are {:?}", models.offered())));
    };
    match (method, asked) {
        ("GET", "") => Ok(metadata(&model, &models.versions(name))),
        ("GET", "ready") => Ok(json!({ "name": model.name, "ready": true })),
        ("POST", "infer") => infer(&model, content),
        _ => Err((404, format!("{method} {asked:?} is nothing that models are asked"))),
    }
}

fn metadata(model: &Model, versions: &[String]) -> Value {
    let describe = |port: &Port| {
        let shape: Vec<i64> = port.shape.iter().flatten().map(|d| d.map_or(-1, |d| d as i64)).collect();
        json!({ "name": port.name, "datatype": port.data_type.to_string(), "shape": shape })
    };
    let all = |ports: &[Port]| ports.iter().map(describe).collect::<Vec<_>>();
    json!({
        "name": model.name,
        "versions": versions,
        "platform": "onnx",
        "inputs": all(model.engine.inputs()),
        "outputs": all(model.engine.outputs()),
    })
}

#[derive(Deserialize)]
struct InferRequest {
    id: Option<String>,
    inputs: Vec<InputTensor>,
}

#[derive(Deserialize)]
struct InputTensor {
    name: String,
    shape: Vec<usize>,
    datatype: String,
    data: Value,
}

fn infer(model: &Model, body: &[u8]) -> Answer {
    let bad = |reason: String| (400, reason);
    let request: InferRequest =
        serde_json::from_slice(body).map_err(|e| bad(format!("this is no inference request: {e}")))?;
    let mut inputs = Vec::new();
    for port in model.engine.inputs() {
        let mut given = request.inputs.iter().filter(|i| i.name == port.name);
        let (Some(input), None) = (given.next(), given.next()) else {
            return Err(bad(format!("the input {:?} must be given, once", port.name)));
        };
        inputs.push(tensor(input).map_err(|reason| bad(format!("input {:?}: {reason}", input.name)))?);
    }
    if let Some(other) =
        request.inputs.iter().find(|i| model.engine.inputs().iter().all(|p| p.name != i.name))
    {
        return Err(bad(format!("the model has no input {:?}", other.name)));
    }
    let results = model.engine.run(&inputs).map_err(|e| bad(e.to_string()))?;
    let outputs = model.engine.outputs().iter().zip(results).map(|(port, tensor)| {
        let data = match tensor.data() {
            Data::F32(v) => json!(v),
            Data::F64(v) => json!(v),
            Data::I32(v) => json!(v),
            Data::I64(v) => json!(v),
            Data::Bool(v) => json!(v),
            Data::Text(v) => json!(v),
        };
        let datatype = tensor.data().data_type().to_string();
        json!({ "name": port.name, "shape": tensor.shape(), "datatype": datatype, "data": data })
    });
    let outputs: Vec<Value> = outputs.collect();
    let mut answer = json!({ "model_name": model.name, "model_version": model.version, "outputs": outputs });
    if let Some(id) = request.id {
        answer["id"] = json!(id);
    }
    Ok(answer)
}

/// A tensor of JSON: numbers in row-major order, nested or flat.
fn tensor(input: &InputTensor) -> Result<Tensor, String> {
    let types = [DataType::F32, DataType::F64, DataType::I32, DataType::I64, DataType::Bool, DataType::Text];
    let data_type = types.into_iter().find(|t| t.to_string() == input.datatype);
    let data_type = data_type.ok_or_else(|| format!("the datatype {:?} is not supported", input.datatype))?;
    let mut flat = Vec::new();
    flatten(&input.data, &mut flat);
    let data = match data_type {
        DataType::F32 => Data::F32(all(&flat, |v| v.as_f64().map(|x| x as f32))?),
        DataType::F64 => Data::F64(all(&flat, Value::as_f64)?),
        DataType::I32 => Data::I32(all(&flat, |v| v.as_i64().and_then(|x| x.try_into().ok()))?),
        DataType::I64 => Data::I64(all(&flat, Value::as_i64)?),
        DataType::Bool => Data::Bool(all(&flat, Value::as_bool)?),
        DataType::Text => Data::Text(all(&flat, |v| v.as_str().map(str::to_owned))?),
    };
    let count = data.len();
    Tensor::new(input.shape.clone(), data)
        .ok_or_else(|| format!("{count} elements are given for the shape {:?}", input.shape))
}

/// Leaves of nested arrays, in order. serde_json has bounded how deep they nest.
fn flatten<'a>(value: &'a Value, into: &mut Vec<&'a Value>) {
    match value {
        Value::Array(values) => values.iter().for_each(|v| flatten(v, into)),
        other => into.push(other),
    }
}

fn all<T>(values: &[&Value], read: impl Fn(&Value) -> Option<T>) -> Result<Vec<T>, String> {
    let read = values.iter().enumerate().map(|(i, v)| {
        read(v).ok_or_else(|| format!("element {i} is not of the datatype, or outside its range"))
    });
    read.collect()
}
