"""What a compiled program says of itself: its collectives, its memory, what no TPU likes."""

import functools
import re

import numpy as np

_COLLECTIVE = re.compile(
    r"= (?P<shapes>.*?) (?P<kind>all-reduce|all-gather|reduce-scatter|all-to-all|"
    r"collective-permute)(?P<start>-start)?\("
)
_SHAPE = re.compile(r"(?P<type>pred|[a-z]+[0-9]+)\[(?P<sizes>[0-9,]*)\]")
_COMPUTATION = re.compile(r"(?P<entry>ENTRY )?%(?P<name>\S+) \(.*\{$")
_CYCLES = re.compile(r'"estimated_cycles":"(?P<cycles>\d+)"')
# What is fused is in its fusion's estimate.
_CALLED = re.compile(r"(?:body|condition|to_apply|true_computation)=%(?P<name>[\w.\-]+)")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(?P<count>\d+)"\}')
_TOO_LARGE = (  # found while it assigns memory, and before, of temporaries alone
    re.compile(r"[Uu]sed (?P<used>[0-9.]+)(?P<unit>[KMG]?) of [0-9.]+[KMG]? hbm"),
    re.compile(r"temporaries \((?P<used>[0-9.]+)(?P<unit>[KMG]?)\) exceeds available HBM"),
)
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30}


def collectives(program: str) -> list[tuple[str, int]]:
    """Finds the collectives of an HLO program.

    Returns:
        `(kind, bytes of the result on one device)` of each.
    """
    found = []
    for line in program.splitlines():
        match = _COLLECTIVE.search(line)
        if match:
            sizes = [_bytes(shape) for shape in _SHAPE.finditer(match["shapes"])]
            if match["start"] and match["kind"] != "all-reduce":
                sizes = sizes[1:2]  # operand and result, then what only the runtime needs
            found.append((match["kind"], sum(sizes)))
    return found


def _bytes(shape: re.Match[str]) -> int:
    bits = 8 if shape["type"] == "pred" else int(re.sub("[a-z]+", "", shape["type"]))
    sizes = [int(number) for number in shape["sizes"].split(",") if number]
    return int(np.prod(sizes, dtype=np.int64)) * bits // 8


def estimated_cycles(program: str) -> int:
    """Adds up how many cycles the TPU compiler expects a program's operations to take.

    Args:
        program: HLO text of a TPU; the compiler writes its estimate at each operation. Bodies of
            loops count as often as they run, where that is known.

    Returns:
        Cycles of one chip, as if nothing ran beside anything else.
    """
    computations: dict[str, list[str]] = {}
    entry = name = ""
    for line in program.splitlines():
        head = _COMPUTATION.match(line)
        if head:
            name = head["name"]
            computations[name] = []
            entry = name if head["entry"] else entry
        elif name:
            computations[name].append(line)

    @functools.cache
    def cycles(name: str) -> int:
        total = 0
        for line in computations.get(name, ()):
            own = _CYCLES.search(line)
            total += int(own["cycles"]) if own else 0
            for called in _CALLED.finditer(line):
                trips = _TRIPS.search(line)
                total += (int(trips["count"]) if trips else 1) * cycles(called["name"])
        return total

    return cycles(entry)


def misfits(program: str) -> list[str]:
    """Finds in a program that is not compiled yet what a TPU does badly or not at all.

    Args:
        program: StableHLO text.

    Returns:
        Any of "float64", "dynamic shapes" and "host callbacks".
    """
    signs = {
        "float64": r"tensor<(?:[0-9?]+x)*(?:f64|complex<f64>)>",
        "dynamic shapes": r"tensor<(?:[0-9]+x)*\?x",
        "host callbacks": r"@(?:xla_\w*python\w*callback|xla_ffi_python)|stablehlo\.(?:in|out)feed",
    }
    return [name for name, sign in signs.items() if re.search(sign, program)]


def memory_wanted(error: str) -> float | None:
    """Reads from the compiler's refusal how many bytes a chip would need at least.

    None if it refuses for another reason.
    """
    matches = filter(None, (pattern.search(error) for pattern in _TOO_LARGE))
    return next((float(m["used"]) * _UNITS[m["unit"]] for m in matches), None)
