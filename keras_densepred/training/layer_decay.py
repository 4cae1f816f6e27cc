"""Which variables learn how fast and are decayed how much: the rules of `AdamW`."""

from typing import Any

import keras

_MATRIX_RANK = 2  # kernels, matrices and Swin's bias tables; biases, norms, layer scale are below


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


def layer_decay_rules(
    backbone: Any, rate: float, weight_decay: float = 0.05, num_layers: int | None = None
) -> dict[str, tuple[float, float]]:
    """Makes the rules of `AdamW` for layer-wise learning-rate decay, as CEDNet trains on COCO.

    A variable at depth k (`backbone.layer_depth`) gets the learning-rate scale
    `min(1, rate ** (backbone.num_layers + 1 - k))`; one without a depth is not scaled.

    Args:
        backbone: a `PyramidBackbone`, or the neck on it.
        rate: 0.95 for CEDNet's RetinaNet and Mask R-CNN; 1 for none.
        weight_decay: of tensors of two or more dimensions; vectors (biases, norms, layer scale)
            are not decayed.
        num_layers: in place of the backbone's; CEDNet on ADE20K takes 7 where depths reach 9.

    Returns:
        `{variable path: (learning-rate scale, weight decay)}` of every weight of `backbone`.

    Raises:
        ValueError: if two variables of the backbone share a path, or `rate` is not 1 and the
            backbone does not say how deep its layers lie.
    """
    rules = matrix_decay_rules(backbone, weight_decay)
    depths = {path: backbone.layer_depth(path) for path in rules}
    if rate != 1 and all(depth is None for depth in depths.values()):
        raise ValueError(
            f"{type(backbone).__name__} does not say how deep its layers lie (`layer_depth`), "
            "which layer-wise decay goes by: use a rate of 1."
        )
    last = backbone.num_layers if num_layers is None else num_layers
    for path, depth in depths.items():
        if depth is not None:
            scale = min(1.0, rate ** (last + 1 - depth))
            rules[path] = (scale, rules[path][1])
    return rules
