//! Models made by hand, for tests.

use prost::Message as _;

use crate::proto::{
    AttributeProto, DimensionProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TensorProto,
    TensorShapeProto, TensorTypeProto, TypeProto, ValueInfoProto,
};

/// A decision tree of 64 numbers, by `examples/digits/train.py`.
pub(crate) const TREE: &[u8] = include_bytes!("../../tests/data/tree.onnx");

/// An input or output; 0 is a dimension that may be any.
pub(crate) fn value(name: &str, data_type: i32, shape: &[i64]) -> ValueInfoProto {
    let dim = shape.iter().map(|d| DimensionProto { dim_value: Some(*d).filter(|d| *d > 0) }).collect();
    let tensor = TensorTypeProto { elem_type: data_type, shape: Some(TensorShapeProto { dim }) };
    ValueInfoProto { name: name.into(), r#type: Some(TypeProto { tensor_type: Some(tensor) }) }
}

pub(crate) fn floats(name: &str, dims: &[i64], data: &[f32]) -> TensorProto {
    let (name, dims, float_data) = (name.into(), dims.to_vec(), data.to_vec());
    TensorProto { name, dims, float_data, data_type: 1, ..Default::default() }
}

/// Small numbers of either sign, which differ.
pub(crate) fn weights(name: &str, dims: &[i64]) -> TensorProto {
    let count = dims.iter().product::<i64>();
    floats(name, dims, &(0..count).map(|i| ((i * 7 + 3) % 11) as f32 / 8.0 - 0.6).collect::<Vec<_>>())
}

pub(crate) fn integers(name: &str, dims: &[i64], data: &[i64]) -> TensorProto {
    let (name, dims, int64_data) = (name.into(), dims.to_vec(), data.to_vec());
    TensorProto { name, dims, int64_data, data_type: 7, ..Default::default() }
}

pub(crate) fn node(operator: &str, inputs: &[&str], output: &str) -> NodeProto {
    NodeProto {
        name: format!("the-{operator}"),
        op_type: operator.into(),
        input: inputs.iter().map(|i| (*i).into()).collect(),
        output: output.split(' ').map(Into::into).collect(),
        ..Default::default()
    }
}

impl NodeProto {
    pub(crate) fn int(mut self, name: &str, i: i64) -> Self {
        self.attribute.push(AttributeProto { name: name.into(), i, r#type: 2, ..Default::default() });
        self
    }

    pub(crate) fn ints(mut self, name: &str, ints: &[i64]) -> Self {
        let ints = ints.to_vec();
        self.attribute.push(AttributeProto { name: name.into(), ints, r#type: 7, ..Default::default() });
        self
    }

    pub(crate) fn floats(mut self, name: &str, floats: &[f32]) -> Self {
        let floats = floats.to_vec();
        self.attribute.push(AttributeProto { name: name.into(), floats, r#type: 6, ..Default::default() });
        self
    }

    pub(crate) fn ml(mut self) -> Self {
        self.domain = "ai.onnx.ml".into();
        self
    }
}

/// With operator set 17.
pub(crate) fn model(graph: GraphProto) -> Vec<u8> {
    model_of(graph, 17)
}

pub(crate) fn model_of(graph: GraphProto, version: i64) -> Vec<u8> {
    let set = |domain: &str, version| OperatorSetIdProto { domain: domain.into(), version };
    let opset_import = vec![set("", version), set("ai.onnx.ml", 3)];
    ModelProto { graph: Some(graph), opset_import, ..Default::default() }.encode_to_vec()
}

/// Of x to y, floats in rows of these shapes, with constants.
pub(crate) fn graph(x: &[i64], nodes: Vec<NodeProto>, constants: Vec<TensorProto>) -> GraphProto {
    GraphProto {
        node: nodes,
        initializer: constants,
        input: vec![value("x", 1, x)],
        output: vec![ValueInfoProto { name: "y".into(), ..value("y", 1, &[0, 0]) }],
        ..Default::default()
    }
}

/// A multi-layer perceptron of four numbers, as skl2onnx writes it, with the evaluator's operators.
pub(crate) fn perceptron() -> GraphProto {
    let nodes = vec![
        node("MatMul", &["x", "W"], "a"),
        node("Add", &["a", "b"], "c"),
        node("Relu", &["c"], "d"),
        node("MatMul", &["d", "V"], "e"),
        node("Softmax", &["e"], "y").int("axis", 1),
    ];
    graph(&[0, 4], nodes, vec![weights("W", &[4, 5]), weights("b", &[1, 5]), weights("V", &[5, 3])])
}

/// The class of the largest score, as skl2onnx writes it: a label is looked up for each row.
pub(crate) fn labels() -> GraphProto {
    let nodes = vec![
        node("MatMul", &["x", "W"], "scores"),
        node("ArgMax", &["scores"], "best").int("axis", 1),
        node("ArrayFeatureExtractor", &["classes", "best"], "found").ml(),
        node("Cast", &["found"], "cast").int("to", 7),
        node("Reshape", &["cast", "flat"], "y"),
    ];
    let constants =
        vec![weights("W", &[4, 3]), integers("classes", &[3], &[10, 20, 30]), integers("flat", &[1], &[-1])];
    GraphProto { output: vec![value("y", 7, &[0])], ..graph(&[0, 4], nodes, constants) }
}

/// Rows that are scaled and go through a linear classifier.
pub(crate) fn linear() -> GraphProto {
    let nodes = vec![
        node("Scaler", &["x"], "scaled").ml().floats("offset", &[0.5]).floats("scale", &[2.0]),
        node("Normalizer", &["scaled"], "normal").ml(),
        node("LinearClassifier", &["normal"], "y scores")
            .ml()
            .ints("classlabels_ints", &[4, 5, 6])
            .floats("coefficients", &[1.0, -1.0, 0.5, 0.0, 0.25, 2.0, -0.5, 1.0, 0.0, 1.0, 1.0, -1.0])
            .floats("intercepts", &[0.1, 0.2, 0.3]),
    ];
    let output = vec![value("y", 7, &[0]), value("scores", 1, &[0, 3])];
    GraphProto { output, ..graph(&[0, 4], nodes, vec![]) }
}

/// Convolutions, pools, and a reshape that names the length of a row only, as torch exports them.
pub(crate) fn convolutions() -> GraphProto {
    let nodes = vec![
        node("Conv", &["x", "W", "b"], "a").ints("kernel_shape", &[3, 3]).ints("pads", &[1, 1, 1, 1]),
        node("BatchNormalization", &["a", "one", "b", "b", "one"], "n"),
        node("Relu", &["n"], "c"),
        node("MaxPool", &["c"], "d").ints("kernel_shape", &[2, 2]).ints("strides", &[2, 2]),
        node("Reshape", &["d", "shape"], "e"),
        node("Gemm", &["e", "V", "v"], "y").int("transB", 1),
    ];
    let constants = vec![
        weights("W", &[2, 1, 3, 3]),
        weights("b", &[2]),
        floats("one", &[2], &[1.0, 2.0]),
        integers("shape", &[2], &[-1, 8]),
        weights("V", &[3, 8]),
        weights("v", &[3]),
    ];
    graph(&[0, 1, 4, 4], nodes, constants)
}
