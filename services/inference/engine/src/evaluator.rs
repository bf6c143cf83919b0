//! The evaluator: a graph of operators, prepared once and run in the order of the file.

use std::collections::HashMap;

use prost::Message as _;

use crate::proto::{AttributeProto, GraphProto, ModelProto, NodeProto, ValueInfoProto};
use crate::tensor::texts;
use crate::{Data, DataType, Engine, LoadError, Port, RunError, Tensor, check, linear, operators, trees};

/// Runs the operators that scikit-learn's models are exported to.
///
/// ZipMap gives its input on: a tensor of probabilities, a column a class, not a sequence of maps.
pub struct Evaluator {
    inputs: Vec<Port>,
    outputs: Vec<Port>,
    /// By slot: what the model brings along.
    constants: Vec<Option<Tensor>>,
    input_slots: Vec<usize>,
    output_slots: Vec<usize>,
    steps: Vec<Step>,
}

/// A node, ready to run.
struct Step {
    node: String,
    operator: String,
    inputs: Vec<usize>,
    /// `None`: an output that has no name.
    outputs: Vec<Option<usize>>,
    run: Prepared,
}

/// An operator with its attributes checked. Its errors name neither node nor operator: the caller knows them.
pub(crate) type Prepared = Box<dyn Fn(&[&Tensor]) -> Result<Vec<Tensor>, String> + Send + Sync>;

/// Why an operator cannot be prepared.
pub(crate) enum Refusal {
    /// It is not among ours, or not with these attributes.
    Unsupported(String),
    /// Its attributes contradict each other or the specification.
    Invalid(String),
}

impl From<String> for Refusal {
    fn from(reason: String) -> Self {
        Self::Invalid(reason)
    }
}

impl Evaluator {
    /// Loads a model.
    ///
    /// # Errors
    /// When it is not ONNX, says something impossible, or has another operator.
    pub fn load(model: &[u8]) -> Result<Self, LoadError> {
        Self::of_model(&ModelProto::decode(model)?)
    }

    pub(crate) fn of_model(model: &ModelProto) -> Result<Self, LoadError> {
        let opset = model.opset_import.iter().find(|o| o.domain.is_empty() || o.domain == "ai.onnx");
        let opset = opset.map_or(0, |o| o.version);
        let Some(graph) = &model.graph else { return Err(invalid("it has no graph")) };
        // Before this version Softmax, Reshape and others mean something else.
        if opset != 0 && opset < 13 {
            return Err(invalid(format!("it is of operator set {opset}; export it for 13 or later")));
        }
        Self::of(graph)
    }

    fn of(graph: &GraphProto) -> Result<Self, LoadError> {
        let (mut constants, mut slots) = (Vec::new(), HashMap::new());
        if !graph.sparse_initializer.is_empty() {
            return Err(invalid("it has sparse constants, which are not supported"));
        }
        for tensor in &graph.initializer {
            let value = Tensor::from_proto(tensor)
                .map_err(|reason| invalid(format!("constant {:?}: {reason}", tensor.name)))?;
            define(&mut slots, &mut constants, &tensor.name, Some(value))?;
        }
        let (mut inputs, mut input_slots) = (Vec::new(), Vec::new());
        for input in &graph.input {
            // Older exporters list constants among the inputs; they need not be given.
            if !slots.contains_key(&input.name) {
                inputs.push(port(input)?.ok_or_else(|| {
                    invalid(format!("input {:?} is no tensor of a supported type", input.name))
                })?);
                input_slots.push(define(&mut slots, &mut constants, &input.name, None)?);
            }
        }
        let mut steps = Vec::with_capacity(graph.node.len());
        for node in &graph.node {
            steps.push(step(node, &mut slots, &mut constants)?);
        }
        let (mut outputs, mut output_slots) = (Vec::new(), Vec::new());
        for output in &graph.output {
            let slot = slots.get(&output.name);
            let missing = || invalid(format!("nothing makes the output {:?}", output.name));
            output_slots.push(*slot.ok_or_else(missing)?);
            // What has no tensor type is ZipMap's, of which we give the tensor.
            let probabilities = || Port { name: output.name.clone(), data_type: DataType::F32, shape: None };
            outputs.push(port(output)?.unwrap_or_else(probabilities));
        }
        Ok(Self { inputs, outputs, constants, input_slots, output_slots, steps })
    }
}

impl Engine for Evaluator {
    fn name(&self) -> &'static str {
        "evaluator"
    }

    fn inputs(&self) -> &[Port] {
        &self.inputs
    }

    fn outputs(&self) -> &[Port] {
        &self.outputs
    }

    fn run(&self, inputs: &[Tensor]) -> Result<Vec<Tensor>, RunError> {
        check(&self.inputs, inputs)?;
        let mut made: Vec<Option<Tensor>> = vec![None; self.constants.len()];
        let mut given: Vec<Option<&Tensor>> = self.constants.iter().map(Option::as_ref).collect();
        for (slot, tensor) in self.input_slots.iter().zip(inputs) {
            given[*slot] = Some(tensor);
        }
        for step in &self.steps {
            let failed =
                |reason| RunError::Node { node: step.node.clone(), operator: step.operator.clone(), reason };
            let arguments: Option<Vec<&Tensor>> =
                step.inputs.iter().map(|slot| given[*slot].or(made[*slot].as_ref())).collect();
            let arguments = arguments.ok_or_else(|| failed("an input was not made".into()))?;
            let results = (step.run)(&arguments).map_err(failed)?;
            for (slot, result) in step.outputs.iter().zip(results) {
                if let Some(slot) = slot {
                    made[*slot] = Some(result);
                }
            }
        }
        let results = self.output_slots.iter().zip(&self.outputs).map(|(slot, port)| {
            let result = given[*slot].or(made[*slot].as_ref()).cloned();
            result.ok_or_else(|| RunError::Node {
                node: port.name.clone(),
                operator: "output".into(),
                reason: "it was not made".into(),
            })
        });
        results.collect()
    }
}

/// Gives a value a slot. Names are assigned once in a graph.
fn define(
    slots: &mut HashMap<String, usize>,
    constants: &mut Vec<Option<Tensor>>,
    name: &str,
    value: Option<Tensor>,
) -> Result<usize, LoadError> {
    let slot = constants.len();
    constants.push(value);
    match slots.insert(name.to_owned(), slot) {
        None => Ok(slot),
        Some(_) => Err(invalid(format!("{name:?} is made twice"))),
    }
}

fn step(
    node: &NodeProto,
    slots: &mut HashMap<String, usize>,
    constants: &mut Vec<Option<Tensor>>,
) -> Result<Step, LoadError> {
    let name = match (&*node.name, node.output.first()) {
        ("", Some(output)) => output.clone(),
        (name, _) => name.to_owned(),
    };
    let operator = match &*node.domain {
        "" | "ai.onnx" => node.op_type.clone(),
        domain => format!("{domain}.{}", node.op_type),
    };
    let invalid = |reason| LoadError::Node { node: name.clone(), operator: operator.clone(), reason };
    let prepared = match (&*node.domain, &*node.op_type) {
        ("ai.onnx.ml", "TreeEnsembleClassifier" | "TreeEnsembleRegressor") => trees::prepare(node),
        ("ai.onnx.ml", _) => linear::prepare(node),
        ("" | "ai.onnx", _) => operators::prepare(node),
        _ => Err(Refusal::Unsupported("the operator is not supported".into())),
    };
    let run = prepared.map_err(|refusal| match refusal {
        Refusal::Invalid(reason) => invalid(reason),
        Refusal::Unsupported(reason) => {
            LoadError::Unsupported { node: name.clone(), operator: operator.clone(), reason }
        }
    })?;
    let find = |input: &String| slots.get(input).copied();
    let inputs: Option<Vec<usize>> = node.input.iter().map(find).collect();
    let inputs =
        inputs.ok_or_else(|| invalid("an input is made by no node before it, or left out".into()))?;
    let mut outputs = Vec::new();
    for output in &node.output {
        outputs.push(match &**output {
            "" => None,
            output => Some(define(slots, constants, output, None)?),
        });
    }
    Ok(Step { node: name, operator, inputs, outputs, run })
}

/// `None`: its type is no tensor.
pub(crate) fn port(info: &ValueInfoProto) -> Result<Option<Port>, LoadError> {
    let Some(tensor) = info.r#type.as_ref().and_then(|t| t.tensor_type.as_ref()) else { return Ok(None) };
    let data_type = DataType::from_onnx(tensor.elem_type.into()).ok_or_else(|| {
        invalid(format!("{:?} has elements of ONNX's type {}, not supported", info.name, tensor.elem_type))
    })?;
    // 0 is what some exporters write for "any".
    let dimension = |d: Option<i64>| d.filter(|d| *d > 0).and_then(|d| usize::try_from(d).ok());
    let shape = tensor.shape.as_ref().map(|s| s.dim.iter().map(|d| dimension(d.dim_value)).collect());
    Ok(Some(Port { name: info.name.clone(), data_type, shape }))
}

pub(crate) fn invalid(reason: impl Into<String>) -> LoadError {
    LoadError::Graph { reason: reason.into() }
}

/// Attributes of a node.
pub(crate) struct Attributes<'a>(&'a [AttributeProto]);

impl<'a> Attributes<'a> {
    pub(crate) fn of(node: &'a NodeProto) -> Self {
        Self(&node.attribute)
    }

    fn get(&self, name: &str) -> Option<&'a AttributeProto> {
        self.0.iter().find(|a| a.name == name)
    }

    pub(crate) fn has(&self, name: &str) -> bool {
        self.get(name).is_some()
    }

    pub(crate) fn int(&self, name: &str, default: i64) -> i64 {
        self.get(name).map_or(default, |a| a.i)
    }

    pub(crate) fn ints(&self, name: &str) -> &'a [i64] {
        self.get(name).map_or(&[], |a| &a.ints)
    }

    pub(crate) fn floats(&self, name: &str) -> &'a [f32] {
        self.get(name).map_or(&[], |a| &a.floats)
    }

    pub(crate) fn text(&self, name: &str, default: &'static str) -> &'a str {
        self.get(name).map_or(default, |a| std::str::from_utf8(&a.s).unwrap_or("(not UTF-8)"))
    }

    pub(crate) fn strings(&self, name: &str) -> &'a [Vec<u8>] {
        self.get(name).map_or(&[], |a| &a.strings)
    }

    /// Labels of classes, by the names of their attributes for integers and for strings.
    pub(crate) fn labels(&self, integers: &str, strings: &str) -> Result<Labels, String> {
        let strings = self.strings(strings);
        match (self.ints(integers), strings) {
            ([], []) => Err("it has no labels of classes".into()),
            (integers, []) => Ok(Labels::Integers(integers.to_vec())),
            ([], strings) => Ok(Labels::Strings(texts(strings)?)),
            _ => Err("its classes have two kinds of labels".into()),
        }
    }
}

/// What classes are called.
pub(crate) enum Labels {
    Integers(Vec<i64>),
    Strings(Vec<String>),
}

impl Labels {
    pub(crate) fn len(&self) -> usize {
        match self {
            Self::Integers(v) => v.len(),
            Self::Strings(v) => v.len(),
        }
    }

    /// The labels of these classes, which exist, as a tensor of one dimension.
    pub(crate) fn pick(&self, classes: &[usize]) -> Result<Tensor, String> {
        let data = match self {
            Self::Integers(labels) => Data::I64(classes.iter().map(|c| labels[*c]).collect()),
            Self::Strings(labels) => Data::Text(classes.iter().map(|c| labels[*c].clone()).collect()),
        };
        Tensor::new(vec![classes.len()], data).ok_or_else(|| "too many rows".into())
    }
}
