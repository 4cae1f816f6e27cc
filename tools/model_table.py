"""Parameters and multiply-adds of every preset, ours beside the papers'.

    python tools/model_table.py [--format text|markdown|csv] [--image-size 224]

Counts are of the backbone alone; the paper's columns are of its ImageNet classifier, which
CEDNET.md (1.15) takes apart. README's table is the output of `--format markdown`.
"""

import argparse
import csv
import sys

import numpy as np

from keras_densepred import CEDNetBackbone
from keras_densepred.metrics.multiply_adds import count_multiply_adds

COLUMNS = ("preset", "parameters", "multiply-adds (G)", "levels P2..P5", "paper (classifier)")
PAPER = {
    "cednet_next_tiny": "34M / 5.7G",
    "cednet_next_small": "55M / 9.8G",
    "cednet_next_base": "95M / 16.2G",
    "cednet_next_tiny_unet": "34M / 5.7G",
    "cednet_next_tiny_hourglass": "34M / 5.7G",
}


def rows(image_size: int):
    for preset, entry in CEDNetBackbone.architecture_presets().items():
        model = CEDNetBackbone.from_preset(preset, image_shape=(image_size, image_size, 3))
        parameters = sum(int(np.prod(w.shape)) for w in model.trainable_weights)
        widths = ", ".join(str(info.channels) for info in model.feature_info.values())
        yield (
            " / ".join((preset, *entry["aliases"])),
            f"{parameters:,}",
            f"{count_multiply_adds(model) / 1e9:.2f}",
            widths,
            PAPER.get(preset, ""),
        )


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--format", choices=("text", "markdown", "csv"), default="text")
    parser.add_argument("--image-size", type=int, default=224, help="side of the image in pixels")
    arguments = parser.parse_args(argv)
    table = [COLUMNS, *rows(arguments.image_size)]
    if arguments.format == "csv":
        csv.writer(sys.stdout).writerows(table)
        return
    widths = [max(len(row[i]) for row in table) for i in range(len(COLUMNS))]
    between, edge = (" | ", "|") if arguments.format == "markdown" else ("  ", "")
    for number, row in enumerate(table):
        cells = between.join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        print(f"{edge} {cells} {edge}".strip() if edge else cells.rstrip())
        if number == 0 and edge:
            print("|" + "|".join("-" * (width + 2) for width in widths) + "|")


if __name__ == "__main__":
    main()
