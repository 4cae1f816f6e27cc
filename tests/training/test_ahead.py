"""A batch is sent before the one before it is trained on, and training does not notice."""

import keras
import numpy as np
import pytest

from keras_densepred import training
from keras_densepred.training.devices import ahead, cluster
from tests.training import resume_toy

SEEN: list = []


def told(what):
    def tell(batch):
        SEEN.append((what, batch))
        return batch

    return tell


@pytest.fixture(autouse=True)
def nothing_seen():
    SEEN.clear()


def batches(count, fault=None):
    try:
        yield from range(count)
        if fault is not None:
            raise fault
    finally:
        SEEN.append("closed")


def test_each_is_begun_before_the_one_before_is_handed_out():
    for number, batch in enumerate(ahead.a_batch_ahead(batches(3), told("begin"), told("end"))):
        assert batch == number
        SEEN.append("step")
    assert [
        *(("begin", 0), ("begin", 1), ("end", 0), "step", ("begin", 2), ("end", 1), "step"),
        *("closed", ("end", 2), "step"),
    ] == SEEN


def test_one_and_none():
    assert list(ahead.a_batch_ahead(batches(1), told("begin"), told("end"))) == [0]
    assert list(ahead.a_batch_ahead(batches(0), told("begin"), told("end"))) == []


def test_all_before_a_fault_are_trained_on():
    handed = []
    with pytest.raises(ValueError, match="unreadable"):
        for batch in ahead.a_batch_ahead(
            batches(2, ValueError("unreadable")), told("begin"), told("end")
        ):
            handed.append(batch)
    assert handed == [0, 1]


def test_closing_it_closes_the_batches():
    opened = ahead.a_batch_ahead(batches(5), told("begin"), told("end"))
    next(opened)
    opened.close()
    assert SEEN[-1] == "closed"


def test_without_a_gpu_batches_are_as_they_were(monkeypatch):
    opened = batches(1)
    if keras.backend.backend() == "torch":
        import torch

        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert ahead.ahead_on_device(opened) is opened
    opened.close()


class Interrupt(Exception):
    pass


class Stop(resume_toy.KillAfter):
    def on_train_batch_end(self, batch, logs=None):
        self.left -= 1
        if self.left == 0:
            raise Interrupt


def tensors(batch):
    return keras.tree.map_structure(keras.ops.convert_to_tensor, batch)


def test_a_run_that_was_interrupted_ends_with_the_same_weights(tmp_path, monkeypatch):
    model, rows, _ = resume_toy.train(tmp_path / "whole")
    begin = tensors if keras.backend.backend() != "tensorflow" else lambda batch: batch

    def sent_ahead(batches):
        return ahead.a_batch_ahead(batches, begin, lambda batch: batch)

    monkeypatch.setattr(cluster, "ahead_on_device", sent_ahead)
    monkeypatch.setattr(resume_toy, "KillAfter", Stop)
    with pytest.raises(Interrupt):
        resume_toy.train(tmp_path / "killed", kill_after=9)
    ours, ours_rows, start = resume_toy.train(tmp_path / "killed")
    assert start != training.Position(0, 0)
    for a, b in zip(ours.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    assert ours_rows == rows
