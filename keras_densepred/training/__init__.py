"""Training: schedules, layer-wise decay, averaged weights, exact resume, reports, devices."""

from typing import TYPE_CHECKING

from keras_densepred import start
from keras_densepred.files import write_atomically
from keras_densepred.training.experiments import (
    ByArchitecture,
    Epochs,
    Experiment,
    PerBatch,
)
from keras_densepred.training.length import AtLeast
from keras_densepred.training.settings import (
    CommonSettings,
    DetectionSettings,
    PyramidDetectionSettings,
    RandomScaleSettings,
    SegmentationSettings,
    SettingsError,
    answer_flags,
    head_setting,
    parse_settings,
    setting,
)

if TYPE_CHECKING or start.is_loaded():
    from keras_densepred.memory import keep_freed_memory
    from keras_densepred.report.classification import draw_classified
    from keras_densepred.report.confusion import draw_confusion
    from keras_densepred.report.objects import draw_predictions
    from keras_densepred.report.semantic import (
        describe_iou,
        draw_segmentations,
        write_iou,
    )
    from keras_densepred.saved.classes import write_classes
    from keras_densepred.saved.model_card import write_model_card
    from keras_densepred.saved.preprocessing import Preprocessing
    from keras_densepred.training.build import (
        build_backbone,
        detection_preprocessing,
        image_scaling,
        is_pretrained,
        make_optimizer,
        make_schedule,
    )
    from keras_densepred.training.checks import require_size, require_trainable
    from keras_densepred.training.devices.cluster import Cluster, DevicesError, current_cluster
    from keras_densepred.training.devices.distribute import distribute
    from keras_densepred.training.identity import claim_output, decisive_settings
    from keras_densepred.training.layer_decay import layer_decay_rules, matrix_decay_rules
    from keras_densepred.training.loop.checkpoint import ResumableCheckpoint
    from keras_densepred.training.loop.divergence import NanGuard, TrainingDiverged
    from keras_densepred.training.loop.fit import fit
    from keras_densepred.training.loop.in_output import tell_skipped
    from keras_densepred.training.loop.snapshots import CheckpointError, Position
    from keras_densepred.training.optim import AdamW, averaged_weights, momentum_sgd
    from keras_densepred.training.report.metrics_log import MetricsLog, plot_curves
    from keras_densepred.training.report.progress import Progress
    from keras_densepred.training.run import Recipe, run_script
    from keras_densepred.training.schedules import WarmupCosine, WarmupLinear, WarmupSteps
    from keras_densepred.training.tasks.classification import Classification
    from keras_densepred.training.tasks.detection import Detection, predict_samples, train_detector
    from keras_densepred.training.tasks.segmentation import Segmentation
else:  # in a command, until it has read its flags
    __getattr__ = start.later(__name__)

__all__ = [
    "AdamW",
    "AtLeast",
    "ByArchitecture",
    "CheckpointError",
    "Classification",
    "Cluster",
    "CommonSettings",
    "Detection",
    "DetectionSettings",
    "DevicesError",
    "Epochs",
    "Experiment",
    "MetricsLog",
    "NanGuard",
    "PerBatch",
    "Position",
    "Preprocessing",
    "Progress",
    "PyramidDetectionSettings",
    "RandomScaleSettings",
    "Recipe",
    "ResumableCheckpoint",
    "Segmentation",
    "SegmentationSettings",
    "SettingsError",
    "TrainingDiverged",
    "WarmupCosine",
    "WarmupLinear",
    "WarmupSteps",
    "answer_flags",
    "averaged_weights",
    "build_backbone",
    "claim_output",
    "current_cluster",
    "decisive_settings",
    "describe_iou",
    "detection_preprocessing",
    "distribute",
    "draw_classified",
    "draw_confusion",
    "draw_predictions",
    "draw_segmentations",
    "fit",
    "head_setting",
    "image_scaling",
    "is_pretrained",
    "keep_freed_memory",
    "layer_decay_rules",
    "make_optimizer",
    "make_schedule",
    "matrix_decay_rules",
    "momentum_sgd",
    "parse_settings",
    "plot_curves",
    "predict_samples",
    "require_size",
    "require_trainable",
    "run_script",
    "setting",
    "tell_skipped",
    "train_detector",
    "write_atomically",
    "write_classes",
    "write_iou",
    "write_model_card",
]
