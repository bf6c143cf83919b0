//! Runs ONNX models.
//!
//! [`load`] checks a model once and gives an [`Engine`]; [`Engine::run`] maps tensors to tensors. What a model file or a
//! request says is never believed: every length, index and type is checked, and errors name the node and its operator.
//!
//! [`Evaluator`] is ours: the operators that scikit-learn's models are exported to by skl2onnx, of `ai.onnx.ml` and of ONNX's own
//! domain. With the feature `engines` there are tract and rten besides, for neural networks. [`load`] has each try the model, and
//! takes the fastest of those that run it; an engine that is known to answer wrongly for an operator is not asked.
//!
//! A [`Batcher`] runs requests that come together in one go, of models whose rows are proven to be independent of each other
//! ([`Choice::batcher`]).
#![forbid(unsafe_code)]

mod batch;
mod binary;
mod choice;
mod evaluator;
mod linear;
mod operators;
mod proto;
mod rows;
#[cfg(feature = "engines")]
mod rten;
mod tensor;
#[cfg(test)]
mod testing;
#[cfg(feature = "engines")]
mod tract;
mod trees;

pub use batch::{Batcher, MAX_BATCH, MAX_DELAY};
pub use choice::{Choice, Kind, Outcome, Trial, load};
pub use evaluator::Evaluator;
pub use half::f16;
pub use rows::independent_rows;
pub use tensor::{Data, DataType, Tensor};

/// A loaded model. It has no state: calls may run at the same time.
pub trait Engine: Send + Sync {
    /// Of the engine, for people.
    fn name(&self) -> &'static str;

    /// What [`Self::run`] takes, in order.
    fn inputs(&self) -> &[Port];

    /// What [`Self::run`] gives, in order.
    fn outputs(&self) -> &[Port];

    /// One inference.
    ///
    /// # Errors
    /// When the inputs are not what [`Self::inputs`] says, or not what an operator can work with.
    fn run(&self, inputs: &[Tensor]) -> Result<Vec<Tensor>, RunError>;
}

/// An input or output of a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port {
    /// Its name in the graph.
    pub name: String,
    /// Of its elements.
    pub data_type: DataType,
    /// Its dimensions; `None`: any. `None` for all: the model does not say how many there are.
    pub shape: Option<Vec<Option<usize>>>,
}

/// Whether the inputs are what the ports say: how many, their types, and their shapes.
pub(crate) fn check(ports: &[Port], inputs: &[Tensor]) -> Result<(), RunError> {
    let wrong = |reason| Err(RunError::Input { reason });
    if inputs.len() != ports.len() {
        return wrong(format!("{} tensors are given; the model takes {}", inputs.len(), ports.len()));
    }
    for (tensor, port) in inputs.iter().zip(ports) {
        let given = tensor.data().data_type();
        if given != port.data_type {
            return wrong(format!("{:?} is {given}; the model takes {}", port.name, port.data_type));
        }
        let fits = port.shape.as_ref().is_none_or(|shape| {
            shape.len() == tensor.shape().len()
                && shape.iter().zip(tensor.shape()).all(|(wanted, is)| wanted.is_none_or(|w| w == *is))
        });
        if !fits {
            let wanted = port.shape.iter().flatten().map(|d| d.map_or("any".into(), |d| d.to_string()));
            let wanted = wanted.collect::<Vec<_>>().join(", ");
            return wrong(format!(
                "{:?} has the shape {:?}; the model takes [{wanted}]",
                port.name,
                tensor.shape()
            ));
        }
    }
    Ok(())
}

/// Why a model cannot be loaded.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LoadError {
    /// The bytes are no Protocol Buffers message of ONNX's schema.
    #[error("this is no ONNX model: {0}")]
    Malformed(#[from] prost::DecodeError),
    /// The graph breaks a rule of ONNX.
    #[error("the model is not valid: {reason}")]
    Graph {
        /// What is wrong.
        reason: String,
    },
    /// A node needs what no engine has.
    #[error("node {node:?} ({operator}): {reason}; no engine here runs it")]
    Unsupported {
        /// The node's name, or that of its first output.
        node: String,
        /// Its operator, with its domain if that is not ONNX's own.
        operator: String,
        /// What is not supported.
        reason: String,
    },
    /// A node says something impossible.
    #[error("node {node:?} ({operator}) is not valid: {reason}")]
    Node {
        /// The node's name, or that of its first output.
        node: String,
        /// Its operator, with its domain if that is not ONNX's own.
        operator: String,
        /// What is wrong.
        reason: String,
    },
    /// No engine runs it.
    #[error("no engine here runs the model: {reasons}")]
    NoEngine {
        /// Of each, why not.
        reasons: String,
    },
}

/// Why there is no result.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RunError {
    /// The inputs are not what the model takes.
    #[error("wrong input: {reason}")]
    Input {
        /// Which, what it is, and what is expected.
        reason: String,
    },
    /// An operator cannot work with what it is given.
    #[error("node {node:?} ({operator}): {reason}")]
    Node {
        /// The node's name, or that of its first output.
        node: String,
        /// Its operator, with its domain if that is not ONNX's own.
        operator: String,
        /// What is wrong.
        reason: String,
    },
    /// An engine gives up.
    #[error("the engine {engine} cannot answer: {reason}")]
    Engine {
        /// Which.
        engine: &'static str,
        /// Its words.
        reason: String,
    },
    /// A fault of an engine, which panicked. It goes on; there is no result of this call.
    #[error("the engine {engine} failed at this request")]
    Panic {
        /// Which.
        engine: &'static str,
    },
}
