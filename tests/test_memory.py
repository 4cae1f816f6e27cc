"""Keeping freed memory, in a process of its own: the setting lasts until the process ends."""

import os
import pathlib
import platform
import subprocess
import sys

import pytest

pytestmark = pytest.mark.backend_free


PROGRAM = """
import ctypes, resource, sys, threading
sys.argv = [{script!r}]
from keras_densepred import start
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]
libc.memset.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
def faults(size=128 * 2**20):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    block = libc.malloc(size)
    libc.memset(block, 1, size)
    libc.free(block)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
def work():
    # glibc's own rule keeps blocks of up to 32 MiB after a first free: larger are mapped anew.
    faults()
    mapped = faults()  # 32768 with pages of 4 KiB, few where the system gives huge pages
    from keras_densepred.memory import keep_freed_memory
    assert keep_freed_memory() is True
    faults()
    assert faults() < min(mapped, 100)
if {in_thread}:
    failed = []
    threading.excepthook = failed.append
    thread = threading.Thread(target=work)  # which would have a heap of its own, as XLA's do
    thread.start()
    thread.join()
    sys.exit(len(failed))
work()
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc only")
@pytest.mark.parametrize("in_thread", [False, True])
def test_a_freed_block_stays_with_the_process(in_thread):
    script = str(pathlib.Path(__file__).parents[1] / "recipes" / "coco_dense.py")
    program = PROGRAM.format(script=script, in_thread=in_thread)
    environment = {**os.environ, "KERAS_BACKEND": "jax"}
    subprocess.run([sys.executable, "-c", program], check=True, timeout=300, env=environment)


def test_elsewhere_it_does_nothing(monkeypatch):
    from keras_densepred.training import keep_freed_memory

    monkeypatch.setattr(sys, "platform", "darwin")
    assert keep_freed_memory() is False


LOADING = """
import gc, sys
sys.argv = [{script!r}]
from keras_densepred import start
assert gc.get_freeze_count() == 0
start.load()
assert gc.get_freeze_count() > 100_000
assert gc.isenabled()
"""


def test_what_a_command_imports_is_not_searched_for_garbage():
    script = str(pathlib.Path(__file__).parents[1] / "recipes" / "coco_dense.py")
    subprocess.run([sys.executable, "-c", LOADING.format(script=script)], check=True, timeout=300)
