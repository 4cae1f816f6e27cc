"""Which maps a detector's heads run on: a backbone's own levels, or those of a neck on it."""

from collections.abc import Callable, Mapping
from typing import Any

import keras
import keras_hub

from keras_densepred.backbones.backbone import PyramidBackbone
from keras_densepred.backbones.host_graph import (
    check_levels_are_true,
    replace_batch_norms,
    shares_batch_norms,
)
from keras_densepred.backbones.rematerialization import Rematerialization


def as_pyramid(
    backbone: keras.Model, user: str, neck: Callable[[keras.Model], keras.Model]
) -> keras.Model:
    """The model whose levels the heads run on: `backbone` itself, or a neck on it.

    Args:
        backbone: a pyramid (`DetectionPyramid`, `FeaturePyramid`, `BiFPN`, BiCSNet, a
            `keras_hub.models.RetinaNetBackbone`), or a backbone whose levels differ in width.
        user: name of the detector, for messages.
        neck: makes a pyramid of a backbone with levels P3, P4 and P5.

    Raises:
        ValueError: if `backbone` is neither, or takes channels_first images.
    """
    check_levels_are_true(backbone)
    is_pyramid = (
        backbone.is_pyramid
        if isinstance(backbone, PyramidBackbone)
        else isinstance(backbone, keras_hub.models.RetinaNetBackbone)
    )
    if is_pyramid:
        check_channels_last(backbone, user)
        return backbone
    check_levels(backbone, backbone.pyramid_outputs, user)
    return neck(backbone)


def check_levels(backbone: Any, levels: Any, user: str) -> None:
    """Refuses a backbone without levels P3, P4 and P5, or of channels_first images.

    Args:
        backbone: what was given as one.
        levels: that it has.
        user: name of the detector, for the message.

    Raises:
        ValueError: if `backbone` lacks a level or is channels_first.
    """
    check_levels_are_true(backbone)
    missing = [level for level in ("P3", "P4", "P5") if level not in levels]
    if missing:
        raise ValueError(
            f"`backbone` {getattr(backbone, 'name', backbone)!r} has no level "
            f"{', '.join(missing)}, which {user} needs; pass one of keras_densepred's backbones."
        )
    check_channels_last(backbone, user)


def check_channels_last(backbone: Any, user: str) -> None:
    """Refuses a backbone of channels_first images.

    Raises:
        ValueError: if it is one.
    """
    # KerasHub's contract does not name `data_format`; its backbones and ours have it.
    if getattr(backbone, "data_format", "channels_last") != "channels_last":
        raise ValueError(
            f"`backbone` {backbone.name!r} is channels_first; {user} takes channels_last images, "
            'so build the backbone with data_format="channels_last".'
        )


def image_shape(backbone: keras.Model) -> tuple[int | None, ...]:
    """The shape of a backbone's images without the batch axis."""
    # KerasHub's EfficientNet (keras-hub 0.32.0) has no attribute of this name.
    return getattr(backbone, "image_shape", backbone.input.shape[1:])


def levels_on(
    backbone: keras.Model, images: Any, inner: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The maps of a backbone's levels for symbolic images, by level.

    Args:
        backbone: with `pyramid_outputs`.
        images: symbolic.
        inner: name to a symbolic map inside of the backbone's graph, to be handed out beside the
            levels.
    """
    if inner:
        return _WithInnerMaps(backbone, inner)(images)
    if isinstance(backbone.output, dict):
        return backbone(images)
    # Networks of KerasHub give their last map when they are called.
    return keras.Model(backbone.inputs, backbone.pyramid_outputs)(images)


class _WithInnerMaps(Rematerialization, keras.Model):
    """A backbone's graph that also gives maps from inside; its layers are the backbone's."""

    def __init__(self, backbone: keras.Model, inner: Mapping[str, Any]):
        super().__init__(backbone.inputs, {**backbone.pyramid_outputs, **inner})
        # Asked when a step runs: recipes turn it on in the backbone of a model that is built. A
        # method of the backbone is no layer of this model, as the backbone itself would be.
        self._asked = getattr(backbone, "is_rematerialized", super().is_rematerialized)

    def is_rematerialized(self) -> bool:
        """What the backbone says."""
        return self._asked()


def pyramid_levels(pyramid: keras.Model) -> tuple[int, ...]:
    """The levels of what `as_pyramid` returned, finest first."""
    return tuple(int(level[1:]) for level in pyramid.output)


def pyramid_width(pyramid: keras.Model) -> int:
    """The channels of every level of what `as_pyramid` returned."""
    return next(iter(pyramid.output.values())).shape[-1]


def share_batch_norms(model: keras.Model, backbone: Any) -> None:
    """Lets replicas share the statistics of a host's head too, where those of its backbone are.

    Args:
        model: with the host's layers.
        backbone: what it is on.
    """
    if shares_batch_norms(backbone):
        replace_batch_norms(model.layers, fixed=False, synchronized=True)
