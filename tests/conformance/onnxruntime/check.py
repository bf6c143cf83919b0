"""Compares an engine of ours with ONNX Runtime: labels to the last one, numbers within float tolerance."""

import sys
import tempfile
from pathlib import Path

import numpy
import onnx
import onnxruntime

from evaluate import Evaluate, decoded, encoded

# Sums of a few hundred single-precision numbers, in an order that is each engine's own.
TOLERANCE = {"rtol": 2e-5, "atol": 2e-6}


class Checks:
    """Counts what passed, and says what did not."""

    def __init__(self, program):
        self.program, self.passed, self.failed, self.labels = Evaluate([program]), 0, 0, {}

    def check(self, name, reason):
        """One check; without a reason it has passed."""
        print(f"{'FAILED' if reason else 'ok':8} {name}{': ' + reason if reason else ''}")
        if reason:
            self.failed += 1
        else:
            self.passed += 1

    def ours(self, model, rows):
        """How it ends (0: an answer, 1: an error, 101: a panic), outputs by name, the error."""
        order = {"model": str(model), "engine": "evaluator", "inputs": [encoded(rows.astype("<f4"))]}
        answer = self.program.ask(order)
        error = answer.get("error", "")
        # A panic is an error to clients, but no answer that is expected here.
        has_panicked = answer.get("stage") in ("crash", "hang", "order") or "failed at" in error
        code = 101 if has_panicked else 1 if error else 0
        return code, {o["name"]: decoded(o) for o in answer.get("outputs", [])}, error

    def agrees(self, model, rows):
        """Why the two engines' outputs differ; None if they do not."""
        # With more threads ONNX Runtime sums trees in another order, and decides ties of a forest otherwise than with one.
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
        names = [output.name for output in session.get_outputs()]
        code, ours, said = self.ours(model, rows)
        if code != 0:
            return said.strip()
        for name, theirs in zip(names, session.run(None, {session.get_inputs()[0].name: rows})):
            if isinstance(theirs, list):
                # ZipMap: a map a row, whose values in their order are our columns.
                theirs = numpy.array([list(row.values()) for row in theirs], dtype=numpy.float32)
            mine = ours[name]
            if theirs.shape != mine.shape:
                return f"{name} has the shape {mine.shape} instead of {theirs.shape}"
            if theirs.dtype != numpy.float32:
                wrong = int((mine != theirs).sum())
                if wrong:
                    return f"{wrong} of {theirs.size} labels in {name} differ"
                self.labels.setdefault(str(model), set()).update(theirs.tolist())
            elif not numpy.allclose(mine, theirs, **TOLERANCE):
                return f"{name} differs by up to {numpy.abs(mine - theirs).max()}"
        return None

    def is_refused(self, model, rows, expected):
        """Why the answer is no refusal that says these words; a panic is none."""
        code, _, said = self.ours(model, rows)
        if code != 1:
            return f"it ends with {code}: {said}"
        missing = [word for word in expected if word not in said]
        return f"it does not say {missing}: {said}" if missing else None


def main(program, folder):
    """All models on all held-out rows, a few, and rows made to be awkward; then what must be refused."""
    checks = Checks(program)
    rows = numpy.load(folder / "held-out.npz")["x"]
    random = numpy.random.default_rng(20)
    # Values between those that thresholds were learnt from, far outside, and rows of one value.
    awkward = numpy.concatenate(
        [
            random.uniform(-4, 20, (500, rows.shape[1])),
            random.integers(0, 17, (500, rows.shape[1])) + 0.5,
            random.normal(0, 1000, (50, rows.shape[1])),
            numpy.full((1, rows.shape[1]), 8),
        ]
    ).astype(numpy.float32)
    models = sorted(folder.glob("*.onnx"))
    for model in models:
        # Few rows go another way through ONNX Runtime than many.
        for what, chosen in [("held out", rows), ("few rows", rows[:30]), ("awkward", awkward)]:
            reason = checks.agrees(model, chosen)
            checks.check(f"{model.stem}, {what}", reason)
        labels = checks.labels.get(str(model))
        if labels is not None:
            checks.check(f"{model.stem}, labels seen", None if len(labels) > 1 else f"only {labels}: this compares nothing")

    with tempfile.TemporaryDirectory() as made:
        made = Path(made) / "made.onnx"
        forest = folder / "forest.onnx"

        def refused(name, change, *expected, rows=rows):
            model = onnx.load(folder / "tree.onnx")
            change(model.graph)
            made.write_bytes(model.SerializeToString())
            checks.check(name, checks.is_refused(made, rows, expected))

        def attribute(graph, name):
            return next(a for a in graph.node[0].attribute if a.name == name)

        def renamed(graph):
            graph.node[0].op_type, graph.node[0].name = "SVMClassifier", "the-node"

        def joined(graph):
            modes, true, false = (attribute(graph, f"nodes_{n}") for n in ("modes", "truenodeids", "falsenodeids"))
            branch = next(i for i, mode in enumerate(modes.strings) if mode != b"LEAF")
            true.ints[branch] = false.ints[branch]

        refused("an unknown operator", renamed, "the-node", "ai.onnx.ml.SVMClassifier", "not supported")
        def without_root(graph):
            # Its last branch leads back to the root.
            modes, false = attribute(graph, "nodes_modes"), attribute(graph, "nodes_falsenodeids")
            branch = max(i for i, mode in enumerate(modes.strings) if mode != b"LEAF")
            false.ints[branch] = 0

        refused("a tree whose branches meet", joined, "TreeEnsembleClassifier", "two ways")
        refused("a tree with a cycle", without_root, "TreeEnsembleClassifier", "never reached")
        refused("a child that is not there", lambda g: attribute(g, "nodes_truenodeids").ints.__setitem__(0, 10**6), "no node")
        refused("a negative feature", lambda g: attribute(g, "nodes_featureids").ints.__setitem__(0, -1), "negative")
        refused("a feature beyond the row", lambda g: attribute(g, "nodes_featureids").ints.__setitem__(0, 2**40), "columns")
        refused("a class that is not there", lambda g: attribute(g, "class_ids").ints.__setitem__(0, 10), "class_ids")
        refused("attributes of different lengths", lambda g: attribute(g, "nodes_values").floats.pop(), "nodes_values")
        refused("an input nobody makes", lambda g: g.node[0].input.__setitem__(0, "nowhere"), "before it")
        refused("too few columns", lambda g: None, "shape", rows=rows[:, :63])
        whole = forest.read_bytes()
        for length in (0, 1, 1000, len(whole) // 2, len(whole) - 1):
            made.write_bytes(whole[:length])
            checks.check(f"the first {length} bytes of a model", checks.is_refused(made, rows, []))
        for seed in range(100):
            # Whatever a damaged model does, it is an answer or an error: never a panic.
            small = bytearray((folder / "tree.onnx").read_bytes())
            for place in numpy.random.default_rng(seed).integers(0, len(small), 20):
                small[place] = numpy.random.default_rng(seed + 1000 + place).integers(0, 256)
            made.write_bytes(small)
            code, _, said = checks.ours(made, rows[:4])
            checks.check(f"damaged model {seed}", None if code in (0, 1) else f"it ends with {code}: {said}")
    print(f"{checks.passed} passed, {checks.failed} failed")
    return 1 if checks.failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], Path(sys.argv[2])))
