"""Trains a tiny network on one and on two simulated CPU devices; prints the losses as JSON.

Started as a program by `test_distribution.py`: devices are simulated before an engine wakes up.
"""

import json
import os
import sys
import tempfile

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
if os.environ["KERAS_BACKEND"] == "tensorflow":
    import tensorflow

    config = tensorflow.config
    config.set_logical_device_configuration(
        config.list_physical_devices("CPU")[0], [config.LogicalDeviceConfiguration()] * 2
    )

import keras
import numpy as np

from keras_densepred import training


def batches_from(step):
    while True:
        x = np.random.default_rng(step).normal(size=(8, 4)).astype("float32")
        yield x, {"a": x[:, :2] * 2}
        step += 1


def run(devices):
    keras.utils.set_random_seed(0)
    with training.data_parallel(devices) as count, tempfile.TemporaryDirectory() as directory:
        inputs = keras.Input((4,))
        model = keras.Model(inputs, {"a": keras.layers.Dense(2)(inputs)})
        model.compile(training.AdamW(1e-2, use_ema=True), "mse")
        rows = training.MetricsLog(os.path.join(directory, "metrics.csv"))
        training.fit(
            model,
            batches_from,
            epochs=2,
            steps_per_epoch=3,
            checkpoint=training.ResumableCheckpoint(os.path.join(directory, "c"), {}),
            callbacks=[rows],
        )
        weight = float(np.sum(model.get_weights()[0]))
        return [count, weight, *(row["loss"] for row in rows.rows)]


if __name__ == "__main__":
    json.dump([run(1), run(2)], sys.stdout)
