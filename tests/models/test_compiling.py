"""A loaded model is compiled as the backend in use does by default, wherever it was saved."""

import keras
import pytest

from keras_densepred import models

DETECTORS = {
    "yolo": lambda backbone: models.YOLOv3Detector(backbone, 2, "prn"),
    "faster": lambda backbone: models.FasterRCNN(backbone, 2, head_width=8),
    "segmenter": lambda backbone: models.DeepLabV3(backbone, num_classes=2),
    "retinanet": lambda backbone: models.RetinaNetKerasHub(backbone, num_classes=2, head_depth=1),
    "retinanet_keras_cv": lambda backbone: models.RetinaNetKerasCV(backbone, num_classes=2),
}


@pytest.mark.parametrize("name", DETECTORS)
def test_the_backend_decides_again(name, toy_backbone, toy_pyramid, tmp_path):
    model = DETECTORS[name](toy_backbone if name in ("yolo", "segmenter") else toy_pyramid)
    model.compile()
    default = model.jit_compile
    model.compile(jit_compile=not default)  # as it is after training on another backend
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert loaded.compiled
    assert loaded.jit_compile == default
