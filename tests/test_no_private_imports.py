"""What Keras, KerasHub and KerasCV keep in `src` may be gone in their next version."""

import ast
import re
import subprocess
from pathlib import Path

import pytest

pytestmark = pytest.mark.backend_free

ROOT = Path(__file__).parents[1]
PRIVATE = ("keras.src.", "keras_hub.src.", "keras_cv.src.")
IMPORT = re.compile(r"(?:from|import) ([\w.]+)")


def tracked_files():
    """All Python files of the repository; in a copy without git, those that are there."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.py"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if listed.returncode == 0:
        files = [ROOT / name for name in listed.stdout.splitlines()]
        return [path for path in files if path.is_file()]  # and not deleted a moment ago
    folders = ("keras_densepred", "recipes", "tools", "guides", "benchmarks", "tests")
    return [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]


def private_uses(source):
    """Lines that import a private module or reach for it as an attribute (`keras.src.backend`)."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Attribute):
            names = [ast.unparse(node)]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            # For importlib, a patch or another process; a sentence may mention the module.
            names = [node.value] if " " not in node.value else IMPORT.findall(node.value)
        else:
            continue
        if any(f"{name}.".startswith(PRIVATE) for name in names):
            found.append(node.lineno)
    return sorted(set(found))


@pytest.mark.parametrize(
    ("source", "lines"),
    [
        ("import keras\nfrom keras.src.backend import x", [2]),
        ("def f():\n    import keras_hub.src.utils as u", [2]),
        ("from keras_cv import src", [1]),
        ("import keras\nkeras.src.backend.x()", [2]),
        ('importlib.import_module("keras.src.backend")', [1]),
        ('run("import os; from keras.src import backend")', [1]),
        ("from keras import ops\n'Not what keras.src has'\nfrom keras_densepred.src import y", []),
    ],
)
def test_the_check_finds_private_uses(source, lines):
    assert private_uses(source) == lines


def test_nothing_uses_what_is_private_to_the_hosts():
    files = tracked_files()
    assert ROOT / "keras_densepred" / "__init__.py" in files
    found = {
        str(path.relative_to(ROOT)): lines
        for path in files
        if path != Path(__file__) and (lines := private_uses(path.read_text(encoding="utf-8")))
    }
    assert not found
