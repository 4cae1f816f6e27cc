"""For programs that tests start: on JAX and PyTorch, KerasHub imports TensorFlow just to have it.

Imported before Keras, it saves each process seconds.
"""

import os
import sys

if os.environ.get("KERAS_BACKEND") in ("jax", "torch"):
    sys.modules["tensorflow"] = None
