"""`predict` on videos: what is found frame by frame, drawn into a video of its own."""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from keras_densepred import saved
from keras_densepred.cli.console import progress
from keras_densepred.cli.predict_output import png
from keras_densepred.data.drawing.semantic import draw_legend
from keras_densepred.data.readers.unlabelled import output_names
from keras_densepred.data.video_files import VideoError, VideoFrames, VideoWriter

if TYPE_CHECKING:
    from rich.console import Console

_LEGEND_WIDTH = 512  # pixels

Note = Callable[[Any, str, dict[str, Any]], Any]
"""Takes what is found in an image, its name among outputs and what else is told of it in tables;
writes it down and returns what is to be drawn of it."""


def predict_videos(
    model: saved.SavedModel,
    paths: Sequence[Path],
    options: argparse.Namespace,
    console: Console,
    note: Note,
    first_id: int = 1,
) -> list[str]:
    """Predicts, notes and draws each frame of some videos.

    Args:
        model: what predicts; objects of any confidence are noted.
        paths: of the videos.
        options: of the command line.
        console: where progress is shown.
        note: what else is done with a frame; of it are told its `image_id`, `file_name`, `frame`
            from 0 and `time` in seconds.
        first_id: the `image_id` of the first frame.

    Returns:
        A sentence on each video that is broken.
    """
    faults: list[str] = []
    ids = itertools.count(first_id)
    for path, name in zip(paths, output_names(paths), strict=True):
        try:
            frames = VideoFrames(path)
        except VideoError as error:
            faults.append(str(error))
            continue
        seen: set[int] = set()
        with (
            progress(console, f"Predicting {path.name}", frames.announced) as show,
            options.folder.replacing(f"videos/{name.with_suffix('.mp4')}") as unfinished,
            VideoWriter(unfinished, frames.frame_rate) as writer,
        ):
            for frame, found in saved.predict_frames(
                *(model, frames),
                score=0,
                tile=options.tile,
                overlap=options.overlap,
                batch_size=options.batch_size,
            ):
                told: dict[str, Any] = {"image_id": next(ids), "file_name": str(path)}
                told |= {"frame": frame.number, "time": frame.time}
                shown = note(found, f"{name.with_suffix('')}/{frame.number:06d}", told)
                writer.write(saved.draw_found(shown))
                if isinstance(found, saved.LabelMap):
                    seen.update(np.unique(found.labels).tolist())
                show(frame.number + 1)
        if seen:
            legend = draw_legend(
                sorted(seen), model.class_names, _LEGEND_WIDTH, model.class_colours
            )
            options.folder.write(f"videos/{name.with_suffix('')}_legend.png", png(legend))
        if frames.fault:
            faults.append(frames.fault)
    return faults
