"""Training: schedules, layer-wise decay, averaged weights, exact resume, reports, several devices."""

from keras_densepred.training.optim import (
    AdamW,
    WarmupCosine,
    WarmupSteps,
    averaged_weights,
    cednet_layer_id,
    cednet_rules,
)
from keras_densepred.training.resume import (
    CheckpointError,
    NanGuard,
    Position,
    ResumableCheckpoint,
    TrainingDiverged,
    fit,
)

__all__ = [
    "AdamW",
    "CheckpointError",
    "NanGuard",
    "Position",
    "ResumableCheckpoint",
    "TrainingDiverged",
    "WarmupCosine",
    "WarmupSteps",
    "averaged_weights",
    "cednet_layer_id",
    "cednet_rules",
    "fit",
]
