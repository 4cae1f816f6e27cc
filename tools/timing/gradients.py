"""A function's forward pass, and with the gradients of all its inputs, as calls to time."""

from collections.abc import Callable
from typing import Any

import keras

Call = Callable[[], object]


def passes(form: Any, inputs: Any, upstream: Any) -> dict[str, Call]:
    """On the active backend, compiled where it compiles.

    Args:
        form: a function of tensors.
        inputs: float32 arrays.
        upstream: the gradient of what it returns, float32.
    """
    backend = keras.config.backend()
    return {"jax": _jax_passes, "torch": torch_passes}.get(backend, _tensorflow_passes)(
        form, inputs, upstream
    )


def _jax_passes(form: Any, inputs: Any, upstream: Any) -> dict[str, Call]:
    import jax

    inputs, upstream = jax.device_put(inputs), jax.device_put(upstream)
    forward = jax.jit(form)
    gradient = jax.jit(lambda upstream, *inputs: jax.vjp(form, *inputs)[1](upstream))
    return {
        "forward": lambda: jax.block_until_ready(forward(*inputs)),
        "forward + gradients": lambda: jax.block_until_ready(gradient(upstream, *inputs)),
    }


def _tensorflow_passes(form: Any, inputs: Any, upstream: Any) -> dict[str, Call]:
    import tensorflow as tf

    inputs, upstream = [tf.constant(x) for x in inputs], tf.constant(upstream)

    @tf.function(jit_compile=keras.Sequential().jit_compile)
    def forward(inputs: Any) -> Any:
        return form(*inputs)

    @tf.function(jit_compile=keras.Sequential().jit_compile)
    def gradient(inputs: Any, upstream: Any) -> Any:
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            outputs = form(*inputs)
        return tape.gradient(outputs, inputs, upstream)

    return {
        "forward": lambda: tf.reshape(forward(inputs), (-1,))[0].numpy(),
        "forward + gradients": lambda: [
            tf.reshape(g, (-1,))[0].numpy() for g in gradient(inputs, upstream)
        ],
    }


def torch_passes(form: Any, inputs: Any, upstream: Any) -> dict[str, Call]:
    """On PyTorch, whatever the backend."""
    import torch

    leaves = [torch.tensor(x).requires_grad_() for x in inputs]
    upstream = torch.tensor(upstream)

    def forward() -> None:
        with torch.inference_mode():
            form(*leaves)

    def gradient() -> None:
        for leaf in leaves:
            leaf.grad = None
        form(*leaves).backward(upstream)

    return {"forward": forward, "forward + gradients": gradient}
