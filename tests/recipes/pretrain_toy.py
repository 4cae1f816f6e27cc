"""A tiny data set and backbone for the tests of the ImageNet recipe, and a way to kill it.

`python pretrain_toy.py KILL_AFTER FLAG ...` runs the recipe and SIGKILLs it after so many batches
(0: never).
"""

import pathlib
import sys

import numpy as np
from PIL import Image

from keras_densepred import CEDNetBackbone
from tests.recipes.recipe_toy import kill_after

CLASSES = ("blue", "red")


def make(directory):
    """Writes 10 + 5 pictures in class folders and a small backbone; returns the recipe's flags."""
    root = pathlib.Path(directory)
    rng = np.random.default_rng(0)
    for split, count in (("train", 10), ("val", 5)):
        for index in range(count):
            label = index % 2
            folder = root / "data" / split / CLASSES[label]
            folder.mkdir(parents=True, exist_ok=True)
            picture = rng.integers(0, 120, (40, 48, 3)).astype(np.uint8)
            picture[..., 0 if label else 2] += 100
            Image.fromarray(picture).save(folder / f"{index}.png")
    backbone = CEDNetBackbone(
        p2_width=8, p2_depth=1, widths=(8, 8, 8), depths=(1, 1, 1), num_stages=1, stem_width=8
    )
    backbone.save_to_preset(str(root / "backbone"))
    flags = "--image-size 32 --batch-size 4 --epochs 2 --steps-per-epoch 3 --evaluate-every 1"
    return [
        *flags.split(),
        *("--mixup", "0.8", "--erasing", "0.25", "--rand-augment", "--drop-path", "0.5"),
        *("--data-dir", str(root / "data"), "--preset", str(root / "backbone")),
    ]


if __name__ == "__main__":
    from recipes import imagenet_pretrain

    kill_after(imagenet_pretrain, int(sys.argv[1]))
    imagenet_pretrain.main(sys.argv[2:])
