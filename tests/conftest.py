"""What all tests share: a quiet TensorFlow, a fixed seed, and where the golden files are."""

import gc
import os
import tempfile
from importlib.metadata import version
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
os.environ.setdefault("MPLBACKEND", "Agg")
# Tests compile far more than they compute: without XLA's optimisations, in half of the time.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
if os.environ.get("KERAS_BACKEND") == "jax" and version("jaxlib").startswith("0.10."):
    # XLA's newer code generator takes three times as long to compile as its older one. An XLA that
    # does not know a flag ends the process, hence the release in which both were tried.
    os.environ.setdefault(
        "XLA_FLAGS",
        "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1",
    )
# What one process or module compiled, the next ones of the same run need not.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    compiled = tempfile.TemporaryDirectory(prefix="compiled_by_jax_")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = compiled.name
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")

import pytest

# Keras is imported below, where it is used: the process that deals the tests out to others never
# does, and starts them seconds sooner.


@pytest.hookimpl(tryfirst=True)  # before `-m` looks at the marks
def pytest_collection_modifyitems(items):
    """Makes `slow_on("jax", ...)` what `slow` is on those backends, and nothing on the others."""
    import keras

    for item in items:
        # Of a test and of its parameters.
        if any(keras.config.backend() in mark.args for mark in item.iter_markers("slow_on")):
            item.add_marker(pytest.mark.slow)


def pytest_collection_finish(session):
    """What imports made stays anyway: not searched for garbage again, a second for each module."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def fixed_seed():
    import keras

    keras.utils.set_random_seed(0)


@pytest.fixture
def golden() -> Path:
    return Path(__file__).parent / "golden"


@pytest.fixture(autouse=True, scope="module")
def free_memory():
    """What a module of tests compiled is not kept for the next one: JAX's would fill gigabytes."""
    import keras

    yield
    keras.utils.clear_session()
    if keras.config.backend() == "jax":
        import jax

        jax.clear_caches()
