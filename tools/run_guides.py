"""Executes the guides end to end, each in a fresh process and an empty folder.

    KERAS_BACKEND=torch python tools/run_guides.py [NAME ...] [--write FOLDER]

Tells how long each took, and fails if one does. `--write guides` makes the pages `guides/NAME.md`
with what the cells printed and drew this time.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

# Run as a script, the repository's root is not on the path: `tools` itself is.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tools.tutobook import find_guides

ROOT = Path(__file__).resolve().parents[1]


def main(argv: Sequence[str] | None = None) -> int:
    """Runs guides.

    Args:
        argv: command line without the program's name; None takes it from the process.

    Returns:
        0 if all of them ran, else 1.
    """
    guides = {path.stem: path for path in find_guides()}
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(guides)}")
    parser.add_argument("--write", type=Path, metavar="FOLDER", help="where to write the pages")
    options = parser.parse_args(argv)
    unknown = [name for name in options.names if name not in guides]
    if unknown:
        parser.error(f"there is no guide {unknown[0]}; there are {', '.join(guides)}")
    failed = []
    for name in options.names or guides:
        print(f"=== {name}", flush=True)
        wall, processor, code = run_guide(guides[name], options.write)
        outcome = "ran" if code == 0 else f"FAILED with exit code {code}"
        print(f"=== {name} {outcome}: {wall:.0f} s, {processor:.0f} s of processor time\n")
        failed += [name] if code else []
    if failed:
        print(f"error: these guides failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def run_guide(path: Path, folder: Path | None = None) -> tuple[float, float, int]:
    """Executes a guide.

    Args:
        path: of its `.py` file.
        folder: where to write its page; None for nowhere.

    Returns:
        Seconds that passed, seconds of processor time, and the exit code.
    """
    # The package beside the guide, installed or not.
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    with tempfile.TemporaryDirectory(prefix="guide_") as empty:
        pages = folder.resolve() if folder else Path(empty) / "pages"
        work = Path(empty) / "work"
        work.mkdir()
        began, used = time.monotonic(), _processor_seconds()
        command = [sys.executable, str(ROOT / "tools/execute_guide.py"), str(path), str(pages)]
        code = subprocess.run(command, cwd=work, env=environment, check=False).returncode
        return time.monotonic() - began, _processor_seconds() - used, code


def _processor_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


if __name__ == "__main__":
    sys.exit(main())
