"""Two-stage detectors: Faster, Mask, Cascade and Grid R-CNN."""

from keras_densepred.models.rcnn.detectors import (
    CascadeMaskRCNN,
    CascadeRCNN,
    FasterRCNN,
    GridRCNN,
    MaskRCNN,
)

__all__ = ["CascadeMaskRCNN", "CascadeRCNN", "FasterRCNN", "GridRCNN", "MaskRCNN"]
