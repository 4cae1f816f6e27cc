"""The detections of a network that finds each object once."""

from typing import Any

import keras
from keras import ops

from keras_densepred.faults import require_positive
from keras_densepred.ops.nms import gather_rows, highest

Tensor = Any


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
