"""Reads the command line, runs one command, and turns what went wrong into one sentence."""

import argparse
import sys
from collections.abc import Sequence

from keras_densepred import command
from keras_densepred.cli import check_data, evaluate, info, predict, push, scripts
from keras_densepred.cli.console import open_console

_DESCRIPTION = """Runs, measures and describes models of keras_densepred.

  python -m keras_densepred train coco_retinanet --data-dir MY_IMAGES --output runs/mine
  python -m keras_densepred predict runs/mine photos/ --output found
  python -m keras_densepred evaluate runs/mine --data-dir MY_IMAGES
  python -m keras_densepred check-data --data-dir MY_IMAGES
  python -m keras_densepred export runs/mine --output detector.onnx
  python -m keras_densepred push runs/mine hf://user/name
  python -m keras_densepred info cednet_next_tiny

KERAS_BACKEND=jax, tensorflow or torch chooses what computes."""
_EPILOG = """Exit code 0: done. 1: the model, the data or an argument is at fault, as one sentence
says. 2: the command line cannot be read."""
_COMMANDS = (predict, evaluate, check_data, info, push)


def main(argv: Sequence[str] | None = None, program: str | None = None) -> int:
    """Runs a command.

    Args:
        argv: command line without the program's name; None takes it from the process.
        program: what the usage calls the command, where a script of its own runs it.

    Returns:
        0, 1 after a sentence on what is at fault, or 130 when interrupted.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    if program is None and scripts.is_script(argv):
        return command.run(lambda _: scripts.run(argv), [])
    return command.run(lambda argv: _run(argv, program), argv)


def _run(argv: Sequence[str] | None, program: str | None) -> int:
    parser = argparse.ArgumentParser(
        allow_abbrev=False,
        prog="python -m keras_densepred",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for module in _COMMANDS:
        sub = commands.add_parser(
            module.NAME,
            prog=program,
            allow_abbrev=False,
            help=module.SUMMARY,
            description=module.__doc__,
            epilog=_EPILOG,
        )
        sub.formatter_class = argparse.RawDescriptionHelpFormatter
        module.add_arguments(sub)
        sub.add_argument(command.DEBUG_FLAG, action="store_true", help=command.DEBUG_HELP)
        sub.set_defaults(run=module.run, refuse=sub.error)
    if program is None:
        for name, summary in scripts.summaries().items():
            commands.add_parser(name, help=summary.replace("%", "%%"))
    options = parser.parse_args(argv)
    return options.run(options, open_console())
