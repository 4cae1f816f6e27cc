"""The heads of two-stage detectors: region proposals, boxes, masks."""

import math
from typing import Any

import keras
from keras import ops

from keras_densepred.layers.conv import Conv, Pointwise
from keras_densepred.layers.initializers import FanOutNormal, FixedNormal, XavierUniform
from keras_densepred.layers.norm import batch_norm
from keras_densepred.layers.upsampling import TransposedConv

Tensor = Any

BOX_SIZE = 7  # bins on a side that box heads see
MASK_SIZE = 14  # and mask heads, which double it


@keras.saving.register_keras_serializable(package="keras_densepred")
class RegionProposalHead(keras.layers.Layer):
    """Which anchors hold an object, and where in them it is ("Faster R-CNN", section 3.1).

    A 3x3 convolution with ReLU and two 1x1 convolutions, shared by all levels.

    Args:
        num_anchors: anchors of a cell.
        width: filters of the 3x3 convolution.
    """

    def __init__(self, num_anchors: int = 3, width: int = 256, **kwargs: Any):
        super().__init__(**kwargs)
        self.num_anchors = num_anchors
        self.width = width
        # All from N(0, 0.01), as the paper has it.
        self.hidden = Conv(
            width, 3, kernel_initializer=FixedNormal(0.01), name="hidden", dtype=self.dtype_policy
        )
        self.objectness = _dense(num_anchors, "objectness", FixedNormal(0.01), self.dtype_policy)
        self.deltas = _dense(4 * num_anchors, "deltas", FixedNormal(0.01), self.dtype_policy)

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        self.hidden.build(input_shape)
        shape = (*input_shape[:-1], self.width)
        self.objectness.build(shape)
        self.deltas.build(shape)

    def call(self, feature: Tensor) -> tuple[Tensor, Tensor]:
        """(B, H, W, channels) -> logits (B, H, W, anchors) and deltas (B, H, W, 4 * anchors)."""
        x = ops.relu(self.hidden(feature))
        return self.objectness(x), self.deltas(x)

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple:
        *sizes, _ = input_shape
        return (*sizes, self.num_anchors), (*sizes, 4 * self.num_anchors)

    def multiply_adds(self, output_shape: tuple[int, ...], norms: bool = False) -> int:
        """Multiply-adds of one call, as `metrics.count_multiply_adds` asks for them."""
        kernels = (self.hidden.kernel, self.objectness.kernel, self.deltas.kernel)
        return math.prod(output_shape[:-1]) * sum(math.prod(k.shape) for k in kernels)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "num_anchors": self.num_anchors, "width": self.width}


@keras.saving.register_keras_serializable(package="keras_densepred")
class BoxHead(keras.layers.Layer):
    """What is in a region, and where in it.

    3x3 convolutions, then fully connected layers, each with ReLU; then class logits and deltas.
    Faster, Mask and Cascade R-CNN have two fully connected layers; CEDNet's Cascade four
    convolutions with batch norm and one fully connected layer.

    Args:
        num_classes: C, without background.
        num_convs: number of 3x3 convolutions.
        num_fcs: number of fully connected layers.
        conv_width: filters of the convolutions.
        fc_width: units of the fully connected layers.
        norm: whether the convolutions have batch norms, and then no biases.
        sync_batch_norm: whether replicas share the statistics of a batch in training.
        class_agnostic: whether there is one box for a region, or one for each class.
        regression: whether there are boxes at all.
    """

    def __init__(
        self,
        num_classes: int,
        num_convs: int = 0,
        num_fcs: int = 2,
        conv_width: int = 256,
        fc_width: int = 1024,
        norm: bool = False,
        sync_batch_norm: bool = False,
        class_agnostic: bool = False,
        regression: bool = True,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.num_classes = num_classes
        self.num_convs = num_convs
        self.num_fcs = num_fcs
        self.conv_width = conv_width
        self.fc_width = fc_width
        self.norm = norm
        self.sync_batch_norm = sync_batch_norm
        self.class_agnostic = class_agnostic
        self.regression = regression
        dtype = self.dtype_policy
        self.convs = [
            Conv(
                conv_width,
                3,
                use_bias=not norm,
                kernel_initializer=FanOutNormal(gain=math.sqrt(2.0)),
                name=f"conv{i + 1}",
                dtype=dtype,
            )
            for i in range(num_convs)
        ]
        self.norms = [
            batch_norm(f"norm{i + 1}", 0.9, 1e-5, sync_batch_norm, dtype)
            for i in range(num_convs if norm else 0)
        ]
        self.fcs = [_dense(fc_width, f"fc{i + 1}", XavierUniform(), dtype) for i in range(num_fcs)]
        self.classes = _dense(num_classes + 1, "classes", FixedNormal(0.01), dtype)
        self.deltas = (
            _dense(4 * self.num_boxes, "deltas", FixedNormal(0.001), dtype) if regression else None
        )

    @property
    def num_boxes(self) -> int:
        """Boxes of a region."""
        return 1 if self.class_agnostic else self.num_classes

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        shape = tuple(input_shape)
        for i, conv in enumerate(self.convs):
            conv.build(shape)
            shape = (*shape[:-1], self.conv_width)
            if self.norm:
                self.norms[i].build(shape)
        flat: tuple[Any, ...] = (shape[0], math.prod(size or 0 for size in shape[1:]))
        for fc in self.fcs:
            fc.build(flat)
            flat = (shape[0], self.fc_width)
        self.classes.build(flat)
        if self.deltas is not None:
            self.deltas.build(flat)

    def call(self, regions: Tensor, training: bool | None = None) -> tuple[Tensor, Tensor]:
        """Classifies regions.

        Args:
            regions: (R, 7, 7, channels).
            training: as of any layer.

        Returns:
            Logits (R, C + 1), the last of the background, and deltas (R, boxes, 4), both float32;
            None for these without `regression`.
        """
        x = regions
        for i, conv in enumerate(self.convs):
            x = conv(x)
            if self.norm:
                x = self.norms[i](x, training=training)
            x = ops.relu(x)
        x = ops.reshape(x, (-1, math.prod(x.shape[1:])))
        for fc in self.fcs:
            x = ops.relu(fc(x))
        logits = ops.cast(self.classes(x), "float32")
        if self.deltas is None:
            return logits, None
        deltas = ops.reshape(self.deltas(x), (-1, self.num_boxes, 4))
        return logits, ops.cast(deltas, "float32")

    def compute_output_spec(self, regions: Tensor, training: bool | None = None) -> tuple:
        rows = regions.shape[0]
        return (
            keras.KerasTensor((rows, self.num_classes + 1), "float32"),
            keras.KerasTensor((rows, self.num_boxes, 4), "float32") if self.regression else None,
        )

    def multiply_adds(self) -> int:
        """Multiply-adds of one region."""
        convs = sum(math.prod(conv.kernel.shape) for conv in self.convs)
        last = [self.classes] if self.deltas is None else [self.classes, self.deltas]
        dense = sum(math.prod(fc.kernel.shape) for fc in (*self.fcs, *last))
        return BOX_SIZE**2 * convs + dense

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "num_classes": self.num_classes,
            "num_convs": self.num_convs,
            "num_fcs": self.num_fcs,
            "conv_width": self.conv_width,
            "fc_width": self.fc_width,
            "norm": self.norm,
            "sync_batch_norm": self.sync_batch_norm,
            "class_agnostic": self.class_agnostic,
            "regression": self.regression,
        }


@keras.saving.register_keras_serializable(package="keras_densepred")
class MaskHead(keras.layers.Layer):
    """The mask of a region's object ("Mask R-CNN", figure 4, right).

    3x3 convolutions, a 2x2 transposed convolution of stride 2, each with ReLU, and a 1x1
    convolution with one output for each class, of which only the asked one is computed.

    Args:
        num_classes: C.
        num_convs: number of 3x3 convolutions.
        width: filters of all hidden convolutions.
    """

    def __init__(self, num_classes: int, num_convs: int = 4, width: int = 256, **kwargs: Any):
        super().__init__(**kwargs)
        self.num_classes = num_classes
        self.num_convs = num_convs
        self.width = width
        dtype = self.dtype_policy
        self.convs = [
            Conv(
                width,
                3,
                kernel_initializer=FanOutNormal(gain=math.sqrt(2.0)),
                name=f"conv{i + 1}",
                dtype=dtype,
            )
            for i in range(num_convs)
        ]
        self.upsample = TransposedConv(
            width,
            kernel_initializer=FanOutNormal(fan_out=4 * width, gain=math.sqrt(2.0)),
            name="upsample",
            dtype=dtype,
        )

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        shape = tuple(input_shape)
        for conv in self.convs:
            conv.build(shape)
            shape = (*shape[:-1], self.width)
        self.upsample.build(shape)
        self.kernel = self.add_weight(
            name="kernel",
            shape=(self.width, self.num_classes),
            initializer=FanOutNormal(gain=math.sqrt(2.0)),
        )
        self.bias = self.add_weight(name="bias", shape=(self.num_classes,), initializer="zeros")

    def call(self, regions: Tensor, labels: Tensor) -> Tensor:
        """Mask logits.

        Args:
            regions: (R, 14, 14, channels).
            labels: (R,) int32, 0 <= label < C.

        Returns:
            (R, 28, 28) float32, each of its own class.
        """
        x = regions
        for conv in self.convs:
            x = ops.relu(conv(x))
        x = ops.relu(self.upsample(x))
        kernel = ops.take(ops.transpose(self.kernel), labels, axis=0)
        rows, columns = x.shape[1:3]
        x = ops.matmul(ops.reshape(x, (-1, rows * columns, self.width)), kernel[..., None])
        x = ops.cast(ops.reshape(x, (-1, rows, columns)), "float32")
        return x + ops.cast(ops.take(self.bias, labels), "float32")[:, None, None]

    def compute_output_spec(self, regions: Tensor, labels: Tensor) -> keras.KerasTensor:
        rows, height, width, _ = regions.shape
        return keras.KerasTensor((rows, 2 * height, 2 * width), "float32")

    def multiply_adds(self) -> int:
        """Multiply-adds of one region, with the masks of all classes, as papers count them."""
        convs = sum(math.prod(conv.kernel.shape) for conv in self.convs)
        kernels = convs + math.prod(self.upsample.kernel.shape)
        return MASK_SIZE**2 * (kernels + 4 * math.prod(self.kernel.shape))

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "num_classes": self.num_classes,
            "num_convs": self.num_convs,
            "width": self.width,
        }


def _dense(units: int, name: str, start: Any, dtype: Any) -> keras.layers.Layer:
    return Pointwise(units, kernel_initializer=start, name=name, dtype=dtype)
