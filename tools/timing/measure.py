"""Timing side by side: alternating calls, peak memory, and the machine's own limit."""

import contextlib
import os
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

Name = TypeVar("Name")


class Memory(Protocol):
    """Watches how much memory a candidate takes."""

    def rise_mib(self) -> float | None:
        """MiB above what was in use before; None where that is not known."""


@dataclass
class Timing:
    """Times of one candidate.

    Attributes:
        first_call_s: seconds of the very first call, compilation included.
        ms_median: median milliseconds of a call after the warm-up.
        ms_min: least milliseconds of a call.
        peak_memory_mib: rise of the process's peak resident memory over what it had before the
            first call, taken in the calls after it, so without the compiler's own; on an
            accelerator, of the memory that `alternate` is told to ask. None where nobody tells.
    """

    first_call_s: float
    ms_median: float
    ms_min: float
    peak_memory_mib: float | None


class ProcessMemory:
    """The rise of this process's peak resident memory."""

    def __init__(self) -> None:
        self.before = _status_mib("VmRSS")

    def rise_mib(self) -> float | None:
        """MiB above what was resident before; None where the system does not tell."""
        peak = _status_mib("VmHWM")
        return None if self.before is None or peak is None else max(peak - self.before, 0.0)


def alternate(
    candidates: Mapping[Name, Callable[[], object]],
    rounds: int,
    warm_up: int = 2,
    settle: int = 0,
    memory_of: Callable[[Name], Memory] | None = None,
) -> dict[Name, Timing]:
    """Times callables in one process by turns, so that a busy moment of the machine hits all.

    Args:
        candidates: name to a callable that returns when its work is done.
        rounds: timed calls of each.
        warm_up: calls of each, after the first, that do not count.
        settle: calls before each timed one that do not count. Threads of the candidate before still
            wait busily for some milliseconds, which is much where a call takes no longer.
        memory_of: begins to watch the memory that the named candidate takes; None for the
            process's own.

    Returns:
        The timing of each candidate.
    """
    first, memory = {}, {}
    for name, call in candidates.items():
        watched = ProcessMemory() if memory_of is None else memory_of(name)
        start = time.perf_counter()
        call()
        first[name] = time.perf_counter() - start
        _reset_peak()
        for _ in range(warm_up):
            call()
        memory[name] = watched.rise_mib()
    milliseconds: dict[Name, list[float]] = {name: [] for name in candidates}
    for _ in range(rounds):
        for name, call in candidates.items():
            for _ in range(settle):
                call()
            start = time.perf_counter()
            call()
            milliseconds[name].append((time.perf_counter() - start) * 1e3)
    return {
        name: Timing(first[name], statistics.median(times), min(times), memory[name])
        for name, times in milliseconds.items()
    }


def gflops_of(multiply: Callable[[], object], size: int, rounds: int = 9) -> float:
    """GFLOP/s of a product of two square matrices: the best of some calls, after one.

    Args:
        multiply: computes one product and returns when it is done.
        size: side of the matrices.
        rounds: timed calls.
    """
    return 2e-9 * size**3 / (alternate({"product": multiply}, rounds).popitem()[1].ms_min * 1e-3)


def _status_mib(field: str) -> float | None:
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(f"{field}:"):
                return int(line.split()[1]) / 1024
    return None


def _reset_peak() -> None:
    """Makes Linux count the peak of resident memory from here on; nothing elsewhere."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def cpu_model() -> str:
    """The processor's name and the number of cores this process may use."""
    name = "unknown CPU"
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                name = line.split(":", 1)[1].strip()
                break
    return f"{name}, {len(os.sched_getaffinity(0))} cores"
