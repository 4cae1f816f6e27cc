"""Batch norms and layer scales folded into the convolutions before them: equal outputs, less work.

Outside of training a batch norm is a product and a sum for each channel, a layer scale a product,
which the kernel and the bias of the convolution before it can take over. What only training does,
dropping paths and channels, is left out.
"""

from collections import defaultdict
from typing import Any

import keras
import numpy as np

from keras_densepred.layers.conv import Conv
from keras_densepred.layers.depthwise_conv import DepthwiseConv
from keras_densepred.layers.residual import DropPath, LayerScale
from keras_densepred.models.detector import Detector
from keras_densepred.models.retinanet.head import PredictionHead

Tensor = Any

_NO_TRAINING = (
    "A FoldedDetector is for inference: train the detector it was made of, and fold that again."
)

_CONVS = (
    *(Conv, DepthwiseConv),
    *(keras.layers.Conv2D, keras.layers.DepthwiseConv2D, keras.layers.Dense),
)
_TRAINING_ONLY = (DropPath, keras.layers.Dropout, keras.layers.SpatialDropout2D)


def fold_batch_norm(model: keras.Model) -> keras.Model:
    """Makes a model for inference whose batch norms are part of the convolutions before them.

    A norm is folded where its convolution's (or dense layer's) output goes nowhere else and has no
    activation; others stay as they are. So are layer scales. Models inside the model, such as a
    detector's backbone, are taken apart; RetinaNet's heads, whose convolutions are shared by the
    levels and whose norms are not, get convolutions of their own for each level.

    Args:
        model: a functional model, such as any backbone, classifier, segmenter or detector here. It
            is left as it is.

    Returns:
        A functional model with weights of its own and the same inputs and outputs, in training mode
        or not; for a detector a `FoldedDetector`, which predicts as the detector does.

    Raises:
        ValueError: if the model is not functional, or its `call` gives other outputs than its
            graph.
    """
    graph = folded_graph(model)
    return FoldedDetector(graph, model) if isinstance(model, Detector) else graph


def folded_graph(model: keras.Model, *, heads_taken_apart: bool = False) -> keras.Model:
    """The functional model behind `fold_batch_norm`.

    Args:
        model: see there.
        heads_taken_apart: whether RetinaNet's heads without norms become single layers too.

    Returns:
        A functional model from the inputs to the outputs of `model` outside of training.
    """
    if not hasattr(model, "_nodes_by_depth"):
        raise ValueError(
            f"{getattr(model, 'name', type(model).__name__)!r} is no functional model, so there is "
            "no graph to fold norms in; give a functional model that it is made of, such as the "
            "`model` of what `saved.load` opened."
        )
    graph = getattr(model, "inference_graph", model)
    given = model.compute_output_spec(model._inputs_struct, training=False)
    if len(keras.tree.flatten(given)) != len(graph.outputs):
        raise ValueError(
            f"The `call` of {model.name!r} gives other outputs than its graph: give a functional "
            "model of those that you want, `keras.Model(model.input, outputs)`."
        )
    inputs = keras.tree.map_structure(
        lambda x: keras.Input(batch_shape=x.shape, dtype=x.dtype, name=x.name),
        graph._inputs_struct,
    )
    outputs = _Folder(heads_taken_apart).run(graph, inputs)
    return keras.Model(inputs, outputs, name=f"{model.name}_folded")


def calls_of(model: keras.Model) -> list[Any]:
    """The calls of a functional model's graph, each after those that it reads from."""
    # Keras 3.15.1 has no public way to them.
    return [
        node
        for depth in sorted(model._nodes_by_depth, reverse=True)
        for node in model._nodes_by_depth[depth]
        if not node.is_input
    ]


def readers_of(calls: list[Any], outputs: list[Any]) -> dict[int, list[Any]]:
    """By a tensor's id the calls that read it; None stands for the model's outputs."""
    readers = defaultdict(list)
    for call in calls:
        for tensor in call.input_tensors:
            readers[id(tensor)].append(call)
    for tensor in outputs:
        readers[id(tensor)].append(None)
    return readers


@keras.saving.register_keras_serializable(package="keras_densepred")
class FoldedDetector(Detector, keras.Model):
    """A detector for inference with another graph: what `fold_batch_norm` makes of a detector.

    Calling it gives the raw outputs, `predict` final detections.

    Args:
        graph: functional model from images to the detector's raw outputs.
        detector: decodes them; its weights are not used.
        **kwargs: arguments of `keras.Model`, such as `name`.
    """

    def __init__(self, graph: keras.Model, detector: Detector, **kwargs: Any):
        kwargs.setdefault("name", graph.name)
        super().__init__(**kwargs)
        self.graph = graph
        self._detector_config = keras.saving.serialize_keras_object(detector)
        # A method and not the detector, whose weights would be this model's too.
        self._decode = detector.detections
        self.num_classes = detector.num_classes
        self.bounding_box_format = detector.bounding_box_format
        self.built = True

    def call(self, images: Tensor, training: bool | None = None) -> dict[str, Tensor]:
        """(B, H, W, 3) -> the detector's raw outputs."""
        return self.graph(images, training=training)

    def default_optimizer(self) -> keras.optimizers.Optimizer:
        """Refused, as all training: there would be no batch norms in it.

        Raises:
            ValueError: always.
        """
        raise ValueError(_NO_TRAINING)

    def compute_losses(
        self,
        images: Tensor,
        targets: dict[str, Tensor],
        outputs: dict[str, Any],
        training: bool = True,
    ) -> dict[str, Tensor]:
        """Refused, as all training.

        Raises:
            ValueError: always.
        """
        raise ValueError(_NO_TRAINING)

    def detections(self, outputs: dict[str, Tensor], images: Tensor) -> dict[str, Tensor]:
        return self._decode(outputs, images)

    def get_config(self) -> dict[str, Any]:
        return {
            "graph": keras.saving.serialize_keras_object(self.graph),
            "detector": self._detector_config,
            "name": self.name,
        }


class _Folder:
    """Copies graphs, layer by layer."""

    def __init__(self, heads_taken_apart: bool):
        self.heads_taken_apart = heads_taken_apart
        self.copies: dict[int, keras.layers.Layer] = {}
        self.names: set[str] = set()

    def run(self, model: keras.Model, inputs: Any, prefix: str = "") -> Any:
        """The outputs of a copy of the model's graph, applied to `inputs`."""
        tensors = {
            id(old): new for old, new in zip(model.inputs, keras.tree.flatten(inputs), strict=True)
        }
        nodes = calls_of(model)
        norms = _foldable(nodes, model.outputs)
        folded = {id(norm) for norm in norms.values()}
        for node in nodes:
            args, kwargs = node.arguments.fill_in(tensors)
            operation = node.operation
            if id(node) in folded or isinstance(operation, _TRAINING_ONLY):
                outputs = args[0]
            elif id(node) in norms:
                norm = norms[id(node)].operation
                outputs = self._folded(operation, norm, args[0].shape, prefix)(args[0])
            elif isinstance(operation, keras.Model) and hasattr(operation, "_nodes_by_depth"):
                outputs = self.run(operation, args[0], f"{prefix}{operation.name}_")
            elif isinstance(operation, PredictionHead) and (
                operation.norm_levels or self.heads_taken_apart
            ):
                outputs = self._prediction_head(operation, args[0], kwargs.get("level"), prefix)
            else:
                outputs = self._copy(operation, prefix)(*args, **kwargs)
                self._fill(operation)
            for old, new in zip(node.outputs, keras.tree.flatten(outputs), strict=True):
                tensors[id(old)] = new
        return keras.tree.map_structure(lambda x: tensors[id(x)], model._outputs_struct)

    def _copy(self, operation: Any, prefix: str) -> Any:
        """A layer's copy, the same one each time; operations without weights as they are."""
        if not isinstance(operation, keras.layers.Layer):
            return operation
        if id(operation) not in self.copies:
            config = {**_config(operation), "name": self._name(operation.name, prefix)}
            self.copies[id(operation)] = type(operation).from_config(config)
        return self.copies[id(operation)]

    def _fill(self, operation: Any) -> None:
        """Gives a layer's copy, once it is built, the layer's weights."""
        if id(operation) in self.copies:
            copy = self.copies[id(operation)]
            for new, old in zip(copy.weights, operation.weights, strict=True):
                # A buffer of its own: `fit` and `predict` donate a model's to a step on JAX.
                new.assign(keras.ops.convert_to_numpy(old).copy())

    def _prediction_head(
        self, head: PredictionHead, x: Tensor, level: str | None, prefix: str
    ) -> Tensor:
        """The head at one level, with that level's norms in convolutions of its own."""
        name = f"{prefix}{head.name}_{level.lower() if level else ''}_"
        for index, hidden in enumerate((*head.hidden, head.prediction)):
            if head.separable:
                depthwise = head.depthwise[index]
                x = self._copy(depthwise, f"{prefix}{head.name}_")(x)
                self._fill(depthwise)
            if hidden is head.prediction:
                break
            if not head.norm_levels:
                x = self._copy(hidden, f"{prefix}{head.name}_")(x)
                self._fill(hidden)
                continue
            norm = head.norms[head.norm_levels.index(level) * head.depth + index]
            x = self._folded(hidden, norm, x.shape, name)(x)
            x = keras.layers.Activation(
                head.activation, dtype=head.dtype_policy, name=f"{name}act_{index}"
            )(x)
        x = self._copy(head.prediction, f"{prefix}{head.name}_")(x)
        self._fill(head.prediction)
        return x

    def _folded(self, layer: Any, norm: Any, shape: tuple, prefix: str) -> keras.layers.Layer:
        """A convolution with a norm in its kernel and bias, for inputs of a shape."""
        mean, scale, offset = _mean_scale_offset(norm)
        bias = (0.0 if layer.bias is None else _read(layer.bias)) - mean
        bias = bias * scale + offset
        kernel = _read(layer.kernel)
        # The channels of depthwise kernels are before the last axis.
        depthwise = isinstance(layer, (DepthwiseConv, keras.layers.DepthwiseConv2D))
        kernel = kernel * (scale.reshape(kernel.shape[2:]) if depthwise else scale)
        name = self._name(layer.name, prefix)
        config = {**layer.get_config(), "name": name, "use_bias": True}
        folded = type(layer).from_config(config)
        folded.build(shape)
        folded.kernel.assign(kernel)
        folded.bias.assign(bias)
        return folded

    def _name(self, name: str, prefix: str) -> str:
        if name in self.names:
            name = prefix + name
        while name in self.names:
            name += "_"
        self.names.add(name)
        return name


def _config(layer: keras.layers.Layer) -> dict[str, Any]:
    try:
        return layer.get_config()
    except NotImplementedError:
        # Keras 3.15.1 has none for a layer without a `get_config` of its own that was given a
        # dtype policy and not its name, as all layers of a loaded backbone are.
        return {"dtype": layer.dtype_policy.name}


def _read(weight: Any) -> np.ndarray:
    return keras.ops.convert_to_numpy(weight).astype(np.float64)


def _mean_scale_offset(norm: Any) -> tuple[Any, np.ndarray, Any]:
    """What a norm or a layer scale subtracts, multiplies by and adds, channel by channel."""
    if isinstance(norm, LayerScale):
        return 0.0, _read(norm.gamma), 0.0
    scale = 1.0 / np.sqrt(_read(norm.moving_variance) + norm.epsilon)
    if norm.gamma is not None:
        scale = scale * _read(norm.gamma)
    return _read(norm.moving_mean), scale, 0.0 if norm.beta is None else _read(norm.beta)


def _foldable(nodes: list, outputs: list) -> dict[int, Any]:
    """Calls of convolutions, by id, to the call of the norm that can be folded into them."""
    readers = readers_of(nodes, outputs)
    calls: dict[int, int] = defaultdict(int)
    for node in nodes:
        calls[id(node.operation)] += 1
    pairs = {}
    for node in nodes:
        layer = node.operation
        if not isinstance(layer, _CONVS) or calls[id(layer)] > 1:
            continue
        following = readers[id(node.outputs[0])]
        if len(following) == 1 and _takes(layer, following[0], node.outputs[0]):
            pairs[id(node)] = following[0]
    return pairs


def _takes(layer: Any, node: Any, tensor: Any) -> bool:
    norm = None if node is None else node.operation
    linear = getattr(layer, "activation", None) in (None, keras.activations.linear)
    if not linear or getattr(layer, "data_format", "channels_last") != "channels_last":
        return False
    if isinstance(norm, LayerScale):
        return True
    return (
        isinstance(norm, keras.layers.BatchNormalization)
        and norm.axis % len(tensor.shape) == len(tensor.shape) - 1
    )
