"""`--weights RUN`: from the whole model of another run."""

import keras
import numpy as np
import pytest

from keras_densepred import models, saved
from keras_densepred.faults import SettingsError
from keras_densepred.saved.classes import Classes
from keras_densepred.training.warm_start import start_from
from tests.contracts.families import small_backbone

pytestmark = pytest.mark.backend_free
CLASSES = Classes((1, 2), ("cat", "dog"))


def detector(num_classes, anchor_scale=4.0, **options):
    backbone = small_backbone("own", **options)
    return models.RetinaNet(backbone, num_classes, head_depth=1, anchor_scale=anchor_scale)


@pytest.fixture
def run(tmp_path):
    """What a recipe leaves in its output, as far as it is read here."""
    trained = detector(2)
    for weight in trained.weights:
        weight.assign(np.full(weight.shape, 0.25))
    preset = tmp_path / "run" / "preset"
    trained.plain_backbone.save_to_preset(str(preset / "backbone"))
    trained.save(preset / "detector.keras")
    saved.write_classes(preset / "classes.json", CLASSES)
    return tmp_path / "run"


@pytest.mark.parametrize("place", ["", "preset", "preset/detector.keras"])
def test_classes_go_by_name_and_new_ones_are_named(run, place):
    model = detector(3)
    said = start_from(model, run / place, ("dog", "emu", "cat"))
    assert "of the 3 classes 2 are known" in said and said.endswith("these start fresh: emu")
    prediction = model.get_layer("classification_head").prediction
    bias = keras.ops.convert_to_numpy(prediction.bias).reshape(-1, 3)
    np.testing.assert_array_equal(bias[:, [0, 2]], 0.25)
    assert np.all(bias[:, 1] < 0)  # the prior that it started with
    assert "all 2 classes included" in start_from(detector(2), run, ("dog", "cat"))


def test_other_anchors_are_told(run):
    said = start_from(detector(2, anchor_scale=3.0), run, ("dog", "cat"))
    assert "anchors of 4 strides, here they are 3: --anchor-scale 4 keeps them" in said
    assert "strides" not in start_from(detector(2), run, ("dog", "cat"))


def test_a_backbone_is_no_whole_model(run):
    model = detector(2)
    before = model.get_weights()
    assert start_from(model, run / "preset" / "backbone", ("cat", "dog")) == ""
    assert all(np.array_equal(a, b) for a, b in zip(before, model.get_weights(), strict=True))
    segmenter = models.DeepLabV3(small_backbone("own"), 2, width=8, atrous_rates=(2,))
    assert start_from(segmenter, run, ("cat", "dog")) == ""


def test_other_layers_and_nameless_classes_are_refused(run):
    with pytest.raises(SettingsError, match=r"other layers .* or use --weights-of backbone"):
        start_from(detector(2, width=4), run, ("cat", "dog"))
    (run / "preset" / "classes.json").unlink()
    with pytest.raises(SettingsError, match=r"2 classes without names and the data 3"):
        start_from(detector(3), run, ("a", "b", "c"))
    assert "all 2 classes" in start_from(detector(2), run, ("a", "b"))
