"""Parameters and multiply-adds of every preset, ours beside the papers'.

    python -m keras_densepred model-table [--format text|csv|markdown] [--family cednet]
        [--output FILE]
    python -m keras_densepred model-table --format markdown
        --from-csv keras_densepred/cli/model_table.csv
    python -m keras_densepred model-table --layers csp_peleenet peleenet [--image-size 416]
        [--output X.png]

Each row is a model at its paper's input size and with its paper's head; a preset that no paper
reports is counted alone at 224 px. Multiply-adds are those of convolutions and dense layers; the
products between queries, keys and values stand apart, after a plus sign, and where a paper's
figures count each normalised element as one (BiCSNet's do) its column is compared with that sum,
which is the number in parentheses.

CSPNet's figures are Darknet's (`analysis.darknet_costs`): weights without norms and biases, and
BFLOPs, two a multiply-add. `--layers` lists for each layer what it costs and reads and writes: the
paper's figures 7 (compute bottleneck) and 8 (memory traffic), drawn if the output is a PNG file.

Status: "agrees" is within the paper's rounding or 1 %; "known difference" has its reason below the
table; "not built" is a model that this package does not have; "ours" is a preset of no paper, or
a model the paper gives no number of; "differs" is an error somewhere. CSPNet's networks come with
a word on where they are from: FIRM, from the authors' configuration or met in every published
number; DECODED, from several published numbers that leave some of the wiring open; CALIBRATED, of
our own design in the paper's style, near its figures.

The table of docs/presets.md is the Markdown of `keras_densepred/cli/model_table.csv`, which
`--format csv` writes and `python -m keras_densepred info` reads.
"""

import argparse
import sys
from pathlib import Path

# Run as a script, the repository's root is not on the path: `tools` itself is.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from keras_densepred.analysis.model_table import layers
from keras_densepred.analysis.model_table.counting import count, table_rows
from keras_densepred.analysis.model_table.families import registered_backbones
from keras_densepred.analysis.model_table.render import FORMATS, read_csv
from keras_densepred.files import require_new_file, write_atomically


def main(argv: list[str] | None = None) -> int:
    families = list(registered_backbones())
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--format", choices=tuple(FORMATS), default="text")
    parser.add_argument("--family", choices=families, nargs="+", default=families)
    parser.add_argument("--output", type=Path, help="a file to write instead of printing")
    parser.add_argument("--overwrite", action="store_true", help="replace that file if it exists")
    parser.add_argument("--layers", nargs="+", metavar="PRESET", help="each layer of these models")
    parser.add_argument("--head", help="of `--layers`: the head on the backbone (none)")
    parser.add_argument("--image-size", type=int, default=224, help="of `--layers`: side in pixels")
    parser.add_argument("--from-csv", type=Path, help="print this CSV instead of counting anew")
    arguments = parser.parse_args(argv)
    try:
        if arguments.output is not None:
            arguments.output = require_new_file(
                arguments.output,
                inputs=filter(None, [arguments.from_csv]),
                overwrite=arguments.overwrite,
            )
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
            write_atomically(arguments.output, text.encode())
    except (OSError, ValueError) as error:
        print(f"model_table.py: {error}", file=sys.stderr)
        return 1
    return 0


def _layers(arguments: argparse.Namespace) -> int:
    """What `--layers` asks for."""
    tables = {}
    for preset in arguments.layers:
        print(f"Counting the layers of {preset} ...", file=sys.stderr)
        tables[preset] = layers.costs(preset, arguments.head, arguments.image_size)
    output = arguments.output
    if output is not None and output.suffix == ".png":
        layers.draw(tables, output)
        return 0
    text = layers.FORMATS[arguments.format](tables)
    if output is None:
        sys.stdout.write(text)
    else:
        write_atomically(output, text.encode())
    return 0


if __name__ == "__main__":
    sys.exit(main())
