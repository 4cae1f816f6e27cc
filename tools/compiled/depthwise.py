"""The 7x7 depthwise convolutions of CEDNet by the TPU compiler's own estimates, form by form."""

import time
from collections.abc import Iterator
from typing import Any

import jax
from jax.sharding import SingleDeviceSharding

from tools.compiled.chips import Chip
from tools.compiled.program import estimated_cycles
from tools.timing.depthwise import LEVELS, TAPS, jax_forms


def compile_depthwise(
    device: Any, chip: Chip, batch: int, precision: str = "bfloat16"
) -> Iterator[dict[str, Any]]:
    """Compiles each form for one chip, level by level, forward and with both gradients.

    Args:
        device: of a topology.
        chip: what it is.
        batch: images at once.
        precision: dtype of map and kernel.

    Yields:
        A row a level, form and pass: the compiler's estimate beside the least time that the
        memory traffic of map, kernel and results takes.
    """
    there = SingleDeviceSharding(device)
    for side, channels in LEVELS:
        maps = jax.ShapeDtypeStruct((batch, side, side, channels), precision, sharding=there)
        kernel = jax.ShapeDtypeStruct((TAPS, TAPS, channels, 1), precision, sharding=there)
        for what, form in jax_forms().items():
            if what in ("chosen", "grouped channels_first"):  # a TPU program has its own layouts
                continue

            def gradients(maps: Any, kernel: Any, outer: Any, form: Any = form) -> Any:
                return jax.vjp(form, maps, kernel)[1](outer)

            for name, function, arguments in (
                ("forward", form, (maps, kernel)),
                ("gradient", gradients, (maps, kernel, maps)),
            ):
                start = time.monotonic()
                program = jax.jit(function).lower(*arguments).compile()
                seconds = time.monotonic() - start
                sizes = program.memory_analysis()
                moved = sizes.argument_size_in_bytes + sizes.output_size_in_bytes
                cycles = estimated_cycles(program.as_text())
                yield {
                    "what": what,
                    "pass": name,
                    "side": side,
                    "channels": channels,
                    "batch": batch,
                    "precision": precision,
                    "cycles": cycles,
                    "estimated_ms": ""
                    if chip.clock is None
                    else f"{cycles / chip.clock * 1e3:.3f}",
                    "least_ms": f"{moved / chip.bandwidth * 1e3:.3f}",
                    "temporaries_mb": f"{sizes.temp_size_in_bytes / 1e6:.1f}",
                    "compile_s": f"{seconds:.1f}",
                }
