"""A backbone of a few thousand weights of each family, and a family as a user would write it."""

import keras
import pytest
from keras import layers

from keras_densepred import backbones
from keras_densepred.backbones import CSPStage, PyramidBackbone, register_backbone
from keras_densepred.layers.image_input import image_input
from keras_densepred.layers.norm import BatchNorm


@register_backbone
class OwnBackbone(PyramidBackbone):
    """Strided convolutions; levels P2 to P5."""

    architectures = {"own_small": {"width": 8}}

    def __init__(
        self, width=8, image_shape=(None, None, 3), data_format=None, dtype=None, **kwargs
    ):
        inputs, x = image_input(image_shape, data_format, dtype)
        levels = {}
        for level in range(1, 6):
            x = layers.Conv2D(
                *(width, 3, 2, "same", "channels_last"),
                activation="relu",
                name=f"conv{level}",
                dtype=dtype,
            )(x)
            levels[f"P{level}"] = x
        del levels["P1"]
        super().__init__(
            inputs=inputs,
            pyramid_outputs=levels,
            image_shape=image_shape,
            data_format=data_format,
            dtype=dtype,
            **kwargs,
        )
        self.width = width


_STAGES = tuple(
    CSPStage(1, width=8, bottleneck=4, parts=(8, 8), out=8, down=down) for down in (None, 8, 8, 8)
)
_DENSE = dict(depths=(1, 1, 1, 1), bottlenecks=(4, 4, 4, 4), growth=4)


def host_network():
    """A network as another library has them: batch norms, a branch, sums that are no layers."""
    x = images = keras.Input((None, None, 3))
    for level, width in enumerate((6, 6, 8, 8, 10), 1):
        x = layers.Conv2D(width, 3, 2, "same", "channels_last", name=f"down{level}")(x)
        x = layers.BatchNormalization(name=f"norm{level}")(x)
        y = layers.Conv2D(width, 1, data_format="channels_last", name=f"branch{level}")(x)
        x = x + layers.Activation("gelu", name=f"gelu{level}")(y)
    return keras.Model(images, x, name="host_network")


FAMILIES = {
    "cednet": (
        backbones.CEDNetBackbone,
        dict(p2_width=8, p2_depth=1, widths=(8, 8, 8), depths=(1, 1, 1), num_stages=1)
        | {"stem_width": 8},
    ),
    "bicsnet": (
        backbones.BiCSNetBackbone,
        dict(width_multiplier=0.0625, gamma=0.5, output_width=8),
    ),
    # With all pathways it has twice the layers; test_bicsnet.py has them.
    "bicsnet_lite": (
        backbones.BiCSNetLiteBackbone,
        dict(width_multiplier=0.25, output_width=8, se_ratio=0.0, gap=False, skip=False)
        | dict(long_range=None, stem_pathway=False),
    ),
    "cspnet": (backbones.CSPNetBackbone, dict(stages=_STAGES, stem_width=8)),
    "darknet_tiny": (backbones.DarknetTinyBackbone, dict(widths=(4, 4, 8, 8, 8, 16, 16))),
    "peleenet": (backbones.PeleeNetBackbone, _DENSE),
    "csp_densenet": (backbones.CSPDenseNetBackbone, _DENSE),
    "elastic_densenet": (
        backbones.ElasticDenseNetBackbone,
        dict(depths=(1, 1, 1, 1), growth=4, bottleneck=4),
    ),
    "resnet": (backbones.ResNetBackbone, dict(depths=(1, 1, 1, 1), width=2)),
    "convnext": (
        backbones.ConvNeXtBackbone,
        dict(depths=(1, 1, 1, 1), widths=(8, 8, 8, 8), stage_norms=False),
    ),
    "host": (backbones.HostBackbone, dict(network=host_network())),
    "own": (OwnBackbone, {}),
}


# Lite has the same levels and takes a third of the time to build.
every_family = pytest.mark.parametrize(
    "family",
    [pytest.param(f, marks=pytest.mark.slow) if f == "bicsnet" else f for f in FAMILIES],
)


def small_backbone(family: str, **options) -> PyramidBackbone:
    backbone_class, arguments = FAMILIES[family]
    return backbone_class(**{**arguments, **options})


def norms_apart(make_model):
    """Batch norms that a model on a backbone with shared ones does not let replicas share."""
    model = make_model(small_backbone("resnet", sync_batch_norm=True))
    norms = [n for n in model._flatten_layers() if isinstance(n, layers.BatchNormalization)]
    assert len(norms) > 16
    return [norm.path for norm in norms if not isinstance(norm, BatchNorm)]
