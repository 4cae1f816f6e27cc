"""Mixup and CutMix of whole batches on the host, with soft targets.

The same batch comes out whatever the number of processes that share it: images are mixed in pairs
of neighbouring rows, and the random numbers belong to the rows of the global batch.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from keras_densepred._optional import require

# Rows that share one draw, like each GPU's batch of 128 in the paper: with one draw for a global
# batch of 4096, all its images would be hard, or all easy.
_ROWS_OF_A_DRAW = 128


@dataclasses.dataclass(frozen=True)
class Mixing:
    """Mixup (Zhang et al., 2017) or CutMix (Yun et al., 2019), drawn for up to 128 rows at a time.

    Args:
        mixup_alpha: of mixup's Beta distribution; 0 for none.
        cutmix_alpha: of CutMix's; 0 for none.
        switch_probability: share of the draws that are CutMix, where both are used.
        probability: of mixing at all.

    Raises:
        ValueError: if a number is out of range.
    """

    mixup_alpha: float = 0.8
    cutmix_alpha: float = 1.0
    switch_probability: float = 0.5
    probability: float = 1.0

    def __post_init__(self) -> None:
        if min(self.mixup_alpha, self.cutmix_alpha) < 0:
            raise ValueError("`mixup_alpha` and `cutmix_alpha` must not be negative.")
        if self.mixup_alpha == self.cutmix_alpha == 0:
            raise ValueError("Mixing needs `mixup_alpha` or `cutmix_alpha`; give None for neither.")
        for name in ("switch_probability", "probability"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"`{name}` must be in 0..1, and is {getattr(self, name)}.")

    def apply(
        self,
        images: np.ndarray,
        targets: np.ndarray,
        *,
        seed: int,
        number: int,
        first_row: int,
        shares: np.ndarray | None = None,
    ) -> None:
        """Mixes rows of a batch in place.

        Args:
            images: `(b, H, W, 3)` uint8 or float32, `b` even.
            targets: `(b, num_classes)` float32.
            seed: of the run.
            number: of the global batch.
            first_row: of the global batch that is here, even.
            shares: `(b,)` float32 of ones, into which the part of each image is written instead of
                mixing it with its pair's other one by mixup; None mixes here.
        """
        rows = np.arange(first_row, first_row + len(images))
        for draw in np.unique(rows // _ROWS_OF_A_DRAW).tolist():
            here = np.flatnonzero(rows // _ROWS_OF_A_DRAW == draw)
            start, stop = int(here[0]), int(here[-1]) + 1
            rng = np.random.default_rng(np.random.SeedSequence((seed, number, draw)))
            later = None if shares is None else shares[start:stop]
            self._mix(images[start:stop], targets[start:stop], later, rng)

    def _mix(
        self,
        images: np.ndarray,
        targets: np.ndarray,
        shares: np.ndarray | None,
        rng: np.random.Generator,
    ) -> None:
        """Mixes rows 0 and 1, 2 and 3, and so on, all alike, in place."""
        if rng.random() >= self.probability:
            return
        is_cutmix = rng.random() < self.switch_probability
        if 0 in (self.mixup_alpha, self.cutmix_alpha):
            is_cutmix = self.mixup_alpha == 0
        if is_cutmix:
            share = float(rng.beta(self.cutmix_alpha, self.cutmix_alpha))
            y1, y2, x1, x2 = _window(rng, share, *images.shape[1:3])
            first, second = images[0::2, y1:y2, x1:x2], images[1::2, y1:y2, x1:x2]
            first[...], second[...] = second.copy(), first.copy()
            share = 1 - (y2 - y1) * (x2 - x1) / (images.shape[1] * images.shape[2])
        else:
            share = float(rng.beta(self.mixup_alpha, self.mixup_alpha))
            if shares is None:
                _blend_pairs(images, share)
            else:
                shares[...] = share
        one, other = targets[0::2].copy(), targets[1::2].copy()
        targets[0::2] = share * one + (1 - share) * other
        targets[1::2] = share * other + (1 - share) * one


def _blend_pairs(images: np.ndarray, share: float) -> None:
    """Leaves `share` of each row and puts the rest of its pair's other one in."""
    blend = require("cv2", "data").addWeighted
    for one, other in zip(images[0::2], images[1::2], strict=True):
        mixed = blend(one, share, other, 1 - share, 0)
        blend(other, share, one, 1 - share, 0, dst=other)
        one[...] = mixed


def soft_targets(labels: np.ndarray, num_classes: int, label_smoothing: float) -> np.ndarray:
    """Targets that sum to 1: `label_smoothing` of each spread over all classes.

    Args:
        labels: `(B,)` integers.
        num_classes: number of classes.
        label_smoothing: 0..1, 0 for one-hot targets.

    Returns:
        `(B, num_classes)` float32.
    """
    targets = np.full((len(labels), num_classes), label_smoothing / num_classes, np.float32)
    targets[np.arange(len(labels)), labels] += 1 - label_smoothing
    return targets


def _window(
    rng: np.random.Generator, share: float, height: int, width: int
) -> tuple[int, int, int, int]:
    """CutMix' rectangle, its centre anywhere and cut at the borders: y1, y2, x1, x2."""
    side = math.sqrt(1 - share)
    half_height, half_width = int(height * side) // 2, int(width * side) // 2
    y, x = int(rng.integers(height)), int(rng.integers(width))
    return (
        max(0, y - half_height),
        min(height, y + half_height),
        max(0, x - half_width),
        min(width, x + half_width),
    )
