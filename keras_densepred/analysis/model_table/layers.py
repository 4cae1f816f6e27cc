"""What each layer of a model costs: `tools/model_table.py --layers`.

The CSPNet paper's figure 7 shows the BFLOPs of every layer, whose highest is the compute
bottleneck, its figure 8 the elements that every convolution reads and writes (CIO), which stand for
memory traffic.
"""

import io
import os
from collections.abc import Mapping, Sequence

from keras_densepred._optional import require
from keras_densepred.analysis.darknet_costs import LayerCost, layer_costs
from keras_densepred.analysis.model_table.families import FAMILIES, registered_backbones
from keras_densepred.backbones import find_backbone
from keras_densepred.files import write_atomically

Tables = Mapping[str, Sequence[LayerCost]]  # model to its layers, in order of execution
BAR = 40  # characters of the longest bar


def costs(preset: str, head: str | None = None, image_size: int = 224) -> list[LayerCost]:
    """The costs of the layers of a preset's model, in order of execution.

    Args:
        preset: of any family, as `find_backbone` takes it.
        head: name of one of the family's heads, or None for the backbone alone.
        image_size: side of the image in pixels.

    Raises:
        ValueError: if there is no such preset, or its family has no such head.
    """
    source = find_backbone(preset)
    backbone = source.build(image_shape=(image_size, image_size, 3))
    if head is None:
        return layer_costs(backbone)
    groups = registered_backbones().items()
    key = next((key for key, classes in groups if source.family in classes), "")
    heads = FAMILIES[key].heads if key in FAMILIES else {}
    if head not in heads:
        raise ValueError(f"{preset} has no head {head!r}: choose one of {list(heads)}.")
    return layer_costs(heads[head](backbone))


def summary(layers: Sequence[LayerCost]) -> dict[str, float]:
    """Total and highest BFLOPs and CIO; CIO in millions of elements."""
    traffic = [layer.elements_in + layer.elements_out for layer in layers]
    return {
        "BFLOPs": sum(layer.operations for layer in layers) / 1e9,
        "highest BFLOPs of a layer": max(layer.operations for layer in layers) / 1e9,
        "CIO, millions": sum(traffic) / 1e6,
        "highest CIO of a layer, millions": max(traffic) / 1e6,
    }


def as_text(tables: Tables) -> str:
    text = ""
    for model, layers in tables.items():
        text += f"{model}\n"
        top = max(layer.operations for layer in layers)
        width = max(len(layer.name) for layer in layers)
        for layer, row in zip(layers, _rows(layers), strict=True):
            bar = "#" * round(BAR * layer.operations / top)
            text += f"{row[0].ljust(width)}  {row[1]:>13} {row[2]:>9} {row[3]:>9}  {bar}\n"
        text += "".join(f"{name}: {value:.4f}\n" for name, value in summary(layers).items()) + "\n"
    return text


def as_csv(tables: Tables) -> str:
    text = "model,layer,output,bflops,cio_millions\n"
    for model, layers in tables.items():
        text += "".join(f"{model},{','.join(row)}\n" for row in _rows(layers))
    return text


def as_markdown(tables: Tables) -> str:
    text = "| model | layer | output | BFLOPs | CIO, millions |\n| --- | --- | --- | --- | --- |\n"
    for model, layers in tables.items():
        text += "".join(f"| {model} | {' | '.join(row)} |\n" for row in _rows(layers))
    return text


FORMATS = {"text": as_text, "csv": as_csv, "markdown": as_markdown}


def _rows(layers: Sequence[LayerCost]) -> list[tuple[str, str, str, str]]:
    return [
        (
            layer.name,
            "x".join(map(str, layer.output_shape)),
            f"{layer.operations / 1e9:.4f}",
            f"{(layer.elements_in + layer.elements_out) / 1e6:.4f}",
        )
        for layer in layers
    ]


def draw(tables: Tables, path: str | os.PathLike[str]) -> None:
    """Draws both figures, a column a model, into a PNG file."""
    figure = require("matplotlib.figure", "data").Figure((6 * len(tables), 6), layout="constrained")
    axes = figure.subplots(2, len(tables), sharey="row", squeeze=False)
    for column, (model, layers) in zip(axes.T, tables.items(), strict=True):
        total = summary(layers)
        values = (
            ("BFLOPs", [layer.operations / 1e9 for layer in layers]),
            ("CIO, millions", [(x.elements_in + x.elements_out) / 1e6 for x in layers]),
        )
        for axis, (name, heights) in zip(column, values, strict=True):
            axis.bar(range(len(layers)), heights, width=1.0)
            axis.set_title(f"{model}: {total[name]:.3f} {name}")
            axis.set_xlabel("layer")
            axis.set_ylabel(f"{name} of a layer")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    write_atomically(path, buffer.getvalue())
