"""Constructor arguments of backbones: which there are, how configurations hold and compare them."""

import dataclasses
import inspect
from collections.abc import Mapping
from typing import Any

import keras


def constructor_arguments(cls: type) -> dict[str, inspect.Parameter]:
    """The named arguments of a family's constructor, including those it hands on to a parent's.

    The search ends at a base that takes `pyramid_outputs`, such as `PyramidBackbone`.
    """
    arguments: dict[str, inspect.Parameter] = {}
    for family in cls.__mro__:
        if "__init__" not in vars(family):
            continue
        signature = inspect.signature(vars(family)["__init__"]).parameters
        if "pyramid_outputs" in signature:
            break
        for name, parameter in list(signature.items())[1:]:
            if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
                arguments.setdefault(name, parameter)
        if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in signature.values()):
            break
    return arguments


def plain(value: Any) -> Any:
    """An argument as `get_config` returns it."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    if isinstance(value, keras.layers.Layer):
        return keras.saving.serialize_keras_object(value)
    if isinstance(value, (list, tuple)):
        return type(value)(plain(item) for item in value)
    return value


def built(value: Any) -> Any:
    """An argument of `get_config` as the constructor takes it."""
    if isinstance(value, Mapping) and {"class_name", "config"} <= value.keys():
        return keras.saving.deserialize_keras_object(value)
    return value


def comparable(value: Any) -> Any:
    """The same for equal arguments, whether they come from Python or from a JSON file."""
    if isinstance(value, Mapping):
        # Files of Keras write tuples so.
        if value.get("class_name") == "__tuple__":
            return comparable(value["items"])
        return {key: comparable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [comparable(item) for item in value]
    return plain(value)
