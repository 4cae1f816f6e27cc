"""Up-sampling: bilinear, nearest to the size of another map, and by a transposed convolution."""

import keras
from keras import ops

from keras_densepred.layers.initializers import FanOutNormal
from keras_densepred.layers.stateless import Stateless
from keras_densepred.ops.resize import (
    resize_bilinear,
    scale_bilinear,
    upsample_bilinear,
    upsample_nearest,
)


@keras.saving.register_keras_serializable(package="keras_densepred")
class BilinearUpsample(keras.layers.UpSampling2D):
    """Doubles height and width of `(batch, height, width, channels)`, with half-pixel centres."""

    def __init__(self, **kwargs):
        for fixed in ("size", "data_format", "interpolation"):
            kwargs.pop(fixed, None)
        super().__init__(2, data_format="channels_last", interpolation="bilinear", **kwargs)

    def call(self, inputs):
        if None not in inputs.shape[1:3]:
            return super().call(inputs)
        # keras 3.15.1 on TensorFlow: UpSampling2D compares sizes in Python, and so fails in a
        # graph that does not know them.
        return scale_bilinear(inputs, 2)


@keras.saving.register_keras_serializable(package="keras_densepred")
class NearestUpsample(Stateless, keras.layers.Layer):
    """Repeats the positions of a map and cuts it to the size of another, finer one.

    Input: a map `(batch, height, width, channels)` and a map of a stride `factor` times as fine,
    of which only the size is read. Output: `(batch, fine_height, fine_width, channels)`.

    Args:
        factor: how often each position is repeated along both axes.
    """

    def __init__(self, factor: int = 2, **kwargs):
        super().__init__(**kwargs)
        self.factor = factor

    def call(self, inputs, fine):
        return upsample_nearest(inputs, self.factor, ops.shape(fine)[1:3])

    def compute_output_shape(self, inputs_shape, fine_shape):
        return (inputs_shape[0], *fine_shape[1:3], inputs_shape[-1])

    def get_config(self):
        return {**super().get_config(), "factor": self.factor}


@keras.saving.register_keras_serializable(package="keras_densepred")
class TransposedConv(Stateless, keras.layers.Layer):
    """Transposed convolution whose windows do not overlap: kernel and strides are `factor`.

    Each position becomes `factor` x `factor` others: a matrix product and a rearrangement. The
    weights are those of `keras.layers.Conv2DTranspose`, whose gradient takes XLA 2.3 s on CPU where
    this one takes 0.2: 256 maps of 14x14, 64 to 64 channels.

    Input: `(batch, height, width, channels)`. Output: `(batch, factor * height, factor * width,
    filters)`.

    Args:
        filters: number of output channels.
        factor: how many times as high and wide the output is.
        kernel_initializer: Keras initializer of the kernel, which has the shape `(factor, factor,
            filters, channels)`; None is `FanOutNormal`.
    """

    def __init__(self, filters: int, factor: int = 2, kernel_initializer=None, **kwargs):
        super().__init__(**kwargs)
        self.filters = filters
        self.factor = factor
        self.kernel_initializer = keras.initializers.get(kernel_initializer) or FanOutNormal()

    def build(self, input_shape):
        self.kernel = self.add_weight(
            name="kernel",
            shape=(self.factor, self.factor, self.filters, input_shape[-1]),
            initializer=self.kernel_initializer,
        )
        self.bias = self.add_weight(name="bias", shape=(self.filters,), initializer="zeros")

    def call(self, inputs):
        _, height, width, channels = ops.shape(inputs)
        factor, filters = self.factor, self.filters
        kernel = ops.transpose(ops.reshape(self.kernel, (-1, channels)))
        windows = ops.matmul(ops.reshape(inputs, (-1, channels)), kernel)
        windows = ops.reshape(windows, (-1, height, width, factor, factor, filters)) + self.bias
        windows = ops.transpose(windows, (0, 1, 3, 2, 4, 5))
        return ops.reshape(windows, (-1, factor * height, factor * width, filters))

    def compute_output_shape(self, input_shape):
        batch, *sizes, _ = input_shape
        sizes = [None if size is None else self.factor * size for size in sizes]
        return (batch, *sizes, self.filters)

    def get_config(self):
        return {
            **super().get_config(),
            "filters": self.filters,
            "factor": self.factor,
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
        }


@keras.saving.register_keras_serializable(package="keras_densepred")
class PyramidMean(keras.layers.Layer):
    """The mean of all levels of a pyramid at the size of its finest, nearest up-sampled.

    Each level is doubled and added to the next finer one: up-sampling by 4 is up-sampling by 2
    twice, and the coarse levels are then never held at the finest size.

    Input: a list of maps `(batch, height, width, channels)`, finest first, each of half the size of
    the one before, rounded up. Output: a map like the first.
    """

    def call(self, levels):
        total = levels[-1]
        for fine in reversed(levels[:-1]):
            total = fine + upsample_nearest(total, 2, ops.shape(fine)[1:3])
        return total / len(levels)

    def compute_output_shape(self, level_shapes):
        return level_shapes[0]

    def get_config(self):  # Keras' own gives none where the dtype is a policy
        return super().get_config()


@keras.saving.register_keras_serializable(package="keras_densepred")
class UpsampleToImage(keras.layers.Layer):
    """Scales a map of stride `factor` up bilinearly and cuts it to the size of the image.

    Input: a map `(batch, ceil(height / factor), ceil(width / factor), channels)` and the images
    `(batch, height, width, any)`, of which only the size is read. Output: `(batch, height, width,
    channels)`, in float32 whatever the network computes in, if the layer's dtype is that.

    Args:
        factor: input pixels per position of the map.
    """

    def __init__(self, factor: int, **kwargs):
        super().__init__(**kwargs)
        self.factor = factor

    def call(self, inputs, images):
        return upsample_bilinear(inputs, self.factor, ops.shape(images)[1:3])

    def compute_output_shape(self, inputs_shape, images_shape):
        return (inputs_shape[0], *images_shape[1:3], inputs_shape[-1])

    def get_config(self):
        return {**super().get_config(), "factor": self.factor}


@keras.saving.register_keras_serializable(package="keras_densepred")
class ResizeLike(Stateless, keras.layers.Layer):
    """Resizes a map bilinearly, with half-pixel centres, to the exact size of another one.

    Input: a map `(batch, height, width, channels)`, and one of which only the size is read. Output:
    `(batch, other_height, other_width, channels)`.
    """

    def call(self, inputs, like):
        size = tuple(ops.shape(like)[1:3])
        known = all(isinstance(side, int) for side in size)
        if known and tuple(inputs.shape[1:3]) == size:
            return inputs
        return resize_bilinear(inputs, size)

    def compute_output_shape(self, inputs_shape, like_shape):
        return (inputs_shape[0], *like_shape[1:3], inputs_shape[-1])


@keras.saving.register_keras_serializable(package="keras_densepred")
class BroadcastLike(Stateless, keras.layers.Layer):
    """A map of one position `(batch, 1, 1, channels)` repeated to the size of another map."""

    def call(self, inputs, like):
        batch, height, width, _ = ops.shape(like)
        return ops.broadcast_to(inputs, (batch, height, width, inputs.shape[-1]))

    def compute_output_shape(self, inputs_shape, like_shape):
        return (*like_shape[:-1], inputs_shape[-1])
