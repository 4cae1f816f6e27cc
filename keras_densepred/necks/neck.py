"""What every neck around a backbone has in common."""

import math
from collections.abc import Mapping
from typing import Any

import keras

from keras_densepred.backbones.backbone import PyramidBackbone
from keras_densepred.backbones.host_graph import check_levels_are_true, shares_batch_norms
from keras_densepred.layers.image_input import to_channels_last


class Neck(PyramidBackbone):
    """A backbone and further layers on its levels, together again a backbone.

    Args:
        backbone: what the neck is around: a `PyramidBackbone`, or one of KerasHub's.
        pyramid_outputs: level to symbolic map, channels last.
        dtype: dtype policy.
        size_divisor: what the neck's own layers need the image size to be a multiple of.
        **kwargs: `name` and `trainable`.
    """

    def __init__(
        self,
        *,
        backbone: keras.Model,
        pyramid_outputs: Mapping[str, Any],
        dtype: Any,
        size_divisor: int = 1,
        **kwargs: Any,
    ):
        super().__init__(
            inputs=backbone.input,
            pyramid_outputs=pyramid_outputs,
            # Networks of KerasHub have these by other names or not at all.
            image_shape=getattr(backbone, "image_shape", backbone.input.shape[1:]),
            data_format=_data_format(backbone),
            dtype=dtype,
            kit=getattr(backbone, "kit", None),
            size_divisor=math.lcm(size_divisor, getattr(backbone, "size_divisor", 1)),
            **kwargs,
        )
        self.backbone = backbone
        # Heads ask their pyramid, be it a backbone or a neck.
        self.sync_batch_norm = shares_batch_norms(backbone)

    @classmethod
    def levels_of(cls, backbone: keras.Model, levels: range, dtype: Any) -> dict[int, Any]:
        """The backbone's maps, channels last, by level number.

        Args:
            backbone: what the neck is around.
            levels: those that the neck cannot do without.
            dtype: dtype policy of the layers.

        Raises:
            ValueError: if the backbone has no pyramid, or lacks one of the levels.
        """
        check_levels_are_true(backbone)
        outputs = backbone.pyramid_outputs
        missing = [f"P{level}" for level in levels if f"P{level}" not in outputs]
        if missing:
            raise ValueError(
                f"The backbone has no level {', '.join(missing)}; it has {', '.join(outputs)}."
            )
        return {
            int(level[1:]): to_channels_last(
                x, _data_format(backbone), f"{cls._layer_prefix}{level.lower()}_input", dtype
            )
            for level, x in outputs.items()
        }

    def rematerialize(self, enabled: bool = True) -> None:
        if isinstance(self.backbone, PyramidBackbone):
            self.backbone.rematerialize(enabled)  # which may have nothing to do so with
        super().rematerialize(enabled)

    @property
    def num_layers(self) -> int:
        return self.backbone.num_layers

    def layer_depth(self, path: str) -> int | None:
        return self.backbone.layer_depth(path)


def _data_format(backbone: keras.Model) -> str:
    return getattr(backbone, "data_format", "channels_last")
