"""A model's training and prediction steps, lowered for devices that need not be there."""

import contextlib
from collections.abc import Iterator
from typing import Any

import jax
import keras
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from keras_densepred.runtime.devices import jax_compiles_for
from keras_densepred.training.devices.jax import predict_step
from keras_densepred.training.devices.sharding import split_axis


def lower_train_step(
    model: keras.Model, batch: Any, devices: Any, shard_weights: bool = False
) -> jax.stages.Lowered:
    """Lowers the step that `Model.fit` compiles on JAX, data-parallel.

    Args:
        model: compiled; its weights are not touched.
        batch: `(x, y)` of arrays or their shapes, the rows of all devices.
        devices: of `jax.devices()` or a topology's, each gets an equal share of the rows.
        shard_weights: as `training.distribute` takes it.
    """
    x, y = batch
    mesh = Mesh(np.asarray(devices).ravel(), ("batch",))
    groups = (
        model.trainable_variables,
        model.non_trainable_variables,
        model.optimizer.variables,
        model.metrics_variables,
    )
    state = tuple(_kept(group, mesh, shard_weights) for group in groups)
    step = jax.jit(
        # A function of its own, so that JAX does not take a step traced for other devices.
        lambda state, data: model.train_step(state, data),
        donate_argnums=0,
        out_shardings=(None, keras.tree.map_structure(lambda leaf: leaf.sharding, state)),
    )
    with _traced_for(mesh):
        return step.lower(state, (_shared(x, mesh), _shared(y, mesh), None))


def lower_predict_step(model: keras.Model, x: Any, devices: Any) -> jax.stages.Lowered:
    """Lowers the step with which recipes predict on JAX, as `Cluster.predictor` does.

    Args:
        model: built.
        x: arrays or their shapes, the rows of all devices.
        devices: as `lower_train_step` takes them.
    """
    mesh = Mesh(np.asarray(devices).ravel(), ("batch",))
    values = (
        _kept(group, mesh) for group in (model.trainable_variables, model.non_trainable_variables)
    )
    with _traced_for(mesh):
        return predict_step(model, mesh).lower(*values, _shared(x, mesh))


def with_rows(arrays: Any, rows: int) -> Any:
    """The shapes of arrays, with another number of rows."""

    def shape(array: Any) -> Any:
        return jax.ShapeDtypeStruct((rows, *array.shape[1:]), array.dtype)

    return keras.tree.map_structure(shape, arrays)


def _kept(variables: list[keras.Variable], mesh: Mesh, shard_weights: bool = False) -> list[Any]:
    """The shapes of variables that every device has as a whole, or large ones by shares."""

    def sharding(variable: keras.Variable) -> NamedSharding:
        axis = split_axis(variable.shape, mesh.size) if shard_weights else None
        spec = () if axis is None else (*[None] * axis, "batch")
        return NamedSharding(mesh, PartitionSpec(*spec))

    return [
        jax.ShapeDtypeStruct(variable.shape, variable.value.dtype, sharding=sharding(variable))
        for variable in variables
    ]


def _shared(arrays: Any, mesh: Mesh) -> Any:
    by_rows = NamedSharding(mesh, PartitionSpec("batch"))

    def shape(array: Any) -> Any:
        return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=by_rows)

    return keras.tree.map_structure(shape, arrays)


@contextlib.contextmanager
def _traced_for(mesh: Mesh) -> Iterator[None]:
    """Tells layers which devices a step is for; a distribution names them and does not use them."""
    device, count = mesh.devices[0], mesh.devices.size
    names = [f"{device.platform}:{index}" for index in range(count)]
    distribution = keras.distribution.DataParallel(
        device_mesh=keras.distribution.DeviceMesh((count,), ["batch"], names),
        auto_shard_dataset=False,
    )
    with jax_compiles_for(device.platform, mesh), distribution.scope():
        yield
