"""Photographs in, objects, label maps and classes out, in the photographs' own pixels."""

import types

import numpy as np
import pytest
from PIL import Image

from keras_densepred import saved
from keras_densepred.data import ImageError
from keras_densepred.saved import tiles
from tests.saved.stand_ins import Squares, halves, opened, picture

pytestmark = pytest.mark.backend_free


def test_boxes_are_in_pixels_of_the_photograph_and_named(tmp_path):
    image = picture(96, 128, (20, 30, 60, 80), (100, 4, 110, 14))
    Image.fromarray(image).save(tmp_path / "photo.png")
    for given in (str(tmp_path / "photo.png"), tmp_path / "photo.png", image):
        found = opened(Squares()).predict(given, score=0.1)
        assert found.names == ["dog", "dog"] and len(found) == 2
        np.testing.assert_allclose(found.boxes[0], (20, 30, 60, 80), atol=2)
    drawn = np.array(found.draw())
    assert drawn.shape[1] / drawn.shape[0] == pytest.approx(128 / 96) and drawn.std(axis=2).any()
    assert len(opened(Squares()).predict(image, score=0.7)) == 1


def test_a_list_gives_a_list_in_its_order_whatever_the_shapes():
    shapes = [(40, 64), (64, 40), (64, 64), (20, 64)]
    images = [picture(h, w, (2, 3, 12 + i, 13)) for i, (h, w) in enumerate(shapes)]
    found = opened(Squares()).predict(images, score=0)
    for index, one in enumerate(found):
        assert one.image is images[index]
        np.testing.assert_allclose(one.boxes, [(2, 3, 12 + index, 13)], atol=1)
    assert opened(Squares()).predict([]) == []


def test_what_is_no_image_is_refused(tmp_path):
    with pytest.raises(ValueError, match="float64: give uint8"):
        opened(Squares()).predict(np.zeros((4, 4, 3)))
    (tmp_path / "photo.jpg").write_bytes(b"no")
    with pytest.raises(ImageError, match="photo"):
        opened(Squares()).predict(tmp_path / "photo.jpg")


def test_gray_and_alpha_are_taken():
    image = picture(64, 64, (20, 30, 60, 60))
    alpha = np.concatenate([image, image[..., :1]], axis=-1)
    for given in (image[..., 0], image[..., :1], alpha):
        found = opened(Squares()).predict(given, score=0.1)
        assert found.image.shape == (64, 64, 3)
        np.testing.assert_allclose(found.boxes, [(20, 30, 60, 60)], atol=2)


@pytest.mark.parametrize(
    ("image", "how"),
    [
        (np.zeros((8, 8, 3), "float32"), r"float32: give uint8 .*\(255 \* image\)"),
        (np.zeros((8, 8), "uint16"), r"uint16: give uint8 .*\(image / 257\)"),
        (np.zeros((2, 8, 8, 3), "uint8"), r"shape \(2, 8, 8, 3\): give"),
    ],
)
def test_other_arrays_are_told_how_to_become_images(image, how):
    with pytest.raises(ValueError, match=how):
        opened(Squares()).predict(image)


def test_supervision_gets_names_and_masks(monkeypatch):
    stand_in = types.SimpleNamespace(Detections=lambda **fields: fields)
    monkeypatch.setitem(__import__("sys").modules, "supervision", stand_in)
    found = opened(Squares(masks=True)).predict(picture(64, 64, (8, 8, 24, 24)), score=0)
    fields = found.to_supervision()
    assert fields["xyxy"] is found.boxes and fields["class_id"].tolist() == [1]
    assert fields["data"]["class_name"].tolist() == ["dog"]
    assert fields["mask"].shape == (1, 64, 64) and fields["mask"][0, 10, 10]


# === In pieces ===


def test_a_picture_that_fits_into_a_piece_is_predicted_as_a_whole():
    image = picture(60, 64, (5, 5, 20, 30), (40, 40, 60, 58))
    whole, pieces = (opened(Squares()).predict(image, score=0, tile=t) for t in (None, 64))
    np.testing.assert_array_equal(whole.boxes, pieces.boxes)
    np.testing.assert_array_equal(whole.scores, pieces.scores)


def test_objects_of_a_large_picture_are_found_once_each_and_whole():
    boxes = [(50, 10, 70, 30), (150, 100, 170, 130), (3, 140, 9, 146), (100, 60, 108, 68)]
    found = opened(Squares()).predict(picture(150, 200, *boxes), score=0, tile=64, overlap=0.5)
    assert sorted(found.boxes.tolist()) == sorted(map(list, boxes))
    assert found.scores.tolist() == sorted(found.scores.tolist(), reverse=True)
    assert found.image.shape == (150, 200, 3)


@pytest.mark.parametrize(("length", "overlap"), [(65, 0.2), (640, 0.0), (641, 0.3), (1000, 0.9)])
def test_pieces_cover_the_whole_length(length, overlap):
    begin = tiles.starts(length, 64, overlap)
    seen = np.zeros(length, bool)
    for start in begin:
        assert start + 64 <= length
        seen[start : start + 64] = True
    assert seen.all() and len(begin) == len(set(begin))


def test_pieces_are_for_boxes_alone():
    large = picture(128, 64, (5, 5, 20, 30))
    with pytest.raises(ValueError, match="finds masks"):
        opened(Squares(masks=True)).predict(large, tile=64)
    with pytest.raises(ValueError, match="no detector"):
        opened(None, "segmentation").predict(large, tile=64)
    with pytest.raises(ValueError, match="less than 1"):
        opened(Squares()).predict(large, tile=64, overlap=1.0)


# === Other tasks ===


def test_labels_of_pixels():
    found = opened(halves("segmentation"), "segmentation").predict(picture(32, 128))
    assert found.labels.shape == (32, 128)
    assert found.shares() == pytest.approx({"cat": 0.5, "dog": 0.5}, abs=0.02)
    width, height = found.draw().size  # enlarged, below a legend
    assert width % 128 == 0 and height > 32 * (width // 128)


def test_classes_of_a_photograph():
    model = opened(halves("classification"), "classification", crop_ratio=1.0)
    found = model.predict(picture(64, 80))
    assert found.name == "dog"
    assert found.best() == pytest.approx({"dog": 0.75, "cat": 0.25})


def test_results_are_told_in_a_line():
    boxes = np.float32([[1, 2, 3, 4]] * 3)
    objects = saved.Objects(
        *(np.zeros((40, 60, 3), np.uint8), boxes, np.array([1, 0, 1]), np.ones(3)),
        masks=None,
        class_names=("cat", "dog"),
    )
    assert repr(objects) == "<3 objects in 60 x 40 px: dog 2, cat 1>"
    labels = np.zeros((40, 60), np.int64)
    labels[:10] = 1
    regions = saved.LabelMap(objects.image, labels, ("cat", "dog"), None)
    assert repr(regions) == "<60 x 40 px: cat 75 %, dog 25 %>"
    assert regions.draw().height > 40  # with a legend
    scores = saved.ClassScores(objects.image, np.array([0.25, 0.75]), ("cat", "dog"))
    assert repr(scores) == "<60 x 40 px: dog 0.75, cat 0.25>"


def test_boxes_end_where_the_photograph_does():
    """Padding is wider than a thin photograph, and a box may reach into it."""

    class Whole(Squares):
        def predict_on_batch(self, images):
            found = super().predict_on_batch(images)
            found["boxes"][:, 0] = 0, 0, *images.shape[2:0:-1]
            found["labels"][:, 0], found["confidence"][:, 0] = 1, 0.9
            return found

    found = opened(Whole()).predict(picture(200, 10), score=0.5)
    np.testing.assert_allclose(found.boxes, [[0, 0, 10, 200]], atol=1e-3)
