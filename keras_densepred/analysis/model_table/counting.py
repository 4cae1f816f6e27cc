"""Counts the models of the table, and says whether they agree with their papers."""

import dataclasses
import math
from collections.abc import Iterable

import keras

from keras_densepred.analysis.darknet_costs import count_operations, count_weights
from keras_densepred.analysis.detr_costs import TransformerCost
from keras_densepred.analysis.fusion_time import fusion_time
from keras_densepred.analysis.model_table.families import FAMILIES, Family, registered_backbones
from keras_densepred.analysis.model_table.figures import ROWS, Row
from keras_densepred.analysis.multiply_adds import (
    count_attention_products,
    count_multiply_adds,
    graph_nodes,
)
from keras_densepred.models.rcnn.heads import RegionProposalHead

TOLERANCE = 0.01  # of the paper's figure, beside its rounding


@dataclasses.dataclass(frozen=True)
class Count:
    """One row of the table, as the CSV has it: all values are strings, empty where there is none.

    Attributes:
        family: key of the family, see `registered_backbones`.
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
        basis: where the network is from, and
        status: how it compares with the paper: see `tools/model_table.py`.
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
    """What is counted: the papers' rows, and every preset that is in none of them."""
    backbones = registered_backbones()
    rows = []
    for family in families:
        reported = ROWS.get(family, ())
        names = {row.preset for row in reported}
        rows += [(family, row) for row in reported]
        rows += [
            (family, Row(preset, "backbone", (224, 224)))
            for backbone_class in backbones[family]
            for preset in backbone_class.architecture_presets()
            if preset not in names
        ]
    return rows


def count(family_name: str, row: Row) -> Count:
    """Builds one model and counts it."""
    family = FAMILIES.get(family_name, Family(family_name))
    presets = {
        name: backbone_class
        for backbone_class in registered_backbones()[family_name]
        for name in backbone_class.architecture_presets()
    }
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
    if backbone is None:
        return Count(**known, status="not built")
    network = backbone.from_preset(row.preset, image_shape=(*row.image_size, 3), **row.config)
    model = network if row.head == "backbone" else family.heads[row.head](network)
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
        status=_status([(paper, ours) for paper, ours in compared if paper], row.reason),
    )


def _below_heads(model: keras.Model, backbone: keras.Model) -> keras.Model:
    """The network whose maps a row's heads take: the backbone, with its FPN or neck if any."""
    maps = [
        tensor
        for node in graph_nodes(model)
        if isinstance(node.operation, (RegionProposalHead, TransformerCost))
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
