"""Small two-stage detectors with something to find, for exported files to be compared by."""

from keras_densepred import DetectionPyramid, FeaturePyramid
from keras_densepred.models import CascadeMaskRCNN, CascadeRCNN, FasterRCNN, GridRCNN, MaskRCNN
from tests.contracts.families import OwnBackbone, small_backbone
from tests.weights import set_deterministic_weights

SMALL = dict(num_classes=3, head_width=16, num_proposals=20, max_detections=6)
CLASSES = {
    "faster": (FasterRCNN, {}),
    "mask": (MaskRCNN, dict(mask_convs=1)),
    "cascade": (CascadeRCNN, dict(head_convs=1, head_fcs=1, head_norm=True)),
    "cascade_mask": (CascadeMaskRCNN, dict(mask_convs=1, class_agnostic=False)),
    "grid": (GridRCNN, dict(grid_convs=1, grid_width=4)),
}


def two_stage(name):
    detector, options = CLASSES[name]
    if name == "faster":  # on the recipe's neck, which doubles maps bilinearly
        neck = DetectionPyramid(small_backbone("cednet"), width=8, min_level=2, max_level=6)
    else:
        neck = FeaturePyramid(OwnBackbone(), width=8)
    model = detector(neck, **SMALL, **options)
    set_deterministic_weights(model)
    return model
