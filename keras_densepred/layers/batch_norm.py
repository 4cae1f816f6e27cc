"""Batch normalisation over the whole batch of a step, however many devices share it."""

import keras

from keras_densepred.ops.replicas import batch_moments


@keras.saving.register_keras_serializable(package="keras_densepred")
class BatchNorm(keras.layers.BatchNormalization):
    """`keras.layers.BatchNormalization` whose statistics are of all devices' rows ("SyncBN").

    The same weights, arguments and, on one device, the same results. With the devices of
    `training.distribute` the results are those of one device on the whole batch, on every backend:
    Keras 3.15.1 takes `synchronized=True` on TensorFlow only, and on JAX statistics are of the
    whole batch in any case. Masked batches, which images are not, have statistics per device.
    """

    def _moments(self, inputs, mask):
        if mask is not None:
            return super()._moments(inputs, mask)
        return batch_moments(inputs, tuple(self._reduction_axes))
