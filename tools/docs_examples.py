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
    shown: list[str] = []
    lines = text.split("\n")
    while lines:
        line = lines.pop(0)
        code: list[str] = []
        if line == _HEADING:
            shown += ["**Example**", ""]
            # Indented code ends where the text goes on.
            while lines and (not lines[0] or lines[0].startswith(" ")):
                code.append(lines.pop(0))
        elif line.startswith(">>>"):
            code.append(line)
            while lines and lines[0]:
                code.append(lines.pop(0))
        else:
            shown.append(line)
        if any(code):
            kind = "pycon" if code[0].startswith(">>>") else "python"
            shown += [f"```{kind}", textwrap.dedent("\n".join(code)).strip("\n"), "```", ""]
    return "\n".join(shown).strip("\n")
