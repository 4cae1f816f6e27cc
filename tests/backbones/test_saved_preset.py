"""Which backbone is in a preset, and tasks that load it whichever it is."""

import keras
import keras_hub
import numpy as np
import pytest

from keras_densepred.backbones import CEDNetBackbone, DetectionPyramid, HostBackbone
from keras_densepred.backbones.find import load_backbone
from keras_densepred.backbones.saved_preset import (
    BackboneClass,
    any_backbone,
    saved_backbone_class,
)
from keras_densepred.models import RetinaNetKerasHub
from tests.networks import max_difference

pytestmark = pytest.mark.backend_free


@pytest.fixture(scope="module")
def backbone():
    return CEDNetBackbone(
        p2_width=8, p2_depth=1, widths=(8, 8, 8), depths=(1, 1, 1), num_stages=1, stem_width=8
    )


class Hub:
    """Stands in for `keras_hub.models.Backbone.from_preset`, which would download a handle."""

    def __init__(self, backbone):
        self.backbone = backbone
        self.asked = []

    def __call__(self, preset, load_weights=True):
        self.asked.append((preset, load_weights))
        return self.backbone


def test_the_class_is_read_from_a_directory_without_building_the_network(
    backbone, tmp_path, monkeypatch
):
    DetectionPyramid(backbone, width=8).save_to_preset(str(tmp_path / "pyramid"))
    (tmp_path / "functional").mkdir()
    (tmp_path / "functional" / "config.json").write_text('{"registered_name": "Functional"}')
    monkeypatch.setattr(keras_hub.models.Backbone, "from_preset", None)
    assert saved_backbone_class(str(tmp_path / "pyramid")) is DetectionPyramid
    assert saved_backbone_class(str(tmp_path / "functional")) is keras.Model


def test_keras_hub_is_asked_for_a_handle_and_reads_no_weights(backbone, monkeypatch):
    hub = Hub(backbone)
    monkeypatch.setattr(keras_hub.models.Backbone, "from_preset", hub)
    assert saved_backbone_class("hf://somebody/cednet") is CEDNetBackbone
    assert hub.asked == [("hf://somebody/cednet", False)]


def test_keras_hub_says_what_is_wrong(tmp_path):
    with pytest.raises(ValueError, match="preset"):
        saved_backbone_class(str(tmp_path / "none"))
    (tmp_path / "config.json").write_text('{"registered_name": "theirs>Unknown", "config": {}}')
    with pytest.raises(ValueError, match="theirs>Unknown"):
        saved_backbone_class(str(tmp_path))
    with pytest.raises(ValueError, match="theirs>Unknown"):
        RetinaNetKerasHub.from_preset(str(tmp_path), num_classes=2)


def test_a_task_has_its_own_backbone_class_except_while_it_loads(backbone, tmp_path):
    class Task:
        backbone_cls = BackboneClass(CEDNetBackbone)

    DetectionPyramid(backbone, width=8).save_to_preset(str(tmp_path))
    with pytest.raises(RuntimeError), any_backbone(str(tmp_path)):
        assert Task.backbone_cls is Task().backbone_cls is DetectionPyramid
        raise RuntimeError
    assert Task.backbone_cls is Task().backbone_cls is CEDNetBackbone


def test_a_network_of_keras_hubs_around_ours_is_taken_as_a_host(tmp_path):
    theirs = keras_hub.models.RetinaNetBackbone(
        CEDNetBackbone.from_preset("cednet_next_pico"), 3, 5, use_p5=False
    )
    theirs.save_to_preset(str(tmp_path / "theirs"))
    ours = load_backbone(str(tmp_path / "theirs"))
    assert isinstance(ours, HostBackbone) and ours.levels == (3, 4, 5)
    ours.save_to_preset(str(tmp_path / "ours"))
    again = load_backbone(str(tmp_path / "ours"))
    images = np.random.default_rng(0).uniform(size=(1, 64, 64, 3)).astype("float32")
    expected = theirs(images)
    for backbone in (ours, again):
        outputs = backbone(images)
        assert all(max_difference(outputs[level], expected[level]) == 0 for level in expected)
