"""Loggers and users' callbacks."""

import sys
import types

import keras
import pytest
from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader

from keras_densepred.faults import SettingsError
from keras_densepred.training.loop.users import load_callbacks
from keras_densepred.training.report.loggers import make_logger


def trained(callback):
    inputs = keras.Input((2,))
    model = keras.Model(inputs, keras.layers.Dense(1)(inputs))
    model.compile(keras.optimizers.SGD(0.25), "mse")
    callback.set_model(model)
    callback.on_train_begin()
    callback.on_epoch_end(0, {"loss": 2.0})
    callback.on_epoch_end(1, {"loss": 1.0, "val_AP": 0.5})
    callback.on_train_end()


def test_tensorboard_files_of_a_run_that_is_continued(tmp_path):
    (callback,) = make_logger("tensorboard", tmp_path, {})
    trained(callback)
    trained(callback)
    names = sorted(path.name for path in (tmp_path / "tensorboard").iterdir())
    assert [name.split(".")[3] for name in names] == ["0000000001", "0000000002"]
    events = [
        event
        for name in names
        for event in LegacyEventFileLoader(str(tmp_path / "tensorboard" / name)).Load()
    ]
    assert [event.file_version for event in events[::2]] == ["brain.Event:2"] * 2
    found = {value.tag: value.simple_value for value in events[3].summary.value}
    assert found == {"epoch/loss": 1.0, "epoch/val_AP": 0.5, "epoch/learning_rate": 0.25}
    assert [event.step for event in events[1::2]] == [1, 2]
    assert make_logger(None, tmp_path, {}) == []


class FakeRun:
    def __init__(self, calls):
        self.calls, self.id = calls, "k7"
        self.info = types.SimpleNamespace(run_id="k7")

    def log(self, numbers, step):
        self.calls.append(("log", step, numbers))

    def finish(self):
        self.calls.append(("finish",))


def fake_module(calls):
    def start(**options):
        calls.append(("start", options))
        return FakeRun(calls)

    return types.SimpleNamespace(
        init=start,
        start_run=start,
        log_params=lambda texts: calls.append(("params", texts)),
        log_metrics=lambda numbers, step: calls.append(("log", step, numbers)),
        end_run=lambda: calls.append(("finish",)),
    )


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_services_get_settings_and_numbers_and_go_on(tmp_path, monkeypatch, name):
    calls = []
    monkeypatch.setitem(sys.modules, name, fake_module(calls))
    (callback,) = make_logger(name, tmp_path / "mine", {"epochs": 2})
    trained(callback)
    logged = [call[1:] for call in calls if call[0] == "log"]
    assert logged[0] == (1, {"loss": 2.0, "learning_rate": 0.25})
    assert logged[1] == (2, {"loss": 1.0, "val_AP": 0.5, "learning_rate": 0.25})
    assert calls[-1] == ("finish",) and "mine" in str(calls[0]) and "epochs" in str(calls[:2])
    (again,) = make_logger(name, tmp_path / "mine", {"epochs": 2})
    again.set_state(callback.get_state())
    calls.clear()
    trained(again)
    assert "k7" in str(calls[0]), "the same run"


@pytest.mark.backend_free
@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_service_that_is_not_installed(tmp_path, monkeypatch, name):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=r"pip install .*\[log\]"):
        make_logger(name, tmp_path, {})


MODULE = """
import keras
class Mine(keras.callbacks.Callback):
    pass
def made():
    return Mine()
number = int
def broken():
    raise KeyError("no key")
"""


def test_users_callbacks(tmp_path, monkeypatch):
    (tmp_path / "their_callbacks.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    loaded = load_callbacks("their_callbacks:Mine, their_callbacks:made")
    assert [type(callback).__name__ for callback in loaded] == ["Mine", "Mine"]
    for name, message in (
        ("their_callbacks", "is named as module:name"),
        ("their_callbacks:number", "no Keras callback"),
        ("their_callbacks:broken", "no key"),
        ("their_callbacks:nothing", "nothing"),
        ("no_such_module:Mine", "no_such_module"),
    ):
        with pytest.raises(SettingsError, match=message) as raised:
            load_callbacks(name)
        assert "\n" not in str(raised.value)
