"""Parameters and multiply-adds of every preset, ours beside the papers'.

    python tools/model_table.py [--format text|csv|markdown] [--family cednet] [--output FILE]
    python tools/model_table.py --format markdown --from-csv keras_densepred/cli/model_table.csv
    python tools/model_table.py --layers csp_peleenet peleenet [--image-size 416] [--output X.png]

Each row is a model at its paper's input size and with its paper's head; a preset that no paper
reports is counted alone at 224 px. Multiply-adds are those of convolutions and dense layers; the
products between queries, keys and values stand apart, after a plus sign, and where a paper's
figures count each normalised element as one (BiCSNet's do) its column is compared with that sum,
which is the number in parentheses.

CSPNet's figures are Darknet's (`metrics.darknet_costs`): weights without norms and biases, and
BFLOPs, two a multiply-add. `--layers` lists for each layer what it costs and reads and writes: the
paper's figures 7 (compute bottleneck) and 8 (memory traffic), drawn if the output is a picture.

Status: "agrees" is within the paper's rounding or 1 %; "known difference" has its reason below the
table; "not built" is a model that this package does not have; "ours" is a preset of no paper, or
a model the paper gives no number of; "differs" is an error somewhere. CSPNet's networks come with
a word on where they are from: FIRM, from the authors' configuration or met in every published
number; DECODED, from several published numbers that leave some of the wiring open; CALIBRATED, of
our own design in the paper's style, near its figures.

README's table is the Markdown of `keras_densepred/cli/model_table.csv`, which `--format csv` writes
and `python -m keras_densepred info` reads.
"""

import argparse
import csv
import dataclasses
import io
import math
import os
import sys
from collections.abc import Iterable
from pathlib import Path

import keras

# Run as a script, the repository's root is not on the path: `tools` itself is.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from keras_densepred.analysis.darknet_costs import count_operations, count_weights
from keras_densepred.analysis.fusion_time import fusion_time
from keras_densepred.analysis.multiply_adds import (
    count_attention_products,
    count_multiply_adds,
    graph_nodes,
)
from keras_densepred.models.rcnn.heads import RegionProposalHead
from tools import layer_table
from tools.paper_figures import FAMILIES, ROWS, Row

TOLERANCE = 0.01  # of the paper's figure, beside its rounding


@dataclasses.dataclass(frozen=True)
class Count:
    """One row of the table, as the CSV has it: all values are strings, empty where there is none.

    Attributes:
        family: key in `FAMILIES`.
        preset: our preset and its aliases.
        head: what is on the backbone.
        image_size: height x width in pixels.
        parameters: number of trainable parameters, or where there are `operations`, of weights
            without norms and biases (the paper's count of its elastic networks has them).
        multiply_adds: of convolutions and dense layers.
        operations: BFLOPs times 1e9, where the paper counts as Darknet does.
        norm_elements: number of normalised elements, where the paper counts them.
        attention_products: multiply-adds between queries, keys and values.
        paper_parameters: the paper's, in millions.
        parameters_percent: ours against the paper's.
        paper_multiply_adds: the paper's, in units of 1e9.
        multiply_adds_percent: ours, with the norms where they count, against the paper's.
        fusion_layer: the layer that first fuses scales.
        fusion_percent: parameters before it, of those below the heads; "none" without such a layer.
        basis: where the network is from, see the module.
        status: see the module.
        reason: of a known difference.
    """

    family: str
    preset: str
    head: str
    image_size: str
    parameters: str = ""
    multiply_adds: str = ""
    operations: str = ""
    norm_elements: str = ""
    attention_products: str = ""
    paper_parameters: str = ""
    parameters_percent: str = ""
    paper_multiply_adds: str = ""
    multiply_adds_percent: str = ""
    fusion_layer: str = ""
    fusion_percent: str = ""
    basis: str = ""
    status: str = ""
    reason: str = ""


COLUMNS = tuple(field.name for field in dataclasses.fields(Count))


def table_rows(families: Iterable[str]) -> list[tuple[str, Row]]:
    """What is to be counted: the papers' rows, and every preset that is in none of them."""
    rows = []
    for family in families:
        reported = {row.preset for row in ROWS[family]}
        rows += [(family, row) for row in ROWS[family]]
        rows += [
            (family, Row(preset, "backbone", (224, 224)))
            for backbone in FAMILIES[family].backbones
            for preset in backbone.architecture_presets()
            if preset not in reported
        ]
    return rows


def count(family_name: str, row: Row) -> Count:
    """Builds one model and counts it."""
    family = FAMILIES[family_name]
    presets = {name: b for b in family.backbones for name in b.architecture_presets()}
    backbone = presets.get(row.preset)
    aliases = backbone.architecture_presets()[row.preset]["aliases"] if backbone else ()
    names = (row.preset, *aliases)
    known = dict(
        family=family_name,
        preset=" / ".join(names),
        head=row.head,
        image_size="x".join(str(side) for side in row.image_size),
        paper_parameters=row.parameters or "",
        paper_multiply_adds=row.multiply_adds or "",
        basis=row.basis,
        reason=row.reason,
    )
    if backbone is None or (row.head != "backbone" and family.heads[row.head] is None):
        return Count(**known, status="not built")
    network = backbone.from_preset(row.preset, image_shape=(*row.image_size, 3), **row.config)
    head = family.heads.get(row.head)
    model = network if head is None else head(network)
    if family.counts_as_darknet and not row.trainable:
        parameters = count_weights(model)
    else:
        parameters = sum(math.prod(weight.shape) for weight in model.trainable_weights)
    multiply_adds = count_multiply_adds(model)
    norms = 0
    if family.counts_norms and not row.conv_only:
        norms = count_multiply_adds(model, norms=True) - multiply_adds
    operations = count_operations(model) if family.counts_as_darknet else 0
    attention = count_attention_products(model)
    compared = [
        (row.parameters, parameters / 1e6),
        (row.multiply_adds, (operations or multiply_adds + norms) / 1e9),
    ]
    fusion = fusion_time(_below_heads(model, network))
    return Count(
        **known,
        parameters=str(parameters),
        multiply_adds=str(multiply_adds),
        operations=str(operations) if operations else "",
        norm_elements=str(norms) if norms else "",
        attention_products=str(attention) if attention else "",
        parameters_percent=_percent(*compared[0]),
        multiply_adds_percent=_percent(*compared[1]),
        fusion_layer=fusion.layer if fusion else "",
        fusion_percent=f"{100 * fusion.share:.1f}" if fusion else "none",
        status=_status([pair for pair in compared if pair[0]], row.reason),
    )


def _below_heads(model: keras.Model, backbone: keras.Model) -> keras.Model:
    """The network whose maps a row's heads take: the backbone, with its FPN or neck if any."""
    maps = [
        tensor
        for node in graph_nodes(model)
        if isinstance(node.operation, RegionProposalHead)
        or node.operation.name.endswith("_prediction")  # YOLO's
        for tensor in node.arguments.keras_tensors
    ]
    return keras.Model(model.inputs, maps) if maps else getattr(model, "backbone", backbone)


def _percent(paper: str | None, ours: float) -> str:
    return f"{100 * (ours / float(paper) - 1):+.1f}" if paper else ""


def _status(compared: list[tuple[str, float]], reason: str) -> str:
    if not compared:
        return "ours"
    if all(_agrees(paper, ours) for paper, ours in compared):
        return "agrees"
    return "known difference" if reason else "differs"


def _agrees(paper: str, ours: float) -> bool:
    half_digit = 0.5 * 10.0 ** -len(paper.partition(".")[2])
    return abs(ours - float(paper)) <= max(half_digit, TOLERANCE * float(paper))


# --- output --------------------------------------------------------------------------------------

HEADINGS = (
    "preset",
    "head, input",
    "parameters",
    "paper",
    "%",
    "G",
    "paper",
    "%",
    "before fusion",
    "status",
)


def cells(counts: list[Count]) -> tuple[list[tuple[str, ...]], list[str]]:
    """The rows of the printed table, and the reasons its notes refer to."""
    reasons: list[str] = []
    lines = []
    for c in counts:
        status = f"{c.basis}, {c.status}" if c.basis else c.status
        if c.reason and c.status in ("known difference", "not built"):
            if c.reason not in reasons:
                reasons.append(c.reason)
            status += f" ({reasons.index(c.reason) + 1})"
        lines.append(
            (
                c.preset,
                f"{c.head}, {c.image_size}",
                f"{int(c.parameters):,}" if c.parameters else "",
                f"{c.paper_parameters}M" if c.paper_parameters else "",
                c.parameters_percent,
                _multiply_adds_cell(c),
                c.paper_multiply_adds,
                c.multiply_adds_percent,
                _fusion_cell(c),
                status,
            )
        )
    return lines, reasons


def _multiply_adds_cell(c: Count) -> str:
    if not c.multiply_adds:
        return ""
    if c.operations:
        return f"{_billions(int(c.operations))} BF"
    cell = _billions(int(c.multiply_adds))
    if c.norm_elements:
        cell += f" ({_billions(int(c.multiply_adds) + int(c.norm_elements))})"
    if c.attention_products:
        cell += f" + {_billions(int(c.attention_products))}"
    return cell


def _fusion_cell(c: Count) -> str:
    return f"{c.fusion_percent} %" if c.fusion_layer else c.fusion_percent


def _billions(value: int) -> str:
    return f"{value / 1e9:.3f}" if value < 1e10 else f"{value / 1e9:.2f}"


def as_csv(counts: list[Count]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(dataclasses.asdict(c) for c in counts)
    return text.getvalue()


def as_markdown(counts: list[Count]) -> str:
    lines, reasons = cells(counts)
    table = [HEADINGS, tuple("---" for _ in HEADINGS), *lines]
    text = "\n".join(f"| {' | '.join(line)} |" for line in table) + "\n"
    if reasons:
        text += "\n" + "\n".join(f"{n}. {reason}" for n, reason in enumerate(reasons, 1)) + "\n"
    return text


def as_text(counts: list[Count]) -> str:
    lines, reasons = cells(counts)
    table = [HEADINGS, *lines]
    widths = [max(len(line[i]) for line in table) for i in range(len(HEADINGS))]
    text = ""
    for line in table:
        padded = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        text += "  ".join(padded).rstrip() + "\n"
    if reasons:
        text += "\n" + "".join(f"({n}) {reason}\n" for n, reason in enumerate(reasons, 1))
    return text


FORMATS = {"text": as_text, "csv": as_csv, "markdown": as_markdown}


def read_csv(path: Path) -> list[Count]:
    """The rows of a CSV that this tool wrote.

    Raises:
        ValueError: if `path` is not such a file.
    """
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        if tuple(reader.fieldnames or ()) != COLUMNS:
            raise ValueError(
                f"{path} has other columns than this tool writes; make it anew with --format csv."
            )
        return [Count(**row) for row in reader]


def write(path: Path, text: str) -> None:
    """Writes to a temporary name first, so that an interrupted run leaves the old file."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--format", choices=tuple(FORMATS), default="text")
    parser.add_argument("--family", choices=tuple(FAMILIES), nargs="+", default=list(FAMILIES))
    parser.add_argument("--output", type=Path, help="a file to write instead of printing")
    parser.add_argument("--layers", nargs="+", metavar="PRESET", help="each layer of these models")
    parser.add_argument("--head", help="of `--layers`: the head on the backbone (none)")
    parser.add_argument("--image-size", type=int, default=224, help="of `--layers`: side in pixels")
    parser.add_argument("--from-csv", type=Path, help="print this CSV instead of counting anew")
    arguments = parser.parse_args(argv)
    try:
        if arguments.layers:
            return _layers(arguments)
        if arguments.from_csv is not None:
            counts = [c for c in read_csv(arguments.from_csv) if c.family in arguments.family]
        else:
            counts = []
            for family, row in table_rows(arguments.family):
                print(f"Counting {row.preset}, {row.head} ...", file=sys.stderr)
                counts.append(count(family, row))
        text = FORMATS[arguments.format](counts)
        if arguments.output is None:
            sys.stdout.write(text)
        else:
            write(arguments.output, text)
    except (OSError, ValueError) as error:
        print(f"model_table.py: {error}", file=sys.stderr)
        return 1
    return 0


def _layers(arguments: argparse.Namespace) -> int:
    """What `--layers` asks for."""
    tables = {}
    for preset in arguments.layers:
        print(f"Counting the layers of {preset} ...", file=sys.stderr)
        tables[preset] = layer_table.costs(preset, arguments.head, arguments.image_size)
    output = arguments.output
    if output is not None and output.suffix == ".png":
        layer_table.draw(tables, output)
        return 0
    text = layer_table.FORMATS[arguments.format](tables)
    if output is None:
        sys.stdout.write(text)
    else:
        write(output, text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
