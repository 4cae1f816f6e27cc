"""Users' callbacks, named as `module:name`."""

import keras

from keras_densepred.faults import SettingsError, sentence
from keras_densepred.plugins import import_module


def load_callbacks(names: str) -> list[keras.callbacks.Callback]:
    """Makes the callbacks that `--callback` names.

    Args:
        names: `module:name`, several separated by commas; a class, or a function, that takes no
            arguments and gives a Keras callback. The module is looked for in the current folder
            too.

    Raises:
        SettingsError: if there is no such module or name, or it gives no callback.
    """
    return [_load(name.strip()) for name in names.split(",")]


def _load(name: str) -> keras.callbacks.Callback:
    module_name, _, attribute = name.partition(":")
    if not all(part.isidentifier() for part in (*module_name.split("."), attribute)):
        raise SettingsError(f"--callback is named as module:name, and {name!r} is not.")
    try:
        made = getattr(import_module(module_name), attribute)()
    except Exception as error:  # whatever a user's module does
        raise SettingsError(
            f"--callback {name} cannot be made ({sentence(error).rstrip('.')}): it must be a class "
            "or a function without arguments, in a module of this folder or an installed one."
        ) from error
    if not isinstance(made, keras.callbacks.Callback):
        raise SettingsError(f"--callback {name} gives {made!r}, which is no Keras callback.")
    return made
