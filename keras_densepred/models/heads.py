"""Prediction heads of dense detectors."""

import math
from typing import Any

import keras

Tensor = Any

# RetinaNet draws all kernels of its heads from N(0, 0.01), at 256 filters ("Focal Loss for Dense
# Object Detection", 4.1). Hidden convolutions of other widths keep the gain, sqrt(256) * 0.01, so
# that a narrow head does not start with a vanishing signal.
PREDICTION_STDDEV = 0.01
HIDDEN_GAIN = 0.16


@keras.saving.register_keras_serializable(package="keras_densepred")
class PredictionHead(keras.layers.Layer):
    """RetinaNet's convolutional head, shared by all levels of a pyramid.

    `depth` 3x3 convolutions of `width` filters with ReLU, then a 3x3 convolution to
    `output_filters`. Used in both hosts' models: keras-hub 0.32.0 fixes the width of its own at
    256, gives the focal prior to the box head and draws kernels from N(0, 0.05) (first loss 150 to
    450); keras-cv 0.9.0 fixes the width at 256 and starts orthogonal.

    Args:
        output_filters: channels of the result, anchors of a cell times values of an anchor.
        width: filters of each hidden convolution.
        depth: number of hidden convolutions.
        prior_probability: probability that a sigmoid of the output starts with; `None` starts the
            output at 0. RetinaNet: 0.01 for classes, `None` for boxes.
        hidden_initializer: Keras initializer of the hidden kernels; `None` is RetinaNet's normal
            distribution, which shrinks the signal to a third at each convolution.
    """

    def __init__(
        self,
        output_filters: int,
        width: int = 256,
        depth: int = 4,
        prior_probability: float | None = None,
        hidden_initializer: Any = None,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.output_filters = output_filters
        self.width = width
        self.depth = depth
        self.prior_probability = prior_probability
        if hidden_initializer is None:
            hidden_initializer = keras.initializers.RandomNormal(
                stddev=HIDDEN_GAIN / math.sqrt(width)
            )
        self.hidden_initializer = keras.initializers.get(hidden_initializer)
        bias = 0.0
        if prior_probability is not None:
            bias = -math.log((1.0 - prior_probability) / prior_probability)
        self.hidden = [
            keras.layers.Conv2D(
                width,
                3,
                padding="same",
                activation="relu",
                kernel_initializer=self.hidden_initializer.clone(),
                data_format="channels_last",
                dtype=self.dtype_policy,
                name=f"hidden_{i}",
            )
            for i in range(depth)
        ]
        self.prediction = keras.layers.Conv2D(
            output_filters,
            3,
            padding="same",
            kernel_initializer=keras.initializers.RandomNormal(stddev=PREDICTION_STDDEV),
            bias_initializer=keras.initializers.Constant(bias),
            data_format="channels_last",
            dtype=self.dtype_policy,
            name="prediction",
        )

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        shape = tuple(input_shape)
        for layer in self.hidden:
            layer.build(shape)
            shape = (*shape[:-1], self.width)
        self.prediction.build(shape)

    def call(self, features: Tensor) -> Tensor:
        """(B, H, W, channels) -> (B, H, W, output_filters)."""
        for layer in self.hidden:
            features = layer(features)
        return self.prediction(features)

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        return (*input_shape[:-1], self.output_filters)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "output_filters": self.output_filters,
            "width": self.width,
            "depth": self.depth,
            "prior_probability": self.prior_probability,
            "hidden_initializer": keras.initializers.serialize(self.hidden_initializer),
        }
