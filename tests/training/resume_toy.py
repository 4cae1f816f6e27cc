"""A tiny run for the tests of resuming, also started as a program and killed there.

`python resume_toy.py DIRECTORY [--kill-after N]`: N is the number of batches after which the
process sends itself SIGKILL. Dropout, averaged weights, a running metric, random batches.
"""

import argparse
import os
import pathlib
import signal

if __name__ == "__main__":
    import tests.without_tensorflow  # noqa: F401

import keras
import numpy as np

from keras_densepred import training

EPOCHS = 3
STEPS = 8


class KillAfter(keras.callbacks.Callback):
    """SIGKILLs the process after so many batches."""

    def __init__(self, batches):
        super().__init__()
        self.left = batches

    def on_train_batch_end(self, batch, logs=None):
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)


class Rows(keras.callbacks.Callback):
    """The history that the report would write."""

    def __init__(self):
        super().__init__()
        self.rows = []

    def on_epoch_end(self, epoch, logs=None):
        self.rows.append({"epoch": epoch, **{name: float(logs[name]) for name in sorted(logs)}})

    def get_state(self):
        return self.rows

    def set_state(self, state):
        self.rows = state


def make_model(learning_rate=1e-2):
    keras.utils.set_random_seed(7)
    inputs = keras.Input((6,))
    x = keras.layers.Dense(16, activation="relu", name="stage1_dense")(inputs)
    x = keras.layers.Dropout(0.5)(x)
    x = keras.layers.BatchNormalization()(x)
    model = keras.Model(inputs, keras.layers.Dense(2)(x))
    schedule = training.WarmupSteps(learning_rate, 4, drops=(18,))
    optimizer = training.AdamW(schedule, use_ema=True, ema_momentum=0.9)
    model.compile(optimizer, "mse", metrics=["mae"])
    return model


def batches_from(step):
    while True:
        rng = np.random.default_rng([3, step])
        x = rng.normal(size=(4, 6)).astype("float32")
        yield x, x[:, :2] * x[:, 2:4]
        step += 1


def train(directory, kill_after=0, epochs=EPOCHS, model=None, before=(), **checkpoint):
    model = model or make_model()
    rows = Rows()
    options = {"every_steps": 3, **checkpoint}
    saver = training.ResumableCheckpoint(directory, {"model": "toy"}, **options)
    start = training.fit(
        model,
        batches_from,
        epochs=epochs,
        steps_per_epoch=STEPS,
        checkpoint=saver,
        callbacks=[*before, rows, *([KillAfter(kill_after)] if kill_after else [])],
    )
    return model, rows.rows, start


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("directory")
    parser.add_argument("--kill-after", type=int, default=0)
    arguments = parser.parse_args()
    model, rows, start = train(arguments.directory, arguments.kill_after)
    weights = {str(i): np.asarray(w) for i, w in enumerate(model.get_weights())}
    losses = [row["loss"] for row in rows]
    maes = [row["mae"] for row in rows]
    np.savez(
        pathlib.Path(arguments.directory) / "result.npz",
        losses=losses,
        maes=maes,
        start=[start.epoch, start.step],
        **weights,
    )


if __name__ == "__main__":
    main()
