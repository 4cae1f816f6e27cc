"""A tiny run on several devices or processes, started as a program by the tests of distribution.

`python distribution_toy.py DIRECTORY [flags of training.distribute] [--kill N P]`: process P sends
itself SIGKILL after N batches. The main process writes DIRECTORY/result.npz: the weights, raw and
averaged, the history, predictions gathered from all processes and what was counted of the step.
"""

import argparse
import os
import pathlib
import signal

if __name__ == "__main__":
    import tests.without_tensorflow  # noqa: F401

import keras
import numpy as np

from keras_densepred import layers, training
from keras_densepred.training.devices import sharding
from keras_densepred.training.devices.image_bytes import take_bytes
from keras_densepred.training.loop.validation_loss import ValidationLoss

EPOCHS, STEPS, BATCH = 2, 10, 16
MEAN, STD = 100.0, 20.0


class KillAfter(keras.callbacks.Callback):
    """SIGKILLs the process after so many batches."""

    def __init__(self, batches):
        super().__init__()
        self.left = batches

    def on_train_batch_end(self, batch, logs=None):
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)


def make_model(accumulate=None, dropout=0.0):
    keras.utils.set_random_seed(7)
    inputs = keras.Input((6, 6, 3))
    x = keras.layers.Conv2D(8, 3, use_bias=False)(inputs)
    x = keras.layers.ReLU()(layers.BatchNorm(momentum=0.9)(x))
    x = keras.layers.Conv2D(8, 3)(x)
    x = keras.layers.GlobalAveragePooling2D()(x)
    x = keras.layers.Dropout(dropout)(x)
    model = keras.Model(inputs, keras.layers.Dense(2)(x))
    optimizer = training.AdamW(
        training.WarmupCosine(1e-2, 4, EPOCHS * STEPS),
        use_ema=True,
        ema_momentum=0.9,
        epsilon=1e-3,  # Adam divides rounding errors of tiny gradients by themselves
        gradient_accumulation_steps=accumulate,
    )
    model.compile(optimizer, "mse", metrics=["mae"])
    return model


def make_pixels(step):
    pixels = np.random.default_rng([3, step]).normal(MEAN + STD, 2 * STD, size=(BATCH, 6, 6, 3))
    return pixels.clip(0, 255).astype("uint8")


def make_batch(step):
    x = (make_pixels(step) - np.float32(MEAN)) / np.float32(STD)
    return x, x[:, :2, 0, 0] * x[:, :2, 1, 1]


def count_collectives(model, cluster, batch):
    """Counts what one training step sums over the devices: operations, and bytes of their results.

    Returns:
        `{"sums": bytes of each}`.
    """
    backend = keras.backend.backend()
    if backend == "jax":
        from tools.step_collectives import collectives, compiled_step

        return {"sums": [size for _, size in collectives(compiled_step(model, batch))]}
    if backend == "tensorflow":
        import tensorflow as tf

        step = tf.function(lambda rows: cluster.strategy.run(model.train_step, args=(rows,)))
        rows = next(iter(cluster.fit_input(lambda: iter_once(batch))))
        model._symbolic_build(data_batch=batch)
        with cluster.training(model):
            graph = step.get_concrete_function(rows).graph
        found = [op for op in graph.get_operations() if op.type == "CollectiveReduceV2"]
        return {"sums": [4 * op.outputs[0].shape.num_elements() for op in found]}
    import torch

    with cluster.training(model), torch.profiler.profile(record_shapes=True) as profile:
        model.train_on_batch(*batch)
    found = [event for event in profile.events() if event.name == "gloo:all_reduce"]
    return {"sums": [4 * int(np.prod(event.input_shapes[0])) for event in found]}


def kept_bytes(variable):
    """Bytes of a variable on one device."""
    if keras.backend.backend() != "jax":
        return 0
    return variable.value.addressable_shards[0].data.nbytes


def iter_once(batch):
    yield batch


def run(arguments, cluster):
    rows = cluster.rows(BATCH)
    mine = slice(cluster.process_index * rows, (cluster.process_index + 1) * rows)

    def batches_from(step):
        while True:
            x, y = make_batch(step)
            yield (make_pixels(step) if arguments.bytes else x)[mine], y[mine]
            step += 1

    directory = pathlib.Path(arguments.directory)
    if arguments.plain:
        type(cluster).training = training.Cluster.training
    counted = {}
    if arguments.count:
        counted = count_collectives(make_model(), cluster, next(batches_from(0)))
    model = make_model(arguments.accumulate, arguments.dropout)
    take_bytes(model, (MEAN,) * 3, (STD,) * 3)
    rows_log = training.MetricsLog(directory / "metrics.csv")

    def some_batches():  # that training does not see
        yield from (tuple(array[mine] for array in make_batch(step)) for step in (50, 51))

    callbacks = [
        ValidationLoss(some_batches, 2, 1, lambda: training.averaged_weights(model)),
        rows_log,
    ]
    kill_after, victim = arguments.kill
    if cluster.process_index == victim:
        callbacks.append(KillAfter(kill_after))
    start = training.fit(
        model,
        batches_from,
        epochs=EPOCHS,
        steps_per_epoch=STEPS,
        checkpoint=training.ResumableCheckpoint(directory / "checkpoints", {}, every_steps=4),
        callbacks=callbacks,
    )
    x = (make_pixels(99) if arguments.bytes else make_batch(99)[0])[mine]
    predictions = cluster.predictor(model).predict_on_batch(x)
    found = np.arange(2 * cluster.process_index + 1, dtype=np.int64) + 2**40  # of unequal length
    gathered = cluster.gather({"predictions": predictions, "found": found})
    pid = cluster.once(lambda: {"pid": float(os.getpid())})["pid"]
    gathered |= cluster.gather({"computed_it": np.array([pid == os.getpid()])})
    with cluster.whole_weights(model):
        weights = {f"weight_{i}": np.asarray(w) for i, w in enumerate(model.get_weights())}
    history = {
        f"history_{n}": [row[n] for row in rows_log.rows] for n in ("loss", "mae", "val_loss")
    }
    if cluster.is_main:
        np.savez(
            directory / "result.npz",
            start=[start.epoch, start.step],
            cluster=[cluster.devices, cluster.process_count],
            kept_bytes=sum(map(kept_bytes, (*model.variables, *model.optimizer.variables))),
            gradient_bytes=sum(4 * int(np.prod(w.shape)) for w in model.trainable_variables),
            **{name: np.array(value) for name, value in counted.items()},
            **weights,
            **history,
            **gathered,
        )


def main(argv=None):
    parser = argparse.ArgumentParser()
    parser.add_argument("directory")
    for name in ("--devices", "--processes", "--process-id", "--simulate", "--accumulate"):
        parser.add_argument(name, type=int)
    parser.add_argument("--coordinator")
    parser.add_argument("--dropout", type=float, default=0.0)
    parser.add_argument("--kill", type=int, nargs=2, default=(0, -1))
    parser.add_argument("--count", action="store_true")
    parser.add_argument("--plain", action="store_true", help="Keras as it is")
    parser.add_argument("--bytes", action="store_true", help="normalised by the steps")
    parser.add_argument("--shard", action="store_true", help="weights are split, small ones too")
    arguments = parser.parse_args(argv)
    if arguments.shard:
        sharding.SMALLEST = 1
    if arguments.simulate and keras.backend.backend() == "tensorflow":
        import tensorflow

        config = tensorflow.config
        config.set_logical_device_configuration(
            config.list_physical_devices("CPU")[0],
            [config.LogicalDeviceConfiguration()] * arguments.simulate,
        )
    with training.distribute(
        arguments.devices,
        arguments.processes,
        arguments.process_id,
        arguments.coordinator,
        arguments.shard,
    ) as cluster:
        cluster.say(cluster.describe(BATCH))
        run(arguments, cluster)


if __name__ == "__main__":
    main()
