#!/usr/bin/env python3
"""Trains classifiers of handwritten digits and exports them to ONNX.

The data are scikit-learn's bundled digits: 1,797 scans of 8x8 pixels, 0 to 16 (UCI "Optical Recognition of Handwritten
Digits"). A quarter is held out, stratified and with a fixed seed; the accuracy that is printed is on that quarter.

    pip install scikit-learn skl2onnx 'protobuf<7'
    python train.py FOLDER

FOLDER gets NAME.onnx for every model, and held-out.npz: the rows `x` (float32) and their labels `y` (int64).
"""

import sys
from pathlib import Path

import numpy
from skl2onnx import to_onnx
from sklearn.datasets import load_digits
from sklearn.ensemble import (
    ExtraTreesClassifier,
    GradientBoostingClassifier,
    GradientBoostingRegressor,
    HistGradientBoostingClassifier,
    RandomForestClassifier,
    RandomForestRegressor,
)
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MaxAbsScaler, MinMaxScaler, Normalizer, StandardScaler
from sklearn.tree import DecisionTreeClassifier

SEED = 20
# What the ONNX operator sets of the export are: so that another version of the exporter writes the same.
OPSETS = {"": 18, "ai.onnx.ml": 3}


def classifiers():
    """Name, classifier, and what it learns to tell: which of ten digits, or whether it is an eight."""
    yield "mlp", make_pipeline(StandardScaler(), MLPClassifier((64,), max_iter=400, random_state=SEED)), "digit"
    yield "forest", RandomForestClassifier(100, random_state=SEED), "digit"
    yield "extra-trees", ExtraTreesClassifier(50, random_state=SEED), "digit"
    yield "tree", DecisionTreeClassifier(random_state=SEED), "digit"
    yield "boosting", GradientBoostingClassifier(n_estimators=15, random_state=SEED), "digit"
    yield "histogram-boosting", HistGradientBoostingClassifier(max_iter=8, random_state=SEED), "digit"
    yield "logistic", make_pipeline(StandardScaler(), LogisticRegression(max_iter=500)), "digit"
    yield "normalized-logistic", make_pipeline(Normalizer(), LogisticRegression(max_iter=500)), "digit"
    yield "min-max-logistic", make_pipeline(MinMaxScaler(), LogisticRegression(max_iter=500)), "digit"
    yield "max-abs-forest", make_pipeline(MaxAbsScaler(), RandomForestClassifier(50, random_state=SEED)), "digit"
    yield "named-forest", RandomForestClassifier(50, random_state=SEED), "name"
    # Two classes are a special case of several operators.
    yield "eight-forest", RandomForestClassifier(50, random_state=SEED), "eight"
    yield "eight-boosting", GradientBoostingClassifier(n_estimators=15, random_state=SEED), "eight"
    yield "eight-logistic", make_pipeline(StandardScaler(), LogisticRegression(max_iter=500)), "eight"
    yield "eight-mlp", make_pipeline(StandardScaler(), MLPClassifier((16,), max_iter=400, random_state=SEED)), "eight"


def regressors():
    """They estimate the digit as a number; nobody would, but the operators are theirs."""
    yield "forest-regressor", RandomForestRegressor(50, random_state=SEED)
    yield "boosting-regressor", GradientBoostingRegressor(n_estimators=15, random_state=SEED)
    yield "linear-regressor", make_pipeline(StandardScaler(), LinearRegression())


NAMES = numpy.array("zero one two three four five six seven eight nine".split())
TARGETS = {"digit": lambda y: y, "name": lambda y: NAMES[y], "eight": lambda y: (y == 8).astype(numpy.int64)}


def main(folder):
    """Trains, exports, and says how good each is."""
    folder.mkdir(parents=True, exist_ok=True)
    x, y = load_digits(return_X_y=True)
    x, y = x.astype(numpy.float32), y.astype(numpy.int64)
    x_train, x_test, y_train, y_test = train_test_split(x, y, test_size=0.25, stratify=y, random_state=SEED)
    numpy.savez(folder / "held-out.npz", x=x_test, y=y_test)

    def export(name, model, **options):
        exported = to_onnx(model, x_train[:1], target_opset=OPSETS, **options)
        (folder / f"{name}.onnx").write_bytes(exported.SerializeToString())

    for name, model, target in classifiers():
        to_target = TARGETS[target]
        model.fit(x_train, to_target(y_train))
        export(name, model)
        accuracy = model.score(x_test, to_target(y_test))
        print(f"{name:20} accuracy {accuracy:.4f} on {len(y_test)} held-out rows ({target})", flush=True)
    for name, model in regressors():
        model.fit(x_train, y_train)
        export(name, model)
        print(f"{name:20} R2 {model.score(x_test, y_test):.4f} on {len(y_test)} held-out rows", flush=True)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
