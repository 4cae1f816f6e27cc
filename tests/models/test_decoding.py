"""The decoder layer: formats, arguments, serialisation, traced and with an open number of boxes."""

import keras
import numpy as np
import pytest

from keras_densepred.models import NonMaxSuppression
from keras_densepred.models.anchors import anchor_boxes
from keras_densepred.ops.boxes import decode_boxes
from tests.weights import compiled

BOXES = np.array(
    [[[10, 20, 30, 60], [11, 21, 31, 61], [40, 5, 60, 25], [10, 20, 30, 60]]], "float32"
)
LOGITS = np.array([[[2.0, -9], [1.0, -9], [-9, 0.0], [-9, 3.0]]], "float32")


def detections(decoder, *arrays, **options):
    found = compiled(lambda *arrays: decoder(*arrays, **options))(*arrays)
    return {key: keras.ops.convert_to_numpy(value) for key, value in found.items()}


@pytest.mark.parametrize("box_format", ["xyxy", "center_xywh", "rel_xyxy"])
def test_boxes_come_back_in_their_format(box_format):
    boxes = keras.utils.bounding_boxes.convert_format(BOXES, "xyxy", box_format, 64, 128)
    decoder = NonMaxSuppression(box_format, max_detections=5)
    found = detections(decoder, boxes, LOGITS, image_shape=(64, 128, 3))
    assert found["num_detections"].tolist() == [3]
    assert found["labels"].tolist() == [[1, 0, 1, -1, -1]]
    np.testing.assert_allclose(
        found["boxes"][0, :3], keras.ops.convert_to_numpy(boxes)[0, [3, 0, 2]], atol=1e-3
    )
    assert (found["boxes"][0, 3:] == -1).all()
    np.testing.assert_allclose(
        found["confidence"][0], [0.95257413, 0.8807971, 0.5, -1, -1], rtol=1e-5
    )


def test_relative_boxes_need_the_image_size():
    with pytest.raises(ValueError, match="image size"):
        NonMaxSuppression("rel_xyxy")(BOXES, LOGITS)


def test_probabilities_and_the_key_of_keras_cv():
    decoder = NonMaxSuppression("xyxy", from_logits=False, label_key="classes", max_detections=4)
    found = detections(decoder, BOXES, 1 / (1 + np.exp(-LOGITS)))
    assert "labels" not in found
    assert found["classes"].tolist() == [[1, 0, 1, -1]]


def test_float32_whatever_the_policy():
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        decoder = NonMaxSuppression("xyxy", max_detections=3)
        boxes = BOXES + 1001.0
        found = detections(decoder, keras.ops.convert_to_tensor(boxes), LOGITS)
    finally:
        keras.config.set_dtype_policy("float32")
    np.testing.assert_array_equal(found["boxes"][0], boxes[0, [3, 0, 2]])


def test_traced_with_an_open_number_of_boxes_and_reloaded(tmp_path):
    boxes, logits = keras.Input((None, 4)), keras.Input((None, 2))
    decoder = NonMaxSuppression(
        "xyxy", True, iou_threshold=0.6, confidence_threshold=0.1, max_detections=7, pre_nms_top_k=9
    )
    model = keras.Model([boxes, logits], decoder(boxes, logits))
    assert model.output["boxes"].shape == (None, 7, 4)
    expected = detections(decoder, BOXES, LOGITS)
    model.save(tmp_path / "decoder.keras")
    reloaded = keras.models.load_model(tmp_path / "decoder.keras")
    assert reloaded.layers[-1].get_config() == decoder.get_config()
    for candidate in (model, reloaded):
        found = candidate.predict_on_batch([BOXES, LOGITS])
        for key, value in expected.items():
            np.testing.assert_allclose(found[key], value, rtol=1e-6)


def test_deltas_are_decoded_from_anchors():
    rng = np.random.default_rng(0)
    anchors = anchor_boxes(64, 96, range(3, 5))
    deltas = rng.normal(0, 0.3, (2, len(anchors), 4)).astype("float32")
    logits = rng.normal(-3, 2, (2, len(anchors), 3)).astype("float32")
    decoder = NonMaxSuppression("rel_xyxy", max_detections=30, pre_nms_top_k=200)
    boxes = keras.utils.bounding_boxes.convert_format(
        decode_boxes(anchors, keras.ops.convert_to_tensor(deltas), 64, 96),
        "xyxy",
        "rel_xyxy",
        height=64,
        width=96,
    )
    expected = detections(decoder, boxes, logits, image_shape=(64, 96, 3))
    images = np.zeros((2, 64, 96, 3))
    found = detections(decoder, deltas, logits, images=images, anchors=anchors)
    assert expected["num_detections"].min() > 5
    for key, value in expected.items():
        np.testing.assert_allclose(found[key], value, rtol=1e-5, atol=1e-4)


def test_anchors_need_the_image_size():
    with pytest.raises(ValueError, match=r"decoded from `anchors` need the image size"):
        NonMaxSuppression("xyxy")(BOXES, LOGITS, anchors=BOXES[0])


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("label_key", "class"),
        ("iou_threshold", 1.5),
        ("confidence_threshold", -0.1),
        ("max_detections", 0),
        ("pre_nms_top_k", 0),
    ],
)
def test_wrong_arguments_are_named(argument, value):
    with pytest.raises(ValueError, match=argument):
        NonMaxSuppression("xyxy", **{argument: value})
