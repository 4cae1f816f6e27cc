"""Export to PyTorch's exported programs."""

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras

from keras_densepred._optional import require
from keras_densepred.export.conversion import Shape, input_shape, quiet, where_open
from keras_densepred.export.graph import STRIDE, Exported
from keras_densepred.files import replacing


def export_torch(
    model: keras.Model,
    path: str | os.PathLike[str],
    image_size: int | tuple[int, int] | None,
    *,
    batch_size: int | None = 1,
    suppress: bool = True,
) -> Path:
    """Writes a model for inference as a program of `torch.export`, from PyTorch.

    `torch.export.load(path).module()(images)` takes and gives what the file of `export_onnx` does,
    as a dictionary, with `"labels"` and `"num_detections"` as int32. Suppression is that of
    `predict`, so detections are the same.

    Args:
        model: as for `export_onnx`.
        path: the file to write, `.pt2` by custom; an old one is replaced.
        image_size: as for `export_onnx`.
        batch_size: as for `export_onnx`.
        suppress: as for `export_onnx`.

    Returns:
        The path.

    Raises:
        ValueError: if the model cannot be exported, a number is not positive, or Keras does not run
            on PyTorch.
    """
    shape = input_shape(image_size, batch_size)
    if keras.config.backend() != "torch":
        raise ValueError(
            "Programs of torch.export are written from PyTorch: export the saved model with "
            "KERAS_BACKEND=torch."
        )
    torch: Any = require("torch", "torch")

    exported = Exported(model, suppress=suppress, named=True)
    path = Path(path)
    with replacing(path, "model.pt2") as unfinished, quiet():
        torch.export.save(traced(exported, shape), unfinished)
    return path


def traced(model: Exported, shape: Shape, backends: Sequence[str] = ()) -> Any:
    """The program of `torch.export` from images of a shape to the model's outputs.

    Args:
        model: gives the outputs.
        shape: of the images.
        backends: that write the file which the program is for, named where it cannot be made.

    Raises:
        ValueError: if the shape is open, and the program would be for one number or size.
    """
    torch: Any = require("torch", "torch")

    class Program(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, images: Any) -> Any:
            return self.model(images)

    example = model.example(shape)
    step = math.lcm(model.size_divisor, STRIDE)
    sizes = [torch.export.Dim("batch")]
    sizes += [step * torch.export.Dim(name) for name in ("rows", "columns")]
    axes = {axis: size for axis, size in enumerate(sizes) if shape[axis] is None}
    with where_open(model.kind, shape, backends):
        if axes.keys() - {0}:
            _require_plain_strides(model.network)
        # Strict, it would have to understand all Python of Keras.
        program = torch.export.export(
            Program(),
            (keras.ops.ones(example),),
            dynamic_shapes={"images": axes} if axes else None,
            strict=False,
        )
        if axes:  # it may hold for even multiples alone, and the example is one
            another = zip(shape, (1, 3 * step, 5 * step, 3), strict=True)
            program.module()(keras.ops.ones([size or other for size, other in another]))
    for module in program.graph_module.modules():  # loops have some inside
        if isinstance(module, torch.fx.GraphModule):
            _drop_idle_squeezes(module.graph)
            module.recompile()
    return program


def _require_plain_strides(network: keras.Model) -> None:
    """Refuses Keras' strided layers that pad as the size of their input wants it.

    PyTorch (2.13) does not come to an end with the sizes that follow from an open one.

    Raises:
        ValueError: if there are any.
    """
    for layer in network.layers:
        strides = keras.tree.flatten(getattr(layer, "strides", 1))
        if getattr(layer, "padding", None) == "same" and max(strides) > 1:
            raise ValueError(f"{layer.name!r} has strides and pads by the size of its input.")


def _drop_idle_squeezes(graph: Any) -> None:
    """Takes out what squeezes an axis longer than 1.

    `keras.ops.take` (Keras 3.15.1) does, which PyTorch ignores and ONNX takes at its word.
    """
    torch: Any = require("torch", "torch")

    for node in list(graph.nodes):
        if node.target is torch.ops.aten.squeeze.dim:
            (source, *_) = node.args
            if source.meta["val"].ndim == node.meta["val"].ndim:
                node.replace_all_uses_with(source)
                graph.erase_node(node)
