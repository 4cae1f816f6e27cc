"""Training: schedules, layer-wise decay, averaged weights, exact resume, reports, devices."""

from keras_densepred.training.checkpoint import ResumableCheckpoint
from keras_densepred.training.cluster import Cluster, DevicesError, current_cluster
from keras_densepred.training.confusion import draw_classified, draw_confusion
from keras_densepred.training.detection import (
    predict_samples,
    require_trainable,
    tell_skipped,
    train_detector,
)
from keras_densepred.training.distribution import distribute
from keras_densepred.training.divergence import NanGuard, TrainingDiverged
from keras_densepred.training.layer_decay import (
    cednet_layer_id,
    cednet_rules,
    cednet_variant,
    matrix_decay_rules,
)
from keras_densepred.training.memory import keep_freed_memory
from keras_densepred.training.model_card import write_model_card
from keras_densepred.training.optim import (
    AdamW,
    WarmupCosine,
    WarmupSteps,
    averaged_weights,
    momentum_sgd,
)
from keras_densepred.training.preprocessing import Preprocessing
from keras_densepred.training.report import (
    MetricsLog,
    Progress,
    draw_predictions,
    plot_curves,
    write_atomically,
    write_classes,
)
from keras_densepred.training.resume import fit
from keras_densepred.training.segmentation import (
    describe_iou,
    draw_segmentations,
    write_iou,
)
from keras_densepred.training.settings import (
    SettingsError,
    claim_output,
    decisive_settings,
    parse_settings,
    setting,
)
from keras_densepred.training.snapshots import CheckpointError, Position

__all__ = [
    "AdamW",
    "CheckpointError",
    "Cluster",
    "DevicesError",
    "MetricsLog",
    "NanGuard",
    "Position",
    "Preprocessing",
    "Progress",
    "ResumableCheckpoint",
    "SettingsError",
    "TrainingDiverged",
    "WarmupCosine",
    "WarmupSteps",
    "averaged_weights",
    "cednet_layer_id",
    "cednet_rules",
    "cednet_variant",
    "claim_output",
    "current_cluster",
    "decisive_settings",
    "describe_iou",
    "distribute",
    "draw_classified",
    "draw_confusion",
    "draw_predictions",
    "draw_segmentations",
    "fit",
    "keep_freed_memory",
    "matrix_decay_rules",
    "momentum_sgd",
    "parse_settings",
    "plot_curves",
    "predict_samples",
    "require_trainable",
    "setting",
    "tell_skipped",
    "train_detector",
    "write_atomically",
    "write_classes",
    "write_iou",
    "write_model_card",
]
