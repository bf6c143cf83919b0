//! The Open Inference Protocol, version 2, as binary HTTP, with its extension for binary tensors. Nothing leaves in plain text.
//!
//! Tensors are read straight into their elements, and only as many as their shape says: what a request costs in memory is
//! bounded by its length.
//!
//! Sources: Open Inference Protocol REST (KServe), binary tensor data extension (Triton), RFC 9292.

use std::borrow::Cow;
use std::fmt;
use std::io::Cursor;
use std::panic::{AssertUnwindSafe, catch_unwind};

use bhttp::{Message, Mode, StatusCode};
use enclos_inference_engine::{Data, DataType, Port, RunError, Tensor, f16};
use serde::de::{self, DeserializeSeed, Deserializer, IgnoredAny, SeqAccess, Visitor};
use serde::ser::Serializer;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use serde_json::{Value, json};

use crate::models::{Model, Models};

/// Inputs or outputs that a request may name.
const MAX_TENSORS: usize = 256;
/// Dimensions of a tensor.
const MAX_DIMENSIONS: usize = 32;
/// How much of a message is JSON, if tensors follow in binary.
const HEADER_LENGTH: &str = "inference-header-content-length";

/// An answer that is no error.
enum Answer {
    Json(Value),
    Inference {
        header: Vec<u8>,
        /// The tensors that were asked for in binary, one behind the other.
        binary: Option<Vec<u8>>,
    },
}

/// An error: HTTP status, and words for the client.
struct Failure(u16, String);

fn bad(reason: impl Into<String>) -> Failure {
    Failure(400, reason.into())
}

/// The answer to a decrypted request: binary HTTP, always.
pub(crate) fn answer(models: &Models, request: &[u8]) -> Vec<u8> {
    // An engine that panics fails one request, not the service.
    let outcome = catch_unwind(AssertUnwindSafe(|| route(models, request)))
        .unwrap_or_else(|_| Err(Failure(500, "the engine failed at this request".into())));
    let (status, kind, length, body) = match outcome {
        Ok(Answer::Json(value)) => (200, "application/json", None, value.to_string().into_bytes()),
        Ok(Answer::Inference { header, binary: None }) => (200, "application/json", None, header),
        Ok(Answer::Inference { mut header, binary: Some(binary) }) => {
            let length = header.len();
            header.extend(binary);
            (200, "application/octet-stream", Some(length), header)
        }
        Err(Failure(status, error)) => {
            (status, "application/json", None, json!({ "error": error }).to_string().into_bytes())
        }
    };
    let mut message = Message::response(StatusCode::try_from(status).unwrap_or(StatusCode::OK));
    message.put_header("content-type", kind);
    if let Some(length) = length {
        message.put_header(HEADER_LENGTH, length.to_string());
    }
    message.write_content(body);
    let mut out = Vec::new();
    // Writing into memory does not fail; an empty reply would say so.
    let _ = message.write_bhttp(Mode::KnownLength, &mut out);
    out
}

fn route(models: &Models, request: &[u8]) -> Result<Answer, Failure> {
    let message = Message::read_bhttp(&mut Cursor::new(request)).map_err(|e| bad(e.to_string()))?;
    let text = |bytes: Option<&[u8]>| String::from_utf8_lossy(bytes.unwrap_or_default()).into_owned();
    let (method, target) = (text(message.control().method()), text(message.control().path()));
    let path = target.split('?').next().unwrap_or_default();
    match (&*method, path) {
        ("GET", "/v2") => Ok(Answer::Json(json!({
            "name": "enclos", "version": env!("CARGO_PKG_VERSION"), "extensions": ["binary_tensor_data"],
        }))),
        ("GET", "/v2/health/live") => Ok(Answer::Json(json!({ "live": true }))),
        ("GET", "/v2/health/ready") => match models.offered().is_empty() {
            false => Ok(Answer::Json(json!({ "ready": true }))),
            true => Err(Failure(503, "no model is loaded".into())),
        },
        (_, "/v2" | "/v2/health/live" | "/v2/health/ready") => Err(wrong_method(&method, path, "GET")),
        (method, path) => match path.strip_prefix("/v2/models/") {
            Some(rest) => of_model(models, method, rest, &message),
            None => Err(Failure(404, format!("{method} {path} is nothing that is served"))),
        },
    }
}

/// Below `/v2/models/`: a name, perhaps a version, and what is asked of it.
fn of_model(models: &Models, method: &str, path: &str, message: &Message) -> Result<Answer, Failure> {
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
        return Err(Failure(404, format!("{error}; there are {:?}", models.offered())));
    };
    match (method, asked) {
        ("GET", "") => Ok(Answer::Json(metadata(&model, &models.versions(name)))),
        ("GET", "ready") => Ok(Answer::Json(json!({ "name": model.name, "ready": true }))),
        ("POST", "infer") => infer(&model, message),
        (_, "" | "ready") => Err(wrong_method(method, path, "GET")),
        (_, "infer") => Err(wrong_method(method, path, "POST")),
        _ => Err(Failure(404, format!("{method} {asked:?} is nothing that models are asked"))),
    }
}

fn wrong_method(method: &str, path: &str, right: &str) -> Failure {
    Failure(405, format!("{path} is asked with {right}, not with {method}"))
}

/// A dimension that may be any is -1. A model that does not say how many dimensions there are has one such.
fn metadata(model: &Model, versions: &[String]) -> Value {
    let describe = |port: &Port| {
        let shape: Vec<i64> = match &port.shape {
            Some(shape) => shape.iter().map(|d| d.map_or(-1, |d| d as i64)).collect(),
            None => vec![-1],
        };
        json!({ "name": port.name, "datatype": port.data_type.to_string(), "shape": shape })
    };
    let all = |ports: &[Port]| ports.iter().map(describe).collect::<Vec<_>>();
    // By the names that Triton has for these settings.
    let batching = match &model.batching {
        Ok(batcher) => json!({
            "max_batch_size": batcher.max_size(),
            "max_queue_delay_microseconds": batcher.max_delay().as_micros() as u64,
        }),
        Err(reason) => json!({ "off": reason }),
    };
    json!({
        "name": model.name,
        "versions": versions,
        "platform": "onnx",
        "engine": { "name": model.engine.name(), "reason": model.reason },
        "batching": batching,
        "inputs": all(model.engine.inputs()),
        "outputs": all(model.engine.outputs()),
    })
}

#[derive(Deserialize)]
struct InferRequest<'a> {
    id: Option<String>,
    #[serde(default)]
    parameters: Parameters,
    #[serde(borrow, deserialize_with = "at_most::<MAX_TENSORS, _, _>")]
    inputs: Vec<RequestInput<'a>>,
    #[serde(borrow, default, deserialize_with = "at_most::<MAX_TENSORS, _, _>")]
    outputs: Vec<RequestOutput<'a>>,
}

#[derive(Deserialize)]
struct RequestInput<'a> {
    #[serde(borrow)]
    name: Cow<'a, str>,
    #[serde(deserialize_with = "at_most::<MAX_DIMENSIONS, _, _>")]
    shape: Vec<usize>,
    #[serde(borrow)]
    datatype: Cow<'a, str>,
    #[serde(default)]
    parameters: Parameters,
    /// Read when shape and datatype are known.
    #[serde(borrow)]
    data: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct RequestOutput<'a> {
    #[serde(borrow)]
    name: Cow<'a, str>,
    #[serde(default)]
    parameters: Parameters,
}

/// Parameters of a request and its tensors. Others are skipped, as the protocol has it; those that would change what is
/// answered, and are not supported, are refused.
#[derive(Default, Deserialize)]
struct Parameters {
    /// Bytes of this tensor behind the JSON.
    binary_data_size: Option<usize>,
    /// This output is wanted in binary.
    binary_data: Option<bool>,
    /// All outputs are, if nothing else is said of them.
    binary_data_output: Option<bool>,
    classification: Option<IgnoredAny>,
    shared_memory_region: Option<IgnoredAny>,
    sequence_id: Option<IgnoredAny>,
}

impl Parameters {
    fn check(&self) -> Result<(), Failure> {
        let refused = [
            ("classification", self.classification.is_some()),
            ("shared_memory_region", self.shared_memory_region.is_some()),
            ("sequence_id", self.sequence_id.is_some()),
        ];
        match refused.into_iter().find(|(_, is_given)| *is_given) {
            Some((name, _)) => Err(bad(format!("the parameter {name:?} is not supported: leave it out"))),
            None => Ok(()),
        }
    }
}

/// A list that is refused when it grows too long, not afterwards.
fn at_most<'de, const N: usize, T: Deserialize<'de>, D: Deserializer<'de>>(
    from: D,
) -> Result<Vec<T>, D::Error> {
    struct List<const N: usize, T>(std::marker::PhantomData<T>);
    impl<'de, const N: usize, T: Deserialize<'de>> Visitor<'de> for List<N, T> {
        type Value = Vec<T>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "a list of at most {N}")
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Vec<T>, A::Error> {
            let mut all = Vec::new();
            while let Some(one) = list.next_element()? {
                if all.len() == N {
                    return Err(de::Error::invalid_length(N + 1, &self));
                }
                all.push(one);
            }
            Ok(all)
        }
    }
    from.deserialize_seq(List::<N, T>(std::marker::PhantomData))
}

fn infer(model: &Model, message: &Message) -> Result<Answer, Failure> {
    let (header, binary) = split(message)?;
    let request: InferRequest<'_> =
        serde_json::from_slice(header).map_err(|e| bad(format!("this is no inference request: {e}")))?;
    request.parameters.check()?;
    let inputs = inputs(model, &request, binary)?;
    let wanted = wanted(model, &request)?;
    let results = model.run(inputs).map_err(|e| match e {
        RunError::Input { .. } | RunError::Node { .. } | RunError::Engine { .. } => bad(e.to_string()),
        other => Failure(500, other.to_string()),
    })?;
    respond(model, request.id, &wanted, &results)
}

/// JSON, and the binary tensors behind it.
fn split(message: &Message) -> Result<(&[u8], &[u8]), Failure> {
    if let Some(coding) = message.header().get(b"content-encoding").filter(|coding| *coding != b"identity") {
        let coding = String::from_utf8_lossy(coding);
        let reason = format!(
            "bodies with the coding {coding:?} are not taken: lengths of compressed ones tell what is in them"
        );
        return Err(Failure(415, reason));
    }
    let content = message.content();
    let Some(length) = message.header().get(HEADER_LENGTH.as_bytes()) else { return Ok((content, &[])) };
    let length = std::str::from_utf8(length).ok().and_then(|text| text.parse::<usize>().ok());
    length.and_then(|length| content.split_at_checked(length)).ok_or_else(|| {
        bad(format!(
            "{HEADER_LENGTH} must be the length of the JSON, at most that of the body, {}",
            content.len()
        ))
    })
}

/// What the engine takes, in its order.
fn inputs(model: &Model, request: &InferRequest<'_>, mut binary: &[u8]) -> Result<Vec<Tensor>, Failure> {
    let mut given: Vec<Option<Tensor>> = model.engine.inputs().iter().map(|_| None).collect();
    for input in &request.inputs {
        let of_input = |reason: String| bad(format!("input {:?}: {reason}", input.name));
        let Some(place) = model.engine.inputs().iter().position(|port| port.name == input.name) else {
            return Err(bad(format!("the model has no input {:?}", input.name)));
        };
        if given[place].is_some() {
            return Err(of_input("it is given twice".into()));
        }
        input.parameters.check()?;
        let of_tensor = match input.parameters.binary_data_size {
            None => &[],
            Some(size) => {
                let (taken, rest) = binary.split_at_checked(size).ok_or_else(|| {
                    of_input(format!(
                        "its {size} bytes of binary data are not all there, but {}",
                        binary.len()
                    ))
                })?;
                binary = rest;
                taken
            }
        };
        given[place] = Some(tensor(input, of_tensor).map_err(of_input)?);
    }
    if !binary.is_empty() {
        return Err(bad(format!("{} bytes of binary data are no input's", binary.len())));
    }
    let ports = model.engine.inputs();
    let all = ports
        .iter()
        .zip(given)
        .map(|(port, tensor)| tensor.ok_or_else(|| bad(format!("the input {:?} must be given", port.name))));
    all.collect()
}

fn tensor(input: &RequestInput<'_>, binary: &[u8]) -> Result<Tensor, String> {
    let data_type = DataType::ALL.iter().copied().find(|t| t.to_string() == input.datatype);
    let data_type = data_type.ok_or_else(|| format!("the datatype {:?} is not supported", input.datatype))?;
    let count = input.shape.iter().try_fold(1_usize, |product, d| product.checked_mul(*d));
    let count = count.ok_or_else(|| format!("the shape {:?} has too many elements", input.shape))?;
    let is_binary = input.parameters.binary_data_size.is_some();
    let data = match (is_binary, input.data) {
        (true, None) => Data::from_binary(data_type, binary)?,
        (false, Some(json)) => from_json(data_type, json, count)?,
        (true, Some(_)) => return Err("it has both data and binary_data_size".into()),
        (false, None) => return Err("it has neither data nor binary_data_size".into()),
    };
    let given = data.len();
    Tensor::new(input.shape.clone(), data).ok_or_else(|| match given == count {
        true => format!("the shape {:?} has too many elements", input.shape),
        false => format!("{given} elements are given for the shape {:?}", input.shape),
    })
}

/// The outputs to answer with: places among the model's, and whether in binary.
fn wanted(model: &Model, request: &InferRequest<'_>) -> Result<Vec<(usize, bool)>, Failure> {
    let by_default = request.parameters.binary_data_output.unwrap_or(false);
    let ports = model.engine.outputs();
    if request.outputs.is_empty() {
        return Ok((0..ports.len()).map(|place| (place, by_default)).collect());
    }
    let mut wanted: Vec<(usize, bool)> = Vec::new();
    for output in &request.outputs {
        output.parameters.check()?;
        let place = ports.iter().position(|port| port.name == output.name);
        let place = place.ok_or_else(|| bad(format!("the model has no output {:?}", output.name)))?;
        if wanted.iter().any(|(other, _)| *other == place) {
            return Err(bad(format!("the output {:?} is asked for twice", output.name)));
        }
        wanted.push((place, output.parameters.binary_data.unwrap_or(by_default)));
    }
    Ok(wanted)
}

#[derive(Serialize)]
struct InferResponse<'a> {
    model_name: &'a str,
    model_version: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<String>,
    outputs: Vec<ResponseOutput<'a>>,
}

#[derive(Serialize)]
struct ResponseOutput<'a> {
    name: &'a str,
    shape: &'a [usize],
    datatype: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    parameters: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<AsJson<'a>>,
}

fn respond(
    model: &Model,
    id: Option<String>,
    wanted: &[(usize, bool)],
    results: &[Tensor],
) -> Result<Answer, Failure> {
    let mut outputs = Vec::new();
    let mut binary = wanted.iter().any(|(_, in_binary)| *in_binary).then(Vec::new);
    for (place, in_binary) in wanted {
        let (Some(port), Some(tensor)) = (model.engine.outputs().get(*place), results.get(*place)) else {
            return Err(Failure(500, "the engine gave fewer outputs than the model has".into()));
        };
        let data = tensor.data();
        let (parameters, data) = match (in_binary, &mut binary) {
            (true, Some(binary)) => {
                let before = binary.len();
                data.to_binary(binary).map_err(|reason| Failure(500, reason))?;
                (Some(json!({ "binary_data_size": binary.len() - before })), None)
            }
            _ if !is_finite(data) => {
                let reason = format!(
                    "the output {:?} holds infinite values or NaN, which JSON does not have: ask for it in binary (\"binary_data\": true)",
                    port.name
                );
                return Err(Failure(406, reason));
            }
            _ => (None, Some(AsJson(data))),
        };
        let datatype = tensor.data().data_type().to_string();
        outputs.push(ResponseOutput { name: &port.name, shape: tensor.shape(), datatype, parameters, data });
    }
    let response = InferResponse { model_name: &model.name, model_version: &model.version, id, outputs };
    let header = serde_json::to_vec(&response).map_err(|e| Failure(500, e.to_string()))?;
    Ok(Answer::Inference { header, binary })
}

/// An element as it stands in JSON.
enum Scalar<'a> {
    Negative(i64),
    Unsigned(u64),
    Float(f64),
    Bool(bool),
    Text(&'a str),
}

/// What a type of elements is in JSON.
trait Element: Sized {
    /// `None`: another type, or outside its range.
    fn from_scalar(scalar: Scalar<'_>) -> Option<Self>;
}

macro_rules! integers {
    ($($element:ty)*) => {$(
        impl Element for $element {
            fn from_scalar(scalar: Scalar<'_>) -> Option<Self> {
                match scalar {
                    Scalar::Negative(x) => x.try_into().ok(),
                    Scalar::Unsigned(x) => x.try_into().ok(),
                    _ => None,
                }
            }
        }
    )*};
}

macro_rules! floats {
    ($($element:ty, $from_f64:expr;)*) => {$(
        impl Element for $element {
            fn from_scalar(scalar: Scalar<'_>) -> Option<Self> {
                let from_f64: fn(f64) -> Self = $from_f64;
                let value = from_f64(match scalar {
                    Scalar::Negative(x) => x as f64,
                    Scalar::Unsigned(x) => x as f64,
                    Scalar::Float(x) => x,
                    _ => return None,
                });
                value.is_finite().then_some(value)
            }
        }
    )*};
}

impl Element for bool {
    fn from_scalar(scalar: Scalar<'_>) -> Option<Self> {
        match scalar {
            Scalar::Bool(b) => Some(b),
            _ => None,
        }
    }
}

/// The types that engines have, besides text. One line a type, of those named `floats` with what JSON has for an element.
macro_rules! data_types {
    (
        integers: $($integer:ident($integer_type:ty))*;
        floats: $($float:ident($float_type:ty, $from_f64:expr, $to_f64:expr))*;
    ) => {
        integers! { $($integer_type)* }
        floats! { $($float_type, $from_f64;)* }

        /// At most `limit` elements of nested or flat arrays, in order.
        fn from_json(data_type: DataType, json: &RawValue, limit: usize) -> Result<Data, String> {
            Ok(match data_type {
                $(DataType::$integer => Data::$integer(elements(json, limit, Element::from_scalar)?),)*
                $(DataType::$float => Data::$float(elements(json, limit, Element::from_scalar)?),)*
                DataType::Bool => Data::Bool(elements(json, limit, Element::from_scalar)?),
                DataType::Text => Data::Text(elements(json, limit, |scalar| match scalar {
                    Scalar::Text(text) => Some(text.to_owned()),
                    _ => None,
                })?),
            })
        }

        fn is_finite(data: &Data) -> bool {
            match data {
                $(Data::$float(v) => v.iter().all(|x| x.is_finite()),)*
                _ => true,
            }
        }

        impl Serialize for AsJson<'_> {
            fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
                match self.0 {
                    $(Data::$integer(v) => v.serialize(to),)*
                    $(Data::$float(v) => to.collect_seq(v.iter().map($to_f64)),)*
                    Data::Bool(v) => v.serialize(to),
                    Data::Text(v) => v.serialize(to),
                }
            }
        }
    };
}

data_types! {
    integers: I8(i8) I16(i16) I32(i32) I64(i64) U8(u8) U16(u16) U32(u32) U64(u64);
    floats: F16(f16, f16::from_f64, |x| x.to_f32()) F32(f32, |x| x as f32, |x| *x) F64(f64, |x| x, |x| *x);
}

/// Elements in row-major order, as a list.
struct AsJson<'a>(&'a Data);

fn elements<T>(
    json: &RawValue,
    limit: usize,
    read: impl Fn(Scalar<'_>) -> Option<T>,
) -> Result<Vec<T>, String> {
    // An element takes two characters at least, so memory is in proportion to what was sent.
    let mut into = Vec::with_capacity(limit.min(json.get().len() / 2));
    let reader = Elements { into: &mut into, limit, read: &read };
    reader.deserialize(&mut serde_json::Deserializer::from_str(json.get())).map_err(|e| e.to_string())?;
    Ok(into)
}

/// Leaves of nested arrays. serde_json bounds how deep they nest.
struct Elements<'a, T, F> {
    into: &'a mut Vec<T>,
    limit: usize,
    read: &'a F,
}

impl<T, F: Fn(Scalar<'_>) -> Option<T>> Elements<'_, T, F> {
    fn push<E: de::Error>(self, scalar: Scalar<'_>) -> Result<(), E> {
        let place = self.into.len();
        if place >= self.limit {
            return Err(E::custom(format_args!(
                "there are more elements than the shape has, {}",
                self.limit
            )));
        }
        let element = (self.read)(scalar).ok_or_else(|| {
            E::custom(format_args!("element {place} is not of the datatype, or outside its range"))
        })?;
        self.into.push(element);
        Ok(())
    }
}

impl<'de, T, F: Fn(Scalar<'_>) -> Option<T>> DeserializeSeed<'de> for Elements<'_, T, F> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<(), D::Error> {
        from.deserialize_any(self)
    }
}

impl<'de, T, F: Fn(Scalar<'_>) -> Option<T>> Visitor<'de> for Elements<'_, T, F> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("elements of the datatype, in arrays")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<(), A::Error> {
        let Self { into, limit, read } = self;
        while list.next_element_seed(Elements { into: &mut *into, limit, read })?.is_some() {}
        Ok(())
    }

    fn visit_i64<E: de::Error>(self, x: i64) -> Result<(), E> {
        self.push(Scalar::Negative(x))
    }

    fn visit_u64<E: de::Error>(self, x: u64) -> Result<(), E> {
        self.push(Scalar::Unsigned(x))
    }

    fn visit_f64<E: de::Error>(self, x: f64) -> Result<(), E> {
        self.push(Scalar::Float(x))
    }

    fn visit_bool<E: de::Error>(self, x: bool) -> Result<(), E> {
        self.push(Scalar::Bool(x))
    }

    fn visit_str<E: de::Error>(self, x: &str) -> Result<(), E> {
        self.push(Scalar::Text(x))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::models::Batching;

    /// A decision tree of 64 numbers, by `examples/digits/train.py`.
    const MODEL: &[u8] = include_bytes!("../../tests/data/tree.onnx");

    fn models() -> Models {
        let models = Models::default();
        models.serve("tree", MODEL, false, Batching::default()).unwrap();
        models
    }

    #[test]
    fn requests_that_come_together_are_answered_as_alone() {
        let (alone, together) = (models(), Models::default());
        let batching = Batching { max_size: 4, max_delay: std::time::Duration::from_secs(1) };
        let loaded = together.serve("tree", MODEL, false, batching).unwrap();
        assert!(loaded.reason.ends_with("; requests are run together"), "{}", loaded.reason);
        let metadata =
            |models: &Models| read(&answer(models, &message("GET", "/v2/models/tree", None, b""))).header;
        let expected = json!({ "max_batch_size": 4, "max_queue_delay_microseconds": 1_000_000 });
        assert_eq!(metadata(&together)["batching"], expected);
        assert!(metadata(&alone)["batching"]["off"].is_string());

        let request = |i: usize| {
            let row: Vec<f32> = (0..64).map(|j| ((i * 7 + j * (i + 3)) % 17) as f32).collect();
            json!({ "id": i.to_string(), "inputs": [input(json!([1, 64]), json!(row))] })
        };
        std::thread::scope(|scope| {
            for i in 0..8 {
                let (alone, together, request) = (&alone, &together, request(i));
                scope.spawn(move || {
                    // One of two has a wrong shape: it fails by itself, before it could wait for others.
                    if i % 2 == 1 {
                        let wrong = json!({ "inputs": [input(json!([1, 63]), json!(vec![0; 63]))] });
                        assert_eq!(ask(together, &wrong, &[]).status, 400);
                    }
                    let (expected, is) = (ask(alone, &request, &[]), ask(together, &request, &[]));
                    assert_eq!((is.status, &is.header), (200, &expected.header));
                    assert_eq!(is.header["id"], i.to_string());
                });
            }
        });
    }

    #[test]
    fn of_a_secret_model_the_host_is_told_no_names() {
        // A field that stands twice in the file: engines run the model, but nothing is proven of it.
        let mut odd = MODEL.to_vec();
        odd.extend([0x3a, 0]);
        let batching = Batching { max_size: 4, ..Batching::default() };
        let models = Models::default();
        let told = |secret| models.serve("tree", &odd, secret, batching).unwrap().reason;
        assert!(told(true).ends_with("; requests are not run together"), "{}", told(true));
        assert!(told(false).contains("; requests are not run together: the model's file"), "{}", told(false));
        let reply = read(&answer(&models, &message("GET", "/v2/models/tree", None, b"")));
        assert!(reply.header["batching"]["off"].as_str().unwrap().contains("twice"), "{}", reply.header);
    }

    struct Reply {
        status: u16,
        header: Value,
        binary: Vec<u8>,
    }

    fn message(method: &str, path: &str, length: Option<usize>, body: &[u8]) -> Vec<u8> {
        let mut message =
            Message::request(method.into(), b"https".to_vec(), b"enclave".to_vec(), path.into());
        if let Some(length) = length {
            message.put_header(HEADER_LENGTH, length.to_string());
        }
        message.write_content(body);
        let mut out = Vec::new();
        message.write_bhttp(Mode::KnownLength, &mut out).unwrap();
        out
    }

    fn read(answer: &[u8]) -> Reply {
        let message = Message::read_bhttp(&mut Cursor::new(answer)).unwrap();
        let status = message.control().status().unwrap().code();
        let (header, binary) = split(&message).ok().unwrap();
        Reply { status, header: serde_json::from_slice(header).unwrap(), binary: binary.to_vec() }
    }

    fn ask(models: &Models, request: &Value, binary: &[u8]) -> Reply {
        let header = request.to_string().into_bytes();
        let body = [&header, binary].concat();
        read(&answer(models, &message("POST", "/v2/models/tree/infer", Some(header.len()), &body)))
    }

    fn input(shape: Value, data: Value) -> Value {
        json!({ "name": "X", "shape": shape, "datatype": "FP32", "data": data })
    }

    fn binary_input(rows: usize, size: usize) -> Value {
        json!({ "name": "X", "shape": [rows, 64], "datatype": "FP32", "parameters": { "binary_data_size": size } })
    }

    #[test]
    fn json_and_binary_say_the_same() {
        let models = models();
        let row: Vec<f32> = (0..64).map(|i| (i % 17) as f32).collect();
        let bytes: Vec<u8> = row.iter().flat_map(|x| x.to_le_bytes()).collect();
        let flat = ask(&models, &json!({ "inputs": [input(json!([1, 64]), json!(row))] }), &[]);
        assert_eq!(flat.status, 200, "{}", flat.header);
        let nested =
            ask(&models, &json!({ "id": "7", "inputs": [input(json!([1, 64]), json!([row]))] }), &[]);
        assert_eq!(nested.header["outputs"], flat.header["outputs"]);
        assert_eq!(nested.header["id"], "7");

        let request =
            json!({ "parameters": { "binary_data_output": true }, "inputs": [binary_input(1, 256)] });
        let reply = ask(&models, &request, &bytes);
        assert_eq!(reply.status, 200, "{}", reply.header);
        let label = i64::from_le_bytes(reply.binary[..8].try_into().unwrap());
        assert_eq!(json!([label]), flat.header["outputs"][0]["data"]);
        assert_eq!(reply.header["outputs"][0]["parameters"]["binary_data_size"], 8);
        let probabilities = reply.binary[8..].as_chunks().0.iter().map(|b| f32::from_le_bytes(*b));
        assert_eq!(json!(probabilities.collect::<Vec<_>>()), flat.header["outputs"][1]["data"]);

        // Only what is asked for, in the order in which it is asked for, each in its form.
        let [second, first] = [1, 0].map(|i| flat.header["outputs"][i]["name"].clone());
        let outputs = json!([{ "name": second, "parameters": { "binary_data": true } }, { "name": first }]);
        let reply = ask(&models, &json!({ "inputs": [binary_input(1, 256)], "outputs": outputs }), &bytes);
        assert_eq!(reply.header["outputs"][0]["parameters"]["binary_data_size"], 40);
        assert_eq!(reply.header["outputs"][1]["data"], json!([label]));
        assert_eq!(reply.binary.len(), 40);
        // Any number of rows: the first dimension is dynamic.
        let reply = ask(&models, &json!({ "inputs": [binary_input(3, 768)] }), &bytes.repeat(3));
        assert_eq!(reply.header["outputs"][0]["data"], json!([label, label, label]));
        assert!(reply.binary.is_empty());
    }

    #[test]
    fn what_is_wrong_is_said() {
        let models = models();
        let x = || input(json!([1, 64]), json!(vec![0; 64]));
        let with = |field: &str, value: Value| {
            let mut changed = x();
            changed[field] = value;
            json!({ "inputs": [changed] })
        };
        let many: Vec<Value> = (0..=MAX_TENSORS).map(|_| x()).collect();
        let parameter = |name: &str| {
            let mut changed = x();
            changed["parameters"] = json!({ name: 1 });
            json!({ "inputs": [changed] })
        };
        for (request, binary, words) in [
            (json!([]), 0, "no inference request"),
            (json!({}), 0, "inputs"),
            (json!({ "inputs": [] }), 0, "must be given"),
            (json!({ "inputs": [x(), x()] }), 0, "given twice"),
            (json!({ "inputs": many }), 0, "at most 256"),
            (with("name", json!("Y")), 0, "no input \"Y\""),
            (with("shape", json!([1, 63])), 0, "more elements"),
            (with("shape", json!([2, 64])), 0, "64 elements are given"),
            (with("shape", json!([-1, 64])), 0, "no inference request"),
            (with("shape", json!(vec![1; 33])), 0, "at most 32"),
            (with("shape", json!([1_u64 << 40, 1_u64 << 40])), 0, "too many"),
            (with("shape", json!([64])), 0, "input"),
            (with("shape", json!([0, 64])), 0, "more elements"),
            (with("datatype", json!("FP99")), 0, "not supported"),
            (with("datatype", json!("INT64")), 0, "INT64"),
            (with("datatype", json!("BYTES")), 0, "element 0"),
            (with("datatype", json!("BOOL")), 0, "element 0"),
            (with("data", json!(vec!["0"; 64])), 0, "element 0"),
            (with("data", json!(vec![1e300; 64])), 0, "outside its range"),
            (with("data", json!({})), 0, "invalid type"),
            (with("data", Value::Null), 0, "neither"),
            (json!({ "inputs": [binary_input(1, 256)] }), 255, "not all there"),
            (json!({ "inputs": [binary_input(1, 256)] }), 257, "no input's"),
            (json!({ "inputs": [binary_input(1, 255)] }), 255, "elements of 4 bytes"),
            (json!({ "inputs": [binary_input(2, 256)] }), 256, "elements are given"),
            (json!({ "inputs": [x()] }), 4, "no input's"),
            (parameter("classification"), 0, "not supported"),
            (parameter("shared_memory_region"), 0, "not supported"),
            (json!({ "inputs": [x()], "parameters": { "sequence_id": 7 } }), 0, "not supported"),
            (json!({ "inputs": [x()], "outputs": [{ "name": "nothing" }] }), 0, "no output"),
        ] {
            let reply = ask(&models, &request, &vec![0; binary]);
            let error = reply.header["error"].as_str().unwrap_or_default();
            assert_eq!(reply.status, 400, "{request}: {}", reply.header);
            assert!(error.contains(words), "{request}: {error}");
        }
        for (method, path, length, status) in [
            ("POST", "/v2/models/tree/infer", Some(2), 400),
            ("GET", "/v2/models/tree/infer", None, 405),
            ("POST", "/v2", None, 405),
            ("POST", "/v2/models/other/infer", None, 404),
            ("GET", "/v2/models/tree/versions/1", None, 404),
            ("GET", "/v2/models/tree/else", None, 404),
            ("GET", "/", None, 404),
        ] {
            let reply = read(&answer(&models, &message(method, path, length, b"")));
            assert_eq!(reply.status, status, "{method} {path}");
            assert!(reply.header["error"].is_string());
        }
    }

    #[test]
    fn every_type_stands_the_same_in_binary() {
        for (data, json) in [
            (Data::F32(vec![1.5, -0.25]), "[1.5,-0.25]"),
            (Data::F64(vec![0.1, 1e-300]), "[0.1,1e-300]"),
            (Data::F16(vec![f16::from_f32(1.5), f16::MAX]), "[1.5,65504.0]"),
            (Data::I8(vec![i8::MIN, 7]), "[-128,7]"),
            (Data::I16(vec![i16::MIN, 7]), "[-32768,7]"),
            (Data::I32(vec![i32::MIN, 7]), "[-2147483648,7]"),
            (Data::U8(vec![0, u8::MAX]), "[0,255]"),
            (Data::U16(vec![0, u16::MAX]), "[0,65535]"),
            (Data::U32(vec![0, u32::MAX]), "[0,4294967295]"),
            (Data::U64(vec![0, u64::MAX]), "[0,18446744073709551615]"),
            (Data::I64(vec![i64::MIN, i64::MAX]), "[-9223372036854775808,9223372036854775807]"),
            (Data::Bool(vec![true, false]), "[true,false]"),
            (Data::Text(vec!["ä\"".into(), String::new()]), "[\"ä\\\"\",\"\"]"),
        ] {
            let mut bytes = Vec::new();
            data.to_binary(&mut bytes).unwrap();
            assert_eq!(Data::from_binary(data.data_type(), &bytes).unwrap(), data);
            assert_eq!(serde_json::to_string(&AsJson(&data)).unwrap(), json);
            let raw = RawValue::from_string(json.into()).unwrap();
            assert_eq!(from_json(data.data_type(), &raw, 2).unwrap(), data);
            assert!(from_json(data.data_type(), &raw, 1).is_err());
            for length in 1..bytes.len() {
                if let Ok(shorter) = Data::from_binary(data.data_type(), &bytes[..length]) {
                    assert!(shorter.len() < data.len());
                }
            }
        }
        assert!(Data::from_binary(DataType::Bool, &[2]).is_err());
        assert!(Data::from_binary(DataType::Text, &[1, 0, 0, 0, 0xff]).is_err());
        assert!(!is_finite(&Data::F32(vec![0., f32::NAN])));
    }

    /// Whatever comes, there is an answer with a status and, if it is an error, with words.
    #[test]
    fn damaged_requests_are_answered() {
        let models = models();
        let row: Vec<u8> = (0..64).flat_map(|i| (i as f32).to_le_bytes()).collect();
        let header = json!({
            "id": "1", "parameters": { "binary_data_output": true },
            "inputs": [binary_input(1, 256)], "outputs": [{ "name": "label" }],
        });
        let header = header.to_string().into_bytes();
        let binary =
            message("POST", "/v2/models/tree/infer", Some(header.len()), &[header.clone(), row].concat());
        let json = json!({ "inputs": [input(json!([1, 64]), json!([vec![1.5; 64]]))] }).to_string();
        let json = message("POST", "/v2/models/tree/infer", None, json.as_bytes());
        let mut seen = std::collections::BTreeSet::new();
        let mut check = |request: &[u8]| {
            let reply = read(&answer(&models, request));
            assert!(reply.status == 200 || reply.header["error"].is_string());
            assert_ne!(reply.status, 500, "{}", reply.header);
            seen.insert(reply.status);
        };
        // xorshift64, so that a failure comes again.
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let mut random = move |below: usize| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state % below as u64) as usize
        };
        for request in [&binary, &json] {
            for length in 0..request.len() {
                check(&request[..length]);
            }
            for place in 0..request.len() {
                for bit in 0..8 {
                    let mut damaged = request.clone();
                    damaged[place] ^= 1 << bit;
                    check(&damaged);
                }
            }
            for _ in 0..3000 {
                let mut damaged = request.clone();
                for _ in 0..=random(4) {
                    let (from, to, length) = (random(damaged.len()), random(damaged.len()), random(24));
                    match random(3) {
                        0 => damaged[from] = random(256) as u8,
                        1 => drop(damaged.drain(from..(from + length).min(damaged.len() - 1).max(from))),
                        _ => {
                            let piece = damaged[from..(from + length).min(damaged.len())].to_vec();
                            damaged.splice(to..to, piece);
                        }
                    }
                }
                check(&damaged);
            }
        }
        check(&message("POST", "/v2/models/tree/infer", None, "[".repeat(100_000).as_bytes()));
        let deep = format!(
            "{{\"inputs\":[{{\"name\":\"X\",\"shape\":[1,64],\"datatype\":\"FP32\",\"data\":{}",
            "[".repeat(100_000)
        );
        check(&message("POST", "/v2/models/tree/infer", None, deep.as_bytes()));
        assert!(seen.is_superset(&[200, 400, 404, 405].into()), "{seen:?}");
    }
}
