"""ResNet's two blocks (He et al., "Deep Residual Learning", figure 5)."""

from collections.abc import Callable
from typing import Any

from keras_densepred.layers.conv_norm import ConvNorm

EXPANSION = 4  # channels a bottleneck block gives out, over the width of its 3x3 convolution


def bottleneck_block(
    kit: ConvNorm,
    x,
    width: int,
    name: str,
    rate: float = 0.0,
    stride: int = 1,
    insert: Callable[[Any, str], Any] | None = None,
):
    """1x1 `width`, 3x3 `width`, 1x1 `4 * width`, added to the shortcut, then activation.

    Args:
        kit: the network's convolutions, norm and activation.
        x: `(batch, height, width, channels)`; with other than `4 * width` channels, or a stride,
            the shortcut is a 1x1 convolution with norm.
        width: channels of the 3x3 convolution.
        name: prefix of the layer names.
        rate: drop-path probability of the branch.
        stride: of the 3x3 convolution, as in PyTorch's ResNet; the original has it in the first.
        insert: called with a map and its position, `"after_conv1"` (after the activation),
            `"after_conv2"` (likewise) or `"after_conv3"` (before the sum); the map it returns goes
            on in its place.

    Returns:
        `(batch, ceil(height / stride), ceil(width / stride), 4 * width)`.
    """
    insert = insert or (lambda y, position: y)
    y = insert(kit.unit(x, width, 1, f"{name}_reduce"), "after_conv1")
    y = insert(kit.unit(y, width, 3, f"{name}_spatial", stride), "after_conv2")
    y = kit.unit(y, EXPANSION * width, 1, f"{name}_expand", act=False)
    y = insert(y, "after_conv3")
    if x.shape[-1] != EXPANSION * width or stride > 1:
        x = kit.unit(x, EXPANSION * width, 1, f"{name}_shortcut", stride, act=False)
    y = kit.add(x, kit.drop(y, rate, f"{name}_drop_path"), f"{name}_add")
    return kit.act(y, f"{name}_act")


def residual_block(kit: ConvNorm, x, width: int, name: str, rate: float = 0.0):
    """Two 3x3 convolutions added to the shortcut, then activation.

    Args:
        kit: the network's convolutions, norm and activation.
        x: `(batch, height, width, channels)` with `width` channels.
        width: channels of both convolutions.
        name: prefix of the layer names.
        rate: drop-path probability of the branch.

    Returns:
        A map like `x`.
    """
    y = kit.unit(x, width, 3, f"{name}_first")
    y = kit.unit(y, width, 3, f"{name}_second", act=False)
    y = kit.add(x, kit.drop(y, rate, f"{name}_drop_path"), f"{name}_add")
    return kit.act(y, f"{name}_act")
