"""Where the active backend computes, and for whom."""

import contextlib
import contextvars
import dataclasses
from collections.abc import Iterator
from typing import Any

import keras


@dataclasses.dataclass(frozen=True)
class _Target:
    platform: str
    mesh: Any


_writes_saved_model = contextvars.ContextVar("writes_saved_model", default=False)
_writes_onnx = contextvars.ContextVar("writes_onnx", default=False)
if keras.config.backend() == "jax":
    import jax

    # Made before anything is traced: JAX compiles again what it traced without.
    _jax_target: Any = jax.make_user_context(default_value=None)


def jax_runs_on_cpu() -> bool:
    """Whether what JAX, the active backend, traces now is for a CPU: paths measured there apply."""
    if _jax_target.value is not None:
        return _jax_target.value.platform == "cpu"
    config: Any = jax.config
    device = config.jax_default_device  # such as that of `keras.device("cpu:0")`
    if device is None:
        return jax.default_backend() == "cpu"
    return (device if isinstance(device, str) else device.platform) == "cpu"


def jax_compiles_for(platform: str, mesh: Any = None) -> contextlib.AbstractContextManager[None]:
    """Within it JAX traces for devices that need not be there.

    What was traced before, for others, is not taken from JAX's caches.

    Args:
        platform: as a JAX device names its own: `"cpu"`, `"gpu"` or `"tpu"`.
        mesh: `jax.sharding.Mesh` of the devices that a distribution names; None: those of JAX.
    """
    return _jax_target(_Target(platform, mesh))


def jax_mesh() -> Any:
    """The mesh that `jax_compiles_for` was given, or None."""
    return None if _jax_target.value is None else _jax_target.value.mesh


def tensorflow_runs_on_cpu() -> bool:
    """Whether the active backend is TensorFlow with nothing but CPUs to compute on."""
    if keras.config.backend() != "tensorflow":
        return False
    import tensorflow as tf

    return all(device.device_type == "CPU" for device in tf.config.list_physical_devices())


def writes_onnx() -> bool:
    """Whether the graph that is being traced is for an ONNX file.

    Paths that were measured on the backend's own kernels do not apply then, and loops that other
    runtimes read badly are written out.
    """
    if keras.config.backend() == "torch":
        import torch

        return _writes_onnx.get() or torch.onnx.is_in_onnx_export()
    return _writes_onnx.get()


@contextlib.contextmanager
def writing_onnx() -> Iterator[None]:
    """Within it `writes_onnx` is True."""
    token = _writes_onnx.set(True)
    try:
        yield
    finally:
        _writes_onnx.reset(token)


def jax_writes_saved_model() -> bool:
    """Whether what JAX, the active backend, traces now is for a SavedModel.

    TensorFlow 2.21 does not know the operations as which JAX 0.10.2 writes its `top_k` and `erf`;
    others have to stand for them.
    """
    return keras.config.backend() == "jax" and _writes_saved_model.get()


@contextlib.contextmanager
def writing_saved_model() -> Iterator[None]:
    """Within it `jax_writes_saved_model` is True on JAX."""
    token = _writes_saved_model.set(True)
    try:
        yield
    finally:
        _writes_saved_model.reset(token)
