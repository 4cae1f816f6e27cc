"""Imports inside of `keras_densepred.data` point one way, those inside of functions included."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from keras_densepred import data

pytestmark = pytest.mark.backend_free

ROOT = Path(data.__file__).parent
PACKAGE = "keras_densepred.data."
# What each room may import; a file on its own is its own room.
ALLOWED = {
    "records": set(),
    "image_files": set(),
    "image_size": {"image_files"},
    "boxes": set(),
    "video_files": set(),
    "readers": {"records", "image_files", "image_size"},
    "layouts": {"records", "readers"},
    "augment": {"records", "image_files", "boxes"},
    "batches": {"records", "image_files", "boxes", "augment"},
    "shapes": {"records", "boxes", "readers"},
    "drawing": {"records"},
    "open": {"records", "readers", "shapes", "layouts"},
}


def imports():
    """Module -> the modules of `keras_densepred.data` that it imports, below `data`."""
    found = {}
    for path in ROOT.rglob("*.py"):
        if path.name == "__init__.py":
            continue
        tree = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        names = {n.module or "" for n in tree if isinstance(n, ast.ImportFrom)}
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        found[module] = {n.removeprefix(PACKAGE) for n in names if n.startswith(PACKAGE)}
    return found


def test_no_module_imports_itself_by_a_detour():
    order = list(TopologicalSorter(imports()).static_order())
    assert order.index("records") < order.index("batches.detection")


def test_rooms_import_what_lies_below_them():
    for module, others in imports().items():
        room = module.split(".")[0]
        outside = {other.split(".")[0] for other in others} - {room}
        assert outside <= ALLOWED[room], module
