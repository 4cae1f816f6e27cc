"""What detectors that are KerasCV tasks have in common."""

from typing import Any

import keras

from keras_densepred.models.detector import Detector

Tensor = Any


class KerasCVDetector(Detector):
    """Comes before a KerasCV class: trains by plain Keras, and takes KerasCV's key of labels."""

    def train_step(self, *args: Any) -> Any:
        """As Keras'."""
        # keras-cv 0.9.0 unpacks exactly (x, y), and train_on_batch passes three.
        return keras.Model.train_step(self, *args)

    def test_step(self, *args: Any) -> Any:
        """As Keras'."""
        return keras.Model.test_step(self, *args)

    def compute_metrics(self, x: Tensor, y: Any, y_pred: Any, sample_weight: Any = None) -> dict:
        """The loss parts; KerasCV's own would decode boxes for the metrics compile() refuses."""
        return keras.Model.compute_metrics(self, x, y, y_pred, sample_weight)

    def targets_in_pixels(self, y: dict[str, Tensor], images: Tensor) -> dict[str, Tensor]:
        if "classes" in y and "labels" not in y:
            y = {**y, "labels": y["classes"]}
        return super().targets_in_pixels(y, images)
