"""What training batches do to pixels: bytes and padding, boxes and masks that stay on objects."""

import numpy as np
import pytest

from keras_densepred import data
from keras_densepred.data.boxes import cut_by_boxes
from tests.data.pictures import NORMAL, Pictures, take, train

pytestmark = pytest.mark.backend_free


def bytes_of(dataset, **arguments):
    arguments = {"batch_size": 4, "image_size": 64, "seed": 0, **arguments}
    return data.train_batches(dataset, mean=None, std=None, **arguments)


def test_without_mean_and_std_images_stay_bytes():
    dataset = data.ShapesDataset(9, 64)
    recipe = data.coco_augmentation(96)
    with (
        bytes_of(dataset, image_size=96, augment=recipe) as stream,
        train(dataset, image_size=96, augment=recipe) as normalized,
    ):
        for ours, theirs in zip(take(stream, 3), take(normalized, 3), strict=True):
            assert ours["images"].dtype == np.uint8
            expected = (ours["images"] - np.float32(NORMAL["mean"])) / np.float32(NORMAL["std"])
            np.testing.assert_allclose(theirs["images"], expected, rtol=1e-5, atol=1e-6)
            for key in ("boxes", "labels"):
                np.testing.assert_array_equal(ours[key], theirs[key])


def test_bytes_are_padded_with_the_mean_colour():
    with bytes_of(Pictures([(20, 40)] * 4), image_size=80) as stream:
        images = next(stream)["images"]
    assert (images[:, :40] < 4).all()
    assert (images[:, 40:] == data.augment.objects.PAD_COLOR).all()


def test_mean_and_std_come_together():
    with pytest.raises(ValueError, match="both `mean` and `std`"):
        data.train_batches(
            Pictures([(9, 9)]), batch_size=1, image_size=9, seed=0, mean=(0.0,) * 3, std=None
        )


class Bars:
    """Gray pictures with two white bars, each with its box."""

    class_names = ("bar",)
    max_objects = 2
    image_ids = tuple(range(6))

    def __len__(self):
        return len(self.image_ids)

    def __getitem__(self, index):
        boxes = np.array([[8 + index, 5, 25, 17], [40, 20 + index, 60, 44]], np.float32)
        image = np.full((48, 64, 3), 60, np.uint8)
        for x1, y1, x2, y2 in boxes.astype(int):
            image[y1:y2, x1:x2] = 255
        labels = np.zeros(2, np.int32)
        return data.Record(image, boxes, labels, labels != 0, index, f"{index}.png")


@pytest.mark.parametrize("paste", [0.0, 1.0])
def test_boxes_stay_on_their_objects_through_the_recipe(paste):
    steps = data.coco_augmentation(128, copy_paste=False)
    # Without context, which would bring in parts of other objects.
    paste = data.RectangleCopyPaste(probability=paste, context=0)
    recipe = [*steps, data.PadToSize(128), paste]
    white_inside = []
    with bytes_of(Bars(), batch_size=6, image_size=128, augment=recipe) as stream:
        batches = take(stream, 20)
    images = np.concatenate([batch["images"] for batch in batches])
    for image, boxes in zip(images, np.concatenate([b["boxes"] for b in batches]), strict=True):
        white = image[..., 0] > 190
        outside = white.copy()
        for box in boxes[boxes[:, 0] >= 0]:
            x1, y1 = np.maximum(np.floor(box[:2]).astype(int) - 1, 0)
            x2, y2 = np.ceil(box[2:]).astype(int) + 1
            outside[y1:y2, x1:x2] = False
            # Edges are blurred by an enlargement and moved a little by a reduction.
            margin = (box[2:] - box[:2]) * 0.15 + 2
            left, top = np.ceil(box[:2] + margin).astype(int)
            right, bottom = np.floor(box[2:] - margin).astype(int)
            if right > left and bottom > top:
                white_inside.append(white[top:bottom, left:right].mean())
        assert not outside.any()
    assert len(white_inside) > 50
    # A pasted rectangle may bring a dark edge into an object that it covers in part.
    assert np.mean(white_inside) > 0.98 if paste else min(white_inside) == 1.0


def test_a_transform_of_ones_own_gets_an_array_and_may_be_anywhere():
    seen = []

    class Darker(data.RandomFlip):
        def __call__(self, record, rng):
            seen.append(type(record.image))
            return record.replace(image=record.image // 2)

    steps = data.coco_augmentation(64)
    for place in range(len(steps) + 1):
        recipe = [*steps[:place], Darker(), *steps[place:]]
        with bytes_of(data.ShapesDataset(6, 64), augment=recipe) as stream:
            stream.batch(0)
            darker = stream.batch(1)["images"]
        assert darker.max() <= 128
    assert set(seen) == {np.ndarray}


def test_masks_are_pasted_along_their_outline_in_the_pipeline():
    dataset = data.ShapesDataset(8, 64, with_masks=True)
    steps = data.coco_augmentation(64, scale_range=(1.0, 2.0), copy_paste=False)
    with (
        bytes_of(dataset, augment=[*steps, data.MaskCopyPaste(1.0)]) as stream,
        bytes_of(dataset, augment=steps) as alone,
    ):
        mixed, plain = next(stream), next(alone)
    assert (mixed["labels"] >= 0).sum() > (plain["labels"] >= 0).sum()
    assert (mixed["images"] != plain["images"]).any()


def test_masks_are_cut_out_by_their_boxes():
    dataset = data.ShapesDataset(4, 64, with_masks=True)
    with train(dataset, image_size=64, mask_size=8) as stream:
        batch = next(stream)
    assert batch["masks"].shape == (*batch["labels"].shape, 8, 8)
    assert batch["masks"].dtype == np.uint8 and batch["masks"].max() == 1
    used = batch["labels"] >= 0
    assert batch["masks"][used].any(axis=(1, 2)).all() and not batch["masks"][~used].any()
    message = "has no instance masks: open the data set with"
    with (
        train(data.ShapesDataset(4, 64), image_size=64, mask_size=8) as stream,
        pytest.raises(ValueError, match=message),
    ):
        next(stream)
    with pytest.raises(ValueError, match="`mask_size` must be positive"):
        train(dataset, mask_size=0)


def test_a_cut_mask_is_the_masks_part_in_its_box():
    mask = np.zeros((1, 6, 8), bool)
    mask[0, 2:4, 2:6] = True
    assert cut_by_boxes(mask, np.array([[2, 2, 6, 4]]), 4).all()
    assert np.array_equal(cut_by_boxes(mask, np.array([[0, 0, 8, 6]]), 8)[0, 3], mask[0, 2])
    assert cut_by_boxes(mask, np.array([[5.9, 3.9, 6, 4]]), 3).all()
