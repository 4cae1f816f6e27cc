"""Nearest-neighbour up-sampling of channels-last maps to a size that need not be a multiple."""

import keras
from keras import KerasTensor, ops


def upsample_nearest(inputs, factor: int, size: tuple):
    """Repeats every position `factor` times along both axes and cuts the result to `size`.

    Position `i` of the result is position `i // factor` of the input. A map of stride `s` thus
    meets one of stride `s / factor` whatever the size of the image: their sides are
    `ceil(image / s)` and `ceil(image / (s / factor))`, of which the first is `ceil(second /
    factor)`. Scaling to the size instead would shift positions where they do not divide.

    Args:
        inputs: float tensor `(batch, height, width, channels)`.
        factor: positive integer.
        size: height and width of the result, at most `factor` times those of `inputs`; integers,
            or scalar tensors where TensorFlow traces unknown sizes.

    Returns:
        `(batch, *size, channels)` in the dtype of `inputs`.
    """
    if keras.config.backend() == "torch" and not isinstance(inputs, KerasTensor):
        import torch.nn.functional as functional

        # Channels-last maps seen as NCHW are torch's own channels_last memory format: no copies.
        outputs = functional.interpolate(inputs.permute(0, 3, 1, 2), scale_factor=float(factor))
        outputs = outputs.permute(0, 2, 3, 1)
    else:
        batch, height, width, channels = ops.shape(inputs)
        pairs = ops.broadcast_to(
            ops.reshape(inputs, (batch, height, 1, width, 1, channels)),
            (batch, height, factor, width, factor, channels),
        )
        outputs = ops.reshape(pairs, (batch, height * factor, width * factor, channels))
    if all(isinstance(side, int) for side in size) and tuple(outputs.shape[1:3]) == tuple(size):
        return outputs
    return outputs[:, : size[0], : size[1]]
