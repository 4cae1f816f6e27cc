"""What a training step of Mask R-CNN costs beside one of its backbone alone, and its RoIAlign.

Both steps are `train_on_batch` with SGD on the same images, compiled in the same way, so the
update of the weights counts on both sides.
"""

from typing import Any

import keras
import numpy as np
from keras import layers

from keras_densepred import backbones, models
from tools.timing import measure, roi_align
from tools.timing.candidates import JIT_COMPILE

NUM_CLASSES = 80
OBJECTS = 10  # of each image; COCO's mean is 7
MASK_SIZE = 28


def measure_two_stage(
    preset: str = "resnet50",
    image_size: int = 512,
    batch: int = 2,
    compile: str = "default",
    rounds: int = 7,
    roi_boxes: int = 512,
) -> list[dict[str, Any]]:
    """Times the step beside the backbone's, and RoIAlign beside a gather, by turns.

    Args:
        preset: of the backbone, which gets an FPN of P2 to P6 where it has none.
        image_size: side in pixels.
        batch: images of a step.
        compile: a key of `candidates.JIT_COMPILE`.
        rounds: timed calls of each candidate.
        roi_boxes: boxes of RoIAlign's one image.

    Returns:
        A row for each candidate: `"what"`, `"image_size"`, `"batch"`, `"compile"`, `"ms_median"`,
        `"ms_min"`, `"first_call_s"`, `"times_its_base"` (the backbone's step, or the gather).
    """
    backbone = backbones.load_backbone(preset, image_shape=(image_size, image_size, 3))
    images = np.random.default_rng(0).normal(size=(batch, image_size, image_size, 3))
    images, objects = images.astype("float32"), _objects(batch, image_size)
    pooled = [layers.GlobalAveragePooling2D("channels_last")(x) for x in backbone.outputs]
    alone = keras.Model(backbone.inputs[0], pooled)
    zeros = [np.zeros((batch, x.shape[-1]), "float32") for x in pooled]
    alone.compile(keras.optimizers.SGD(1e-6), "mse", jit_compile=JIT_COMPILE[compile])
    detector = models.MaskRCNN(backbone, NUM_CLASSES)
    detector.compile(keras.optimizers.SGD(1e-6), jit_compile=JIT_COMPILE[compile])
    # The loss comes back as a number, so the step is done.
    steps = measure.alternate(
        {
            "backbone step": lambda: alone.train_on_batch(images, zeros),
            "mask_rcnn step": lambda: detector.train_on_batch(images, objects),
        },
        rounds,
    )
    aligns = roi_align.measure_roi_align(roi_boxes, image_size, rounds=rounds)
    bases = {
        "backbone step": "backbone step",
        "mask_rcnn step": "backbone step",
        "gather": "gather",
        "roi_align": "gather",
        "gather and gradient": "gather and gradient",
        "roi_align and gradient": "gather and gradient",
    }
    timings = {**steps, **aligns}
    return [
        {
            "what": what,
            "image_size": image_size,
            "batch": batch if what in steps else 1,
            "compile": compile if what in steps else "default",
            "ms_median": timing.ms_median,
            "ms_min": timing.ms_min,
            "first_call_s": timing.first_call_s,
            "times_its_base": timing.ms_median / timings[bases[what]].ms_median,
        }
        for what, timing in timings.items()
    ]


def _objects(batch: int, image_size: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    corner = rng.uniform(0, 0.7, (batch, OBJECTS, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(0.05, 0.3, corner.shape)], -1)
    return {
        "boxes": (boxes * image_size).astype("float32"),
        "labels": rng.integers(0, NUM_CLASSES, (batch, OBJECTS)).astype("int32"),
        "masks": rng.integers(0, 2, (batch, OBJECTS, MASK_SIZE, MASK_SIZE)).astype("uint8"),
    }
