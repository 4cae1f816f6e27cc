"""
Title: Label every pixel
Author: keras_densepred
Date created: 2026/11/21
Last modified: 2026/11/21
Description: DeepLabv3 on a folder of masks in Pascal VOC's layout, with the IoU of each class.
"""

"""
## What this guide does

Semantic segmentation asks for the class of every pixel. The data are images and masks of the same
size, whose pixels are class numbers: 0 is usually the background, and 255 means "nobody said",
which neither trains nor counts. This guide goes from a folder of these to a segmenter and to the
one number that people compare, the mean intersection over union, class by class.

`recipes/voc_deeplab_v3.py` does it with one command.

    pip install ".[torch,data]"        # in a clone; or jax, tensorflow
"""

import os

os.environ.setdefault("KERAS_BACKEND", "torch")  # before Keras is imported; any backend will do

from pathlib import Path

import keras
import matplotlib.pyplot as plt
import numpy as np

from keras_densepred import backbones, data, metrics, models, training
from keras_densepred.data.drawing.semantic import draw_legend, draw_semantic

keras.utils.set_random_seed(0)

"""
## The folder

The guide writes a folder in VOC's layout: generated pictures of shapes, with a border of ignored
pixels around each object as VOC has it. **Put your own path here.** Known layouts are VOC's (with
SBD's annotations, if they are there), and plain ones such as `images/train` with `masks/train`. A
`classes.txt` beside them names the classes.
"""

FOLDER = Path("my_masks")

for split, count in (("train", 600), ("val", 100)):
    data.ShapesDataset(count, image_size=96, split=split).write_voc(FOLDER)
splits = data.find_segmentation_splits(FOLDER)
train, val = splits["train"], splits["val"]
print(*sorted(path.name for path in FOLDER.iterdir()), sep="\n")

"""
## Check the masks

The summary reads every mask. The second column is each class' share of all pixels, the third how
many images have it. The background takes most of the pixels: a network that says "background"
everywhere is right for most of them, which is why one does not look at pixel accuracy.
"""

print(train.summary())

"""
The upper row is what the network sees, the lower row what it is to say; ignored pixels are white.
"""

_, axes = plt.subplots(2, 4, figsize=(13, 6.6))
for column in range(4):
    record = train[column]
    axes[0, column].imshow(record.image)
    axes[1, column].imshow(draw_semantic(record.image, record.semantic, train.class_names))
for axis in axes.flat:
    axis.axis("off")
plt.tight_layout()
plt.show()

"""
## The model

DeepLabv3 in the form that BiCSNet's paper uses: the backbone's levels are brought to stride 8 and
averaged, two convolutions follow, and the logits are enlarged to the size of the image. No
dilation in the backbone is needed, because its pyramid has seen the whole picture already. (The
paper's head also has atrous spatial pyramid pooling; its rates 6, 12 and 18 are for larger
pictures than these.)
"""

SIZE, BATCH = 96, 8
EPOCHS, STEPS = 4, 100
MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)  # of ImageNet, RGB

backbone = backbones.load_backbone(
    "cednet_next_pico",  # or the directory of pretrained weights, without the next line
    layer_scale_init=0.2,
)
model = models.DeepLabV3(backbone, len(train.class_names), width=64, atrous_rates=None)
schedule = training.WarmupCosine(2e-3, 50, EPOCHS * STEPS)
model.compile(training.AdamW(schedule, weight_decay=1e-4, use_ema=True, ema_momentum=0.98))
print(f"{model.count_params():,} parameters")

"""
## Train

Training images are scaled at random, cut or padded to the network's size, and flipped; what is
padded is ignored. Each validation image is compared with its mask at the image's own size, and the
intersections and unions are summed over the whole split before they are divided, as VOC does: a
mean over images is another number.
"""

augment = data.segmentation_augmentation(SIZE, scale_range=(0.8, 1.25))
eval_batches = data.eval_mask_batches(val, batch_size=BATCH, image_size=SIZE, mean=MEAN, std=STD)
evaluation = metrics.SegmentationEvaluation(
    eval_batches,
    val.class_names,
    weights=lambda: training.averaged_weights(model),
    verbose=False,
)
with data.train_mask_batches(
    train, batch_size=BATCH, image_size=SIZE, seed=0, mean=MEAN, std=STD, augment=augment
) as stream:
    history = model.fit(
        ((batch["images"], batch["semantic"]) for batch in stream),
        steps_per_epoch=STEPS,
        epochs=EPOCHS,
        callbacks=[evaluation],
        shuffle=False,  # the stream is shuffled
        verbose=0,
    ).history
for epoch in range(EPOCHS):
    row = ", ".join(f"{name} {values[epoch]:.3f}" for name, values in history.items())
    print(f"epoch {epoch + 1}: {row}")

"""
## The IoU of each class

The intersection over union of a class is its right pixels, over all that have it or were given it.
Mirroring the picture and averaging both results costs one more forward pass; on large pictures
`models.multi_scale` with its scales and `models.sliding_window` add more.
"""

plain = evaluation.evaluate(model)
mirrored = metrics.SegmentationEvaluation(
    eval_batches,
    val.class_names,
    inference=lambda predict: models.multi_scale(predict, (1.0,), flip=True),
    verbose=False,
).evaluate(model)
print(training.describe_iou({"as it is": plain, "with mirror": mirrored}))

"""
Which classes are taken for which? Each row is a true class and adds up to 1.
"""

confusion = evaluation.confusion / evaluation.confusion.sum(axis=1, keepdims=True)
_, axis = plt.subplots(figsize=(5.5, 5))
axis.imshow(confusion, cmap="Blues", vmin=0, vmax=1)
for (row, column), share in np.ndenumerate(confusion):
    if share >= 0.005:
        ink = "white" if share > 0.5 else "black"
        axis.text(column, row, f"{share:.2f}", ha="center", va="center", color=ink, fontsize=8)
ticks = range(len(val.class_names))
axis.set_xticks(ticks, val.class_names, rotation=45, ha="right")
axis.set_yticks(ticks, val.class_names)
axis.set(xlabel="predicted", ylabel="true")
plt.tight_layout()
plt.show()

"""
## Look at it

Pictures that the network has not trained on: image, truth, prediction.
"""

batch = next(iter(eval_batches))
scores = model.predict_on_batch(batch["images"])
_, axes = plt.subplots(3, 6, figsize=(14, 7.6))
for column in range(6):
    record = val[int(batch["indices"][column])]
    labels = metrics.labels_at_own_size(scores, batch, column)
    axes[0, column].imshow(record.image)
    axes[1, column].imshow(draw_semantic(record.image, record.semantic, val.class_names))
    axes[2, column].imshow(draw_semantic(record.image, labels, val.class_names))
for axis in axes.flat:
    axis.axis("off")
for axis, title in zip(axes[:, 0], ("image", "truth", "prediction"), strict=True):
    axis.set_title(title, loc="left")
plt.tight_layout()
plt.show()

plt.figure(figsize=(9, 0.6))
plt.imshow(draw_legend(list(ticks), val.class_names, width=720))
plt.axis("off")
plt.show()

"""
## Keep it

`segmenter.keras` holds everything; `argmax` over its last axis gives the labels.
"""

model.save("segmenter.keras")
again = keras.saving.load_model("segmenter.keras")
labels = again.predict_on_batch(batch["images"]).argmax(axis=-1)
print(labels.shape, labels.dtype, [val.class_names[label] for label in np.unique(labels)])

"""
Where to go from here:

* the same with one command: `python recipes/voc_deeplab_v3.py --data-dir MY_MASKS`; with
  `--multi-scale --flip` it tests a finished run again;
* KerasHub's or KerasCV's DeepLabv3+ head on our backbones: `models.DeepLabV3KerasHub`,
  `models.DeepLabV3PlusKerasCV`;
* masks of single objects instead of classes: `recipes/coco_mask_rcnn.py`.
"""
