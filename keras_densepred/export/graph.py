"""The form of a model that is exported: norms folded, plain convolutions, outputs in order."""

import math
from typing import Any

import keras

from keras_densepred.export.conversion import Shape, example_shape
from keras_densepred.export.precision import low_precisions
from keras_densepred.layers.conv import Conv, Pointwise
from keras_densepred.models.decoding import TopDetections
from keras_densepred.models.detector import DenseDetector, Detector
from keras_densepred.models.inference.folding import FoldedDetector, fold_batch_norm
from keras_densepred.ops.nms import non_max_suppression

Tensor = Any

# Of the coarsest level of most networks; multiples of it are halved without a remainder.
STRIDE = 32
DETECTIONS = ("boxes", "labels", "confidence", "num_detections")


class Exported(keras.Model):
    """A model whose outputs are a tuple in a known order; a detector's are boxes and scores.

    A detector with a method `detections_in_pixels` gives what that gives, masks included.

    Args:
        model: what is exported: a functional model, or a detector: a `DenseDetector`, or one with a
            method `detections_in_pixels`. A detector that is no functional model has one in
            `backbone`, and makes its outputs of that one's by `outputs_of`.
        suppress: whether boxes and scores of a `DenseDetector` become detections.
        named: whether the outputs are a dictionary by their names instead.

    Attributes:
        size_divisor: height and width of images must be multiples of it.
        kind: the model's class, for messages.
        decoder: the `prediction_decoder` of a `DenseDetector`, otherwise None.
        names: the outputs' names, in their order.

    Raises:
        ValueError: if the model computes in half precision, is not functional, or is a detector
            of neither kind.
    """

    def __init__(self, model: keras.Model, *, suppress: bool = False, named: bool = False):
        super().__init__(name=f"{model.name}_exported")
        is_dense = isinstance(model, DenseDetector)
        self.decoder: Any = model.prediction_decoder if is_dense else None
        # Of a detector whose detections follow from its outputs: a method, as below.
        self._detections: Any = getattr(model, "detections_in_pixels", None)
        if isinstance(model, Detector) and not is_dense and self._detections is None:
            raise ValueError(
                f"{type(model).__name__} has no form for export: of detectors each DenseDetector "
                "has one, such as YOLOv3Detector and RetinaNet, the R-CNNs, and Mask2Former."
            )
        if low := low_precisions(model):
            raise ValueError(
                f"{model.name!r} computes in {', '.join(sorted(low))}: give "
                "`export.in_float32(model)`."
            )
        self.size_divisor: int = getattr(model, "size_divisor", 1)
        self.kind = type(model).__name__
        detector = model
        self._head: Any = None
        if isinstance(model, Detector) and not hasattr(model, "_nodes_by_depth"):
            # A detector that is no graph is its backbone's graph and what follows it.
            model = detector.backbone
            self.heads = [layer for layer in detector.layers if layer is not model]
            self._head = detector.outputs_of
        folded = fold_batch_norm(model)
        # Not `graph`: torch.fx, with which PyTorch exports, calls its own graph that.
        self.network = plain_convolutions(
            folded.graph if isinstance(folded, FoldedDetector) else folded
        )
        if is_dense:
            # A method and not the detector, whose backbone would be exported too.
            self._decode = detector.boxes_and_scores
            self.names: tuple[str, ...] = DETECTIONS if suppress else ("boxes", "scores")
        elif self._detections is not None:
            self.names = (*DETECTIONS, "masks") if detector.with_masks else DETECTIONS
        elif isinstance(self.network.output, dict):
            self.names = tuple(self.network.output)
        else:
            outputs = keras.tree.flatten(self.network.output)
            self.names = (
                ("outputs",)
                if len(outputs) == 1
                else tuple(f"outputs_{i}" for i in range(len(outputs)))
            )
        self.suppress = suppress
        self.named = named
        self.built = True

    def example(self, shape: Shape) -> tuple[int, int, int, int]:
        """A shape of images that one stands for in which numbers are open.

        Raises:
            ValueError: if the size is open and the network has one.
        """
        own = self.network.inputs[0].shape
        if any(
            size is None and fixed is not None
            for size, fixed in zip(shape[1:], own[1:], strict=True)
        ):
            raise ValueError(
                f"This {self.kind} was built for images of {own[1]}x{own[2]} pixels and is not "
                "exported for any size (`image_size=None`, --dynamic-size): give that one."
            )
        return example_shape(shape, math.lcm(self.size_divisor, STRIDE))

    def call(
        self, images: Tensor, training: bool | None = None
    ) -> tuple[Tensor, ...] | dict[str, Tensor]:
        """(B, H, W, 3) -> the tensors that `names` names."""
        outputs = self._outputs(images)
        return dict(zip(self.names, outputs, strict=True)) if self.named else outputs

    def _outputs(self, images: Tensor) -> tuple[Tensor, ...]:
        outputs = self.network(images, training=False)
        if self._head is not None:
            outputs = self._head(outputs, images, training=False)
        if self._detections is not None:
            found = self._detections(outputs, images)
            return tuple(found[name] for name in self.names)
        if self.decoder is not None:
            boxes, scores = self._decode(outputs, images)
            return self._suppressed(boxes, scores) if self.suppress else (boxes, scores)
        if isinstance(outputs, dict):
            return tuple(outputs[name] for name in self.names)
        return tuple(keras.tree.flatten(outputs))

    def _suppressed(self, boxes: Tensor, scores: Tensor) -> tuple[Tensor, ...]:
        if isinstance(self.decoder, TopDetections):
            detections = self.decoder(boxes, scores)
        else:
            detections = non_max_suppression(
                boxes,
                scores,
                iou_threshold=self.decoder.iou_threshold,
                score_threshold=self.decoder.confidence_threshold,
                max_detections=self.decoder.max_detections,
                pre_nms_top_k=self.decoder.pre_nms_top_k,
            )
        return tuple(detections[name] for name in self.names)


def plain_convolutions(model: keras.Model) -> keras.Model:
    """A copy in which 1x1 convolutions are convolutions.

    Here they are matrix products of channels-last maps, which is what the Keras backends are
    fastest at. ONNX Runtime keeps its maps in blocks of channels, and would turn each of them
    around for a product.

    Args:
        model: a functional model without models inside.

    Returns:
        A functional model of the same inputs and outputs, with weights of its own.
    """

    def copy(layer: keras.layers.Layer) -> keras.layers.Layer:
        shared = len(layer._inbound_nodes) > 1  # by maps that may differ in their axes
        if isinstance(layer, Pointwise) and not shared and len(layer.input.shape) == 4:
            return Conv(
                layer.units, 1, use_bias=layer.use_bias, name=layer.name, dtype=layer.dtype_policy
            )
        return type(layer).from_config(layer.get_config())

    plain = keras.models.clone_model(model, clone_function=copy)
    for new, old in zip(plain.weights, model.weights, strict=True):
        # A buffer of its own: `fit` and `predict` donate a model's to a step on JAX.
        new.assign(keras.ops.convert_to_numpy(old).reshape(new.shape).copy())
    return plain
