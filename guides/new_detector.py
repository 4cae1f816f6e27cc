"""
Title: A detector of one's own
Author: keras_densepred
Date created: 2026/11/27
Last modified: 2026/11/29
Description: FCOS on the contract of detectors, a recipe for it, and what moves into the package.
"""

"""
## What a detector is here

A detector is a Keras model with three things of its own: heads, a loss, and a way from the heads'
outputs to boxes. All else is the same for every one and is written once, in `models.Detector`:
`fit`, `predict`, `compile`, box formats, logs, saving, and the refusal of what cannot work. This
guide writes FCOS ("FCOS: Fully Convolutional One-Stage Object Detection") to that contract, trains
it with a recipe of its own, and says what changes when it moves into the package.

FCOS has no anchors. Every position of every level predicts which class it lies on, if any, and how
far it is from there to the four sides of the object's box.

    pip install ".[torch,data]"        # in a clone; or jax, tensorflow
"""

import os

os.environ.setdefault("KERAS_BACKEND", "torch")  # before Keras is imported; any backend will do

import contextlib
import dataclasses
import io
from pathlib import Path

import keras
import matplotlib.pyplot as plt
import numpy as np
from keras import ops

from keras_densepred import DetectionPyramid, FeaturePyramid, backbones, data, models, training
from keras_densepred.models.pyramid import as_pyramid, pyramid_levels
from keras_densepred.ops.boxes import MAX_LOG_RATIO, giou_loss
from keras_densepred.ops.nms import gather_rows
from keras_densepred.runtime.replicas import loss_normalizer
from keras_densepred.training import Experiment, protocols

keras.utils.set_random_seed(0)

"""
## Where the positions are

Level `"Pn"` has stride `2**n`, and a position is the middle of its cell. Everything is `keras.ops`,
so that it runs on the three backends; the image size may be a tensor, as in a TensorFlow graph of
open size.
"""


def position_grid(height, width, levels):
    """Middles (N, 2) of all positions, as x and y in pixels, and their strides (N, 1)."""
    points, strides = [], []
    for level in levels:
        stride = 2**level
        x = ops.arange((width + stride - 1) // stride, dtype="int32") * stride
        y = ops.arange((height + stride - 1) // stride, dtype="int32") * stride
        y, x = ops.meshgrid(y, x, indexing="ij")
        middle = ops.reshape(ops.stack([x, y], axis=-1), (-1, 2))
        points.append(ops.cast(middle, "float32") + stride / 2)
        strides.append(ops.full_like(points[-1][:, :1], stride))
    return ops.concatenate(points, axis=0), ops.concatenate(strides, axis=0)


"""
## What a position learns

An object belongs to a position if three things hold:

* the position is in the box, and in its centre region: at most 1.5 strides from the middle;
* the box has the level's size: its farthest side is 4 to 8 strides away, where the finest level
  takes what is smaller, too, and the coarsest what is larger;
* of several such objects, it is the one with the smallest area.

Targets come padded: `(batch, M)` labels, negative where there is no object. So every question is
asked for all positions and all objects at once, `(batch, N, M)`, and no loop is needed.
"""


def assign_targets(points, strides, boxes, labels):
    """What each position learns: boxes (B, N, 4), and labels (B, N), -1 for background."""
    points, strides, boxes_m = points[None, :, None], strides[None], boxes[:, None]
    low, high = boxes_m[..., :2], boxes_m[..., 2:]
    sides = ops.concatenate([points - low, high - points], axis=-1)  # (B, N, M, 4)
    off_centre = ops.max(ops.abs(points - (low + high) / 2), axis=-1)
    farthest = ops.max(sides, axis=-1)
    least = ops.where(strides == ops.min(strides), 0.0, 4 * strides)
    most = ops.where(strides == ops.max(strides), float("inf"), 8 * strides)
    belongs = ops.logical_and(ops.min(sides, axis=-1) > 0, off_centre < 1.5 * strides)
    belongs = ops.logical_and(belongs, ops.logical_and(farthest > least, farthest <= most))
    belongs = ops.logical_and(belongs, labels[:, None] >= 0)
    area = ops.prod(high - low, axis=-1)
    best = ops.cast(ops.argmin(ops.where(belongs, area, float("inf")), axis=-1), "int32")
    labels = ops.where(ops.any(belongs, axis=-1), gather_rows(labels, best), -1)
    return gather_rows(boxes, best), labels


"""
It is worth a look before there is a network: which positions learn the objects of a picture?
"""

record = data.ShapesDataset(12, image_size=256)[9]
points, strides = position_grid(256, 256, levels=(3, 4, 5))
boxes, labels = (ops.convert_to_tensor(x[None]) for x in (record.boxes, record.labels))
_, learns = assign_targets(points, strides, boxes, labels)
points, strides, learns = (ops.convert_to_numpy(x) for x in (points, strides, learns[0]))

_, axes = plt.subplots(1, 3, figsize=(12, 4.2), layout="tight")
for axis, stride in zip(axes, (8, 16, 32), strict=True):
    axis.imshow(record.image, extent=(0, 256, 256, 0))
    for x1, y1, x2, y2 in record.boxes:
        axis.add_patch(plt.Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, ec="white"))
    here, positive = strides[:, 0] == stride, learns >= 0
    axis.scatter(*points[here & ~positive].T, s=3, c="white")
    axis.scatter(*points[here & positive].T, s=30, c="lime", edgecolors="black")
    axis.set_title(f"stride {stride}: {(here & positive).sum()} of {here.sum()} learn an object")
    axis.axis("off")
plt.show()

"""
## The model

`DenseDetector` is the contract for a detector that chooses its detections from one set of boxes
with scores. A family writes five things:

* a constructor, which builds a functional model and ends with `_set_detector`. Each argument is
  kept as an attribute of the same name (`dtype` as `head_dtype`, which `_set_detector` does): that
  is the whole config;
* `default_optimizer`, for `compile("auto")`;
* `compute_losses`: the parts of the loss by their names in the logs. The boxes are in pixels here,
  whatever format the user has;
* `boxes_and_scores`: all boxes, in pixels and inside of the image, and all scores from 0 to 1. The
  decoder does the rest; export asks for the same.

Two helpers are worth knowing. `as_pyramid` returns the backbone as it is if its levels are equally
wide, and puts the neck around it otherwise; it also refuses what is no backbone. `loss_normalizer`
divides by what was counted in the whole batch, on all devices, and never by zero: a batch without
any object still teaches what background is.

`PredictionHead` is RetinaNet's, and FCOS has the same: convolutions, then a prediction, shared by
all levels. The paper's centre-ness branch is left out; the centre region does most of its work.
"""


@keras.saving.register_keras_serializable(package="my_detectors")
class FCOS(models.DenseDetector, keras.Model):
    """FCOS: each position predicts a class and the distances to the sides of its box.

    Args:
        backbone: a pyramid, or a backbone with levels P3 to P5, which gets a `DetectionPyramid`.
        num_classes: C, without background.
        bounding_box_format: format of the boxes in training and prediction.
        head_width: channels of the heads, and of the neck if one is put on the backbone.
        head_depth: hidden convolutions of each head.
        prediction_decoder: layer from boxes and scores to detections; by default suppression of
            each class at 0.6, scores from 0.05.
        dtype: dtype policy of the heads; by default the backbone's.
        **kwargs: arguments of `keras.Model`, such as `name`.
    """

    def __init__(
        self,
        backbone,
        num_classes,
        bounding_box_format="xyxy",
        head_width=256,
        head_depth=4,
        prediction_decoder=None,
        dtype=None,
        **kwargs,
    ):
        if num_classes < 1:
            raise ValueError(f"`num_classes` is {num_classes}; give a positive integer.")
        backbone = as_pyramid(backbone, "FCOS", lambda b: DetectionPyramid(b, width=head_width))
        dtype = keras.dtype_policies.get(dtype or backbone.dtype_policy)
        options = dict(width=head_width, depth=head_depth, dtype=dtype)
        options["hidden_initializer"] = "he_normal"
        box_head = models.PredictionHead(4, name="box_head", **options)
        class_head = models.PredictionHead(
            num_classes, prior_probability=0.01, name="class_head", **options
        )

        images = keras.Input(backbone.image_shape, name="images")
        parts = {"distances": [], "logits": []}
        for level, x in backbone(images).items():
            for key, head in (("distances", box_head), ("logits", class_head)):
                # float32 from here on: losses and decoding are not for half precision.
                shape, name = (-1, head.output_filters), f"{key}_{level}"
                flat = keras.layers.Reshape(shape, dtype="float32", name=name)
                parts[key].append(flat(head(x)))
        outputs = {
            key: keras.layers.Concatenate(axis=1, dtype="float32", name=key)(maps)
            for key, maps in parts.items()
        }
        super().__init__(inputs=images, outputs=outputs, **kwargs)

        losses = ("box_loss", "classification_loss")
        self._set_detector(backbone, num_classes, bounding_box_format, dtype, losses)
        self.head_width = head_width
        self.head_depth = head_depth
        nms = models.NonMaxSuppression(bounding_box_format, from_logits=False, iou_threshold=0.6)
        self.prediction_decoder = prediction_decoder or nms

    def default_optimizer(self):
        """The paper's, for a batch of 16."""
        return keras.optimizers.SGD(0.01, momentum=0.9, weight_decay=1e-4)

    def compute_losses(self, images, targets, outputs, training=True):
        points, strides = self._grid(images)
        boxes, labels = assign_targets(points, strides, targets["boxes"], targets["labels"])
        positive = ops.cast(labels >= 0, "float32")
        is_class = labels[..., None] == ops.arange(self.num_classes, dtype="int32")
        count = loss_normalizer(ops.sum(positive))
        box_losses = giou_loss(self._boxes(outputs, points, strides), boxes)
        focal = models.SigmoidFocalLoss()(ops.cast(is_class, "float32"), outputs["logits"])
        return {
            "box_loss": ops.sum(positive * box_losses) / count,
            "classification_loss": focal / count,
        }

    def boxes_and_scores(self, outputs, images):
        height, width = ops.shape(images)[1:3]
        limit = ops.cast(ops.stack([width, height, width, height]), "float32")
        boxes = self._boxes(outputs, *self._grid(images))
        return ops.minimum(ops.maximum(boxes, 0.0), limit), ops.sigmoid(outputs["logits"])

    def _grid(self, images):
        return position_grid(*ops.shape(images)[1:3], pyramid_levels(self.backbone))

    def _boxes(self, outputs, points, strides):
        """(B, N, 4) xyxy in pixels; a distance is a power of e, in strides."""
        sides = ops.exp(ops.clip(outputs["distances"], -MAX_LOG_RATIO, MAX_LOG_RATIO)) * strides
        return ops.concatenate([points - sides[..., :2], points + sides[..., 2:]], axis=-1)


"""
## Does it keep the contract?

A step first: the loss is the sum of its parts, and each part falls under its name in the logs.
"""

shapes = data.ShapesDataset(8, image_size=96)
backbone = backbones.load_backbone("cednet_next_pico", layer_scale_init=0.2)
model = FCOS(backbone, num_classes=len(shapes.class_names), head_width=64, head_depth=1)
model.compile("auto")
print(f"{model.count_params():,} parameters, backbone in a {type(model.backbone).__name__}")

MEAN, STD = protocols.IMAGENET_MEAN, protocols.IMAGENET_STD
with data.train_batches(shapes, batch_size=8, image_size=96, seed=0, mean=MEAN, std=STD) as stream:
    batch = stream.batch(0)
images, targets = batch["images"], {"boxes": batch["boxes"], "labels": batch["labels"]}
for step in range(2):
    logs = model.train_on_batch(images, targets, return_dict=True)
    print(f"step {step}:", {name: round(float(value), 3) for name, value in logs.items()})

"""
`predict` gives detections, the best first and -1 past `num_detections`; a saved model gives the
same, with its optimizer where it was. The class has to be imported before a file is loaded, as any
Keras class of one's own; `get_config` came from the constructor's arguments.
"""

found = model.predict(images, verbose=0)
print({name: x.shape for name, x in found.items()})

model.save("fcos.keras")
again = keras.saving.load_model("fcos.keras")
same = all(np.array_equal(x, again.predict(images, verbose=0)[name]) for name, x in found.items())
print(f"the same detections: {same}; optimizer at step {int(again.optimizer.iterations)}")

"""
## A recipe of its own

A recipe is a `training.Detection`: settings, published settings by name (each an `Experiment`; the
last, `"small"`, is for few images), and three functions. What is not said comes from the task: data
from a folder, TFDS or the built-in shapes, all flags, exact resume, several devices, evaluation,
pictures and presets. (The paper makes an image's shorter side 800 pixels, this recipe fits images
into a square.)
"""


def build_model(settings, train):
    """The compiled model; `settings` are complete here."""
    backbone = training.build_backbone(settings)
    if isinstance(backbone, backbones.ResNetBackbone):  # as in the paper: its scales want an FPN
        backbone = FeaturePyramid(backbone, settings.width, 3, 7, extra_levels="conv")
    model = FCOS(backbone, len(train.class_names), "xyxy", settings.width, settings.head_depth)
    schedule = training.make_schedule(settings, EXPERIMENTS[settings.experiment].drops)
    model.compile(training.make_optimizer(settings, model, schedule))
    return model


def augmentation(settings, image_size):
    """Large-scale jitter, crop and flip."""
    scales = (settings.scale_min, settings.scale_max)
    return data.coco_augmentation(image_size, scale_range=scales, copy_paste=settings.copy_paste)


def preprocessing(settings):
    """How evaluation prepares an image, and how a user of the preset has to."""
    return training.Preprocessing("detection", MEAN, STD, image_size=settings.image_size)


@dataclasses.dataclass(frozen=True)
class Settings(training.PyramidDetectionSettings):
    """One flag more than those that all detectors on a pyramid have."""

    head_depth: int | None = training.setting(None, "convolutions per head")


EXPERIMENTS = {
    "fcos": Experiment(
        "FCOS, section 4: ResNet-50 on COCO, 90,000 iterations of 16 images",
        {
            **dict(preset="resnet50", image_size=800, batch_size=16, steps=90_000, width=256),
            **dict(scale_min=1.0, scale_max=1.0, copy_paste=False, head_depth=4, optimizer="sgd"),
            **dict(learning_rate=0.01, weight_decay=1e-4, schedule="steps", warmup_steps=500),
        },
        drops=(60 / 90, 80 / 90),
    ),
    "small": Experiment(
        "some hundred to some thousand images, from random weights",
        {**protocols.FEW_IMAGES, "head_depth": 1, "weight_decay": 0.05, "steps": 1000},
        on_shapes=dict(image_size=64, steps=180, steps_per_epoch=45, ema=0.9),
    ),
}
RECIPE = training.Detection(
    "my_fcos", "FCOS on a folder.", Settings, EXPERIMENTS, build_model, augmentation, preprocessing
)

"""
In a file `my_fcos.py`, the class and this, the last line is `training.run_script(RECIPE.main)`
under `if __name__ == "__main__"`, and `python my_fcos.py --data-dir MY_IMAGES` trains. Here it runs
in the notebook, on the built-in shapes. It prints more than is shown: a line ten times an epoch.
"""

printed = io.StringIO()
with contextlib.redirect_stdout(printed):
    results = RECIPE.main(["--output", "runs/fcos"])
print(*(line for line in printed.getvalue().splitlines() if ", step " not in line), sep="\n")

"""
The loss falls, and so few steps make no good detector yet. These are the run's files - the same
command goes on from `checkpoints` where it was killed - and the upper half of `predictions.png`:
pairs of ground truth and what is found.
"""

output = Path("runs/fcos")
print(*sorted(map(str, [*output.glob("[!.]*"), *output.glob("preset/*")])), sep="\n")

sheet = plt.imread(output / "predictions.png")
plt.figure(figsize=(12, 6))
plt.imshow(sheet[: len(sheet) // 2])
plt.axis("off")
plt.show()

"""
The preset is used like any other. As the class is not the package's, the command line has to import
it, from a `my_fcos.py` in the folder where it is run:

    python -m keras_densepred evaluate runs/fcos --import my_fcos --data-dir MY_IMAGES
    python -m keras_densepred predict runs/fcos MY_IMAGES --import my_fcos

## Into the package

A detector that is worth keeping moves in as it is. Nothing that exists has to know of it, so the
change is a folder, a file and a few lines:

    keras_densepred/models/fcos/__init__.py     one docstring
    keras_densepred/models/fcos/model.py        FCOS, without package="my_detectors"
    keras_densepred/models/fcos/head.py         its heads, if they are not RetinaNet's
    keras_densepred/models/fcos/targets.py      position_grid, assign_targets
    keras_densepred/models/fcos/losses.py       its losses, if they are new
    recipes/coco_fcos.py                        the recipe, with the paper's experiment

In the decorator, `package="my_detectors"` becomes `package="keras_densepred"`. Files saved before
have the old name in them: train again, or keep the old class beside the new one. A detector that
trains like one that is there needs no recipe: a name in `HEADS` of `recipes/coco_retinanet.py` and
an `Experiment` there will do.

**One export** in `keras_densepred/models/__init__.py`, and the name in `__all__`:

    from keras_densepred.models.fcos.model import FCOS

**One line in the contract tests**, in `DETECTORS` of `tests/contracts/test_detectors.py`. It brings
some twenty tests: a step, images without objects, padding, saving with the optimizer, box formats,
half precision, errors of one sentence, and a step on every backbone family.

    "fcos": lambda *args, **options: models.FCOS(*args, **HEADS, **options),

Tests of its own are for what is new: the targets of a few boxes counted by hand, and the losses
beside those of the paper's code.

Where to go from here: `new_token_mixer` for a backbone of one's own; `finetune_detector` for what
to look at while it trains; `train_jax_serve_elsewhere` for export, which every `DenseDetector` has.
"""
