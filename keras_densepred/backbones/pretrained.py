"""Backbones of KerasHub and keras.applications by a word, with their ImageNet weights.

"applications/mobilenet_v2"            keras.applications' network, random weights
"applications/mobilenet_v2_imagenet"   the same with weights, downloaded once by Keras
"resnet_50_imagenet"                   a preset of KerasHub's, downloaded once by KerasHub
a directory, "kaggle://..", "hf://.."  where KerasHub saved one of its backbones
"""

import contextlib
import dataclasses
import functools
import json
import pathlib
import re
import warnings
from collections.abc import Iterator
from typing import Any

import keras
import keras_hub
import numpy as np

from keras_densepred.backbones.backbone import PyramidBackbone
from keras_densepred.backbones.saved_preset import reading, saved_backbone_class

APPLICATIONS = "applications/"
WITH_WEIGHTS = "_imagenet"
IMAGENET_MEAN = (123.675, 116.28, 103.53)  # RGB, 0..255
IMAGENET_STD = (58.395, 57.12, 57.375)

# What keras.applications' networks want of images in 0..255 (their `preprocess_input`).
_AS_THEY_ARE: dict[str, Any] = {"image_mean": (0.0, 0.0, 0.0), "image_std": (1.0, 1.0, 1.0)}
_AROUND_ZERO: dict[str, Any] = {"image_mean": (127.5,) * 3, "image_std": (127.5,) * 3}
_IMAGENET: dict[str, Any] = {"image_mean": IMAGENET_MEAN, "image_std": IMAGENET_STD}
_CAFFE: dict[str, Any] = {
    "image_mean": (123.68, 116.779, 103.939),
    "image_std": (1.0, 1.0, 1.0),
    "colors": "bgr",
}


@dataclasses.dataclass(frozen=True)
class Application:
    """A network of keras.applications.

    Attributes:
        constructor: its name there.
        images: arguments of `HostBackbone` that say what it wants; networks that rescale images
            themselves take them as they are.
    """

    constructor: str
    images: dict[str, Any]

    def network(self, weights: str | None = None) -> keras.Model:
        """Builds it without its classifier."""
        constructor = getattr(keras.applications, self.constructor)
        with warnings.catch_warnings():
            # MobileNets say that weights of 224 px are taken where the size is open, as it is here.
            warnings.filterwarnings("ignore", "`input_shape` is undefined", UserWarning)
            return constructor(include_top=False, weights=weights)


@functools.cache
def applications() -> dict[str, Application]:
    """The networks of keras.applications that give levels, by name."""
    groups: list[tuple[dict[str, Any], str, str]] = [
        (_AS_THEY_ARE, "convnext_", "tiny small base large xlarge"),
        (_AS_THEY_ARE, "efficientnet_", "b0 b1 b2 b3 b4 b5 b6 b7"),
        (_AS_THEY_ARE, "efficientnet_v2_", "b0 b1 b2 b3 s m l"),
        (_AS_THEY_ARE, "mobilenet_v3_", "small large"),
        (_AROUND_ZERO, "mobilenet", " _v2"),
        (_CAFFE, "resnet_", "50 101 152"),
        (_AROUND_ZERO, "resnet_", "50_v2 101_v2 152_v2"),
        (_IMAGENET, "densenet_", "121 169 201"),
        (_CAFFE, "vgg_", "16 19"),
    ]
    constructors = {_spelling(name): name for name in dir(keras.applications) if name[0].isupper()}
    names = [(i, start + end) for i, start, ends in groups for end in ends.split(" ")]
    return {name: Application(constructors[_spelling(name)], images) for images, name in names}


def _spelling(name: str) -> str:
    return name.replace("_", "").lower()


def application(word: str) -> tuple[str, bool] | None:
    """The name of keras.applications' network in a word, and whether with weights; None if none.

    Names may be spelled as there: `"applications/ConvNeXtTiny"`.

    Raises:
        ValueError: if the word is of keras.applications, which has no such network.
    """
    if not word.startswith(APPLICATIONS):
        return None
    rest = word.removeprefix(APPLICATIONS)
    name = rest.removesuffix(WITH_WEIGHTS)
    known = {_spelling(name): name for name in applications()}
    if _spelling(name) not in known:
        raise ValueError(
            f"There is no {word!r}: keras.applications' networks here are "
            f"{', '.join(applications())}, each alone or with {WITH_WEIGHTS} for its weights."
        )
    return known[_spelling(name)], name != rest


def is_host(preset: str) -> bool:
    """Whether a word, handle or directory is of a network that `HostBackbone` is made of.

    Of a handle, the configuration is downloaded.

    Raises:
        ValueError: if a word is of keras.applications, which has no such network, or a handle's
            files cannot be had.
    """
    if application(preset) is not None:
        return True
    # Paths are not looked for among KerasHub's names, which it collects anew each time, in 0.2 s.
    if "/" not in preset and preset in keras_hub.models.Backbone.presets:
        return True
    if "://" not in preset:
        config = pathlib.Path(preset) / "config.json"
        if not config.is_file():
            return False
        name = json.loads(config.read_text(encoding="utf-8")).get("registered_name") or ""
        if ">" in name and keras.saving.get_registered_object(name) is None:
            return False  # of a module that was not imported, which `find_backbone` says
    with downloading(preset):
        found = saved_backbone_class(preset)
    return issubclass(found, keras_hub.models.Backbone) and not issubclass(found, PyramidBackbone)


def has_weights(preset: str) -> bool:
    """Whether a word of `is_host` comes with trained weights."""
    found = application(preset)
    return found is None or found[1]


def network_of(preset: str, load_weights: bool = True) -> keras.Model:
    """Builds the network of a word, handle or directory of `is_host`.

    Raises:
        ValueError: if its weights cannot be had; the message says what to do without a network.
    """
    found = application(preset)
    with downloading(preset):
        if found is None:
            with reading(preset):
                return keras_hub.models.Backbone.from_preset(preset, load_weights=load_weights)
        weights = "imagenet" if found[1] and load_weights else None
        return applications()[found[0]].network(weights)


def images_of(preset: str) -> dict[str, Any]:
    """What the network of a word wants of images, as arguments of `HostBackbone`.

    KerasHub writes it beside the network (`image_converter.json`). Where that is missing, as in
    the directory of a backbone that was saved alone, it is ImageNet's mean and deviation.
    """
    found = application(preset)
    if found is not None:
        return dict(applications()[found[0]].images)
    scale, offset = _image_converter(preset)
    std = np.broadcast_to(1 / np.asarray(scale, "float64"), 3)
    mean = np.broadcast_to(-np.asarray(offset, "float64") * std, 3)
    return {"image_mean": _rounded(mean), "image_std": _rounded(std)}


def _rounded(values: np.ndarray) -> tuple[float, ...]:
    return tuple(round(float(value), 4) + 0.0 for value in values)


def _image_converter(preset: str) -> tuple[Any, Any]:
    """Scale and offset of images in 0..255."""
    if not pathlib.Path(preset).is_dir():
        config = _downloaded_converter(preset)
    else:
        file = pathlib.Path(preset) / "image_converter.json"
        if not file.is_file():
            return 1 / np.array(IMAGENET_STD), -np.array(IMAGENET_MEAN) / np.array(IMAGENET_STD)
        config = json.loads(file.read_text(encoding="utf-8"))["config"]
    scale, offset = config.get("scale"), config.get("offset")
    return 1.0 if scale is None else scale, 0.0 if offset is None else offset


@functools.cache
def _downloaded_converter(preset: str) -> dict[str, Any]:
    with downloading(preset):
        return keras_hub.layers.ImageConverter.from_preset(preset).get_config()


@contextlib.contextmanager
def downloading(preset: str) -> Iterator[None]:
    """Says in one sentence what could not be downloaded, and what to do without a network.

    Raises:
        ValueError: in place of an error of the network.
    """
    try:
        yield
    except Exception as error:
        # keras.applications raises a plain Exception, KerasHub what requests and Hugging Face do.
        text = str(error)
        url = re.search(r"URL fetch failure on (\S+?):? ", text)
        of_a_handle = "://" in preset and "has no config.json" in text
        if url is None and not isinstance(error, OSError) and not of_a_handle:
            raise
        file = f", or put {url[1]} into ~/.keras/models" if url else ""
        raise ValueError(
            f"{preset} could not be downloaded: give a directory with a copy of it instead, as "
            f'`load_backbone("{preset}").save_to_preset(DIRECTORY)` writes it elsewhere{file}.'
        ) from error
