"""A functional model as a flat list of calls, for PyTorch, which otherwise walks Keras' graph.

That walk takes 25 to 30 ms a call for CEDNet-NeXt-T, a quarter of its time at 224 px on two cores.
In the list products and convolutions take along the activation or the sum that follows them, and
have their weights in the layout that the CPU's kernels want (`ops.packed_torch`).
"""

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import keras

from keras_densepred.layers.conv import Conv, Pointwise
from keras_densepred.layers.depthwise_conv import DepthwiseConv
from keras_densepred.layers.norm import GELU, Activation, LayerNorm
from keras_densepred.layers.stateless import Add, Stateless
from keras_densepred.models.inference.folding import calls_of, readers_of
from keras_densepred.ops import packed_torch
from keras_densepred.ops.packed_torch import Convolution, Dilated, Product

Tensor = Any


class _Call(NamedTuple):
    """What is called, on which values, where its results go, and which values no one reads then."""

    function: Callable[..., Any]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    done_with: tuple[int, ...]


class Recording:
    """The calls of a graph of float32 and bfloat16 layers, outside of training.

    Any batch and size that the graph takes; calls may run at the same time, as no state is kept.

    Args:
        graph: functional model without models inside, such as `folded_graph` gives. Its weights are
            copied where their layout changes, and used as they are elsewhere.
    """

    def __init__(self, graph: keras.Model):
        self._slots: dict[int, int] = {}
        outputs = graph._outputs_struct
        is_single = isinstance(outputs, (list, tuple)) and len(outputs) == 1
        self._structure = outputs[0] if is_single else outputs  # as Keras gives it
        recorded = _record(graph, self._slot)
        self._inputs = tuple(self._slot(tensor) for tensor in graph.inputs)
        self._outputs = tuple(self._slot(tensor) for tensor in graph.outputs)
        last_reader = {
            slot: index for index, (_, inputs, _) in enumerate(recorded) for slot in inputs
        }
        self.calls = [
            _Call(
                function,
                inputs,
                outputs,
                tuple(
                    slot
                    for slot in {*inputs, *outputs}
                    if last_reader.get(slot, index) == index and slot not in self._outputs
                ),
            )
            for index, (function, inputs, outputs) in enumerate(recorded)
        ]

    def _slot(self, tensor: Any) -> int:
        return self._slots.setdefault(id(tensor), len(self._slots))

    @packed_torch.without_gradients
    def __call__(self, inputs: Any) -> Any:
        """Inputs of the graph's structure to its outputs."""
        values: list[Any] = [None] * len(self._slots)
        for slot, value in zip(self._inputs, keras.tree.flatten(inputs), strict=True):
            values[slot] = value
        for function, read, written, done_with in self.calls:
            results = function(*[values[slot] for slot in read])
            if len(written) == 1:
                values[written[0]] = results
            else:
                for slot, value in zip(written, keras.tree.flatten(results), strict=True):
                    values[slot] = value
            for slot in done_with:
                values[slot] = None
        return keras.tree.pack_sequence_as(
            self._structure, [values[slot] for slot in self._outputs]
        )


def can_be_recorded(graph: keras.Model) -> bool:
    """Whether all layers compute in float32 or bfloat16 and maps are channels last."""
    return all(
        layer.compute_dtype in ("float32", "bfloat16")
        and getattr(layer, "data_format", "channels_last") == "channels_last"
        for layer in graph.layers
    )


class _Fused(NamedTuple):
    """A product or convolution and what it takes along."""

    call: Any
    activation: str | None
    added: Any  # the tensor that is added to its result, or None
    last: Any  # the call whose result it gives


def _record(graph: keras.Model, slot: Callable[[Any], int]) -> list[tuple[Any, tuple, tuple]]:
    calls = calls_of(graph)
    fused = _fusions(calls, graph.outputs)
    by_last = {id(fusion.last): fusion for fusion in fused}
    taken = {id(call) for fusion in fused for call in _members(fusion, calls)}
    is_float32 = all(layer.compute_dtype == "float32" for layer in graph.layers)
    packed: dict[tuple[int, str | None], Any] = {}
    recorded: list[tuple[Any, tuple, tuple]] = []
    for call in calls:
        outputs = tuple(slot(tensor) for tensor in call.outputs)
        if id(call) in by_last:
            fusion = by_last[id(call)]
            key = id(fusion.call.operation), fusion.activation
            if key not in packed:  # a head's convolutions are called level by level
                packed[key] = _pack(fusion.call.operation, fusion.activation)
            read = [fusion.call.input_tensors[0]]
            if fusion.added is not None:
                read.append(fusion.added)
            recorded.append((packed[key], tuple(map(slot, read)), outputs))
        elif id(call) not in taken:
            read = call.input_tensors
            recorded.append((_plain(call, is_float32), tuple(map(slot, read)), outputs))
    return recorded


def _members(fusion: _Fused, calls: Sequence[Any]) -> list[Any]:
    """The calls that a fusion stands for: from its own along single readers to its last."""
    members, current = [fusion.call], fusion.call
    readers = readers_of(list(calls), [])
    while current is not fusion.last:
        current = readers[id(current.outputs[0])][0]
        members.append(current)
    return members


def _fusions(calls: list[Any], outputs: list[Any]) -> list[_Fused]:
    readers = readers_of(calls, outputs)

    def only_reader(call: Any) -> Any:
        """The one call that reads the result of another, if it computes in the same precision."""
        following = readers[id(call.outputs[0])]
        reader = following[0] if len(following) == 1 else None  # and None stands for an output
        return reader if reader is not None and _precision(reader) == _precision(call) else None

    fusions, summed = [], set()
    for call in calls:
        if not _is_packable(call):
            continue
        activation, added, last = _own_activation(call.operation), None, call
        if activation is None:
            following = only_reader(last)
            if (
                following is not None
                and id(following) not in summed
                and not isinstance(call.operation, DepthwiseConv)
                and _is_sum(following)
            ):
                first, second = following.input_tensors
                added = second if first is call.outputs[0] else first
                summed.add(id(following))
                last = following
                following = only_reader(last)
            activation = None if following is None else _activation(following.operation)
            if activation is not None and not _is_dilated(call.operation):
                last = following
            else:
                activation = None
        fusions.append(_Fused(call, activation, added, last))
    return fusions


def _precision(call: Any) -> str | None:
    return getattr(call.operation, "compute_dtype", None)


def _is_packable(call: Any) -> bool:
    layer = call.operation
    if len(call.input_tensors) != 1:
        return False
    if isinstance(layer, keras.layers.Conv2D):
        return (
            type(layer) is keras.layers.Conv2D
            and _own_activation(layer) in packed_torch.ACTIVATIONS | {None}
            and set(layer.strides) == set(layer.dilation_rate) == {1}
            and layer.padding == "same"
            and layer.kernel_size[0] == layer.kernel_size[1]
            and layer.kernel_size[0] % 2 == 1
        )
    if isinstance(layer, keras.layers.Dense):
        return type(layer) in (Pointwise, keras.layers.Dense) and _own_activation(layer) is None
    return isinstance(layer, (Conv, DepthwiseConv))


def _is_sum(call: Any) -> bool:
    tensors = call.input_tensors
    return (
        isinstance(call.operation, (Add, keras.layers.Add))
        and len(tensors) == 2
        and tensors[0] is not tensors[1]
        and len(tensors[0].shape) == len(tensors[1].shape) == 4
        and tensors[0].shape == tensors[1].shape
    )


def _is_dilated(layer: Any) -> bool:
    return isinstance(layer, DepthwiseConv) and layer.dilation_rate > 1


def _own_activation(layer: Any) -> str | None:
    activation = getattr(layer, "activation", None)
    if activation in (None, keras.activations.linear):
        return None
    return _name(activation)


def _activation(layer: Any) -> str | None:
    """The name of a layer that is an activation which can be taken along."""
    if isinstance(layer, GELU):
        return "gelu"
    if isinstance(layer, keras.layers.ReLU):
        plain = layer.max_value is None and not layer.negative_slope and not layer.threshold
        return "relu" if plain else None
    if type(layer) in (Activation, keras.layers.Activation):
        name = _name(layer.activation)
        return name if name in packed_torch.ACTIVATIONS - {"gelu"} else None
    return None


def _name(activation: Any) -> str:
    """Keras' name; of its gelu, whose default is the exact one, and of others as they are."""
    return getattr(activation, "__name__", str(activation))


def _read(variable: Any, layer: Any) -> Any:
    """A weight in the precision that its layer computes in; None for none."""
    return None if variable is None else keras.ops.cast(variable, layer.compute_dtype)


def _pack(layer: Any, activation: str | None) -> Any:
    def read(variable: Any) -> Any:
        return _read(variable, layer)

    kernel, bias = read(layer.kernel), read(layer.bias)
    if isinstance(layer, keras.layers.Dense):
        return Product(kernel, bias, activation)
    if isinstance(layer, DepthwiseConv):
        size = layer.kernel_size
        kernel = kernel.permute(0, 1, 3, 2)  # (height, width, 1, C)
        convolution = Convolution(
            kernel, bias, layer.strides, (size - 1) // 2, kernel.shape[-1], activation
        )
        return Dilated(convolution, layer.dilation_rate) if _is_dilated(layer) else convolution
    if isinstance(layer, keras.layers.Conv2D):
        padding = (layer.kernel_size[0] - 1) // 2
        return Convolution(kernel, bias, 1, padding, layer.groups, activation)
    return Convolution(kernel, bias, layer.strides, layer.padding, layer.groups, activation)


def _plain(call: Any, is_float32: bool) -> Callable[..., Any]:
    """A function of the tensors that a call reads, in their order.

    Args:
        call: of the graph.
        is_float32: whether all layers of the graph compute in float32.
    """
    operation = call.operation
    args, kwargs = call.arguments.args, call.arguments.kwargs
    tensors = keras.tree.flatten(args)
    if isinstance(operation, LayerNorm) and operation.axis in (-1, [-1]):
        gamma, beta = (_read(weight, operation) for weight in (operation.gamma, operation.beta))
        return packed_torch.layer_norm(gamma, beta, operation.epsilon)
    # What Keras does around a call of a layer without state is for training, and for precision.
    function = operation.call if isinstance(operation, Stateless) and is_float32 else operation
    constants = {name: value for name, value in kwargs.items() if name != "training"}
    if (
        isinstance(operation, keras.layers.Layer)
        and "training" in inspect.signature(operation.call).parameters
    ):
        constants["training"] = False
    if all(isinstance(tensor, keras.KerasTensor) for tensor in tensors) and not any(
        isinstance(value, keras.KerasTensor) for value in keras.tree.flatten(kwargs)
    ):
        if len(tensors) == len(args):
            return functools.partial(function, **constants)
        if len(args) == 1 and isinstance(args[0], (list, tuple)):
            return lambda *values: function(list(values), **constants)

    def general(*values: Any) -> Any:
        given = {id(t): v for t, v in zip(call.input_tensors, values, strict=True)}
        filled, named = call.arguments.fill_in(given)
        return operation(*filled, **named)

    return general
