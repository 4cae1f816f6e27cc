"""Several devices and processes on JAX: `keras.distribution.DataParallel`.

A step is one program for the whole batch, of which every process holds its own rows; the compiler
adds the sums over devices.
"""

import contextlib
import dataclasses
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import numpy as np

from keras_densepred._optional import require
from keras_densepred.training.devices.cluster import Cluster, DevicesError
from keras_densepred.training.devices.distribute import check_sharding, environment_number
from keras_densepred.training.devices.sharding import ShardedWeights


@dataclasses.dataclass(frozen=True)
class JaxCluster(Cluster):
    """Devices of a `keras.distribution.DataParallel`.

    Attributes:
        distribution: Keras' distribution.
    """

    distribution: Any = None

    def _exchange(self, content: np.ndarray) -> list[np.ndarray]:
        gather = require("jax.experimental.multihost_utils", "jax").process_allgather
        return self._exchange_padded(content, lambda vector: np.asarray(gather(vector)))

    def whole(self, variables: Sequence[Any]) -> list[np.ndarray]:
        """See `Cluster.whole`."""
        gather = require("jax.experimental.multihost_utils", "jax").process_allgather
        return [
            gather(variable.value, tiled=True)
            if _is_elsewhere(variable)
            else keras.ops.convert_to_numpy(variable)
            for variable in variables
        ]

    @contextlib.contextmanager
    def whole_weights(self, model: keras.Model) -> Iterator[None]:
        """See `Cluster.whole_weights`; the device's memory must hold them."""
        split = [variable for variable in model.variables if _is_elsewhere(variable)]
        shares = [variable.value for variable in split]
        # Assigning would split them again, and in a `keras.StatelessScope` no layer can be made.
        for variable, value in zip(split, self.whole(split), strict=True):
            variable._value = keras.ops.convert_to_tensor(value)
        try:
            yield
        finally:
            for variable, share in zip(split, shares, strict=True):
                variable._value = share

    def run_on_main(self, action: Callable[[], Any]) -> None:
        """See `Cluster.run_on_main`.

        Saving makes variables, for which all processes would have to come together otherwise.
        """

        def alone() -> None:
            keras.distribution.set_distribution(None)
            try:
                action()
            finally:
                keras.distribution.set_distribution(self.distribution)

        super().run_on_main(alone)

    def predictor(self, model: keras.Model) -> Any:
        """See `Cluster.predictor`."""
        return _Predictor(model, self.distribution)


def _is_elsewhere(variable: Any) -> bool:
    """Whether other processes hold shares of a variable that this one does not."""
    value = variable.value
    return not (value.is_fully_addressable or value.is_fully_replicated)


def predict_step(model: keras.Model, mesh: Any) -> Any:
    """The compiled step that predicts the rows of a batch, every device its own.

    Nothing is exchanged: as one program for the whole batch, of which the compiler finds out what
    each device needs, a RetinaNet's choice of boxes cost eleven exchanges.

    Args:
        model: a built model, whose outputs have the rows of the batch as their first axis.
        mesh: `jax.sharding.Mesh` of one axis.

    Returns:
        A jitted function of the values of `model.trainable_variables` and
        `model.non_trainable_variables`, the same on all devices, and of x, shared out by rows.
    """
    jax = require("jax", "jax")

    def step(trainable: Any, others: Any, x: Any) -> Any:
        return model.predict_step((trainable, others), (x,))[0]

    everywhere, by_rows = jax.P(), jax.P(mesh.axis_names[0])
    return jax.jit(
        jax.shard_map(
            step,
            mesh=mesh,
            in_specs=(everywhere, everywhere, by_rows),
            out_specs=by_rows,
            check_vma=False,
        )
    )


class _Predictor:
    """Predicts on all devices, each its rows.

    Keras 3.15.1's `predict_on_batch` hands the batch to every device as a whole, and cannot read
    outputs that lie on other processes' devices.
    """

    def __init__(self, model: keras.Model, distribution: Any):
        self._model = model
        self.input_keys = getattr(model, "input_keys", ("images",))
        self.takes_bytes = getattr(model, "takes_bytes", False)
        self._distribution = distribution
        self._step: Any = None

    def predict_on_batch(self, x: Any) -> Any:
        """Returns the predictions for this process' rows as NumPy arrays."""
        jax = require("jax", "jax")
        model = self._model
        layout = self._distribution.get_data_layout
        if self._step is None:
            self._step = predict_step(model, layout((None,)).backend_layout.mesh)
        outputs = self._step(
            [variable.value for variable in model.trainable_variables],
            [variable.value for variable in model.non_trainable_variables],
            keras.tree.map_structure(
                lambda array: jax.make_array_from_process_local_data(
                    layout(array.shape).backend_layout, array
                ),
                x,
            ),
        )
        return keras.tree.map_structure(_own_rows, outputs)


def _own_rows(array: Any) -> np.ndarray:
    shards = sorted(array.addressable_shards, key=lambda shard: shard.index[0].start or 0)
    return np.concatenate([np.asarray(shard.data) for shard in shards])


@contextlib.contextmanager
def connect(
    devices: int | None,
    processes: int | None,
    process_id: int | None,
    coordinator: str | None,
    shard_weights: bool = False,
) -> Iterator[Cluster]:
    """Opens a cluster; see `distribute`."""
    jax = require("jax", "jax")
    if not jax.distributed.is_initialized() and processes != 1:
        _initialize(processes, process_id, coordinator)
    names = keras.distribution.list_devices()
    count = jax.process_count()
    if processes is not None and processes != count:
        raise DevicesError(
            f"{processes} processes were asked for, and JAX was started with {count} before."
        )
    if count > 1 and devices not in (None, len(names)):
        raise DevicesError(
            f"{devices} devices were asked for and the {count} processes have {len(names)}, all "
            "of which are used: leave the number of devices open."
        )
    if devices is None:
        devices = 1 if count == 1 and names[0].startswith("cpu") else len(names)
    if devices > len(names):
        raise DevicesError(f"{devices} devices were asked for; there are only: {', '.join(names)}.")
    if shard_weights:
        check_sharding("jax", devices)
    if devices == 1:
        yield Cluster()
        return
    kind = ShardedWeights if shard_weights else keras.distribution.DataParallel
    distribution = kind(devices=names[:devices], auto_shard_dataset=False)
    with distribution.scope():
        yield JaxCluster(devices, count, jax.process_index(), distribution)


def _initialize(processes: int | None, process_id: int | None, coordinator: str | None) -> None:
    """Joins the processes, if there are several."""
    if processes is None:
        given = environment_number("KERAS_DISTRIBUTION_NUM_PROCESSES")
        if given is None and coordinator != "auto" and not _started_by_a_cluster():
            return
    if coordinator == "auto":
        coordinator = None
    try:
        keras.distribution.initialize(coordinator, processes, process_id)
    except RuntimeError as error:
        if "before" not in str(error):
            raise DevicesError(f"The processes did not find each other: {error}") from error
        raise DevicesError(
            "JAX has computed something already and takes no more processes: open "
            "training.distribute first."
        ) from error
    except ValueError as error:
        raise DevicesError(
            f"JAX does not know where the other processes are ({error}): give the number of "
            "processes, the process id and the coordinator."
        ) from error


def _started_by_a_cluster() -> bool:
    """Whether a manager that JAX knows started several processes.

    The variables of a step, not of an allocation: `python` within `salloc` is one process.
    """
    counts = ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE")
    if any((environment_number(name) or 1) > 1 for name in counts):
        return True
    return "," in os.environ.get("TPU_WORKER_HOSTNAMES", "")
