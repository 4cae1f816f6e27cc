"""Small trees of images and masks."""

import numpy as np
from PIL import Image

from keras_densepred import data

LABELS = np.array([[0, 1, 2], [255, 2, 1]], np.uint8)
COLOURS = [value for number in range(256) for value in (number, 255 - number, 7)]


def write_image(path, size=(2, 3), **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((*size, 3), 90, np.uint8)).save(path, **options)


def write_mask(path, labels=LABELS, palette=True):
    path.parent.mkdir(parents=True, exist_ok=True)
    mask = Image.fromarray(labels)
    if palette:
        mask.putpalette(COLOURS)
    mask.save(path)


def write_voc(root, splits, masks="SegmentationClass"):
    """A tree in VOC's layout, `{"train": ["a", "b"]}`."""
    for split, names in splits.items():
        for name in names:
            write_image(root / "JPEGImages" / f"{name}.jpg")
            write_mask(root / masks / f"{name}.png")
        write_list(root, split, "".join(f"{name}\n" for name in names))


def write_list(root, split, text):
    path = root / "ImageSets" / "Segmentation" / f"{split}.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


class Masked:
    """Pictures whose gray value is their index, with a mask of their index; some broken."""

    class_names = tuple(f"class_{label}" for label in range(60))

    def __init__(self, sizes, bad=()):
        self.sizes = sizes
        self.bad = bad

    def __len__(self):
        return len(self.sizes)

    def __getitem__(self, index):
        if index in self.bad:
            raise data.ImageError(f"picture_{index}.png is broken.")
        height, width = self.sizes[index]
        semantic = np.full((height, width), index, np.uint8)
        semantic[0, 0] = data.IGNORE_LABEL
        return data.Record(
            image=np.full((height, width, 3), index, np.uint8),
            boxes=np.array([[0, 0, 1, 1]], np.float32),
            labels=np.zeros(1, np.int32),
            crowd=np.zeros(1, bool),
            image_id=index,
            file_name=f"picture_{index}.png",
            semantic=semantic,
        )
