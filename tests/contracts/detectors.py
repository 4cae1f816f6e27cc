"""Every detector, small: called with a backbone, the number of classes and options."""

from keras_densepred import models
from tests.hosts import available

RCNN = dict(head_width=8, samples=8, num_proposals=12, rpn_width=8, max_detections=5)
HEADS = dict(head_width=8, head_depth=1)
DETR = dict(num_queries=10, width=32, num_heads=2, num_points=2, feed_forward_width=16)
# No dropout: on PyTorch it draws from a global state.
DETR |= dict(encoder_layers=2, decoder_layers=2, dropout=0.0)
MASK2FORMER = dict(width=32, num_queries=8, encoder_layers=1, decoder_layers=2, num_heads=2)
MASK2FORMER |= dict(encoder_hidden=16, decoder_hidden=16, num_points=48)
MASK2FORMER |= dict(max_detections=5, mask_size=28)
DETECTORS = {
    "retinanet": lambda *args, **options: models.RetinaNet(*args, **HEADS, **options),
    "retinanet_hub": lambda *args, **options: models.RetinaNetKerasHub(*args, **HEADS, **options),
    "retinanet_cv": lambda *args, **options: models.RetinaNetKerasCV(*args, **HEADS, **options),
    "reppoints": lambda *args, **options: models.RepPoints(*args, **HEADS, **options),
    "dense": lambda *args, **options: models.TaskAlignedDetector(*args, **HEADS, **options),
    "yolov3": lambda *args, **options: models.YOLOv3Detector(*args, neck="prn", **options),
    "yolov8_cv": lambda *args, **options: models.YOLOV8KerasCV(*args, fpn_depth=1, **options),
    "faster": lambda *args, **options: models.FasterRCNN(*args, **RCNN, **options),
    "mask": lambda *args, **options: models.MaskRCNN(*args, mask_convs=1, **RCNN, **options),
    "cascade": lambda *args, **options: models.CascadeRCNN(*args, **RCNN, **options),
    "cascade_mask": lambda *args, **options: models.CascadeMaskRCNN(
        *args, mask_convs=1, **RCNN, **options
    ),
    "grid": lambda *args, **options: models.GridRCNN(
        *args, grid_convs=1, grid_width=4, grid_samples=6, **RCNN, **options
    ),
    "detr": lambda *args, **options: models.DeformableDETR(*args, **DETR, **options),
    "detr_mixed": lambda *args, **options: models.DeformableDETR(
        *args, query_selection="mixed", **DETR, **options
    ),
    "mask2former": lambda *args, **options: models.Mask2Former(*args, **MASK2FORMER, **options),
    "mask2former_centres": lambda *args, **options: models.Mask2Former(
        *args, query_selection="centres", **MASK2FORMER, **options
    ),
}
DETECTORS = available(DETECTORS)
