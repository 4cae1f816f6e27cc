"""Programs that tests start in one process or in two, and what the toy of distribution wrote."""

import contextlib
import json
import os
import pathlib
import socket
import subprocess
import sys

import keras
import numpy as np

ROOT = pathlib.Path(__file__).resolve().parents[2]
BACKEND = keras.backend.backend()
DEADLINE = 400  # seconds for a run that takes 15


def environment(**more):
    drop = ("TF_CONFIG", "XLA_FLAGS", "WORLD_SIZE", "RANK")
    kept = {name: value for name, value in os.environ.items() if name not in drop}
    return {**kept, "PYTHONPATH": str(ROOT), **more}


def free_ports(count):
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("localhost", 0))
        return [each.getsockname()[1] for each in sockets]


def start(command, **variables):
    return subprocess.Popen(
        [sys.executable, *map(str, command)],
        env=environment(**variables),
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def start_two(command, *flags, **variables):
    """Starts a program in two processes as a user of the backend does.

    Args:
        command: of Python.
        flags: of the command.
        variables: of the environment, more.
    """
    command, ports = [*command, *flags], free_ports(2)
    if BACKEND == "torch":
        launcher = ("-m", "torch.distributed.run", "--nproc-per-node=2")
        where = ("--master-addr=localhost", f"--master-port={ports[0]}")
        return [start([*launcher, *where, *command], **variables)]
    if BACKEND == "jax":
        joined = ("--processes", 2, "--coordinator", f"localhost:{ports[0]}", "--process-id")
        return [start([*command, *joined, index], **variables) for index in range(2)]
    workers = [f"localhost:{port}" for port in ports]
    return [
        start(
            command,
            **variables,
            TF_CONFIG=json.dumps(
                {"cluster": {"worker": workers}, "task": {"type": "worker", "index": index}}
            ),
        )
        for index in range(2)
    ]


def finish(processes):
    for process in processes:
        _, errors = process.communicate(timeout=DEADLINE)
        assert process.returncode == 0, errors[-3000:]


def result(directory):
    with np.load(directory / "result.npz") as file:
        return dict(file)


def assert_close(found, expected):
    names = [name for name in expected if name.startswith(("weight_", "history_"))]
    assert len(names) > 9
    for name in [*names, "predictions"]:
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-5, atol=1e-5, err_msg=name)
