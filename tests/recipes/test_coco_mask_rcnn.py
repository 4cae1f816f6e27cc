"""The two-stage recipe from flags to files, at toy size."""

import csv
import json

import keras
import numpy as np
import pytest
from PIL import Image

from keras_densepred import CEDNetBackbone, FeaturePyramid, data, training
from recipes import coco_mask_rcnn as recipe
from tests.recipes import toy
from tests.recipes.toy import Split

# A two-stage step is long to compile: on PyTorch, which does not, the recipe runs in every test.
compiled = pytest.mark.slow if keras.config.backend() != "torch" else ()


@pytest.fixture(scope="module")
def flags(tmp_path_factory):
    return [*toy.detection(tmp_path_factory.mktemp("toy")), "--width", "8", "--drop-path", "0.5"]


@pytest.mark.parametrize("detector", [pytest.param("mask", marks=compiled)])
def test_from_flags_to_files(flags, tmp_path, capsys, detector):
    output = tmp_path / "out"
    results = recipe.main([*flags, "--detector", detector, "--output", str(output)])
    assert 0 <= results["AP"] <= results["AP50"] <= 1 and "mask_AP50" in results
    names = {path.name for path in output.iterdir()}
    assert names == toy.REPORTS | {
        "settings.json",
        "metrics.csv",
        "curves.png",
        "predictions.png",
        "preset",
        "checkpoints",
    }
    header = (output / "metrics.csv").read_text().splitlines()[0]
    for column in ("rpn_box_loss", "class_loss", "mask_loss", "val_AP50", "val_mask_AP50"):
        assert column in header
    assert f"masks {results['mask_AP']:.3f}" in capsys.readouterr().out
    model = keras.saving.load_model(output / "preset" / "detector.keras")
    classes = json.loads((output / "preset" / "classes.json").read_text())
    assert [entry["name"] for entry in classes] == list(data.ShapesDataset(1, 64).class_names)
    card = (output / "preset" / "README.md").read_text()
    assert f"python recipes/coco_mask_rcnn.py {flags[0]} {flags[1]}" in card
    assert "| class | objects | AP | AP50 |" in card and "| mask AP | mask AP50 |" in card
    assert "license: other" in card and "pipeline_tag: image-segmentation" in card
    for entry in classes:
        assert f"| {entry['name']} | " in card
    assert type(model).__name__ == "MaskRCNN" and len(classes) == model.num_classes
    assert isinstance(
        CEDNetBackbone.from_preset(str(output / "preset" / "backbone")), CEDNetBackbone
    )


@pytest.mark.slow
def test_killed_recipe_continues_exactly(flags, tmp_path):
    toy.assert_killed_recipe_continues_exactly("coco_mask_rcnn", flags, tmp_path)


@pytest.mark.backend_free
@pytest.mark.parametrize(
    "given,expected",
    [
        (
            {"experiment": "msfm", "batch_size": 8},
            {
                "preset": "msfm_resnet50",
                "epochs": 12,
                "learning_rate": 0.01,  # by the batch
                "optimizer": "sgd",
                "weight_decay": 1e-4,
                "warmup_steps": 500,
                "copy_paste": False,
                "anchor_scale": 8.0,
            },
        ),
        (
            {"preset": "cednet_next_s", "detector": "cascade_mask"},
            {
                "experiment": "cednet",
                "epochs": 36,
                "learning_rate": 2e-4,
                "layer_decay": 0.7,
                "drop_path": 0.3,
                "scale_min": 0.1,
                "copy_paste": True,
            },
        ),
        (
            {"preset": "bicsnet_140"},
            {
                "experiment": "bicsnet",
                "epochs": 350,
                "batch_size": 128,
                "learning_rate": 0.16,
                "anchor_scale": 4.0,
            },
        ),
    ],
    ids=("msfm", "cednet", "bicsnet"),
)
def test_paper_settings(given, expected):
    """MSFM.md, "Protocol"; CEDNET.md 2.2; BICSNET.md 1.4, 1.5."""
    settings = recipe.RECIPE.complete(recipe.Settings(**given), Split(117_266))
    assert {name: getattr(settings, name) for name in expected} == expected
    assert not toy.undecided(recipe.RECIPE, settings)


@pytest.mark.backend_free
def test_msfms_schedule():
    settings = recipe.RECIPE.complete(recipe.Settings(experiment="msfm"), Split(117_266))
    steps = settings.steps_per_epoch
    assert recipe.make_schedule(settings).drops == (8 * steps, 11 * steps)


@pytest.mark.backend_free
def test_each_family_has_its_pyramid():
    def built(**given):
        settings = recipe.Settings(experiment="small", width=8, **given)
        return recipe.build_model(recipe.RECIPE.complete(settings, Split(100)), Split(100))

    cednet = built(detector="cascade")
    assert cednet.pyramid_levels == (2, 3, 4, 5, 6) and cednet.box_loss == "giou"
    resnet = built(preset="resnet50", detector="faster", dynamic=True)
    assert isinstance(resnet.backbone, FeaturePyramid) and resnet.dynamic
    grid = built(preset="resnet50", detector="grid")
    assert type(grid).__name__ == "GridRCNN" and (grid.grid_convs, grid.grid_width) == (4, 16)


@pytest.mark.backend_free
def test_grid_rcnn_with_msfms_settings():
    """POINTS.md 3.6, the 1x schedule; the head is the paper's."""
    settings = recipe.Settings(experiment="msfm", detector="grid", preset="resnet50")
    settings = recipe.RECIPE.complete(settings, Split(117_266))
    model = recipe.build_model(settings, Split(117_266))
    steps = settings.steps_per_epoch
    assert recipe.make_schedule(settings).drops == (8 * steps, 11 * steps)
    assert (settings.epochs, settings.warmup_steps, settings.learning_rate) == (12, 500, 0.02)
    assert (model.grid_convs, model.grid_width, model.grid_samples) == (8, 64, 192)


@pytest.mark.backend_free
@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--batch-size", "13"], "There are 12 training images and a batch takes 13"),
        (["--image-size", "70"], "no multiple of 32"),
        (
            ["--detector", "cascade", "--dynamic"],
            "--dynamic is for --detector faster or mask",
        ),
        (["--detector", "grid", "--dynamic"], "--dynamic is for --detector faster or mask"),
    ],
)
def test_what_cannot_be_trained_is_one_sentence(flags, tmp_path, more, message):
    with pytest.raises(ValueError, match=message) as raised:
        recipe.main([*flags, *more, "--output", str(tmp_path / "out")])
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "out" / "metrics.csv").exists()


@pytest.mark.backend_free
def test_another_run_in_the_output_is_refused(flags, tmp_path):
    training.claim_output(tmp_path, {"epochs": 99})
    with pytest.raises(training.SettingsError, match="holds a run with other settings"):
        recipe.main([*flags, "--output", str(tmp_path)])


def write_hard_images(root):
    """300 objects, one of a pixel, a crowd and nothing: four images, to train and to evaluate."""
    many = [(x, y, 5.0, 4.0) for x in range(0, 60, 3) for y in range(0, 60, 4)]
    objects = {1: many, 2: [(20.0, 30.0, 1.0, 1.0)], 3: [(8.0, 8.0, 40.0, 40.0)], 4: []}
    annotations = []
    for image, boxes in objects.items():
        for x, y, width, height in boxes:
            corners = [x, y, x + width, y, x + width, y + height, x, y + height]
            crowd = {"size": [64, 64], "counts": [520, 400, 3176]}  # columns 8 to 14, in part
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image,
                    "category_id": 1,
                    "bbox": [x, y, width, height],
                    "area": width * height,
                    "iscrowd": int(image == 3),
                    "segmentation": crowd if image == 3 else [corners],
                }
            )
    listing = {
        "images": [{"id": n, "file_name": f"{n}.png", "width": 64, "height": 64} for n in objects],
        "categories": [{"id": 1, "name": "cell"}],
        "annotations": annotations,
    }
    (root / "annotations").mkdir()
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        (root / "images" / split).mkdir(parents=True)
        for n in objects:
            pixels = rng.integers(0, 256, (64, 64, 3), "uint8")
            Image.fromarray(pixels).save(root / "images" / split / f"{n}.png")
        path = root / "annotations" / f"instances_{split}.json"
        path.write_text(json.dumps(listing))
    assert len(many) == 300


@pytest.mark.parametrize("detector", [pytest.param("mask", marks=compiled)])
def test_images_of_very_many_objects_one_pixel_crowds_and_nothing(flags, tmp_path, detector):
    write_hard_images(tmp_path)
    output = tmp_path / "out"
    more = ["--data-dir", str(tmp_path), "--detector", detector, "--output", str(output)]
    results = recipe.main([*flags, *more])
    assert all(np.isfinite(value) for value in results.values())
    rows = list(csv.DictReader((output / "metrics.csv").open()))
    assert len(rows) == 2
    for row in rows:
        assert all(np.isfinite(float(value)) for name, value in row.items() if "loss" in name)
