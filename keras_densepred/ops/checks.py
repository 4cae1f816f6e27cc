"""Checks of tensor shapes that also work where a backend does not know the shape yet."""

import keras
from keras import ops


def check_size_multiple(inputs, divisor: int, data_format: str):
    """Raises unless height and width of a batch of images are multiples of `divisor`.

    Args:
        inputs: rank-4 tensor in the layout `data_format`.
        divisor: positive integer, in pixels.
        data_format: `"channels_last"` or `"channels_first"`.

    Returns:
        `inputs`, unchanged. Where TensorFlow traces with an unknown size, the check is part of
        the graph and raises `tf.errors.InvalidArgumentError` when the graph runs.

    Raises:
        ValueError: if a known height or width is not a multiple of `divisor`.
    """
    axes = (1, 2) if data_format == "channels_last" else (2, 3)
    height, width = (inputs.shape[axis] for axis in axes)
    wanted = f"Image height and width must be multiples of {divisor}"
    for size in (height, width):
        if isinstance(size, int) and size % divisor:
            raise ValueError(f"{wanted}, got {height} x {width}: pad or resize the images first.")
    if (height is None or width is None) and keras.config.backend() == "tensorflow":
        # A symbolic KerasTensor also has None here; only a graph tensor can carry an assertion.
        if isinstance(inputs, keras.KerasTensor):
            return inputs
        import tensorflow as tf

        sizes = tf.gather(ops.shape(inputs), axes)
        check = tf.debugging.assert_equal(sizes % divisor, 0, message=f"{wanted}.")
        with tf.control_dependencies([check] if check is not None else []):
            inputs = tf.identity(inputs)
    return inputs
