"""The README.md beside a trained preset: what it is, what it was trained on, how good it is."""

import os
import pathlib
from collections.abc import Mapping
from typing import Any

import keras

from keras_densepred._version import __version__
from keras_densepred.files import write_atomically


def write_model_card(
    directory: str | os.PathLike[str],
    *,
    title: str,
    task: str,
    data: str,
    results: Mapping[str, float],
    settings: Mapping[str, Any],
    usage: str,
    parameters: int,
    by_class: Mapping[str, Mapping[str, float]] | None = None,
    command: str | None = None,
) -> pathlib.Path:
    """Writes the model card that Hugging Face and Kaggle show for an uploaded preset.

    Args:
        directory: the preset's.
        title: the model's name.
        task: the hub's name of the task, such as `"image-classification"`.
        data: what the model was trained and evaluated on, in a sentence or a few lines.
        results: measured on the validation split; fractions between 0 and 1.
        settings: those of the run.
        usage: Python that loads the preset and uses it.
        parameters: of the whole model.
        by_class: class name to its numbers, the same for all; fractions, whole numbers, or -1 where
            there is nothing to measure.
        command: that trained it.

    Returns:
        The card's path.
    """
    rows = "\n".join(f"| {name} | {value:.4f} |" for name, value in results.items())
    flags = "\n".join(
        f"| {name} | {value} |" for name, value in settings.items() if value is not None
    )
    text = f"""---
library_name: keras-hub
pipeline_tag: {task}
license: other  # that of the training data: write its name here
---

# {title}

Trained with keras_densepred {__version__} (Keras {keras.version()}, {keras.backend.backend()}),
{parameters:,} parameters. The weights may be used as the licence of the training data allows.

## Data

{data.strip()}

## Results

| on the validation split | |
|---|---|
{rows}
{_class_table(by_class or {})}
## Use

```python
{usage.strip()}
```

## Settings
{(command and _fenced(command)) or ""}
| setting | value |
|---|---|
{flags}
"""
    path = pathlib.Path(directory) / "README.md"
    write_atomically(path, text.encode("utf-8"))
    return path


def _class_table(by_class: Mapping[str, Mapping[str, float]]) -> str:
    """Markdown, with empty lines around it; nothing without classes."""
    if not by_class:
        return ""
    columns = list(next(iter(by_class.values())))
    lines = [
        f"| class | {' | '.join(columns)} |",
        f"|---|{'---|' * len(columns)}",
        *(
            f"| {name.replace('|', chr(92) + '|')} | {' | '.join(map(_cell, row.values()))} |"
            for name, row in by_class.items()
        ),
    ]
    return "\n" + "\n".join(lines) + "\n"


def _cell(value: float) -> str:
    if isinstance(value, int):
        return f"{value:,}"
    return "-" if value < 0 else f"{value:.4f}"


def _fenced(command: str) -> str:
    return f"\n```\n{command}\n```\n"
