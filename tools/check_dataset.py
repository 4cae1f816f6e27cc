"""`python -m keras_densepred check-data`, from a checkout that is not installed."""

import sys
from collections.abc import Sequence
from pathlib import Path

# Run as a script, the repository's root is not on the path: `tools` itself is.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from keras_densepred import cli


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the check; returns 0 when the data can be trained on, 1 otherwise."""
    flags = sys.argv[1:] if argv is None else argv
    return cli.main(["check-data", *flags], program="tools/check_dataset.py")


if __name__ == "__main__":
    sys.exit(main())
