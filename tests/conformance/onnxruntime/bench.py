"""Processor time of an inference, one thread: ONNX Runtime, each engine outside, and the one chosen inside an enclave.

    bench.py PROGRAM FOLDER [--inside COMMAND ...] [--rounds N]

FOLDER has the models of models.py. COMMAND runs PROGRAM in an enclave, where FOLDER is /models. Times are of the whole process (user and system),
from the difference of many inferences to none; the least of the rounds, which take turns.
"""

import argparse
import json
import os
import sys
import time
from pathlib import Path

from architectures import MODELS
from evaluate import Evaluate, encoded
from models import session

# Processor time of a round, about, in seconds.
ROUND = 1.0


def processor_time(process):
    """Of a process and its threads, in seconds."""
    fields = Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Ours:
    """A program that keeps its model between questions."""

    def __init__(self, command, model, engine, inputs):
        self.program = Evaluate(command)
        self.order = {"model": model, "engine": engine, "inputs": [encoded(i) for i in inputs]}
        answer = self.program.ask(self.order)
        if "error" in answer:
            sys.exit(f"{model}: {answer['error']}")
        self.engine, self.reason = answer["engine"], answer["reason"]
        # Later questions are to the same model, and need not load it.
        self.order["model"] = None

    def __call__(self, repeat):
        before = processor_time(self.program.process.pid)
        answer = self.program.ask(self.order | {"repeat": repeat}, timeout=600)
        assert "error" not in answer, answer
        return processor_time(self.program.process.pid) - before


class Theirs:
    """ONNX Runtime in this process."""

    def __init__(self, path, inputs):
        self.session = session(path)
        self.inputs = {i.name: v for i, v in zip(self.session.get_inputs(), inputs)}

    def __call__(self, repeat):
        before = time.process_time()
        for _ in range(repeat):
            self.session.run(None, self.inputs)
        return time.process_time() - before


def main():
    """All models."""
    parser = argparse.ArgumentParser()
    parser.add_argument("program")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--inside", nargs=argparse.REMAINDER)
    args = parser.parse_args()
    for name, (_, examples) in MODELS.items():
        path, inputs = args.folder / f"{name}.onnx", examples[0]
        chosen = Ours([args.program], str(path), None, inputs)
        runs = {"ONNX Runtime": Theirs(path, inputs), f"{chosen.engine}, outside": chosen}
        for other in {"tract", "rten"} - {chosen.engine}:
            runs[f"{other}, outside"] = Ours([args.program], str(path), other, inputs)
        if args.inside:
            for engine in ["tract", "rten"]:
                runs[f"{engine}, inside"] = Ours(args.inside, f"/models/{name}.onnx", engine, inputs)
        repeats = {}
        for what, run in runs.items():
            base = run(1)
            several = run(9)
            repeats[what] = max(4, int(ROUND / max((several - base) / 8, 1e-4)))
        least = {}
        for _ in range(args.rounds):
            for what, run in runs.items():
                one = (run(1 + repeats[what]) - run(1)) / repeats[what]
                least[what] = min(least.get(what, one), one)
        reference = least["ONNX Runtime"]
        print(f"{name} {list(inputs[0].shape)}; chosen: {chosen.reason}")
        for what, seconds in least.items():
            print(json.dumps({"model": name, "what": what, "ms": round(seconds * 1e3, 3), "ratio": round(seconds / reference, 3)}))
        for run in runs.values():
            if isinstance(run, Ours):
                run.program.end()


if __name__ == "__main__":
    main()
