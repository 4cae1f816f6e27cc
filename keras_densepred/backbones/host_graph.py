"""Networks of other libraries as graphs: where their levels are, and the same graph built anew."""

import contextlib
import copy
import math
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import keras

from keras_densepred.backbones.backbone import PyramidBackbone
from keras_densepred.layers.norm import BatchNorm, ConvBatchNorm, FixedBatchNorm, SyncConvBatchNorm

LEVELS = range(2, 8)  # those that detectors and segmenters use
_PROBE = 256  # pixels; stays larger than a position at stride 128


def end_of_levels(network: keras.Model) -> dict[str, Any]:
    """Finds the maps at which a network's levels end, by their true strides.

    Names are not trusted: KerasHub's MiT calls the map of stride 4 "P1", its darknets that of
    stride 2 "P2" (keras-hub 0.32.0). Where the network names maps at all (`pyramid_outputs`, or a
    dictionary of outputs), the last of each stride is its level. Elsewhere a level is the last map
    of its stride through which everything has to go: the end of a stage, not one of its branches;
    or what a last convolution makes narrower for the next stage, as in DenseNet.

    Args:
        network: a functional model of one batch of images, channels last.

    Returns:
        `{"P2": symbolic map, ...}`, finest first.

    Raises:
        ValueError: if it has no maps of strides 8, 16 and 32.
    """
    named = getattr(network, "pyramid_outputs", None) or network.output
    if isinstance(named, Mapping):
        candidates = [tensor for tensor in named.values() if len(tensor.shape) == 4]
    else:
        candidates = []
    if len(candidates) < 3:
        candidates = _narrow_places(network)
    levels: dict[int, Any] = {}
    for tensor, stride in zip(candidates, _strides(network, candidates), strict=True):
        level = stride.bit_length() - 1
        if level in LEVELS and not _narrows(tensor, levels.get(level)):
            levels[level] = tensor
    missing = [str(2**level) for level in (3, 4, 5) if level not in levels]
    if missing:
        raise ValueError(
            f"{network.name}, a {type(network).__name__}, has no feature maps of stride "
            f"{', '.join(missing)}: take a network of feature maps, such as a ResNet or ConvNeXt, "
            "or name layers that end its levels in `level_layers`."
        )
    return {f"P{level}": levels[level] for level in sorted(levels)}


def check_levels_are_true(backbone: keras.Model) -> None:
    """Refuses a network of another library whose levels are not what their names say.

    Args:
        backbone: what a neck or head is to stand on; of ours, the constructor has checked it.

    Raises:
        ValueError: if it has no `pyramid_outputs`, or they are no maps, or a level "Pn" has another
            stride than 2**n.
    """
    if isinstance(backbone, PyramidBackbone):
        return
    levels = getattr(backbone, "pyramid_outputs", None) or {}
    name = f"{getattr(backbone, 'name', backbone)!r}, a {type(backbone).__name__},"
    advice = "give `keras_densepred.HostBackbone(backbone)`, which finds levels by their strides"
    if not levels:
        raise ValueError(f"`backbone` {name} has no `pyramid_outputs`: {advice}.")
    for level, tensor in levels.items():
        if re.fullmatch(r"P\d+", level) is None or len(tensor.shape) != 4:
            raise ValueError(f"`backbone` {name} has no maps by level, but {level!r}: {advice}.")
        stride = _strides(backbone, [tensor])[0]
        if stride != 2 ** int(level[1:]):
            raise ValueError(f"`backbone` {name} has a {level} of stride {stride}: {advice}.")


def named_levels(levels: Mapping[str, str], network: keras.Model) -> dict[str, Any]:
    """The outputs of layers by name, for `end_of_levels`' place.

    Raises:
        ValueError: if there is no such layer.
    """
    tensors = {}
    for level, name in levels.items():
        try:
            tensors[level] = network.get_layer(name).output
        except ValueError as error:
            raise ValueError(
                f"{network.name} has no layer {name!r}, which `level_layers` names for {level}."
            ) from error
    return tensors


def _narrows(tensor: Any, before: Any) -> bool:
    """Whether one operation makes it of the wider map `before`, by itself."""
    history = tensor._keras_history
    inputs = history.operation._inbound_nodes[history.node_index].input_tensors
    is_made_of_it = before is not None and len(inputs) == 1 and inputs[0] is before
    return is_made_of_it and tensor.shape[-1] < before.shape[-1]


def first_of_stride(network: keras.Model, stride: int) -> Any:
    """The first map of a stride in order of execution; None if there is none."""
    maps = [t for node in _nodes(network) for t in node.outputs if len(t.shape) == 4]
    strides = _strides(network, maps)
    return next((t for t, found in zip(maps, strides, strict=True) if found == stride), None)


def ancestors(tensor: Any) -> list[Any]:
    """The operations that a tensor is computed by."""
    seen: dict[int, Any] = {}
    waiting = [tensor]
    while waiting:
        history = waiting.pop()._keras_history
        node = history.operation._inbound_nodes[history.node_index]
        if id(node) not in seen:
            seen[id(node)] = node.operation
            waiting += node.input_tensors
    return list(seen.values())


def _narrow_places(network: keras.Model) -> list[Any]:
    """The maps through which everything has to go, in order of execution."""
    nodes = _nodes(network)
    last_reader = {id(t): i for i, node in enumerate(nodes) for t in node.input_tensors}
    last_reader |= {id(tensor): len(nodes) for tensor in network.outputs}
    alive = {id(tensor) for tensor in network.inputs}
    narrow = []
    for index, node in enumerate(nodes):
        alive |= {id(tensor) for tensor in node.outputs}
        alive = {tensor for tensor in alive if last_reader.get(tensor, -1) > index}
        narrow += [t for t in node.outputs if alive == {id(t)} and len(t.shape) == 4]
    return narrow


def _nodes(network: keras.Model) -> list[Any]:
    by_depth = network._nodes_by_depth  # keras 3.15.1 has no public name for it
    nodes = [node for depth in sorted(by_depth, reverse=True) for node in by_depth[depth]]
    return [node for node in nodes if not node.is_input]


def _strides(network: keras.Model, tensors: list[Any]) -> list[int]:
    """Input pixels per position of each map; 0 where it is no power of two in both directions."""
    if not tensors:
        return []
    shape = [_PROBE if size is None else size for size in network.inputs[0].shape[1:3]]
    if any(size is None for tensor in tensors for size in tensor.shape[1:3]):
        images = keras.KerasTensor((1, *shape, network.inputs[0].shape[-1]))
        tensors = keras.Model(network.inputs, list(tensors)).compute_output_spec(images)
    return [_stride(shape, tensor.shape[1:3]) for tensor in tensors]


def _stride(image: list[int], size: tuple[int, int]) -> int:
    stride = 2 ** max(0, round(math.log2(image[0] / size[0])))
    fits = all(
        math.ceil(side / stride) == positions for side, positions in zip(image, size, strict=True)
    )
    return stride if fits else 0


def can_be_copied(network: keras.Model) -> bool:
    """Whether layers can be built of their configurations.

    Not those of MiT (keras-hub 0.32.0), nor of networks of ours, which are built as a whole.
    """
    examples = {type(layer): layer for layer in network.layers}
    for kind, layer in examples.items():
        try:
            kind.from_config(layer.get_config())
        except (NotImplementedError, TypeError, ValueError):
            return False
    return True


def described(network: keras.Model, tensors: Mapping[str, Any]) -> dict[str, Any]:
    """A network as Keras writes it, of which `deserialized` builds one that gives these tensors.

    It is the graph of layers that lead to them, whatever class the network has: KerasHub's
    EfficientNet and CSPNet leave arguments out of their configurations (keras-hub 0.32.0).
    """
    if can_be_copied(network):
        network = keras.Model(network.inputs[0], dict(tensors), name=network.name)
    config = keras.saving.serialize_keras_object(network)
    # Not how it was built and compiled, which Keras leaves out of what is within others.
    return {key: config[key] for key in ("module", "class_name", "config", "registered_name")}


def deserialized(config: Mapping[str, Any], dtype: Any) -> keras.Model:
    """The network of a configuration, with random weights."""
    with _default_policy(dtype):
        # Keras changes what it reads.
        return keras.saving.deserialize_keras_object(
            _with_policy(copy.deepcopy(dict(config)), dtype)
        )


def rebuilt(
    network: keras.Model, tensors: Mapping[str, Any], images: Any, dtype: Any
) -> tuple[dict[str, Any], list[tuple[Any, Any]]]:
    """Builds the part of a network that makes some of its tensors, anew and on other images.

    Args:
        network: a functional model.
        tensors: name to symbolic tensor of its graph.
        images: what takes the place of its input.
        dtype: policy of all layers; None leaves each its own.

    Returns:
        The tensors in the new graph, and pairs of layers, that of `network` and the new one. They
        are the same where layers cannot be copied.
    """
    part = keras.Model(network.inputs, list(tensors.values()))
    copies: dict[int, tuple[Any, Any]] = {}
    copied = can_be_copied(network)

    def copy_of(operation: Any) -> Callable:
        if not isinstance(operation, keras.layers.Layer):
            return operation
        if id(operation) not in copies:
            new = operation
            if copied:
                new = type(operation).from_config(_with_policy(operation.get_config(), dtype))
            copies[id(operation)] = operation, new
        return copies[id(operation)][1]

    with _default_policy(dtype):
        outputs = part._run_through_graph(images, copy_of)
    return dict(zip(tensors, outputs, strict=True)), list(copies.values())


def _with_policy(config: Any, dtype: Any) -> Any:
    """A configuration in which all dtype policies, those of inner layers too, are this one."""
    if dtype is None:
        return config
    if isinstance(config, Mapping):
        if config.get("class_name") == "DTypePolicy":
            return keras.dtype_policies.serialize(keras.dtype_policies.get(dtype))
        return {key: _with_policy(value, dtype) for key, value in config.items()}
    if isinstance(config, (list, tuple)):
        return type(config)(_with_policy(value, dtype) for value in config)
    return config


@contextlib.contextmanager
def _default_policy(dtype: Any) -> Iterator[None]:
    """For the layers that KerasHub's layers make within themselves, to whom it hands no policy."""
    before = keras.config.dtype_policy()
    if dtype is not None:
        keras.config.set_dtype_policy(keras.dtype_policies.get(dtype))
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


def shares_batch_norms(pyramid: Any) -> bool:
    """Whether replicas share the statistics of a network's batch norms, which heads on it follow.

    Args:
        pyramid: a backbone, a neck, or a pyramid of KerasHub around a backbone.
    """
    return bool(getattr(getattr(pyramid, "image_encoder", pyramid), "sync_batch_norm", False))


def replace_batch_norms(layers: list[Any], fixed: bool, synchronized: bool) -> None:
    """Makes ours of Keras' batch norms, those within other layers included.

    A layer that makes its norms itself, such as KerasHub's of EfficientNet and HGNetV2, cannot be
    told to make others. The classes have the same state, so that a norm changes by its class alone.
    """
    if fixed:
        kind: type[keras.layers.Layer] = FixedBatchNorm
    else:
        kind = SyncConvBatchNorm if synchronized else ConvBatchNorm
    for layer in layers:
        for inner in (layer, *layer._flatten_layers(include_self=False)):
            plain = type(inner) in (keras.layers.BatchNormalization, BatchNorm, ConvBatchNorm)
            if plain and _is_of_last_axis(inner):
                inner.__class__ = kind


def _is_of_last_axis(norm: Any) -> bool:
    return norm.axis in (-1, 3)
