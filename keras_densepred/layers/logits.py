"""The last layer of a segmentation network: logits at the size of the image."""

import keras
from keras import ops

from keras_densepred.ops.bilinear import upsample_bilinear


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
