"""A tiny data set and backbone for the tests of detection recipes, and a way to kill them.

`python recipe_toy.py RECIPE KILL_AFTER FLAG ...` runs a recipe and SIGKILLs it after so many
batches (0: never).
"""

import os
import pathlib
import signal
import sys

from keras_densepred import CEDNetBackbone, training
from keras_densepred.data import ShapesDataset, shapes_export


class Split:
    """A data set of which only the number of images is asked."""

    class_names = ("cat",)

    def __init__(self, images):
        self.images = images

    def __len__(self):
        return self.images


def make(directory):
    """Writes 12 + 5 pictures as a COCO tree and a small backbone; returns the recipe's flags."""
    root = pathlib.Path(directory)
    for count, split in ((12, "train"), (5, "val")):
        shapes_export.write_coco(ShapesDataset(count, 64, 0, split), root / "data")
    backbone = CEDNetBackbone(
        p2_width=8, p2_depth=1, widths=(8, 8, 8), depths=(1, 1, 1), num_stages=1, stem_width=8
    )
    backbone.save_to_preset(str(root / "backbone"))
    flags = "--image-size 64 --batch-size 4 --epochs 2 --steps-per-epoch 3 --evaluate-every 1"
    return [
        *flags.split(),
        *("--data-dir", str(root / "data"), "--weights", str(root / "backbone")),
    ]


RETINANET = ["--width", "8", "--head-depth", "1", "--drop-path", "0.5"]
YOLO = ["--head", "efm", "--loss", "mse", "--mosaic"]


def kill_after(recipe, batches):
    """Makes the recipe's progress kill the process after so many batches."""

    class KillingProgress(training.Progress):
        left = batches

        def on_train_batch_end(self, batch, logs=None):
            self.left -= 1
            if self.left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    recipe.training.Progress = recipe.training.detection.Progress = KillingProgress


if __name__ == "__main__":
    from recipes import coco_retinanet, coco_yolo

    recipe = {"coco_retinanet": coco_retinanet, "coco_yolo": coco_yolo}[sys.argv[1]]
    kill_after(recipe, int(sys.argv[2]))
    recipe.main(sys.argv[3:])
