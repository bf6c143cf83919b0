//! Which engine runs a model: those that may are tried, and the fastest is taken.

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use prost::Message as _;

use crate::evaluator::{invalid, port};
use crate::proto::{GraphProto, ModelProto, NodeProto, TensorProto};
use crate::tensor::elements;
use crate::{Batcher, Data, DataType, Engine, Evaluator, LoadError, Port, RunError, Tensor, f16};

/// How long an engine is timed, if it needs no longer for one inference, and how often at most.
const TIMING: Duration = Duration::from_millis(50);
const MOST_RUNS: u32 = 20;
/// Elements of an input that a trial makes up, at most.
const MOST_ELEMENTS: usize = 1 << 24;
/// What a dimension that may be any is in a trial, besides the first, which is 1: a row.
const LENGTHS: [usize; 2] = [64, 1];
/// Longest words of an engine that are kept, in bytes.
const MOST_WORDS: usize = 300;

/// The engines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Ours.
    Evaluator,
    /// The crate `tract-onnx`; with the feature `engines`.
    Tract,
    /// The crate `rten`; with the feature `engines`.
    Rten,
}

impl Kind {
    /// Those that are there.
    pub const ALL: &[Self] = match cfg!(feature = "engines") {
        true => &[Self::Evaluator, Self::Tract, Self::Rten],
        false => &[Self::Evaluator],
    };

    /// Of a name, as [`Engine::name`] says it.
    pub fn of_name(name: &str) -> Option<Self> {
        Self::ALL.iter().find(|kind| kind.to_string() == name).copied()
    }

    /// Loads a model for this engine, whether another is faster or not. Exclusions hold, unless `unchecked`: then the engine is
    /// asked even for what it is known to answer wrongly, for comparisons.
    ///
    /// # Errors
    /// When it does not run it.
    pub fn load(self, model: &[u8], unchecked: bool) -> Result<Box<dyn Engine>, LoadError> {
        let file = ModelProto::decode(model)?;
        let contents = Contents::of(&file)?;
        self.load_if(model, &file, &contents, unchecked)
    }

    fn load_if(
        self,
        model: &[u8],
        file: &ModelProto,
        contents: &Contents,
        unchecked: bool,
    ) -> Result<Box<dyn Engine>, LoadError> {
        let refused = |reason| LoadError::NoEngine { reasons: format!("{self}: {reason}") };
        if let Some(reason) = exclusion(self, contents).filter(|_| !unchecked) {
            return Err(refused(reason));
        }
        let loading = AssertUnwindSafe(|| self.load_known(model, file, contents));
        let engine = catch_unwind(loading).unwrap_or_else(|_| Err(refused("it failed at it".into())))?;
        Ok(Box::new(Caught(engine)))
    }

    #[cfg(feature = "engines")]
    fn load_known(
        self,
        model: &[u8],
        file: &ModelProto,
        contents: &Contents,
    ) -> Result<Box<dyn Engine>, LoadError> {
        let refused = |reason| LoadError::NoEngine { reasons: format!("{self}: {reason}") };
        Ok(match self {
            Self::Evaluator => Box::new(Evaluator::of_model(file)?),
            Self::Tract => {
                let (inputs, outputs) = contents.ports.as_ref().map_err(|reason| refused(reason.clone()))?;
                Box::new(crate::tract::Tract::load(model, inputs, outputs).map_err(refused)?)
            }
            Self::Rten => {
                let (inputs, outputs) = contents.ports.as_ref().map_err(|reason| refused(reason.clone()))?;
                Box::new(crate::rten::Rten::load(model, inputs, outputs).map_err(refused)?)
            }
        })
    }

    #[cfg(not(feature = "engines"))]
    fn load_known(self, _: &[u8], file: &ModelProto, _: &Contents) -> Result<Box<dyn Engine>, LoadError> {
        match self {
            Self::Evaluator => Ok(Box::new(Evaluator::of_model(file)?)),
            Self::Tract | Self::Rten => {
                Err(LoadError::NoEngine { reasons: format!("{self}: it is not in this build") })
            }
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Evaluator => "evaluator",
            Self::Tract => "tract",
            Self::Rten => "rten",
        })
    }
}

/// A model, loaded, and why it is this engine that runs it.
pub struct Choice {
    /// What runs it.
    pub engine: Box<dyn Engine>,
    /// Every engine, and what came of it.
    pub trials: Vec<Trial>,
}

impl Choice {
    /// Which engines run it and how fast; nothing of what is in the model.
    pub fn summary(&self) -> String {
        let all = self.trials.iter().map(|trial| match &trial.outcome {
            Outcome::Refused(_) => format!("{} does not run it", trial.kind),
            outcome => format!("{} {outcome}", trial.kind),
        });
        all.collect::<Vec<_>>().join(", ")
    }

    /// What runs requests that come together in one go: at most so many rows, of which the first waits no longer than this. `model`
    /// is the file that was loaded.
    ///
    /// # Errors
    /// Why it must not be: rows that are not proven to be independent of each other, or made-up ones for which the engine
    /// answers otherwise together than alone.
    pub fn batcher(&self, model: &[u8], max_size: usize, max_delay: Duration) -> Result<Batcher, String> {
        crate::rows::independent_rows(model)?;
        rows_agree(&*self.engine)?;
        Ok(Batcher::new(max_size, max_delay))
    }
}

/// Whether made-up rows come out together as they do alone. That they are independent is proven for what the model says; this is about
/// how an engine runs it.
fn rows_agree(engine: &dyn Engine) -> Result<(), String> {
    const ORDER: [usize; 5] = [0, 1, 1, 0, 1];
    let mut reason = "there are no made-up rows for it".to_owned();
    for length in LENGTHS {
        let rows = [1, 0].map(|value| made_up(engine.inputs(), length, value));
        let [Some(ones), Some(zeros)] = rows else { continue };
        let rows = [ones, zeros];
        let alone = match (engine.run(&rows[0]), engine.run(&rows[1])) {
            (Ok(ones), Ok(zeros)) => [ones, zeros],
            (Err(e), _) | (_, Err(e)) => {
                reason = format!("made-up rows cannot be run: {}", shortened(&e.to_string()));
                continue;
            }
        };
        let together =
            (0..engine.inputs().len()).map(|i| Tensor::joined(ORDER.iter().map(|row| &rows[*row][i])));
        let together = together.collect::<Option<Vec<_>>>().ok_or("made-up rows are too large together")?;
        let together = engine.run(&together);
        let together =
            together.map_err(|e| format!("rows cannot be run together: {}", shortened(&e.to_string())))?;
        for (i, all) in together.iter().enumerate() {
            let as_many = all.shape().first() == Some(&ORDER.len());
            let agrees = ORDER.iter().enumerate().all(|(place, row)| {
                all.rows(place, 1)
                    .is_some_and(|is| alone[*row].get(i).is_some_and(|alone| is_close(&is, alone)))
            });
            if !as_many || !agrees {
                let name = engine.outputs().get(i).map_or("", |port| &port.name);
                return Err(format!("made-up rows have another result {name:?} together than alone"));
            }
        }
        return Ok(());
    }
    Err(reason)
}

/// Whether two results are the same but for the order in which an engine may add.
pub(crate) fn is_close(a: &Tensor, b: &Tensor) -> bool {
    let close = |a: f64, b: f64, error: f64| {
        a == b || (a.is_nan() && b.is_nan()) || (a - b).abs() <= error * a.abs().max(b.abs()).max(1.0)
    };
    a.shape() == b.shape()
        && match (a.data(), b.data()) {
            (Data::F16(a), Data::F16(b)) => {
                a.iter().zip(b).all(|(a, b)| close((*a).into(), (*b).into(), 1e-2))
            }
            (Data::F32(a), Data::F32(b)) => {
                a.iter().zip(b).all(|(a, b)| close((*a).into(), (*b).into(), 1e-4))
            }
            (Data::F64(a), Data::F64(b)) => a.iter().zip(b).all(|(a, b)| close(*a, *b, 1e-9)),
            (a, b) => a == b,
        }
}

impl fmt::Display for Choice {
    /// Of every engine, how fast it is or why it does not run the model.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, trial) in self.trials.iter().enumerate() {
            let comma = if i == 0 { "" } else { "; " };
            write!(f, "{comma}{} {}", trial.kind, trial.outcome)?;
        }
        Ok(())
    }
}

/// An engine that was asked.
#[derive(Clone, Debug)]
pub struct Trial {
    /// Which.
    pub kind: Kind,
    /// What came of it.
    pub outcome: Outcome,
}

/// What came of an engine.
#[derive(Clone, Debug)]
pub enum Outcome {
    /// It ran the model on made-up inputs; the least time an inference took.
    Ran(Duration),
    /// It loaded the model. There were no inputs to time it with.
    Loaded,
    /// It does not run it.
    Refused(String),
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ran(time) => write!(f, "takes {:.3} ms", time.as_secs_f64() * 1e3),
            Self::Loaded => f.write_str("runs it"),
            Self::Refused(reason) => write!(f, "does not run it: {reason}"),
        }
    }
}

/// Loads a model by the engine that runs it fastest.
///
/// # Errors
/// When it is not ONNX, says something impossible, or needs what no engine has.
pub fn load(model: &[u8]) -> Result<Choice, LoadError> {
    let file = ModelProto::decode(model)?;
    let contents = Contents::of(&file)?;
    let mut loaded: Vec<Box<dyn Engine>> = Vec::new();
    let mut kinds = Vec::new();
    let mut refused = Vec::new();
    for kind in Kind::ALL {
        match kind.load_if(model, &file, &contents, false) {
            Ok(engine) => {
                loaded.push(engine);
                kinds.push(*kind);
            }
            Err(e) => refused.push((*kind, e)),
        }
    }
    let mut outcomes = time(&loaded);
    let best = (0..loaded.len()).min_by_key(|i| match outcomes[*i] {
        Outcome::Ran(time) => time,
        Outcome::Loaded => Duration::MAX - Duration::from_nanos(1),
        Outcome::Refused(_) => Duration::MAX,
    });
    let Some(best) = best else { return Err(nobody(refused)) };
    if let Outcome::Refused(_) = outcomes[best] {
        // Nothing that was made up is an input for this model: those that loaded it may run what clients send.
        outcomes.iter_mut().for_each(|outcome| *outcome = Outcome::Loaded);
    }
    let engine = loaded.swap_remove(best);
    let ran = kinds.into_iter().zip(outcomes).map(|(kind, outcome)| Trial { kind, outcome });
    let others = refused.into_iter().map(|(kind, e)| {
        let words = shortened(&e.to_string());
        let words = words.strip_prefix(&format!("no engine here runs the model: {kind}: ")).unwrap_or(&words);
        Trial { kind, outcome: Outcome::Refused(words.to_owned()) }
    });
    Ok(Choice { engine, trials: ran.chain(others).collect() })
}

/// Of engines that all refuse, what to say: a file that is wrong is wrong for each.
fn nobody(refused: Vec<(Kind, LoadError)>) -> LoadError {
    let mut reasons = Vec::new();
    let several = refused.len() > 1;
    for (kind, e) in refused {
        match e {
            LoadError::NoEngine { reasons: words } => reasons.push(words),
            // The evaluator's words name the node. If there is nobody else, they say all there is.
            e if !several => return e,
            e => reasons.push(format!("{kind}: {e}")),
        }
    }
    LoadError::NoEngine { reasons: reasons.join("; ") }
}

/// Runs all of them on the same inputs, and says how long each takes.
fn time(engines: &[Box<dyn Engine>]) -> Vec<Outcome> {
    let Some(first) = engines.first() else { return Vec::new() };
    let mut outcomes = vec![Outcome::Loaded; engines.len()];
    for length in LENGTHS {
        for value in [1_u8, 0] {
            let Some(inputs) = made_up(first.inputs(), length, value) else { return outcomes };
            outcomes = engines.iter().map(|engine| time_one(&**engine, &inputs)).collect();
            // Where one can, the others must.
            if outcomes.iter().any(|outcome| matches!(outcome, Outcome::Ran(_))) {
                return outcomes;
            }
        }
    }
    outcomes
}

fn time_one(engine: &dyn Engine, inputs: &[Tensor]) -> Outcome {
    let begun = Instant::now();
    let (mut least, mut runs) = (Duration::MAX, 0);
    while runs < 2 || (runs < MOST_RUNS && begun.elapsed() < TIMING) {
        let start = Instant::now();
        if let Err(e) = engine.run(inputs) {
            return Outcome::Refused(shortened(&e.to_string()));
        }
        least = least.min(start.elapsed());
        runs += 1;
    }
    Outcome::Ran(least)
}

/// Inputs that are all one value. `None`: the model does not say how many dimensions there are, or they are too large.
fn made_up(ports: &[Port], length: usize, value: u8) -> Option<Vec<Tensor>> {
    let all = ports.iter().map(|port| {
        let shape = port.shape.as_ref()?.iter().enumerate();
        let shape: Vec<usize> = shape.map(|(i, d)| d.unwrap_or(if i == 0 { 1 } else { length })).collect();
        let count = elements(&shape).filter(|count| *count <= MOST_ELEMENTS)?;
        let data = match port.data_type {
            DataType::F16 => Data::F16(vec![f16::from_f32(value.into()); count]),
            DataType::F32 => Data::F32(vec![value.into(); count]),
            DataType::F64 => Data::F64(vec![value.into(); count]),
            DataType::I8 => Data::I8(vec![value as i8; count]),
            DataType::I16 => Data::I16(vec![value.into(); count]),
            DataType::I32 => Data::I32(vec![value.into(); count]),
            DataType::I64 => Data::I64(vec![value.into(); count]),
            DataType::U8 => Data::U8(vec![value; count]),
            DataType::U16 => Data::U16(vec![value.into(); count]),
            DataType::U32 => Data::U32(vec![value.into(); count]),
            DataType::U64 => Data::U64(vec![value.into(); count]),
            DataType::Bool => Data::Bool(vec![value != 0; count]),
            DataType::Text => Data::Text(vec![String::new(); count]),
        };
        Tensor::new(shape, data)
    });
    all.collect()
}

/// An engine whose panics are errors.
struct Caught(Box<dyn Engine>);

impl Engine for Caught {
    fn name(&self) -> &'static str {
        self.0.name()
    }

    fn inputs(&self) -> &[Port] {
        self.0.inputs()
    }

    fn outputs(&self) -> &[Port] {
        self.0.outputs()
    }

    fn run(&self, inputs: &[Tensor]) -> Result<Vec<Tensor>, RunError> {
        // Engines have no state that a call changes.
        let ran = catch_unwind(AssertUnwindSafe(|| self.0.run(inputs)));
        let results = ran.unwrap_or(Err(RunError::Panic { engine: self.name() }))?;
        match results.len() == self.outputs().len() {
            true => Ok(results),
            false => Err(RunError::Engine {
                engine: self.name(),
                reason: format!("it gave {} outputs; the model has {}", results.len(), self.outputs().len()),
            }),
        }
    }
}

/// What a model is made of, as far as engines differ in it.
pub(crate) struct Contents {
    /// Inputs and outputs, or why they are not for every engine.
    pub(crate) ports: Result<(Vec<Port>, Vec<Port>), String>,
    /// Of ONNX's own domain.
    opset: i64,
    /// Every node, those of subgraphs included.
    nodes: Vec<NodeProto>,
    /// Types of elements, ONNX's numbers: of inputs, outputs, constants, and what is cast to.
    pub(crate) types: BTreeSet<i64>,
    /// A constant of INT64 that INT32 does not hold and that is more than a bound for a slice.
    pub(crate) wide: Option<String>,
    /// Names of values that are known to have one dimension.
    vectors: BTreeSet<String>,
}

impl Contents {
    fn of(model: &ModelProto) -> Result<Self, LoadError> {
        let opset = model.opset_import.iter().find(|o| o.domain.is_empty() || o.domain == "ai.onnx");
        let Some(graph) = &model.graph else { return Err(invalid("it has no graph")) };
        let mut contents = Self {
            ports: Ok((Vec::new(), Vec::new())),
            opset: opset.map_or(0, |o| o.version),
            nodes: Vec::new(),
            types: BTreeSet::new(),
            wide: None,
            vectors: BTreeSet::new(),
        };
        let mut wide = Vec::new();
        contents.collect(graph, &mut wide);
        let mut readers: HashMap<&str, bool> = HashMap::new();
        for node in &contents.nodes {
            for input in &node.input {
                let only_slices = readers.entry(input).or_insert(true);
                *only_slices &= node.op_type == "Slice";
            }
        }
        contents.wide = wide.into_iter().find(|name| !readers.get(&**name).copied().unwrap_or(false));
        contents.ports = ports(graph, &mut contents.types);
        Ok(contents)
    }

    fn has(&self, data_type: DataType) -> bool {
        self.types.iter().any(|number| DataType::from_onnx(*number) == Some(data_type))
    }

    fn collect(&mut self, graph: &GraphProto, wide: &mut Vec<String>) {
        for info in graph.input.iter().chain(&graph.value_info) {
            let shape = info.r#type.as_ref().and_then(|t| t.tensor_type.as_ref()?.shape.as_ref());
            if shape.is_some_and(|shape| shape.dim.len() == 1) {
                self.vectors.insert(info.name.clone());
            }
        }
        for tensor in &graph.initializer {
            self.constant(tensor, &tensor.name, wide);
        }
        for node in &graph.node {
            for attribute in &node.attribute {
                let name = node.output.first().map_or("", |name| name);
                for tensor in attribute.t.iter().chain(&attribute.tensors) {
                    self.constant(tensor, name, wide);
                }
                for inner in attribute.g.iter().chain(&attribute.graphs) {
                    self.collect(inner, wide);
                }
                let names_type = matches!(
                    (&*node.op_type, &*attribute.name),
                    ("Cast", "to") | (_, "dtype" | "output_dtype")
                );
                if names_type {
                    self.types.insert(attribute.i);
                }
            }
            // Without its attributes' tensors and graphs, which are counted already.
            let mut node = node.clone();
            for attribute in &mut node.attribute {
                (attribute.t, attribute.g) = (None, None);
                attribute.tensors.clear();
                attribute.graphs.clear();
            }
            self.nodes.push(node);
        }
    }

    fn constant(&mut self, tensor: &TensorProto, name: &str, wide: &mut Vec<String>) {
        self.types.insert(tensor.data_type.into());
        if tensor.dims.len() == 1 {
            self.vectors.insert(name.to_owned());
        }
        if DataType::from_onnx(tensor.data_type.into()) == Some(DataType::I64)
            && let Ok(tensor) = Tensor::from_proto(tensor)
            && tensor.integers().is_ok_and(|all| all.iter().any(|v| i32::try_from(*v).is_err()))
        {
            wide.push(name.to_owned());
        }
    }
}

/// Inputs that must be given, and outputs. Their types are added to `types`.
fn ports(graph: &GraphProto, types: &mut BTreeSet<i64>) -> Result<(Vec<Port>, Vec<Port>), String> {
    let mut of = |infos: &[&crate::proto::ValueInfoProto], what: &str| {
        let mut ports = Vec::new();
        for info in infos {
            let port = port(info).map_err(|e| e.to_string())?;
            let port = port.ok_or_else(|| format!("the {what} {:?} is no tensor", info.name))?;
            if let Some(tensor) = info.r#type.as_ref().and_then(|t| t.tensor_type.as_ref()) {
                types.insert(tensor.elem_type.into());
            }
            ports.push(port);
        }
        Ok::<_, String>(ports)
    };
    let is_given =
        |info: &&crate::proto::ValueInfoProto| graph.initializer.iter().all(|t| t.name != info.name);
    let inputs = of(&graph.input.iter().filter(is_given).collect::<Vec<_>>(), "input")?;
    let outputs = of(&graph.output.iter().collect::<Vec<_>>(), "output")?;
    Ok((inputs, outputs))
}

/// An operator for which an engine is known to answer wrongly.
struct Exclusion {
    kind: Kind,
    operator: &'static str,
    /// When; attributes and types decide it.
    when: fn(&NodeProto, &Contents) -> bool,
    /// What is wrong.
    why: &'static str,
}

const fn wrong(
    kind: Kind,
    operator: &'static str,
    when: fn(&NodeProto, &Contents) -> bool,
    why: &'static str,
) -> Exclusion {
    Exclusion { kind, operator, when, why }
}

/// Found by ONNX's own node tests (`tests/conformance/onnxruntime/nodes.py --list`), which also hold that no more are needed.
#[rustfmt::skip]
const EXCLUSIONS: &[Exclusion] = &[
    wrong(Kind::Rten, "ArgMax", |_, _| true, "of equal elements it takes the last"),
    wrong(Kind::Rten, "ArgMin", |_, _| true, "of equal elements it takes the last"),
    wrong(Kind::Rten, "DynamicQuantizeLinear", |_, _| true, "it rounds some elements to the neighbour"),
    wrong(Kind::Rten, "MatMul", |node, contents| node.input.get(1).is_some_and(|name| contents.vectors.contains(name)), "of a product with a vector it keeps a dimension too many"),
    wrong(Kind::Rten, "NonMaxSuppression", |_, _| true, "it takes classes and batches together, and boxes by one order of corners"),
    wrong(Kind::Rten, "QuantizeLinear", |_, _| true, "it rounds some elements to the neighbour"),
    wrong(Kind::Rten, "ReduceMax", |_, contents| contents.has(DataType::Bool), "the greatest of no booleans is true"),
    wrong(Kind::Rten, "ReduceMin", |_, contents| contents.has(DataType::Bool), "it computes booleans as numbers"),
    wrong(Kind::Rten, "Resize", |node, _| text(node, "mode") == "cubic" || text(node, "coordinate_transformation_mode") == "align_corners", "cubic interpolation and aligned corners come out otherwise"),
    wrong(Kind::Rten, "Sign", |_, _| true, "of 0 it is 1"),
    wrong(Kind::Tract, "Attention", |_, _| true, "it ignores windows, and what is past in causal masks"),
    wrong(Kind::Tract, "BitShift", |_, _| true, "shifts by more bits than there are, or by negative ones, come out otherwise"),
    wrong(Kind::Tract, "Celu", |_, contents| contents.has(DataType::F16), "in FP16 it ignores alpha"),
    wrong(Kind::Tract, "GRU", |_, _| true, "backwards it comes out otherwise, and of gates near 1 too few digits are left"),
    wrong(Kind::Tract, "LSTM", |node, _| text(node, "direction") == "reverse", "backwards it comes out otherwise"),
    wrong(Kind::Tract, "ReduceMax", |_, _| true, "of nothing, or of negative infinities, it is the least finite number"),
    wrong(Kind::Tract, "ReduceMin", |_, _| true, "of nothing, or of infinities, it is the greatest finite number"),
    wrong(Kind::Tract, "RNN", |node, _| text(node, "direction") == "reverse", "backwards it comes out otherwise"),
    wrong(Kind::Tract, "SpaceToDepth", |node, _| text(node, "mode") == "CRD", "it knows the mode DCR only"),
    wrong(Kind::Tract, "Swish", |node, _| node.attribute.iter().any(|a| a.name == "alpha" && a.f != 1.0), "it ignores alpha"),
];

/// A text attribute; empty if it is not there.
fn text<'a>(node: &'a NodeProto, name: &str) -> &'a str {
    let attribute = node.attribute.iter().find(|a| a.name == name);
    attribute.and_then(|a| std::str::from_utf8(&a.s).ok()).unwrap_or("")
}

/// Why an engine must not be asked, if it must not.
fn exclusion(kind: Kind, contents: &Contents) -> Option<String> {
    let domains: &[&str] = match kind {
        // It looks itself.
        Kind::Evaluator => return None,
        Kind::Tract => &["", "ai.onnx"],
        Kind::Rten => &["", "ai.onnx", "com.microsoft"],
    };
    // Before version 13 some operators meant something else, which rten does not tell apart.
    let oldest = if kind == Kind::Rten { 13 } else { 9 };
    if contents.opset != 0 && contents.opset < oldest {
        return Some(format!("operator set {} is too old for it: {oldest} and later", contents.opset));
    }
    for node in &contents.nodes {
        let name = || node.output.first().filter(|_| node.name.is_empty()).unwrap_or(&node.name);
        if !domains.contains(&&*node.domain) {
            return Some(format!(
                "node {:?} ({}.{}): it has no such operators",
                name(),
                node.domain,
                node.op_type
            ));
        }
        let excluded = EXCLUSIONS
            .iter()
            .find(|e| e.kind == kind && e.operator == node.op_type && (e.when)(node, contents));
        if let Some(excluded) = excluded {
            return Some(format!("node {:?} ({}): {}", name(), node.op_type, excluded.why));
        }
    }
    #[cfg(feature = "engines")]
    if kind == Kind::Rten {
        return crate::rten::refuses(contents);
    }
    None
}

/// Words of an engine, which may go on for pages.
pub(crate) fn shortened(words: &str) -> String {
    let end = (0..=MOST_WORDS.min(words.len())).rev().find(|end| words.is_char_boundary(*end));
    match &words[..end.unwrap_or(0)] {
        whole if whole.len() == words.len() => whole.to_owned(),
        beginning => format!("{beginning}…"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::AttributeProto;
    use crate::testing::{floats, model, node, value};

    /// y = operator(x W), of rows of two.
    fn dense(operator: &str) -> GraphProto {
        GraphProto {
            node: vec![node("MatMul", &["x", "W"], "h"), node(operator, &["h"], "y")],
            initializer: vec![floats("W", &[2, 2], &[1.0, 0.5, -1.0, 0.25])],
            input: vec![value("x", 1, &[0, 2])],
            output: vec![value("y", 1, &[0, 2])],
            ..Default::default()
        }
    }

    fn row(x: [f32; 2]) -> Vec<Tensor> {
        vec![Tensor::new(vec![1, 2], Data::F32(x.to_vec())).unwrap()]
    }

    fn numbers(results: Vec<Tensor>) -> Vec<f32> {
        results[0].floats().unwrap().to_vec()
    }

    #[test]
    fn every_engine_runs_what_it_can_and_one_is_chosen() {
        let file = model(dense("Relu"));
        for kind in Kind::ALL {
            let engine = kind.load(&file, false).unwrap();
            assert_eq!(engine.name(), kind.to_string());
            assert_eq!(engine.inputs()[0].shape, Some(vec![None, Some(2)]));
            for (x, y) in [([3.0, 1.0], [2.0, 1.75]), ([0.0, 1.0], [0.0, 0.25])] {
                assert_eq!(numbers(engine.run(&row(x)).unwrap()), y, "{kind}");
            }
            let three = Tensor::new(vec![1, 3], Data::F32(vec![0.0; 3])).unwrap();
            assert!(matches!(engine.run(&[three]), Err(RunError::Input { .. })), "{kind}");
        }
        let choice = load(&file).unwrap();
        assert_eq!(choice.trials.len(), Kind::ALL.len());
        let time = |trial: &Trial| match &trial.outcome {
            Outcome::Ran(time) => *time,
            other => panic!("{} {other}", trial.kind),
        };
        let fastest = choice.trials.iter().min_by_key(|trial| time(trial)).unwrap();
        assert_eq!(choice.engine.name(), fastest.kind.to_string());
        assert!(choice.to_string().contains(" ms"), "{choice}");
    }

    #[test]
    fn who_does_not_run_a_model_says_why() {
        let file = model(dense("Erf"));
        match load(&file) {
            Ok(choice) => {
                assert_eq!(Kind::ALL.len(), 3);
                let evaluator = choice.trials.iter().find(|t| t.kind == Kind::Evaluator).unwrap();
                let Outcome::Refused(reason) = &evaluator.outcome else { panic!("{choice}") };
                assert!(reason.contains("the-Erf") && reason.contains("Erf"), "{reason}");
                assert!(!choice.summary().contains("Erf"), "{}", choice.summary());
                let y = numbers(choice.engine.run(&row([1.0, 0.0])).unwrap());
                assert!((y[0] - 0.842_700_8).abs() < 1e-5 && (y[1] - 0.520_499_9).abs() < 1e-5, "{y:?}");
            }
            Err(e) => {
                assert_eq!(Kind::ALL.len(), 1, "{e}");
                assert!(e.to_string().contains("the-Erf"), "{e}");
            }
        }
        let error = load(&model(dense("NoSuchOperator"))).err().unwrap().to_string();
        for words in Kind::ALL
            .iter()
            .map(Kind::to_string)
            .filter(|_| Kind::ALL.len() > 1)
            .chain(["NoSuchOperator".into()])
        {
            assert!(error.contains(&words), "{error}");
        }
        let mut foreign = dense("Relu");
        foreign.node[1].domain = "org.example".into();
        let error = load(&model(foreign)).err().unwrap().to_string();
        assert!(error.contains("the-Relu"), "{error}");
    }

    #[test]
    fn data_in_other_files_are_not_read() {
        let mut graph = dense("Relu");
        graph.initializer[0].float_data.clear();
        graph.initializer[0].data_location = 1;
        let file = model(graph);
        for kind in Kind::ALL {
            assert!(kind.load(&file, false).is_err(), "{kind}");
        }
    }

    #[test]
    fn panics_are_errors() {
        struct Panics;
        impl Engine for Panics {
            fn name(&self) -> &'static str {
                "panics"
            }
            fn inputs(&self) -> &[Port] {
                &[]
            }
            fn outputs(&self) -> &[Port] {
                &[]
            }
            fn run(&self, _: &[Tensor]) -> Result<Vec<Tensor>, RunError> {
                panic!("on purpose")
            }
        }
        assert_eq!(Caught(Box::new(Panics)).run(&[]), Err(RunError::Panic { engine: "panics" }));
        let outcomes = time(&[Box::new(Caught(Box::new(Panics)))]);
        assert!(
            matches!(&outcomes[..], [Outcome::Refused(reason)] if reason.contains("panics")),
            "{outcomes:?}"
        );
    }

    #[test]
    fn models_are_looked_into() {
        let mut graph = dense("Relu");
        let wide = |name: &str| TensorProto {
            name: name.into(),
            dims: vec![1],
            int64_data: vec![i64::MAX],
            data_type: 7,
            ..Default::default()
        };
        graph.initializer.push(wide("end"));
        graph.node.push(node("Slice", &["y", "end", "end"], "z"));
        let cast = AttributeProto { name: "to".into(), i: 11, ..Default::default() };
        graph.node.push(NodeProto { attribute: vec![cast], ..node("Cast", &["z"], "w") });
        let contents =
            |graph: &GraphProto| Contents::of(&ModelProto::decode(&*model(graph.clone())).unwrap()).unwrap();
        let found = contents(&graph);
        assert_eq!(found.types.iter().copied().collect::<Vec<_>>(), [1, 7, 11]);
        assert_eq!((found.wide, found.nodes.len()), (None, 4));
        // Anything but a bound of a slice must fit.
        graph.node.push(node("Add", &["end", "end"], "sum"));
        assert_eq!(contents(&graph).wide.as_deref(), Some("end"));
        // In a subgraph as well.
        let inner = AttributeProto { name: "then_branch".into(), g: Some(graph), ..Default::default() };
        let outer = GraphProto {
            node: vec![NodeProto { attribute: vec![inner], ..node("If", &["c"], "y") }],
            ..Default::default()
        };
        let found = contents(&outer);
        assert_eq!((found.wide.as_deref(), found.nodes.len()), (Some("end"), 6));
    }

    #[test]
    fn engines_are_not_asked_for_what_they_answer_wrongly() {
        let refused = |kind, graph: &GraphProto| {
            let contents = Contents::of(&ModelProto::decode(&*model(graph.clone())).unwrap()).unwrap();
            exclusion(kind, &contents)
        };
        let reason = refused(Kind::Rten, &dense("Sign")).unwrap();
        assert!(reason.contains("the-Sign") && reason.contains("of 0 it is 1"), "{reason}");
        assert_eq!(refused(Kind::Tract, &dense("Sign")), None);
        // An attribute decides.
        let mut graph = dense("LSTM");
        assert_eq!(refused(Kind::Tract, &graph), None);
        let direction =
            AttributeProto { name: "direction".into(), s: b"reverse".to_vec(), ..Default::default() };
        graph.node[1].attribute.push(direction);
        assert!(refused(Kind::Tract, &graph).is_some());
        // The number of dimensions does.
        let mut graph = dense("Relu");
        assert_eq!(refused(Kind::Rten, &graph), None);
        graph.initializer[0].dims = vec![4];
        assert!(refused(Kind::Rten, &graph).is_some());
        // A type does.
        let mut graph = dense("Celu");
        assert_eq!(refused(Kind::Tract, &graph), None);
        graph.initializer[0].data_type = 10;
        assert!(refused(Kind::Tract, &graph).is_some());
    }

    #[test]
    fn words_are_cut_between_characters() {
        assert_eq!(shortened("short"), "short");
        let cut = shortened(&"ä".repeat(MOST_WORDS));
        assert!(cut.len() <= MOST_WORDS + '…'.len_utf8() && cut.ends_with("ä…"));
    }

    #[cfg(feature = "engines")]
    #[test]
    fn rten_takes_no_numbers_that_it_would_change() {
        let graph = GraphProto {
            node: vec![node("Abs", &["x"], "y")],
            input: vec![value("x", 7, &[0])],
            output: vec![value("y", 7, &[0])],
            ..Default::default()
        };
        let engine = Kind::Rten.load(&model(graph), false).unwrap();
        let of = |x: i64| vec![Tensor::new(vec![1], Data::I64(vec![x])).unwrap()];
        assert_eq!(engine.run(&of(-7)).unwrap(), of(7));
        let error = engine.run(&of(1 << 40)).unwrap_err();
        assert!(matches!(&error, RunError::Input { reason } if reason.contains("INT32")), "{error}");

        let mut graph = dense("Relu");
        graph.output[0] = value("y", 11, &[0, 2]);
        let error = Kind::Rten.load(&model(graph), false).err().unwrap().to_string();
        assert!(error.contains("FP64"), "{error}");
    }

    #[test]
    fn calls_run_side_by_side() {
        let file = model(dense("Relu"));
        for kind in Kind::ALL {
            let engine = kind.load(&file, false).unwrap();
            std::thread::scope(|scope| {
                for i in 0..4 {
                    let engine = &engine;
                    scope.spawn(move || {
                        for j in 0..50 {
                            let x = (i * 50 + j) as f32;
                            assert_eq!(numbers(engine.run(&row([x, 0.0])).unwrap()), [x, x / 2.0]);
                        }
                    });
                }
            });
        }
    }
}
