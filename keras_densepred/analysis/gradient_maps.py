"""Where in an image a detector's loss comes from: gradient maps and important regions.

After CEDNet, appendix B, which compares two detectors image by image: how well an image is
detected, what the gradient of the detection loss with respect to the image looks like, and how
large the regions of large gradient are. The definitions below are our readings, made without the
appendix's text.

* Detection quality of an image: COCO's AP (IoU 0.50:0.95) with this image as the whole split. So
  it is a mean over the classes that the image has; an image without objects has none.
* Gradient map: of each pixel the largest of its three channels' absolute gradients ("Deep Inside
  Convolutional Networks", Simonyan et al., section 3.1), over the map's maximum. The loss is that
  of training, all its parts, of this image alone, with the network as in inference (moving
  statistics, no drop path), with respect to the normalised image. Nothing is smoothed.
* Important region at a threshold t: the pixels whose map exceeds t. Its area is a share of the
  image without padding, so images and input sizes compare.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np

from keras_densepred.metrics.average_precision import coco_average_precision
from keras_densepred.metrics.coco_results import detections_to_coco
from keras_densepred.metrics.detection_evaluation import EvaluationDataset
from keras_densepred.runtime.input_gradient import input_gradient

THRESHOLDS = np.arange(100) / 100
"""Thresholds of the important regions: 0, 0.01, ... 0.99."""


@dataclasses.dataclass(frozen=True)
class ImageGradient:
    """What one detector does with one image.

    Attributes:
        image_id: of the data set.
        quality: average precision of this image, 0..1.
        gradient_map: (H, W) float16, 0..1, in pixels of the network's input without padding; all 0
            where the loss has no gradient.
    """

    image_id: int
    quality: float
    gradient_map: np.ndarray


class LossGradient:
    """The gradient of a detector's training loss with respect to its images.

    Args:
        model: a detector with `compute_loss(x, y, y_pred, training=)` of this package; if it is not
            compiled, it is, with its default losses. Its weights, seeds and metrics stay as they
            are.

    Raises:
        ValueError: if the model takes boxes in another format than xyxy.
    """

    def __init__(self, model: keras.Model):
        box_format = getattr(model, "bounding_box_format", "xyxy")
        if box_format != "xyxy":
            raise ValueError(
                f"The detector takes boxes as {box_format!r}, and gradient maps are made of xyxy "
                'boxes: build it with bounding_box_format="xyxy".'
            )
        if not model.compiled:
            model.compile(keras.optimizers.SGD())  # which keeps no moments
        self.model = model
        self._gradient: Callable | None = None

    def __call__(self, images: np.ndarray, targets: Mapping[str, np.ndarray]) -> np.ndarray:
        """The gradient.

        Args:
            images: (B, H, W, 3) float32, as the model wants them.
            targets: as `fit` takes them: `"boxes"` (B, M, 4) xyxy in pixels and `"labels"` (B, M),
                padded with -1, and for detectors of masks `"masks"`.

        Returns:
            (B, H, W, 3) float32.
        """
        if self._gradient is None:
            # Variables of the losses must be there before JAX traces; Keras 3.15.1 makes them here.
            self.model._symbolic_build(data_batch=(images, dict(targets)))
            self._gradient = input_gradient(self._loss, self.model.variables)
        return self._gradient(images, targets)

    def _loss(self, images: Any, targets: Mapping[str, Any]) -> Any:
        outputs = self.model(images, training=False)
        return self.model.compute_loss(x=images, y=dict(targets), y_pred=outputs, training=False)


def gradient_map(gradient: np.ndarray) -> np.ndarray:
    """How much each pixel matters.

    Args:
        gradient: (H, W, 3), of a loss.

    Returns:
        (H, W) float32: the largest absolute value of the channels, over its maximum; 0 where there
        is no gradient at all.
    """
    strength = np.abs(np.asarray(gradient, np.float32)).max(axis=-1)
    most = strength.max()
    return strength / most if most > 0 else strength


def important_area(
    values: np.ndarray, thresholds: Sequence[float] | np.ndarray = THRESHOLDS
) -> np.ndarray:
    """Share of a gradient map above each threshold.

    Args:
        values: (H, W), 0..1.
        thresholds: (T,) numbers, in any order.

    Returns:
        (T,) float64: for each the share of pixels that exceed it, 0..1.
    """
    ordered = np.sort(np.asarray(values).ravel())
    above = ordered.size - np.searchsorted(ordered, np.asarray(thresholds), side="right")
    return above / ordered.size


def image_quality(
    ground_truth: Mapping[str, Any], detections: Iterable[Mapping[str, Any]], image_id: int
) -> float:
    """Average precision of one image, see the module.

    Args:
        ground_truth: a COCO dictionary.
        detections: COCO results; those of other images are left out.
        image_id: of the image.

    Returns:
        0..1, or -1 for an image without objects.

    Raises:
        ImportError: if faster-coco-eval is not installed.
    """
    one = {
        "images": [image for image in ground_truth["images"] if image["id"] == image_id],
        "categories": ground_truth["categories"],
        "annotations": [a for a in ground_truth["annotations"] if a["image_id"] == image_id],
    }
    found = [item for item in detections if item["image_id"] == image_id]
    return coco_average_precision(one, found)["AP"]


def image_gradients(
    model: keras.Model,
    batches: Iterable[Mapping[str, np.ndarray]],
    dataset: EvaluationDataset,
    add_targets: Callable[[int], Mapping[str, np.ndarray]] | None = None,
) -> Iterator[ImageGradient]:
    """Quality and gradient map of every image that has objects.

    Args:
        model: as for `LossGradient`; it predicts as `metrics.evaluate_detector` wants it.
        batches: `data.eval_batches` of the split with one image a batch.
        dataset: the split.
        add_targets: gives further targets of an image id, such as `"masks"`, (1, ...) each.

    Yields:
        One for each image with objects, in the order of the batches.

    Raises:
        ValueError: if a batch has more than one image, for their losses would mix, or as
            `LossGradient`.
        ImportError: if faster-coco-eval is not installed.
    """
    loss_gradient = LossGradient(model)
    ground_truth = dataset.ground_truth()
    sizes = {item["id"]: (item["height"], item["width"]) for item in ground_truth["images"]}
    for batch in batches:
        if len(batch["images"]) != 1:
            raise ValueError(
                f"The batches have {len(batch['images'])} images: make them with batch_size=1."
            )
        if not batch["valid"][0] or (batch["labels"][0] < 0).all():
            continue
        image_id = int(batch["image_ids"][0])
        predictions = model.predict_on_batch(batch["images"])
        boxes = {key: value for key, value in predictions.items() if key != "masks"}
        found = detections_to_coco(boxes, batch, dataset.category_ids, sizes)
        targets = {"boxes": batch["boxes"], "labels": batch["labels"]}
        if add_targets is not None:
            targets |= add_targets(image_id)
        gradient = loss_gradient(batch["images"], targets)[0]
        height, width = np.rint(np.multiply(sizes[image_id], batch["scales"][0])).astype(int)
        values = gradient_map(gradient[:height, :width])
        quality = image_quality(ground_truth, found, image_id)
        yield ImageGradient(image_id, quality, values.astype(np.float16))
