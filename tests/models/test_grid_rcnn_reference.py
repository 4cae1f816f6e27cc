"""Grid R-CNN's head, targets and boxes against MMDetection's (`tests/golden/points`).

Of the traps of its definition these numbers catch: points counted row by row, messages in another
order, the second round added to the first one's maps, norms of other groups or epsilon, transposed
convolutions a pixel off, windows of rows for columns, half a cell, clipping at the image's size.
"""

from pathlib import Path

import keras
import numpy as np
import pytest
from keras import ops

from keras_densepred.models.rcnn import grid
from keras_densepred.models.rcnn.grid_head import GRID_SIZE, GridHead, neighbours
from tests.weights import compiled

GOLDEN = Path(__file__).parents[1] / "golden" / "points" / "grid_head.npz"
CASES = ("a", "b")
# Shares of an array's largest value, by the number of convolutions. With two (case a) the input of
# one ReLU is 2e-7, which float32 rounds to either side of 0: 9e-3 on PyTorch, else below 1e-3.
GRADIENTS = {1: 1e-3, 2: 1e-2}


@pytest.fixture(scope="module", params=CASES)
def case(request):
    """The arrays of a case, and a head with its weights."""
    with np.load(GOLDEN) as file:
        data = {
            name.removeprefix(f"{request.param}/"): file[name]
            for name in file.files
            if name.startswith(f"{request.param}/")
        }
    convs, groups, width = (int(value) for value in data["params"])
    head = GridHead(convs, width, groups, name="grid_head")
    head.build((None, GRID_SIZE, GRID_SIZE, data["x"].shape[1]))
    values = ours(data, "w", convs)
    assert {key_of(weight) for weight in head.weights} == values.keys()
    for weight in head.weights:
        weight.assign(values[key_of(weight)])
    return data, head


def key_of(weight):
    return "/".join(weight.path.split("/")[-3:]).removeprefix("grid_head/")


def ours(data, kind, convs):
    """The arrays `kind` of the reference ("w": weights, "g": gradients) under our names."""
    found = {}
    for i in range(convs):
        prefix = f"{kind}/convs.{i}"
        found[f"conv{i + 1}/kernel"] = data[f"{prefix}.conv.weight"].transpose(2, 3, 1, 0)
        found[f"conv{i + 1}/bias"] = data[f"{prefix}.conv.bias"]
        found[f"norm{i + 1}/gamma"] = data[f"{prefix}.gn.weight"]
        found[f"norm{i + 1}/beta"] = data[f"{prefix}.gn.bias"]
    pairs = [(point, n) for point in range(9) for n in range(len(neighbours(point)))]
    for name, theirs in (("first_order", "forder_trans"), ("second_order", "sorder_trans")):

        def joined(part, theirs=theirs):
            return np.stack([data[f"{kind}/{theirs}.{q}.{n}.{part}"] for q, n in pairs])

        depthwise = joined("0.weight")  # (24, C, 1, 5, 5)
        found[f"{name}/spatial/kernel"] = depthwise.reshape(-1, 5, 5).transpose(1, 2, 0)[..., None]
        found[f"{name}/spatial/bias"] = joined("0.bias").reshape(-1)
        found[f"{name}/kernel"] = joined("1.weight")[..., 0, 0].transpose(0, 2, 1)
        found[f"{name}/bias"] = joined("1.bias")
    for name, theirs in (("doubling1", "deconv1"), ("doubling2", "deconv2")):
        kernel = data[f"{kind}/{theirs}.weight"]  # (in, out / 9, 4, 4)
        kernel = kernel.reshape(9, -1, *kernel.shape[1:])
        found[f"{name}/kernel"] = kernel.transpose(3, 4, 0, 1, 2)
        found[f"{name}/bias"] = data[f"{kind}/{theirs}.bias"]
    found["doubling_norm/gamma"] = data[f"{kind}/norm1.weight"]
    found["doubling_norm/beta"] = data[f"{kind}/norm1.bias"]
    return found


def channels_last(array):
    return np.ascontiguousarray(array.transpose(0, 2, 3, 1))


def close(found, expected):
    np.testing.assert_allclose(
        ops.convert_to_numpy(found), expected, rtol=2e-4, atol=2e-4, strict=True
    )


def stage_of(head):
    return grid.GridStage(head, (2, 3, 4, 5), 2, 192, 128, keras.random.SeedGenerator(0))


def loss_and_gradients(head, x, targets):
    """The loss of one batch of regions, and its gradients for the weights and the input."""
    stage, variables = stage_of(head), head.trainable_weights

    def loss_of(x, targets):
        return grid.GRID_WEIGHT * ops.mean(stage.heat_error(x, targets))

    backend = keras.config.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        x = tf.constant(x)
        with tf.GradientTape() as tape:
            tape.watch(x)
            loss = loss_of(x, tf.constant(targets))
        gradients = tape.gradient(loss, [*(v.value for v in variables), x])
    elif backend == "torch":
        x = ops.convert_to_tensor(x).clone().requires_grad_()
        for variable in variables:
            variable.value.grad = None
        loss = loss_of(x, ops.convert_to_tensor(targets))
        loss.backward()
        gradients = [*(v.value.grad for v in variables), x.grad]
    else:
        import jax

        def stateless(values, x):
            with keras.StatelessScope(state_mapping=zip(variables, values, strict=True)):
                return loss_of(x, targets)

        values = [v.value for v in variables]
        loss, (of_values, of_x) = jax.jit(jax.value_and_grad(stateless, (0, 1)))(values, x)
        gradients = [*of_values, of_x]
    loss, *gradients = (
        ops.convert_to_numpy(ops.stop_gradient(value)) for value in (loss, *gradients)
    )
    return loss, dict(zip([*map(key_of, variables), "x"], gradients, strict=True))


def test_heat_maps(case):
    data, head = case

    def both(x):
        points = head.points(x)
        return head.heat(points), head(x)

    unfused, fused = compiled(both)(ops.convert_to_tensor(channels_last(data["x"])))
    close(unfused, channels_last(data["unfused"]))
    close(fused, channels_last(data["fused"]))


def test_loss_and_gradients(case):
    data, head = case
    targets = channels_last(data["targets"]).astype("float32")
    loss, gradients = loss_and_gradients(head, channels_last(data["x"]), targets)
    close(loss, data["loss"])
    expected = ours(data, "g", int(data["params"][0])) | {"x": channels_last(data["grad_x"])}
    assert gradients.keys() == expected.keys()
    for name, value in expected.items():
        atol = GRADIENTS[len(head.convs)] * np.abs(value).max()
        np.testing.assert_allclose(gradients[name], value, rtol=0, atol=atol, err_msg=name)


def test_targets(case):
    data, _ = case
    tensors = map(ops.convert_to_tensor, (data["boxes"], data["gt"]))
    targets = compiled(grid.grid_targets)(*tensors)
    np.testing.assert_array_equal(
        ops.convert_to_numpy(targets), channels_last(data["targets"]).astype("float32")
    )


def test_jitter(case):
    data, _ = case
    tensors = map(ops.convert_to_tensor, (data["jitter_offsets"], data["boxes"]))
    close(grid.jitter_boxes(*tensors, *data["image"].tolist()), data["jittered"])


def test_decoded_boxes(case):
    data, _ = case
    logits = ops.convert_to_tensor(channels_last(data["fused"]))
    boxes = ops.convert_to_tensor(data["boxes"])
    close(compiled(grid.decode_grid)(logits, boxes), data["decoded"])


def test_sub_regions(case):
    data, _ = case
    starts = [(x, y, x + 28, y + 28) for x in grid.STARTS for y in grid.STARTS]
    np.testing.assert_array_equal(starts, data["sub_regions"])
