"""An inference form of a model: equal outputs, less work, ready for any size of images."""

from typing import Any

import keras

from keras_densepred.models.detector import Detector
from keras_densepred.models.inference.folding import FoldedDetector, folded_graph
from keras_densepred.runtime.compiled import compiled

Tensor = Any


def optimize(model: keras.Model) -> keras.Model:
    """Makes the form of a functional model that predicts fastest on the backend in use.

    Batch norms and layer scales become part of the convolutions before them, and what only training
    does is left out (`fold_batch_norm`). On PyTorch the graph is then a flat list of calls with
    weights in the layout of the CPU's kernels, which take along activations and sums; on JAX and
    TensorFlow calls are compiled, once for each size.

    Args:
        model: a functional model in float32 or any other precision: a backbone, classifier,
            segmenter or detector. It is left as it is, and later changes of its weights are not
            seen.

    Returns:
        A `keras.Model` with the same inputs and outputs; for a detector one that also predicts as
        the detector does. It does not train and is not saved: save the model that it was made of.

    Raises:
        ValueError: if the model is not functional, as R-CNNs and transformers are not, or its
            `call` gives other outputs than its graph.
    """
    graph = InferenceGraph(folded_graph(model, heads_taken_apart=True))
    return OptimizedDetector(graph, model) if isinstance(model, Detector) else graph


def fastest_predictor(model: keras.Model) -> keras.Model:
    """What predicts batches as a model does, in the least time.

    On PyTorch's CPU that is what `optimize` makes of it, where it can. The other backends compile
    `predict_on_batch` by themselves.

    Args:
        model: any model.

    Returns:
        The model itself, or one whose `predict_on_batch` gives the same within rounding.
    """
    if (
        keras.config.backend() == "torch"
        and hasattr(model, "_nodes_by_depth")
        # What others do to the outputs in a step of their own would be lost.
        and (isinstance(model, Detector) or type(model).predict_step is keras.Model.predict_step)
        and all(weight.value.device.type == "cpu" for weight in model.weights)
    ):
        return optimize(model)
    return model


class _NotSaved:
    """Mixin, before the Keras class: a model whose `save` is refused before there is a file."""

    def save(self, *args: Any, **kwargs: Any) -> None:
        """Refused.

        Raises:
            ValueError: always.
        """
        raise ValueError(
            "What `optimize` makes is for inference on one backend: save the model that it was "
            "made of."
        )


class OptimizedDetector(_NotSaved, FoldedDetector):
    """What `optimize` makes of a detector."""


class InferenceGraph(_NotSaved, keras.Model):
    """What `optimize` makes of a graph.

    Args:
        graph: functional model without models inside.

    Attributes:
        recording: the calls on PyTorch, None elsewhere and in half precision.
    """

    def __init__(self, graph: keras.Model):
        super().__init__(name=f"{graph.name}_optimized")
        self.recording: Any = None
        if keras.config.backend() == "torch":
            from keras_densepred.models.inference.recording import Recording, can_be_recorded

            if can_be_recorded(graph):
                self.recording = Recording(graph)
        # With a recording the graph's own weights, those that were packed, are not kept.
        self.graph = None if self.recording else graph
        self._run: Any = self.recording or compiled(graph)
        self.built = True

    def call(self, images: Tensor, training: bool | None = None) -> Any:
        """The graph's inputs to its outputs, always as outside of training."""
        return self._run(images)
