"""Backbones of a few thousand weights with deterministic ones, and what tests ask of networks."""

import keras
import numpy as np
from keras import ops

from keras_densepred import (
    BiCSNetBackbone,
    BiCSNetLiteBackbone,
    CEDNetBackbone,
    CSPDenseNetBackbone,
    CSPNetBackbone,
    ElasticDenseNetBackbone,
    PeleeNetBackbone,
)
from keras_densepred.backbones import CSPStage
from tests.weights import set_deterministic_weights

CEDNET_TINY = dict(
    p2_width=32, p2_depth=1, widths=(32, 64, 96), depths=(2, 2, 2), num_stages=2, stem_width=8
)
BICSNET_TINY = dict(width_multiplier=0.0625, gamma=0.5, output_width=8)
BICSNET_LITE_TINY = dict(width_multiplier=0.25, output_width=8)
BICSNET_FAMILY = {
    "full": (BiCSNetBackbone, BICSNET_TINY),
    "lite": (BiCSNetLiteBackbone, BICSNET_LITE_TINY),
}
CSP_STAGES = (
    CSPStage(1, width=8, bottleneck=4, parts=(8, 4), out=8),
    CSPStage(1, width=8, bottleneck=8, parts=(4, 8), out=8, down=8, linear_split=True),
    CSPStage(1, width=8, bottleneck=4, parts=(8, 8), out=12, down=8),
    CSPStage(1, width=8, bottleneck=4, parts=(8, 8), out=12, down=12),
)
CSP_MEMBERS = {
    "residual": (CSPNetBackbone, dict(stages=CSP_STAGES, stem_width=8, groups=4)),
    "pelee": (PeleeNetBackbone, dict(depths=(1, 1, 2, 1), bottlenecks=(4, 4, 4, 4), growth=4)),
    "dense": (
        CSPDenseNetBackbone,
        dict(depths=(1, 1, 2, 1), bottlenecks=(4, 4, 4, 4), growth=4),
    ),
    "elastic": (ElasticDenseNetBackbone, dict(depths=(1, 1, 1, 1), growth=4, bottleneck=4)),
}


def mini_cednet(**changes):
    backbone = CEDNetBackbone(**{**CEDNET_TINY, **changes})
    set_deterministic_weights(backbone)
    return backbone


def mini_bicsnet(member="full", **changes):
    cls, tiny = BICSNET_FAMILY[member]
    backbone = cls(**{**tiny, **changes})
    set_deterministic_weights(backbone)
    return backbone


def mini_csp(member, **changes):
    cls, tiny = CSP_MEMBERS[member]
    backbone = cls(**{**tiny, **changes})
    set_deterministic_weights(backbone)
    return backbone


def run(model, batch):
    """The outputs; on JAX compiled as a whole, which takes half as long as op by op."""
    if keras.config.backend() == "jax":
        import jax

        return jax.jit(lambda x: model(x))(batch)
    return model(batch)


def output_shapes(model, batch):
    """The shapes of the outputs; JAX tells them without compiling anything."""
    if keras.config.backend() == "jax":
        import jax

        outputs = jax.eval_shape(lambda x: model(x), batch)
    else:
        outputs = model(batch)
    return {level: tuple(x.shape) for level, x in outputs.items()}


def images(height=45, width=70, batch=1):
    return np.random.default_rng(0).normal(size=(batch, height, width, 3)).astype("float32")


def trainable_parameters(model):
    return sum(int(np.prod(w.shape)) for w in model.trainable_weights)


def max_difference(a, b):
    return max(
        float(np.max(np.abs(ops.convert_to_numpy(x) - ops.convert_to_numpy(y))))
        for x, y in zip(keras.tree.flatten(a), keras.tree.flatten(b), strict=True)
    )


# Arguments of a KerasHub EfficientNetBackbone of a few thousand weights.
EFFICIENTNET = dict(
    stackwise_kernel_sizes=[3] * 5,
    stackwise_num_repeats=[1] * 5,
    stackwise_input_filters=[8] * 5,
    stackwise_output_filters=[8] * 5,
    stackwise_expansion_ratios=[1] * 5,
    stackwise_squeeze_and_excite_ratios=[0.25] * 5,
    stackwise_strides=[1, 2, 2, 2, 2],
    stackwise_block_types=["v1"] * 5,
    stackwise_force_input_filters=[0] * 5,
    stackwise_nores_option=[False] * 5,
    stackwise_width_coefficients=[1.0] * 5,
    stackwise_depth_coefficients=[1.0] * 5,
    num_features=16,
)
