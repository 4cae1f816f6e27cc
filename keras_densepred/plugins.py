"""Users' modules, imported so that the backbone families they register are found."""

import importlib
import os
import sys
from collections.abc import Iterable


def import_modules(names: Iterable[str]) -> None:
    """Imports modules by name, from the current directory too.

    Args:
        names: such as `"my_backbones"` for a `my_backbones.py` where the command is run.

    Raises:
        ImportError: if there is no such module, or it cannot be imported.
    """
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    for name in names:
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name not in (name, name.partition(".")[0]):
                raise
            raise ImportError(
                f"There is no module {name!r} in {os.getcwd()} or among the installed ones."
            ) from error
