"""LiteRT files in their interpreter: what they give, and what small weights change."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from keras_densepred import export
from keras_densepred._optional import require

if TYPE_CHECKING:
    import keras


def runner(path: Path) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
    """A function from images (B, H, W, 3) to the file's outputs by name.

    Raises:
        ImportError: if TensorFlow is not installed.
    """
    lite = require("tensorflow", "tensorflow").lite
    run = lite.Interpreter(model_path=str(path)).get_signature_runner("serving_default")
    return lambda images: run(images=images)


def compare_weights(model: keras.Model, weights: str, side: int) -> list[str]:
    """Lines on how the outputs before any suppression differ from those of float32 weights.

    Args:
        model: what was exported.
        weights: `"float16"` or `"int8"`.
        side: of the images in pixels; they are noise, as wide as normalised images.
    """
    images = np.random.default_rng(0).normal(size=(1, side, side, 3)).astype(np.float32)
    with tempfile.TemporaryDirectory() as folder:
        files = {kind: Path(folder) / f"{kind}.tflite" for kind in ("float32", weights)}
        for kind, file in files.items():
            export.export_litert(model, file, side, suppress=False, weights=kind)
        large, small = (runner(file)(images) for file in files.values())
        sizes = [file.stat().st_size for file in files.values()]
    lines = [f"{weights} weights: {sizes[1] / sizes[0]:.0%} of the size with float32 weights"]
    for name, value in large.items():
        error = np.abs(small[name] - value).mean()
        lines.append(f"{name}: mean difference {error:.3g}, mean value {np.abs(value).mean():.3g}")
    return lines
