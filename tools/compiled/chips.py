"""TPU chips by their makers' figures, and the least time that a program takes on them."""

import dataclasses
import math
from collections.abc import Iterable

from keras_densepred.faults import SettingsError

_DOCS = "https://docs.cloud.google.com/tpu/docs"


@dataclasses.dataclass(frozen=True)
class Chip:
    """What one chip can do at most.

    Attributes:
        flops: bfloat16 floating-point operations a second.
        memory: bytes of device memory.
        bandwidth: bytes a second between chip and device memory.
        exchange: bytes a second that a chip sends to its neighbours, all links together.
        source: where the figures are from.
        clock: cycles a second: the peak over what the page's matrix units do in a cycle, where
            that gives a clock.
        config: the compiler's name of how JAX runs the chip; the two cores of some are one device.
    """

    flops: float
    memory: float
    bandwidth: float
    exchange: float
    source: str
    clock: float | None = None
    config: str = "default"


# Exchange is half of the "bidirectional" figure where the page gives that one.
CHIPS = {
    "v4": Chip(
        *(275e12, 32 * 2**30, 1200e9, 300e9, "Jouppi et al. 2023 (arXiv:2304.01433), Table 4"),
        config="megacore",
    ),
    "v5e": Chip(197e12, 16e9, 819e9, 200e9, f"{_DOCS}/v5e", 1.5e9),
    "v5p": Chip(459e12, 95 * 2**30, 2765e9, 600e9, f"{_DOCS}/v5p", 1.75e9, config="megacore"),
    "v6e": Chip(918e12, 32e9, 1638e9, 400e9, f"{_DOCS}/v6e"),
}

# Bytes that every one of n chips sends at least, per byte of its result.
_SENT = {
    "all-reduce": lambda n: 2 * (n - 1) / n,
    "all-gather": lambda n: (n - 1) / n,
    "reduce-scatter": lambda n: n - 1,
    "all-to-all": lambda n: (n - 1) / n,
    "collective-permute": lambda n: 1.0,
}


def parse_topology(text: str) -> tuple[Chip, int]:
    """Reads a slice such as `v5e:2x4`.

    Returns:
        Its chip and how many there are.

    Raises:
        SettingsError: if it is none that is known here.
    """
    name, _, sides = text.partition(":")
    numbers = sides.split("x")
    if name not in CHIPS or not all(number.isdigit() and int(number) for number in numbers):
        raise SettingsError(
            f"--topology {text} is no slice known here: give a chip of {', '.join(CHIPS)} and the "
            "sides of the slice, such as v5e:2x4 or v4:2x2x1."
        )
    return CHIPS[name], math.prod(int(number) for number in numbers)


@dataclasses.dataclass(frozen=True)
class Roofline:
    """The least seconds that each of a chip's parts needs for a program.

    Attributes:
        compute: for its operations.
        memory: for its memory traffic.
        exchange: for what the chips send each other.
    """

    compute: float
    memory: float
    exchange: float

    @property
    def bound(self) -> str:
        """Name of the part that needs longest."""
        parts = dataclasses.asdict(self)
        return max(parts, key=parts.__getitem__)

    @property
    def seconds(self) -> float:
        """The least time of the program, if its parts work side by side."""
        return max(dataclasses.astuple(self))


def roofline(
    chip: Chip, chips: int, flops: float, traffic: float, collectives: Iterable[tuple[str, int]]
) -> Roofline:
    """The least time that a program takes, by a chip's peaks.

    Args:
        chip: of the slice.
        chips: how many exchange with each other.
        flops: of one chip.
        traffic: bytes between one chip and its memory.
        collectives: kind and bytes of the result on one chip, of each.
    """
    sent = sum(_SENT[kind](chips) * size for kind, size in collectives)
    return Roofline(flops / chip.flops, traffic / chip.bandwidth, sent / chip.exchange)
