"""Flags of XLA that pay on the CPU at hand, set before JAX or TensorFlow reads them."""

from __future__ import annotations

import importlib.metadata
import os
import pathlib
import re
from collections.abc import MutableMapping

_CPU = pathlib.Path("/proc/cpuinfo")
# Releases in which the flag was tried: one that XLA does not know ends the process.
_TRIED = {"jaxlib": (0, 10), "tensorflow": (2, 21), "tensorflow-cpu": (2, 21)}
_NOT_TRIED = ("tf-nightly", "tensorflow-rocm", "torch-xla")  # bring an XLA of their own


def use_wide_vectors(
    environment: MutableMapping[str, str] = os.environ, cpu: pathlib.Path = _CPU
) -> bool:
    """Lets XLA compile for the 512-bit vectors of a CPU that has them; by itself it takes 256.

    CEDNet-NeXt-T on JAX, two cores with AVX-512, as a share of plain PyTorch's time: a training
    step of four images of 224 px 0.83 instead of 0.88 (benchmarks/cpu.csv).

    Whoever sets `XLA_FLAGS`, to nothing too, keeps what they set.

    Args:
        environment: where `XLA_FLAGS` is looked up and set.
        cpu: what Linux says of its processors.

    Returns:
        Whether the flag was set now.
    """
    if "XLA_FLAGS" in environment or not _has_avx512(cpu):
        return False
    installed = {name: release for name in _TRIED if (release := _release(name))}
    if not installed or any(_TRIED[name] != release for name, release in installed.items()):
        return False
    if any(_release(name) for name in _NOT_TRIED):
        return False
    environment["XLA_FLAGS"] = "--xla_cpu_prefer_vector_width=512"
    return True


def _has_avx512(cpu: pathlib.Path) -> bool:
    try:
        text = cpu.read_text()
    except OSError:  # not Linux
        return False
    return re.search(r"^flags\s*:.*\bavx512f\b", text, re.MULTILINE) is not None


def _release(package: str) -> tuple[int, ...]:
    """Its first two numbers; nothing where it is not installed."""
    try:
        version = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ()
    return tuple(int(part) for part in re.findall(r"\d+", version)[:2])
