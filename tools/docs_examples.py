"""Shows the examples of docstrings as code on the site: an extension of Griffe for mkdocs.yml.

Docstrings here have Keras' form, `Example:` and then code, indented or behind `>>>`, which Griffe
takes for plain text.
"""

from __future__ import annotations

import textwrap
from typing import Any

import griffe

_HEADING = "Example:"


class Examples(griffe.Extension):
    """Puts the code after `Example:` between fences."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Changes the docstring of an object; called by Griffe."""
        del kwargs
        if obj.docstring is not None:
            obj.docstring.value = fenced(obj.docstring.value)


def fenced(text: str) -> str:
    """A docstring whose examples are fenced code."""
    lines = text.split("\n")
    if _HEADING not in lines:
        return text
    start = lines.index(_HEADING)
    first = next((n for n in range(start + 1, len(lines)) if lines[n].strip()), len(lines))
    prompted = first < len(lines) and lines[first].startswith(">>>")
    stop = first
    # Code behind prompts ends at an empty line, indented code where the text begins again.
    while stop < len(lines) and (
        lines[stop].strip() if prompted else not lines[stop] or lines[stop].startswith(" ")
    ):
        stop += 1
    code = textwrap.dedent("\n".join(lines[first:stop])).strip("\n")
    kind = "pycon" if prompted else "python"
    return "\n".join([*lines[:start], f"**Example**\n\n```{kind}\n{code}\n```\n", *lines[stop:]])
