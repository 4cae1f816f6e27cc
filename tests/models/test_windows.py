"""Windows and scales cover the image, agree with direct prediction, and keep shapes static."""

import numpy as np
import pytest

from keras_densepred.models import multi_scale, sliding_window


def pointwise(images):
    """A network that looks at single pixels: windows and mirrors must not change it."""
    return np.concatenate([images, images[..., :1] * 2], axis=-1)


class Watched:
    def __init__(self, predict):
        self.predict = predict
        self.shapes = []

    def __call__(self, images):
        self.shapes.append(images.shape)
        return self.predict(images)


def pictures(*shape):
    return np.random.default_rng(0).normal(size=(*shape, 3)).astype("float32")


@pytest.mark.backend_free
@pytest.mark.parametrize("size", [(16, 16), (17, 40), (5, 30), (64, 3), (9, 9)])
def test_windows_agree_with_the_whole(size):
    images = pictures(2, *size)
    predict = Watched(pointwise)
    found = sliding_window(predict, 16, batch_size=3)(images)
    np.testing.assert_allclose(found, pointwise(images), rtol=1e-5, atol=1e-6)
    assert set(predict.shapes) == {(3, 16, 16, 3)}, "one shape, so one compilation"


@pytest.mark.backend_free
def test_windows_are_averaged_where_they_overlap():
    numbers = iter((1.0, 3.0))

    def predict(images):
        return np.full((*images.shape[:3], 1), next(numbers), np.float32)

    found = sliding_window(predict, (4, 4), (4, 2))(np.zeros((1, 4, 6, 3), np.float32))
    assert found[0, 0, :, 0].tolist() == [1, 1, 2, 2, 3, 3]


@pytest.mark.backend_free
def test_the_last_window_ends_with_the_image():
    seen = []

    def predict(images):
        seen.append(images[0, 0, 0, 0])
        return images

    image = np.arange(10, dtype=np.float32)[None, None, :, None] * np.ones((1, 4, 1, 3), np.float32)
    sliding_window(predict, 4, 3)(image)
    assert seen == [0, 3, 6]
    seen.clear()
    sliding_window(predict, 4, 4)(image)
    assert seen == [0, 4, 6]


def test_scales_and_mirrors_of_one_size_change_nothing():
    images = pictures(1, 9, 12)
    logits = pointwise(images)
    expected = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    found = multi_scale(pointwise, (1.0,), size_multiple=8)(images)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_scales_have_their_shapes_and_probabilities():
    images = pictures(1, 10, 20)
    predict = Watched(pointwise)
    found = multi_scale(predict, (0.5, 1.5), size_multiple=8)(images)
    assert found.shape == (1, 10, 20, 4)
    np.testing.assert_allclose(found.sum(-1), 1.0, rtol=1e-5)
    assert predict.shapes == [(1, 8, 16, 3)] * 2 + [(1, 16, 32, 3)] * 2
    one = Watched(pointwise)
    multi_scale(one, (0.5,), flip=False, size_multiple=1)(images)
    assert one.shapes == [(1, 5, 10, 3)]


@pytest.mark.backend_free
def test_scales_are_padded_as_the_model_needs_it():
    class Model:
        size_divisor = 12

        def predict_on_batch(self, images):
            assert images.shape[1:3] == (12, 24)
            return pointwise(images)

    assert multi_scale(Model().predict_on_batch, (1.0,))(pictures(1, 10, 20)).shape[:3] == (
        *(1, 10, 20),
    )


def test_a_smooth_picture_is_the_same_at_all_scales():
    """Where things are must not shift with the scale."""
    ramp = np.linspace(-1, 1, 32, dtype=np.float32)
    images = np.stack(np.broadcast_arrays(ramp[:, None], ramp[None], 0 * ramp[None]), -1)[None]
    expected = multi_scale(pointwise, (1.0,), flip=False)(images)
    found = multi_scale(pointwise, (0.5, 2.0))(images)
    np.testing.assert_allclose(found[:, 2:-2, 2:-2], expected[:, 2:-2, 2:-2], atol=2e-3)


def test_a_network_that_tells_left_from_right_is_mirrored():
    def leftness(images):
        width = images.shape[2]
        column = np.linspace(2, -2, width, dtype=np.float32)
        scores = np.zeros((*images.shape[:3], 2), np.float32)
        scores[..., 0] = column
        return scores

    found = multi_scale(leftness, (1.0,), size_multiple=4)(pictures(1, 8, 8))
    np.testing.assert_allclose(found, found[:, :, ::-1], atol=1e-6)


def test_both_together():
    images = pictures(1, 20, 24)
    predict = Watched(pointwise)
    found = multi_scale(sliding_window(predict, 16, batch_size=2), (1.0, 1.5))(images)
    assert found.shape == (1, 20, 24, 4)
    assert set(predict.shapes) == {(2, 16, 16, 3)}


@pytest.mark.backend_free
@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: sliding_window(pointwise, 0), "do not cover"),
        (lambda: sliding_window(pointwise, 8, 9), "do not cover"),
        (lambda: sliding_window(pointwise, 8, 0), "do not cover"),
        (lambda: multi_scale(pointwise, ()), "`scales`"),
        (lambda: multi_scale(pointwise, (0.0, 1.0)), "`scales`"),
    ],
)
def test_bad_arguments_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def convolution(kernel):
    """A 3x3 convolution with zeros at the border of what it is given."""

    def predict(images):
        padded = np.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)))
        height, width = images.shape[1:3]
        parts = [
            padded[:, i : i + height, j : j + width] @ kernel[:, :, i, j].T
            for i in range(3)
            for j in range(3)
        ]
        return np.sum(parts, axis=0)

    return predict


@pytest.mark.backend_free
def test_windows_are_mmsegmentations(golden):
    with np.load(golden / "upernet" / "sliding_window.npz") as file:
        expected = dict(file)
    predict = Watched(convolution(expected["kernel_oihw"]))
    crop, stride = (tuple(expected[name].tolist()) for name in ("crop", "stride"))
    found = sliding_window(predict, crop, stride)(expected["image"])
    np.testing.assert_allclose(found, expected["logits"], atol=1e-4)
    assert len(predict.shapes) == 2 * 3


@pytest.mark.backend_free
@pytest.mark.parametrize("side", [500, 512, 513, 853, 854, 1024, 2048])
def test_the_published_number_of_windows(side):
    predict = Watched(lambda images: images[..., :1])
    sliding_window(predict, 512, 341, size_multiple=32)(np.zeros((1, 64, side, 3), np.float32))
    assert len(predict.shapes) == max(side - 512 + 340, 0) // 341 + 1


@pytest.mark.backend_free
def test_a_small_image_is_padded_no_further_than_the_backbone_asks_for():
    predict = Watched(pointwise)
    images = pictures(1, 20, 70)
    found = sliding_window(predict, 64, 43, size_multiple=16)(images)
    np.testing.assert_allclose(found, pointwise(images), rtol=1e-5, atol=1e-6)
    assert set(predict.shapes) == {(1, 32, 64, 3)}
    with pytest.raises(ValueError, match="`size_multiple`"):
        sliding_window(predict, 64, 43, size_multiple=0)
