"""Makes the notebooks of the guides, which are never edited by hand.

    python tools/make_notebooks.py

writes `guides/NAME.ipynb` (nbformat 4.5, without outputs) for each `guides/NAME.py`. The same
source gives the same bytes.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

# Run as a script, the repository's root is not on the path: `tools` itself is.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from keras_densepred.files import write_atomically
from tools.tutobook import Guide, find_guides, read_guide


def main() -> int:
    """Writes all notebooks.

    Returns:
        0, or 1 after one sentence where a guide cannot be read.
    """
    for path in find_guides():
        try:
            text = notebook_text(read_guide(path))
        except ValueError as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
        target = path.with_suffix(".ipynb")
        write_atomically(target, text.encode())
        print(f"Wrote {target}")
    return 0


def notebook_text(guide: Guide) -> str:
    """The notebook as JSON text, ending with a line break."""
    cells = [_cell(0, False, guide.heading)]
    cells += [_cell(n, cell.is_code, cell.text) for n, cell in enumerate(guide.cells, start=1)]
    notebook = {
        "cells": cells,
        "metadata": {
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
        },
        "nbformat": 4,
        "nbformat_minor": 5,
    }
    return json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"


def _cell(number: int, is_code: bool, text: str) -> dict[str, Any]:
    common = {"id": f"cell-{number:03d}", "metadata": {}, "source": text.splitlines(keepends=True)}
    if is_code:
        return {"cell_type": "code", "execution_count": None, "outputs": [], **common}
    return {"cell_type": "markdown", **common}


if __name__ == "__main__":
    sys.exit(main())
