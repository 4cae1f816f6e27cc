"""AdamW and averages of many variables at once on PyTorch.

Imported on the PyTorch backend only; `training.AdamW` says when and why.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch.optim.adamw import adamw
from torch.optim.swa_utils import get_ema_multi_avg_fn

Tensor = torch.Tensor


def are_fused(variables: Sequence[Any]) -> bool:
    """Whether `update` takes these Keras variables: float32 on the CPU, in their own order.

    Not within `torch.compile`, whose graph the numbers of the step would break.
    """
    return not torch.compiler.is_compiling() and all(
        variable.value.device.type == "cpu"
        and variable.value.dtype == torch.float32
        and variable.value.is_contiguous()
        for variable in variables
    )


@torch.no_grad()
def update(
    weights: list[Tensor],
    gradients: Sequence[Tensor],
    momentums: list[Tensor],
    velocities: list[Tensor],
    *,
    step: int,
    learning_rate: float,
    weight_decay: float,
    beta_1: float,
    beta_2: float,
    epsilon: float,
) -> None:
    """Decays and updates weights as Keras' AdamW does, in one pass over each.

    Args:
        weights: float32, changed in place, as the two moments are.
        gradients: like the weights.
        momentums: first moments.
        velocities: second moments.
        step: of the update, from 1 on.
        learning_rate: of all the weights.
        weight_decay: likewise; the rate is a factor of it.
        beta_1: share of the first moment that is kept.
        beta_2: of the second.
        epsilon: added to the root of the second moment, before Keras corrects that for its start at
            0 and after PyTorch does.
    """
    adamw(
        weights,
        [gradient.contiguous() for gradient in gradients],
        momentums,
        velocities,
        [],
        list(torch.full((len(weights),), step - 1.0).unbind()),
        fused=True,
        amsgrad=False,
        beta1=beta_1,
        beta2=beta_2,
        lr=learning_rate,
        weight_decay=weight_decay,
        eps=epsilon / (1.0 - beta_2**step) ** 0.5,
        maximize=False,
    )


def average(averages: list[Tensor], weights: list[Tensor], momentum: float) -> None:
    """Moves averages towards weights, in place.

    Args:
        averages: float tensors.
        weights: like them.
        momentum: share of the averages that is kept.
    """
    get_ema_multi_avg_fn(momentum)(averages, weights, None)
