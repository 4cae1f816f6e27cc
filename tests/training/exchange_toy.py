"""What steps exchange on two simulated devices of JAX, and whether they compute what one does.

`python -m tests.training.exchange_toy predict` prints a line of JSON: the kinds of the compiled
program's collectives, and the largest difference from one device, relative where numbers are above
1. `rows` does so for the gradient of all operations on rows of images, and `step RECIPE FLAGS`
prints the collectives of a recipe's training step.
"""

import json
import sys

if __name__ == "__main__":
    import tests.without_tensorflow  # noqa: F401

import jax
import keras
import numpy as np
from keras import ops

from keras_densepred import training
from keras_densepred.ops.assignment import assign
from keras_densepred.ops.deformable_attention import deformable_attention
from keras_densepred.ops.deformable_conv import deformable_conv
from keras_densepred.ops.nms import non_max_suppression
from keras_densepred.ops.point_samples import labels_at_points, sample_points
from keras_densepred.ops.roi_align import roi_align
from keras_densepred.ops.rows import descending_order, gather_rows, top_k_index
from tools.compiled.program import collectives
from tools.compiled.recipe_steps import recipe_steps
from tools.compiled.steps import lower_predict_step, lower_train_step

RANDOM = np.random.default_rng(0)


@keras.saving.register_keras_serializable(package="keras_densepred_tests")
class Boxes(keras.layers.Layer):
    """Takes the pixels of an image for boxes and chooses among them."""

    def call(self, inputs):
        corners = ops.reshape(inputs[..., :2], (-1, 64, 2))
        boxes = ops.concatenate([corners, corners + 1.0], axis=-1)
        scores = ops.sigmoid(ops.reshape(inputs[..., 2:], (-1, 64, 3)))
        return non_max_suppression(boxes, scores, pre_nms_top_k=20, max_detections=8)


def predict():
    x = RANDOM.normal(size=(4, 8, 8, 5)).astype("float32")
    inputs = keras.Input((8, 8, 5))
    with training.distribute(2) as cluster:
        model = keras.Model(inputs, Boxes()(inputs))
        ours = cluster.predictor(model).predict_on_batch(x)
        program = lower_predict_step(model, x, jax.devices()).compile()
    return program, ours, model.predict_on_batch(x)


def loss_of_rows(maps, boxes):
    """A number to which every operation on rows contributes; maps (B, 8, 8, 5), boxes (B, 6, 4)."""
    points, flat = boxes[..., :2] / 8.0, ops.reshape(maps, (-1, 64, 5))
    order = descending_order(flat[..., 0])
    chosen = Boxes()(ops.stop_gradient(maps))["boxes"]
    # A query looks at two points of one level, by one head of five channels.
    sampled = (
        flat[:, :, None],
        [(8, 8)],
        ops.reshape(points, (-1, 3, 1, 1, 2, 2)),
        ops.reshape(flat[:, :6, 3], (-1, 3, 1, 1, 2)),
    )
    offsets = ops.tile(maps[..., :2], (1, 1, 1, 9))
    given = assign(flat[:, :9, :4], ops.ones((maps.shape[0], 4), "bool"))
    labels = labels_at_points(ops.cast(maps[..., 0] > 0.0, "int32"), points)
    return sum(
        ops.sum(ops.square(ops.cast(part, "float32")))
        for part in (
            roi_align([maps], boxes, [1], 2),
            sample_points(maps, points) * ops.cast(labels, "float32")[..., None],
            gather_rows(flat, top_k_index(flat[..., 1], 5)),
            gather_rows(flat, order) * ops.arange(64.0)[:, None],
            gather_rows(flat, given),
            gather_rows(flat[..., 2], ops.cast(chosen[..., 0] > 0.0, "int32")),
            deformable_attention(*sampled),
            deformable_conv(maps, offsets, ops.ones((3, 3, 5, 2)), padding=1),
        )
    )


def rows():
    maps = RANDOM.normal(size=(4, 8, 8, 5)).astype("float32")
    corner = RANDOM.uniform(0.0, 4.0, (4, 6, 2)).astype("float32")
    inputs = (maps, np.concatenate([corner, corner + 3.0], axis=-1))
    gradient = jax.jit(jax.value_and_grad(loss_of_rows))
    alone = gradient(*inputs)
    with training.distribute(2):
        layout = keras.distribution.distribution().get_data_layout
        shared = [jax.device_put(x, layout(x.shape).backend_layout) for x in inputs]
        both = jax.jit(jax.value_and_grad(loss_of_rows))
        return both.lower(*shared).compile(), both(*shared), alone


def step(recipe, *flags):
    steps = recipe_steps(recipe, flags)
    lowered = lower_train_step(steps.model, steps.batch, jax.devices())
    return lowered.compile({"xla_backend_optimization_level": 0}), (), ()


def difference(a, b):
    a, b = np.asarray(a, "float64"), np.asarray(b, "float64")
    return float(np.max(np.abs(a - b)) / max(1.0, np.max(np.abs(b))))


def main():
    program, ours, alone = globals()[sys.argv[1]](*sys.argv[2:])
    pairs = zip(keras.tree.flatten(ours), keras.tree.flatten(alone), strict=True)
    worst = max((difference(a, b) for a, b in pairs), default=0.0)
    kinds = [kind for kind, _ in collectives(program.as_text())]
    print(json.dumps({"collectives": kinds, "worst": worst}))


if __name__ == "__main__":
    main()
