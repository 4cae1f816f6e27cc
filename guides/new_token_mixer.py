"""
Title: A new token mixer, and a backbone of one's own
Author: keras_densepred
Date created: 2026/11/21
Last modified: 2026/11/21
Description: Two ways to put your idea into this package: a block for CEDNet, or a whole pyramid.
"""

"""
## Why token mixers

CEDNet is a plan of where information flows: stages, each an encoder and a decoder over three
resolutions. What a single block does is another question, and the paper answers it four times:
blocks of ConvNeXt, ResNet, Swin and CSwin. Such a *token mixer* is one class of some twenty lines
here; everything else (styles, drop path, pyramids, detectors, presets) is already there for it.

    pip install ".[torch]"        # in a clone; or jax, tensorflow
"""

import os
import pathlib
import subprocess
import sys

os.environ.setdefault("KERAS_BACKEND", "torch")  # before Keras is imported; any backend will do

import keras
import numpy as np

import keras_densepred
from keras_densepred import plugins
from keras_densepred.backbones import load_backbone
from keras_densepred.layers.token_mixers import TOKEN_MIXERS, TokenMixer

keras.utils.set_random_seed(0)
print(*TOKEN_MIXERS)

"""
## The block

Let us try PoolFormer's idea: mix positions by nothing but an average over the neighbourhood, minus
the position itself ("MetaFormer Is Actually What You Need for Vision"). A mixer has two methods:

* `base_block`, the block of every level but the coarsest;
* `lr_block`, the long-range block of the coarsest maps, which should see far.

Both map `(batch, height, width, channels)` to the same shape, and give every layer a name that
begins with `name`: names are what weights are found by. `TokenMixer` brings the parts that keep a
block fast and right on all backends: `norm`, `mlp`, `depthwise`, `add`, `drop` (drop path).
"""


class PoolMixer(TokenMixer):
    """PoolFormer's block; the long-range block adds a dilated 7x7 depthwise convolution."""

    def _neighbours(self, x, name):
        pooled = keras.layers.AveragePooling2D(
            3, strides=1, padding="same", data_format="channels_last", name=name, dtype=self.dtype
        )(x)
        return keras.layers.Subtract(name=f"{name}_minus", dtype=self.dtype)([pooled, x])

    def _residual(self, x, branch, name, rate):
        return self.add(x, self.drop(branch, rate, f"{name}_drop_path"), f"{name}_add")

    def base_block(self, x, *, name, rate, index, level):
        y = self._neighbours(self.norm(x, f"{name}_norm1"), f"{name}_pool")
        x = self._residual(x, y, f"{name}_mix", rate)
        y = self.mlp(self.norm(x, f"{name}_norm2"), name)
        return self._residual(x, y, f"{name}_mlp", rate)

    def lr_block(self, x, *, name, rate, index, level):
        y = self.depthwise(self.norm(x, f"{name}_norm0"), 7, f"{name}_far", self.lr_dilation)
        x = self._residual(x, y, f"{name}_far", rate)
        return self.base_block(x, name=name, rate=rate, index=index, level=level)


"""
Registered under a name, it is a choice like the others. A model saved with it needs the same line
before it is loaded, as any Keras model with a class of one's own does.
"""

TOKEN_MIXERS["pool"] = PoolMixer

SMALL = dict(p2_width=24, p2_depth=1, widths=(48, 96, 160), depths=(1, 2, 1), num_stages=2)
pool = keras_densepred.CEDNetBackbone(**SMALL, token_mixer="pool", drop_path_rate=0.1)
convnext = keras_densepred.CEDNetBackbone(**SMALL, token_mixer="next", drop_path_rate=0.1)
for backbone in (pool, convnext):
    print(f"{backbone.token_mixer:5s} {backbone.count_params():9,} parameters")

"""
Everything that CEDNet can be built as works with the new block: here all four styles.
"""

images = np.random.default_rng(0).normal(size=(2, 64, 96, 3)).astype("float32")
for style in ("fpn", "full_fpn", "unet", "hourglass"):
    model = keras_densepred.CEDNetBackbone(**SMALL, token_mixer="pool", style=style)
    shapes = {level: tuple(x.shape[1:]) for level, x in model(images).items()}
    print(f"{style:10s} {shapes}")

"""
## Does it do what it should?

Three checks find most faults of a new block before any training does. First: how far does it see?
Change one position of the input, and look whether the middle of the result changes. The base
block's pooling sees its 3x3 neighbourhood; the long-range block's convolution reaches 9 to each
side, and the pooling after it one more.
"""


def reach(block, side=31, channels=8):
    """How many positions to each side the middle of the result depends on."""
    inputs = keras.Input((side, side, channels))
    outputs = block(inputs, name="b", rate=0.0, index=0, level=4)
    model = keras.Model(inputs, outputs)
    rng = np.random.default_rng(0)
    base = rng.normal(size=(1, side, side, channels)).astype("float32")
    middle = side // 2
    reference = model.predict(base, verbose=0)[0, middle, middle]
    changed = np.repeat(base, middle + 1, axis=0)
    for distance in range(middle + 1):  # row k: another vector k positions to the right
        changed[distance, middle, middle + distance] = rng.normal(size=channels)
    results = model.predict(changed, verbose=0)[:, middle, middle]
    return int(np.flatnonzero(np.abs(results - reference).max(axis=1) > 1e-5).max())


mixer = PoolMixer()
print("base block:", reach(mixer.base_block), " long-range block:", reach(mixer.lr_block))
assert (reach(mixer.base_block), reach(mixer.lr_block)) == (1, 10)

"""
Second: every weight gets a gradient. A layer that is built and not used would not.
"""

head = keras.layers.GlobalAveragePooling2D()(pool.pyramid_outputs["P5"])
classifier = keras.Model(pool.input, keras.layers.Dense(3)(head))
classifier.compile(
    keras.optimizers.SGD(0.1), keras.losses.SparseCategoricalCrossentropy(from_logits=True)
)
before = [keras.ops.convert_to_numpy(w).copy() for w in classifier.trainable_variables]
classifier.train_on_batch(images, np.array([0, 2]))
moved = [
    not np.array_equal(old, keras.ops.convert_to_numpy(new))
    for old, new in zip(before, classifier.trainable_variables, strict=True)
]
print(f"{sum(moved)} of {len(moved)} weights moved")

"""
Third: it survives saving, with the same outputs.
"""

pool.save("pool.keras")
again = keras.saving.load_model("pool.keras")
first, second = (keras.ops.convert_to_numpy(m(images)["P3"]) for m in (pool, again))
print("the same outputs:", np.array_equal(first, second))

"""
## In a detector

Nothing more to do: pyramid, RetinaNet and the rest take the backbone as they take any other.
"""

detector = keras_densepred.models.RetinaNetKerasHub(
    keras_densepred.DetectionPyramid(pool, width=32), num_classes=6, head_depth=1
)
predictions = detector.predict(images, verbose=0)
print({name: x.shape for name, x in predictions.items()})

"""
## A whole backbone

A network with another plan is a class derived from `PyramidBackbone`. It builds a functional graph
and says which maps are its levels; `"Pn"` has stride `2**n`, which is checked. Everything else (the
configuration, both data layouts, saving, presets) comes from the constructor's signature: the class
only has to set an attribute for each argument of its own.

`ConvNorm` is the kit of convolution, batch norm and activation of this package's residual networks:
a 1x1 convolution is a matrix product in it, and padding is PyTorch's, so that converted weights
fit. Necks and heads take the kit over.

Recipes and the command line find it if it is in a file of its own: `register_backbone` makes the
class and the presets in `architectures` known. This one is as small as they come, a strided
convolution and a residual unit a level.
"""

pathlib.Path("my_backbones.py").write_text(
    '''
from keras_densepred.backbones import PyramidBackbone, image_input, register_backbone
from keras_densepred.layers import Add, ConvNorm


@register_backbone
class MyBackbone(PyramidBackbone):
    """A strided convolution and a residual unit a level; P2 to P5."""

    architectures = {"my_tiny": {"width": 16}, "my_small": {"width": 32}}

    def __init__(
        self, width=16, image_shape=(None, None, 3), data_format=None, dtype=None, **kwargs
    ):
        kit = ConvNorm("swish", dtype=dtype)
        inputs, x = image_input(image_shape, data_format, dtype)
        levels = {}
        for level in range(1, 6):
            x = kit.unit(x, width * level, 3, f"down{level}", stride=2)
            y = kit.unit(x, width * level, 3, f"unit{level}")
            x = Add(name=f"add{level}", dtype=dtype)(x, y)
            if level > 1:
                levels[f"P{level}"] = x
        super().__init__(
            inputs=inputs,
            pyramid_outputs=levels,
            image_shape=image_shape,
            data_format=data_format,
            dtype=dtype,
            kit=kit,
            **kwargs,
        )
        self.width = width
'''
)
plugins.import_modules(["my_backbones"])  # what `--import my_backbones` does

tiny = load_backbone("my_tiny")
print(f"{tiny.architecture}: {tiny.count_params():,} parameters")
for level, info in tiny.feature_info.items():
    print(level, info)

"""
That is enough for everything that stands on a backbone here: detectors with and without anchors,
segmenters, classifiers. Its levels are not equally wide, so a detector puts a neck around it, which
it asks by `is_pyramid`.
"""

model = keras_densepred.models.FasterRCNN(tiny, num_classes=6)
print("Faster R-CNN:", model.predict(images, verbose=0)["boxes"].shape)
model = keras_densepred.models.YOLOv3Detector(tiny, num_classes=6, neck="prn")
print("YOLOv3:      ", model.predict(images, verbose=0)["boxes"].shape)
model = keras_densepred.models.DeepLabV3(tiny, num_classes=7, width=32, atrous_rates=None)
print("DeepLabv3:   ", model.predict(images, verbose=0).shape)
model = keras_densepred.models.image_classifier("my_tiny", num_classes=5)
print("classifier:  ", model.predict(images, verbose=0).shape)

tiny.save_to_preset("my_weights")
loaded = load_backbone("my_weights")
first, second = (keras.ops.convert_to_numpy(m(images)["P3"]) for m in (tiny, loaded))
print("preset:       the same outputs:", np.array_equal(first, second))

"""
The recipes and the command line take it by `--import`: pretrain it, train a detector on its
weights, evaluate that.

    python recipes/imagenet_pretrain.py --import my_backbones --preset my_tiny --output runs/tiny
    python recipes/coco_retinanet.py --import my_backbones --weights runs/tiny --output runs/boxes
    python -m keras_densepred evaluate runs/boxes --import my_backbones --data-dir MY_IMAGES

The recipes take `--data-dir`, too; without it, the built-in shapes. And what does the network cost?
"""

command = "-m keras_densepred info my_tiny --import my_backbones --image-size 224"
print(subprocess.run([sys.executable, *command.split()], capture_output=True, text=True).stdout)

"""
Where to go from here: `pretraining_and_scale` for weights; `analysis.multiply_adds` for the cost of
a network; `layers.CrossStage`, which sends a part of the channels past any stage you have.
"""
