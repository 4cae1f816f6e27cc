"""Which variables learn how fast and are decayed how much: the rules of `AdamW`.

The layer ids are those of the CEDNet authors' detection code (`layer_wise_cednet` and
`layer_wise_cednet_small`).
"""

import re

import keras

_STAGE = re.compile(r"^stage(\d+)_(.*)$")
_C4_BLOCK = re.compile(r"^encoder_c4_block(\d+)(_|$)")
_C4_BLOCKS_IN_FIRST_HALF = 4
_SIZES = {"t": "tiny", "s": "small", "b": "base"}
_MATRIX_RANK = 2  # kernels, matrices and Swin's bias tables; biases, norms, layer scale are below


def cednet_variant(preset: str) -> str:
    """Returns which row of the CEDNet paper's tables a preset is: tiny, small, base, swin, ...

    Args:
        preset: such as `"cednet_next_tiny"`, `"cednet_next_s"` or `"cednet_swin_tiny"`.
    """
    mixer, *size = preset.removeprefix("cednet_").split("_")
    if mixer != "next" or not size:
        return mixer
    return _SIZES.get(size[0], size[0])


def matrix_decay_rules(model: keras.Model, weight_decay: float) -> dict[str, tuple[float, float]]:
    """Makes the rules of `AdamW` that decay matrices only, as ConvNeXt and CEDNet pretrain.

    Args:
        model: the model to train.
        weight_decay: of variables of two or more dimensions; vectors (biases, norms, layer scale)
            are not decayed.

    Returns:
        `{variable path: (1, weight decay)}` of every weight of `model`.

    Raises:
        ValueError: if two variables of the model share a path.
    """
    rules: dict[str, tuple[float, float]] = {}
    for variable in model.weights:
        if variable.path in rules:
            raise ValueError(f"Two variables of {model.name} have the path {variable.path!r}.")
        rules[variable.path] = (1.0, weight_decay if len(variable.shape) >= _MATRIX_RANK else 0.0)
    return rules


def cednet_layer_id(path: str, *, fine: bool = False) -> int | None:
    """Returns the layer-decay id of a CEDNet variable, from its layer's name.

    Args:
        path: `variable.path`, such as `"stage1_encoder_c3_block1_dwconv/kernel"`.
        fine: the authors' `layer_wise_cednet_small` (S, B and CSwin), which splits each cascade
            stage in two, instead of their `layer_wise_cednet` (T, R50 and Swin).

    Returns:
        0 for the stem, 1 for the P2 stage; cascade stage i is i + 1, or with `fine` 2i (C3 blocks,
        first down-sampling, first four C4 blocks) and 2i + 1 (the rest). None for everything else:
        the reduction convolutions, the added levels and the head, whose rate is never scaled.
    """
    for name in path.split("/"):
        if name.startswith("stem_"):
            return 0
        if name.startswith("p2_"):
            return 1
        stage = _STAGE.match(name)
        if stage:
            number, rest = int(stage.group(1)), stage.group(2)
            if not fine:
                return number + 1
            c4_block = _C4_BLOCK.match(rest)
            first_half = rest.startswith(("encoder_c3_", "encoder_downsample1_")) or (
                c4_block is not None and int(c4_block.group(1)) <= _C4_BLOCKS_IN_FIRST_HALF
            )
            return 2 * number + (0 if first_half else 1)
    return None


def cednet_rules(
    backbone: keras.Model,
    rate: float,
    *,
    num_layers: int = 4,
    fine: bool = False,
    weight_decay: float = 0.05,
) -> dict[str, tuple[float, float]]:
    """Makes the rules of `AdamW` for layer-wise learning-rate decay, as CEDNet trains on COCO.

    A variable with layer id k (`cednet_layer_id`) gets the learning-rate scale
    `min(1, rate ** (num_layers + 1 - k))`. Tensors of two or more dimensions are decayed by
    `weight_decay`, vectors (biases, norms, layer scale) are not.

    Args:
        backbone: the `CEDNetBackbone`, or the `DetectionPyramid` on it: what the authors' code
            calls the backbone ends before the head.
        rate: 0.95 for RetinaNet and Mask R-CNN; 1 for the R50 variant, which has no layer decay.
        num_layers: 4 (T, R50, Swin), 9 (S, B) or 7 (CSwin).
        fine: see `cednet_layer_id`; true for S, B and CSwin.
        weight_decay: decay of matrices and kernels.

    Returns:
        `{variable path: (learning-rate scale, weight decay)}` of every weight of `backbone`.

    Raises:
        ValueError: if two variables of the backbone share a path, or no layer is CEDNet's.
    """
    layer_ids = {v.path: cednet_layer_id(v.path, fine=fine) for v in backbone.weights}
    rules: dict[str, tuple[float, float]] = {}
    for path, (_, decay) in matrix_decay_rules(backbone, weight_decay).items():
        layer_id = layer_ids[path]
        scale = 1.0 if layer_id is None else min(1.0, rate ** (num_layers + 1 - layer_id))
        rules[path] = (scale, decay)
    if all(layer_id is None for layer_id in layer_ids.values()):
        raise ValueError(
            f"{backbone.name} has no CEDNet layers (stem_*, p2_*, stage<i>_*), whose names "
            "layer-wise decay goes by."
        )
    return rules
