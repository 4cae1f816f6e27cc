"""Export to PyTorch's exported programs."""

import os
from pathlib import Path

import keras

from keras_densepred.export.conversion import input_shape, quiet, signature
from keras_densepred.export.graph import Exported
from keras_densepred.files import replacing


def export_torch(
    model: keras.Model,
    path: str | os.PathLike[str],
    image_size: int | tuple[int, int],
    *,
    batch_size: int = 1,
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
    exported = Exported(model, suppress=suppress, named=True)
    path = Path(path)
    with replacing(path, "model.pt2") as unfinished, quiet():
        exported.export(
            str(unfinished), format="torch", verbose=False, input_signature=signature(shape)
        )
    return path
