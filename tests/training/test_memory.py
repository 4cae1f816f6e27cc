"""Keeping freed memory, in a process of its own: the setting lasts until the process ends."""

import platform
import subprocess
import sys

import pytest

pytestmark = pytest.mark.backend_free


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc only")
def test_a_freed_block_stays_with_the_process():
    program = """
import ctypes, resource, sys
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]
libc.memset.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
def faults(size=64 * 2**20):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    block = libc.malloc(size)
    libc.memset(block, 1, size)
    libc.free(block)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
# glibc's own rule keeps blocks of up to 32 MiB after a first free: 64 MiB are always mapped anew.
faults()
mapped = faults()  # 16384 with pages of 4 KiB, few where the system gives huge pages
from keras_densepred.training.loop.memory import keep_freed_memory
assert keep_freed_memory() is True
faults()
assert faults() < min(mapped, 100)
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=300)


def test_elsewhere_it_does_nothing(monkeypatch):
    from keras_densepred.training import keep_freed_memory

    monkeypatch.setattr(sys, "platform", "darwin")
    assert keep_freed_memory() is False
