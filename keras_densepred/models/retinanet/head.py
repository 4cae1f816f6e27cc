"""Prediction heads of dense detectors."""

import math
from collections.abc import Sequence
from typing import Any

import keras
from keras import layers

from keras_densepred.faults import require_positive
from keras_densepred.layers.conv_norm import ConvNorm
from keras_densepred.layers.depthwise_conv import DepthwiseConv
from keras_densepred.layers.initializers import FanInNormal
from keras_densepred.models.anchors import ANCHORS_PER_CELL

Tensor = Any

# RetinaNet draws all kernels of its heads from N(0, 0.01), at 256 filters ("Focal Loss for Dense
# Object Detection", 4.1). Hidden convolutions of other widths keep the gain, sqrt(256) * 0.01, so
# that a narrow head does not start with a vanishing signal.
PREDICTION_STDDEV = 0.01
HIDDEN_GAIN = 0.16

FOCAL_PRIOR = 0.01  # every anchor starts as background ("Focal Loss ...", 3.3)


@keras.saving.register_keras_serializable(package="keras_densepred")
class PredictionHead(keras.layers.Layer):
    """RetinaNet's convolutional head, shared by all levels of a pyramid.

    `depth` 3x3 convolutions of `width` filters with activation, then a 3x3 convolution to
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
        activation: what follows a hidden convolution, `"relu"` or `"swish"`.
        separable: whether each convolution is a 3x3 depthwise and a 1x1 one (BiCSNet-Lite).
        norm_levels: names of the levels, if each hidden convolution is followed by a batch norm,
            of which every level has its own (SpineNet and BiCSNet); the convolutions are shared.
        sync_batch_norm: whether replicas share the statistics of a batch in training.
    """

    def __init__(
        self,
        output_filters: int,
        width: int = 256,
        depth: int = 4,
        prior_probability: float | None = None,
        hidden_initializer: Any = None,
        activation: str = "relu",
        separable: bool = False,
        norm_levels: Sequence[str] = (),
        sync_batch_norm: bool = False,
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
        self.activation = activation
        self.separable = separable
        self.norm_levels = tuple(norm_levels)
        self.sync_batch_norm = sync_batch_norm
        # Activation and norm are layers of their own only where there is a norm between.
        fused = None if self.norm_levels else activation
        self.hidden = [
            self._conv(width, f"hidden_{i}", self.hidden_initializer.clone(), activation=fused)
            for i in range(depth)
        ]
        self.prediction = self._conv(
            output_filters,
            "prediction",
            keras.initializers.RandomNormal(stddev=PREDICTION_STDDEV),
            bias_initializer=keras.initializers.Constant(bias),
        )
        names = [f"hidden_{i}" for i in range(depth)] + ["prediction"]
        self.depthwise = [self._depthwise(name) for name in names] if separable else []
        kit = ConvNorm(activation, sync_batch_norm=sync_batch_norm, dtype=self.dtype_policy)
        # Level by level in one list: Keras saves no layers of lists in lists.
        self.norms = [
            kit.norm_layer(f"hidden_{i}_norm_{level.lower()}")
            for level in self.norm_levels
            for i in range(depth)
        ]

    def _conv(
        self, filters: int, name: str, kernel_initializer: Any, **kwargs: Any
    ) -> layers.Layer:
        return layers.Conv2D(
            filters,
            1 if self.separable else 3,
            padding="same",
            kernel_initializer=kernel_initializer,
            data_format="channels_last",
            dtype=self.dtype_policy,
            name=name,
            **kwargs,
        )

    def _depthwise(self, name: str) -> layers.Layer:
        return DepthwiseConv(
            3,
            use_bias=False,
            kernel_initializer=FanInNormal(fan_in=9),
            dtype=self.dtype_policy,
            name=f"{name}_depthwise",
        )

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        shape = tuple(input_shape)
        for i, layer in enumerate((*self.hidden, self.prediction)):
            if self.separable:
                self.depthwise[i].build(shape)
            layer.build(shape)
            shape = (*shape[:-1], layer.filters)
        for norm in self.norms:
            norm.build((*shape[:-1], self.width))

    def call(self, features: Tensor, level: str | None = None) -> Tensor:
        """(B, H, W, channels) -> (B, H, W, output_filters); norms are those of `level`."""
        for i, layer in enumerate(self.hidden):
            features = layer(self._before(i, features))
            if self.norm_levels:
                norm = self.norms[self.norm_levels.index(level) * self.depth + i]
                features = norm(features)
                features = keras.activations.get(self.activation)(features)
        return self.prediction(self._before(len(self.hidden), features))

    def _before(self, index: int, features: Tensor) -> Tensor:
        return self.depthwise[index](features) if self.separable else features

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        return (*input_shape[:-1], self.output_filters)

    def multiply_adds(self, output_shape: tuple[int, ...], norms: bool = False) -> int:
        """Multiply-adds of one call, as `metrics.count_multiply_adds` asks for them.

        Args:
            output_shape: (H, W, output_filters).
            norms: whether elements of the norms count, each as one.

        Returns:
            The number of multiply-adds.
        """
        convs = (*self.hidden, self.prediction, *self.depthwise)
        per_position = sum(math.prod(layer.kernel.shape) for layer in convs)
        if norms and self.norm_levels:
            per_position += self.width * self.depth
        return math.prod(output_shape[:-1]) * per_position

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "output_filters": self.output_filters,
            "width": self.width,
            "depth": self.depth,
            "prior_probability": self.prior_probability,
            "hidden_initializer": keras.initializers.serialize(self.hidden_initializer),
            "activation": self.activation,
            "separable": self.separable,
            "norm_levels": self.norm_levels,
            "sync_batch_norm": self.sync_batch_norm,
        }


def build_heads(
    num_classes: int, width: int, depth: int, initializer: Any, dtype: Any, **kwargs: Any
) -> tuple[PredictionHead, PredictionHead]:
    """The box head and the classification head, both shared by all levels.

    Args:
        num_classes: C.
        width: filters of each hidden convolution.
        depth: number of hidden convolutions.
        initializer: of the hidden kernels; None for the paper's.
        dtype: dtype policy.
        **kwargs: further arguments of `PredictionHead`, the same for both.

    Returns:
        The two heads.

    Raises:
        ValueError: if a number is out of range.
    """
    require_positive(num_classes=num_classes, head_width=width)
    if depth < 0:
        raise ValueError(f"`head_depth` is {depth}; give 0 or a positive integer.")
    box_head = PredictionHead(
        ANCHORS_PER_CELL * 4,
        width,
        depth,
        hidden_initializer=initializer,
        dtype=dtype,
        name="box_head",
        **kwargs,
    )
    classification_head = PredictionHead(
        ANCHORS_PER_CELL * num_classes,
        width,
        depth,
        prior_probability=FOCAL_PRIOR,
        hidden_initializer=initializer,
        dtype=dtype,
        name="classification_head",
        **kwargs,
    )
    return box_head, classification_head


def predict_levels(
    features: dict[str, Tensor],
    num_classes: int,
    box_head: PredictionHead,
    classification_head: PredictionHead,
    box_name: str,
    classification_name: str,
) -> dict[str, Tensor]:
    """Runs the heads on every level and lines the anchors up.

    Args:
        features: level to map (B, H, W, channels), finest first.
        num_classes: C.
        box_head: head with 4 values for each anchor.
        classification_head: head with C values for each anchor.
        box_name: key (and layer name) of the deltas in the result.
        classification_name: key (and layer name) of the logits in the result.

    Returns:
        Deltas (B, A, 4) and logits (B, A, C), float32.
    """
    boxes, logits = [], []
    for level, feature in features.items():
        # float32 from here on: losses and decoding are not for half precision.
        reshape = keras.layers.Reshape((-1, 4), name=f"box_{level}", dtype="float32")
        boxes.append(reshape(box_head(feature, level=level)))
        reshape = keras.layers.Reshape(
            (-1, num_classes), name=f"classification_{level}", dtype="float32"
        )
        logits.append(reshape(classification_head(feature, level=level)))
    outputs = {box_name: boxes, classification_name: logits}
    return {
        name: keras.layers.Concatenate(axis=1, name=name, dtype="float32")(parts)
        for name, parts in outputs.items()
    }
