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
mod tests {
    use super::*;
    use crate::testing::{
        TREE, convolutions, floats, graph, integers, labels, linear, model, model_of, node, perceptron,
        value, weights,
    };

    fn proven(graph: GraphProto) {
        assert_eq!(independent_rows(&model(graph)), Ok(()));
    }

    /// Refused, at a node of this operator, with these words.
    fn refused(graph: GraphProto, operator: &str, words: &str) {
        refused_of(graph, 17, operator, words);
    }

    fn refused_of(graph: GraphProto, version: i64, operator: &str, words: &str) {
        let reason = independent_rows(&model_of(graph, version)).expect_err(operator);
        assert!(reason.starts_with(&format!("node \"the-{operator}\" (")), "{reason}");
        assert!(reason.contains(words), "{reason}");
    }

    /// One node, between rows of so many dimensions and the output.
    fn of(x: &[i64], node: NodeProto, constants: Vec<TensorProto>) -> GraphProto {
        graph(x, vec![node], constants)
    }

    #[test]
    fn models_of_every_kind_are_proven() {
        assert_eq!(independent_rows(TREE), Ok(()));
        proven(perceptron());
        proven(labels());
        proven(linear());
        proven(convolutions());
    }

    /// `x.view(x.size(0), -1)` and heads of attention, as torch exports them.
    #[test]
    fn shapes_that_are_computed_are_followed() {
        let by_shape = |entries: [&str; 3], x: &[i64]| {
            let nodes = vec![
                node("Shape", &["x"], "shape"),
                node("Gather", &["shape", "zero"], "n"),
                node("Gather", &["shape", "one"], "m"),
                node("Unsqueeze", &["n", "axes"], "rows"),
                node("Unsqueeze", &["m", "axes"], "length"),
                node("Concat", &entries, "wanted").int("axis", 0),
                node("Reshape", &["x", "wanted"], "y"),
            ];
            let constants = vec![
                integers("zero", &[], &[0]),
                integers("one", &[], &[1]),
                integers("axes", &[1], &[0]),
                integers("open", &[1], &[-1]),
                integers("two", &[1], &[2]),
            ];
            graph(x, nodes, constants)
        };
        proven(by_shape(["rows", "length", "open"], &[0, 0, 8]));
        proven(by_shape(["rows", "two", "open"], &[0, 6]));
        proven(by_shape(["rows", "open", "length"], &[0, 6]));
        refused(by_shape(["open", "rows", "length"], &[0, 6]), "Reshape", "behind the first");
        refused(by_shape(["length", "rows", "open"], &[0, 6]), "Reshape", "behind the first");
        refused(by_shape(["length", "two", "open"], &[0, 6]), "Reshape", "does not begin");
        refused(by_shape(["open", "two", "length"], &[0, 6]), "Reshape", "another length");
        refused(by_shape(["open", "two", "length"], &[0, 0, 8]), "Reshape", "not known");

        // With operator set 11 axes are attributes.
        let nodes = vec![
            node("Shape", &["x"], "shape"),
            node("Slice", &["shape", "zero", "one", "zero"], "rows"),
            node("Concat", &["rows", "open"], "wanted").int("axis", 0),
            node("Reshape", &["x", "wanted"], "flat"),
            node("Unsqueeze", &["flat"], "up").ints("axes", &[2]),
            node("Squeeze", &["up"], "y").ints("axes", &[-1]),
        ];
        let constants =
            vec![integers("zero", &[1], &[0]), integers("one", &[1], &[1]), integers("open", &[1], &[-1])];
        assert_eq!(independent_rows(&model_of(graph(&[0, 2, 3], nodes, constants), 11)), Ok(()));

        // A token that is put before every row's.
        let nodes = vec![
            node("Shape", &["x"], "shape"),
            node("Gather", &["shape", "first"], "rows"),
            node("Concat", &["rows", "ones", "width"], "wanted").int("axis", 0),
            node("Expand", &["token", "wanted"], "tokens"),
            node("Concat", &["tokens", "x"], "y").int("axis", 1),
        ];
        let constants = vec![
            integers("first", &[1], &[0]),
            integers("ones", &[1], &[1]),
            integers("width", &[1], &[4]),
            weights("token", &[1, 1, 4]),
        ];
        proven(graph(&[0, 6, 4], nodes, constants));
    }

    #[test]
    fn what_works_across_rows_is_refused() {
        refused(of(&[0, 3], node("Softmax", &["x"], "y").int("axis", 0), vec![]), "Softmax", "across rows");
        refused(of(&[0, 3], node("Softmax", &["x"], "y").int("axis", -2), vec![]), "Softmax", "across rows");
        refused(of(&[0], node("Softmax", &["x"], "y"), vec![]), "Softmax", "across rows");
        proven(of(&[0, 3], node("Softmax", &["x"], "y").int("axis", -1), vec![]));
        for axes in [&[0][..], &[1, 0], &[-2], &[]] {
            let mean = node("ReduceMean", &["x"], "y").ints("axes", axes);
            refused(of(&[0, 3], mean, vec![]), "ReduceMean", "across rows");
        }
        refused(of(&[0, 3], node("ReduceMean", &["x"], "y"), vec![]), "ReduceMean", "across rows");
        refused(of(&[0, 3], node("ArgMax", &["x"], "y"), vec![]), "ArgMax", "across rows");
        for (axes, is_proven) in [(vec![1], true), (vec![0], false)] {
            let sum =
                of(&[0, 3], node("ReduceSum", &["x", "axes"], "y"), vec![integers("axes", &[1], &axes)]);
            assert_eq!(independent_rows(&model(sum)).is_ok(), is_proven);
        }
        let transposed =
            |perm: &[i64]| of(&[0, 3, 4], node("Transpose", &["x"], "y").ints("perm", perm), vec![]);
        proven(transposed(&[0, 2, 1]));
        for perm in [&[1, 0, 2][..], &[2, 1, 0], &[0, 1, 1], &[0, 1], &[0, 0, 1]] {
            refused(transposed(perm), "Transpose", "");
        }
        refused(of(&[0, 3], node("Transpose", &["x"], "y"), vec![]), "Transpose", "moves the first axis");
        let training = node("BatchNormalization", &["x", "b", "b", "b", "b"], "y").int("training_mode", 1);
        refused(of(&[0, 3], training, vec![weights("b", &[3])]), "BatchNormalization", "across rows");
        refused(of(&[0, 3], node("Flatten", &["x"], "y").int("axis", 0), vec![]), "Flatten", "first axis");
        refused(of(&[0, 0, 3], node("Flatten", &["x"], "y").int("axis", 2), vec![]), "Flatten", "first axis");
        proven(of(&[0, 1, 3], node("Flatten", &["x"], "y").int("axis", 2), vec![]));
        // Where the largest lie is counted through all rows.
        let pool = node("MaxPool", &["x"], "y where").ints("kernel_shape", &[2, 2]);
        refused(of(&[0, 1, 4, 4], pool, vec![]), "MaxPool", "first output");
        let gather = |axis| {
            of(&[0, 3], node("Gather", &["x", "i"], "y").int("axis", axis), vec![integers("i", &[1], &[0])])
        };
        refused(gather(0), "Gather", "across rows");
        proven(gather(1));
        let sliced = |axis, end| {
            let constants = ["from", "to", "axes"].iter().zip([0, end, axis]);
            let constants = constants.map(|(name, n)| integers(name, &[1], &[n])).collect();
            of(&[0, 3], node("Slice", &["x", "from", "to", "axes"], "y"), constants)
        };
        refused(sliced(0, 1), "Slice", "some of the rows");
        refused(sliced(0, i64::MAX), "Slice", "some of the rows");
        refused(sliced(-2, 1), "Slice", "some of the rows");
        proven(sliced(1, 2));
        let split = |axis| of(&[0, 4], node("Split", &["x"], "y z").int("axis", axis), vec![]);
        refused(split(0), "Split", "across rows");
        proven(split(1));
        let joined = |axis| of(&[0, 4], node("Concat", &["x", "x"], "y").int("axis", axis), vec![]);
        refused(joined(0), "Concat", "across rows");
        proven(joined(-1));
        for squeeze in [node("Squeeze", &["x"], "y"), node("Squeeze", &["x", "axes"], "y")] {
            refused(of(&[0, 1, 3], squeeze, vec![integers("axes", &[1], &[0])]), "Squeeze", "");
        }
        let unsqueeze =
            |axis| of(&[0, 3], node("Unsqueeze", &["x", "axes"], "y"), vec![integers("axes", &[1], &[axis])]);
        for axis in [0, -3] {
            refused(unsqueeze(axis), "Unsqueeze", "across rows");
        }
        proven(unsqueeze(-1));
        let padded =
            |pads: &[i64]| of(&[0, 3], node("Pad", &["x", "pads"], "y"), vec![integers("pads", &[4], pads)]);
        proven(padded(&[0, 1, 0, 1]));
        for pads in [[1, 0, 0, 0], [0, 0, -1, 0]] {
            refused(padded(&pads), "Pad", "adds rows");
        }
        refused(
            of(&[0, 3], node("CumSum", &["x", "axis"], "y"), vec![integers("axis", &[], &[0])]),
            "CumSum",
            "across rows",
        );
    }

    /// Before operator set 13 Softmax takes all axes from one on together.
    #[test]
    fn versions_decide() {
        let softmax = |x: &[i64]| of(x, node("Softmax", &["x"], "y"), vec![]);
        assert_eq!(independent_rows(&model_of(softmax(&[0, 3, 4]), 11)), Ok(()));
        assert_eq!(independent_rows(&model_of(softmax(&[0, 3, 4]), 13)), Ok(()));
        refused_of(softmax(&[0]), 11, "Softmax", "no axis 1");
        let reduced = |attribute: bool| {
            let sum = node("ReduceMax", if attribute { &["x"] } else { &["x", "axes"] }, "y");
            let sum = if attribute { sum.ints("axes", &[1]) } else { sum };
            of(&[0, 3], sum, vec![integers("axes", &[1], &[1])])
        };
        for (attribute, version, is_proven) in
            [(true, 17, true), (true, 18, false), (false, 17, false), (false, 18, true)]
        {
            assert_eq!(independent_rows(&model_of(reduced(attribute), version)).is_ok(), is_proven);
        }
        for version in [0, 6, 26] {
            let reason = independent_rows(&model_of(perceptron(), version)).unwrap_err();
            assert!(reason.contains("operator set"), "{reason}");
        }
        let mut twice = ModelProto::decode(&*model(perceptron())).unwrap();
        twice.opset_import.push(twice.opset_import[0].clone());
        assert!(independent_rows(&twice.encode_to_vec()).unwrap_err().contains("twice"));
    }

    #[test]
    fn broadcasting_across_rows_is_refused() {
        let add = |x: &[i64], c: &[i64]| of(x, node("Add", &["x", "c"], "y"), vec![weights("c", c)]);
        for c in [&[][..], &[3], &[1], &[1, 3]] {
            proven(add(&[0, 3], c));
        }
        refused(add(&[0, 3], &[2, 3]), "Add", "across rows");
        refused(add(&[0, 3], &[2, 1, 3]), "Add", "across rows");
        refused(add(&[0, 3], &[1, 1, 3]), "Add", "across rows");
        refused(add(&[0], &[3]), "Add", "across rows");
        // Rows of which one has a dimension fewer: its first axis meets the second of the other.
        let nodes = vec![
            node("ReduceMax", &["x"], "m").ints("axes", &[1]).int("keepdims", 0),
            node("Sub", &["x", "m"], "y"),
        ];
        refused(graph(&[0, 3], nodes, vec![]), "Sub", "different numbers of dimensions");
        let nodes = vec![node("ReduceMax", &["x"], "m").ints("axes", &[1]), node("Sub", &["x", "m"], "y")];
        proven(graph(&[0, 3], nodes, vec![]));
        let gemm = |c: &[i64]| {
            of(&[0, 3], node("Gemm", &["x", "B", "c"], "y"), vec![weights("B", &[3, 2]), weights("c", c)])
        };
        proven(gemm(&[2]));
        proven(gemm(&[1, 2]));
        refused(gemm(&[4, 2]), "Gemm", "across rows");
        refused(of(&[0, 3], node("Gemm", &["x", "x"], "y").int("transA", 1), vec![]), "Gemm", "across rows");
    }

    #[test]
    fn products_across_rows_are_refused() {
        let product = |inputs: [&str; 2], x: &[i64], c: &[i64]| {
            of(x, node("MatMul", &inputs, "y"), vec![weights("c", c)])
        };
        for (x, c) in [
            (&[0, 3][..], &[3, 2][..]),
            (&[0, 3], &[3]),
            (&[0, 2, 3], &[3, 4]),
            (&[0, 2, 3], &[1, 3, 4]),
            (&[0, 5, 2, 3], &[5, 3, 4]),
        ] {
            proven(product(["x", "c"], x, c));
        }
        proven(product(["c", "x"], &[0, 3, 4], &[2, 3]));
        proven(product(["x", "x"], &[0, 3, 3], &[1]));
        for (inputs, x, c) in [
            (["c", "x"], &[0, 3][..], &[2, 3][..]),
            (["c", "x"], &[0, 3], &[3]),
            (["c", "x"], &[0, 3, 4], &[2, 2, 3]),
            (["x", "c"], &[0], &[3]),
            (["x", "c"], &[0, 3], &[1, 3, 2]),
            (["x", "c"], &[0, 2, 3], &[2, 3, 4]),
            (["x", "x"], &[0, 3], &[1]),
        ] {
            refused(product(inputs, x, c), "MatMul", "across rows");
        }
    }

    #[test]
    fn rows_keep_their_length() {
        let reshaped = |x: &[i64], to: &[i64]| {
            of(x, node("Reshape", &["x", "to"], "y"), vec![integers("to", &[to.len() as i64], to)])
        };
        for to in [&[-1, 6][..], &[0, -1], &[0, 6], &[-1, 3, 2], &[-1, 1, 6], &[0, 0, -1]] {
            proven(reshaped(&[0, 2, 3], to));
        }
        for to in [
            &[-1, 3][..],
            &[-1, 12],
            &[-1],
            &[1, -1],
            &[2, -1],
            &[6, -1],
            &[-1, 0],
            &[-1, -1],
            &[-1, 0, 1],
            &[0, -2],
        ] {
            refused(reshaped(&[0, 2, 3], to), "Reshape", "");
        }
        refused(reshaped(&[0, 0, 3], &[-1, 6]), "Reshape", "not known");
        let zero = node("Reshape", &["x", "to"], "y").int("allowzero", 1);
        refused(of(&[0, 3], zero, vec![integers("to", &[2], &[0, 3])]), "Reshape", "allowzero");
        // A window that the weights do not have would make another length.
        let mut odd = convolutions();
        odd.initializer[0].dims = vec![2, 1, 1, 1];
        odd.initializer[0].float_data.truncate(2);
        refused(odd, "Conv", "kernel_shape");
        let mut short = convolutions();
        short.node[0].attribute.pop();
        refused(short, "Reshape", "another length");
    }

    #[test]
    fn the_number_of_rows_is_no_value() {
        for (operator, words) in
            [("Cast", "number of rows"), ("ConstantOfShape", "not followed"), ("Neg", "number of rows")]
        {
            let last = node(operator, &["shape"], "y");
            let last = if operator == "Cast" { last.int("to", 1) } else { last };
            let nodes =
                vec![node("Shape", &["x"], "shape0"), node("Gather", &["shape0", "i"], "shape"), last];
            refused(graph(&[0, 3], nodes, vec![integers("i", &[2], &[1, 0])]), operator, words);
        }
        let nodes = vec![node("Shape", &["x"], "s"), node("Mul", &["s", "x"], "y")];
        refused(graph(&[0, 3], nodes, vec![]), "Mul", "number of rows");
        // What is behind the first dimension is the same for all rows.
        let nodes = vec![
            node("Shape", &["x"], "s"),
            node("Gather", &["s", "i"], "width"),
            node("Cast", &["width"], "float").int("to", 1),
            node("Div", &["x", "float"], "y"),
        ];
        proven(graph(&[0, 0], nodes, vec![integers("i", &[], &[1])]));
        refused(of(&[0, 3], node("Size", &["x"], "y"), vec![]), "Size", "not followed");
        let shape = of(&[0, 3], node("Shape", &["x"], "y"), vec![]);
        let reason = independent_rows(&model(shape)).unwrap_err();
        assert!(reason.contains("the output \"y\" has no row"), "{reason}");
    }

    #[test]
    fn what_is_not_known_is_refused() {
        for operator in ["NonZero", "RandomNormalLike", "Loop", "DynamicQuantizeLinear", "NoSuchOperator"] {
            refused(of(&[0, 3], node(operator, &["x"], "y"), vec![]), operator, "not followed");
        }
        let mut inner = node("Relu", &["x"], "y");
        inner.attribute.push(AttributeProto {
            name: "body".into(),
            g: Some(perceptron()),
            ..Default::default()
        });
        refused(of(&[0, 3], inner, vec![]), "Relu", "a graph inside");
        refused(of(&[0, 3], node("Relu", &["x"], "y").int("axis", 0), vec![]), "Relu", "the attribute axis");
        let twice = node("Softmax", &["x"], "y").int("axis", 1).int("axis", 0);
        refused(of(&[0, 3], twice, vec![]), "Softmax", "two attributes");
        let typed = node("Softmax", &["x"], "y").floats("axis", &[1.0]);
        refused(of(&[0, 3], typed, vec![]), "Softmax", "another type");
        refused(
            of(&[0, 3], NodeProto { domain: "org.example".into(), ..node("Relu", &["x"], "y") }, vec![]),
            "Relu",
            "domain",
        );
        refused(of(&[0, 3], node("Relu", &["later"], "y"), vec![]), "Relu", "no node before it");
        let train = node("Dropout", &["x", "", "yes"], "y");
        refused(of(&[0, 3], train, vec![integers("yes", &[], &[1])]), "Dropout", "inputs");
        // One dimension would be one row to these.
        refused(of(&[0], node("Normalizer", &["x"], "y").ml(), vec![]), "Normalizer", "dimensions");
        let two = vec![
            node("ArgMax", &["x"], "i").int("axis", 1),
            node("ArrayFeatureExtractor", &["c", "i"], "y").ml(),
        ];
        refused(graph(&[0, 3, 2], two, vec![weights("c", &[3])]), "ArrayFeatureExtractor", "one a row");

        let reason = |graph: GraphProto| independent_rows(&model(graph)).unwrap_err();
        let mut shadowed = perceptron();
        shadowed.node.insert(1, node("Relu", &["a"], "W"));
        assert!(reason(shadowed).contains("\"W\" is made twice"));
        let mut fixed_rows = perceptron();
        fixed_rows.input[0] = value("x", 1, &[1, 4]);
        assert!(reason(fixed_rows).contains("always of 1 rows"));
        let mut scalar = perceptron();
        scalar.input[0] = value("x", 1, &[]);
        assert!(reason(scalar).contains("no dimensions"));
        let mut unknown = perceptron();
        unknown.input[0].r#type = None;
        assert!(reason(unknown).contains("does not say"));
        let mut constant = perceptron();
        constant.output[0].name = "W".into();
        assert!(reason(constant).contains("the output \"W\" has no row"));
        let mut functions = ModelProto::decode(&*model(perceptron())).unwrap();
        functions.functions.push(crate::proto::FunctionProto {});
        assert!(independent_rows(&functions.encode_to_vec()).unwrap_err().contains("functions"));
        assert!(independent_rows(&[0xff; 9]).is_err());
        let mut both = labels();
        both.initializer[2].raw_data = 1_i64.to_le_bytes().to_vec();
        assert!(reason(both).contains("twice"));
    }

    /// One parser joins two graphs, another takes the last: what is proven must be what runs.
    #[test]
    fn files_that_can_be_read_in_two_ways_are_refused() {
        let file = model(perceptron());
        assert_eq!(independent_rows(&file), Ok(()));
        assert!(independent_rows(&[&file[..], &[0x3a, 0]].concat()).unwrap_err().contains("twice"));
        // A node with a second operator.
        let relu = node("Relu", &["x"], "y").encode_to_vec();
        let both = [&relu[..], &[0x22, 3], b"Exp"].concat();
        let inner = [&[0x0a, both.len() as u8], &both[..]].concat();
        let whole = [&[0x3a, inner.len() as u8], &inner[..]].concat();
        assert!(once(&whole, &MODEL).unwrap_err().contains("twice"));
        let (length, places) = (file.len(), (0..file.len()).step_by(3));
        for place in places {
            for value in [0, 0x3a, 0xff] {
                let mut damaged = file.clone();
                damaged[place] = value;
                let _ = independent_rows(&damaged);
            }
            let _ = independent_rows(&file[..length - place]);
        }
    }

    #[test]
    fn many_dimensions_end() {
        let mut nodes = vec![node("Unsqueeze", &["x", "axes"], "v0")];
        for i in 0..1000 {
            nodes.push(node("Unsqueeze", &[&format!("v{i}"), "axes"], &format!("v{}", i + 1)));
        }
        refused(graph(&[0, 3], nodes, vec![integers("axes", &[1], &[1])]), "Unsqueeze", "more dimensions");
        let mut nodes = vec![node("Shape", &["x"], "v0")];
        for i in 0..100 {
            let name = format!("v{i}");
            nodes.push(node("Concat", &[&name, &name], &format!("v{}", i + 1)).int("axis", 0));
        }
        refused(graph(&[0, 3], nodes, vec![floats("c", &[], &[0.0])]), "Concat", "more than 64 numbers");
    }

    /// xorshift64, so that a failure comes again.
    struct Random(u64);

    impl Random {
        fn below(&mut self, n: usize) -> usize {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            (self.0 % n as u64) as usize
        }

        fn of<T: Copy>(&mut self, all: &[T]) -> T {
            all[self.below(all.len())]
        }
    }

    /// The evaluator's operators.
    #[rustfmt::skip]
    const FEW: &[&str] = &[
        "Add", "Sub", "Mul", "MatMul", "Relu", "Softmax", "ArgMax", "Reshape", "Reshape", "Concat", "Identity", "Cast",
        "ArrayFeatureExtractor", "Scaler", "Normalizer",
    ];
    /// Those of other engines. `computed` is a reshape or expansion by a shape that nodes make.
    #[rustfmt::skip]
    const MORE: &[&str] = &[
        "Add", "Mul", "Max", "Where", "MatMul", "MatMul", "Gemm", "Relu", "Softmax", "LogSoftmax", "ArgMax", "Reshape", "Reshape",
        "computed", "computed", "computed", "Expand", "Concat", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "Gather", "Gather",
        "Slice", "Split", "ReduceMean", "ReduceSum", "Tile", "Pad", "LayerNormalization", "CumSum", "TopK", "GatherElements",
        "GlobalAveragePool", "MaxPool", "Conv", "InstanceNormalization", "ConstantOfShape",
    ];
    #[rustfmt::skip]
    const SHAPES: &[&[i64]] = &[
        &[], &[1], &[2], &[3], &[1, 2], &[2, 2], &[2, 3], &[3, 2], &[3, 3], &[1, 3, 2], &[2, 2, 2], &[2, 2, 1, 1],
    ];
    const INPUTS: &[&[i64]] = &[&[0, 2], &[0, 3], &[0, 2, 3], &[0, 2, 2, 2], &[0, 1, 2], &[0]];
    const AXES: &[&[i64]] = &[&[0], &[1], &[1], &[-1], &[2], &[1, 2]];
    #[rustfmt::skip]
    const RESHAPES: &[&[i64]] = &[
        &[-1], &[-1, 1], &[-1, 2], &[-1, 3], &[0, -1], &[0, -1], &[0, 2, -1], &[-1, 6], &[1, -1], &[2, -1], &[-1, 2, 3], &[0, 0, -1],
    ];
    const PERMUTATIONS: &[&[i64]] =
        &[&[0, 2, 1], &[0, 1], &[1, 0], &[0, 1, 2], &[1, 0, 2], &[0, 3, 1, 2], &[2, 1, 0]];

    /// Grows a graph.
    struct Grower<'a> {
        random: &'a mut Random,
        graph: GraphProto,
        made: Vec<String>,
    }

    impl Grower<'_> {
        /// A value; the newest are taken most often.
        fn some(&mut self) -> String {
            let count = self.made.len();
            let back = self.random.below(count).min(self.random.below(count));
            self.made[count - 1 - back].clone()
        }

        fn fresh(&self) -> String {
            format!("c{}", self.graph.initializer.len())
        }

        fn weights(&mut self) -> String {
            let name = self.fresh();
            self.graph.initializer.push(weights(&name, self.random.of(SHAPES)));
            name
        }

        fn numbers(&mut self, all: &[&[i64]]) -> String {
            let (name, numbers) = (self.fresh(), self.random.of(all));
            self.graph.initializer.push(integers(&name, &[numbers.len() as i64], numbers));
            name
        }

        fn one_of(&mut self, all: &[i64]) -> i64 {
            self.random.of(all)
        }

        /// A node before the one that is grown.
        fn before(&mut self, node: NodeProto) -> String {
            let name = format!("n{}", self.graph.node.len());
            self.graph.node.push(NodeProto { output: vec![name.clone()], ..node });
            name
        }

        fn best(&mut self, of: &str, axis: i64) -> String {
            let keep = self.one_of(&[0, 1]);
            self.before(node("ArgMax", &[of], "").int("axis", axis).int("keepdims", keep))
        }

        fn grow(&mut self, operator: &str) {
            let first = self.some();
            let second = if self.random.below(2) == 0 { self.some() } else { self.weights() };
            let axis = self.one_of(&[-2, -1, 0, 1, 1, 2]);
            let mut grown = node(operator, &[], &format!("v{}", self.graph.node.len()));
            let mut inputs = vec![first.clone()];
            match operator {
                "Add" | "Sub" | "Mul" | "Max" | "MatMul" | "Concat" | "Gemm" => {
                    inputs.push(second);
                    if self.random.below(2) == 0 {
                        inputs.swap(0, 1);
                    }
                    match operator {
                        "Concat" => grown = grown.int("axis", axis),
                        "Gemm" => {
                            let (a, b) = (self.one_of(&[0, 0, 1]), self.one_of(&[0, 1]));
                            grown = grown.int("transA", a).int("transB", b);
                        }
                        _ => {}
                    }
                }
                "Where" => {
                    let condition = self.before(node("Greater", &[&first, &second], ""));
                    inputs = vec![condition, first, second];
                }
                "Softmax" | "LogSoftmax" | "Flatten" => grown = grown.int("axis", axis),
                "ArgMax" => grown = grown.int("axis", axis).int("keepdims", self.one_of(&[0, 1])),
                "Reshape" => inputs.push(self.numbers(RESHAPES)),
                "computed" | "ConstantOfShape" => {
                    // Some dimensions of one value, with others.
                    let at = self.numbers(&[&[0], &[0], &[1], &[0, 1], &[1, 0], &[-1]]);
                    let rest = self.numbers(&[&[-1], &[-1], &[1], &[2], &[3], &[2, -1]]);
                    let shape = self.before(node("Shape", &[&first], ""));
                    let part = self.before(node("Gather", &[&shape, &at], ""));
                    let parts = if self.random.below(3) > 0 { [part, rest] } else { [rest, part] };
                    let wanted = self.before(node("Concat", &[&parts[0], &parts[1]], "").int("axis", 0));
                    inputs = vec![wanted];
                    if operator == "computed" {
                        grown.op_type = self.random.of(&["Reshape", "Reshape", "Expand"]).into();
                        inputs.insert(0, if self.random.below(2) == 0 { first } else { second });
                    }
                }
                "Expand" => inputs.push(self.numbers(&[&[1, 2], &[2], &[2, 2], &[3, 1, 1], &[1, 1, 1, 1]])),
                "Transpose" => grown = grown.ints("perm", self.random.of(PERMUTATIONS)),
                "Squeeze" | "Unsqueeze" => inputs.push(self.numbers(AXES)),
                "ReduceSum" => {
                    inputs.push(self.numbers(AXES));
                    grown = grown.int("keepdims", self.one_of(&[0, 1]));
                }
                "ReduceMean" => {
                    grown = grown.ints("axes", self.random.of(AXES)).int("keepdims", self.one_of(&[0, 1]));
                }
                // Rows that look something up, by their largest element; or columns.
                "Gather" | "ArrayFeatureExtractor" => {
                    inputs = match self.random.below(3) {
                        0 => vec![first, self.numbers(&[&[0], &[1], &[1, 0]])],
                        _ => vec![second, self.best(&first, axis)],
                    };
                    grown = if operator == "Gather" { grown.int("axis", axis) } else { grown.ml() };
                }
                "GatherElements" => {
                    let along = self.one_of(&[1, 2, -1]);
                    inputs.push(self.best(&first, along));
                    grown = grown.int("axis", axis);
                }
                "Slice" => {
                    inputs.push(self.numbers(&[&[0], &[0], &[1]]));
                    inputs.push(self.numbers(&[&[1], &[2], &[i64::MAX]]));
                    inputs.push(self.numbers(&[&[0], &[1], &[-1]]));
                }
                "Split" => {
                    grown.output.push(format!("w{}", self.graph.node.len()));
                    grown = grown.int("axis", axis);
                }
                "Tile" => inputs.push(self.numbers(&[&[1, 2], &[2, 1], &[1, 1, 2]])),
                "Pad" => inputs.push(self.numbers(&[&[0, 1, 0, 0], &[1, 0, 0, 0], &[0, 1, 0, 0, 0, 1]])),
                "LayerNormalization" => {
                    inputs.push(second);
                    grown = grown.int("axis", axis);
                }
                "CumSum" => {
                    let name = self.fresh();
                    self.graph.initializer.push(integers(&name, &[], &[axis]));
                    inputs.push(name);
                }
                "TopK" => {
                    inputs.push(self.numbers(&[&[1], &[2]]));
                    grown.output.push(format!("w{}", self.graph.node.len()));
                    grown = grown.int("axis", axis);
                }
                "MaxPool" => {
                    grown = grown.ints("kernel_shape", self.random.of(&[&[2, 2][..], &[1, 2], &[2]]))
                }
                "Conv" => inputs.push(second),
                "InstanceNormalization" => {
                    let name = self.fresh();
                    self.graph.initializer.push(weights(&name, &[2]));
                    inputs.extend([name.clone(), name]);
                }
                "Cast" => grown = grown.int("to", 1),
                "Scaler" => grown = grown.ml().floats("offset", &[0.5]).floats("scale", &[2.0]),
                "Normalizer" => grown = grown.ml(),
                _ => {}
            }
            grown.input = inputs;
            self.made.push(grown.output[0].clone());
            self.graph.node.push(grown);
        }
    }

    /// A graph of a few nodes, of which many make sense to an engine.
    fn random_graph(random: &mut Random) -> GraphProto {
        let operators = if cfg!(feature = "engines") && random.below(4) > 0 { MORE } else { FEW };
        let mut graph = graph(random.of(INPUTS), vec![], vec![]);
        if random.below(4) == 0 {
            graph.input.push(value("z", 1, random.of(INPUTS)));
        }
        let made = graph.input.iter().map(|input| input.name.clone()).collect();
        let mut grower = Grower { random, graph, made };
        for _ in 0..1 + grower.random.below(6) {
            let operator = grower.random.of(operators);
            grower.grow(operator);
        }
        let Grower { mut graph, made, .. } = grower;
        // Of whatever type it is, and with however many dimensions.
        graph.node.push(node("Cast", &[made.last().unwrap()], "y").int("to", 1));
        graph.output[0].r#type.as_mut().unwrap().tensor_type.as_mut().unwrap().shape = None;
        graph
    }

    /// Rows by numbers: rows of the same number are the same.
    fn numbered(ports: &[crate::Port], rows: &[usize]) -> Vec<Tensor> {
        let all = ports.iter().map(|port| {
            let row: Vec<usize> = port.shape.iter().flatten().skip(1).map(|d| d.unwrap()).collect();
            let length: usize = row.iter().product();
            let element = |r: usize, i: usize| ((r * 31 + i * 17) % 23) as f32 / 4.0 - 2.0;
            let data = rows.iter().flat_map(|r| (0..length).map(move |i| element(*r, i)));
            Tensor::new([vec![rows.len()], row].concat(), crate::Data::F32(data.collect())).unwrap()
        });
        all.collect()
    }

    /// Of random graphs whose rows are said to be independent, a row has the same result whatever the others are, and however many.
    #[test]
    fn what_is_proven_holds_for_every_engine() {
        // Other engines take their time to load a model, without optimisation most of all.
        let default = if cfg!(feature = "engines") { 200 } else { 4000 };
        let count = std::env::var("ENCLOS_GRAPHS").ok().and_then(|n| n.parse().ok()).unwrap_or(default);
        let mut random = Random(0x9e37_79b9_7f4a_7c15);
        let (mut proven, mut compared, mut dependent) = (0, 0, 0);
        for _ in 0..count {
            let graph = random_graph(&mut random);
            let file = model(graph.clone());
            let is_proven = independent_rows(&file).is_ok();
            proven += usize::from(is_proven);
            for engine in crate::Kind::ALL.iter().filter_map(|kind| kind.load(&file, false).ok()) {
                let first = |rows: &[usize]| -> Option<Tensor> {
                    let result = engine.run(&numbered(engine.inputs(), rows)).ok()?.remove(0);
                    let is = result.shape().first() == Some(&rows.len());
                    assert!(is || !is_proven, "{}: {:?} of {graph:?}", engine.name(), result.shape());
                    result.rows(0, 1).filter(|_| is)
                };
                let all = [&[5][..], &[5, 1, 2], &[5, 7, 9], &[5, 3], &[5, 5, 1, 8]].map(first);
                let all: Vec<Tensor> = all.into_iter().flatten().collect();
                for two in all.windows(2) {
                    let is_same = crate::choice::is_close(&two[0], &two[1]);
                    assert!(is_same || !is_proven, "{}: {two:?} of {graph:?}", engine.name());
                    compared += usize::from(is_proven);
                    dependent += usize::from(!is_same);
                }
            }
        }
        println!(
            "{proven} of {count} graphs are proven: {compared} results are the same; {dependent} of others not"
        );
        // Neither all nor none, and of the others some that would have told one client of another.
        assert!(
            proven > count / 20 && proven < count / 2 && compared > count / 20 && dependent > count / 200
        );
    }
}
