"""When a layer may run without Keras' bookkeeping around it."""

import keras


def can_run_directly(layer: keras.layers.Layer, args: tuple, kwargs: dict) -> bool:
    """Whether `layer.call(*args)` is all that `layer(*args, **kwargs)` would compute.

    PyTorch executes layer by layer, so what Keras does around each call (it checks the arguments,
    looks for masks, opens scopes) is paid at every step: CEDNet-NeXt-T's forward pass of a 32 px
    image, which computes little, takes 76 ms instead of 132 without it, and 34 in plain PyTorch
    (2 CPU cores). JAX and TensorFlow pay it once, when they trace.

    Args:
        layer: a layer whose `call` takes tensors by position, has no mask, training mode,
            quantisation or activity regulariser, and no weights but those made in `build`.
        args: positional arguments of the call.
        kwargs: keyword arguments of the call.

    Returns:
        True on PyTorch if the layer is built and the arguments are plain tensors in the layer's
        compute dtype, while variables are neither cast nor distributed otherwise.
    """
    if keras.config.backend() != "torch" or not layer.built:
        return False
    if kwargs and kwargs.keys() != {"training"}:  # which a functional model hands to all layers
        return False
    import torch

    dtype = getattr(torch, layer.compute_dtype, None)
    for tensor in args:
        if not isinstance(tensor, torch.Tensor) or tensor.dtype != dtype:
            return False
        if getattr(tensor, "_keras_mask", None) is not None:
            return False
    return _variables_have(layer.compute_dtype, layer.variable_dtype)


# One variable of each dtype, which nothing reads: only its `dtype` is asked for.
_PROBES: dict[str, keras.Variable] = {}


def _variables_have(compute_dtype: str, variable_dtype: str) -> bool:
    """Whether a variable read here and now comes in the compute dtype.

    Keras keeps the dtype that variables are cast to for itself (`keras.src`), but `Variable.dtype`
    follows it: it is the dtype in which the variable would be read.
    """
    if compute_dtype != variable_dtype and compute_dtype == keras.config.floatx():
        # Where nothing is cast, within a layer of integers, `Variable.dtype` says `floatx`
        # instead of the variable's (keras 3.15.1), so here it proves nothing.
        return False
    probe = _PROBES.get(variable_dtype)
    if probe is None:
        probe = _PROBES[variable_dtype] = keras.Variable(
            "zeros", shape=(), dtype=variable_dtype, trainable=False, name="probe"
        )
    return probe.dtype == compute_dtype
