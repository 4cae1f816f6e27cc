"""Several devices and processes: the same results as one, exact resume, one sum of the gradient.

Float32 sums in another order: weights and history agree to 1e-5, relative or absolute.
"""

import contextlib
import importlib
import pathlib
import shutil
import signal

import keras
import numpy as np
import pytest

from keras_densepred import training
from tests.hosts import repaired
from tests.training import distribution_toy as toy
from tests.training.processes import (
    BACKEND,
    DEADLINE,
    assert_close,
    finish,
    result,
    start,
    start_two,
)

TOY = pathlib.Path(toy.__file__)


def kill_one(victim, directory, *flags, **variables):
    """Starts two, waits until one has killed itself, and ends the other, as a launcher does."""
    processes = start_two([TOY, directory], "--kill", 14, victim, *flags, **variables)
    try:
        if BACKEND == "torch":
            assert processes[0].wait(DEADLINE) != 0
        else:
            assert processes[victim].wait(DEADLINE) == -signal.SIGKILL
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def one_device(directory, accumulate=None):
    flags = ["--accumulate", str(accumulate)] if accumulate else []
    toy.main([str(directory), *flags])
    return result(directory)


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    return one_device(tmp_path_factory.mktemp("one"))


def check_sums(found):
    """One sum of each gradient in a step; beside it only the statistics of a batch norm.

    And, of Keras 3.16 on PyTorch, single numbers: those that its metrics count in.
    """
    sums, gradient = found["sums"].tolist(), int(found["gradient_bytes"])
    if BACKEND == "jax":  # XLA merges what it can: the bytes count
        assert gradient <= sum(sums) <= gradient + 256
    else:
        assert sums.count(gradient) == 1
        assert sum(size for size in sums if size > 4) <= gradient + 256


@pytest.mark.slow_on("tensorflow")
def test_devices_of_one_process_train_as_one(tmp_path, expected):
    if BACKEND == "torch":  # one device in each process
        with (
            pytest.raises(training.DevicesError, match=r"start with `torchrun --nproc-per-node=2"),
            training.distribute(2),
        ):
            pass
        return
    count = 8 if BACKEND == "jax" else 2
    flags = ["--devices", count, "--simulate", count, "--count"]
    simulated = f"--xla_force_host_platform_device_count={count}"
    finish([start([TOY, tmp_path, *flags], XLA_FLAGS=simulated)])
    found = result(tmp_path)
    assert found["cluster"].tolist() == [count, 1]
    if BACKEND == "jax":  # TensorFlow adds on one CPU without a collective
        check_sums(found)
    assert_close(found, expected)


@pytest.mark.skipif(BACKEND != "jax", reason="splits weights on JAX alone")
def test_split_weights_train_as_whole_ones(tmp_path, expected):
    """And are saved and read again as such: the second run goes on from a checkpoint."""
    flags = ["--devices", 4, "--shard"]
    simulated = "--xla_force_host_platform_device_count=4"
    killed = start([TOY, tmp_path, *flags, "--kill", 14, 0], XLA_FLAGS=simulated)
    killed.communicate(timeout=DEADLINE)
    assert killed.returncode == -signal.SIGKILL
    finish([start([TOY, tmp_path, *flags], XLA_FLAGS=simulated)])
    found = result(tmp_path)
    assert found["start"].tolist() == [1, 2]
    assert_close(found, expected)
    assert found["kept_bytes"] < 0.4 * expected["kept_bytes"]


@pytest.mark.slow_on("jax")
def test_weights_split_over_two_processes_train_as_whole_ones(tmp_path, request):
    """Of which none can read a weight alone; one process goes on from their checkpoint."""
    if BACKEND != "jax":
        with pytest.raises(training.DevicesError, match="on JAX alone"):
            toy.main([str(tmp_path), "--shard"])
        return
    expected = request.getfixturevalue("expected")
    simulated = {"XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    kill_one(1, tmp_path, "--shard", **simulated)
    shutil.copytree(tmp_path, tmp_path / "alone")
    finish(start_two([TOY, tmp_path], "--shard", **simulated))
    found = result(tmp_path)
    assert found["start"].tolist() == [1, 2]
    assert found["cluster"].tolist() == [4, 2]
    assert_close(found, expected)
    assert found["kept_bytes"] < 0.4 * expected["kept_bytes"]
    toy.main([str(tmp_path / "alone")])
    found = result(tmp_path / "alone")
    assert found["start"].tolist() == [1, 2]
    assert_close(found, expected)


@pytest.mark.slow_on("jax", "tensorflow")
def test_two_processes_one_killed(tmp_path, expected):
    kill_one(1, tmp_path)
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == ["step-00000010", "step-00000012"]
    finish(start_two([TOY, tmp_path], "--count"))
    found = result(tmp_path)
    assert found["start"].tolist() == [1, 2]
    assert found["cluster"].tolist() == [2, 2]
    assert (found["found"] - 2**40).tolist() == [0, 0, 1, 2]
    assert found["computed_it"].tolist() == [True, False]
    check_sums(found)
    assert_close(found, expected)


@pytest.mark.slow
def test_killed_processes_continue_bit_for_bit(tmp_path):
    """With dropout, whose draws are part of the state, and accumulated gradients."""
    accumulates = () if BACKEND == "tensorflow" else ("--accumulate", 4)
    flags = (*accumulates, "--dropout", 0.5)
    finish(start_two([TOY, tmp_path / "whole"], *flags))
    kill_one(0, tmp_path / "killed", *flags)
    finish(start_two([TOY, tmp_path / "killed"], *flags))
    whole, killed = result(tmp_path / "whole"), result(tmp_path / "killed")
    assert killed["start"].tolist() == [1, 2]
    for name in whole.keys() - {"start"}:
        # TensorFlow saves an epoch's mean as one sum over the devices, from which they go on.
        rounding = 2e-7 if BACKEND == "tensorflow" and name.startswith("history_") else 0
        np.testing.assert_allclose(killed[name], whole[name], rounding, err_msg=name)


@pytest.mark.slow
def test_accumulated_gradients(tmp_path):
    """On several devices as on one; TensorFlow's refuse."""
    processes = start_two([TOY, tmp_path / "two"], "--accumulate", 4)
    if BACKEND == "tensorflow":
        for process in processes:
            _, errors = process.communicate(timeout=DEADLINE)
            assert process.returncode != 0
            assert "DevicesError: On TensorFlow 2 devices cannot add up the gradients" in errors
        return
    finish(processes)
    assert_close(result(tmp_path / "two"), one_device(tmp_path / "one", 4))


def test_only_tensorflow_refuses_to_accumulate():
    """Before a step is compiled, in which Keras would fail."""
    engine = importlib.import_module(f"keras_densepred.training.devices.{BACKEND}")
    kinds = {"tensorflow": "TensorFlowCluster", "jax": "JaxCluster", "torch": "TorchCluster"}
    cluster = getattr(engine, kinds[BACKEND])(devices=2)
    cluster.check_accumulation(1)
    refusal = pytest.raises(training.DevicesError, match=r"2 devices cannot add up .* of 4 steps: ")
    with refusal if BACKEND == "tensorflow" else contextlib.nullcontext():
        cluster.check_accumulation(4)


@pytest.mark.slow
@repaired(keras, "3.16", "torch")
def test_keras_alone_does_not_train_in_several_processes(tmp_path, expected):
    """What `Cluster.training` is for; on PyTorch Keras 3.16 does it, see `devices.torch`."""
    if BACKEND == "jax":  # where it does
        return
    processes = start_two([TOY, tmp_path], "--plain")
    if BACKEND == "tensorflow":
        for process in processes:
            _, errors = process.communicate(timeout=DEADLINE)
            assert process.returncode != 0
            assert "Error" in errors
    else:
        finish(processes)
        with pytest.raises(AssertionError):
            assert_close(result(tmp_path), expected)


def test_one_device_by_default():
    with training.distribute() as cluster:
        assert (cluster.devices, cluster.shard, cluster.is_main) == (1, (0, 1), True)
        assert training.current_cluster() is cluster
        assert cluster.describe(8) == f"{BACKEND} on 1 device, global batch 8"
    assert keras.distribution.distribution() is None


def test_batches_go_to_fit_as_they_are_on_one_device():
    def batches():
        yield (np.zeros((2, 3), "float32"),)

    assert next(training.Cluster().fit_input(batches))[0].shape == (2, 3)


def test_batch_that_does_not_split():
    cluster = training.Cluster(devices=8, process_count=2)
    assert cluster.rows(16) == 8
    with pytest.raises(training.DevicesError, match=r"A batch of 12 does not split over 8 devices"):
        cluster.rows(12)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"devices": 0}, "0 devices were asked for: use 1 or more"),
        ({"processes": 0}, "0 processes were asked for: use 1 or more"),
        ({"process_id": 1}, "without the number of processes"),
        ({"processes": 1, "process_id": 3}, "The process id is 3, and there is only one"),
        ({"processes": 2}, "give each its process id, 0 to 1"),
        (
            {"devices": 1, "shard_weights": True},
            "and there is one: leave it out" if BACKEND == "jax" else "on JAX alone",
        ),
        (
            {"processes": 2, "process_id": 2, "coordinator": "localhost:1234"},
            "The process id is 2, and 2 processes have the ids 0 to 1",
        ),
        (
            {"processes": 2, "process_id": 0, "coordinator": "localhost"},
            "'localhost', which is no host:port",
        ),
    ],
)
def test_arguments_that_do_not_fit(arguments, message):
    with (
        pytest.raises(training.DevicesError, match=message) as raised,
        training.distribute(**arguments),
    ):
        pass
    assert "\n" not in str(raised.value)


def test_devices_that_are_not_there():
    with (
        pytest.raises(training.DevicesError, match=r"^99 devices were asked for"),
        training.distribute(99),
    ):
        pass


def test_environment_that_cannot_be_used(monkeypatch):
    variables = {
        "jax": [("KERAS_DISTRIBUTION_NUM_PROCESSES", "two", "'two', which is no whole number")],
        "torch": [
            ("WORLD_SIZE", "two", "'two', which is no whole number"),
            ("WORLD_SIZE", "2", "WORLD_SIZE and no RANK, MASTER_ADDR, MASTER_PORT"),
        ],
        "tensorflow": [
            ("TF_CONFIG", "{'cluster'", "TF_CONFIG is no JSON"),
            ("TF_CONFIG", "[1]", "TF_CONFIG does not describe workers"),
            ("TF_CONFIG", '{"cluster": {"worker": ["a:1"], "chief": ["b:1"]}}', "has a chief"),
            (
                "TF_CONFIG",
                '{"cluster": {"worker": ["a:1", "b:1"]}, "task": {"type": "worker", "index": 2}}',
                "the index 2, and its 2 workers have the indices 0 to 1",
            ),
        ],
    }
    for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value, message in variables[BACKEND]:
        monkeypatch.setenv(name, value)
        with (
            pytest.raises(training.DevicesError, match=message) as raised,
            training.distribute(),
        ):
            pass
        assert "\n" not in str(raised.value)


class SecondProcess(training.Cluster):
    """The second of two processes, with the first one's words in its ear."""

    def __init__(self, told):
        super().__init__(devices=2, process_count=2, process_index=1)
        object.__setattr__(self, "told", told)

    def gather(self, arrays):
        return {"text": np.frombuffer(self.told.encode(), np.uint8)}


def test_main_process_fails_for_all():
    ran = []
    SecondProcess("").run_on_main(lambda: ran.append(1))
    assert not ran  # the main process does it
    with pytest.raises(training.DevicesError, match=r"main process stopped with OSError: disk"):
        SecondProcess("OSError: disk full").run_on_main(lambda: None)


@pytest.mark.skipif(BACKEND != "torch", reason="about PyTorch's process groups")
def test_a_process_group_that_is_open_is_taken_and_left_open():
    """Ray opens one before it calls the recipe, and closes it."""
    import torch.distributed

    from keras_densepred.training.devices.torch import TorchCluster

    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        with training.distribute() as cluster:
            assert (cluster.devices, cluster.shard) == (1, (0, 1))
        with (
            pytest.raises(training.DevicesError, match="open with 1 processes, one device each"),
            training.distribute(devices=2),
        ):
            pass
        assert torch.distributed.is_initialized()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch.distributed, "get_world_size", lambda: 2)
            patch.setattr(torch.distributed, "get_rank", lambda: 1)
            with training.distribute() as cluster:
                assert isinstance(cluster, TorchCluster)
                assert (cluster.devices, cluster.shard, cluster.is_main) == (2, (1, 2), False)
        assert torch.distributed.is_initialized()
    finally:
        torch.distributed.destroy_process_group()
