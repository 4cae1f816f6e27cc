"""A tiny data set and backbone for the tests of the VOC recipe, and a way to kill it.

`python segmentation_toy.py KILL_AFTER FLAG ...` runs the recipe and SIGKILLs it after so many
batches (0: never).
"""

import pathlib
import sys

from PIL import Image

from keras_densepred import CEDNetBackbone
from keras_densepred.data import ShapesSegmentation
from tests.recipes.recipe_toy import kill_after


def make(directory):
    """Writes 6 + 5 pictures in VOC's layout and a small backbone; returns the recipe's flags."""
    root = pathlib.Path(directory)
    voc = root / "data"
    lists = voc / "ImageSets" / "Segmentation"
    for folder in (voc / "JPEGImages", voc / "SegmentationClass", lists):
        folder.mkdir(parents=True)
    for split, count in (("train", 6), ("val", 5)):
        names = [f"{split}{index}" for index in range(count)]
        for name, record in zip(names, ShapesSegmentation(count, (48, 64), 0, split), strict=True):
            Image.fromarray(record.image).save(voc / "JPEGImages" / f"{name}.png")
            Image.fromarray(record.semantic).save(voc / "SegmentationClass" / f"{name}.png")
        (lists / f"{split}.txt").write_text("\n".join(names))
    (voc / "classes.txt").write_text("\n".join(ShapesSegmentation.class_names))
    backbone = CEDNetBackbone(
        p2_width=8, p2_depth=1, widths=(8, 8, 8), depths=(1, 1, 1), num_stages=1, stem_width=8
    )
    backbone.save_to_preset(str(root / "weights" / "backbone"))
    flags = "--image-size 64 --batch-size 4 --steps 6 --steps-per-epoch 3 --width 8"
    return [
        *flags.split(),
        *("--drop-path", "0.5", "--evaluate-every", "1", "--photometric"),
        *("--data-dir", str(voc), "--weights", str(root / "weights")),
    ]


if __name__ == "__main__":
    from recipes import voc_deeplab_v3

    kill_after(voc_deeplab_v3, int(sys.argv[1]))
    voc_deeplab_v3.main(sys.argv[2:])
