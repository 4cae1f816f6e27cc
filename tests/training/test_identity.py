"""Which run an output directory belongs to."""

import dataclasses
import json
import subprocess
import sys

import pytest

from keras_densepred import files
from keras_densepred.files import OutputError
from keras_densepred.saved import write_classes
from keras_densepred.training import SettingsError, identity

pytestmark = pytest.mark.backend_free


def test_claims_a_new_directory_and_the_same_run(tmp_path):
    run = {"epochs": 3, "seed": 0}
    output = identity.claim_output(tmp_path / "a" / "b", run, left_open={"seed"})
    assert json.loads((output / "settings.json").read_text()) == {**run, "given": ["epochs"]}
    (output / "metrics.csv").write_text("epoch\n")
    assert identity.claim_output(output, run) == output, "however it was asked for"
    assert identity.recorded_settings(output, {}) == run


def test_refuses_another_run(tmp_path):
    identity.claim_output(tmp_path, {"epochs": 3, "seed": 0})
    with pytest.raises(SettingsError, match="it has --epochs 3, and this command --epochs 4"):
        identity.claim_output(tmp_path, {"epochs": 4, "seed": 0})


RUN = {"epochs": 3, "steps": 30, "floor": 0.1, "flip": True, "seed": 0, "imports": None}
RUN |= {"backend": "jax", "train_images": 20, "points": 512, "detector": "boxes", "width": 64}


@pytest.mark.parametrize(
    ("changed", "given", "was", "now"),
    [
        ({"epochs": 4, "steps": 40}, {"epochs"}, "--epochs 3", "--epochs 4"),
        ({"epochs": 4, "seed": 1, "backend": "torch"}, {"seed"}, "--seed 0", "--seed 1"),
        ({"flip": False, "floor": 0.2}, {"flip"}, "--flip", "--no-flip"),
        ({"imports": "mine"}, {"imports"}, "no --import", "--import mine"),
        ({"epochs": 4, "steps": 40}, {}, "--epochs 3", "--epochs 4"),  # left out this time
        ({"floor": 0.2}, {}, "--floor 0.1", "--floor 0.2"),
        ({"backend": "torch", "steps": 9}, {}, "KERAS_BACKEND=jax", "KERAS_BACKEND=torch"),
        ({"train_images": 21, "steps": 9}, {}, "20 training images", "21 training images"),
        (
            {"detector": "masks", "points": 64, "epochs": 9, "floor": 0.2},
            {"points"},
            "--detector boxes, --points 512",
            "--detector masks, --points 64",
        ),
        ({"detector": "masks", "points": 64}, {}, "--detector boxes", "--detector masks"),
        ({"width": 32, "seed": 1}, {"seed"}, "--seed 0, --width 64", "--seed 1, --width 32"),
    ],
)
def test_a_refusal_names_what_the_user_gave_and_both_ways_out(tmp_path, changed, given, was, now):
    identity.claim_output(tmp_path, RUN, left_open=RUN.keys() - {"width"})
    with pytest.raises(SettingsError) as raised:
        identity.claim_output(tmp_path, RUN | changed, left_open=RUN.keys() - given)
    said = str(raised.value)
    assert f"it has {was}, and this command {now}. Give another --output, or the same" in said
    assert f"--extend {tmp_path} with another --output" in said


def test_refuses_a_run_of_another_recipe(tmp_path):
    identity.claim_output(tmp_path, RUN | {"jitter": 0.3})
    with pytest.raises(SettingsError, match=r"of another recipe \(its settings have jitter, which"):
        identity.claim_output(tmp_path, RUN | {"epochs": 4})


def test_refuses_foreign_files(tmp_path):
    (tmp_path / "thesis.txt").write_text("dear")
    with pytest.raises(SettingsError, match="is not the output of a run"):
        identity.claim_output(tmp_path, {})
    with pytest.raises(SettingsError, match="is not the output of a run"):
        identity.claim_output(tmp_path / "thesis.txt", {})
    (tmp_path / "settings.json").write_text("{")
    with pytest.raises(SettingsError, match="not readable"):
        identity.claim_output(tmp_path, {})


def test_a_run_from_before_a_setting_was_added_continues(tmp_path):
    identity.claim_output(tmp_path, {"epochs": 3})
    now = {"epochs": 3, "weight_decay": 0.05, "augment": None}
    identity.claim_output(tmp_path, now, left_open={"weight_decay", "augment"})
    recorded = identity.recorded_settings(tmp_path, now)
    assert recorded == {"epochs": 3}, "what its checkpoints carry"
    with pytest.raises(SettingsError, match=r"has no --weight-decay, and .* --weight-decay 0.05"):
        identity.claim_output(tmp_path, now, left_open={"augment"})
    with pytest.raises(SettingsError, match=r"has --epochs 3, and .* --epochs 4"):
        identity.claim_output(tmp_path, {"epochs": 4}, left_open={"epochs"})


class Split:
    def __init__(self, *classes):
        self.category_ids = [key for key, _ in classes]
        self.class_names = [name for _, name in classes]

    def __len__(self):
        return 8


@dataclasses.dataclass(frozen=True)
class Settings:
    epochs: int = 3


CLASSES = ((1, "red box"), (2, "blue disc"))


@pytest.mark.parametrize(
    "classes",
    [
        ((1, "blue disc"), (2, "red box")),
        ((1, "red box"), (2, "blue ball")),
        ((1, "red box"), (3, "blue disc")),
        ((1, "red box"),),
    ],
)
def test_other_classes_make_another_run(tmp_path, classes):
    first = identity.decisive_settings(Settings(), Split(*CLASSES))
    identity.claim_output(tmp_path, first)
    before = (tmp_path / "settings.json").read_bytes()
    now = identity.decisive_settings(Settings(), Split(*classes))
    with pytest.raises(SettingsError, match="was started with the classes red box"):
        identity.claim_output(tmp_path, now)
    assert (tmp_path / "settings.json").read_bytes() == before
    identity.claim_output(tmp_path, first)


def test_a_run_from_before_classes_were_recorded_is_known_by_its_preset(tmp_path):
    settings = identity.decisive_settings(Settings(), Split(*CLASSES))
    identity.claim_output(tmp_path, {k: v for k, v in settings.items() if k != "classes"})
    identity.claim_output(tmp_path, settings)
    write_classes(tmp_path / "preset" / "classes.json", Split(*CLASSES[::-1]))
    with pytest.raises(SettingsError, match="labels would change their meaning"):
        identity.claim_output(tmp_path, settings)


def test_a_second_run_into_the_same_output_is_refused(tmp_path):
    holder = (  # as a recipe, which does not import Keras at once
        "import sys; sys.argv[0] = 'recipes/coco_yolo.py'; from keras_densepred import files\n"
        f"with files.locked({str(tmp_path)!r}): print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", holder], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout.readline() == b"held\n"
        with pytest.raises(OutputError, match="Another run is writing"), files.locked(tmp_path):
            pass
        process.kill()
    with files.locked(tmp_path):  # the killed one left none
        assert files.is_free(tmp_path)


@dataclasses.dataclass(frozen=True)
class FilesSettings:
    train_images: str | None = None


def test_the_folder_of_images_is_decisive_beside_their_number(tmp_path):
    def of(folder):
        return identity.decisive_settings(FilesSettings(folder), Split(*CLASSES))

    before = {name: value for name, value in of("a").items() if name != identity.FOLDER}
    identity.claim_output(tmp_path / "before", before)
    identity.claim_output(tmp_path / "before", of("a"))  # from before it was recorded
    identity.claim_output(tmp_path / "now", of("a"))
    with pytest.raises(SettingsError, match=r"has --train-images a, and .* --train-images b"):
        identity.claim_output(tmp_path / "now", of("b"))


def test_what_a_run_had_before_it_could_be_set(tmp_path):
    identity.claim_output(tmp_path, {"epochs": 4, "width": 8})
    before = {"anchor_scale": lambda recorded: recorded["width"] / 2}
    for left_open in ((), {"anchor_scale"}):
        now = {"epochs": 4, "width": 8, "anchor_scale": 4.0}
        identity.require_output(tmp_path, now, left_open, before)
        with pytest.raises(SettingsError, match="it has --anchor-scale 4"):
            identity.require_output(tmp_path, {**now, "anchor_scale": 3.0}, left_open, before)
