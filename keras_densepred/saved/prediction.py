"""What a trained model finds in photographs: in their pixels, with the classes' names."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from keras_densepred import data, metrics
from keras_densepred._optional import require
from keras_densepred.data.drawing.objects import draw_objects
from keras_densepred.data.drawing.semantic import draw_semantic, with_legend
from keras_densepred.data.image_files import OnBadImage, load_image
from keras_densepred.data.readers.unlabelled import ClassPictures, Pictures

if TYPE_CHECKING:
    from keras_densepred.saved.opening import SavedModel

BATCH = 8  # images at a time


@dataclasses.dataclass(frozen=True, eq=False)
class Objects:
    """The objects in a photograph, most confident first.

    Attributes:
        image: (H, W, 3) uint8, RGB.
        boxes: (N, 4) float32, corners x1, y1, x2, y2 in pixels of the image.
        labels: (N,) int64, from 0.
        scores: (N,) float32, confidences between 0 and 1.
        masks: (N, H, W) bool, where the model finds them.
        class_names: of each label.
    """

    image: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    scores: np.ndarray
    masks: np.ndarray | None
    class_names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        counts = ", ".join(f"{name} {self.names.count(name)}" for name in dict.fromkeys(self.names))
        return f"<{len(self)} objects in {_size(self.image)}: {counts or 'none'}>"

    @property
    def names(self) -> list[str]:
        """The class of each object."""
        return [self.class_names[label] for label in self.labels.tolist()]

    def at_least(self, score: float) -> Objects:
        """Those with a confidence from `score`."""
        sure = self.scores >= score
        return dataclasses.replace(
            self,
            boxes=self.boxes[sure],
            labels=self.labels[sure],
            scores=self.scores[sure],
            masks=None if self.masks is None else self.masks[sure],
        )

    def draw(self) -> Any:
        """A Pillow image with boxes, masks, names and confidences. Requires extra `data`."""
        pixels = draw_objects(
            self.image,
            self.boxes,
            self.labels,
            self.class_names,
            scores=self.scores,
            masks=self.masks,
        )
        return require("PIL.Image", "data").fromarray(pixels)

    def to_supervision(self) -> Any:
        """As `supervision.Detections`, with the names under `data["class_name"]`.

        Raises:
            ImportError: if supervision is not installed.
        """
        return require("supervision", "supervision").Detections(
            xyxy=self.boxes,
            mask=self.masks,
            confidence=self.scores,
            class_id=self.labels,
            data={"class_name": np.array(self.names)},
        )


@dataclasses.dataclass(frozen=True, eq=False)
class LabelMap:
    """The class of each pixel of a photograph.

    Attributes:
        image: (H, W, 3) uint8, RGB.
        labels: (H, W) int64, from 0.
        class_names: of each label.
        class_colours: red, green, blue of each label, where the data set had some.
    """

    image: np.ndarray
    labels: np.ndarray
    class_names: tuple[str, ...]
    class_colours: tuple[tuple[int, int, int], ...] | None

    def __repr__(self) -> str:
        shares = sorted(self.shares().items(), key=lambda item: -item[1])
        return f"<{_size(self.image)}: {', '.join(f'{n} {100 * s:.0f} %' for n, s in shares)}>"

    def shares(self) -> dict[str, float]:
        """Of each class that occurs, its share of the pixels."""
        labels, counts = np.unique(self.labels, return_counts=True)
        pairs = zip(labels.tolist(), (counts / self.labels.size).tolist(), strict=True)
        return {self.class_names[label]: share for label, share in pairs}

    def draw(self) -> Any:
        """A Pillow image, tinted by class, below a legend. Requires extra `data`."""
        pixels = draw_semantic(self.image, self.labels, self.class_names, self.class_colours)
        labels = np.unique(self.labels).tolist()
        pixels = with_legend(pixels, labels, self.class_names, self.class_colours)
        return require("PIL.Image", "data").fromarray(pixels)


@dataclasses.dataclass(frozen=True, eq=False)
class ClassScores:
    """How probable each class of a photograph is.

    Attributes:
        image: (H, W, 3) uint8, RGB.
        probabilities: (C,) float64 of each label.
        class_names: of each label.
    """

    image: np.ndarray
    probabilities: np.ndarray
    class_names: tuple[str, ...]

    def __repr__(self) -> str:
        best = ", ".join(f"{name} {share:.2f}" for name, share in self.best(3).items())
        return f"<{_size(self.image)}: {best}>"

    @property
    def name(self) -> str:
        """The most probable class."""
        return self.class_names[int(self.probabilities.argmax())]

    def best(self, count: int = 5) -> dict[str, float]:
        """The most probable classes and their probabilities, in descending order."""
        order = np.argsort(-self.probabilities, kind="stable")[:count].tolist()
        return {self.class_names[label]: float(self.probabilities[label]) for label in order}


def _size(image: np.ndarray) -> str:
    return f"{image.shape[1]} x {image.shape[0]} px"


def as_pixels(image: Any) -> np.ndarray:
    """(H, W, 3) uint8 RGB of a file, an array (RGB, RGBA, gray) or a Pillow image.

    Raises:
        ImageError: if a file is no image.
        ValueError: if an array is none of an image.
    """
    if isinstance(image, (str, os.PathLike)):
        return load_image(os.fspath(image))
    if hasattr(image, "convert"):  # Pillow's
        return np.array(image.convert("RGB"))
    pixels = np.asarray(image)
    if pixels.dtype == np.uint8 and pixels.size:
        if pixels.ndim == 3 and pixels.shape[2] == 1:
            pixels = pixels[..., 0]
        if pixels.ndim == 2:
            pixels = np.repeat(pixels[..., None], 3, axis=2)
        if pixels.ndim == 3 and pixels.shape[2] in (3, 4):
            return pixels if pixels.shape[2] == 3 else pixels[..., :3]
    if pixels.dtype != np.uint8 and pixels.ndim in (2, 3):
        how = "(255 * image).astype('uint8') of numbers from 0 to 1"
        if pixels.dtype.kind == "u":
            how = "(image / 257).astype('uint8') of 16 bits"
        raise ValueError(f"An image is {pixels.dtype}: give uint8 from 0 to 255, such as {how}.")
    raise ValueError(
        f"An image is {pixels.dtype} of shape {pixels.shape}: give (H, W, 3) uint8 in RGB, (H, W) "
        "in gray, or the path of a file."
    )


def predict(model: SavedModel, images: Sequence[np.ndarray], score: float) -> list[Any]:
    """See `SavedModel.predict`."""
    if not images:
        return []
    pictures = in_memory(model, images)
    batches = open_batches(model, pictures, min(BATCH, len(images)))
    found = dict(found_in(model, pictures, batches, score))
    return [found[index] for index in range(len(images))]


def in_memory(model: SavedModel, images: Sequence[np.ndarray]) -> Pictures | ClassPictures:
    """Images as a data set for `open_batches`."""
    return (ClassPictures if model.task == "classification" else Pictures)(images)


def open_batches(
    model: SavedModel, dataset: Any, batch_size: int, on_bad_image: OnBadImage = "raise"
) -> data.EvalBatches:
    """A data set in batches, prepared as the model wants it.

    The last batch of a shape is filled up; images of one shape keep their order.
    """
    make: Any = {
        "detection": data.eval_batches,
        "segmentation": data.eval_mask_batches,
        "classification": data.eval_class_batches,
    }[model.task]
    options = model.preprocessing.batch_options()
    return make(dataset, batch_size=batch_size, on_bad_image=on_bad_image, **options)


def found_in(
    model: SavedModel, dataset: Any, batches: Iterable[Any], score: float
) -> Iterator[tuple[int, Any]]:
    """The index of each image and what is found in it, one after the other as they are predicted.

    Args:
        model: of any task.
        dataset: of the images.
        batches: of `open_batches`.
        score: least confidence of an object.
    """
    finish = {
        "detection": _objects,
        "segmentation": _label_map,
        "classification": _class_scores,
    }[model.task]
    for batch in batches:
        outputs = model.predictor.predict_on_batch(data.model_input(model.model, batch))
        for row in np.flatnonzero(batch["valid"]).tolist():
            if model.task == "detection":  # its batches go by the images' shapes
                index = int(batch["image_ids"][row]) - 1
            else:
                index = int(batch["indices"][row])
            yield index, finish(model, dataset[index].image, outputs, batch, row, score)


def _objects(
    model: SavedModel, image: np.ndarray, outputs: Any, batch: Any, row: int, score: float
) -> Objects:
    found = metrics.detections_on_image(outputs, batch, row, image.shape[:2])
    sure = found["confidence"] >= score
    return Objects(
        image,
        found["boxes"][sure].astype(np.float32),
        found["labels"][sure].astype(np.int64),
        found["confidence"][sure],
        found["masks"][sure] if "masks" in found else None,
        model.class_names,
    )


def _label_map(
    model: SavedModel, image: np.ndarray, outputs: Any, batch: Any, row: int, score: float
) -> LabelMap:
    del score
    labels = metrics.labels_at_own_size(np.asarray(outputs), batch, row)
    return LabelMap(image, labels, model.class_names, model.class_colours)


def _class_scores(
    model: SavedModel, image: np.ndarray, outputs: Any, batch: Any, row: int, score: float
) -> ClassScores:
    del batch, score
    return ClassScores(image, probabilities(model, outputs)[row], model.class_names)


def probabilities(model: SavedModel, outputs: Any) -> np.ndarray:
    """(B, C) float64 of what a classifier gives, logits or probabilities."""
    scores = np.asarray(outputs, np.float64)
    if getattr(model.model, "activation", None) is not None:
        return scores
    scores = np.exp(scores - scores.max(axis=1, keepdims=True))
    return scores / scores.sum(axis=1, keepdims=True)
