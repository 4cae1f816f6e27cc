"""Which hosts are here, and which of their faults."""

import keras
import pytest

try:
    import keras_cv
except ImportError:
    keras_cv = None

needs_keras_cv = pytest.mark.skipif(
    keras_cv is None,
    reason="keras-cv cannot be imported (0.9.0, the last, not on Keras 3.16); "
    f"this is Keras {keras.__version__}",
)
