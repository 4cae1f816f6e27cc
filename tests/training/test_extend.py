"""`--extend RUN`: which settings a longer run has."""

import dataclasses
import json

import pytest

from keras_densepred import training
from keras_densepred.training import Experiment, PerBatch, SettingsError
from keras_densepred.training.extend import flags_of_run
from tests.recipes.toy import Split

pytestmark = pytest.mark.backend_free


@dataclasses.dataclass(frozen=True)
class Settings(training.DetectionSettings):
    head: str | None = training.setting(None, "which")


EXPERIMENTS = {
    "small": Experiment(
        "few images",
        {
            "preset": "cednet_next_pico",
            "image_size": 64,
            "batch_size": 8,
            "epochs": 4,
            "optimizer": "sgd",
            "learning_rate": PerBatch(0.1, 8),
            "head": "ours",
        },
    ),
}


class Data(Split):
    category_ids = (1,)


def save_run(output, **given):
    """What a finished run of 80 images leaves, as far as it is read here."""
    left_open = {field.name for field in dataclasses.fields(Settings)} - given.keys()
    settings = training.experiments.complete(Settings(**given), EXPERIMENTS, Split(80), large=1000)
    (output / "preset").mkdir(parents=True)
    (output / "preset" / "detector.keras").touch()
    recorded = training.decisive_settings(settings, Data(80))
    training.claim_output(output / "new", recorded, left_open)
    (output / "new" / "settings.json").rename(output / "settings.json")
    return output


def extended(run, **said):
    said = {"extend": str(run), "epochs": 9, "output": str(run.parent / "more"), **said}
    return flags_of_run(Settings, said, EXPERIMENTS, {})


def test_it_is_the_runs_command_but_for_the_flags_given(tmp_path):
    run = save_run(tmp_path / "run", data_dir="here", head="theirs", seed=3, val_share=0.2)
    given = extended(run, image_size=96)
    expected = {"data_dir": "here", "val_share": 0.2, "head": "theirs", "seed": 3}
    expected |= {"image_size": 96, "epochs": 9, "weights": str(run), "extend": str(run)}
    assert {name: given[name] for name in expected} == expected
    assert not {"preset", "steps", "layer_scale"} & given.keys()
    assert extended(run, freeze_backbone=True)["freeze_backbone"]


def test_the_schedule_starts_again_from_what_was_said(tmp_path):
    followed = extended(save_run(tmp_path / "a", data_dir="x"), batch_size=4)
    for name in ("warmup_steps", "floor", "steps_per_epoch", "evaluate_every", "learning_rate"):
        assert name not in followed, "what follows from the others follows from the new ones"
    said = {"warmup_steps": 7, "evaluate_every": 1, "learning_rate": 0.5, "steps_per_epoch": 3}
    kept = extended(save_run(tmp_path / "b", data_dir="x", **said))
    assert {name: kept[name] for name in said} == said
    assert "floor" not in kept
    equal = extended(save_run(tmp_path / "c", data_dir="x", steps_per_epoch=10), batch_size=4)
    assert equal["steps_per_epoch"] == 10, "asked for, though it is what 80 images give"


@pytest.mark.parametrize("place", ["data_dir", "tfds", "train_annotations"])
def test_data_are_the_runs_or_others_as_a_whole(tmp_path, place):
    run = save_run(tmp_path / "run", data_dir="here", layout="yolo", val_share=0.2)
    given = extended(run, **{place: "there"})
    assert given[place] == "there"
    assert not {"data_dir", "layout", "val_share"} - {place} & given.keys()


def test_a_coco_file_and_its_images(tmp_path):
    files = {"train_annotations": "a.json", "train_images": "a", "val_annotations": "b.json"}
    run = save_run(tmp_path / "run", **files)
    assert json.loads((run / "settings.json").read_text())["train_images"] == 80
    given = extended(run)
    assert {name: given[name] for name in files} == files


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"epochs": None}, "say for how long, with --epochs"),
        ({"output": None}, "give another --output"),
        ({"weights": "x"}, "leave --weights out"),
        ({"weights_of": "all"}, "leave --weights-of out"),
        ({"preset": "resnet50"}, "goes on with that run's preset, cednet_next_pico: leave"),
        ({"experiment": "paper"}, "that run's experiment, small: leave --experiment out"),
    ],
)
def test_what_contradicts_it_is_one_sentence(tmp_path, said, message):
    run = save_run(tmp_path / "run", data_dir="here")
    with pytest.raises(SettingsError, match=message):
        extended(run, **said)
    assert extended(run, preset="cednet_next_pico", experiment="small", epochs=None, steps=9)


def test_what_is_no_finished_run_of_the_recipe_is_refused(tmp_path):
    run = save_run(tmp_path / "run", data_dir="here")
    with pytest.raises(SettingsError, match="give another --output"):
        extended(run, output=str(run / ".." / "run"))
    with pytest.raises(SettingsError, match="is not the output of a run"):
        extended(run / "preset")
    (run / "preset" / "detector.keras").unlink()
    with pytest.raises(SettingsError, match="has not ended: the command that started it"):
        extended(run)
    recorded = json.loads((run / "settings.json").read_text())
    (run / "settings.json").write_text(json.dumps(recorded | {"mosaic": True}))
    with pytest.raises(SettingsError, match=r"of another recipe .its settings have mosaic"):
        extended(run)
