"""How a command starts: `--help` without Keras, and on JAX and PyTorch without TensorFlow.

`import keras_densepred` in a program imports and registers everything. In a process that is one of
our commands it postpones that until `load`, after the command line has been read. This module, and
all that declares command lines and settings, imports no Keras.
"""

import contextlib
import importlib
import importlib.abc
import os
import pathlib
import sys
import time
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

from keras_densepred import memory

_PACKAGE = pathlib.Path(__file__).resolve().parent
_PROGRAM = "keras-densepred"  # of pyproject.toml
# Tools that import nothing before they have read their flags, as all recipes do.
TOOLS = (
    *("check_dataset.py", "convert_dataset.py", "convert_weights.py", "export.py"),
    "tpu_check.py",
)
# Recipes and tools: beside the package in a clone, in it in a wheel.
_FOLDERS = (_PACKAGE.parent, _PACKAGE / "scripts")
# Rooms that the modules of commands name at their top and need only once they work.
_NETWORKS = ("backbones", "layers", "models", "necks", "ops")
_ROOMS = (*_NETWORKS, "convert", "data", "export", "metrics", "report", "saved")
_WITHOUT_KERAS = ("data",)

_postponed: list[str] = []  # packages of which only the light half is imported


def is_command() -> bool:
    """Whether this process is `python -m keras_densepred`, a recipe, or a tool of ours."""
    name = sys.argv[0] if sys.argv else ""
    if name == "-m":  # while Python looks for the module; its name stands before the arguments
        return sys.orig_argv[-len(sys.argv)] == _PACKAGE.name
    script = pathlib.Path(name)
    if script.stem == _PROGRAM:
        return True
    if script.suffix != ".py":
        return False
    script = script.resolve()
    return (
        script == _PACKAGE / "__main__.py"
        or any(script.parent == folder / "recipes" for folder in _FOLDERS)
        or (script.name in TOOLS and any(script.parent == folder / "tools" for folder in _FOLDERS))
    )


BEGAN = time.monotonic()  # of a command: all that it imports comes after this
_is_loaded = not is_command()
if not _is_loaded:
    if os.environ.get("KERAS_BACKEND") == "jax":  # Keras, which knows keras.json, comes too late
        memory.share_one_heap()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "1")  # without notes, with warnings


def is_loaded() -> bool:
    """Whether packages import all that is theirs; a program's always do."""
    return _is_loaded


def later(package: str) -> Callable[[str], Any]:
    """The `__getattr__` of a package whose imports are postponed.

    Args:
        package: its name, such as `"keras_densepred.training"`.

    Returns:
        A function that gives a room without running it, and for any other public name loads all.
    """
    _postponed.append(package)

    def get(name: str) -> Any:
        module = sys.modules[package]
        if not _is_loaded:
            if package == _PACKAGE.name and name in _ROOMS:
                return _Room(f"{package}.{name}")
            if name in module.__all__ and not (_PACKAGE / name).is_dir():
                load()
                return getattr(module, name)
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    return get


class _Room(ModuleType):
    """Stands for a package until one of its attributes is asked for.

    Not in `sys.modules`, as a module of `importlib.util.LazyLoader` is: PyTorch looks at all of
    those while it is imported itself.
    """

    def __getattr__(self, name: str) -> Any:
        if self.__name__.rpartition(".")[2] not in _WITHOUT_KERAS:
            load()
        return getattr(importlib.import_module(self.__name__), name)


def load() -> None:
    """Imports everything, as a program's `import keras_densepred` does; once, before work starts.

    Except TensorFlow and JAX on other backends. KerasHub (0.32) imports TensorFlow wherever it is
    installed, for its text preprocessing, and Keras (3.15.1) when it first saves a model or sets a
    seed, to know its types: seconds, and log lines. JAX comes with Keras' checkpoints of Orbax and
    with Grain, for another second. All go without. What needs them, as TensorFlow Datasets and
    KerasCV do, imports them later.
    """
    global _is_loaded
    if _is_loaded:
        return
    with memory.made_to_stay():
        # Who chose the backend in keras.json alone waits for them.
        other = os.environ.get("KERAS_BACKEND") in ("tensorflow", "torch")
        foreign = ("grain", "jax") if other else ()
        with _without(*foreign):
            import keras
            import numpy as np

            if keras.config.backend() == "tensorflow":
                importlib.import_module("keras_hub")
            else:
                with without_tensorflow():
                    importlib.import_module("keras_hub")
                    # Keras asks whether TensorFlow is there only once; this is the least that
                    # makes it ask.
                    keras.saving.serialize_keras_object(np.float32(0))
        _is_loaded = True
        for name in _postponed:
            importlib.reload(sys.modules[name])


class _Without(importlib.abc.MetaPathFinder):
    """Answers as if packages were not installed."""

    def __init__(self, packages: tuple[str, ...]) -> None:
        self.packages = packages

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> None:
        if fullname.partition(".")[0] in self.packages:
            raise ModuleNotFoundError(f"{fullname} is left out on this backend.", name=fullname)


def without_tensorflow() -> contextlib.AbstractContextManager[None]:
    """Within it, what is glad of TensorFlow and has not imported it goes without."""
    return _without("tensorflow", "tensorflow_text")


@contextlib.contextmanager
def _without(*packages: str) -> Iterator[None]:
    finder = _Without(tuple(package for package in packages if package not in sys.modules))
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
