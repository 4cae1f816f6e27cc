"""Two-stage detectors as graphs that `metrics.count_multiply_adds` can count.

As MMDetection counts: the box heads on 1000 regions, the mask heads on 100, with the masks of all
classes, the grid head on 100; RoIAlign and what proposes are no convolutions.
"""

from typing import Any

import keras

from keras_densepred.models.rcnn.model import TwoStageDetector

REGIONS, DETECTIONS = 1000, 100


class _RegionHeads(keras.layers.Layer):
    """Stands for the heads of the second stage, whose weights it holds."""

    def __init__(self, detector: TwoStageDetector):
        super().__init__(name="region_heads")
        self.box_heads = list(detector.box_heads)
        grid_head = getattr(detector, "grid_head", None)
        self.detection_heads = [*detector.mask_heads, *([grid_head] if grid_head else [])]
        self.built = True

    def compute_output_shape(self, input_shape: tuple) -> tuple:
        return input_shape

    def call(self, feature: Any) -> Any:
        return feature

    def multiply_adds(self, output_shape: tuple[int, ...], norms: bool = False) -> int:
        boxes = sum(head.multiply_adds() for head in self.box_heads)
        detections = sum(head.multiply_adds() for head in self.detection_heads)
        return REGIONS * boxes + DETECTIONS * detections


def countable(detector: TwoStageDetector) -> keras.Model:
    """A functional model with the parameters and the arithmetic of a two-stage detector.

    Args:
        detector: on a backbone with a fixed image size.

    Returns:
        The model; it serves for counting only.
    """
    levels = detector.backbone.output
    outputs = [detector.rpn_head(feature) for feature in levels.values()]
    outputs.append(_RegionHeads(detector)(next(iter(levels.values()))))
    return keras.Model(detector.backbone.input, outputs)
