"""Imports of optional packages, with one clear sentence when one is missing."""

import importlib
from types import ModuleType


def require(module: str, extra: str) -> ModuleType:
    """Imports `module`, which ships with the optional dependency group `extra`.

    Args:
        module: dotted module name, such as `"grain"`.
        extra: name of the extra in `pyproject.toml` that installs it.

    Returns:
        The imported module.

    Raises:
        ImportError: if the module is not installed; the message names the extra to install.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] != module.split(".")[0]:
            raise
        raise ImportError(
            f"This needs the package that provides `{module}`, which is not installed: "
            f'run `pip install ".[{extra}]"` in a clone of keras_densepred.'
        ) from error
