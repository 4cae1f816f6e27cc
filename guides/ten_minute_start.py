"""
Title: Ten-minute start
Author: keras_densepred
Date created: 2026/11/21
Last modified: 2026/11/21
Description: A backbone, its pyramid, and the detectors of KerasHub and KerasCV on top of it.
"""

"""
## Why another backbone

A detector has to find large and small things, so it wants feature maps of several resolutions, and
the fine ones have to know what the coarse ones have understood. The usual way is a classification
network that meets its scales only at the end, in an FPN. The networks in this package fuse scales
*inside* of the backbone, early and many times; no FPN is needed behind them.

To Keras they are ordinary functional models with one more property: named levels.

    pip install ".[torch,data,cv]"        # in a clone; or jax, tensorflow
"""

import os

os.environ.setdefault("KERAS_BACKEND", "torch")  # before Keras is imported; any backend will do

import keras
import keras_hub
import matplotlib.pyplot as plt
import numpy as np

import keras_densepred
from keras_densepred import data
from keras_densepred.data.drawing.objects import draw_objects

keras.utils.set_random_seed(0)

"""
## A backbone

`from_preset` takes the name of an architecture, a directory, or a handle of a hub. The names that
come with the package are architectures with random weights. `cednet_next_pico` is CEDNet in small,
for CPUs and for guides.
"""

backbone = keras_densepred.CEDNetBackbone.from_preset("cednet_next_pico")
print(f"{backbone.count_params():,} parameters")
print(*keras_densepred.CEDNetBackbone.architecture_presets(), sep=", ")

"""
## Its pyramid

Images are RGB, normalised, channels last (or first, with `data_format`). The built-in shapes will
do: they are drawn when they are asked for.
"""

MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)  # of ImageNet, in 0..255
shapes = data.ShapesDataset(4, image_size=256)
pictures = np.stack([shapes[index].image for index in range(4)])
images = ((pictures - np.array(MEAN)) / STD).astype("float32")

_, axes = plt.subplots(1, 4, figsize=(13, 3.4))
for axis, index in zip(axes, range(4), strict=True):
    record = shapes[index]
    axis.imshow(draw_objects(record.image, record.boxes, record.labels, shapes.class_names))
    axis.axis("off")
plt.tight_layout()
plt.show()

"""
Level `"P3"` has stride 8, which is 2 to the power of 3: one position stands for 8 by 8 pixels.
What a head has to know of a level is in `feature_info`, so nobody has to count layers.
"""

features = backbone(images)
for level, info in backbone.feature_info.items():
    shape = tuple(features[level].shape)
    print(f"{level}: stride {info.stride:2d}, {info.channels:3d} channels, {shape}")

"""
Any size will do that is a multiple of 32. Something else is an error that says so, and not a map
that is shifted by half a position.
"""

print({level: tuple(x.shape[1:3]) for level, x in backbone(np.zeros((1, 96, 160, 3))).items()})

"""
Detectors want levels of one width, and coarser ones for large objects. `DetectionPyramid` adds
just that: a 1x1 convolution a level, and two strided convolutions for P6 and P7. It is not an FPN:
no level is mixed with another here.
"""

pyramid = keras_densepred.DetectionPyramid(backbone, width=64)
for level, info in pyramid.feature_info.items():
    print(f"{level}: stride {info.stride:3d}, {info.channels} channels")

"""
## Into KerasHub's RetinaNet

A pyramid has all that `keras_hub` looks for in a backbone, so it goes in as it is.
"""

detector = keras_hub.models.RetinaNetObjectDetector(
    pyramid, num_classes=6, bounding_box_format="xyxy"
)
outputs = detector(images)
print({name: tuple(x.shape) for name, x in outputs.items()})

"""
## Into KerasCV's RetinaNet

KerasCV puts its own FPN on P3 to P5 of the backbone, which it finds by `pyramid_level_inputs`. It
needs TensorFlow installed, whatever the backend. Its decoder works on TensorFlow only; ours, which
runs on all three, takes its place.
"""

import keras_cv

detector = keras_cv.models.RetinaNet(
    backbone,
    num_classes=6,
    bounding_box_format="xyxy",
    prediction_decoder=keras_densepred.NonMaxSuppression("xyxy", label_key="classes"),
)
outputs = detector(images)
print({name: tuple(x.shape) for name, x in outputs.items()})

"""
## A RetinaNet that trains

Both hosts' classes run, and train poorly as they come: the prior of focal loss sits on the wrong
head, losses are not balanced, decoding does not tell classes apart. `models.RetinaNetKerasHub` and
`RetinaNetKerasCV` are these classes with that corrected, with the same arguments, batches and
predictions. A few steps on eight pictures show that everything is connected: the loss falls.
"""

keras.utils.set_random_seed(0)
small = data.ShapesDataset(8, image_size=96)
stream = data.train_batches(small, batch_size=8, image_size=96, seed=0, mean=MEAN, std=STD)
batch = stream.batch(0)
targets = {"boxes": batch["boxes"], "labels": batch["labels"]}
print({name: (x.shape, x.dtype.name) for name, x in targets.items()})

model = keras_densepred.models.RetinaNetKerasHub(
    keras_densepred.DetectionPyramid(
        keras_densepred.CEDNetBackbone.from_preset("cednet_next_pico", layer_scale_init=0.2), 64
    ),
    num_classes=6,
    head_depth=1,
    head_initializer="he_normal",
)
model.compile(keras.optimizers.AdamW(1e-3))
history = model.fit(batch["images"], targets, batch_size=8, epochs=12, verbose=0).history
print("loss:", *(f"{loss:.2f}" for loss in history["loss"]))

"""
`predict` gives final boxes: suppressed class by class, the best first, filled up with -1.
"""

predictions = model.predict(batch["images"], verbose=0)
print({name: x.shape for name, x in predictions.items()})

"""
## Save and load

A `.keras` file holds architecture, weights and decoding. Importing `keras_densepred` makes Keras
know its classes; nothing has to be named, and no code is stored.
"""

model.save("detector.keras")
again = keras.saving.load_model("detector.keras")
same = np.array_equal(again.predict(batch["images"], verbose=0)["boxes"], predictions["boxes"])
print("the same boxes:", same)

"""
Where to go from here:

* your own images: `finetune_detector`; masks: `segmentation`;
* weights: `pretraining_and_scale`, `official_weights`;
* a network of your own: `new_token_mixer`; a detector of your own: `new_detector`.
"""
