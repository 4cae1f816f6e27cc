"""What a recipe refuses before it works, in one sentence that names the flag."""

import contextlib
import dataclasses
import importlib
import json
import typing

import pytest

from keras_densepred import data, training
from keras_densepred.training import experiments, settings
from tests.recipes import toy

pytestmark = pytest.mark.backend_free

# Known from the flags alone: data are not looked at.
BY_FLAGS = [
    ("coco_detr", "--points 64", "--points is for --detector mask2former alone: leave it out."),
    ("coco_detr", "--detector mask2former --box-refine", "--box-refine is for --detector deform"),
    ("coco_detr", "--detector mask2former --dropout 0.1", "--dropout is for --detector deform"),
    (
        "coco_detr",
        "--query-selection centres",
        "centres: give learned or two_stage or mixed for --detector deformable_detr.",
    ),
    (
        "coco_detr",
        "--detector mask2former --query-selection mixed",
        "--query-selection mixed: give learned or centres for --detector mask2former.",
    ),
    ("coco_detr", "--copy-paste", "--copy-paste pads images, and a transformer must know"),
    ("coco_detr", "--width 30", "--width 30: give a multiple of 4, such as 28 or 32."),
    ("coco_detr", "--width 3", "--width 3: give a multiple of 4, such as 4."),
    ("coco_detr", "--optimizer sgd --backbone-rate 0.1", "--backbone-rate is for --optimizer ad"),
    ("coco_detr", "--layer-decay 0.9 --backbone-rate 0.1", "is for --layer-decay 1.0 alone"),
    ("coco_mask_rcnn", "--detector cascade --dynamic", "--dynamic is for --detector faster or m"),
    ("coco_mask_rcnn", "--preset bicsnet_48 --width 64", "--width is the neck's, and this backb"),
    ("coco_reppoints", "--preset bicsnet_lite0 --width 64", "--width is the neck's"),
    ("coco_reppoints", "--head-depth 0", "--head-depth 0: give 1 or more."),
    ("coco_dense", "--mosaic-share 0 --plain-epochs 3", "--plain-epochs is for runs with --mosaic"),
    ("coco_dense", "--preset cednet_next_pico --neck-depth 2", "--neck-depth is for backbones th"),
    ("coco_dense", "--neck-depth 0", "--neck-depth 0 is too small: give 1 or more."),
    ("coco_dense", "--gamma -1", "--gamma -1 is too small: give 0 or more."),
    ("coco_yolo", "--head yolov8 --loss ciou", "--loss has no effect beside --head yolov8"),
    ("coco_yolo", "--head yolov8 --anchors data", "--anchors has no effect beside --head yolov8"),
    ("coco_yolo", "--image-size 100", "--image-size 100: give a multiple of 32, such as 96 or 128"),
    ("voc_deeplab_v3", "--head keras_hub --aspp", "--aspp is for --head ours alone"),
    ("voc_deeplab_v3", "--head keras_cv --width 64", "--width is for --head ours or mask2former"),
    ("voc_deeplab_v3", "--head mask2former --width 30", "a multiple of 8, such as 24 or 32."),
    ("voc_deeplab_v3", "--head keras_hub --image-size 100", "a multiple of 32, such as 96 or 128"),
    ("ade20k_upernet", "--width 1", "--width 1: give 2 or more."),
    (
        "ade20k_upernet",
        "--head ced --preset convnext_tiny",
        "--head ced is one more stage of a CED",
    ),
    ("ade20k_upernet", "--schedule steps", "--schedule steps is for papers that say when the ra"),
    ("coco_dense", "--schedule power4 --warmup-steps 9", "power4 has no warm-up: give --warmup-st"),
    ("imagenet_pretrain", "--batch-size 32 --accumulate 3", "3 does not divide --batch-size 32"),
    ("imagenet_pretrain", "--val-loss", "--val-loss compares with the training's loss"),
    ("imagenet_pretrain", "--warmup-epochs 1 --warmup-steps 9", "or --warmup-steps, not both."),
    ("imagenet_pretrain", "--min-area 1.5", "--min-area 1.5 must lie from 0 to 1."),
    ("coco_retinanet", "--preset cednet_next_pico --image-size 100", "no multiple of 32"),
    ("coco_retinanet", "--optimizer sgd --layer-decay 0.9", "--layer-decay is for --optimizer a"),
    ("coco_retinanet", "--schedule steps --floor 1e-5", "--floor is for --schedule cosine or li"),
    ("coco_retinanet", "--weights-of backbone", "--weights-of is for runs with --weights: leave"),
    ("coco_retinanet", "--val-share 1", "--val-share 1 leaves no image to train on"),
    ("coco_retinanet", "--seed -1", "--seed -1 is too small: give 0 or more."),
    (
        "coco_retinanet",
        f"--seed {2**32}",
        f"--seed {2**32} is too large: give {2**32 - 1} or less.",
    ),
]
# The experiment, which depends on the data, decides the other setting.
BY_EXPERIMENT = [
    ("coco_detr", "--experiment resnet --scale-min 0.5", "--scale-min has no effect beside DETR's"),
    ("coco_dense", "--plain-epochs 3", "--plain-epochs is for runs with --mosaic-share"),
    ("coco_dense", "--mosaic-share 1 --plain-epochs 5 --epochs 5", "All 5 epochs are plain"),
    ("coco_retinanet", "--experiment bicsnet_a --floor 1e-4", "--floor is for --schedule cosine"),
    ("coco_dense", "--schedule power4", "--schedule power4 has no warm-up"),
    ("imagenet_pretrain", "--accumulate 5", "--accumulate 5 does not divide --batch-size 32"),
    ("coco_retinanet", "--image-size 100", "--image-size 100 is no multiple of 32"),
    ("ade20k_upernet", "--reduce-zero-label", "--reduce-zero-label is for runs with --data-dir"),
]


def recipe_of(name):
    return importlib.import_module(f"recipes.{name}").RECIPE


@pytest.mark.parametrize(("name", "flags", "said"), BY_FLAGS)
def test_flags_without_effect_and_impossible_numbers_before_data_are_read(name, flags, said):
    with pytest.raises(training.SettingsError) as raised:
        recipe_of(name).main([*flags.split(), "--data-dir", "not looked at"])
    message = str(raised.value)
    assert said in message and message.endswith(".") and "\n" not in message


@pytest.mark.parametrize(("name", "flags", "said"), BY_EXPERIMENT)
def test_flags_without_effect_on_the_experiment(name, flags, said, tmp_path, capsys):
    output = tmp_path / "out"
    with pytest.raises(training.SettingsError) as raised:
        recipe_of(name).main([*flags.split(), "--output", str(output)])
    assert said in str(raised.value)
    assert not output.exists() and "Looking through" not in capsys.readouterr().out


def test_a_start_of_layer_scales_that_trained_weights_replace(tmp_path):
    weights = toy.save_backbone(tmp_path / "backbone")
    with pytest.raises(training.SettingsError, match="--layer-scale is of new weights, and train"):
        recipe_of("coco_dense").main(["--weights", weights, "--layer-scale", "0.1"])


@pytest.mark.parametrize("name", toy.RECIPES)
def test_what_switches_off_is_accepted_anywhere(name):
    recipe = recipe_of(name)
    off = dict.fromkeys(recipe.meaning, 0)
    recipe.check_flags(recipe.settings(**off), set(off))
    complete = recipe.complete(recipe.settings(), toy.Split(100))
    recipe.check_flags(complete, set())


@pytest.mark.parametrize("name", toy.RECIPES)
def test_rules_are_about_settings_of_the_recipe(name):
    recipe = recipe_of(name)
    known = {field.name for field in dataclasses.fields(recipe.settings)}
    rules = [*recipe.meaning.values(), *(number.where for number in recipe.numbers.values())]
    asked = {name for rule in rules if rule is not None for name in rule.asks}
    assert recipe.meaning.keys() | recipe.numbers.keys() | asked <= known


@pytest.mark.parametrize("name", toy.RECIPES)
def test_every_number_has_bounds(name):
    hints = typing.get_type_hints(recipe_of(name).settings)
    numbers = {
        name for name, hint in hints.items() if {int, float} & {hint, *typing.get_args(hint)}
    }
    bounded = {*settings._LEAST, *settings._POSITIVE, *settings._SHARES}
    assert numbers <= bounded


def test_a_picture_that_breaks_off_is_named_before_the_model_is_built(tmp_path, capsys):
    flags = toy.detection(tmp_path)
    picture = min((tmp_path / "data" / "images" / "train").iterdir())
    picture.write_bytes(picture.read_bytes()[:-100])
    output = tmp_path / "out"
    with pytest.raises(data.ImageError, match=f"{picture.name} is damaged .*--on-bad-image skip"):
        recipe_of("coco_dense").main([*flags, *toy.DENSE, "--output", str(output)])
    assert not output.exists() and "Building" not in capsys.readouterr().out


ONE_EPOCH = ["--epochs", "1", "--steps-per-epoch", "1"]
ONE_STEP = ["--steps", "1", "--steps-per-epoch", "1"]


@pytest.mark.slow_on("jax", "tensorflow")
@pytest.mark.parametrize(
    ("name", "make", "flags", "picture", "once"),
    [
        ("coco_dense", toy.detection, toy.DENSE, "data/images/val/*1.*", ONE_EPOCH),
        ("voc_deeplab_v3", toy.segmentation, [], "data/JPEGImages/val0.png", ONE_STEP),
        ("imagenet_pretrain", toy.classification, [], "data/val/*/0.png", ONE_EPOCH),
    ],
)
def test_a_run_that_skips_a_broken_validation_picture_ends(
    name, make, flags, picture, once, tmp_path
):
    given = [*make(tmp_path), *flags, "--on-bad-image", "skip", *once]
    (broken,) = tmp_path.glob(picture)
    broken.write_bytes(broken.read_bytes()[:-100])
    output = tmp_path / "out"
    recipe_of(name).main([*given, "--output", str(output)])
    assert (output / "preset").is_dir()
    content = json.loads((output / "evaluation.json").read_text())
    recipe_ = recipe_of(name)
    _, val = recipe_.open_data(training.parse_settings(recipe_.settings, given, ""))
    assert content["images"] == len(val) - 1


@pytest.mark.parametrize(
    ("images", "devices", "accumulate", "batch"),
    [(99, 1, 1, 32), (31, 1, 1, 31), (9, 1, 2, 8), (11, 4, 1, 8), (11, 2, 3, 6), (3, 4, 1, 32)],
)
def test_a_smaller_batch_splits_over_devices_and_steps(images, devices, accumulate, batch):
    recipe, said = recipe_of("imagenet_pretrain"), []
    options = dict(large=100, devices=devices, defaults=recipe.defaults, say=said.append)
    given = recipe.settings(accumulate=accumulate)
    complete = experiments.complete(given, recipe.experiments, toy.Split(images), **options)
    assert complete.batch_size == batch
    assert len(said) == (batch < 32)


def test_a_batch_that_does_not_split_over_the_devices(tmp_path, monkeypatch, capsys):
    """Is refused before any data are read."""
    two = contextlib.nullcontext(training.Cluster(devices=2))
    monkeypatch.setattr(training.run, "distribute", lambda *arguments: two)
    with pytest.raises(training.DevicesError, match="A batch of 3 does not split over 2 devices"):
        recipe_of("coco_dense").main(["--batch-size", "3", "--output", str(tmp_path / "out")])
    assert "Reading" not in capsys.readouterr().out


FEW = ["--image-size", "64", "--epochs", "1", "--steps-per-epoch", "1", "--evaluate-every", "1"]


def test_fewer_pictures_than_a_batch_train_in_a_smaller_one(tmp_path, capsys):
    for count, split in ((3, "train"), (2, "val")):
        data.ShapesDataset(count, 64, 0, split).write_coco(tmp_path / "data")
    flags = [*FEW, "--data-dir", str(tmp_path / "data"), *toy.DENSE]
    flags += ["--weights", toy.save_backbone(tmp_path / "backbone")]
    with pytest.raises(training.SettingsError, match="There are 3 training images and a batch"):
        recipe_of("coco_dense").main(
            [*flags, "--batch-size", "4", "--output", str(tmp_path / "out")]
        )
    assert not (tmp_path / "out").exists()
    recipe_of("coco_dense").main([*flags, "--output", str(tmp_path / "out")])
    printed = capsys.readouterr().out
    assert "There are 3 training images: a batch has 3 of them, not 8 (--batch-size)." in printed
    assert "global batch 3" in printed and (tmp_path / "out" / "preset").is_dir()
