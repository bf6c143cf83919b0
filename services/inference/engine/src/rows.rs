//! Whether a model treats each row by itself: then rows of several clients may be run in one go.
//!
//! [`independent_rows`] proves it, or says which node it cannot follow. What it proves: with any number of rows, row i of every output
//! is a function of row i of the inputs, of the model, and of the inputs' shapes behind the first dimension; the same function
//! for every i and for every number of rows. Otherwise one client could learn of another's data from its own results.
//!
//! It follows abstract values ([`Value`]) through the graph. An operator, or an attribute of one, that is not named here is
//! refused: a model may be written by whoever wants to learn of other clients' data. What a model alleges of shapes in between
//! (`value_info`) is not believed.

use std::collections::HashMap;

use prost::Message as _;
use prost::encoding::{DecodeContext, WireType, decode_key, decode_varint, skip_field};

use crate::DataType;
use crate::proto::{AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto};
use crate::tensor::Tensor;

/// Versions of ONNX's own operator set whose meaning is known here. Before the first, broadcasting was another.
const OPERATOR_SETS: std::ops::RangeInclusive<i64> = 7..=25;
/// Of `ai.onnx.ml`.
const ML_OPERATOR_SETS: std::ops::RangeInclusive<i64> = 1..=5;
/// Dimensions of a value, and entries of a vector of numbers that is followed.
const MAX_RANK: usize = 32;
const MAX_NUMBERS: usize = 64;

/// `None`: the same for all rows, but not known here.
type Dimension = Option<usize>;

/// What is known of a value.
#[derive(Clone, Debug, PartialEq)]
enum Value {
    /// It depends on the model and on the inputs' shapes behind the first dimension only. Its shape, and its elements if they are
    /// few integers, where they are known.
    Fixed { shape: Option<Vec<usize>>, numbers: Option<Vec<i64>> },
    /// The first dimension is the number of rows; what is behind it depends on the same row only. The dimensions of a row.
    Rows(Vec<Dimension>),
    /// Integers, a vector or a scalar, of which one at least is the number of rows, or not known.
    Numbers { scalar: bool, entries: Vec<Entry> },
    /// One element a row, in their order, in a shape whose other dimensions are 1.
    Flat,
}

/// An integer that a shape may be made of.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Entry {
    /// The number of rows.
    Batch,
    Known(i64),
    /// The same whatever the rows and their number are.
    Same,
}

use Value::{Fixed, Flat, Rows};

/// Operators that are known here, with the attributes that they may have.
#[rustfmt::skip]
const OPERATORS: &[(&str, &[&str])] = &[
    // Of one element each.
    ("Abs", &[]), ("Acos", &[]), ("Acosh", &[]), ("Asin", &[]), ("Asinh", &[]), ("Atan", &[]), ("Atanh", &[]), ("BitwiseNot", &[]),
    ("Cast", &["to", "saturate"]), ("Ceil", &[]), ("Celu", &["alpha"]), ("Cos", &[]), ("Cosh", &[]), ("Elu", &["alpha"]),
    ("Erf", &[]), ("Exp", &[]), ("Floor", &[]), ("Gelu", &["approximate"]), ("HardSigmoid", &["alpha", "beta"]), ("HardSwish", &[]),
    ("Identity", &[]), ("IsInf", &["detect_negative", "detect_positive"]), ("IsNaN", &[]), ("LeakyRelu", &["alpha"]), ("Log", &[]),
    ("Mish", &[]), ("Neg", &[]), ("Not", &[]), ("Reciprocal", &[]), ("Relu", &[]), ("Round", &[]), ("Selu", &["alpha", "gamma"]),
    ("Shrink", &["bias", "lambd"]), ("Sigmoid", &[]), ("Sign", &[]), ("Sin", &[]), ("Sinh", &[]), ("Softplus", &[]),
    ("Softsign", &[]), ("Sqrt", &[]), ("Swish", &["alpha"]), ("Tan", &[]), ("Tanh", &[]), ("ThresholdedRelu", &["alpha"]),
    // With broadcasting.
    ("Add", &[]), ("And", &[]), ("BitShift", &["direction"]), ("BitwiseAnd", &[]), ("BitwiseOr", &[]), ("BitwiseXor", &[]),
    ("Clip", &["min", "max"]), ("Div", &[]), ("Equal", &[]), ("Greater", &[]), ("GreaterOrEqual", &[]), ("Less", &[]),
    ("LessOrEqual", &[]), ("Max", &[]), ("Mean", &[]), ("Min", &[]), ("Mod", &["fmod"]), ("Mul", &[]), ("Or", &[]), ("Pow", &[]),
    ("PRelu", &[]), ("Sub", &[]), ("Sum", &[]), ("Where", &[]), ("Xor", &[]),
    // Products and windows.
    ("AveragePool", &["auto_pad", "ceil_mode", "count_include_pad", "dilations", "kernel_shape", "pads", "strides"]),
    ("Conv", &["auto_pad", "dilations", "group", "kernel_shape", "pads", "strides"]),
    ("ConvTranspose", &["auto_pad", "dilations", "group", "kernel_shape", "output_padding", "output_shape", "pads", "strides"]),
    ("Gemm", &["alpha", "beta", "transA", "transB"]), ("GlobalAveragePool", &[]), ("GlobalMaxPool", &[]), ("MatMul", &[]),
    ("MaxPool", &["auto_pad", "ceil_mode", "dilations", "kernel_shape", "pads", "storage_order", "strides"]),
    // Normalisation.
    ("BatchNormalization", &["epsilon", "momentum", "training_mode"]), ("Dropout", &["ratio", "seed"]),
    ("GroupNormalization", &["epsilon", "num_groups", "stash_type"]), ("InstanceNormalization", &["epsilon"]),
    ("LayerNormalization", &["axis", "epsilon", "stash_type"]), ("LogSoftmax", &["axis"]),
    ("LpNormalization", &["axis", "p"]), ("LRN", &["alpha", "beta", "bias", "size"]), ("Softmax", &["axis"]),
    // Along an axis.
    ("ArgMax", &["axis", "keepdims", "select_last_index"]), ("ArgMin", &["axis", "keepdims", "select_last_index"]),
    ("CumSum", &["exclusive", "reverse"]),
    ("ReduceL1", REDUCE), ("ReduceL2", REDUCE), ("ReduceLogSum", REDUCE), ("ReduceLogSumExp", REDUCE), ("ReduceMax", REDUCE),
    ("ReduceMean", REDUCE), ("ReduceMin", REDUCE), ("ReduceProd", REDUCE), ("ReduceSum", REDUCE), ("ReduceSumSquare", REDUCE),
    ("TopK", &["axis", "largest", "sorted"]),
    // Shapes, and what is moved.
    ("Concat", &["axis"]),
    ("Constant", &["value", "value_float", "value_floats", "value_int", "value_ints", "value_string", "value_strings"]),
    ("ConstantOfShape", &["value"]), ("DepthToSpace", &["blocksize", "mode"]), ("Expand", &[]), ("Flatten", &["axis"]),
    ("Gather", &["axis"]), ("GatherElements", &["axis"]), ("OneHot", &["axis"]), ("Pad", &["mode", "pads", "value"]),
    ("Reshape", &["allowzero"]), ("Shape", &["start", "end"]), ("Slice", &["axes", "ends", "starts"]),
    ("SpaceToDepth", &["blocksize", "mode"]), ("Split", &["axis", "num_outputs", "split"]), ("Squeeze", &["axes"]), ("Tile", &[]),
    ("Transpose", &["perm"]), ("Unsqueeze", &["axes"]),
];
const REDUCE: &[&str] = &["axes", "keepdims", "noop_with_empty_axes"];

/// Of `ai.onnx.ml`. Whatever their attributes say, they work on one row, a vector, after the other.
const ML_OPERATORS: &[&str] = &[
    "ArrayFeatureExtractor",
    "LinearClassifier",
    "LinearRegressor",
    "Normalizer",
    "Scaler",
    "TreeEnsembleClassifier",
    "TreeEnsembleRegressor",
    "ZipMap",
];

/// Whether rows of several clients may be run in one go: no row of a model's results depends on another row of its inputs, nor on how
/// many rows there are. All inputs must have as many rows, and at least one.
///
/// # Errors
/// When that is not proven: the node, input or output that is in the way, or what is wrong with the file.
pub fn independent_rows(model: &[u8]) -> Result<(), String> {
    let file = ModelProto::decode(model).map_err(|e| format!("this is no ONNX model: {e}"))?;
    once(model, &MODEL).map_err(|reason| format!("the model's file is not plain: {reason}"))?;
    independent(&file)
}

/// A message of ONNX's schema: fields that come once at most, and fields that are messages.
struct Message {
    once: &'static [u32],
    inner: &'static [(u32, &'static Message)],
}

const MODEL: Message = Message { once: &[7], inner: &[(7, &GRAPH), (8, &OPERATOR_SET)] };
const OPERATOR_SET: Message = Message { once: &[1, 2], inner: &[] };
const GRAPH: Message = Message { once: &[], inner: &[(1, &NODE), (5, &TENSOR_), (11, &VALUE), (12, &VALUE)] };
const NODE: Message = Message { once: &[3, 4, 7, 8], inner: &[(5, &ATTRIBUTE)] };
const ATTRIBUTE: Message = Message { once: &[1, 2, 3, 4, 5, 6, 20, 21], inner: &[(5, &TENSOR_)] };
const TENSOR_: Message = Message { once: &[2, 8, 9, 14], inner: &[] };
const VALUE: Message = Message { once: &[1, 2], inner: &[(2, &TYPE)] };
const TYPE: Message = Message { once: &[1], inner: &[(1, &TENSOR_TYPE)] };
const TENSOR_TYPE: Message = Message { once: &[1, 2], inner: &[(2, &SHAPE)] };
const SHAPE: Message = Message { once: &[], inner: &[(1, &DIMENSION)] };
const DIMENSION: Message = Message { once: &[1, 2], inner: &[] };

/// That no field comes twice which may come once. Of two, some parsers take the last, and some join them: then what is looked at
/// here would not be what an engine runs.
fn once(mut bytes: &[u8], message: &Message) -> Result<(), String> {
    let malformed = |e: prost::DecodeError| e.to_string();
    let mut seen = 0_u64;
    while !bytes.is_empty() {
        let (field, wire) = decode_key(&mut bytes).map_err(malformed)?;
        if message.once.contains(&field) {
            let bit = 1 << (field % 64);
            if seen & bit != 0 {
                return Err(format!("field {field} comes twice in a message that has it once"));
            }
            seen |= bit;
        }
        match message.inner.iter().find(|(number, _)| *number == field) {
            Some((_, inner)) if wire == WireType::LengthDelimited => {
                let length = decode_varint(&mut bytes).map_err(malformed)?;
                let length = usize::try_from(length).ok();
                let parts = length.and_then(|length| bytes.split_at_checked(length));
                let (part, rest) = parts.ok_or("a message ends early")?;
                once(part, inner)?;
                bytes = rest;
            }
            _ => skip_field(wire, field, &mut bytes, DecodeContext::default()).map_err(malformed)?,
        }
    }
    Ok(())
}

/// Whether no row of the results depends on other rows of the inputs, nor on how many there are, if all inputs have the same number
/// of them, and at least one. The error says which node is in the way, or which input or output.
fn independent(model: &ModelProto) -> Result<(), String> {
    let graph = model.graph.as_ref().ok_or("the model has no graph")?;
    if !model.functions.is_empty() {
        return Err("the model has functions of its own, which are not followed".into());
    }
    if !graph.sparse_initializer.is_empty() {
        return Err("the model has sparse constants, which are not followed".into());
    }
    let opset = version(model, &["", "ai.onnx"], OPERATOR_SETS)?;
    version(model, &["ai.onnx.ml"], ML_OPERATOR_SETS)?;
    let mut values = HashMap::new();
    for tensor in &graph.initializer {
        define(&mut values, &tensor.name, fixed(tensor)?)?;
    }
    inputs(graph, &mut values)?;
    for node in &graph.node {
        let name = node.output.first().filter(|_| node.name.is_empty()).unwrap_or(&node.name);
        let domain = if node.domain.is_empty() { String::new() } else { format!("{}.", node.domain) };
        step(node, opset, &mut values)
            .map_err(|reason| format!("node {name:?} ({domain}{}): {reason}", node.op_type))?;
    }
    if graph.output.is_empty() {
        return Err("the model has no output".into());
    }
    for output in &graph.output {
        match values.get(&*output.name) {
            Some(Rows(_)) => {}
            Some(_) => return Err(format!("the output {:?} has no row for each row", output.name)),
            None => return Err(format!("nothing makes the output {:?}", output.name)),
        }
    }
    Ok(())
}

/// Of an operator set; `None` if the model names none of it.
fn version(
    model: &ModelProto,
    domains: &[&str],
    known: std::ops::RangeInclusive<i64>,
) -> Result<Option<i64>, String> {
    let mut all = model.opset_import.iter().filter(|o| domains.contains(&&*o.domain)).map(|o| o.version);
    let found = all.next();
    match found {
        _ if all.next().is_some() => Err("the model names an operator set twice".into()),
        Some(version) if !known.contains(&version) => {
            Err(format!("operator set {version} is not followed; {} to {} are", known.start(), known.end()))
        }
        found => Ok(found),
    }
}

/// Names are given once: which of two values an engine would take is anyone's guess.
fn define<'a>(values: &mut HashMap<&'a str, Value>, name: &'a str, value: Value) -> Result<(), String> {
    let (rank, numbers) = match &value {
        Fixed { shape, numbers } => {
            (shape.as_ref().map_or(0, Vec::len), numbers.as_ref().map_or(0, Vec::len))
        }
        Rows(row) => (row.len() + 1, 0),
        Value::Numbers { entries, .. } => (1, entries.len()),
        Flat => (0, 0),
    };
    if rank > MAX_RANK || numbers > MAX_NUMBERS {
        return Err(format!("{name:?} has more dimensions or numbers than are followed"));
    }
    match values.insert(name, value) {
        None => Ok(()),
        Some(_) => Err(format!("{name:?} is made twice")),
    }
}

fn inputs<'a>(graph: &'a GraphProto, values: &mut HashMap<&'a str, Value>) -> Result<(), String> {
    let mut is_any = false;
    for input in &graph.input {
        // Constants may be listed among the inputs; they are not given.
        if matches!(values.get(&*input.name), Some(Fixed { .. })) {
            continue;
        }
        let shape = input.r#type.as_ref().and_then(|t| t.tensor_type.as_ref()?.shape.as_ref());
        let Some(shape) = shape else {
            return Err(format!("the model does not say which dimensions the input {:?} has", input.name));
        };
        let mut dimensions = shape
            .dim
            .iter()
            .map(|d| d.dim_value.filter(|d| *d > 0).map(|d| usize::try_from(d).unwrap_or(usize::MAX)));
        match dimensions.next() {
            Some(None) => define(values, &input.name, Rows(dimensions.collect()))?,
            Some(Some(length)) => {
                return Err(format!("the input {:?} is always of {length} rows", input.name));
            }
            None => return Err(format!("the input {:?} has no dimensions", input.name)),
        }
        is_any = true;
    }
    if is_any { Ok(()) } else { Err("the model has no input".into()) }
}

/// A constant of the file. Elements are looked at if they may be a shape, axes, or the like.
fn fixed(tensor: &TensorProto) -> Result<Value, String> {
    let shape: Option<Vec<usize>> = tensor.dims.iter().map(|d| usize::try_from(*d).ok()).collect();
    let shape = shape.ok_or_else(|| format!("the constant {:?} has a negative dimension", tensor.name))?;
    // Of elements that are there in two forms, engines may take either.
    let is_typed = !tensor.int64_data.is_empty() || !tensor.int32_data.is_empty();
    if !tensor.raw_data.is_empty() && is_typed {
        return Err(format!("the constant {:?} has its elements twice", tensor.name));
    }
    let is_small = shape.len() <= 1 && shape.iter().all(|d| *d <= MAX_NUMBERS);
    let data_type = DataType::from_onnx(tensor.data_type.into());
    let numbers = match data_type {
        Some(DataType::I64 | DataType::I32) if is_small => match Tensor::from_proto(tensor)?.into_data() {
            crate::Data::I64(v) => Some(v),
            crate::Data::I32(v) => Some(v.into_iter().map(i64::from).collect()),
            _ => None,
        },
        _ => None,
    };
    Ok(Fixed { shape: Some(shape), numbers })
}

/// Integers, as a shape is made of them.
fn numbers(scalar: bool, entries: Vec<Entry>) -> Result<Value, String> {
    if entries.len() > MAX_NUMBERS {
        return Err(format!("it makes more than {MAX_NUMBERS} numbers"));
    }
    if entries.contains(&Entry::Batch) {
        return Ok(Value::Numbers { scalar, entries });
    }
    let shape = if scalar { vec![] } else { vec![entries.len()] };
    let known = |entry: &Entry| match entry {
        Entry::Known(n) => Some(*n),
        _ => None,
    };
    match entries.iter().map(known).collect() {
        Some(known) => Ok(Fixed { shape: Some(shape), numbers: Some(known) }),
        None => Ok(Value::Numbers { scalar, entries }),
    }
}

impl Value {
    fn is_fixed(&self) -> bool {
        self.shape_if_fixed().is_some()
    }

    /// `None`: it is not fixed. `Some(None)`: it is, and its shape is not known.
    fn shape_if_fixed(&self) -> Option<Option<Vec<usize>>> {
        match self {
            Fixed { shape, .. } => Some(shape.clone()),
            Self::Numbers { scalar, entries } if !entries.contains(&Entry::Batch) => {
                Some(Some(if *scalar { vec![] } else { vec![entries.len()] }))
            }
            _ => None,
        }
    }

    /// As integers: whether it is a scalar, and what is known of each.
    fn entries(&self) -> Option<(bool, Vec<Entry>)> {
        match self {
            Self::Numbers { scalar, entries } => Some((*scalar, entries.clone())),
            Fixed { shape: Some(shape), numbers } if shape.len() <= 1 => {
                let scalar = shape.is_empty();
                let length = shape.first().copied().unwrap_or(1);
                let entries = match numbers {
                    Some(numbers) => numbers.iter().map(|n| Entry::Known(*n)).collect(),
                    None if length <= MAX_NUMBERS => vec![Entry::Same; length],
                    None => return None,
                };
                Some((scalar, entries))
            }
            _ => None,
        }
    }

    /// The elements, if all are known integers.
    fn integers(&self) -> Option<&[i64]> {
        match self {
            Fixed { numbers, .. } => numbers.as_deref(),
            _ => None,
        }
    }

    fn describe(&self) -> &'static str {
        match self {
            Fixed { .. } => "a constant",
            Rows(_) => "rows",
            Self::Numbers { .. } => "the number of rows",
            Flat => "one element a row",
        }
    }
}

/// A node with what is known of its inputs. `None` stands for an input that is left out.
struct Node<'a> {
    attributes: &'a [AttributeProto],
    inputs: Vec<Option<&'a Value>>,
    outputs: usize,
    opset: i64,
}

/// `AttributeType` of ONNX's schema.
const INT: i32 = 2;
const TENSOR: i32 = 4;
const INTS: i32 = 7;
const STRING: i32 = 3;

impl<'a> Node<'a> {
    fn attribute(&self, name: &str, data_type: i32) -> Result<Option<&'a AttributeProto>, String> {
        let found = self.attributes.iter().find(|a| a.name == name);
        match found {
            Some(found) if ![0, data_type].contains(&found.r#type) => {
                Err(format!("its attribute {name} has another type than it should"))
            }
            found => Ok(found),
        }
    }

    fn int(&self, name: &str, default: i64) -> Result<i64, String> {
        Ok(self.attribute(name, INT)?.map_or(default, |a| a.i))
    }

    fn ints(&self, name: &str) -> Result<Option<&'a [i64]>, String> {
        Ok(self.attribute(name, INTS)?.map(|a| &*a.ints))
    }

    fn has(&self, name: &str) -> bool {
        self.attributes.iter().any(|a| a.name == name)
    }

    /// An input that must be there.
    fn input(&self, place: usize) -> Result<&'a Value, String> {
        self.given(place).ok_or_else(|| format!("its input {place} is left out"))
    }

    fn given(&self, place: usize) -> Option<&'a Value> {
        self.inputs.get(place).copied().flatten()
    }

    /// The dimensions of a row of an input, which must be rows.
    fn rows(&self, place: usize) -> Result<&'a [Dimension], String> {
        match self.input(place)? {
            Rows(row) => Ok(row),
            Value::Numbers { .. } => Err("it computes with the number of rows".into()),
            other => Err(format!("its input {place} is {}, which is not followed", other.describe())),
        }
    }

    /// That all inputs from a place on, as far as they are given, are constants, and there are no more than so many inputs.
    fn fixed_from(&self, place: usize, most: usize) -> Result<(), String> {
        if self.inputs.len() > most {
            return Err(format!("it has {} inputs; at most {most} are followed", self.inputs.len()));
        }
        match (place..self.inputs.len()).find(|i| self.given(*i).is_some_and(|v| !v.is_fixed())) {
            Some(i) => Err(format!("its input {i} is no constant")),
            None => Ok(()),
        }
    }

    fn one_output(&self) -> Result<(), String> {
        if self.outputs == 1 { Ok(()) } else { Err("only its first output is followed".into()) }
    }

    /// The only input, rows.
    fn only_rows(&self) -> Result<&'a [Dimension], String> {
        self.fixed_from(1, 1)?;
        self.rows(0)
    }

    /// Axes from an attribute, or since a version from an input. `None`: not given.
    fn axes(&self, place: usize, input_since: i64) -> Result<Option<Vec<i64>>, String> {
        if self.opset < input_since {
            return match self.inputs.len() {
                n if n <= place => Ok(self.ints("axes")?.map(<[i64]>::to_vec)),
                _ => Err("it has more inputs than its version has".into()),
            };
        }
        if self.has("axes") {
            return Err("its version has no attribute axes".into());
        }
        match self.given(place) {
            None => Ok(None),
            Some(axes) => Ok(Some(axes.integers().ok_or("its axes are not known")?.to_vec())),
        }
    }
}

/// An axis among so many, counted from the front.
fn normal(axis: i64, rank: usize) -> Result<usize, String> {
    let counted = if axis < 0 { axis.checked_add(rank as i64) } else { Some(axis) };
    let counted = counted.and_then(|a| usize::try_from(a).ok()).filter(|a| *a < rank);
    counted.ok_or_else(|| format!("there is no axis {axis} of {rank}"))
}

/// An axis among so many that is not the first, the rows'.
fn behind(axis: i64, rank: usize) -> Result<usize, String> {
    match normal(axis, rank)? {
        0 => Err("it works along the first axis: across rows".into()),
        axis => Ok(axis),
    }
}

/// Axes that are not the first; sorted.
fn all_behind(axes: &[i64], rank: usize) -> Result<Vec<usize>, String> {
    let mut all = axes.iter().map(|axis| behind(*axis, rank)).collect::<Result<Vec<_>, _>>()?;
    all.sort_unstable();
    if all.windows(2).any(|two| two[0] == two[1]) {
        return Err("it names an axis twice".into());
    }
    Ok(all)
}

/// Elements, if the dimensions are known and not too many.
fn product(dimensions: &[Dimension]) -> Dimension {
    dimensions.iter().try_fold(1_usize, |product, d| product.checked_mul((*d)?))
}

/// Of two dimensions that are broadcast to each other.
fn broadcast_dimension(a: Dimension, b: Dimension) -> Dimension {
    match (a, b) {
        (Some(1), other) | (other, Some(1)) => other,
        // Engines refuse those that do not go together.
        (known @ Some(_), _) | (None, known) => known,
    }
}

/// Broadcasting of values as they are ("Broadcasting in ONNX", multidirectional). Rows stay rows if no other value has more
/// dimensions, or another first one.
fn broadcast(values: &[&Value]) -> Result<Value, String> {
    if values.iter().any(|v| matches!(v, Value::Numbers { .. }) && !v.is_fixed()) {
        return Err("it computes with the number of rows".into());
    }
    if let [one] = values {
        return Ok((*one).clone());
    }
    let shapes: Vec<Option<Vec<usize>>> = values.iter().filter_map(|v| v.shape_if_fixed()).collect();
    if shapes.len() == values.len() {
        let known: Option<Vec<Vec<usize>>> = shapes.into_iter().collect();
        let shape = known.and_then(|all| {
            let rank = all.iter().map(Vec::len).max().unwrap_or(0);
            let at = |shape: &Vec<usize>, i: usize| {
                Some((i + shape.len()).checked_sub(rank).map_or(1, |i| shape[i]))
            };
            (0..rank).map(|i| all.iter().map(|s| at(s, i)).fold(Some(1), broadcast_dimension)).collect()
        });
        return Ok(Fixed { shape, numbers: None });
    }
    if values.iter().any(|v| matches!(v, Flat)) {
        let is_one = |v: &&Value| match v.shape_if_fixed() {
            Some(Some(shape)) => shape.iter().all(|d| *d == 1),
            _ => matches!(v, Flat),
        };
        return match values.iter().all(is_one) && values.iter().filter(|v| matches!(v, Flat)).count() == 1 {
            true => Ok(Flat),
            false => Err("it combines elements whose shapes are not known".into()),
        };
    }
    let mut result: Option<Vec<Dimension>> = None;
    for row in values.iter().filter_map(|v| if let Rows(row) = v { Some(row) } else { None }) {
        result = Some(match result {
            None => row.clone(),
            Some(before) if before.len() == row.len() => {
                before.iter().zip(row).map(|(a, b)| broadcast_dimension(*a, *b)).collect()
            }
            Some(_) => return Err("it combines rows of different numbers of dimensions".into()),
        });
    }
    let mut result = result.ok_or("it has no input")?;
    let rank = result.len() + 1;
    for shape in shapes {
        let shape = shape.ok_or("it combines rows with a constant of unknown shape")?;
        if shape.len() > rank || (shape.len() == rank && shape[0] != 1) {
            return Err(format!("it combines rows with a constant of the shape {shape:?}, across rows"));
        }
        for (d, is) in result.iter_mut().rev().zip(shape.iter().rev()) {
            *d = broadcast_dimension(*d, Some(*is));
        }
    }
    Ok(Rows(result))
}

fn step<'a>(
    node: &'a NodeProto,
    opset: Option<i64>,
    values: &mut HashMap<&'a str, Value>,
) -> Result<(), String> {
    for (i, attribute) in node.attribute.iter().enumerate() {
        if attribute.g.is_some() || !attribute.graphs.is_empty() {
            return Err("it has a graph inside, which is not followed".into());
        }
        if node.attribute[..i].iter().any(|other| other.name == attribute.name) {
            return Err(format!("it has two attributes {}", attribute.name));
        }
    }
    let is_ml = match &*node.domain {
        "" | "ai.onnx" => false,
        "ai.onnx.ml" => true,
        _ => return Err("operators of this domain are not followed".into()),
    };
    let mut inputs = Vec::with_capacity(node.input.len());
    for name in &node.input {
        inputs.push(match &**name {
            "" => None,
            name => Some(values.get(name).ok_or_else(|| format!("no node before it makes {name:?}"))?),
        });
    }
    let outputs = node.output.iter().rposition(|name| !name.is_empty()).map_or(0, |last| last + 1);
    let not_followed = || Err("the operator is not followed".to_owned());
    let results = if is_ml {
        if !ML_OPERATORS.contains(&&*node.op_type) {
            return not_followed();
        }
        let node_ = Node { attributes: &node.attribute, inputs, outputs, opset: 0 };
        of_ml(&node.op_type, &node_)?
    } else {
        let Some((_, attributes)) = OPERATORS.iter().find(|(name, _)| *name == node.op_type) else {
            return not_followed();
        };
        if let Some(other) = node.attribute.iter().find(|a| !attributes.contains(&&*a.name)) {
            return Err(format!("the attribute {} is not followed", other.name));
        }
        let opset = opset.ok_or("the model does not say of which operator set it is")?;
        let node_ = Node { attributes: &node.attribute, inputs, outputs, opset };
        of_onnx(&node.op_type, &node_)?
    };
    if outputs > results.len() {
        return Err("not all of its outputs are followed".into());
    }
    for (name, value) in node.output.iter().zip(results) {
        if !name.is_empty() {
            define(values, name, value)?;
        }
    }
    Ok(())
}

fn of_ml(operator: &str, node: &Node<'_>) -> Result<Vec<Value>, String> {
    if operator == "ArrayFeatureExtractor" {
        node.fixed_from(2, 2)?;
        return Ok(vec![extract(node)?]);
    }
    // One dimension would be taken for one row.
    let [columns] = node.only_rows()? else {
        return Err("its input has another number of dimensions than two".into());
    };
    Ok(match operator {
        "TreeEnsembleClassifier" | "LinearClassifier" => vec![Rows(vec![]), Rows(vec![None])],
        "TreeEnsembleRegressor" | "LinearRegressor" => vec![Rows(vec![None])],
        "Scaler" | "Normalizer" | "ZipMap" => vec![Rows(vec![*columns])],
        _ => return Err("the operator is not followed".into()),
    })
}

/// Elements of the last axis: columns of rows, or of a constant vector one for each row.
fn extract(node: &Node<'_>) -> Result<Value, String> {
    let (data, indices) = (node.input(0)?, node.input(1)?);
    match (data, indices) {
        (Rows(row), indices) if !row.is_empty() => {
            let shape = indices.shape_if_fixed().ok_or("its indices are no constant")?;
            let picked = shape.and_then(|shape| product(&shape.into_iter().map(Some).collect::<Vec<_>>()));
            Ok(Rows([&row[..row.len() - 1], &[picked]].concat()))
        }
        (data, indices) => {
            let shape = data.shape_if_fixed().flatten().ok_or("its data have no columns that are known")?;
            let is_vector = !shape.is_empty() && shape[..shape.len() - 1].iter().all(|d| *d == 1);
            let one_a_row = match indices {
                Rows(row) => row.iter().all(|d| *d == Some(1)),
                Flat => true,
                _ => false,
            };
            match is_vector && one_a_row {
                true => Ok(Flat),
                false => Err("its indices are not one a row, of a vector".into()),
            }
        }
    }
}

fn of_onnx(operator: &str, node: &Node<'_>) -> Result<Vec<Value>, String> {
    let all_fixed = node.inputs.iter().flatten().all(|v| v.is_fixed());
    let one = |value: Value| Ok(vec![value]);
    match operator {
        "Constant" => return one(constant(node)?),
        "Shape" => return one(shape_of(node)?),
        "ConstantOfShape" => return one(filled(node)?),
        "Expand" => return one(expand(node)?),
        "Cast" | "Identity" => {
            // Numbers stay what they are as integers; as floats they are no shape any more.
            node.fixed_from(1, 1)?;
            let value = node.input(0)?;
            let to = DataType::from_onnx(node.int("to", 0)?);
            let keeps = operator == "Identity" || matches!(to, Some(DataType::I64 | DataType::I32));
            return match (value, keeps) {
                (Value::Numbers { .. }, false) if !value.is_fixed() => {
                    Err("it computes with the number of rows".into())
                }
                (value, false) if value.is_fixed() => {
                    one(Fixed { shape: value.shape_if_fixed().flatten(), numbers: None })
                }
                (value, _) => match value.entries() {
                    Some((scalar, entries)) if operator == "Cast" => {
                        one(numbers(scalar, entries.into_iter().map(narrow).collect())?)
                    }
                    _ => one(value.clone()),
                },
            };
        }
        _ => {}
    }
    let has_numbers = node.inputs.iter().flatten().any(|v| matches!(v, Value::Numbers { .. }));
    if (all_fixed || has_numbers)
        && let Some(value) = of_numbers(operator, node)?
    {
        return one(value);
    }
    if all_fixed {
        // Random numbers are not among the operators known here; what Dropout does in training is.
        if operator == "Dropout" {
            return Err("its input is a constant, which is not followed".into());
        }
        let unknown = Fixed { shape: None, numbers: None };
        let mut results = vec![unknown; node.outputs.max(1)];
        results[0] = of_constants(operator, node)?;
        return Ok(results);
    }
    of_rows(operator, node)
}

/// What a vector of numbers becomes, if that is known.
fn of_numbers(operator: &str, node: &Node<'_>) -> Result<Option<Value>, String> {
    let Some((scalar, entries)) = node.given(0).and_then(Value::entries) else { return Ok(None) };
    let axes = |since: i64| -> Result<Option<Vec<i64>>, String> { node.axes(1, since) };
    match operator {
        "Gather" if !scalar && normal(node.int("axis", 0)?, 1).is_ok() => {
            let index = node.input(1)?;
            let (Some(indices), Some(shape)) = (index.integers(), index.shape_if_fixed().flatten()) else {
                return Ok(None);
            };
            let picked = indices.iter().map(|i| {
                let at = normal(*i, entries.len())?;
                Ok(entries[at])
            });
            let picked = picked.collect::<Result<Vec<_>, String>>()?;
            numbers(shape.is_empty(), picked).map(Some)
        }
        "Unsqueeze" if scalar && axes(13)?.is_some_and(|axes| matches!(axes[..], [0 | -1])) => {
            numbers(false, entries).map(Some)
        }
        "Squeeze"
            if !scalar && entries.len() == 1 && axes(13)?.is_none_or(|axes| matches!(axes[..], [0 | -1])) =>
        {
            numbers(true, entries).map(Some)
        }
        "Reshape" if node.input(1)?.integers() == Some(&[-1]) => numbers(false, entries).map(Some),
        "Concat" if normal(node.int("axis", 0)?, 1).is_ok() => {
            let mut all = Vec::new();
            for input in &node.inputs {
                match input.and_then(Value::entries) {
                    Some((false, entries)) if all.len() <= MAX_NUMBERS => all.extend(entries),
                    _ => return Ok(None),
                }
            }
            numbers(false, all).map(Some)
        }
        "Slice" if !scalar => {
            let Some(pieces) = slices(node)? else { return Ok(None) };
            let [Slice { axis: 0 | -1, start: Some(start), end: Some(end), step: Some(1) }] = pieces[..]
            else {
                return Ok(None);
            };
            let (from, to) = bounds(start, end, entries.len());
            numbers(false, entries[from..to].to_vec()).map(Some)
        }
        "Add" | "Sub" | "Mul" => {
            let Some((other_scalar, others)) = node.given(1).and_then(Value::entries) else {
                return Ok(None);
            };
            let known = |entry: Entry| match entry {
                Entry::Known(n) => Some(n),
                _ => None,
            };
            let length = entries.len().max(others.len());
            let fits = |v: &Vec<Entry>| v.len() == length || v.len() == 1;
            if !fits(&entries) || !fits(&others) || node.inputs.len() != 2 {
                return Ok(None);
            }
            let at = |v: &Vec<Entry>, i: usize| v[if v.len() == 1 { 0 } else { i }];
            let mut results = Vec::with_capacity(length);
            for i in 0..length {
                let (a, b) = (at(&entries, i), at(&others, i));
                if a == Entry::Batch || b == Entry::Batch {
                    return Err("it computes with the number of rows".into());
                }
                let value = known(a).zip(known(b)).and_then(|(a, b)| match operator {
                    "Add" => a.checked_add(b),
                    "Sub" => a.checked_sub(b),
                    _ => a.checked_mul(b),
                });
                results.push(narrow(value.map_or(Entry::Same, Entry::Known)));
            }
            // Of floats nothing is known, so that nothing is known of these.
            numbers(scalar && other_scalar, results).map(Some)
        }
        _ => Ok(None),
    }
}

/// Of constants only: the result is one. Its shape, where it is easy.
fn of_constants(operator: &str, node: &Node<'_>) -> Result<Value, String> {
    let first = || node.given(0).and_then(|v| v.shape_if_fixed().flatten());
    let shape = match operator {
        "Transpose" => match (first(), node.ints("perm")?) {
            (Some(shape), Some(perm)) if perm.len() == shape.len() => {
                perm.iter().map(|axis| normal(*axis, shape.len()).map(|axis| shape[axis]).ok()).collect()
            }
            (Some(shape), None) => Some(shape.into_iter().rev().collect()),
            _ => None,
        },
        "Unsqueeze" => match (first(), node.axes(1, 13)?) {
            (Some(mut shape), Some(axes)) if shape.len() + axes.len() <= MAX_RANK => {
                let rank = shape.len() + axes.len();
                let mut axes = axes.iter().map(|a| normal(*a, rank)).collect::<Result<Vec<_>, _>>()?;
                axes.sort_unstable();
                axes.dedup();
                if axes.len() + shape.len() != rank {
                    return Err("it names an axis twice".into());
                }
                axes.into_iter().for_each(|axis| shape.insert(axis, 1));
                Some(shape)
            }
            _ => None,
        },
        "Reshape" => match node.given(1).and_then(Value::integers) {
            Some(wanted) if wanted.iter().all(|d| *d > 0) => {
                wanted.iter().map(|d| usize::try_from(*d).ok()).collect()
            }
            _ => None,
        },
        _ if is_elementwise(operator) => {
            let all: Vec<&Value> = node.inputs.iter().flatten().copied().collect();
            return match broadcast(&all)? {
                Fixed { shape, .. } => Ok(Fixed { shape, numbers: None }),
                other => Ok(Fixed { shape: other.shape_if_fixed().flatten(), numbers: None }),
            };
        }
        _ => None,
    };
    Ok(Fixed { shape, numbers: None })
}

/// The operators of [`OPERATORS`] from the first to those with broadcasting.
fn is_elementwise(operator: &str) -> bool {
    OPERATORS
        .iter()
        .map(|(name, _)| *name)
        .take_while(|name| *name != "AveragePool")
        .any(|name| name == operator)
}

fn constant(node: &Node<'_>) -> Result<Value, String> {
    node.fixed_from(0, 0)?;
    let [attribute] = node.attributes else { return Err("it has not one value".into()) };
    match &*attribute.name {
        "value" => {
            let tensor = node.attribute("value", TENSOR)?.and_then(|a| a.t.as_ref());
            fixed(tensor.ok_or("it has no value")?)
        }
        "value_int" => Ok(Fixed { shape: Some(vec![]), numbers: Some(vec![node.int("value_int", 0)?]) }),
        "value_ints" => {
            let all = node.ints("value_ints")?.unwrap_or_default().to_vec();
            let shape = Some(vec![all.len()]);
            Ok(Fixed { shape, numbers: Some(all).filter(|all| all.len() <= MAX_NUMBERS) })
        }
        "value_float" | "value_string" => Ok(Fixed { shape: Some(vec![]), numbers: None }),
        _ => Ok(Fixed { shape: None, numbers: None }),
    }
}

fn shape_of(node: &Node<'_>) -> Result<Value, String> {
    node.fixed_from(1, 1)?;
    let entry = |d: &Dimension| match d.map(i64::try_from) {
        Some(Ok(d)) => Entry::Known(d),
        _ => Entry::Same,
    };
    let entries: Vec<Entry> = match node.input(0)? {
        Rows(row) => [Entry::Batch].into_iter().chain(row.iter().map(entry)).collect(),
        other => match other.shape_if_fixed() {
            Some(Some(shape)) => shape.into_iter().map(|d| entry(&Some(d))).collect(),
            Some(None) => return Ok(Fixed { shape: None, numbers: None }),
            None => return Err(format!("the shape of {} is not followed", other.describe())),
        },
    };
    if node.opset < 15 && (node.has("start") || node.has("end")) {
        return Err("its version has no attributes start and end".into());
    }
    let (start, end) = (node.int("start", 0)?, node.int("end", i64::MAX)?);
    let (from, to) = bounds(start, end, entries.len());
    numbers(false, entries[from..to].to_vec())
}

/// What overflows INT32, engines may compute otherwise.
fn narrow(entry: Entry) -> Entry {
    match entry {
        Entry::Known(n) if i32::try_from(n).is_err() => Entry::Same,
        entry => entry,
    }
}

/// Start and end of a slice with the step 1 within a length; both may count from the end.
fn bounds(start: i64, end: i64, length: usize) -> (usize, usize) {
    let place = |i: i64| {
        let i = if i < 0 { i.saturating_add(length as i64) } else { i };
        i.clamp(0, length as i64) as usize
    };
    (place(start), place(end).max(place(start)))
}

/// The dimensions of a row that a shape asks for whose first entry is the number of rows.
fn wanted_row(entries: &[Entry]) -> Result<Vec<Dimension>, String> {
    let of = |entry: &Entry| match entry {
        Entry::Batch => Err("a dimension behind the first is the number of rows".to_owned()),
        Entry::Known(n) => usize::try_from(*n).map(Some).map_err(|_| "a dimension is negative".to_owned()),
        Entry::Same => Ok(None),
    };
    entries.iter().map(of).collect()
}

/// One value, as often as a shape says.
fn filled(node: &Node<'_>) -> Result<Value, String> {
    node.fixed_from(1, 1)?;
    let shape = node.input(0)?;
    if shape.is_fixed() {
        let known = shape.integers().and_then(|all| all.iter().map(|d| usize::try_from(*d).ok()).collect());
        return Ok(Fixed { shape: known, numbers: None });
    }
    match shape {
        Value::Numbers { scalar: false, entries } if entries.first() == Some(&Entry::Batch) => {
            Ok(Rows(wanted_row(&entries[1..])?))
        }
        _ => Err("its shape is not followed".into()),
    }
}

fn expand(node: &Node<'_>) -> Result<Value, String> {
    node.fixed_from(2, 2)?;
    let (data, shape) = (node.input(0)?, node.input(1)?);
    let wanted = shape.entries();
    if data.is_fixed() && shape.is_fixed() {
        return Ok(Fixed { shape: None, numbers: None });
    }
    let Some((false, entries)) = wanted else { return Err("its shape is not known".into()) };
    let (first, rest) = entries.split_first().ok_or("its shape is empty")?;
    // How many dimensions the result has besides the first, and those of the input, from the last on.
    let (is_long, row): (bool, Vec<Dimension>) = match data {
        Rows(row) if entries.len() > row.len() + 1 => {
            return Err("it puts a dimension before the rows".into());
        }
        Rows(row) if entries.len() <= row.len() => (false, row.clone()),
        Rows(row) if matches!(first, Entry::Batch | Entry::Known(1)) => (true, row.clone()),
        Rows(_) => return Err("it repeats rows".into()),
        data => {
            let shape = data.shape_if_fixed().flatten().ok_or("the shape of its input is not known")?;
            let fits = shape.len() < entries.len() || (shape.len() == entries.len() && shape[0] == 1);
            if *first != Entry::Batch || !fits {
                return Err("its shape is not followed".into());
            }
            let behind = if shape.len() == entries.len() { &shape[1..] } else { &shape[..] };
            let missing = entries.len() - 1 - behind.len();
            let row = vec![Some(1); missing].into_iter().chain(behind.iter().map(|d| Some(*d)));
            (true, row.collect())
        }
    };
    let wanted = wanted_row(if is_long { rest } else { &entries })?;
    let mut row = row;
    for (d, wanted) in row.iter_mut().rev().zip(wanted.iter().rev()) {
        *d = broadcast_dimension(*d, *wanted);
    }
    Ok(Rows(row))
}

/// A slice along one axis; `None`: not known, and the same for all rows.
#[derive(Clone, Copy)]
struct Slice {
    axis: i64,
    start: Option<i64>,
    end: Option<i64>,
    step: Option<i64>,
}

/// `None`: they are not known.
fn slices(node: &Node<'_>) -> Result<Option<Vec<Slice>>, String> {
    let mut parts: Vec<Option<Vec<Option<i64>>>> = Vec::new();
    if node.opset < 10 {
        node.fixed_from(1, 1)?;
        for name in ["starts", "ends", "axes"] {
            parts.push(node.ints(name)?.map(|all| all.iter().map(|n| Some(*n)).collect()));
        }
        parts.push(None);
    } else {
        node.fixed_from(1, 5)?;
        if ["starts", "ends", "axes"].iter().any(|name| node.has(name)) {
            return Err("its version has no attributes".into());
        }
        for place in 1..5 {
            let Some(value) = node.given(place) else {
                parts.push(None);
                continue;
            };
            let Some((false, entries)) = value.entries() else { return Ok(None) };
            let known = |entry: &Entry| match entry {
                Entry::Known(n) => Some(*n),
                _ => None,
            };
            parts.push(Some(entries.iter().map(known).collect()));
        }
    }
    let [Some(starts), Some(ends), axes, steps] = &parts[..] else { return Ok(None) };
    let count = starts.len();
    let axes = axes.clone().unwrap_or_else(|| (0..count as i64).map(Some).collect());
    let steps = steps.clone().unwrap_or_else(|| vec![Some(1); count]);
    if [ends.len(), axes.len(), steps.len()].iter().any(|length| *length != count) {
        return Err("its starts, ends, axes and steps are not as many".into());
    }
    let all =
        (0..count).map(|i| Some(Slice { axis: axes[i]?, start: starts[i], end: ends[i], step: steps[i] }));
    Ok(all.collect())
}

fn slice(node: &Node<'_>, row: &[Dimension]) -> Result<Value, String> {
    let pieces = slices(node)?.ok_or("its axes are not known")?;
    let rank = row.len() + 1;
    let mut row = row.to_vec();
    let mut seen = Vec::new();
    for piece in pieces {
        let axis = normal(piece.axis, rank)?;
        if seen.contains(&axis) {
            return Err("it names an axis twice".into());
        }
        seen.push(axis);
        // Nor from the first to a last that no number of rows reaches: engines do not agree on such ends.
        if axis == 0 {
            return Err("it picks some of the rows".into());
        }
        row[axis - 1] = match (piece, row[axis - 1]) {
            (Slice { start: Some(start), end: Some(end), step: Some(1), .. }, Some(length)) => {
                let (from, to) = bounds(start, end, length);
                Some(to - from)
            }
            _ => None,
        };
    }
    Ok(Rows(row))
}

fn reshape(node: &Node<'_>) -> Result<Value, String> {
    node.fixed_from(2, 2)?;
    if node.int("allowzero", 0)? != 0 {
        return Err("allowzero is not followed".into());
    }
    let Some((false, wanted)) = node.input(1)?.entries() else {
        return Err("its new shape is not known".into());
    };
    let open = |entry: &Entry| *entry == Entry::Known(-1);
    if wanted.iter().filter(|entry| open(entry)).count() > 1 {
        return Err("its new shape has -1 twice".into());
    }
    if let Flat = node.input(0)? {
        let long = |entry: &&Entry| open(entry) || **entry == Entry::Batch;
        let others = wanted.iter().filter(|entry| !long(entry)).all(|entry| *entry == Entry::Known(1));
        if !others || wanted.iter().filter(long).count() != 1 {
            return Err("its new shape is not one element a row".into());
        }
        return Ok(match wanted.first().as_ref().is_some_and(long) {
            true => Rows(vec![Some(1); wanted.len() - 1]),
            false => Flat,
        });
    }
    let row = node.rows(0)?;
    let (first, rest) = wanted.split_first().ok_or("its new shape is empty")?;
    let mut new = Vec::with_capacity(rest.len());
    for (i, entry) in rest.iter().enumerate() {
        new.push(match entry {
            Entry::Batch => return Err("a dimension behind the first is the number of rows".into()),
            Entry::Known(0) => *row.get(i).ok_or("its new shape copies an axis that is not there")?,
            Entry::Known(-1) => {
                let others = rest.iter().enumerate().filter(|(j, _)| *j != i).map(|(j, entry)| match entry {
                    Entry::Known(0) => *row.get(j)?,
                    Entry::Known(n) => usize::try_from(*n).ok(),
                    _ => None,
                });
                let others = product(&others.collect::<Vec<_>>());
                product(row).zip(others).and_then(|(all, others)| all.checked_div(others))
            }
            Entry::Known(n) => Some(usize::try_from(*n).map_err(|_| "a dimension is negative")?),
            Entry::Same => None,
        });
    }
    match first {
        Entry::Batch | Entry::Known(0) => Ok(Rows(new)),
        // Rows stay whole if they have as many elements as before.
        Entry::Known(-1) => match (product(row), product(&new)) {
            (Some(before), Some(after)) if before == after && before > 0 => Ok(Rows(new)),
            (Some(_), Some(_)) => Err("it makes rows of another length".into()),
            _ => Err("whether rows keep their length is not known".into()),
        },
        _ => Err("its new shape does not begin with the number of rows".into()),
    }
}

fn matmul(node: &Node<'_>) -> Result<Value, String> {
    node.fixed_from(2, 2)?;
    let (a, b) = (node.input(0)?, node.input(1)?);
    let across = || Err("it multiplies across rows".to_owned());
    let known = |v: &Value| {
        v.shape_if_fixed()
            .flatten()
            .filter(|s| !s.is_empty())
            .ok_or_else(|| "it multiplies with what is not known".to_owned())
    };
    // Dimensions between the first and the last two, broadcast.
    let between = |row: &[Dimension], other: &[Dimension]| {
        let mut all = row[..row.len() - 2].to_vec();
        let other = &other[..other.len().saturating_sub(2)];
        for (d, is) in all.iter_mut().rev().zip(other.iter().rev()) {
            *d = broadcast_dimension(*d, *is);
        }
        all
    };
    match (a, b) {
        (Rows(a), Rows(b)) if a.len() == b.len() && a.len() >= 2 => {
            let ends = [a[a.len() - 2], b[b.len() - 1]];
            Ok(Rows([between(a, b), ends.to_vec()].concat()))
        }
        (Rows(_), Rows(_)) => across(),
        (Rows(a), b) => {
            let shape = known(b)?;
            let (rank, columns) = (a.len() + 1, shape.last().copied());
            if a.is_empty() || shape.len() > rank || (rank > 2 && shape.len() == rank && shape[0] != 1) {
                return across();
            }
            Ok(Rows(match shape.len() {
                1 => a[..a.len() - 1].to_vec(),
                _ if rank == 2 => vec![columns],
                _ => {
                    let other: Vec<Dimension> = shape.iter().map(|d| Some(*d)).collect();
                    let other = if shape.len() == rank { &other[1..] } else { &other[..] };
                    [between(a, other), vec![a[a.len() - 2], columns]].concat()
                }
            }))
        }
        (a, Rows(b)) => {
            let shape = known(a)?;
            let rank = b.len() + 1;
            if rank < 3 || shape.len() < 2 || shape.len() > rank || (shape.len() == rank && shape[0] != 1) {
                return across();
            }
            let other: Vec<Dimension> = shape.iter().map(|d| Some(*d)).collect();
            let other = if shape.len() == rank { &other[1..] } else { &other[..] };
            Ok(Rows([between(b, other), vec![Some(shape[shape.len() - 2]), b[b.len() - 1]]].concat()))
        }
        _ => across(),
    }
}

fn gemm(node: &Node<'_>) -> Result<Value, String> {
    let [_] = node.rows(0)? else { return Err("its input has another number of dimensions than two".into()) };
    if node.int("transA", 0)? != 0 {
        return Err("it multiplies across rows".into());
    }
    let shape = node.input(1)?.shape_if_fixed().ok_or("it multiplies rows with rows")?;
    let by = if node.int("transB", 0)? != 0 { 0 } else { 1 };
    let columns = match shape {
        Some(shape) if shape.len() == 2 => Some(shape[by]),
        Some(_) => return Err("it multiplies with what is no matrix".into()),
        None => None,
    };
    let product = Rows(vec![columns]);
    if node.inputs.len() > 3 {
        return Err("it has more than three inputs".into());
    }
    match node.given(2) {
        None => Ok(product),
        // What is added is broadcast to the product, not the other way round.
        Some(added) => match broadcast(&[&product, added])? {
            Rows(row) => Ok(Rows(row)),
            other => Err(format!("it adds {}", other.describe())),
        },
    }
}

/// Lengths of a window's results along the axes behind the channels, where all is known. `weights` are the window's lengths as a
/// convolution's weights have them; pools have none.
fn windows(
    node: &Node<'_>,
    spatial: &[Dimension],
    weights: Option<&[usize]>,
) -> Result<Vec<Dimension>, String> {
    let auto = node.attribute("auto_pad", STRING)?.is_some_and(|a| !a.s.is_empty() && a.s != b"NOTSET");
    let ceil = node.has("ceil_mode") && node.int("ceil_mode", 0)? != 0;
    let named: Option<Vec<usize>> = match node.ints("kernel_shape")? {
        Some(all) => all.iter().map(|d| usize::try_from(*d).ok()).collect(),
        None => None,
    };
    let kernel = match weights {
        Some(of_weights) if named.as_deref().is_some_and(|named| named != of_weights) => {
            return Err("its kernel_shape is not that of its weights".into());
        }
        Some(of_weights) => Some(of_weights.to_vec()),
        None => named.filter(|_| !node.has("dilations")),
    };
    let unknown = vec![None; spatial.len()];
    let Some(kernel) = kernel.filter(|k| k.len() == spatial.len() && !auto && !ceil) else {
        return Ok(unknown);
    };
    let count = spatial.len();
    let attribute = |name: &str, default: usize, length: usize| -> Result<Option<Vec<usize>>, String> {
        Ok(match node.ints(name)? {
            None => Some(vec![default; length]),
            Some(all) => {
                let all: Option<Vec<usize>> = all.iter().map(|n| usize::try_from(*n).ok()).collect();
                all.filter(|all| all.len() == length)
            }
        })
    };
    let (strides, dilations, pads) = (
        attribute("strides", 1, count)?,
        attribute("dilations", 1, count)?,
        attribute("pads", 0, 2 * count)?,
    );
    let (Some(strides), Some(dilations), Some(pads)) = (strides, dilations, pads) else { return Ok(unknown) };
    let one = |i: usize| {
        let padded = spatial[i]?.checked_add(pads[i])?.checked_add(pads[count + i])?;
        let window = kernel[i].checked_sub(1)?.checked_mul(dilations[i])?.checked_add(1)?;
        padded.checked_sub(window)?.checked_div(strides[i])?.checked_add(1)
    };
    Ok((0..count).map(one).collect())
}

/// Channels and the axes behind them; there must be one of these at least.
fn image(row: &[Dimension]) -> Result<(Dimension, &[Dimension]), String> {
    match row {
        [channels, spatial @ ..] if !spatial.is_empty() => Ok((*channels, spatial)),
        _ => Err("its input has fewer than three dimensions".into()),
    }
}

/// The axes are taken away, or become 1.
fn reduced(row: &[Dimension], axes: &[usize], keep: bool) -> Value {
    let all = row.iter().enumerate().filter_map(|(i, d)| match (axes.contains(&(i + 1)), keep) {
        (true, true) => Some(Some(1)),
        (true, false) => None,
        (false, _) => Some(*d),
    });
    Rows(all.collect())
}

fn of_rows(operator: &str, node: &Node<'_>) -> Result<Vec<Value>, String> {
    let one = |value: Value| Ok(vec![value]);
    match operator {
        "PRelu" | "Clip" => {
            node.fixed_from(1, if operator == "Clip" { 3 } else { 2 })?;
            if operator == "Clip" && node.opset >= 11 && (node.has("min") || node.has("max")) {
                return Err("its version has no attributes".into());
            }
            let all: Vec<&Value> = node.inputs.iter().flatten().copied().collect();
            one(broadcast(&all)?)
        }
        _ if is_elementwise(operator) => {
            let all: Vec<&Value> = node.inputs.iter().flatten().copied().collect();
            if all.len() != node.inputs.len() {
                return Err("an input is left out".into());
            }
            one(broadcast(&all)?)
        }
        "Dropout" => {
            // The third input says that it is training, the second output what was dropped.
            node.fixed_from(1, 2)?;
            node.one_output()?;
            one(Rows(node.rows(0)?.to_vec()))
        }
        "MatMul" => one(matmul(node)?),
        "Gemm" => one(gemm(node)?),
        "Conv" | "ConvTranspose" => {
            node.fixed_from(1, 3)?;
            let (_, spatial) = image(node.rows(0)?)?;
            let weights = node.input(1)?.shape_if_fixed().flatten();
            let (channels, spatial) = match weights.as_deref() {
                Some([channels, _, window @ ..]) if operator == "Conv" => {
                    (Some(*channels), windows(node, spatial, Some(window))?)
                }
                _ => (None, vec![None; spatial.len()]),
            };
            one(Rows([vec![channels], spatial].concat()))
        }
        "MaxPool" | "AveragePool" => {
            // The second output counts elements of all rows together.
            node.one_output()?;
            let (channels, spatial) = image(node.only_rows()?)?;
            one(Rows([vec![channels], windows(node, spatial, None)?].concat()))
        }
        "GlobalAveragePool" | "GlobalMaxPool" => {
            let (channels, spatial) = image(node.only_rows()?)?;
            one(Rows([vec![channels], vec![Some(1); spatial.len()]].concat()))
        }
        "BatchNormalization" => {
            node.fixed_from(1, 5)?;
            node.one_output()?;
            if node.int("training_mode", 0)? != 0 {
                return Err("in training it works across rows".into());
            }
            match node.rows(0)? {
                [] => Err("its input has one dimension".into()),
                row => one(Rows(row.to_vec())),
            }
        }
        "InstanceNormalization" | "GroupNormalization" | "LRN" => {
            node.fixed_from(1, if operator == "LRN" { 1 } else { 3 })?;
            let row = node.rows(0)?;
            image(row)?;
            one(Rows(row.to_vec()))
        }
        "LayerNormalization" => {
            node.fixed_from(1, 3)?;
            node.one_output()?;
            let row = node.rows(0)?;
            behind(node.int("axis", -1)?, row.len() + 1)?;
            let all: Vec<&Value> = node.inputs.iter().flatten().copied().collect();
            one(broadcast(&all)?)
        }
        "Softmax" | "LogSoftmax" | "LpNormalization" => {
            let row = node.only_rows()?;
            // Before version 13 the axes from this one on were taken together.
            let default = if node.opset < 13 && operator != "LpNormalization" { 1 } else { -1 };
            behind(node.int("axis", default)?, row.len() + 1)?;
            one(Rows(row.to_vec()))
        }
        "ArgMax" | "ArgMin" => {
            let row = node.only_rows()?;
            let axis = behind(node.int("axis", 0)?, row.len() + 1)?;
            one(reduced(row, &[axis], node.int("keepdims", 1)? != 0))
        }
        _ if operator.starts_with("Reduce") => {
            node.fixed_from(1, 2)?;
            let row = node.rows(0)?;
            let axes = node.axes(1, if operator == "ReduceSum" { 13 } else { 18 })?;
            let axes = axes.filter(|axes| !axes.is_empty()).ok_or("it works along all axes: across rows")?;
            let axes = all_behind(&axes, row.len() + 1)?;
            one(reduced(row, &axes, node.int("keepdims", 1)? != 0))
        }
        "CumSum" => {
            node.fixed_from(1, 2)?;
            let row = node.rows(0)?;
            let Some([axis]) = node.input(1)?.integers() else { return Err("its axis is not known".into()) };
            behind(*axis, row.len() + 1)?;
            one(Rows(row.to_vec()))
        }
        "TopK" => {
            if node.opset < 10 {
                return Err("before version 10 it is not followed".into());
            }
            node.fixed_from(1, 2)?;
            let mut row = node.rows(0)?.to_vec();
            let axis = behind(node.int("axis", -1)?, row.len() + 1)?;
            row[axis - 1] = match node.input(1)?.integers() {
                Some([count]) => usize::try_from(*count).ok(),
                _ => None,
            };
            Ok(vec![Rows(row.clone()), Rows(row)])
        }
        "Concat" => {
            let first = node.rows(0)?;
            let rank = first.len() + 1;
            let axis = match node.attribute("axis", INT)? {
                Some(axis) => behind(axis.i, rank)?,
                None => return Err("it has no axis".into()),
            };
            let mut row = first.to_vec();
            for place in 1..node.inputs.len() {
                let other = node.rows(place)?;
                if other.len() != row.len() {
                    return Err("it joins rows of different numbers of dimensions".into());
                }
                for (i, d) in other.iter().enumerate() {
                    row[i] = match i + 1 == axis {
                        true => row[i].zip(*d).and_then(|(a, b)| a.checked_add(b)),
                        // Engines refuse those that are not the same.
                        false => row[i].or(*d),
                    };
                }
            }
            one(Rows(row))
        }
        "Split" => {
            node.fixed_from(1, 2)?;
            let row = node.rows(0)?;
            let axis = behind(node.int("axis", 0)?, row.len() + 1)?;
            if if node.opset < 13 { node.inputs.len() > 1 } else { node.has("split") } {
                return Err("it says how long the parts are as its version does not".into());
            }
            let lengths = match node.given(1) {
                _ if node.opset < 13 => node.ints("split")?.map(<[i64]>::to_vec),
                Some(lengths) => lengths.integers().map(<[i64]>::to_vec),
                None => None,
            };
            if lengths.as_ref().is_some_and(|l| l.len() != node.outputs) {
                return Err("it has not as many outputs as parts".into());
            }
            let part = |i: usize| {
                let mut row = row.to_vec();
                row[axis - 1] = lengths.as_ref().and_then(|l| usize::try_from(l[i]).ok());
                Rows(row)
            };
            Ok((0..node.outputs).map(part).collect())
        }
        "Transpose" => {
            let row = node.only_rows()?;
            let rank = row.len() + 1;
            let perm = match node.ints("perm")? {
                Some(perm) => perm.to_vec(),
                None => (0..rank as i64).rev().collect(),
            };
            if perm.len() != rank || perm.first() != Some(&0) {
                return Err("it moves the first axis".into());
            }
            // As axes of the whole, of which none comes twice.
            let axes = all_behind(&perm[1..], rank)?;
            if axes.len() != row.len() {
                return Err("it leaves an axis out".into());
            }
            let moved = perm[1..].iter().map(|axis| behind(*axis, rank).map(|axis| row[axis - 1]));
            one(Rows(moved.collect::<Result<_, _>>()?))
        }
        "Flatten" => {
            let row = node.only_rows()?;
            let rank = row.len() + 1;
            let axis = node.int("axis", 1)?;
            let axis = if axis == rank as i64 { rank } else { behind(axis, rank)? };
            // All dimensions before the axis become the first.
            if row[..axis - 1].iter().any(|d| *d != Some(1)) {
                return Err("it joins the first axis with others".into());
            }
            one(Rows(vec![product(&row[axis - 1..])]))
        }
        "Squeeze" | "Unsqueeze" => {
            node.fixed_from(1, 2)?;
            let mut row = node.rows(0)?.to_vec();
            let axes = node.axes(1, 13)?.ok_or("its axes are not known: it may take the first away")?;
            if operator == "Squeeze" {
                let axes = all_behind(&axes, row.len() + 1)?;
                return one(reduced(&row, &axes, false));
            }
            if axes.len() > MAX_RANK {
                return Err("it adds too many axes".into());
            }
            for axis in all_behind(&axes, row.len() + 1 + axes.len())? {
                row.insert((axis - 1).min(row.len()), Some(1));
            }
            one(Rows(row))
        }
        "Gather" => {
            node.fixed_from(2, 2)?;
            one(gather(node)?)
        }
        "GatherElements" => {
            let (data, indices) = (node.rows(0)?, node.rows(1)?);
            node.fixed_from(2, 2)?;
            if data.len() != indices.len() {
                return Err("its inputs have different numbers of dimensions".into());
            }
            behind(node.int("axis", 0)?, data.len() + 1)?;
            one(Rows(indices.to_vec()))
        }
        "OneHot" => {
            node.fixed_from(1, 3)?;
            let mut row = node.rows(0)?.to_vec();
            let axis = behind(node.int("axis", -1)?, row.len() + 2)?;
            row.insert(axis - 1, None);
            one(Rows(row))
        }
        "Slice" => one(slice(node, node.rows(0)?)?),
        "Pad" => one(pad(node)?),
        "Tile" => {
            node.fixed_from(1, 2)?;
            let mut row = node.rows(0)?.to_vec();
            let repeats = node.input(1)?.integers().ok_or("how often it repeats is not known")?;
            if repeats.len() != row.len() + 1 || repeats[0] != 1 {
                return Err("it repeats rows".into());
            }
            for (d, n) in row.iter_mut().zip(&repeats[1..]) {
                *d = d.zip(usize::try_from(*n).ok()).and_then(|(d, n)| d.checked_mul(n));
            }
            one(Rows(row))
        }
        "DepthToSpace" | "SpaceToDepth" => match node.only_rows()? {
            [_, _, _] => one(Rows(vec![None; 3])),
            _ => Err("its input has another number of dimensions than four".into()),
        },
        "Reshape" => one(reshape(node)?),
        _ => Err("the operator is not followed".into()),
    }
}

fn gather(node: &Node<'_>) -> Result<Value, String> {
    let axis = node.int("axis", 0)?;
    match (node.input(0)?, node.input(1)?) {
        // A table that rows look things up in.
        (data, Rows(indices)) if data.is_fixed() => {
            let shape = data.shape_if_fixed().flatten().ok_or("the shape of its data is not known")?;
            if normal(axis, shape.len())? != 0 {
                return Err("what rows look up is not the first axis".into());
            }
            Ok(Rows(indices.iter().copied().chain(shape[1..].iter().map(|d| Some(*d))).collect()))
        }
        (Rows(data), indices) if indices.is_fixed() => {
            let shape = indices.shape_if_fixed().flatten().ok_or("the shape of its indices is not known")?;
            let at = behind(axis, data.len() + 1)? - 1;
            let picked: Vec<Dimension> = shape.into_iter().map(Some).collect();
            Ok(Rows([&data[..at], &picked, &data[at + 1..]].concat()))
        }
        (Value::Numbers { .. }, _) | (_, Value::Numbers { .. }) => {
            Err("it computes with the number of rows".into())
        }
        _ => Err("it picks by row among rows".into()),
    }
}

fn pad(node: &Node<'_>) -> Result<Value, String> {
    // The fourth input names axes.
    node.fixed_from(1, 3)?;
    let mut row = node.rows(0)?.to_vec();
    let pads = match node.opset {
        ..11 => {
            node.fixed_from(1, 1)?;
            node.ints("pads")?
        }
        _ if node.has("pads") || node.has("value") => return Err("its version has no attribute pads".into()),
        _ => node.input(1)?.integers(),
    };
    let pads = pads.ok_or("how much it pads is not known")?;
    let rank = row.len() + 1;
    if pads.len() != 2 * rank || pads[0] != 0 || pads[rank] != 0 {
        return Err("it adds rows".into());
    }
    for (i, d) in row.iter_mut().enumerate() {
        let added = pads[i + 1].checked_add(pads[rank + i + 1]);
        let length =
            d.and_then(|d| i64::try_from(d).ok()).zip(added).and_then(|(d, added)| d.checked_add(added));
        *d = length.and_then(|length| usize::try_from(length).ok());
    }
    Ok(Rows(row))
}

#[cfg(test)]
mod tests;
