"""What goes wrong by a user's hand: one sentence that says what is wrong and what to do."""

import re


class SettingsError(ValueError):
    """Settings that cannot be run; one sentence."""


def sentence(error: BaseException) -> str:
    """What an error says, in one line.

    Keras (3.15.1) puts what a layer raised in bold, between its own name and the arguments.
    """
    text = str(error)
    raised = re.search("\x1b\\[1m(.*?)\x1b\\[0m", text, re.DOTALL)
    lines = (raised[1] if raised else text).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def require_positive(**counts: int | None) -> None:
    """Refuses arguments that count something and are not positive; None is left open.

    Raises:
        ValueError: if one is not; the message names it.
    """
    for name, value in counts.items():
        if value is not None and value < 1:
            raise ValueError(f"`{name}` is {value}; give a positive integer.")
