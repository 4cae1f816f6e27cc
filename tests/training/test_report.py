"""metrics.csv, curves, drawn predictions, the progress lines and classes.json."""

import csv
import io
import json
import types

import keras
import numpy as np
import pytest
from PIL import Image

from keras_densepred import training as report
from keras_densepred.training.report import progress

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
    for expected in ("epoch 1/2 done: loss", "images/s", "lr 2.50e-01", "left"):
        assert expected in text
    progress.close()  # twice is no mistake


@pytest.mark.backend_free
@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0:00"), (61, "1:01"), (3599.6, "1:00:00"), (7322, "2:02:02")]
)
def test_durations(seconds, text):
    assert progress._duration(seconds) == text


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
