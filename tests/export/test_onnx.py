"""Exported files, run by ONNX Runtime, give what Keras gives."""

import functools
import sys

import keras
import numpy as np
import pytest

from keras_densepred.export import export_onnx, graph, in_float32, quantize_onnx
from keras_densepred.layers import DeformableConv2D
from keras_densepred.layers.conv import Conv
from keras_densepred.layers.norm import LayerNorm
from keras_densepred.models import YOLOv3Detector
from tests.export.dense import dense
from tests.export.detr import detr
from tests.export.mask2former import mask2former, mask2former_centres
from tests.export.yolo import ANCHORS, BACKEND, IMAGES, SIZE, TOLERANCE, yolo
from tests.models.conftest import ToyPyramid
from tests.weights import set_deterministic_weights
from tools.timing.onnx_files import agreement, runner


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    model = yolo()
    folder = tmp_path_factory.mktemp("onnx")
    return model, export_onnx(model, folder / "yolo.onnx", SIZE, batch_size=2)


if BACKEND == "jax":

    def test_jax_names_its_converter(tmp_path, monkeypatch):
        monkeypatch.setitem(sys.modules, "jax2onnx", None)
        with pytest.raises(ImportError, match="pip install jax2onnx"):
            export_onnx(yolo(), tmp_path / "x.onnx", SIZE)
        assert not list(tmp_path.iterdir())

else:

    def test_detections_are_those_of_predict(exported):
        model, path = exported
        expected = model.predict(IMAGES, verbose=0)
        found = runner(path)(IMAGES)
        assert expected["num_detections"].min() > 3 and set(found) == set(expected)
        for name, value in expected.items():
            np.testing.assert_allclose(found[name], value, **TOLERANCE, err_msg=name)
        assert [p.name for p in path.parent.iterdir()] == ["yolo.onnx"]

    def test_distributions_and_their_integers(tmp_path):
        """Of the dense detector: its softmax over distances is part of the graph."""
        model = dense()
        expected = model.predict(IMAGES, verbose=0)
        path = export_onnx(model, tmp_path / "float32.onnx", SIZE, batch_size=2)
        found = runner(path)(IMAGES)
        assert expected["num_detections"].min() > 3
        for name, value in expected.items():
            np.testing.assert_allclose(found[name], value, **TOLERANCE, err_msg=name)
        small = runner(quantize_onnx(path, tmp_path / "int8.onnx", [IMAGES]))(IMAGES)
        matched, number = agreement(found, small)
        assert number and matched >= 0.8 * number

    @pytest.mark.parametrize("size", [(32, 64), (64, 32), (32, 32)])
    def test_maps_one_cell_high(size, tmp_path):
        """Layer norms square them; tf2onnx took them for maps of another shape."""
        inputs = keras.Input((*size, 3))
        small = LayerNorm()(keras.layers.Conv2D(8, 32, 32)(inputs))
        model = keras.Model(inputs, keras.layers.Conv2D(8, 1)(small))
        images = np.random.default_rng(0).normal(size=(2, *size, 3)).astype("float32")
        found = runner(export_onnx(model, tmp_path / "x.onnx", size, batch_size=2))(images)
        expected = keras.ops.convert_to_numpy(model(images))
        np.testing.assert_allclose(found["outputs"], expected, atol=1e-5)

    @pytest.mark.slow
    @pytest.mark.parametrize("name", ["learned", "two_stage", "mask2former", "centres"])
    def test_without_suppression_operator(name, tmp_path):
        """Deformable DETR's and Mask2Former's detections are part of the graph."""
        model = {"mask2former": mask2former, "centres": mask2former_centres}.get(
            name, functools.partial(detr, query_selection=name)
        )()
        expected = model.predict(IMAGES, verbose=0)
        path = export_onnx(model, tmp_path / "model.onnx", SIZE, batch_size=2)
        assert b"NonMaxSuppression" not in path.read_bytes()
        found = runner(path)(IMAGES)
        assert expected["num_detections"].min() > 3 and set(found) == set(expected)
        for name, value in expected.items():
            np.testing.assert_allclose(found[name], value, **TOLERANCE, err_msg=name)

    def test_deformable_convolution_needs_no_operator_of_its_own(tmp_path):
        inputs = keras.Input((*SIZE, 3))
        layer = DeformableConv2D(4, strides=2, offset_groups=2, modulated=True)
        network = keras.Model(inputs, layer(Conv(8, 3, 4)(inputs)))
        set_deterministic_weights(network)
        (found,) = runner(export_onnx(network, tmp_path / "x.onnx", SIZE, batch_size=2))(
            IMAGES
        ).values()
        np.testing.assert_allclose(found, network.predict(IMAGES, verbose=0), **TOLERANCE)

    def test_integers_find_the_same_objects(exported, tmp_path):
        _, path = exported
        small = quantize_onnx(path, tmp_path / "int8.onnx", [IMAGES])
        found, expected = runner(small)(IMAGES), runner(path)(IMAGES)
        for image in range(len(IMAGES)):
            one, other = (
                {name: value[image : image + 1] for name, value in outputs.items()}
                for outputs in (expected, found)
            )
            matched, number = agreement(one, other)
            assert number and matched >= 0.8 * number
        with pytest.raises(ValueError, match="no images to calibrate"):
            quantize_onnx(path, tmp_path / "none.onnx", [])
        assert [p.name for p in tmp_path.iterdir()] == ["int8.onnx"]

    def test_sums_of_integers_do_not_overflow(tmp_path):
        """Where a CPU adds products in 16 bits first: all that is largest at once."""
        inputs = keras.Input((*SIZE, 3))
        kernel = keras.initializers.Constant(0.1)
        network = keras.Model(inputs, Conv(8, 3, kernel_initializer=kernel)(inputs))
        path = export_onnx(network, tmp_path / "float32.onnx", SIZE, batch_size=2)
        bright = np.full((2, *SIZE, 3), 2.0, "float32")
        small = quantize_onnx(path, tmp_path / "int8.onnx", [bright])
        (expected,), (found,) = runner(path)(bright).values(), runner(small)(bright).values()
        np.testing.assert_allclose(found, expected, rtol=0.02)

    def test_integers_around_a_grouped_convolution(tmp_path):
        """On TensorFlow it is a product by group, which ONNX Runtime has in float32 alone."""
        inputs = keras.Input((*SIZE, 3))
        x = Conv(16, 3, 2)(inputs)
        x = Conv(16, 3, groups=4)(x)
        network = keras.Model(inputs, Conv(8, 3, 2)(x))
        set_deterministic_weights(network)
        path = export_onnx(network, tmp_path / "float32.onnx", SIZE, batch_size=2)
        small = quantize_onnx(path, tmp_path / "int8.onnx", [IMAGES])
        (expected,), (found,) = runner(path)(IMAGES).values(), runner(small)(IMAGES).values()
        assert np.abs(found - expected).mean() < 0.05 * np.abs(expected).max()


def test_faults_are_one_sentence(tmp_path):
    with pytest.raises(ValueError, match="give positive integers"):
        export_onnx(yolo(), tmp_path / "x.onnx", 0)
    half = YOLOv3Detector(ToyPyramid(ready=False, dtype="mixed_bfloat16"), 3, "prn", ANCHORS)
    with pytest.raises(ValueError, match="in_float32"):
        graph.Exported(half)


@pytest.mark.backend_free
@pytest.mark.parametrize("global_policy", ["float32", "mixed_bfloat16"])
def test_a_model_of_mixed_precision_computes_in_float32(global_policy):
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(global_policy)
    try:
        half = YOLOv3Detector(ToyPyramid(ready=False, dtype="mixed_bfloat16"), 3, "prn", ANCHORS)
        model = in_float32(half)
        assert keras.config.dtype_policy().name == global_policy
    finally:
        keras.config.set_dtype_policy(before)
    assert {layer.compute_dtype for layer in model._flatten_layers()} == {"float32"}
    for weight, own in zip(half.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(own, weight)
    assert in_float32(model) is model
    graph.Exported(model)
