"""What holds for every recipe."""

import dataclasses
import functools
import importlib
import itertools
import json
import os
import subprocess
import sys
import textwrap
import types
import typing

import keras
import numpy as np
import pytest

from keras_densepred import CEDNetBackbone, backbones, saved, training
from tests.data import layout_trees
from tests.recipes import toy
from tests.recipes.toy import RECIPES, ROOT, Split

LARGE = 1_281_167  # training images: a published experiment is the default
DETECTION = [name for name in RECIPES if name.startswith("coco")]


def recipe_of(name):
    return importlib.import_module(f"recipes.{name}").RECIPE


# `--multi-scale` is how YOLO trains and how segmenters are tested.
TWO_MEANINGS = {"multi_scale", "detector"}


def declarations(settings):
    """Each setting's type, default and text; the heads to choose from are a recipe's own."""
    hints = typing.get_type_hints(settings)
    for field in dataclasses.fields(settings):
        described = dict(field.metadata)
        if field.name == "head":
            del described["choices"]
        yield field.name, (hints[field.name], field.default, described)


@pytest.mark.backend_free
@pytest.mark.parametrize(("one", "other"), list(itertools.combinations(RECIPES, 2)))
def test_a_setting_is_the_same_in_every_recipe(one, other):
    ours = dict(declarations(recipe_of(one).settings))
    theirs = dict(declarations(recipe_of(other).settings))
    shared = (ours.keys() & theirs.keys()) - TWO_MEANINGS
    assert {field.name for field in dataclasses.fields(training.CommonSettings)} <= shared
    for name in shared:
        assert ours[name] == theirs[name], name


@pytest.mark.backend_free
@pytest.mark.parametrize("name", RECIPES)
def test_a_published_experiment_says_where_it_is_published(name):
    recipe = recipe_of(name)
    assert list(recipe.experiments)[-1] == "small"
    known = {field.name for field in dataclasses.fields(recipe.settings)}
    for experiment in recipe.experiments.values():
        assert experiment.source
        assert set(experiment.settings) | set(experiment.on_shapes) <= known
    for line in ("Expected:", "Status:", f"python recipes/{name}.py"):
        assert line in recipe.description


def save_config(directory, preset):
    """A saved backbone of a preset's architecture, without its weights."""
    toy.save_backbone(directory)
    path = directory / "config.json"
    saved = json.loads(path.read_text())
    config = CEDNetBackbone.architecture_presets()[preset]["config"]
    saved["config"] |= {**config, "drop_path_rate": 0.0, "stem_width": config.get("stem_width", 32)}
    path.write_text(json.dumps(saved))
    return str(directory)


@pytest.mark.backend_free
@pytest.mark.parametrize(
    ("name", "given", "drop_path", "layer_decay"),
    [
        ("coco_retinanet", {}, 0.3, 0.95),
        ("coco_mask_rcnn", {}, 0.3, 0.95),
        ("coco_mask_rcnn", {"detector": "cascade"}, 0.3, 0.7),
        ("imagenet_pretrain", {}, 0.4, None),
    ],
)
def test_weights_say_which_network_they_are_of(tmp_path, name, given, drop_path, layer_decay):
    recipe = recipe_of(name)
    weights = save_config(tmp_path / "run" / "preset" / "backbone", "cednet_next_small")
    for source in (weights, str(tmp_path / "run" / "preset"), str(tmp_path / "run")):
        settings = recipe.complete(recipe.settings(weights=source, **given), Split(LARGE))
        assert (settings.experiment, settings.preset) == ("cednet", "cednet_next_small")
        assert settings.drop_path == drop_path
        assert getattr(settings, "layer_decay", None) == layer_decay
    with pytest.raises(training.SettingsError, match="weights of cednet_next_small, and --preset"):
        recipe.complete(recipe.settings(weights=weights, preset="cednet_next_tiny"), Split(LARGE))


@pytest.mark.backend_free
@pytest.mark.parametrize("name", ["coco_retinanet", "coco_mask_rcnn"])
def test_layers_are_those_of_the_network_not_of_a_name(tmp_path, name):
    """Four blocks at C4 and more are two layers, as in S and B, whatever the directory's name."""
    backbone = CEDNetBackbone(
        p2_width=8, p2_depth=1, widths=(8, 8, 8), depths=(1, 6, 1), num_stages=2, stem_width=8
    )
    backbone.save_to_preset(str(tmp_path / "cednet_next_tiny"))
    recipe = recipe_of(name)
    settings = recipe.complete(
        recipe.settings(weights=str(tmp_path / "cednet_next_tiny"), width=8, experiment="cednet"),
        Split(100),
    )
    rules = recipe.build_model(settings, Split(100)).optimizer.rules
    for layers, power in (("stage2_encoder_c5_", 1), ("stage2_encoder_c3_", 2), ("stem_", 6)):
        (scale,) = {scale for path, (scale, _) in rules.items() if path.startswith(layers)}
        assert scale == pytest.approx(0.95**power), layers


@pytest.mark.backend_free
@pytest.mark.parametrize(
    ("name", "preset", "experiment"),
    [
        ("coco_dense", "resnet50", "coco"),
        ("coco_retinanet", "bicsnet_lite0", "bicsnet_b"),
        ("coco_retinanet", "csp_resnext_50", "cednet"),
        ("coco_retinanet", "msfm_resnet50", "msfm"),
        ("coco_reppoints", "resnet50", "msfm"),
        ("coco_mask_rcnn", "csp_resnext_50", "msfm"),
        ("coco_mask_rcnn", "cednet_resnet50", "cednet"),
        ("coco_mask_rcnn", None, "cednet"),
        ("coco_yolo", "resnet50", "efm"),
        ("coco_detr", "resnet50", "resnet"),
        ("coco_detr", None, "cednet"),
        ("voc_deeplab_v3", "resnet50", "bicsnet"),
        ("imagenet_pretrain", "peleenet", "cspnet_dense"),
        ("imagenet_pretrain", "densenet_201_elastic", "cspnet_dense"),
        ("imagenet_pretrain", "resnet50", "cednet"),
    ],
)
def test_the_familys_experiment_is_the_default_on_large_data(name, preset, experiment):
    recipe = recipe_of(name)
    assert recipe.complete(recipe.settings(preset=preset), Split(LARGE)).experiment == experiment
    assert recipe.complete(recipe.settings(preset=preset), Split(99)).experiment == "small"


@pytest.mark.backend_free
def test_the_size_must_suit_the_network():
    class Coarse:
        size_divisor = 24

    training.require_size(72, Coarse)
    with pytest.raises(training.SettingsError, match="--image-size 64 is no multiple of 24"):
        training.require_size(64, Coarse)


@pytest.mark.backend_free
@pytest.mark.parametrize("name", RECIPES)
def test_ones_own_augmentation(name, tmp_path, monkeypatch):
    """`--augment module:function` gets the recipe's transforms, and what it returns is used."""
    (tmp_path / f"mine_{name}.py").write_text(
        textwrap.dedent(
            """
            seen = []

            def augmentation(image_size, default):
                seen.append((image_size, list(default)))
                return [*default, mark]

            def mark(record, *rest):
                seen.append("mark")
                return record
            """
        )
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    recipe = recipe_of(name)
    given = recipe.settings(augment=f"mine_{name}:augmentation", image_size=64, batch_size=2)
    train, _ = recipe.open_data(given)
    settings = recipe.complete(given, train)
    images, _ = next(
        recipe.batches(settings, train, model=types.SimpleNamespace(size_divisor=32))(0)
    )
    assert images.shape[1:] == (64, 64, 3)
    (size, default), *marks = importlib.import_module(f"mine_{name}").seen
    assert size == 64 and default and "mark" in marks
    assert "augment" in training.decisive_settings(settings, train)


OWN = """
import keras

from keras_densepred import backbones
from keras_densepred.layers.image_input import image_input


@backbones.register_backbone
class Plain(backbones.PyramidBackbone):
    size_divisor = 16
    architectures = {"plain": {"width": 8}}

    def __init__(
        self, width=8, image_shape=(None, None, 3), data_format=None, dtype=None, **kwargs
    ):
        inputs, x = image_input(image_shape, data_format, dtype)
        levels = {}
        for level in range(1, 6):
            x = keras.layers.Conv2D(
                level * width, 3, 2, "same", activation="relu", name=f"conv{level}", dtype=dtype
            )(x)
            levels[f"P{level}"] = x
        del levels["P1"]
        super().__init__(
            inputs=inputs,
            pyramid_outputs=levels,
            image_shape=image_shape,
            data_format=data_format,
            dtype=dtype,
            **kwargs,
        )
        self.width = width
"""


@pytest.mark.slow_on("jax", "tensorflow")
def test_ones_own_backbone_is_pretrained_trained_and_evaluated(tmp_path):
    """`--import MODULE`; 48 pixels, which are no multiple of 32, are enough for this family."""
    (tmp_path / "own_nets.py").write_text(OWN)
    classes, boxes = tmp_path / "classes", tmp_path / "boxes"
    toy.classification(tmp_path / "a")
    toy.detection(tmp_path / "b")
    common = ["--import", "own_nets", "--image-size", "48", "--batch-size", "4"]
    common += ["--steps-per-epoch", "1", "--epochs", "1"]
    pretraining = [*common, "--data-dir", str(tmp_path / "a" / "data"), "--preset", "plain"]
    training_ = [*common, "--data-dir", str(tmp_path / "b" / "data"), "--weights", str(classes)]
    program = (  # as a recipe, which does not import TensorFlow for KerasHub
        "import sys; sys.argv[0] = 'recipes/imagenet_pretrain.py'\n"
        "from recipes import imagenet_pretrain, coco_retinanet\n"
        f"imagenet_pretrain.main({[*pretraining, '--output', str(classes)]!r})\n"
        f"coco_retinanet.main({[*training_, '--width', '8', '--output', str(boxes)]!r})\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    settings = json.loads((boxes / "settings.json").read_text())
    assert settings["preset"] == "plain", "the architecture of the weights"
    assert (boxes / "preset" / "detector.keras").is_file()


@pytest.mark.backend_free
def test_a_module_that_is_not_there_is_one_sentence():
    with pytest.raises(ImportError, match="nowhere_at_all") as raised:
        recipe_of("coco_retinanet").main(["--import", "nowhere_at_all"])
    assert "\n" not in str(raised.value)


@pytest.mark.backend_free
@pytest.mark.parametrize("name", RECIPES)
def test_a_family_is_not_asked_for_what_it_does_not_have(name):
    """ResNet has neither drop path nor layer scale, which experiments of CEDNet set."""
    recipe = recipe_of(name)
    given = recipe.settings(preset="resnet50", experiment="small")
    settings = recipe.complete(given, Split(LARGE))
    assert not backbones.find_backbone("resnet50").accepts("drop_path_rate")
    built = training.build_backbone(dataclasses.replace(settings, drop_path=0.3))
    assert np.isfinite(built.count_params())
    with pytest.raises(training.SettingsError, match="ResNetBackbone has no drop_path_rate"):
        recipe.complete(dataclasses.replace(given, drop_path=0.3), Split(LARGE))


TOYS = {
    "coco_dense": (toy.detection, toy.DENSE),
    "coco_retinanet": (toy.detection, toy.RETINANET),
    "coco_reppoints": (toy.detection, toy.REPPOINTS),
    "coco_mask_rcnn": (toy.detection, ["--width", "8", "--detector", "faster"]),
    "coco_yolo": (toy.detection, toy.YOLO),
    "coco_detr": (toy.detection, toy.DETR),
    "voc_deeplab_v3": (toy.segmentation, []),
    "ade20k_upernet": (toy.segmentation, []),
    "imagenet_pretrain": (toy.classification, []),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
def test_a_finished_run_trains_longer(tmp_path, name):
    """Into another output, with its settings, from its weights: here at a rate that moves none."""
    recipe, (data_of, flags) = recipe_of(name), TOYS[name]
    run, more = tmp_path / "run", tmp_path / "more"
    recipe.main([*data_of(tmp_path), *flags, "--output", str(run)])
    still = ["--learning-rate", "1e-12", "--weight-decay", "0", "--steps-per-epoch", "1"]
    command = ["--extend", str(run), "--epochs", "1", *still, "--output", str(more)]
    recipe.main(command)
    before, after = (json.loads((out / "settings.json").read_text()) for out in (run, more))
    changed = {key for key in after if after[key] != before[key]}
    given = {"extend", "weights", "epochs", "steps", "learning_rate", "steps_per_epoch"}
    follow = {"weight_decay", "floor", "warmup_steps", "preset", "evaluate_every", "given"}
    assert changed <= given | follow
    assert len((more / "metrics.csv").read_text().splitlines()) == 2
    first, last = (saved.load_model(saved.find_model(output)) for output in (run, more))
    configs = [getattr(m, "plain_backbone", m.backbone).get_config() for m in (first, last)]
    assert configs[0] == configs[1]
    for a, b in zip(first.trainable_variables, last.trainable_variables, strict=True):
        a, b = (keras.ops.convert_to_numpy(value) for value in (a, b))
        np.testing.assert_allclose(a, b, atol=1e-6, err_msg=name)
    recipe.main(command)  # finished, and known as such
    assert len((more / "metrics.csv").read_text().splitlines()) == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "write", "flags"),
    [
        ("coco_mask_rcnn", functools.partial(layout_trees.write_yolo, polygons=True), []),
        ("coco_yolo", layout_trees.write_voc, ["--anchors", "coco"]),
    ],
)
def test_other_layouts_from_flags_to_files(tmp_path, name, write, flags):
    """Masks from YOLO's polygons; boxes from Pascal VOC's XML files."""
    write(tmp_path / "data")
    weights = toy.save_backbone(tmp_path / "backbone")
    command = ["--data-dir", str(tmp_path / "data"), "--weights", weights, *flags]
    command += ["--image-size", "64", "--batch-size", "2", "--steps", "2"]
    results = recipe_of(name).main([*command, "--output", str(tmp_path / "out")])
    assert ("mask_AP" in results) == (name == "coco_mask_rcnn")
    assert (tmp_path / "out" / "predictions.png").is_file()
    classes = json.loads((tmp_path / "out" / "preset" / "classes.json").read_text())
    assert {entry["name"] for entry in classes} == set(layout_trees.NAMES)


@pytest.mark.backend_free
@pytest.mark.parametrize("layout", ["yolo", "voc"])
def test_labels_exported_in_another_order_are_another_run(tmp_path, layout):
    recipe = recipe_of("coco_yolo")
    write = getattr(layout_trees, f"write_{layout}")

    def claim():
        given = recipe.settings(data_dir=str(tmp_path / "data"), image_size=64, batch_size=2)
        train, _ = recipe.open_data(given)
        decisive = training.decisive_settings(recipe.complete(given, train), train)
        training.claim_output(tmp_path / "out", decisive)

    write(tmp_path / "data")
    claim()
    claim()
    names = layout_trees.NAMES[::-1]
    if layout == "yolo":
        places = "train: images/train\nval: images/val\n"
        write(tmp_path / "data", yaml=f"{places}names: {json.dumps(names)}\n")
    else:
        (tmp_path / "data" / "classes.txt").write_text("\n".join(names), encoding="utf-8")
    with pytest.raises(training.SettingsError, match="labels would change their meaning"):
        claim()
