"""One line, and a second where there is room, that tell how far a run is, for any width."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from keras_densepred._optional import require

_GAP = 2  # columns between the parts of a line
_SHORTEST_BAR, _LONGEST_BAR = 6, 40
_LEAST_HEIGHT = 4  # lines of a terminal that has room for a second one


@dataclasses.dataclass
class ProgressLine:
    """What is shown; `rich` renders it at the width of the terminal.

    The bar takes what the words leave of the line. Where that is nothing, the words become shorter,
    and at last there is no bar.

    Attributes:
        what: is being done, such as `"epoch"`; short forms leave it out if there is a `place`.
        place: such as `"3/12"`; empty for none.
        done: steps that are done.
        steps: steps in all.
        seconds_left: None before it is known.
        speed: images a second; None before it is known.
        loss: None before the first step, and where there is none.
        note: stands where time and speed are not known yet.
        details: name to text, for the second line.
    """

    what: str = "epoch"
    place: str = ""
    done: int = 0
    steps: int = 0
    seconds_left: float | None = None
    speed: float | None = None
    loss: float | None = None
    note: str = ""
    details: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def __rich_console__(self, console: Any, options: Any) -> Any:
        """The lines as `rich` wants them."""
        text, style = require("rich.text", "data").Text, require("rich.style", "data").Style
        before, bar, after = self.parts(options.max_width)
        full = round(bar * self.done / self.steps) if self.steps else 0
        line = text(before, no_wrap=True, overflow="crop", end="\n")
        ascii_only = options.ascii_only
        line.append(("#" if ascii_only else "━") * full, style(color="magenta"))
        line.append(("-" if ascii_only else "━") * (bar - full), style(color="bright_black"))
        line.append(after)
        yield line
        second = self.second_line(options.max_width)
        if second and options.size.height >= _LEAST_HEIGHT:
            yield text(second, style(dim=True), no_wrap=True, overflow="crop")

    def parts(self, width: int) -> tuple[str, int, str]:
        """What stands before the bar, the columns of the bar, and what stands after it.

        Args:
            width: columns of the terminal.
        """
        gap = " " * _GAP
        for place, numbers in self._forms():
            bar = width - len(place) - len(gap.join(numbers)) - 2
            if bar >= _SHORTEST_BAR:
                return f"{place} ", min(bar, _LONGEST_BAR), f" {gap.join(numbers)}"
        return f"{place} ", 0, gap.join(numbers)

    def second_line(self, width: int) -> str:
        """Details that fit, none of them in part."""
        line = ""
        for name, value in self.details.items():
            longer = f"{line}{' ' * _GAP if line else ''}{name} {value}"
            if len(longer) > width:
                break
            line = longer
        return line

    def _forms(self) -> Sequence[tuple[str, list[str]]]:
        """Words before the bar, and those behind it, from the long form to the short one."""
        steps = f"{self.done}/{self.steps}"
        where = f"{self.what} {self.place}".strip()
        if self.seconds_left is None:
            forms = [(where, [steps, self.note])]
            return [(place, [part for part in parts if part]) for place, parts in forms]
        left = duration(self.seconds_left)
        speed = "" if self.speed is None else significant(self.speed)
        loss = "" if self.loss is None else f"{self.loss:.3f}"
        long = [f"{left} left", speed and f"{speed} images/s", loss and f"loss {loss}"]
        middle = [f"{left} left", speed and f"{speed} im/s", loss and f"loss {loss}"]
        short = [left, speed and f"{speed}/s", loss and f"loss {loss}"]
        return [
            (place, [part for part in (steps, *parts) if part])
            for place, parts in (
                (where, long),
                (where, middle),
                (self.place or where, middle),
                (self.place or where, short),
            )
        ]


def duration(seconds: float) -> str:
    """`m:ss`, or `h:mm:ss` from an hour on."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


def significant(number: float) -> str:
    """Three digits, or all that stand before the point."""
    digits = 2 if number < 9.995 else 1 if number < 99.95 else 0
    return f"{number:.{digits}f}"
