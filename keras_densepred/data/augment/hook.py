"""A user's own augmentation, named as `module:function`."""

from __future__ import annotations

import dataclasses
import inspect
import os
from collections.abc import Callable, Sequence
from types import ModuleType

from keras_densepred.data.augment.transform import Size
from keras_densepred.plugins import import_module


def load_augmentation(name: str) -> Augmentation:
    """Finds a user's function that says how to augment.

    The function is `augmentation(image_size, default) -> list of transforms`, where `default` is
    the list that would be used without it: it may add to that list, change it or ignore it. See
    `data.augment` for an example and for what a transform is.

    Args:
        name: `module:function`; the module is looked for in the current folder too.

    Returns:
        The function, with what it returns checked.

    Raises:
        ValueError: if the module cannot be imported, or has no such function of two arguments.
    """
    module_name, _, function_name = name.partition(":")
    if not all(part.isidentifier() for part in (*module_name.split("."), function_name)):
        raise ValueError(f"An augmentation is named as module:function, and {name!r} is not.")
    module = _import(module_name, name)
    function = getattr(module, function_name, None)
    if function is None:
        raise ValueError(
            f"Augmentation {name}: {module.__file__} has no function `{function_name}`."
        )
    if not callable(function):
        raise ValueError(f"Augmentation {name}: `{function_name}` is {function!r}, no function.")
    try:
        inspect.signature(function).bind(0, [])
    except TypeError as error:
        raise ValueError(
            f"Augmentation {name} must take two arguments, the image size and the default list of "
            f"transforms ({error})."
        ) from error
    return Augmentation(name, function)


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """A user's function, called as `augmentation(image_size, default)`.

    Args:
        name: `module:function`.
        function: what it names.
    """

    name: str
    function: Callable

    def __call__(self, image_size: Size, default: Sequence[Callable]) -> list[Callable]:
        """The transforms to use, for `augment` of `train_batches` and its siblings.

        Args:
            image_size: of the training images, `(height, width)` or one number for both.
            default: the transforms that would be used otherwise.

        Raises:
            ValueError: if the function returns anything but a list of transforms.
        """
        steps = self.function(image_size, list(default))
        if not isinstance(steps, list | tuple):
            raise ValueError(
                f"Augmentation {self.name} must return a list of transforms, and returned "
                f"{steps!r}."
            )
        for number, step in enumerate(steps):
            if not callable(step):
                raise ValueError(
                    f"Augmentation {self.name} must return a list of transforms, and entry "
                    f"{number} of its list is {step!r}."
                )
        return list(steps)


def _import(module_name: str, name: str) -> ModuleType:
    try:
        return import_module(module_name)
    except Exception as error:  # whatever a user's module does when it is run
        reason = str(error) or type(error).__name__
        raise ValueError(
            f"Augmentation {name}: the module {module_name} cannot be imported ({reason}); it is "
            f"looked for in {os.getcwd()} and where Python looks for packages."
        ) from error
