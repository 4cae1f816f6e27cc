"""Describes a backbone: parameters, multiply-adds, pyramid levels, and the paper's figures.

python -m keras_densepred info cednet_next_tiny
python -m keras_densepred info runs/mine/preset --image-size 512"""

from __future__ import annotations

import argparse
import csv
import importlib.resources
import io
from typing import TYPE_CHECKING

from keras_densepred import backbones
from keras_densepred._optional import require
from keras_densepred.cli.arguments import add_import_argument, import_user_modules

if TYPE_CHECKING:
    from rich.console import Console

NAME = "info"
SUMMARY = "parameters, multiply-adds and levels of a backbone"
_TABLE = "model_table.csv"  # what tools/model_table.py counted


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of the command."""
    parser.add_argument(
        "preset", metavar="PRESET", help="built-in name, or directory that a recipe wrote"
    )
    parser.add_argument(
        "--image-size", type=int, default=224, metavar="PIXELS", help="side (default: 224)"
    )
    add_import_argument(parser)


def run(options: argparse.Namespace, console: Console) -> int:
    """Describes; returns the exit code."""
    side = options.image_size
    if side < 1:
        raise ValueError(f"--image-size must be positive, and is {side}.")
    import_user_modules(options)
    from keras_densepred.analysis import multiply_adds  # with Keras

    backbone = backbones.load_backbone(options.preset, image_shape=(side, side, 3))
    name = backbones.built_in_preset(options.preset)
    console.print(f"{name or options.preset}, {type(backbone).__name__}", style="bold")
    if name is not None:
        entry = type(backbone).architecture_presets()[name]
        console.print(entry["description"], markup=False)
        if entry["aliases"]:
            console.print(f"Also called {', '.join(entry['aliases'])}.")
    console.print(f"{backbone.count_params():,} parameters")
    attention = multiply_adds.count_attention_products(backbone)
    products = f", and {attention / 1e9:.3f} G between queries, keys, values" if attention else ""
    adds = multiply_adds.count_multiply_adds(backbone) / 1e9
    console.print(f"{adds:.3f} G multiply-adds at {side} x {side} pixels{products}")
    _print_levels(console, backbone)
    _print_paper(console, name)
    return 0


def _print_levels(console: Console, backbone: backbones.PyramidBackbone) -> None:
    table = require("rich.table", "data").Table()
    for column in ("level", "stride", "channels", "map"):
        table.add_column(column, justify="right")
    first = 1 if backbone.data_format == "channels_last" else 2
    for level, info in backbone.feature_info.items():
        shape = backbone.pyramid_outputs[level].shape
        height, width = shape[first : first + 2]
        table.add_row(level, str(info.stride), str(info.channels), f"{height} x {width}")
    console.print(table)


def _print_paper(console: Console, name: str | None) -> None:
    """The rows of the model table that are on this preset, if any."""
    rows = [row for row in read_model_table() if name in row["preset"].split(" / ")]
    rows = [row for row in rows if row["paper_parameters"] or row["paper_multiply_adds"]]
    if not rows:
        return
    table = require("rich.table", "data").Table(title="In its paper", title_justify="left")
    columns = ("with", "input", "parameters", "paper", "G multiply-adds", "paper", "status")
    for column in columns:
        table.add_column(column, justify="left" if column in ("with", "status") else "right")
    for row in rows:
        adds = sum(int(row[key] or 0) for key in ("multiply_adds", "norm_elements"))
        counted = f"{adds / 1e9:.3f}" if adds else ""
        if row["operations"]:
            counted = f"{int(row['operations']) / 1e9:.3f} BFLOPs"
        table.add_row(
            row["head"],
            row["image_size"],
            f"{int(row['parameters']) / 1e6:.2f} M" if row["parameters"] else "",
            f"{row['paper_parameters']} M" if row["paper_parameters"] else "",
            counted,
            row["paper_multiply_adds"],
            row["status"],
        )
    console.print(table)


def read_model_table() -> list[dict[str, str]]:
    """The rows of the table that `tools/model_table.py --format csv` wrote."""
    file = importlib.resources.files("keras_densepred.cli").joinpath(_TABLE)
    return list(csv.DictReader(io.StringIO(file.read_text(encoding="utf-8"))))
