"""Images with their true and predicted class."""

import io
import os
from collections.abc import Sequence

import numpy as np

from keras_densepred._optional import require
from keras_densepred.files import write_atomically
from keras_densepred.report.confusion import short_name

_COLUMNS = 4
_SIDE = 224


def draw_classified(
    images: Sequence[np.ndarray],
    labels: Sequence[int],
    logits: np.ndarray,
    class_names: Sequence[str],
    path: str | os.PathLike[str],
) -> None:
    """Draws images in a grid, above each its true and predicted class, red if wrong.

    Args:
        images: (H, W, 3) uint8 RGB each.
        labels: true label of each.
        logits: `(N, num_classes)`; the share beside a prediction is its softmax.
        class_names: by label.
        path: of the PNG.

    Raises:
        ImportError: if matplotlib is not installed.
    """
    figure_module = require("matplotlib.figure", "data")
    rows = max(1, -(-len(images) // _COLUMNS))
    inches = _SIDE / 100
    figure = figure_module.Figure((inches * _COLUMNS, (inches + 0.5) * rows), layout="constrained")
    panels = figure.subplots(rows, _COLUMNS, squeeze=False).ravel()
    logits = np.asarray(logits, np.float64)
    shares = np.exp(logits - logits.max(axis=1, keepdims=True))
    shares /= shares.sum(axis=1, keepdims=True)
    for axes in panels:
        axes.set_axis_off()
    used = panels[: len(images)]
    for axes, image, label, share in zip(used, images, labels, shares, strict=True):
        found = int(share.argmax())
        axes.imshow(image)
        truth, guess = short_name(class_names[label]), short_name(class_names[found])
        axes.set_title(
            f"{truth}\n→ {guess} {100 * share[found]:.0f} %",
            fontsize=8,
            color="darkgreen" if found == label else "firebrick",
        )
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    write_atomically(path, buffer.getvalue())
