"""How long the 7x7 depthwise convolutions of CEDNet take, in each form that a backend offers.

Forward, and with the gradients of map and kernel. On JAX the forms are XLA's grouped convolution
on channels-last and on channels-first maps, the sum of shifted products whose kernel gradient is a
loop over pixels (the path on CPUs), and the same sum with a kernel gradient of one reduction a tap.
On PyTorch they are `conv2d` on channels-last and on contiguous memory. `chosen` is what
`ops.depthwise_conv` takes on this device.
"""

from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np

from keras_densepred.ops.depthwise import depthwise_conv
from tools.timing.measure import alternate

# (side in pixels, channels) of CEDNet-NeXt-T's levels P2 to P5 for an image of 224 px.
LEVELS = ((56, 96), (28, 192), (14, 352), (7, 512))
TAPS = 7
ALONG_CHANNELS = ("NHWC", "HWIO", "NHWC")


def measure_depthwise(
    batch: int, precision: str, rounds: int, levels: tuple[tuple[int, int], ...] = LEVELS
) -> Iterator[dict[str, Any]]:
    """Times every form on the current Keras backend, level by level.

    Args:
        batch: images at once.
        precision: dtype of map and kernel, such as `"bfloat16"`.
        rounds: timed calls of each form, by turns.
        levels: (side, channels) of the maps.

    Yields:
        A row a level, form and pass: `"what"`, `"pass"`, `"side"`, `"channels"`, `"batch"`,
        `"precision"`, `"ms_median"`, `"ms_min"`, `"first_call_s"`.
    """
    backend = keras.config.backend()
    forms = {"jax": jax_forms, "torch": _torch_forms}.get(backend, _chosen_only)()
    passes = {"jax": _jax_passes, "torch": _torch_passes}.get(backend, _tensorflow_passes)
    rng = np.random.default_rng(0)
    for side, channels in levels:
        maps = rng.standard_normal((batch, side, side, channels), dtype=np.float32)
        kernel = rng.standard_normal((TAPS, TAPS, channels, 1), dtype=np.float32) / TAPS
        maps = keras.ops.cast(keras.ops.convert_to_tensor(maps), precision)
        kernel = keras.ops.cast(keras.ops.convert_to_tensor(kernel), precision)
        calls: dict[tuple[str, str], Callable[[], object]] = {}
        for what, form in forms.items():
            for name, call in passes(form, maps, kernel).items():
                calls[what, name] = call
        for (what, name), timing in alternate(calls, rounds).items():
            yield {
                "what": what,
                "pass": name,
                "side": side,
                "channels": channels,
                "batch": batch,
                "precision": precision,
                "ms_median": timing.ms_median,
                "ms_min": timing.ms_min,
                "first_call_s": timing.first_call_s,
            }


def _chosen(maps: Any, kernel: Any) -> Any:
    return depthwise_conv(maps, kernel, padding="same", data_format="channels_last")


def _chosen_only() -> dict[str, Callable[..., Any]]:
    return {"chosen": _chosen}


def jax_forms() -> dict[str, Callable[..., Any]]:
    """By name, functions of map and kernel `(7, 7, C, 1)`; see the module's docstring."""
    import jax
    import jax.numpy as jnp

    from keras_densepred.ops.depthwise_jax import shifted_products

    pads = ((TAPS // 2, TAPS // 2), (TAPS // 2, TAPS // 2))

    def grouped(maps, kernel, layout=ALONG_CHANNELS):
        return jax.lax.conv_general_dilated(
            maps,
            jnp.reshape(kernel, (TAPS, TAPS, 1, -1)),
            (1, 1),
            pads,
            dimension_numbers=layout,
            feature_group_count=kernel.shape[2],
        )

    def grouped_first(maps, kernel):
        maps = jnp.transpose(maps, (0, 3, 1, 2))
        return jnp.transpose(grouped(maps, kernel, ("NCHW", "HWIO", "NCHW")), (0, 2, 3, 1))

    def shifted(maps, kernel):
        return shifted_products(maps, kernel[..., 0], None, 1, 1, pads)

    def windows(maps):
        padded = jnp.pad(maps, ((0, 0), *pads, (0, 0)))
        height, width = maps.shape[1:3]
        for i in range(TAPS):
            for j in range(TAPS):
                yield i, j, padded[:, i : i + height, j : j + width]

    def sum_of_taps(maps, kernel):
        total = sum(
            window.astype("float32") * kernel[i, j, :, 0].astype("float32")
            for i, j, window in windows(maps)
        )
        return total.astype(maps.dtype)

    @jax.custom_vjp
    def by_taps(maps, kernel):
        return sum_of_taps(maps, kernel)

    def backward(residuals, gradient):
        maps, kernel = residuals
        taps = [
            jnp.sum(window.astype("float32") * gradient.astype("float32"), axis=(0, 1, 2))
            for _, _, window in windows(maps)
        ]
        kernel_gradient = jnp.reshape(jnp.stack(taps), kernel.shape).astype(kernel.dtype)
        return sum_of_taps(gradient, kernel[::-1, ::-1]), kernel_gradient

    by_taps.defvjp(lambda maps, kernel: (sum_of_taps(maps, kernel), (maps, kernel)), backward)
    return {
        "chosen": _chosen,
        "grouped": grouped,
        "grouped channels_first": grouped_first,
        "shifted, loop over pixels": shifted,
        "shifted, reduction a tap": by_taps,
    }


def _jax_passes(form, maps, kernel):
    import jax

    forward = jax.jit(form)
    gradient = jax.jit(
        jax.grad(lambda maps, kernel: form(maps, kernel).astype("float32").sum(), argnums=(0, 1))
    )
    return {
        "forward": lambda: jax.block_until_ready(forward(maps, kernel)),
        "gradient": lambda: jax.block_until_ready(gradient(maps, kernel)),
    }


def _torch_forms() -> dict[str, Callable[..., Any]]:
    def contiguous(maps, kernel):
        from torch.nn.functional import conv2d

        maps = maps.permute(0, 3, 1, 2).contiguous()
        outputs = conv2d(maps, kernel.permute(2, 3, 0, 1), padding=TAPS // 2, groups=maps.shape[1])
        return outputs.permute(0, 2, 3, 1).contiguous()

    return {"chosen": _chosen, "contiguous": contiguous}


def _torch_passes(form, maps, kernel):
    import torch

    def wait():
        if torch.cuda.is_available():
            torch.cuda.synchronize()

    leaves = [x.detach().clone().requires_grad_() for x in (maps, kernel)]

    def forward():
        with torch.inference_mode():
            form(maps, kernel)
        wait()

    def gradient():
        for leaf in leaves:
            leaf.grad = None
        form(*leaves).float().sum().backward()
        wait()

    return {"forward": forward, "gradient": gradient}


def _tensorflow_passes(form, maps, kernel):
    import tensorflow as tf

    @tf.function(jit_compile=keras.Sequential().jit_compile)
    def forward():
        return form(maps, kernel)

    @tf.function(jit_compile=keras.Sequential().jit_compile)
    def gradient():
        with tf.GradientTape() as tape:
            tape.watch((maps, kernel))
            total = tf.reduce_sum(tf.cast(form(maps, kernel), "float32"))
        return tape.gradient(total, (maps, kernel))

    return {
        "forward": lambda: forward()[0, 0, 0, 0].numpy(),
        "gradient": lambda: gradient()[1][0, 0, 0, 0].numpy(),
    }
