"""Weights that are split over the devices which share out the rows of a batch (FSDP, ZeRO).

Every device holds a share of each large weight, of its moments and of its average, has the whole
weight for as long as the step computes with it, and updates its share. XLA adds what is exchanged.
Xu et al., "Automatic Cross-Replica Sharding of Weight Update in Data-Parallel Training" (2020), and
Rajbhandari et al., "ZeRO" (2020), whose third stage this is.
"""

import math
from typing import Any

import keras

# Numbers of a weight from which it is split: what smaller ones take is not worth an exchange.
SMALLEST = 2**14


class ShardedWeights(keras.distribution.DataParallel):
    """Keras' data parallelism, with weights split by their shapes.

    `keras.distribution.ModelParallel` asks for a layout by the name of every weight. A weight's
    shape says enough: whatever the network, host or head.
    """

    def get_variable_layout(self, variable: keras.Variable) -> keras.distribution.TensorLayout:
        """Where a variable lies, of which Keras asks as it makes it."""
        layout = super().get_variable_layout(variable)
        axis = split_axis(variable.shape, self.num_model_replicas)
        if axis is None or any(layout.axes):
            return layout
        axes = [None] * len(variable.shape)
        axes[axis] = self.batch_dim_name
        return keras.distribution.TensorLayout(axes, self.device_mesh)


def split_axis(shape: tuple[Any, ...], devices: int) -> int | None:
    """The axis along which a weight is split: the longest that splits evenly.

    Args:
        shape: of the weight, axes in any order.
        devices: to split it over.

    Returns:
        Its number, or None for a weight that every device has as a whole.
    """
    if math.prod(shape) < SMALLEST:
        return None
    fitting = [axis for axis, size in enumerate(shape) if size % devices == 0]
    return max(fitting, key=lambda axis: shape[axis], default=None)
