"""Several devices and processes on TensorFlow: `tf.distribute`.

One process: `MirroredStrategy`. Several, by `TF_CONFIG`: `MultiWorkerMirroredStrategy`. TPUs, by
`TPU_NAME`: `TPUStrategy`, which is written to its documentation and has not been run.
"""

import concurrent.futures
import contextlib
import dataclasses
import functools
import json
import os
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np

from keras_densepred._optional import require
from keras_densepred.training.devices.cluster import Batches, Cluster, DevicesError


@dataclasses.dataclass(frozen=True)
class TensorFlowCluster(Cluster):
    """Replicas of a `tf.distribute.Strategy`.

    Attributes:
        strategy: TensorFlow's strategy.
    """

    strategy: Any = None

    @property
    def local_devices(self) -> int:
        """Devices of this process."""
        return self.devices // self.process_count

    def check_accumulation(self, steps: int | None) -> None:
        """See `Cluster.check_accumulation`.

        Keras 3.15.1 asks in a condition whether a step updates, and replicas cannot meet in one.
        """
        if steps is not None and steps > 1:
            raise DevicesError(
                f"On TensorFlow {self.devices} devices cannot add up the gradients of {steps} "
                "steps: leave gradient_accumulation_steps (--accumulate) out, or set "
                "KERAS_BACKEND=jax."
            )

    def fit_input(self, open_batches: Batches) -> Any:
        """See `Cluster.fit_input`.

        A dataset of one replica's rows after the other's. Keras 3.15.1 begins it twice, to build
        the model and to train: a generator would lose the batches that tf.data had read ahead the
        first time, so each start calls `open_batches` again.
        """
        tf = require("tensorflow", "tensorflow")
        first: Any = open_batches()
        signature = keras.tree.map_structure(
            lambda array: tf.TensorSpec((None, *array.shape[1:]), array.dtype), next(first)
        )
        first.close()

        def rows_of_replicas() -> Iterator[Any]:
            for batch in open_batches():
                yield from self._split(batch)

        def make_dataset(context: Any) -> Any:
            del context
            dataset = tf.data.Dataset.from_generator(rows_of_replicas, output_signature=signature)
            return dataset.prefetch(2 * self.local_devices)

        return self.strategy.distribute_datasets_from_function(make_dataset)

    @contextlib.contextmanager
    def training(self, model: keras.Model) -> Iterator[None]:
        """See `Cluster.training`.

        What Keras 3.15.1 gets wrong under a `MultiWorkerMirroredStrategy`, so that `fit` fails:

        * it builds a model from a batch although it is built (`_maybe_symbolic_build`), and reduces
          a whole tuple of values for that. Without a strategy of its own the model is left as it
          is, and trained with the strategy of the scope that we are in;
        * it averages the logs of a step, of `fit` or `evaluate`, scalars, over their axis 0
          (`reduce_per_replica`). They get that axis.
        """
        self.check_accumulation(model.optimizer.gradient_accumulation_steps)
        own, model._distribute_strategy = model._distribute_strategy, None
        names = ("train_step", "test_step") if self.process_count > 1 else ()
        steps = {name: getattr(model, name) for name in names}
        for name, step in steps.items():
            setattr(model, name, _with_axis(step))
        try:
            yield
        finally:
            model._distribute_strategy = own
            for name, step in steps.items():
                setattr(model, name, step)

    def _split(self, batch: Any) -> list[Any]:
        def part(array: Any, number: int) -> Any:
            rows = len(array) // self.local_devices
            return array[number * rows : (number + 1) * rows]

        return [
            keras.tree.map_structure(lambda array, n=number: part(array, n), batch)
            for number in range(self.local_devices)
        ]

    @functools.cached_property
    def _gather(self) -> Any:
        """A function that stacks one row of each device, the same on all devices."""
        tf = require("tensorflow", "tensorflow")

        def gather(row: Any) -> Any:
            # A copy, because an argument has no device, by which TensorFlow 2.21 finds the others.
            return tf.distribute.get_replica_context().all_gather(tf.identity(row), axis=0)

        return tf.function(lambda rows: self.strategy.run(gather, args=(rows,)))

    def _exchange(self, content: np.ndarray) -> list[np.ndarray]:
        def exchange(vector: np.ndarray) -> np.ndarray:
            # In front of each device's row its number: what is gathered is in no promised order.
            first = self.process_index * self.local_devices
            rows = [np.append(first + k, vector)[None] for k in range(self.local_devices)]
            gathered = self._gather(self._values([row.astype(np.int32) for row in rows]))
            stacked = self.strategy.experimental_local_results(gathered)[0].numpy()
            return stacked[np.argsort(stacked[:, 0])][:: self.local_devices, 1:]

        return self._exchange_padded(content, exchange)

    def _values(self, parts: list[Any]) -> Any:
        """One value for each device of this process."""
        tf = require("tensorflow", "tensorflow")
        return self.strategy.experimental_distribute_values_from_function(
            lambda context: keras.tree.map_structure(
                tf.constant, parts[context.replica_id_in_sync_group % self.local_devices]
            )
        )

    def run_on_main(self, action: Callable[[], Any]) -> None:
        """See `Cluster.run_on_main`.

        Saving makes variables, and a strategy of several workers sends each one's first value to
        all of them. A strategy's scope is of its thread: in another one there is none.
        """

        def alone() -> None:
            with concurrent.futures.ThreadPoolExecutor(1) as thread:
                thread.submit(action).result()

        super().run_on_main(alone)

    def predictor(self, model: keras.Model) -> Any:
        """See `Cluster.predictor`."""
        return _Predictor(model, self)


def _with_axis(step: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """A step of Keras whose logs have an axis 0."""
    return lambda data: keras.tree.map_structure(lambda value: value[None], step(data))


class _Predictor:
    """Predicts on this process' devices, each its rows.

    Keras 3.15.1's `predict_on_batch` hands the whole batch to every replica and returns the rows
    once for each of them.
    """

    def __init__(self, model: keras.Model, cluster: TensorFlowCluster):
        tf = require("tensorflow", "tensorflow")
        self._cluster = cluster
        self.input_keys = getattr(model, "input_keys", ("images",))
        self.takes_bytes = getattr(model, "takes_bytes", False)

        def step(x: Any) -> Any:
            return cluster.strategy.run(lambda rows: model.predict_step((rows,)), args=(x,))

        self._step = tf.function(step, reduce_retracing=True)

    def predict_on_batch(self, x: Any) -> Any:
        """Returns the predictions for this process' rows as NumPy arrays."""
        outputs = self._step(self._cluster._values(self._cluster._split(x)))
        results = self._cluster.strategy.experimental_local_results
        return keras.tree.map_structure(
            lambda value: np.concatenate([part.numpy() for part in results(value)]), outputs
        )


@contextlib.contextmanager
def connect(
    devices: int | None, processes: int | None, process_id: int | None, coordinator: str | None
) -> Iterator[Cluster]:
    """Opens a cluster; see `distribute`."""
    tf = require("tensorflow", "tensorflow")
    if processes is not None and processes > 1:
        _set_workers(processes, process_id, coordinator)
    workers = _configured_workers()
    if processes is not None and processes != max(1, workers):
        raise DevicesError(
            f"{processes} processes were asked for, and the environment's TF_CONFIG names "
            f"{workers}: unset it."
        )
    if workers > 1:
        strategy = _multi_worker_strategy(tf)
    elif os.environ.get("TPU_NAME"):
        resolver = tf.distribute.cluster_resolver.TPUClusterResolver.connect()
        strategy = tf.distribute.TPUStrategy(resolver)
    else:
        found = tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
        names = [device.name for device in found]
        if devices is None:
            devices = 1 if found[0].device_type == "CPU" else len(names)
        if devices > len(names):
            raise DevicesError(
                f"{devices} devices were asked for; there are only: {', '.join(names)}."
            )
        if devices == 1:
            yield Cluster()
            return
        strategy = tf.distribute.MirroredStrategy(names[:devices])
    replicas = strategy.num_replicas_in_sync
    if devices not in (None, replicas):
        raise DevicesError(
            f"{devices} devices were asked for and {replicas} are there, all of which are used: "
            "leave the number of devices open."
        )
    index = strategy.cluster_resolver.task_id if workers > 1 else 0
    with strategy.scope():
        yield TensorFlowCluster(replicas, max(1, workers), index, strategy)


def _set_workers(processes: int, process_id: int | None, coordinator: str | None) -> None:
    addresses = (coordinator or "").split(",")
    if len(addresses) != processes:
        raise DevicesError(
            f"{processes} processes were asked for and the coordinator names {len(addresses)}: "
            "TensorFlow needs host:port of every process, separated by commas."
        )
    config = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": process_id}}
    os.environ["TF_CONFIG"] = json.dumps(config)


def _configured_workers() -> int:
    """Checks TF_CONFIG and returns how many workers it names, 0 without it."""
    text = os.environ.get("TF_CONFIG")
    if not text:
        return 0
    example = (
        '{"cluster": {"worker": ["host0:2222", "host1:2222"]}, '
        '"task": {"type": "worker", "index": 0}}'
    )
    try:
        config = json.loads(text)
    except json.JSONDecodeError as error:
        raise DevicesError(
            f"The environment's TF_CONFIG is no JSON ({error}): give it a form like {example}."
        ) from error
    try:
        cluster, task = config.get("cluster", {}), config.get("task", {})
        workers, kind, index = cluster.get("worker", []), task.get("type"), task.get("index")
        addresses = [str(address) for address in workers]
    except (AttributeError, TypeError) as error:
        raise DevicesError(
            f"The environment's TF_CONFIG does not describe workers: give it a form like {example}."
        ) from error
    others = sorted(cluster.keys() - {"worker"})
    if others or (len(addresses) > 1 and kind != "worker"):
        raise DevicesError(
            f"The environment's TF_CONFIG has a {', '.join(others) or kind}: name the workers "
            f"only, as in {example}."
        )
    if len(addresses) > 1 and not (isinstance(index, int) and 0 <= index < len(addresses)):
        raise DevicesError(
            f"The environment's TF_CONFIG gives this process the index {index!r}, and its "
            f"{len(addresses)} workers have the indices 0 to {len(addresses) - 1}."
        )
    return len(addresses)


def _multi_worker_strategy(tf: Any) -> Any:
    try:
        return tf.distribute.MultiWorkerMirroredStrategy()
    except RuntimeError as error:
        raise DevicesError(
            "TensorFlow has computed something already and takes no more processes: open "
            f"training.distribute first ({error})."
        ) from error
