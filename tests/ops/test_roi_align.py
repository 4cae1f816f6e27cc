"""RoIAlign and mask pasting against plain NumPy, values and gradients."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_densepred.ops.box_masks import crop_masks, paste_masks
from keras_densepred.ops.roi_align import assign_levels, roi_align
from keras_densepred.ops.weighted_gather import weighted_gather
from tests.weights import compiled, value_and_gradients

STRIDES = (4, 8)


def sample(feature, y, x):
    """Bilinear value of a map (H, W, C) and the (row, column, weight) of the four cells."""
    height, width, _ = feature.shape
    if y < -1 or y > height or x < -1 or x > width:
        return np.zeros(feature.shape[-1]), []
    y, x = np.clip(y, 0, height - 1), np.clip(x, 0, width - 1)
    top, left = int(y), int(x)
    taps = []
    for row, wy in ((top, 1 - (y - top)), (min(top + 1, height - 1), y - top)):
        for column, wx in ((left, 1 - (x - left)), (min(left + 1, width - 1), x - left)):
            taps.append((row, column, wy * wx))
    return sum(w * feature[r, c] for r, c, w in taps), taps


def reference(features, boxes, size, samples, aligned, upstream):
    """Outputs, and the gradient of `sum(outputs * upstream)` for each map."""
    batch, num = boxes.shape[:2]
    outputs = np.zeros((batch, num, size, size, features[0].shape[-1]))
    gradients = [np.zeros(f.shape) for f in features]
    for b in range(batch):
        for n, (x1, y1, x2, y2) in enumerate(boxes[b]):
            scale = np.sqrt(max(x2 - x1, 0) * max(y2 - y1, 0))
            level = int(np.floor(4 + np.log2(max(scale, 1e-9) / 224)))
            level = int(np.clip(level - 2, 0, len(features) - 1))
            shift = 0.5 if aligned else 0.0
            left, top = x1 / STRIDES[level] - shift, y1 / STRIDES[level] - shift
            width, height = (x2 - x1) / STRIDES[level], (y2 - y1) / STRIDES[level]
            if not aligned:
                width, height = max(width, 1), max(height, 1)
            for i in range(size):
                for j in range(size):
                    for s in range(samples):
                        for t in range(samples):
                            y = top + (i + (s + 0.5) / samples) * height / size
                            x = left + (j + (t + 0.5) / samples) * width / size
                            value, taps = sample(features[level][b], y, x)
                            outputs[b, n, i, j] += value / samples**2
                            for row, column, weight in taps:
                                gradients[level][b, row, column] += (
                                    weight / samples**2 * upstream[b, n, i, j]
                                )
    return outputs, gradients


def example():
    rng = np.random.default_rng(0)
    features = [rng.normal(size=(2, h, w, 3)).astype("float32") for h, w in ((12, 15), (6, 8))]
    corner, side = rng.uniform(-10, 50, (2, 6, 2)), rng.uniform(0, 30, (2, 6, 2))
    boxes = np.concatenate([corner, corner + side], axis=-1).astype("float32")
    boxes[0, 0] = (-30, -20, 120, 130)  # above the border between the levels, larger than the image
    boxes[0, 1] = (10, 10, 10, 10)
    boxes[1, 0] = -1  # padding
    boxes[1, 1] = (3, 3, 4, 4)  # one pixel
    return features, boxes


@pytest.mark.parametrize("size,samples,aligned", [(3, 2, True), (2, 1, False)])
def test_values_and_gradients(size, samples, aligned):
    features, boxes = example()
    upstream = np.random.default_rng(1).normal(size=(2, 6, size, size, 3)).astype("float32")
    expected, expected_gradients = reference(features, boxes, size, samples, aligned, upstream)

    def pool(first, second):
        return roi_align((first, second), boxes, STRIDES, size, samples, aligned)

    outputs, gradients = value_and_gradients(pool, features, upstream)
    np.testing.assert_allclose(outputs, expected, atol=1e-5)
    for gradient, theirs in zip(gradients, expected_gradients, strict=True):
        np.testing.assert_allclose(gradient, theirs, atol=1e-5)


def test_half_precision_sums_in_float32():
    features, boxes = example()
    pool = compiled(lambda *maps: roi_align(maps, boxes, STRIDES))
    outputs = pool(*(ops.cast(f, "bfloat16") for f in features))
    assert keras.backend.standardize_dtype(outputs.dtype) == "bfloat16"
    expected = pool(*map(ops.convert_to_tensor, features))
    difference = ops.convert_to_numpy(ops.cast(outputs, "float32") - expected)
    assert np.abs(difference).max() < 0.03


def test_compiled_with_open_sizes_it_gives_the_same():
    features, boxes = example()
    expected = ops.convert_to_numpy(roi_align(features, boxes, STRIDES, 3))
    call = lambda first, second, rows: roi_align((first, second), rows, STRIDES, 3)  # noqa: E731
    if keras.config.backend() == "jax":
        import jax

        # As users compile it: the older code generator of the tests rounds places otherwise.
        call = jax.jit(call, compiler_options={"xla_cpu_use_fusion_emitters": True})
    elif keras.config.backend() == "tensorflow":
        import tensorflow as tf

        maps = [tf.TensorSpec((None, None, None, 3))] * 2
        call = tf.function(call, input_signature=[*maps, tf.TensorSpec((None, None, 4))])
    outputs = call(*(ops.convert_to_tensor(x) for x in (*features, boxes)))
    np.testing.assert_allclose(ops.convert_to_numpy(outputs), expected, atol=1e-6)


def test_levels_change_at_224_px():
    sides = np.array([0.0, 111, 112, 223, 224, 447, 448, 2000], "float32")
    boxes = np.stack([0 * sides, 0 * sides, sides, sides], axis=-1)
    levels = ops.convert_to_numpy(assign_levels(boxes, (4, 8, 16, 32)))
    assert levels.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]


def test_weighted_gather_takes_a_row_twice():
    table = np.arange(6, dtype="float32").reshape(3, 2)
    outputs = weighted_gather(
        ops.convert_to_tensor(table),
        ops.convert_to_tensor([[0, 2, 2]], "int32"),
        ops.convert_to_tensor([[1.0, 0.5, 0.25]]),
    )
    assert ops.convert_to_numpy(outputs).tolist() == [[3.0, 4.75]]


def test_bad_arguments_are_named():
    features, boxes = example()
    with pytest.raises(ValueError, match="2 maps and 1 strides"):
        roi_align(features, boxes, (4,))
    with pytest.raises(ValueError, match="equally many channels, got 3, 2"):
        roi_align([features[0], features[1][..., :2]], boxes, STRIDES)
    with pytest.raises(ValueError, match="must be positive, got 7 and 0"):
        roi_align(features, boxes, STRIDES, sampling_ratio=0)


def test_pasted_masks_lie_in_their_boxes():
    masks = np.zeros((1, 3, 4, 4), "float32")
    masks[:, :, :, 2:] = 1.0  # the right half
    boxes = np.array([[[2, 3, 10, 7], [-4, 0, 4, 4], [5, 5, 5, 5]]], "float32")
    paste = compiled(paste_masks, "height", "width")
    canvas = ops.convert_to_numpy(paste(masks, boxes, height=8, width=12))
    assert canvas.shape == (1, 3, 8, 12)
    expected = np.zeros((3, 8, 12), bool)
    expected[0, 3:7, 6:10] = True
    expected[1, 0:4, 0:4] = True
    assert np.array_equal(canvas[0] > 0.5, expected)
    assert not canvas[0, 2].any()


def test_a_mask_cut_anew_lies_where_the_region_does():
    masks = np.zeros((3, 8, 8), "float32")
    masks[:, :, 4:] = 1.0  # the right half
    boxes = np.array([[0, 0, 16, 16], [0, 0, 16, 16], [4, 4, 4, 4]], "float32")
    regions = np.array([[0, 0, 16, 16], [4, 0, 20, 8], [0, 0, 8, 8]], "float32")
    cut = ops.convert_to_numpy(compiled(crop_masks, "size")(masks, boxes, regions, size=4)) >= 0.5
    expected = np.zeros((3, 4, 4), bool)
    expected[0, :, 2:] = True
    expected[1, :, 1:3] = True  # beyond 16 px there is no object
    assert np.array_equal(cut, expected)
