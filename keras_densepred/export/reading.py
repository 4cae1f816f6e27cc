"""What an exported file says about itself, read back from any of the formats that have it."""

from __future__ import annotations

import json
import os
import xml.etree.ElementTree
from pathlib import Path

from keras_densepred._optional import require
from keras_densepred.export.litert import read_litert_description


def read_description(path: str | os.PathLike[str]) -> dict[str, str]:
    """The description that `export_onnx` and the other formats put into their files.

    Args:
        path: an ONNX file, OpenVINO's `.xml`, a SavedModel's folder or a LiteRT file.

    Returns:
        Name -> text, as of `describe`.

    Raises:
        ValueError: if the file has no description or is none of these.
        ImportError: for ONNX without onnx, for LiteRT without TensorFlow.
    """
    path = Path(path)
    if not path.exists():
        raise ValueError(f"There is no exported file {path}.")
    if path.is_dir():
        told = _of_saved_model(path)
    elif path.suffix == ".onnx":
        proto = require("onnx", "export").load(path, load_external_data=False)
        told = {entry.key: entry.value for entry in proto.metadata_props}
    elif path.suffix == ".xml":
        entries = xml.etree.ElementTree.parse(path).findall("rt_info/keras_densepred/*")
        told = {entry.tag: entry.attrib["value"] for entry in entries}
    else:
        told = read_litert_description(path)
    if "task" not in told:
        raise ValueError(
            f"{path} does not say what its classes are and how its images are prepared: export "
            "the run's folder again with this version."
        )
    return told


def _of_saved_model(path: Path) -> dict[str, str]:
    file = path / "assets.extra" / "description.json"
    return json.loads(file.read_text("utf-8")) if file.is_file() else {}
