//! Runs ONNX models.
//!
//! [`load`] checks a model once and gives an [`Engine`]; [`Engine::run`] maps tensors to tensors. What a model file or a
//! request says is never believed: every length, index and type is checked, and errors name the node and its operator.
//!
//! There is one engine now, [`Evaluator`]: the operators that scikit-learn's models are exported to by skl2onnx, of
//! `ai.onnx.ml` and of ONNX's own domain. A model with any other operator is refused when it is loaded.
#![forbid(unsafe_code)]

mod evaluator;
mod linear;
mod operators;
mod proto;
mod tensor;
mod trees;

pub use evaluator::Evaluator;
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

/// Loads a model.
///
/// # Errors
/// When it is not ONNX, says something impossible, or needs what no engine has.
pub fn load(model: &[u8]) -> Result<Box<dyn Engine>, LoadError> {
    Ok(Box::new(Evaluator::load(model)?))
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
}
