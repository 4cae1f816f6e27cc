"""Where the active backend computes, and for whom."""

import contextlib
import contextvars
from collections.abc import Iterator

import keras

_writes_onnx = contextvars.ContextVar("writes_onnx", default=False)


def jax_runs_on_cpu() -> bool:
    """Whether JAX, the active backend, computes on the CPU: paths measured there apply."""
    import jax

    return jax.default_backend() == "cpu"


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

        return torch.onnx.is_in_onnx_export()
    return _writes_onnx.get()


@contextlib.contextmanager
def writing_onnx() -> Iterator[None]:
    """Within it `writes_onnx` is True, on backends that do not tell themselves."""
    token = _writes_onnx.set(True)
    try:
        yield
    finally:
        _writes_onnx.reset(token)
