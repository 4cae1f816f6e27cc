"""Videos in and out: a trained model's predictions frame by frame, a batch in memory at a time."""

from __future__ import annotations

import itertools
import os
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from keras_densepred.data.drawing.objects import draw_objects
from keras_densepred.data.drawing.semantic import draw_semantic
from keras_densepred.data.video_files import Frame, VideoFrames, VideoWriter
from keras_densepred.files import replacing, require_new_file
from keras_densepred.saved import prediction, tiles

if TYPE_CHECKING:
    from keras_densepred.saved.opening import SavedModel


def predict_frames(
    model: SavedModel,
    frames: VideoFrames,
    *,
    score: float,
    tile: int | None = None,
    overlap: float = 0.2,
    batch_size: int = prediction.BATCH,
) -> Iterator[tuple[Frame, Any]]:
    """Each frame of a video and what is found in it: `Objects`, a `LabelMap` or `ClassScores`.

    Args:
        model: of any task.
        frames: of the video.
        score: as in `SavedModel.predict`, like `tile` and `overlap`.
        batch_size: frames that are predicted, and held in memory, at a time.

    Raises:
        ValueError: as in `SavedModel.predict`.
    """
    each = iter(frames)
    while chunk := list(itertools.islice(each, batch_size)):
        if tile is not None:
            for frame in chunk:
                yield frame, tiles.in_tiles(model, frame.image, score, tile, overlap)
            continue
        images = prediction.in_memory(model, [frame.image for frame in chunk])
        batches = prediction.open_batches(model, images, batch_size)
        for index, found in prediction.found_in(model, images, batches, score):
            yield chunk[index], found


def draw_found(found: Any) -> np.ndarray:
    """What is found in a frame, drawn at the frame's own size.

    Args:
        found: `Objects`, a `LabelMap` or `ClassScores`.

    Returns:
        (H, W, 3) uint8, RGB.
    """
    if isinstance(found, prediction.LabelMap):
        return draw_semantic(found.image, found.labels, found.class_names, found.class_colours)
    note = ""
    if isinstance(found, prediction.ClassScores):
        note = f"{found.name} {found.probabilities.max():.2f}"
        found = prediction.Objects(
            *(found.image, np.zeros((0, 4), np.float32), np.zeros(0, np.int64)),
            *(np.zeros(0, np.float32), None, found.class_names),
        )
    return draw_objects(
        found.image,
        found.boxes,
        found.labels,
        found.class_names,
        scores=found.scores,
        masks=found.masks,
        note=note,
        enlarge=False,
    )


def predict_video(
    model: SavedModel, video: str | os.PathLike[str], output: str | os.PathLike[str], **options: Any
) -> list[dict[str, Any]]:
    """See `SavedModel.predict_video`."""
    frames = VideoFrames(video)
    output = require_new_file(output, inputs=[video], overwrite=True)
    rows: list[dict[str, Any]] = []
    with (
        replacing(output, output.name) as unfinished,
        VideoWriter(unfinished, frames.frame_rate) as writer,
    ):
        for frame, found in predict_frames(model, frames, **options):
            writer.write(draw_found(found))
            rows += ({"frame": frame.number, "time": frame.time, **row} for row in _told(found))
    if frames.fault:
        warnings.warn(frames.fault, stacklevel=3)
    return rows


def _told(found: Any) -> list[dict[str, Any]]:
    """What is found in a frame, without its pixels."""
    if isinstance(found, prediction.LabelMap):
        return [{"shares": found.shares()}]
    if isinstance(found, prediction.ClassScores):
        return [{"name": found.name, "probability": float(found.probabilities.max())}]
    return [
        {"name": name, "score": score, "box": box}
        for name, score, box in zip(
            found.names, found.scores.tolist(), found.boxes.tolist(), strict=True
        )
    ]
