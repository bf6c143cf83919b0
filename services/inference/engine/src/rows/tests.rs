use super::*;
use crate::testing::{
    TREE, convolutions, floats, graph, integers, labels, linear, model, model_of, node, perceptron, value,
    weights,
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
        let sum = of(&[0, 3], node("ReduceSum", &["x", "axes"], "y"), vec![integers("axes", &[1], &axes)]);
        assert_eq!(independent_rows(&model(sum)).is_ok(), is_proven);
    }
    let transposed = |perm: &[i64]| of(&[0, 3, 4], node("Transpose", &["x"], "y").ints("perm", perm), vec![]);
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
    let product =
        |inputs: [&str; 2], x: &[i64], c: &[i64]| of(x, node("MatMul", &inputs, "y"), vec![weights("c", c)]);
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
        let nodes = vec![node("Shape", &["x"], "shape0"), node("Gather", &["shape0", "i"], "shape"), last];
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
    inner.attribute.push(AttributeProto { name: "body".into(), g: Some(perceptron()), ..Default::default() });
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
            "MaxPool" => grown = grown.ints("kernel_shape", self.random.of(&[&[2, 2][..], &[1, 2], &[2]])),
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
    assert!(proven > count / 20 && proven < count / 2 && compared > count / 20 && dependent > count / 200);
}
