"""Training: schedules, layer-wise decay, averaged weights, exact resume, reports, devices."""

from keras_densepred.files import write_atomically
from keras_densepred.saved.classes import write_classes
from keras_densepred.saved.model_card import write_model_card
from keras_densepred.saved.preprocessing import Preprocessing
from keras_densepred.training.devices.cluster import Cluster, DevicesError, current_cluster
from keras_densepred.training.devices.distribute import distribute
from keras_densepred.training.layer_decay import (
    cednet_layer_id,
    cednet_rules,
    cednet_variant,
    matrix_decay_rules,
)
from keras_densepred.training.loop.checkpoint import ResumableCheckpoint
from keras_densepred.training.loop.divergence import NanGuard, TrainingDiverged
from keras_densepred.training.loop.fit import fit
from keras_densepred.training.loop.memory import keep_freed_memory
from keras_densepred.training.loop.snapshots import CheckpointError, Position
from keras_densepred.training.optim import (
    AdamW,
    WarmupCosine,
    WarmupSteps,
    averaged_weights,
    momentum_sgd,
)
from keras_densepred.training.report.classification import draw_classified, draw_confusion
from keras_densepred.training.report.progress import (
    MetricsLog,
    Progress,
    draw_predictions,
    plot_curves,
)
from keras_densepred.training.report.semantic import (
    describe_iou,
    draw_segmentations,
    write_iou,
)
from keras_densepred.training.run import (
    predict_samples,
    require_trainable,
    tell_skipped,
    train_detector,
)
from keras_densepred.training.settings import (
    SettingsError,
    claim_output,
    decisive_settings,
    parse_settings,
    setting,
)

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
