"""Flags of XLA that the package sets: for the CPU at hand, and never over the user's."""

import os
import subprocess
import sys
from importlib import metadata

import pytest

from keras_densepred.runtime.xla_flags import use_wide_vectors

pytestmark = pytest.mark.backend_free

WIDE = {"XLA_FLAGS": "--xla_cpu_prefer_vector_width=512"}


@pytest.fixture
def cpu(tmp_path):
    def write(flags):
        (tmp_path / "cpuinfo").write_text(f"model name\t: Mine\nflags\t\t: fpu {flags} sse4_2\n")
        return tmp_path / "cpuinfo"

    return write


@pytest.fixture(autouse=True)
def releases(monkeypatch):
    """Versions of packages by name; others are not installed."""
    installed = {"jaxlib": "0.10.2"}

    def version(name):
        if name not in installed:
            raise metadata.PackageNotFoundError(name)
        return installed[name]

    monkeypatch.setattr(metadata, "version", version)
    return installed


def test_a_cpu_with_wide_vectors_uses_them(cpu):
    environment = {}
    assert use_wide_vectors(environment, cpu("avx2 avx512f avx512dq"))
    assert environment == WIDE


@pytest.mark.parametrize("own", ["", "--xla_force_host_platform_device_count=8"])
def test_what_the_user_set_stays(cpu, own):
    environment = {"XLA_FLAGS": own}
    assert not use_wide_vectors(environment, cpu("avx512f"))
    assert environment == {"XLA_FLAGS": own}


def test_other_processors_are_left_alone(cpu, tmp_path):
    environment = {}
    assert not use_wide_vectors(environment, cpu("avx2 fma"))
    assert not use_wide_vectors(environment, tmp_path / "none")  # not Linux
    assert environment == {}


@pytest.mark.parametrize(
    "package,version,is_set",
    [
        ("jaxlib", "0.10.9", True),
        ("jaxlib", "0.11.0.dev20261101", False),
        ("tensorflow", "2.21.0", True),
        ("tensorflow", "2.22.0", False),
    ],
)
def test_only_releases_that_know_the_flag_get_it(cpu, releases, package, version, is_set):
    releases[package] = version
    assert use_wide_vectors({}, cpu("avx512f")) == is_set


def test_importing_the_package_comes_first_and_leaves_ours():
    script = "import os, keras_densepred; print(repr(os.environ.get('XLA_FLAGS')))"
    for own in ("", "--xla_force_host_platform_device_count=2"):
        done = subprocess.run(
            [sys.executable, "-c", script],
            env={**os.environ, "XLA_FLAGS": own},
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.strip() == repr(own)
