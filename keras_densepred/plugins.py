"""Users' modules, found in the folder where the command is run."""

import importlib
import os
import sys
from collections.abc import Iterable
from types import ModuleType


def import_module(name: str) -> ModuleType:
    """Imports a module by name, from the current directory too."""
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    return importlib.import_module(name)


def import_modules(names: Iterable[str]) -> None:
    """Imports modules, so that the backbone families they register are found.

    Args:
        names: such as `"my_backbones"` for a `my_backbones.py` where the command is run.

    Raises:
        ImportError: if there is no such module, or it cannot be imported.
    """
    for name in names:
        try:
            import_module(name)
        except ModuleNotFoundError as error:
            if error.name not in (name, name.partition(".")[0]):
                raise
            raise ImportError(
                f"There is no module {name!r} in {os.getcwd()} or among the installed ones."
            ) from error
