"""Commands that are files of their own: recipes and tools, the same from a clone and a wheel.

In a clone they lie beside the package, in `recipes/` and `tools/`; a wheel holds copies of both
folders in `keras_densepred/scripts/` (`setup.py`).
"""

from __future__ import annotations

import ast
import difflib
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path

from keras_densepred import start

TRAIN = "train"
# Name of the command -> the tool that it runs.
_TOOLS = {
    "export": "export.py",
    "convert-weights": "convert_weights.py",
    "convert-dataset": "convert_dataset.py",
    "model-table": "model_table.py",
    "benchmark": "benchmark.py",
}


def folder(name: str) -> Path:
    """Where `"recipes"` or `"tools"` are.

    Raises:
        FileNotFoundError: if this installation has none.
    """
    package = Path(__file__).resolve().parents[1]
    for place in (package / "scripts" / name, package.parent / name):
        if (place / ("coco_retinanet.py" if name == "recipes" else "export.py")).is_file():
            return place
    raise FileNotFoundError(
        f"This installation has no {name}: install the wheel, or a clone with `pip install -e .`."
    )


def recipes() -> dict[str, Path]:
    """The recipes by name."""
    return {path.stem: path for path in sorted(folder("recipes").glob("*.py"))}


def is_script(argv: Sequence[str]) -> bool:
    """Whether a command line is one of a recipe or a tool."""
    return bool(argv) and (argv[0] in _TOOLS or argv[0] == TRAIN)


def summaries() -> dict[str, str]:
    """Each command with the first line of its file's docstring."""
    found = {f"{TRAIN} RECIPE": "train a model; `train --help` lists the recipes"}
    for name, file in _TOOLS.items():
        found[name] = _first_line(folder("tools") / file)
    return found


def run(argv: Sequence[str]) -> int:
    """Runs a recipe or a tool as `python FILE ...` does.

    Args:
        argv: `["train", recipe, ...]`, or the name of a tool's command and its arguments.

    Returns:
        The exit code.

    Raises:
        ValueError: if there is no such recipe.
    """
    command, *rest = argv
    if command == TRAIN:
        if not rest or rest[0] in ("-h", "--help"):
            print(_listing())
            return 0 if rest else 2
        path, rest = find_recipe(rest[0]), rest[1:]
    else:
        path = folder("tools") / _TOOLS[command]
        if path.name not in start.TOOLS:
            start.load()
    before, sys.argv = sys.argv, [str(path), *rest]
    try:
        runpy.run_path(str(path), run_name="__main__")
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            return end.code or 0
        raise
    finally:
        sys.argv = before
    return 0


def find_recipe(name: str) -> Path:
    """The file of a recipe.

    Raises:
        ValueError: if there is none of that name.
    """
    known = recipes()
    stem = name.removesuffix(".py")
    if stem in known:
        return known[stem]
    near = difflib.get_close_matches(stem, known, 1)
    hint = f"did you mean {near[0]}?" if near else f"give one of {', '.join(known)}."
    raise ValueError(f"There is no recipe {name!r}: {hint}")


def _listing() -> str:
    lines = [
        "usage: python -m keras_densepred train RECIPE [--data-dir DIR] [--output DIR] ...",
        "",
    ]
    lines += [f"  {name:<18} {_first_line(path)}" for name, path in recipes().items()]
    lines += ["", "`train RECIPE --help` lists the settings of a recipe."]
    return "\n".join(lines)


def _first_line(path: Path) -> str:
    document = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return document.partition("\n\n")[0].replace("\n", " ")
