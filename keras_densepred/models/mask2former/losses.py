"""Which query answers for which mask, and what that costs, at random points of the masks.

"Masked-attention Mask Transformer", sections 3.3 and 4.1, in MMDetection's form.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

from keras import ops

from keras_densepred.models.mask2former.centres import at_points
from keras_densepred.models.mask2former.decoder import mask_logits
from keras_densepred.models.mask2former.targets import MaskTargets
from keras_densepred.ops.assignment import assign
from keras_densepred.ops.loops import first_columns
from keras_densepred.ops.point_samples import sample_points
from keras_densepred.ops.rows import descending_order, gather_rows, top_k
from keras_densepred.runtime.replicas import loss_normalizer

Tensor = Any
Uniform = Callable[[tuple[Any, ...]], Tensor]

CLASS_WEIGHT, MASK_WEIGHT, DICE_WEIGHT = 2.0, 5.0, 5.0  # of costs and of losses
NO_OBJECT_WEIGHT = 0.1  # of a query without object in the classification loss
CANDIDATES = 3  # times the points that are kept, of which the most uncertain are chosen
UNCERTAIN = 0.75  # share of the points that are chosen so; the others are random
_LAST = 1e6  # uncertainty of points that do not count


@dataclasses.dataclass(frozen=True)
class LayerLosses:
    """Losses of one prediction, weighted.

    Attributes:
        classification: scalar.
        mask: scalar.
        dice: scalar.
    """

    classification: Tensor
    mask: Tensor
    dice: Tensor


def match(
    outputs: dict[str, Tensor], targets: MaskTargets, num_points: int, uniform: Uniform
) -> Tensor:
    """The query of each target, for each prediction.

    Args:
        outputs: of `MaskDecoder`.
        targets: of the batch.
        num_points: P, of an image, the same for all its queries and targets.
        uniform: random numbers: a shape to float32 in [0, 1). Called for each prediction with
            (B, P, 2).

    Returns:
        (B, L, M) int32; -1 for padding, and for targets left over.
    """
    logits, embeddings, features = (
        ops.stop_gradient(outputs[key])
        for key in ("class_logits", "mask_embeddings", "mask_features")
    )
    places = outputs.get("mask_places")
    labels = targets.labels
    costs = []
    for layer in range(logits.shape[1]):
        points = uniform((ops.shape(logits)[0], num_points, 2))
        # Sampling is linear: the features are sampled instead of the masks of all queries.
        sampled = sample_points(features, points)
        masks = ops.matmul(embeddings[:, layer], ops.swapaxes(sampled, 1, 2))
        if places is not None:
            masks = masks + at_points(ops.stop_gradient(places[:, layer]), points)
        costs.append(_costs(logits[:, layer], masks, labels, *targets.at(points)))
    stacked = ops.stack(costs, axis=1)
    valid = ops.broadcast_to(
        (labels >= 0)[:, None], (*ops.shape(stacked)[:2], ops.shape(labels)[1])
    )
    return assign(stacked, valid)


def _costs(
    class_logits: Tensor, masks: Tensor, labels: Tensor, values: Tensor, counts: Tensor | None
) -> Tensor:
    """(B, Q, M) float32 cost of each pair.

    Args:
        class_logits: (B, Q, C + 1).
        masks: (B, Q, P) logits at the points.
        labels: (B, M).
        values: (B, M, P), targets at the points.
        counts: (B, P), whether a point counts; None: all do.
    """
    probability = ops.softmax(class_logits, axis=-1)
    is_class = labels[..., None] == ops.arange(class_logits.shape[-1], dtype="int32")
    classes = ops.matmul(probability, ops.swapaxes(ops.cast(is_class, "float32"), 1, 2))
    if counts is None:
        counts = ops.ones_like(masks[:, 0])
    counts = counts[:, None]
    number = ops.maximum(ops.sum(counts, axis=-1, keepdims=True), 1.0)
    values = ops.swapaxes(values * counts, 1, 2)
    # Of t and x: t softplus(-x) + (1 - t) softplus(x) = softplus(x) - t x.
    apart = ops.sum(ops.softplus(masks) * counts, axis=-1, keepdims=True)
    entropy = (apart - ops.matmul(masks, values)) / number
    probability = ops.sigmoid(masks) * counts
    shared = 2.0 * ops.matmul(probability, values)
    sums = ops.sum(probability, axis=-1, keepdims=True) + ops.sum(values, axis=1)[:, None]
    dice = 1.0 - (shared + 1.0) / (sums + 1.0)
    return -CLASS_WEIGHT * classes + MASK_WEIGHT * entropy + DICE_WEIGHT * dice


def layer_losses(
    outputs: dict[str, Tensor],
    layer: int,
    assigned: Tensor,
    targets: MaskTargets,
    num_points: int,
    uniform: Uniform,
) -> LayerLosses:
    """Losses of one prediction.

    Args:
        outputs: of `MaskDecoder`.
        layer: which of its predictions.
        assigned: (B, M) int32 queries of the targets, of `match`.
        targets: of the batch.
        num_points: P, of each mask.
        uniform: as in `match`. Called with (B, K, 3P, 2), candidates of which the uncertain ones
            are kept, then with (B, K, P / 4, 2) for the others, for the K = min(M, Q) targets that
            can have a query.
    """
    chosen, used = _matched_first(assigned, outputs["mask_embeddings"].shape[2])
    queries = gather_rows(assigned, chosen)
    matched = ops.cast(queries >= 0, "float32")
    maps = _matched_maps(outputs, layer, queries)
    points = _points(maps, used, targets, num_points, uniform)
    logits = first_columns(_at, used, maps, points)
    values, counts = first_columns(targets.at_each, used, points, chosen)
    if counts is None:
        counts = ops.ones_like(logits)
    number = ops.maximum(ops.sum(counts, axis=-1), 1.0)
    entropy = ops.sum((ops.softplus(logits) - values * logits) * counts, axis=-1) / number
    probability, values = ops.sigmoid(logits) * counts, values * counts
    shared = 2.0 * ops.sum(probability * values, axis=-1)
    sums = ops.sum(probability, axis=-1) + ops.sum(values, axis=-1)
    dice = 1.0 - (shared + 1.0) / (sums + 1.0)
    masks = loss_normalizer(ops.sum(matched))
    return LayerLosses(
        CLASS_WEIGHT * _classification(outputs["class_logits"][:, layer], assigned, targets),
        MASK_WEIGHT * ops.sum(entropy * matched) / masks,
        DICE_WEIGHT * ops.sum(dice * matched) / masks,
    )


def _classification(logits: Tensor, assigned: Tensor, targets: MaskTargets) -> Tensor:
    """Cross-entropy of all queries; weighted mean over the batch."""
    none = logits.shape[-1] - 1
    queries = ops.arange(logits.shape[1], dtype="int32")
    is_match = ops.cast(assigned[:, None] == queries[:, None], "int32")  # (B, Q, M)
    number = ops.sum(is_match * (targets.labels[:, None] + 1), axis=-1)
    labels = ops.where(number > 0, number - 1, none)
    is_label = labels[..., None] == ops.arange(none + 1, dtype="int32")
    right = ops.sum(ops.where(is_label, logits, 0.0), axis=-1)
    loss = ops.logsumexp(logits, axis=-1) - right
    weights = ops.where(labels == none, NO_OBJECT_WEIGHT, 1.0)
    if targets.counted is not None:
        weights = weights * targets.counted[:, None]
    return ops.sum(loss * weights) / loss_normalizer(ops.sum(weights), least=NO_OBJECT_WEIGHT)


def _matched_first(assigned: Tensor, num_queries: int) -> tuple[Tensor, Tensor]:
    """Places (B, K) of the targets that have a query, then others, and how many columns have any.

    K is what can have a query. Most places of targets are padding: the losses of 8 images of
    nuclei, 256 px, and their gradients took 2.3 s with all and take 0.9 (198 places, 200 queries,
    JAX, two CPU cores).
    """
    has_query = ops.cast(assigned >= 0, "int32")
    places = assigned.shape[1]  # open in a graph of TensorFlow that is to take any number
    kept = ops.shape(assigned)[1] if places is None else min(places, num_queries)
    chosen = descending_order(has_query)[:, :kept]
    used = ops.max(ops.sum(has_query, axis=1), initial=0)
    return chosen, used


def _matched_maps(outputs: dict[str, Tensor], layer: int, assigned: Tensor) -> Tensor:
    """(B, K, h, w) mask logits of the query of each target."""
    queries = ops.maximum(assigned, 0)
    rows = gather_rows(outputs["mask_embeddings"][:, layer], queries)
    places = outputs.get("mask_places")
    if places is not None:
        places = gather_rows(places[:, layer], queries)
    return mask_logits(rows, outputs["mask_features"], places)


def _points(
    maps: Tensor, used: Tensor, targets: MaskTargets, num_points: int, uniform: Uniform
) -> Tensor:
    """(B, K, P, 2): three quarters where the masks are least sure, the others anywhere."""
    number = int(UNCERTAIN * num_points)
    shape = ops.shape(maps)[:2]

    def most_uncertain(maps: Tensor, candidates: Tensor) -> Tensor:
        doubt = -ops.abs(_at(maps, candidates))
        counts = targets.counts_at(candidates)
        if counts is not None:
            doubt = doubt - _LAST * (1.0 - counts)
        _, index = top_k(doubt, number, sorted=False)
        flat = ops.reshape(candidates, (-1, CANDIDATES * num_points, 2))
        index = ops.reshape(index, (-1, number))
        return ops.reshape(gather_rows(flat, index), (*ops.shape(doubt)[:2], number, 2))

    candidates = uniform((*shape, CANDIDATES * num_points, 2))
    uncertain = first_columns(most_uncertain, used, ops.stop_gradient(maps), candidates)
    if number == num_points:
        return uncertain
    return ops.concatenate([uncertain, uniform((*shape, num_points - number, 2))], axis=2)


def _at(maps: Tensor, points: Tensor) -> Tensor:
    """Values of maps (B, K, h, w) at points (B, K, P, 2): (B, K, P)."""
    shape = ops.shape(points)
    flat = ops.reshape(maps, (-1, *ops.shape(maps)[2:], 1))
    values = sample_points(flat, ops.reshape(points, (-1, *shape[2:])))
    return ops.reshape(values, shape[:3])
