"""The examples in the package's docstrings run as they are written."""

import ast
import doctest
import inspect
import re
from pathlib import Path

import keras
import numpy as np
import pytest

import keras_densepred

PACKAGE = Path(keras_densepred.__file__).parent
HEADING = re.compile(r"^Example\b[^\n]*:$", re.MULTILINE)
# A training step of a network of more than 30 million parameters.
LARGE = (
    *("DeepLabV3", "RetinaNetKerasHub", "FasterRCNN", "UperNet"),
    *("Mask2Former", "Mask2FormerSegmenter"),
)


def examples():
    """Name of class or function -> its example, of every docstring that has one."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)):
                continue
            text = inspect.cleandoc(ast.get_docstring(node) or "")
            heading = HEADING.search(text)
            if heading or ">>>" in text:
                name = getattr(node, "name", path.stem)
                found[name] = text[heading.end() if heading else 0 :]
    return found


EXAMPLES = examples()


def test_examples_are_found():
    assert {"CEDNetBackbone", "YOLOv3Detector", *LARGE} <= EXAMPLES.keys()


def variables():
    """What the examples take as given: a small batch, and the packages."""
    random = np.random.default_rng(0)
    return {
        "keras": keras,
        "keras_densepred": keras_densepred,
        "np": np,
        "images": random.normal(size=(2, 64, 64, 3)).astype("float32"),
        "boxes": np.array([[[4, 4, 40, 30]], [[10, 20, 60, 62]]], "float32"),
        "labels": np.array([[1], [0]], "int32"),
        "masks": random.integers(0, 3, (2, 64, 64)).astype("int32"),
    }


@pytest.mark.slow_on("jax", "tensorflow")
@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=pytest.mark.slow if n in LARGE else ()) for n in EXAMPLES],
)
def test_example(name):
    text, given = EXAMPLES[name], variables()
    if ">>>" in text:
        test = doctest.DocTestParser().get_doctest(text, given, name, None, None)
        printed = []
        doctest.DocTestRunner(verbose=False).run(test, out=printed.append)
        assert not printed, "".join(printed)
        return
    block = re.match(r"\n+((?: {4}[^\n]*\n?|\n)+)", text)
    assert block, f"{name}: no code below its heading"
    exec(inspect.cleandoc(block[1]), given)
