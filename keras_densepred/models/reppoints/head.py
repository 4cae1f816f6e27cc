"""RepPoints' head: two towers, points, and deformable convolutions that read at these points."""

import math
from typing import Any

import keras
from keras import ops

from keras_densepred.layers.conv import Conv, Pointwise
from keras_densepred.layers.initializers import FixedNormal
from keras_densepred.layers.norm import group_norm
from keras_densepred.models.reppoints.points import NUM_POINTS, points_to_boxes
from keras_densepred.models.retinanet.head import FOCAL_PRIOR, HIDDEN_GAIN, PREDICTION_STDDEV
from keras_densepred.ops.deformable_conv import deformable_conv

Tensor = Any

_POINT_GRADIENT = 0.1  # of what the second stage gives the first ("gradient_mul")


@keras.saving.register_keras_serializable(package="keras_densepred")
class RepPointsHead(keras.layers.Layer):
    """Classes and two sets of nine points for each place of a map, shared by all levels.

    The first points say where the deformable convolutions of the second stage read. There the
    second points, as shifts of the first, and the class logits come from.

    Kernels start at N(0, 0.01) at 256 channels, and with the same gain at other widths, unless
    told otherwise.

    Args:
        num_classes: C.
        width: channels of all hidden maps.
        depth: 3x3 convolutions of each tower.
        transform: from points to boxes, see `points_to_boxes`.
        norm: whether group norms (of 32 groups, or as many as divide the width) take the place of
            the towers' biases.
        hidden_initializer: Keras initializer of all kernels but those of the outputs; see above.
    """

    def __init__(
        self,
        num_classes: int,
        width: int = 256,
        depth: int = 3,
        transform: str = "moment",
        norm: bool = False,
        hidden_initializer: Any = None,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        if hidden_initializer is None:
            hidden_initializer = FixedNormal(HIDDEN_GAIN / math.sqrt(width))
        self.hidden_initializer = keras.initializers.get(hidden_initializer)
        self.num_classes = num_classes
        self.width = width
        self.depth = depth
        self.transform = transform
        self.norm = norm
        self.class_tower = self._tower("class")
        self.point_tower = self._tower("point")
        self.init_conv = self._conv("init_conv", True)
        self.init_points = self._output("init_points", 2 * NUM_POINTS)
        self.refined_points = self._output("refined_points", 2 * NUM_POINTS)
        self.logits = self._output(
            "logits", num_classes, bias=-math.log((1.0 - FOCAL_PRIOR) / FOCAL_PRIOR)
        )

    def _hidden_start(self) -> Any:
        return self.hidden_initializer.clone()

    def _conv(self, name: str, use_bias: bool) -> keras.layers.Layer:
        start = self._hidden_start()
        return Conv(self.width, 3, 1, use_bias, start, name=name, dtype=self.dtype_policy)

    def _tower(self, name: str) -> list[keras.layers.Layer]:
        tower = []
        for i in range(self.depth):
            tower.append(self._conv(f"{name}_conv_{i}", not self.norm))
            if self.norm:
                tower.append(group_norm(f"{name}_norm_{i}", self.width, self.dtype_policy))
            tower.append(keras.layers.ReLU(name=f"{name}_act_{i}", dtype=self.dtype_policy))
        return tower

    def _output(self, name: str, filters: int, bias: float = 0.0) -> keras.layers.Layer:
        return Pointwise(
            filters,
            kernel_initializer=FixedNormal(PREDICTION_STDDEV),
            bias_initializer=keras.initializers.Constant(bias),
            name=name,
            dtype=self.dtype_policy,
        )

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        hidden = (*input_shape[:-1], self.width)
        for tower in (self.class_tower, self.point_tower):
            shape = tuple(input_shape)
            for layer in tower:
                layer.build(shape)
                shape = hidden
        for layer in (self.init_conv, self.init_points, self.refined_points, self.logits):
            layer.build(hidden)
        kernel = dict(shape=(3, 3, self.width, self.width), initializer=self._hidden_start())
        self.class_kernel = self.add_weight(name="class_kernel", **kernel)
        self.refine_kernel = self.add_weight(name="refine_kernel", **kernel)
        # Float32 in any policy: it decides every box.
        self.moment_transfer = self.add_weight(
            name="moment_transfer", shape=(2,), initializer="zeros", dtype="float32", autocast=False
        )

    def points(self, feature: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits (B, H, W, C), and first and second points (B, H, W, 18) float32, in cells."""
        classes = places = feature
        for layer in self.class_tower:
            classes = layer(classes)
        for layer in self.point_tower:
            places = layer(places)
        init = self.init_points(ops.relu(self.init_conv(places)))
        init = ops.cast(init, "float32")
        fixed = ops.stop_gradient(init)
        shift = (1.0 - _POINT_GRADIENT) * fixed + _POINT_GRADIENT * init
        # Tap (row, column) of the kernel is there already.
        taps = [(k // 3 - 1, k % 3 - 1) for k in range(NUM_POINTS)]
        offsets = shift - ops.convert_to_tensor([float(c) for tap in taps for c in tap], "float32")
        classes = deformable_conv(classes, offsets, self.class_kernel, padding=1)
        refined = deformable_conv(places, offsets, self.refine_kernel, padding=1)
        refined = self.refined_points(ops.relu(refined))
        return (
            self.logits(ops.relu(classes)),
            init,
            ops.cast(refined, "float32") + fixed,
        )

    def call(self, feature: Tensor, stride: int) -> tuple[Tensor, Tensor, Tensor]:
        """Of one level.

        Args:
            feature: (B, H, W, channels).
            stride: pixels from cell to cell.

        Returns:
            Logits (B, H * W, C), and the boxes of the first and the second points (B, H * W, 4)
            xyxy in pixels, not clipped; float32.
        """
        logits, *points = self.points(feature)
        height, width = ops.shape(feature)[1:3]
        y = ops.arange(height, dtype="float32")[:, None, None]
        x = ops.arange(width, dtype="float32")[None, :, None]
        places = ops.concatenate([x + 0.0 * y, y + 0.0 * x] * 2, axis=-1)
        transfer = ops.convert_to_tensor(self.moment_transfer)
        boxes = [
            ops.reshape(
                (points_to_boxes(part, self.transform, transfer) + places) * float(stride),
                (-1, height * width, 4),
            )
            for part in points
        ]
        logits = ops.reshape(ops.cast(logits, "float32"), (-1, height * width, self.num_classes))
        return logits, *boxes

    def compute_output_spec(
        self, feature: keras.KerasTensor, stride: int
    ) -> tuple[keras.KerasTensor, ...]:
        batch, height, width = feature.shape[:3]
        places = None if height is None or width is None else height * width
        return tuple(
            keras.KerasTensor((batch, places, last), "float32") for last in (self.num_classes, 4, 4)
        )

    def multiply_adds(self, output_shape: tuple[int, ...], norms: bool = False) -> int:
        """Multiply-adds of one call, as `metrics.count_multiply_adds` asks for them."""
        kernels = sum(math.prod(w.shape) for w in self.weights if w.name.endswith("kernel"))
        return output_shape[0] * kernels

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "num_classes": self.num_classes,
            "width": self.width,
            "depth": self.depth,
            "transform": self.transform,
            "norm": self.norm,
            "hidden_initializer": keras.initializers.serialize(self.hidden_initializer),
        }
