"""Instances from masks of queries: the best classes, how sure their masks are, and their boxes."""

from typing import Any

from keras import ops

from keras_densepred.models.mask2former.decoder import mask_logits
from keras_densepred.ops.rows import gather_rows, highest

Tensor = Any

_FAR = 1e9


def best_instances(
    class_logits: Tensor,
    embeddings: Tensor,
    features: Tensor,
    image_size: tuple[Any, Any],
    stride: int,
    count: int,
    mask_size: int,
    places: Tensor | None = None,
) -> dict[str, Tensor]:
    """The best pairs of query and class, as MMDetection's Mask2Former chooses and scores them.

    Args:
        class_logits: (B, Q, C + 1) float32.
        embeddings: (B, Q, width) float32.
        features: (B, h, w, width) float32.
        image_size: height and width in pixels.
        stride: pixels of the image per position of the masks.
        count: K, instances of an image.
        mask_size: S, cells on a side of a mask.
        places: (B, Q, 4) float32 of the embeddings, if they have any.

    Returns:
        `"boxes"` (B, K, 4) float32 xyxy in pixels, the tightest around each mask, `"labels"` (B, K)
        int32, `"confidence"` (B, K) float32, the probability of the class times the mean one of
        the mask's pixels, and `"masks"` (B, K, S, S) float32 probabilities from edge to edge of
        the boxes; in descending confidence, -1 (masks 0) past `"num_detections"` (B,) int32:
        queries whose mask is empty.
    """
    classes = class_logits.shape[-1] - 1
    queries = class_logits.shape[1]
    probability = ops.softmax(class_logits, axis=-1)[..., :-1]
    found = min(count, queries * classes)
    scores, index = highest(ops.reshape(probability, (-1, queries * classes)), found)
    owners = index // classes
    if places is not None:
        places = gather_rows(places, owners)
    maps = mask_logits(gather_rows(embeddings, owners), features, places)
    boxes, sureness, _ = measure_masks(maps, image_size, stride)
    confidence = scores * sureness
    confidence, order = highest(confidence, found)
    # As rows of numbers: of more axes, or of one, Keras 3.15.1 asks PyTorch to squeeze an axis that
    # is longer than 1, which ONNX takes at its word.
    labels = ops.cast(index % classes, "float32")[..., None]
    rows = gather_rows(ops.concatenate([boxes, labels], axis=-1), order)
    boxes, labels = rows[..., :4], ops.cast(rows[..., 4], "int32")
    _, _, height, width = ops.shape(maps)
    maps = gather_rows(ops.reshape(maps, (-1, found, height * width)), order)
    maps = ops.reshape(maps, (-1, found, height, width))
    kept = confidence > 0.0
    masks = cut_out(maps, boxes, stride, mask_size)
    instances = {
        "boxes": ops.where(kept[..., None], boxes, -1.0),
        "labels": ops.where(kept, labels, -1),
        "confidence": ops.where(kept, confidence, -1.0),
        "masks": ops.where(kept[..., None, None], masks, 0.0),
    }
    if found < count:
        instances = {
            name: ops.pad(
                value,
                [(0, 0), (0, count - found), *[(0, 0)] * (len(value.shape) - 2)],
                constant_values=0 if name == "masks" else -1,
            )
            for name, value in instances.items()
        }
    return {**instances, "num_detections": ops.sum(ops.cast(kept, "int32"), axis=1)}


def measure_masks(
    maps: Tensor, image_size: tuple[Any, Any], stride: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes, sureness and areas of masks at the size of the image.

    The logits are scaled up bilinearly, but never held so: the pixels of one phase (every
    `stride`-th row and column) are as many as the mask's positions, and are measured at once.

    Args:
        maps: (B, K, h, w) float32 logits.
        image_size: height and width in pixels, at most `stride` times the maps'.
        stride: pixels of the image per position.

    Returns:
        (B, K, 4) float32, the tightest boxes xyxy around pixels with a logit above 0; (B, K) the
        mean probability of these pixels, 0 where there is none; (B, K) their number.
    """
    height, width = ops.shape(maps)[2:4]
    total: Tensor = 0.0
    area: Tensor = 0.0
    first, last = [], []
    for row in range(stride):
        rows = stride * ops.arange(height, dtype="int32") + row
        blended = _phase(maps, row, stride, axis=2)
        for column in range(stride):
            columns = stride * ops.arange(width, dtype="int32") + column
            logits = _phase(blended, column, stride, axis=3)
            on_image = ops.logical_and(rows[:, None] < image_size[0], columns < image_size[1])
            inside = ops.logical_and(logits > 0.0, on_image)
            area = area + ops.sum(ops.cast(inside, "float32"), axis=(2, 3))
            total = total + ops.sum(ops.where(inside, ops.sigmoid(logits), 0.0), axis=(2, 3))
            ends = [
                _ends(ops.any(inside, axis=axis), numbers)
                for axis, numbers in ((2, columns), (3, rows))
            ]
            first.append(ops.stack([low for low, _ in ends], axis=-1))
            last.append(ops.stack([high for _, high in ends], axis=-1))
    low = ops.min(ops.stack(first), axis=0)
    high = ops.max(ops.stack(last), axis=0)
    return ops.concatenate([low, high], axis=-1), total / (area + 1e-6), area


def _phase(maps: Tensor, number: int, stride: int, axis: int) -> Tensor:
    """Every `stride`-th position, from `number` on, of maps scaled up along an axis."""
    offset = (number + 0.5) / stride - 0.5
    if not offset:
        return maps
    one = [slice(None)] * 4
    others = [slice(None)] * 4
    if offset < 0.0:
        one[axis], others[axis] = slice(None, 1), slice(None, -1)
        neighbours = [maps[tuple(one)], maps[tuple(others)]]
    else:
        one[axis], others[axis] = slice(-1, None), slice(1, None)
        neighbours = [maps[tuple(others)], maps[tuple(one)]]
    share = abs(offset)
    return (1.0 - share) * maps + share * ops.concatenate(neighbours, axis=axis)


def _ends(used: Tensor, numbers: Tensor) -> tuple[Tensor, Tensor]:
    """The first used pixel and the one after the last, (B, K) float32 of (B, K, n) bool."""
    numbers = ops.cast(numbers, "float32")
    low = ops.min(ops.where(used, numbers, _FAR), axis=-1)
    return low, ops.max(ops.where(used, numbers + 1.0, -_FAR), axis=-1)


def cut_out(maps: Tensor, boxes: Tensor, stride: int, size: int) -> Tensor:
    """Probabilities of masks from edge to edge of their boxes.

    Args:
        maps: (B, K, h, w) float32 logits.
        boxes: (B, K, 4) float32 xyxy in pixels.
        stride: pixels of the image per position of the maps.
        size: S, cells on a side of the results.

    Returns:
        (B, K, S, S) float32; of the scaled-up logits at the cells' centres.
    """
    height, width = ops.shape(maps)[2:4]
    steps = (ops.arange(size, dtype="float32") + 0.5) / size
    shares = []
    for axis, cells in ((1, height), (0, width)):
        low, high = boxes[..., axis, None], boxes[..., axis + 2, None]
        position = (low + steps * (high - low)) / stride - 0.5
        position = ops.clip(position, 0.0, ops.cast(cells - 1, "float32"))
        distance = ops.abs(position[..., None] - ops.arange(cells, dtype="float32"))
        shares.append(ops.maximum(1.0 - distance, 0.0))
    return ops.sigmoid(ops.matmul(ops.matmul(shares[0], maps), ops.swapaxes(shares[1], -1, -2)))
