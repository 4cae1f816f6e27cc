"""How long RoIAlign takes beside a gather of the rows that it reads.

512 boxes of all sizes on P2 to P5 of a 512 px image, 256 channels, 7x7 bins of 2x2 points: every
bin reads 16 rows of 256 numbers. The gather beside it reads the same rows of the same table and
only writes them down.
"""

from typing import Any

import keras
import numpy as np
from keras import ops

from keras_densepred.ops.roi_align import roi_align
from tools.timing.measure import Timing, alternate

STRIDES = (4, 8, 16, 32)


def measure_roi_align(
    boxes: int = 512, image: int = 512, channels: int = 256, rounds: int = 9
) -> dict[str, Timing]:
    """Times both on the current Keras backend, forward and with the gradient of the maps.

    Args:
        boxes: boxes of the one image.
        image: its side in pixels.
        channels: of the maps.
        rounds: timed calls of each, by turns.

    Returns:
        The timing of each: `"gather"`, `"roi_align"`, and both with `" and gradient"`.
    """
    rng = np.random.default_rng(0)
    maps = [
        ops.convert_to_tensor(
            rng.normal(size=(1, image // s, image // s, channels)).astype("float32")
        )
        for s in STRIDES
    ]
    side = np.exp(rng.uniform(np.log(8), np.log(image), (boxes, 2)))
    centre = rng.uniform(0, image, (boxes, 2))
    corners = np.clip(np.concatenate([centre - side / 2, centre + side / 2], 1), 0, image)
    rois = ops.convert_to_tensor(corners[None].astype("float32"))
    rows = sum((image // s) ** 2 for s in STRIDES)
    index = ops.convert_to_tensor(rng.integers(0, rows, boxes * 49 * 16).astype("int32"))

    def align(*features: Any) -> Any:
        return roi_align(features, rois, STRIDES)

    def gather(*features: Any) -> Any:
        table = ops.concatenate([ops.reshape(x, (-1, channels)) for x in features], axis=0)
        return ops.take(table, index, axis=0)

    candidates = {
        "gather": _forward(gather, maps),
        "roi_align": _forward(align, maps),
        "gather and gradient": _with_gradient(gather, maps),
        "roi_align and gradient": _with_gradient(align, maps),
    }
    return alternate(candidates, rounds, warm_up=1)


def _forward(function: Any, maps: list[Any]) -> Any:
    backend = keras.config.backend()
    if backend == "jax":
        import jax

        compiled = jax.jit(function)
        return lambda: compiled(*maps).block_until_ready()
    if backend == "tensorflow":
        import tensorflow as tf

        graph = tf.function(function)
        return lambda: graph(*maps)[..., 0].numpy()

    import torch

    def call() -> None:
        with torch.no_grad():
            function(*maps)

    return call


def _with_gradient(function: Any, maps: list[Any]) -> Any:
    def loss(*features: Any) -> Any:
        return ops.sum(ops.square(function(*features)))

    backend = keras.config.backend()
    if backend == "jax":
        import jax

        compiled = jax.jit(jax.grad(loss, argnums=tuple(range(len(maps)))))
        return lambda: jax.block_until_ready(compiled(*maps))
    if backend == "tensorflow":
        import tensorflow as tf

        @tf.function
        def graph(*features: Any) -> Any:
            with tf.GradientTape() as tape:
                tape.watch(features)
                total = loss(*features)
            gradients = tape.gradient(total, features)
            return [tf.convert_to_tensor(g) for g in gradients]

        return lambda: [g[0, 0, 0, 0].numpy() for g in graph(*maps)]

    leaves = [m.detach().clone().requires_grad_() for m in maps]

    def call() -> None:
        for leaf in leaves:
            leaf.grad = None
        loss(*leaves).backward()

    return call
