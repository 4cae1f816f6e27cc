"""Small class folders and labelled pictures that tell which they are."""

import numpy as np
from PIL import Image

from keras_densepred import data


def write_image(path, color=(200, 60, 20), size=(24, 32), **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((*size, 3), color, np.uint8)).save(path, **options)


def write_split(folder, classes=("cat", "dog"), count=3):
    """`count` images a class, gray by their number, JPEG and PNG in turn."""
    for label, name in enumerate(classes):
        for number in range(count):
            suffix = ("jpg", "png")[number % 2]
            write_image(folder / name / f"{number}.{suffix}", color=(40 * label + number,) * 3)
    return folder


class Labelled:
    """Pictures of one colour, that of their index, in three classes; some broken."""

    class_names = ("a", "b", "c")

    def __init__(self, count, size=(32, 32), bad=()):
        self.count, self.size, self.bad = count, size, bad

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        if index in self.bad:
            raise data.ImageError(f"picture_{index}.png is broken.")
        image = np.full((*self.size, 3), index, np.uint8)
        return data.LabelledImage(image, index % 3, index, f"picture_{index}.png")


def train(dataset, batch_size=4, image_size=32, seed=0, **arguments):
    arguments = {"augment": [], "mean": None, "std": None, **arguments}
    return data.train_class_batches(
        dataset, batch_size=batch_size, image_size=image_size, seed=seed, **arguments
    )


def evaluate(dataset, batch_size=4, image_size=32, **arguments):
    arguments = {"mean": None, "std": None, **arguments}
    return data.eval_class_batches(
        dataset, batch_size=batch_size, image_size=image_size, **arguments
    )


def indices_in(batch):
    """Which `Labelled` a batch of bytes holds, from their colours."""
    return batch["images"][:, 0, 0, 0].tolist()
