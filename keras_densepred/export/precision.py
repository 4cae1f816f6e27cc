"""A model trained in mixed precision, as one that computes in float32."""

from typing import Any

import keras

_LOW = ("float16", "bfloat16", "mixed_float16", "mixed_bfloat16")


def in_float32(model: keras.Model) -> keras.Model:
    """The same weights in a model that computes in float32; the model itself if it does already.

    Args:
        model: any model of the package that can be saved.

    Returns:
        The model, not compiled if it is another.
    """
    if not low_precisions(model):
        return model
    config = keras.saving.serialize_keras_object(model)
    config.pop("compile_config", None)
    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy("float32")  # of layers that are given none
    try:
        twin = keras.saving.deserialize_keras_object(_with_float32(config))
    finally:
        keras.config.set_dtype_policy(policy)
    twin.set_weights(model.get_weights())
    return twin


def low_precisions(model: keras.Model) -> set[str]:
    """Those of less than 32 bits that layers of a model compute in."""
    return {layer.compute_dtype for layer in model._flatten_layers()} & set(_LOW)


def _with_float32(config: Any) -> Any:
    """A configuration whose dtype policies, by name or as objects, are all float32."""
    if isinstance(config, dict):
        if config.get("class_name") == "DTypePolicy":
            return "float32" if config["config"]["name"] in _LOW else config
        return {
            key: "float32" if key == "dtype" and value in _LOW else _with_float32(value)
            for key, value in config.items()
        }
    if isinstance(config, (list, tuple)):
        return type(config)(_with_float32(value) for value in config)
    return config
