"""Neural networks of published architectures with random weights, operator by operator as exporters write them (operator set 17)."""

import numpy
import onnx
from onnx import TensorProto, helper, numpy_helper


class Graph:
    """A graph that grows."""

    def __init__(self, seed):
        self.random = numpy.random.default_rng(seed)
        self.nodes, self.constants, self.count = [], [], 0

    def name(self):
        self.count += 1
        return f"v{self.count}"

    def constant(self, value, dtype=numpy.float32):
        name = self.name()
        self.constants.append(numpy_helper.from_array(numpy.asarray(value, dtype), name))
        return name

    def weight(self, *shape):
        # Of the size that keeps activations where trained networks have them: before ReLU, twice the variance.
        scale = numpy.sqrt(2 / numpy.prod(shape[1:]) if len(shape) == 4 else 1 / shape[0])
        return self.constant(self.random.normal(0, scale, shape))

    def integers(self, *values):
        return self.constant(values, numpy.int64)

    def __call__(self, operator, *inputs, **attributes):
        name = self.name()
        self.nodes.append(helper.make_node(operator, list(inputs), [name], name=f"{operator}_{self.count}", **attributes))
        return name

    def model(self, inputs, outputs):
        for name, (made, _, _) in outputs.items():
            self.nodes.append(helper.make_node("Identity", [made], [name]))
        graph = helper.make_graph(
            self.nodes,
            "graph",
            [helper.make_tensor_value_info(name, t, shape) for name, (t, shape) in inputs.items()],
            [helper.make_tensor_value_info(name, t, shape) for name, (_, t, shape) in outputs.items()],
            self.constants,
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        onnx.checker.check_model(model)
        return model


def bert(layers, hidden, heads, inner, vocabulary=30522, positions=512, seed=1):
    """An encoder as BERT (Devlin et al. 2018), of batches and sequences of any length."""
    g = Graph(seed)
    linear = lambda x, n, m: g("Add", g("MatMul", x, g.weight(n, m)), g.weight(m))
    norm = lambda x: g("LayerNormalization", x, g.constant(numpy.ones(hidden)), g.weight(hidden), axis=-1, epsilon=1e-12)
    words = g("Gather", g.weight(vocabulary, hidden), "input_ids")
    kinds = g("Gather", g.weight(2, hidden), "token_type_ids")
    length = g("Gather", g("Shape", "input_ids"), g.constant(1, numpy.int64))
    places = g("Slice", g.constant(g.random.normal(0, 0.1, (1, positions, hidden))), g.integers(0), g("Unsqueeze", length, g.integers(0)), g.integers(1))
    x = norm(g("Add", g("Add", words, kinds), places))
    mask = g("Unsqueeze", g("Cast", "attention_mask", to=TensorProto.FLOAT), g.integers(1, 2))
    mask = g("Mul", g("Sub", g.constant(1), mask), g.constant(-10000))
    size = hidden // heads
    for _ in range(layers):
        split = lambda x, *order: g("Transpose", g("Reshape", x, g.integers(0, 0, heads, size)), perm=list(order))
        q, k, v = (linear(x, hidden, hidden) for _ in range(3))
        scores = g("MatMul", split(q, 0, 2, 1, 3), split(k, 0, 2, 3, 1))
        scores = g("Add", g("Div", scores, g.constant(numpy.sqrt(size))), mask)
        seen = g("MatMul", g("Softmax", scores, axis=-1), split(v, 0, 2, 1, 3))
        seen = g("Reshape", g("Transpose", seen, perm=[0, 2, 1, 3]), g.integers(0, 0, hidden))
        x = norm(g("Add", linear(seen, hidden, hidden), x))
        y = linear(x, hidden, inner)
        # GELU, as exporters without the operator write it.
        y = g("Mul", g("Mul", y, g("Add", g("Erf", g("Div", y, g.constant(numpy.sqrt(2)))), g.constant(1))), g.constant(0.5))
        x = norm(g("Add", linear(y, inner, hidden), x))
    ids = (TensorProto.INT64, ["batch", "length"])
    return g.model(
        {"input_ids": ids, "attention_mask": ids, "token_type_ids": ids},
        {"last_hidden_state": (x, TensorProto.FLOAT, ["batch", "length", hidden])},
    )


def resnet50(seed=2):
    """ResNet50 (He et al. 2015) with the stride in the 3x3 convolution, normalization folded into them as exporters do."""
    g = Graph(seed)

    def convolution(x, inputs, outputs, kernel, stride=1):
        pad = kernel // 2
        return g("Conv", x, g.weight(outputs, inputs, kernel, kernel), g.constant(g.random.normal(0, 0.01, outputs)),
                 kernel_shape=[kernel, kernel], strides=[stride, stride], pads=[pad] * 4, dilations=[1, 1], group=1)

    x = g("Relu", convolution("image", 3, 64, 7, 2))
    x = g("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)
    inputs = 64
    for stage, blocks in enumerate([3, 4, 6, 3]):
        width = 64 << stage
        for block in range(blocks):
            stride = 2 if stage > 0 and block == 0 else 1
            y = g("Relu", convolution(x, inputs, width, 1))
            y = g("Relu", convolution(y, width, width, 3, stride))
            y = convolution(y, width, width * 4, 1)
            if block == 0:
                x = convolution(x, inputs, width * 4, 1, stride)
            x = g("Relu", g("Add", x, y))
            inputs = width * 4
    x = g("Flatten", g("GlobalAveragePool", x), axis=1)
    x = g("Gemm", x, g.constant(g.random.normal(0, 0.02, (1000, 2048))), g.weight(1000), transB=1)
    return g.model(
        {"image": (TensorProto.FLOAT, ["batch", 3, 224, 224])}, {"logits": (x, TensorProto.FLOAT, ["batch", 1000])}
    )


def tokens(batch, length, seed=3):
    """Inputs for an encoder; of the second row and later ones a part is padding."""
    ids = numpy.random.default_rng(seed).integers(0, 30522, (batch, length), dtype=numpy.int64)
    mask = numpy.ones_like(ids)
    mask[1:, length * 2 // 3 :] = 0
    return [ids, mask, numpy.zeros_like(ids)]


def image(batch, seed=4):
    """Inputs for an image network."""
    return [numpy.random.default_rng(seed).normal(0, 1, (batch, 3, 224, 224)).astype(numpy.float32)]


MODELS = {
    "bert-tiny": (lambda: bert(2, 128, 2, 512), [tokens(1, 128), tokens(3, 17)]),
    "minilm-l6": (lambda: bert(6, 384, 12, 1536), [tokens(1, 128), tokens(2, 9)]),
    "resnet50": (resnet50, [image(1), image(2)]),
}
