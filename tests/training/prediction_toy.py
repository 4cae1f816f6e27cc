"""A detector predicts on two simulated devices of JAX: what they exchange, and what they find.

`python -m tests.training.prediction_toy` prints a line of JSON: the collectives of the compiled
step, and the largest difference from one device.
"""

import json

import jax
import keras
import numpy as np

from keras_densepred import training
from keras_densepred.ops.nms import non_max_suppression
from tools.compiled.program import collectives
from tools.compiled.steps import lower_predict_step


@keras.saving.register_keras_serializable(package="keras_densepred_tests")
class Boxes(keras.layers.Layer):
    """Takes the pixels of an image for boxes and chooses among them."""

    def call(self, inputs):
        corners = keras.ops.reshape(inputs[..., :2], (-1, 64, 2))
        boxes = keras.ops.concatenate([corners, corners + 1.0], axis=-1)
        scores = keras.ops.sigmoid(keras.ops.reshape(inputs[..., 2:], (-1, 64, 3)))
        return non_max_suppression(boxes, scores, pre_nms_top_k=20, max_detections=8)


def main():
    x = np.random.default_rng(0).normal(size=(4, 8, 8, 5)).astype("float32")
    inputs = keras.Input((8, 8, 5))
    with training.distribute(2) as cluster:
        model = keras.Model(inputs, Boxes()(inputs))
        ours = cluster.predictor(model).predict_on_batch(x)
        program = lower_predict_step(model, x, jax.devices()).compile().as_text()
    alone = model.predict_on_batch(x)
    worst = max(
        float(np.max(np.abs(np.asarray(a, "float64") - np.asarray(b, "float64"))))
        for a, b in zip(keras.tree.flatten(ours), keras.tree.flatten(alone), strict=True)
    )
    print(json.dumps({"collectives": collectives(program), "worst": worst}))


if __name__ == "__main__":
    main()
