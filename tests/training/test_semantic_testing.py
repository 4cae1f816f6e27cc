"""Testing under two limits: MMSegmentation's windows and probabilities, scales, mirrors, counts."""

import numpy as np
import pytest

from keras_densepred import data
from keras_densepred.training.tasks import semantic_testing
from keras_densepred.training.tasks.semantic_testing import LimitedTest, count_under_limits

pytestmark = pytest.mark.backend_free


def softmax(x):
    return np.exp(x) / np.exp(x).sum(-1, keepdims=True)


def test_probabilities_come_back_to_the_images_own_size_as_published(golden, monkeypatch):
    with np.load(golden / "upernet" / "sliding_window.npz") as file:
        expected = dict(file)
    height, width = expected["original_size"].tolist()
    logits = expected["logits"]

    def predict(images):
        assert images.shape == (1, 70, 150, 3)
        return logits

    # The published logits are of a picture of another shape than its original.
    test = LimitedTest(predict, None, None, short=70, window=None, size_multiple=1)
    monkeypatch.setattr(semantic_testing, "size_under_limits", lambda size, short, long: (70, 150))
    found = test.probabilities(np.zeros((height, width, 3), np.uint8))
    # OpenCV's fractions of pixels are those of float32.
    np.testing.assert_allclose(found[None, ::3, ::3], expected["probabilities_original"], atol=5e-4)


def leftness(images):
    """Scores that tell left from right."""
    scores = np.zeros((*images.shape[:3], 2), np.float32)
    scores[..., 0] = np.linspace(2, -2, images.shape[2], dtype=np.float32)
    return scores


def test_scales_and_mirrors_are_averaged_as_probabilities():
    image = np.zeros((16, 24, 3), np.uint8)
    shapes = []

    def predict(images):
        shapes.append(images.shape[1:3])
        return leftness(images)

    both = LimitedTest(predict, None, None, 16, None, (0.5, 1.0), True, 8)
    found = both.probabilities(image)
    assert found.shape == (16, 24, 2)
    np.testing.assert_allclose(found, found[:, ::-1], atol=1e-6)
    np.testing.assert_allclose(found.sum(-1), 1, rtol=1e-6)
    assert shapes == [(8, 16)] * 2 + [(16, 24)] * 2, "8 x 12 and 16 x 24, padded to 8"
    one = LimitedTest(leftness, None, None, 16, None, size_multiple=8).probabilities(image)
    np.testing.assert_allclose(one, softmax(leftness(image[None]))[0], rtol=1e-5)


def test_images_are_normalised():
    seen = []

    def predict(images):
        seen.append(images)
        return leftness(images)

    test = LimitedTest(predict, (10.0, 20.0, 30.0), (2.0, 4.0, 5.0), 8, 8, size_multiple=8)
    test.probabilities(np.full((8, 8, 3), 40, np.uint8))
    np.testing.assert_allclose(seen[0][0, 0, 0], (15.0, 5.0, 2.0))


class Pictures:
    """Two pictures of unlike size; the class is where the pixel is bright."""

    class_names = ("dark", "bright")
    sizes = ((20, 40), (33, 17))

    def __len__(self):
        return 2

    def __getitem__(self, index):
        semantic = np.zeros(self.sizes[index], np.uint8)
        semantic[:, self.sizes[index][1] // 2 :] = 1
        image = np.repeat(semantic[..., None] * 255, 3, axis=-1)
        semantic[0] = 255
        return data.Record(
            image=image,
            boxes=np.zeros((0, 4), np.float32),
            labels=np.zeros(0, np.int32),
            crowd=np.zeros(0, bool),
            image_id=index,
            file_name=f"{index}.png",
            semantic=semantic,
        )


def test_every_pixel_is_counted_at_its_own_size():
    def predict(images):
        return np.stack([127.0 - images[..., 0], images[..., 0] - 127.0], axis=-1) / 50

    test = LimitedTest(predict, None, None, 32, 32, size_multiple=8, rows=2)
    done = []
    results = count_under_limits(test, Pictures(), done.append).results(Pictures.class_names)
    assert done == [1, 2]
    assert results["pixel_accuracy"] > 0.97 and results["mIoU"] > 0.95
    counts = count_under_limits(test, Pictures())
    assert counts.confusion.sum() == 19 * 40 + 32 * 17

    def broken(images):
        return np.full((*images.shape[:3], 2), np.nan, np.float32)

    with pytest.raises(ValueError, match=r"The scores of 0\.png are not finite"):
        count_under_limits(LimitedTest(broken, None, None, 32, 32), Pictures())
