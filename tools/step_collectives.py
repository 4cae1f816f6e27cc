"""What a training step exchanges between devices: collective operations and their bytes.

    XLA_FLAGS=--xla_force_host_platform_device_count=8 KERAS_BACKEND=jax \\
        python tools/step_collectives.py --preset cednet_next_tiny

Compiles one training step of a CEDNet classifier for as many devices as JAX has (simulated ones do)
and reads the collectives off the compiled program.
"""

import argparse
import collections
import pathlib
import sys
from typing import Any

import keras
import numpy as np

if __name__ == "__main__":  # run from a clone without installing
    sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from keras_densepred import CEDNetImageClassifier, training
from tools.compiled.program import collectives
from tools.compiled.steps import lower_train_step, with_rows


def compiled_step(model: keras.Model, batch: Any) -> str:
    """Compiles the training step of a compiled model as `Model.fit` does on JAX.

    Args:
        model: made within `training.distribute`.
        batch: `(x, y)`, this process' rows.

    Returns:
        The program after all of XLA's passes (HLO text).
    """
    import jax

    distribution = keras.distribution.distribution()
    model._symbolic_build(data_batch=batch)
    rows = len(keras.tree.flatten(batch)[0]) * jax.process_count()
    devices = jax.devices()[: distribution.device_mesh.devices.size]
    return lower_train_step(model, with_rows(batch, rows), devices).compile().as_text()


def main() -> None:
    """Prints the collectives of a preset's step."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--preset", default="cednet_next_pico")
    parser.add_argument("--image-size", type=int, default=64)
    parser.add_argument("--classes", type=int, default=1000)
    arguments = parser.parse_args()
    names = keras.distribution.list_devices()
    with training.distribute(len(names)) as cluster:
        model = CEDNetImageClassifier.from_preset(arguments.preset, num_classes=arguments.classes)
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(training.AdamW(1e-3, use_ema=True), loss)
        size = arguments.image_size
        x = np.zeros((cluster.devices, size, size, 3), np.float32)
        found = collectives(compiled_step(model, (x, np.zeros(cluster.devices, np.int32))))
        weights = 4 * sum(int(np.prod(w.shape)) for w in model.trainable_variables)
    print(
        f"{arguments.preset}, {cluster.devices} devices: {weights / 1e6:.2f} MB of gradient in "
        f"{len(model.trainable_variables)} variables"
    )
    for kind, count in collections.Counter(kind for kind, _ in found).items():
        total = sum(size for other, size in found if other == kind)
        print(f"{kind}: {count} operations, {total / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
