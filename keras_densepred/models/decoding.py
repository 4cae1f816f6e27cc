"""From a detector's raw boxes and scores to its final detections, with suppression or without."""

from typing import Any

import keras
from keras import ops

from keras_densepred.faults import require_positive
from keras_densepred.ops.boxes import decode_boxes
from keras_densepred.ops.nms import non_max_suppression
from keras_densepred.ops.rows import gather_rows, highest

Tensor = Any


@keras.saving.register_keras_serializable(package="keras_densepred")
class NonMaxSuppression(keras.layers.Layer):
    """Per-class non-maximum suppression as COCO detectors are evaluated.

    Goes wherever a host takes a `prediction_decoder=`: `keras_hub.models.RetinaNetObjectDetector`,
    `keras_cv.models.RetinaNet`, `keras_cv.models.YOLOV8Detector`. Against the decoders of
    keras-hub 0.32.0 and keras-cv 0.9.0 it differs in four ways: each class is suppressed on its
    own (theirs take the best class of each box first), the confidence threshold is COCO's 0.05
    (theirs 0.5), it computes in float32 whatever the policy (bfloat16 moves a corner at 1000 px by
    up to 4 px), and on PyTorch it needs no torchvision (keras-cv's does).

    Args:
        bounding_box_format: format of the boxes given and returned, a name of
            `keras.utils.bounding_boxes.convert_format` such as `"xyxy"`.
        from_logits: whether the scores given are logits (the RetinaNets) or already
            probabilities (`YOLOV8Detector`).
        iou_threshold: overlap above which the lower-scoring box of a class is dropped.
        confidence_threshold: least score of a detection.
        max_detections: detections returned for each image.
        pre_nms_top_k: highest-scoring (box, class) pairs of an image that take part.
        label_key: name of the class indices in the result: `"labels"`, or `"classes"` as the
            stock KerasCV models and their metrics call them.

    Raises:
        ValueError: if `label_key` is neither of the two, or a number is out of its range.
    """

    def __init__(
        self,
        bounding_box_format: str = "xyxy",
        from_logits: bool = True,
        iou_threshold: float = 0.5,
        confidence_threshold: float = 0.05,
        max_detections: int = 100,
        pre_nms_top_k: int = 1000,
        label_key: str = "labels",
        **kwargs: Any,
    ):
        kwargs.setdefault("dtype", "float32")
        super().__init__(autocast=False, **kwargs)
        if label_key not in ("labels", "classes"):
            raise ValueError(
                f'`label_key` is {label_key!r}; give "labels", or "classes" for stock KerasCV.'
            )
        for name, value in (
            ("iou_threshold", iou_threshold),
            ("confidence_threshold", confidence_threshold),
        ):
            if not 0.0 <= value <= 1.0:
                raise ValueError(f"`{name}` is {value}; give a number from 0 to 1.")
        require_positive(max_detections=max_detections, pre_nms_top_k=pre_nms_top_k)
        self.bounding_box_format = bounding_box_format
        self.from_logits = from_logits
        self.iou_threshold = iou_threshold
        self.confidence_threshold = confidence_threshold
        self.max_detections = max_detections
        self.pre_nms_top_k = pre_nms_top_k
        self.label_key = label_key
        self.built = True

    def call(
        self,
        box_prediction: Tensor,
        class_prediction: Tensor,
        images: Tensor | None = None,
        image_shape: tuple[int, int, int] | None = None,
        anchors: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Decodes a batch.

        Args:
            box_prediction: (B, N, 4) boxes in `bounding_box_format`; with `anchors`, deltas.
            class_prediction: (B, N, C) logits or probabilities.
            images: (B, H, W, 3); only its shape is read, only for relative box formats and
                `anchors`.
            image_shape: (H, W, channels) instead of `images`, as KerasCV passes it.
            anchors: (N, 4) xyxy in pixels, from which the deltas are decoded as in
                `keras_densepred.models.anchors`, for the boxes that take part alone.

        Returns:
            `"boxes"` (B, M, 4) float32 in `bounding_box_format`, `label_key` (B, M) int32,
            `"confidence"` (B, M) float32 in [0, 1], all in descending confidence and -1 past
            `"num_detections"` (B,) int32.

        Raises:
            ValueError: if the format is relative, or `anchors` are given, and neither `images`
                nor `image_shape`.
        """
        if image_shape is None and images is not None:
            image_shape = ops.shape(images)[1:]
        height, width = (None, None) if image_shape is None else image_shape[:2]
        relative = self.bounding_box_format.lower().startswith("rel")
        if height is None and (relative or anchors is not None):
            raise ValueError(
                f"Boxes in {self.bounding_box_format!r} "
                f"{'' if anchors is None else 'decoded from `anchors` '}need the image size: "
                "call the decoder with `images` or `image_shape`."
            )

        # Of the (B, K) boxes that take part: decoding all of 8 x 76,725 deltas would add 17 ms on
        # JAX, 62 on TensorFlow and 50 on PyTorch (one CPU core) to suppression's 49, 128 and 104.
        def corners(index: Tensor) -> Tensor:
            rows = gather_rows(box_prediction, index)
            if anchors is not None:
                return decode_boxes(ops.take(anchors, index, axis=0), rows, height, width)
            return keras.utils.bounding_boxes.convert_format(
                rows, self.bounding_box_format, "xyxy", height=height, width=width
            )

        detections = non_max_suppression(
            corners,
            class_prediction,
            from_logits=self.from_logits,
            iou_threshold=self.iou_threshold,
            score_threshold=self.confidence_threshold,
            max_detections=self.max_detections,
            pre_nms_top_k=self.pre_nms_top_k,
        )
        empty = detections["confidence"][..., None] < 0.0
        boxes = keras.utils.bounding_boxes.convert_format(
            detections["boxes"], "xyxy", self.bounding_box_format, height=height, width=width
        )
        return {
            "boxes": ops.where(empty, -1.0, boxes),
            self.label_key: detections["labels"],
            "confidence": detections["confidence"],
            "num_detections": detections["num_detections"],
        }

    def compute_output_spec(
        self,
        box_prediction: keras.KerasTensor,
        class_prediction: keras.KerasTensor,
        images: keras.KerasTensor | None = None,
        image_shape: tuple[int, int, int] | None = None,
        anchors: keras.KerasTensor | None = None,
    ) -> dict[str, keras.KerasTensor]:
        """Shapes without running the loop, which PyTorch cannot trace on shapes alone."""
        batch, num = box_prediction.shape[0], self.max_detections
        return {
            "boxes": keras.KerasTensor((batch, num, 4), "float32"),
            self.label_key: keras.KerasTensor((batch, num), "int32"),
            "confidence": keras.KerasTensor((batch, num), "float32"),
            "num_detections": keras.KerasTensor((batch,), "int32"),
        }

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        config.update(
            {
                "bounding_box_format": self.bounding_box_format,
                "from_logits": self.from_logits,
                "iou_threshold": self.iou_threshold,
                "confidence_threshold": self.confidence_threshold,
                "max_detections": self.max_detections,
                "pre_nms_top_k": self.pre_nms_top_k,
                "label_key": self.label_key,
            }
        )
        return config


@keras.saving.register_keras_serializable(package="keras_densepred")
class TopDetections(keras.layers.Layer):
    """The highest of all scores, without suppression; one box may stand for several classes.

    "Deformable DETR": the top 100 of 300 queries times 80 classes.

    Args:
        max_detections: of an image.
        confidence_threshold: least score of one.

    Raises:
        ValueError: if a number is out of its range.
    """

    def __init__(self, max_detections: int = 100, confidence_threshold: float = 0.0, **kwargs: Any):
        kwargs.setdefault("dtype", "float32")
        super().__init__(autocast=False, **kwargs)
        require_positive(max_detections=max_detections)
        if not 0.0 <= confidence_threshold <= 1.0:
            raise ValueError(
                f"`confidence_threshold` is {confidence_threshold}; give a number from 0 to 1."
            )
        self.max_detections = max_detections
        self.confidence_threshold = confidence_threshold
        self.built = True

    def call(
        self, boxes: Tensor, scores: Tensor, images: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Chooses.

        Args:
            boxes: (B, N, 4), of any format.
            scores: (B, N, C) float32 in 0..1.
            images: taken for likeness with `NonMaxSuppression`, not read.

        Returns:
            `"boxes"` (B, M, 4) in the format given, `"labels"` (B, M) int32, `"confidence"` (B, M)
            float32, in descending confidence and -1 past `"num_detections"` (B,) int32.
        """
        classes = scores.shape[2]
        flat = ops.reshape(scores, (-1, scores.shape[1] * classes))
        count = min(self.max_detections, flat.shape[1])
        confidence, index = highest(flat, count)
        kept = confidence >= self.confidence_threshold
        found = {
            "boxes": ops.where(kept[..., None], gather_rows(boxes, index // classes), -1.0),
            "labels": ops.where(kept, index % classes, -1),
            "confidence": ops.where(kept, confidence, -1.0),
        }
        missing = self.max_detections - count
        padded = {
            name: ops.pad(
                value,
                [(0, 0), (0, missing), *[(0, 0)] * (len(value.shape) - 2)],
                constant_values=-1,
            )
            for name, value in found.items()
        }
        number = ops.sum(ops.cast(kept, "int32"), axis=-1)
        return {**padded, "num_detections": number}

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "max_detections": self.max_detections,
            "confidence_threshold": self.confidence_threshold,
        }
