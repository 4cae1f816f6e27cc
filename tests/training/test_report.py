"""metrics.csv, curves, drawn predictions, the progress lines and classes.json."""

import csv
import io
import json
import re
import types

import keras
import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from keras_densepred import training as report
from keras_densepred.training.devices.cluster import entered
from keras_densepred.training.report import metrics_log
from keras_densepred.training.report.progress_line import ProgressLine, duration

ROWS = [
    {"epoch": 1, "learning_rate": 0.1, "loss": 2.0, "box_loss": 1.5},
    {"epoch": 2, "learning_rate": 0.1, "loss": 1.0, "box_loss": 0.5, "val_AP": 0.25},
]


def small_model():
    inputs = keras.Input((2,))
    model = keras.Model(inputs, keras.layers.Dense(1)(inputs))
    model.compile(keras.optimizers.SGD(0.25), "mse")
    return model


def read(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_metrics_log_writes_rows_and_survives_a_resume(tmp_path):
    log = report.MetricsLog(tmp_path / "metrics.csv", tmp_path / "curves.png")
    log.set_model(small_model())
    log.on_epoch_end(0, {"loss": 2.0})
    state = log.get_state()
    log.on_epoch_end(1, {"loss": 1.0, "val_AP": 0.5})
    whole = (tmp_path / "metrics.csv").read_bytes()
    assert read(tmp_path / "metrics.csv")[0] == {
        "epoch": "1",
        "learning_rate": "0.25",
        "loss": "2.0",
        "val_AP": "",
    }
    again = report.MetricsLog(tmp_path / "metrics.csv")
    again.set_model(log.model)
    again.set_state(state)
    assert len(read(tmp_path / "metrics.csv")) == 1
    again.on_epoch_end(1, {"loss": 1.0, "val_AP": 0.5})
    assert (tmp_path / "metrics.csv").read_bytes() == whole
    assert {path.name for path in tmp_path.iterdir()} == {"metrics.csv", "curves.png"}


def inked(path, left, right):
    """How many pixels of a share of the width are not gray (curves and boxes are coloured)."""
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("RGB")).astype(int)
    width = pixels.shape[1]
    part = pixels[:, int(left * width) : int(right * width)]
    return int((np.ptp(part, axis=2) > 60).sum())


@pytest.mark.backend_free
def test_curves(tmp_path):
    report.plot_curves(ROWS, tmp_path / "both.png")
    assert inked(tmp_path / "both.png", 0.0, 0.5) > 100
    assert inked(tmp_path / "both.png", 0.5, 1.0) > 10
    report.plot_curves(ROWS[:1], tmp_path / "losses.png")
    with Image.open(tmp_path / "both.png") as wide, Image.open(tmp_path / "losses.png") as narrow:
        assert narrow.width < wide.width
    # Of masks a third panel; the loss of validation images is in the first, beside the others.
    rows = [{**row, "val_mask_AP": 0.2, "val_loss": 5.0} for row in ROWS]
    report.plot_curves(rows, tmp_path / "masks.png")
    assert inked(tmp_path / "masks.png", 0.7, 1.0) > 10
    dear = inked(tmp_path / "masks.png", 0.0, 0.33)
    with Image.open(tmp_path / "both.png") as two, Image.open(tmp_path / "masks.png") as three:
        assert three.width * 2 == two.width * 3
    assert dear > inked(tmp_path / "both.png", 0.0, 0.5)


@pytest.mark.backend_free
def test_panels_of_curves_show_the_same_epochs():
    losses, precision = metrics_log.figure_of_curves(ROWS).axes
    assert losses.get_xlim() == precision.get_xlim()
    shown = [tick for tick in precision.get_xticks() if 0.5 <= tick <= 2.5]
    assert shown == [1, 2], "whole epochs, although one was evaluated"
    (alone,) = metrics_log.figure_of_curves(ROWS[:1]).axes
    assert [tick for tick in alone.get_xticks() if 0.5 <= tick <= 1.5] == [1]


@pytest.mark.backend_free
def test_predictions_beside_the_truth(tmp_path):
    image = np.full((40, 80, 3), 128, np.uint8)
    box = np.array([[10, 10, 60, 30]], np.float32)
    label = np.array([1])
    found = {"boxes": box, "labels": label, "confidence": np.array([0.2])}
    path = tmp_path / "sheet.png"
    report.draw_predictions(
        [image], [{"boxes": box, "labels": label}], [found], ("cat", "dog"), path
    )
    assert inked(path, 0.0, 0.5) > 500
    assert inked(path, 0.5, 1.0) == 0  # below the confidence that is drawn
    with Image.open(path) as sheet:
        corner = np.asarray(sheet.convert("L"))[30:60, sheet.width // 2 : sheet.width // 2 + 80]
    assert (corner < 20).sum() > 200, "and it says that there is nothing"
    found["confidence"] = np.array([0.9])
    report.draw_predictions(
        [image] * 3, [{"boxes": box, "labels": label}] * 3, [found] * 3, ("cat", "dog"), path
    )
    assert inked(path, 0.25, 0.5) > 500


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize("stream_class", [io.StringIO, Terminal])
def test_progress(stream_class):
    stream = stream_class()
    model = small_model()
    x = np.ones((20, 2), "float32")
    progress = report.Progress(batch_size=2, stream=stream)
    model.fit(x, x[:, :1], batch_size=2, epochs=2, verbose=0, callbacks=[progress])
    text = stream.getvalue()
    for expected in ("epoch 1/2 done: loss", "/s", "lr 2.50e-01", "left"):
        assert expected in text
    if stream_class is io.StringIO:
        lines = text.splitlines()
        assert lines[0] == "epoch 1: compiling and running the first step ..."
        assert re.fullmatch(
            r"epoch 1/2, step 2/10: loss \d+\.\d{3}, lr 2\.50e-01, \d+\.\d images/s, 0:00 left",
            lines[2],
        ), lines
        assert len(lines) == 1 + 2 * 11 and "compiling" not in "".join(lines[1:])
    progress.close()  # twice is no mistake


class OneOfTwo(report.Cluster):
    metrics_are_local = True


@pytest.mark.parametrize("stream_class", [io.StringIO, Terminal])
def test_losses_of_one_process_are_said_to_be_that(stream_class):
    """Those of the whole epoch are of all processes, and others."""
    stream = stream_class()
    progress = report.Progress(batch_size=4, stream=stream)
    x = np.ones((8, 2), "float32")
    with entered(OneOfTwo(devices=2, process_count=2)):
        small_model().fit(x, x[:, :1], batch_size=2, verbose=0, callbacks=[progress])
    assert "process 0's images" in stream.getvalue()


def rendered(line, width, height=24):
    """The lines as a terminal of some width shows them."""
    console = Console(
        file=io.StringIO(), width=width, height=height, force_terminal=True, color_system=None
    )
    console.print(line)
    return console.file.getvalue().splitlines()


LOSSES = {f"{part}_loss": "0.123" for part in ("rpn_objectness", "rpn_box", "class", "box", "mask")}
LONG = ProgressLine("epoch", "120/350", 1000, 7330, 45296, 1234.5, 12.345, "", LOSSES)
SHORT = ProgressLine("epoch", "3/12", 45, 100, 83, 7.56, 1.234, "", {"lr": "1.00e-04"})


@pytest.mark.backend_free
@pytest.mark.parametrize("width", [60, 80, 100, 120])
@pytest.mark.parametrize("line", [LONG, SHORT])
def test_a_progress_line_fits_the_terminal(line, width):
    first, second = rendered(line, width)
    assert max(len(first), len(second)) <= width
    assert f"{line.place} ━━━━━━" in first, "epoch and bar"
    for part in (f" {line.done}/{line.steps}  ", duration(line.seconds_left), "/s", "loss"):
        assert part in first
    assert first.endswith(f"loss {line.loss}")
    assert set(second.split("  ")) <= {f"{name} {text}" for name, text in line.details.items()}
    if width >= 80:
        assert first.startswith(f"epoch {line.place} ")
    assert len(rendered(line, width, height=3)) == 1


@pytest.mark.backend_free
def test_a_line_without_room_for_a_bar_has_the_numbers():
    (first, *_) = rendered(SHORT, 40)
    assert first == "3/12 45/100  1:23  7.56/s  loss 1.234"
    (first,) = rendered(ProgressLine(place="1/2", steps=9, note="compiling"), 40)
    assert first.startswith("epoch 1/2 ━━━") and first.endswith("━ 0/9  compiling")


def test_the_evaluation_shows_how_far_it_is():
    stream = Terminal()
    progress = report.Progress(batch_size=2, stream=stream)
    progress.on_train_begin()
    for done in (1, 2, 3):
        progress.on_evaluation_batch(done, 3)
    progress.close()
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", stream.getvalue())
    assert "evaluating ━" in text and "3/3  0:00 left" in text


def test_without_a_step_to_train_nothing_compiles():
    """As where a resumed run has only its last evaluation to do."""
    stream = io.StringIO()
    progress = report.Progress(batch_size=2, stream=stream)
    progress.set_params({"epochs": 1, "steps": 3})
    progress.on_train_begin()
    progress.on_epoch_begin(0)
    progress.on_epoch_end(0, {"loss": 1.0})
    assert stream.getvalue() == "epoch 1/1 done: loss 1\n"


@pytest.mark.backend_free
@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0:00"), (61, "1:01"), (3599.6, "1:00:00"), (7322, "2:02:02")]
)
def test_durations(seconds, text):
    assert duration(seconds) == text


@pytest.mark.backend_free
def test_write_atomically_leaves_nothing_behind(tmp_path):
    report.write_atomically(tmp_path / "new" / "file", b"one")
    report.write_atomically(tmp_path / "new" / "file", b"two")
    assert (tmp_path / "new" / "file").read_bytes() == b"two"
    assert len(list((tmp_path / "new").iterdir())) == 1


@pytest.mark.backend_free
def test_classes_are_written_in_the_order_of_labels(tmp_path):
    dataset = types.SimpleNamespace(category_ids=np.array([18, 3]), class_names=("dog", "été"))
    report.write_classes(tmp_path / "preset" / "classes.json", dataset)
    text = (tmp_path / "preset" / "classes.json").read_text(encoding="utf-8")
    assert json.loads(text) == [{"id": 18, "name": "dog"}, {"id": 3, "name": "été"}]
    assert "été" in text
