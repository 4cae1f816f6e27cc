"""Which hosts are here, and which of their faults."""

import keras
import pytest
from packaging.version import Version

try:
    import keras_cv
except ImportError:
    keras_cv = None

needs_keras_cv = pytest.mark.skipif(
    keras_cv is None,
    reason="keras-cv cannot be imported (0.9.0, the last, not on Keras 3.16); "
    f"this is Keras {keras.__version__}",
)


def available(builders):
    """Of models by their names those that can be built here: KerasCV's end in `_cv`."""
    return {n: b for n, b in builders.items() if keras_cv or not n.endswith("_cv")}


def repaired(host, version, backend=None):
    """Mark of a test that holds a fault which the host has no longer from this version on.

    Where it has none the test has to fail. `backend`: the only one on which it has been repaired.
    """
    here = Version(Version(host.__version__).base_version)  # a nightly is what it leads to
    gone = here >= Version(version) and backend in (None, keras.config.backend())
    reason = f"repaired in {host.__name__} {version}"
    return pytest.mark.xfail(gone, reason=reason, strict=True)
