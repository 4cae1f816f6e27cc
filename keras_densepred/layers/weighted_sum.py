"""Fast normalised fusion of maps: a mean whose weights are learned."""

import keras
from keras import ops


@keras.saving.register_keras_serializable(package="keras_densepred")
class WeightedSum(keras.layers.Layer):
    """`sum(w * x) / (sum(w) + 1e-4)` over maps of one shape, `w` learned and not negative.

    Tan et al., "EfficientDet" (CVPR 2020), section 3.3. Weights start at 1 each.

    Input: a list of maps `(batch, height, width, channels)`. Output: a map like them.
    """

    def build(self, input_shape):
        self.weight = self.add_weight(name="weight", shape=(len(input_shape),), initializer="ones")

    def call(self, inputs):
        weights = ops.relu(self.weight)
        weights = weights / (ops.sum(weights) + 1e-4)
        return sum(weights[index] * x for index, x in enumerate(inputs))

    def compute_output_shape(self, input_shape):
        return input_shape[0]
