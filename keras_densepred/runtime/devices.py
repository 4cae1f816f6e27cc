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
