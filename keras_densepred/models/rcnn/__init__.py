"""Two-stage detectors: Faster, Mask and Cascade R-CNN."""

from keras_densepred.models.rcnn.detectors import (
    CascadeMaskRCNN,
    CascadeRCNN,
    FasterRCNN,
    MaskRCNN,
)

__all__ = ["CascadeMaskRCNN", "CascadeRCNN", "FasterRCNN", "MaskRCNN"]
