"""Pictures that tell which they are, and batches of them."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np

from keras_densepred import data

NORMAL = {"mean": (123.675, 116.28, 103.53), "std": (58.395, 57.12, 57.375)}


class Pictures:
    """Pictures of one colour, that of their index, each with `index % 4` objects; some broken."""

    category_ids = (1, 2, 3)

    def __init__(self, sizes, bad=(), crowd=False):
        self.sizes = sizes
        self.bad = bad
        self.crowd = crowd
        self.image_ids = tuple(range(100, 100 + len(sizes)))

    def __len__(self):
        return len(self.sizes)

    def __getitem__(self, index):
        if index in self.bad:
            raise data.ImageError(f"picture_{index}.png is broken.")
        height, width = self.sizes[index]
        count = index % 4
        corners = np.arange(count, dtype=np.float32)[:, None]
        return data.Record(
            image=np.full((height, width, 3), index, np.uint8),
            boxes=np.concatenate([corners, corners, corners + 8, corners + 4 + corners], axis=1),
            labels=np.arange(count, dtype=np.int32),
            crowd=np.full(count, self.crowd),
            image_id=100 + index,
            file_name=f"picture_{index}.png",
        )

    def ground_truth(self):
        images = [
            {"id": 100 + i, "height": height, "width": width}
            for i, (height, width) in enumerate(self.sizes)
        ]
        annotations = [
            {"image_id": 100 + i, "iscrowd": int(self.crowd)}
            for i in range(len(self))
            for _ in range(i % 4)
        ]
        return {"images": images, "annotations": annotations}


def train(dataset, batch_size=4, image_size=32, seed=0, **arguments):
    return data.train_batches(
        dataset, batch_size=batch_size, image_size=image_size, seed=seed, **NORMAL, **arguments
    )


def evaluate(dataset, batch_size=4, **arguments):
    return data.eval_batches(dataset, batch_size=batch_size, **NORMAL, **arguments)


def take(stream, count):
    return [next(stream) for _ in range(count)]


def assert_same(first, second):
    assert len(first) == len(second)
    for ours, theirs in zip(first, second, strict=True):
        assert ours.keys() == theirs.keys()
        for key in ours:
            np.testing.assert_array_equal(ours[key], theirs[key])


def indices_in(batch):
    """Which `Pictures` a batch holds, from their colours."""
    red = batch["images"][:, 0, 0, 0] * NORMAL["std"][0] + NORMAL["mean"][0]
    return np.round(red).astype(int).tolist()


def run_script(tmp_path, text):
    """Runs a script as users run theirs: spawned workers cannot import a test module."""
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(text))
    root = str(Path(data.__file__).parents[2])
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    run = subprocess.run(
        [sys.executable, str(script)],
        env={**os.environ, "PYTHONPATH": path},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    return run.stdout.splitlines()
