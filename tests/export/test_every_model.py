"""Every model in every format that its backend writes: what a runtime gives, or why it cannot."""

import keras
import numpy as np
import pytest

from keras_densepred.export.graph import Exported
from keras_densepred.runtime.devices import writing_onnx
from tests.export import zoo
from tests.export.runtimes import (
    SUPPORTED,
    assert_gives_what_predict_gives,
    predicted,
    write,
)
from tests.export.yolo import IMAGES, SIZE, TOLERANCE
from tests.hosts import needs_keras_cv

# What LiteRT has no operators for, or OpenVINO finds otherwise.
WITHOUT_LITERT = ("grid", "reppoints", "detr", "mask2former", "mask2former_segmenter", "centres")
REFUSED = {
    **{(name, "litert"): "cannot express this" for name in WITHOUT_LITERT},
    ("centres", "openvino"): "finds other masks",
}
QUICK = {("mask", "saved_model"), ("deeplab_keras_hub", "onnx"), ("retinanet", "openvino")}
QUICK |= {("yolo", "litert"), ("classifier", "saved_model"), ("classifier", "torch")}
if keras.config.backend() == "jax":
    QUICK -= {("classifier", "saved_model")}  # simpler than what is left
if keras.config.backend() == "torch":
    QUICK -= {("deeplab_keras_hub", "onnx")}  # TensorFlow writes it
if keras.config.backend() == "tensorflow":
    QUICK -= {("mask", "saved_model")}  # TensorFlow's own format, of which one is enough


def cell(name, format):
    marks = [needs_keras_cv] if name in zoo.NEEDS_KERAS_CV else []
    if (name, format) not in QUICK:
        marks.append(pytest.mark.slow)
    return pytest.param(name, format, id=f"{name}-{format}", marks=marks)


@pytest.mark.parametrize(
    "name,format",
    [cell(name, format) for name in zoo.ZOO for format in SUPPORTED],
)
def test_a_runtime_gives_what_predict_gives(name, format, tmp_path):
    model = zoo.model(name)
    if why := REFUSED.get((name, format)):
        with pytest.raises(ValueError, match=rf"{why} .*: write it as onnx"):
            write(model, format, tmp_path, SIZE, 2)
        assert not list(tmp_path.iterdir())
        return
    expected = predicted(model, IMAGES)
    if "num_detections" in expected:
        assert expected["num_detections"].min() > 3
    path = write(model, format, tmp_path, SIZE, 2)
    assert_gives_what_predict_gives(model, format, path, IMAGES, expected)


@pytest.mark.slow_on("jax", "tensorflow")
@pytest.mark.parametrize("name", ["cascade_mask", "grid"])
def test_what_a_converter_is_given_computes_what_predict_does(name):
    """A quick look at two stages, without a converter, which takes its time."""
    model = zoo.model(name)
    exported = Exported(model)
    assert ("masks" in exported.names) == (name == "cascade_mask")
    expected = predicted(model, IMAGES)
    with writing_onnx():
        found = exported(keras.ops.convert_to_tensor(IMAGES))
    for name, value in zip(exported.names, found, strict=True):
        value = keras.ops.convert_to_numpy(value)
        np.testing.assert_allclose(value, expected[name], **TOLERANCE, err_msg=name)
