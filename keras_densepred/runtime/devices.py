"""Where the active backend computes."""

import keras


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


def torch_writes_onnx() -> bool:
    """Whether PyTorch, the active backend, writes the graph for another runtime.

    Paths that were measured on PyTorch's own kernels do not apply then.
    """
    import torch

    return torch.onnx.is_in_onnx_export()
