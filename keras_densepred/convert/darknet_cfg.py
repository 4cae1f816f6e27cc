"""Darknet's `.cfg` files: what they say of a network and of its anchors.

A weights file has no names and no shapes; the configuration beside it says what each convolution
is, so a file of another network of the same length is found out.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import keras


@dataclasses.dataclass(frozen=True)
class Section:
    """One section.

    Attributes:
        kind: what stands in the brackets, such as `"convolutional"`.
        line: number of the line it begins in.
        values: name to value, as written.
    """

    kind: str
    line: int
    values: dict[str, str]

    def number(self, name: str, default: int) -> int:
        return int(self.values.get(name, default))


@dataclasses.dataclass(frozen=True)
class YOLOSettings:
    """What the `[yolo]` sections say.

    Attributes:
        num_classes: C.
        anchors: widths and heights in pixels of the network's input.
        masks: indices of the anchors of each level, coarsest stride last.
        image_size: side in pixels of the network's input.
    """

    num_classes: int
    anchors: tuple[tuple[float, float], ...]
    masks: tuple[tuple[int, ...], ...]
    image_size: int


def read_cfg(path: str | Path) -> list[Section]:
    """Reads the sections of a configuration.

    Raises:
        ValueError: if a line is neither a section, a comment nor `name = value`, or there is no
            convolution.
    """
    sections: list[Section] = []
    for number, text in enumerate(Path(path).read_text(encoding="utf-8").splitlines(), 1):
        text = text.strip()
        if not text or text[0] in "#;":
            continue
        if text[0] == "[" and text[-1] == "]":
            sections.append(Section(text[1:-1].strip(), number, {}))
            continue
        name, equals, value = text.partition("=")
        if not equals or not sections:
            raise ValueError(f"{path}, line {number}, is no line of a Darknet configuration.")
        sections[-1].values[name.strip()] = value.strip()
    if not any(section.kind == "convolutional" for section in sections):
        raise ValueError(f"{path} has no [convolutional] section: give a Darknet configuration.")
    return sections


def yolo_settings(sections: Sequence[Section], path: str | Path) -> YOLOSettings | None:
    """The classes, anchors and masks of a detector; None for a network without `[yolo]`.

    Raises:
        ValueError: if its levels do not agree, or a number cannot be read.
    """
    heads = [section for section in sections if section.kind == "yolo"]
    if not heads:
        return None
    try:
        found = {
            (
                head.number("classes", 20),
                tuple(float(x) for x in head.values["anchors"].split(",")),
            )
            for head in heads
        }
        masks = [tuple(int(x) for x in head.values["mask"].split(",")) for head in heads]
        side = int(next(s.values["width"] for s in sections if s.kind in ("net", "network")))
    except (KeyError, ValueError, StopIteration) as error:
        raise ValueError(
            f"The [yolo] and [net] sections of {path} lack or misspell {error}."
        ) from error
    if len(found) != 1:
        raise ValueError(f"The [yolo] sections of {path} have different classes or anchors.")
    ((num_classes, numbers),) = found
    anchors = tuple(zip(numbers[::2], numbers[1::2], strict=True))
    # The finest level has the smallest anchors, in whichever order the levels stand.
    return YOLOSettings(num_classes, anchors, tuple(sorted(masks)), side)


def require_same_network(model: keras.Model, sections: Sequence[Section], path: Path) -> None:
    """Compares the convolutions of a configuration with those of a model, one by one.

    Args:
        model: tells by `darknet_order` its convolutions in Darknet's order.
        sections: of `read_cfg`.
        path: of the configuration, for messages.

    Raises:
        ValueError: at the first difference.
    """
    described = [section for section in sections if section.kind == "convolutional"]
    order = model.darknet_order
    names = {layer.name for layer in model.layers}
    for index, (section, name) in enumerate(zip(described, order, strict=False)):
        theirs, ours = _described(section), _built(model.get_layer(name), names)
        if theirs != ours:
            different = "; ".join(
                f"{key} {theirs[key]} there, {ours[key]} here"
                for key in theirs
                if theirs[key] != ours[key]
            )
            raise ValueError(
                f"{path}, line {section.line}: convolution {index} is another one than {name} of "
                f"{type(model).__name__} ({different}): choose the network that the file is of."
            )
    if len(described) != len(order):
        raise ValueError(
            f"{path} has {len(described)} convolutions, {type(model).__name__} has {len(order)}: "
            "choose the network that the file is of."
        )


def _described(section: Section) -> dict[str, int | str]:
    return {
        "filters": section.number("filters", 1),
        "size": section.number("size", 1),
        "stride": section.number("stride", 1),
        "groups": section.number("groups", 1),
        "batch_normalize": section.number("batch_normalize", 0),
        "activation": "linear"
        if section.values.get("activation", "logistic") == "linear"
        else "nonlinear",
    }


def _built(layer: keras.layers.Layer, names: set[str]) -> dict[str, int | str]:
    base = layer.name.removesuffix("_conv")
    shape = layer.kernel.shape
    return {
        "filters": shape[-1],
        "size": shape[0] if len(shape) == 4 else 1,
        "stride": getattr(layer, "strides", 1),
        "groups": getattr(layer, "groups", 1),
        "batch_normalize": int(f"{base}_norm" in names),
        "activation": "nonlinear" if f"{base}_act" in names else "linear",
    }
