"""Flags of XLA that the package sets: for the CPU at hand, and never over the user's."""

import ast
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


# Ends where the package asks for its first framework, which may read the flags.
SCRIPT = """
import os, sys

class AtTheFirst:
    def find_spec(name, path, target=None):
        if name in ("keras", "jax", "tensorflow", "torch"):
            from keras_densepred.runtime.xla_flags import use_wide_vectors
            here = {}
            use_wide_vectors(here)
            print([name, os.environ.get("XLA_FLAGS"), here.get("XLA_FLAGS")])
            sys.exit()

sys.meta_path.insert(0, AtTheFirst)
import keras_densepred
"""


@pytest.mark.parametrize("own", [None, "", "--xla_force_host_platform_device_count=2"])
def test_importing_the_package_sets_it_before_keras_where_the_user_set_nothing(own):
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    if own is not None:
        environment["XLA_FLAGS"] = own
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    imported, found, wanted_here = ast.literal_eval(done.stdout.strip())
    assert imported == "keras"
    assert found == (wanted_here if own is None else own)
