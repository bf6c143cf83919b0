"""ONNX's own node tests (PyPI's `onnx`), by each engine, and by the one that is chosen: its answers must all be right.

    nodes.py PROGRAM FOLDER [--record] [--list]

Each case runs twice: as it is, and with the inputs behind the first as constants of the model, as exporters write shapes and axes.
What an engine answers wrongly, it must not be asked for: where it does, it is asked once more with its exclusions, and must refuse.
The counts of each engine must be those of nodes.json; --record writes it. Which one is chosen is a matter of time, so its counts are
there to be read. --list says what every engine makes of each case.
"""

import json
import sys
import warnings
from pathlib import Path

import numpy
import onnx
from onnx import numpy_helper

from evaluate import Evaluate, decoded, encoded

ENGINES = ["evaluator", "tract", "rten"]
RECORDED = Path(__file__).parent / "nodes.json"
# Their results are random.
RANDOM = ["bernoulli", "training_dropout", "random_"]
# Elements of an input that is made a constant.
SMALL = 1024


def generated(folder):
    """Models and data as (name, model's bytes, inputs, outputs, rtol, atol), kept in a folder: making them takes a minute."""
    import pickle

    kept = folder / f"nodes-{onnx.__version__}.pickle"
    if not kept.exists():
        from onnx.backend.test.case.node import collect_testcases

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            cases = []
            for case in collect_testcases(None):
                for inputs, outputs in case.data_sets[:1]:
                    cases.append((case.name, case.model.SerializeToString(), inputs, outputs, case.rtol, case.atol))
        kept.write_bytes(pickle.dumps(cases))
    return pickle.loads(kept.read_bytes())


def is_tensor(info):
    """Whether an input or output is a tensor of a type that the service has."""
    has = info.type.WhichOneof("value") == "tensor_type"
    return has and info.type.tensor_type.elem_type in (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13)


def with_constants(model, inputs):
    """The model with the inputs behind the first as constants; None if that is no other model."""
    rest = [numpy.asarray(i) for i in inputs[1:]]
    is_text = [all(isinstance(v, (str, bytes)) for v in i.flat) for i in rest if i.dtype == object]
    if not rest or not all(is_text) or any(i.size > SMALL for i in rest):
        return None
    changed = onnx.ModelProto.FromString(model)
    for info, value in zip(list(changed.graph.input)[1:], rest):
        changed.graph.initializer.append(numpy_helper.from_array(value, info.name))
        changed.graph.input.remove(info)
    return changed.SerializeToString()


def is_right(answer, expected, rtol, atol):
    """Whether the outputs are what ONNX's reference says."""
    if len(answer) != len(expected):
        return False
    for ours, theirs in zip(answer, expected):
        ours, theirs = decoded(ours), numpy.asarray(theirs)
        if ours.shape != theirs.shape:
            return False
        if theirs.dtype == object or theirs.dtype.kind in "US":
            if [str(t) for t in theirs.reshape(-1)] != [str(t) for t in ours.reshape(-1)]:
                return False
        elif ours.dtype != theirs.dtype or not numpy.allclose(ours, theirs, *tolerances(theirs, rtol, atol), equal_nan=True):
            return False
    return True


def tolerances(expected, rtol, atol):
    """What a case permits, and no less than four units in the last place, of an element and (where terms cancel) of the largest: the
    references are computed with more digits than the type has."""
    if expected.dtype.kind != "f" or not expected.size:
        return rtol, atol
    four = 4 * float(numpy.finfo(expected.dtype).eps)
    finite = numpy.abs(expected[numpy.isfinite(expected)]).astype(float)
    return max(rtol, four), max(atol, four * float(finite.max(initial=0)))


def main(program, folder, options):
    """Runs all of them."""
    cases, evaluate = generated(folder), Evaluate([program])
    made = folder / "node.onnx"
    counts = {who: {"right": 0, "wrong": 0, "not run": 0} for who in [*ENGINES, "chosen"]}
    wrong = {who: [] for who in counts}
    unusable = 0
    for name, model, inputs, outputs, rtol, atol in cases:
        graph = onnx.ModelProto.FromString(model).graph
        ports = [*graph.input, *graph.output]
        usable = all(is_tensor(p) for p in ports) and len(graph.input) == len(inputs) and len(graph.output) == len(outputs)
        if not usable or any(word in name for word in RANDOM) or any(encoded(i) is None for i in inputs):
            unusable += 1
            continue
        for variant, bytes_, given in [("", model, inputs), (" (constants)", with_constants(model, inputs), inputs[:1])]:
            if bytes_ is None:
                continue
            made.write_bytes(bytes_)
            for who in counts:
                order = {"model": str(made), "inputs": [encoded(i) for i in given]}
                if who != "chosen":
                    order |= {"engine": who, "unchecked": True}
                answer = evaluate.ask(order, timeout=60)
                if answer.get("stage") in ("crash", "hang", "order"):
                    outcome = "wrong"
                elif "error" in answer:
                    outcome = "not run"
                else:
                    outcome = "right" if is_right(answer["outputs"], outputs, rtol, atol) else "wrong"
                counts[who][outcome] += 1
                if outcome == "wrong":
                    if who != "chosen":
                        again = evaluate.ask(order | {"unchecked": False}, timeout=60)
                        admitted = again.get("stage") != "load"
                    if who == "chosen" or admitted:
                        wrong[who].append(name + variant)
                if "--list" in options:
                    said = answer.get("error", answer.get("engine"))
                    operators = ",".join(sorted({n.op_type for n in graph.node}))
                    print(outcome, who, name + variant, operators, said, sep="\t")
    evaluate.end()
    results = {"onnx": onnx.__version__, "not for this service": unusable, "counts": counts}
    print(json.dumps(results, indent=1))
    for who, names in wrong.items():
        for name in names:
            print(f"FAILED   {name}: {who} answers wrongly, and nothing keeps it from that")
    if "--record" in options:
        RECORDED.write_text(json.dumps(results, indent=1) + "\n")
    recorded = json.loads(RECORDED.read_text())
    differs = [who for who in ENGINES if recorded["counts"][who] != counts[who]]
    for who in differs:
        print(f"FAILED   the counts of {who} are not those of {RECORDED.name}")
    failed = sum(map(len, wrong.values())) + len(differs)
    print(f"{counts['chosen']['right']} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], Path(sys.argv[2]), sys.argv[3:]))
