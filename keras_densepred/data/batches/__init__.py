"""Batches from records, for training and for evaluation, on Grain."""

from keras_densepred.data.batches.classification import eval_class_batches, train_class_batches
from keras_densepred.data.batches.detection import eval_batches, most_boxes, train_batches
from keras_densepred.data.batches.semantic import eval_mask_batches, train_mask_batches
from keras_densepred.data.batches.stream import BatchStream, EvalBatches

__all__ = [
    "BatchStream",
    "EvalBatches",
    "eval_batches",
    "eval_class_batches",
    "eval_mask_batches",
    "most_boxes",
    "train_batches",
    "train_class_batches",
    "train_mask_batches",
]
