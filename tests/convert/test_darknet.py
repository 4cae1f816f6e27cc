"""Darknet's weights files, written by NumPy from the format's description alone."""

import keras
import numpy as np
import pytest

from keras_densepred import CSPNetBackbone, CSPNetImageClassifier, PeleeNetBackbone
from keras_densepred.convert.darknet import DarknetHeader, load_weights, read_header
from tests.convert.darknet_file import CLASSES, convolutions, write
from tests.networks import mini_csp

pytestmark = pytest.mark.backend_free


def model():
    return CSPNetImageClassifier(mini_csp("residual"), num_classes=CLASSES)


@pytest.mark.parametrize("version,size", [((0, 2, 5), 20), ((0, 1, 0), 16), ((1, 0, 0), 20)])
def test_every_number_is_where_it_belongs(version, size, tmp_path):
    path = tmp_path / "net.weights"
    written = write(path, convolutions(), version)
    network = model()
    header = load_weights(network, path)
    assert header == DarknetHeader(*version, seen=32_000_000, size=size)
    left = {weight.path for weight in network.weights}
    for name, arrays in written.items():
        layer = network.get_layer(name if name == "head_logits" else f"{name}_conv")
        found = {"weights": layer.kernel}
        if "bias" in arrays:
            found["bias"] = layer.bias
        else:
            norm = network.get_layer(f"{name}_norm")
            found |= {"beta": norm.beta, "gamma": norm.gamma}
            found |= {"mean": norm.moving_mean, "variance": norm.moving_variance}
        for part, array in arrays.items():
            ours = keras.ops.convert_to_numpy(found[part])
            if part == "weights":
                # (height, width, in, out), of a dense layer (in, out)
                ours = ours.reshape(*array.shape[2:], *ours.shape[-2:]).transpose(3, 2, 0, 1)
            np.testing.assert_array_equal(ours, array, err_msg=f"{name} {part}")
        left -= {variable.path for variable in found.values()}
    assert left == set()


def test_a_file_of_another_length_changes_nothing(tmp_path):
    path = tmp_path / "net.weights"
    write(path, convolutions())
    whole = path.read_bytes()
    network = model()
    before = network.get_weights()
    for content in (whole[:-1], whole[:-4], whole + b"\0" * 4, whole[:100]):
        path.write_bytes(content)
        with pytest.raises(
            ValueError, match=r"net.weights has [\d,]+ bytes after its header of 20"
        ):
            load_weights(network, path)
    path.write_bytes(whole[:19])
    with pytest.raises(ValueError, match="19 bytes, too few for the header"):
        load_weights(network, path)
    path.write_bytes(whole)
    with pytest.raises(ValueError, match="choose the network that the file is of"):
        load_weights(network.backbone, path)
    assert all(np.array_equal(a, b) for a, b in zip(before, network.get_weights(), strict=True))
    with pytest.raises(ValueError, match="There is no weights file"):
        load_weights(network, tmp_path / "none.weights")


def test_the_seen_images_of_new_files_are_wide(tmp_path):
    path = tmp_path / "net.weights"
    write(path, [], seen=2**40)
    assert read_header(path).seen == 2**40


def test_networks_without_darknets_order_are_refused(tmp_path):
    path = tmp_path / "net.weights"
    write(path, convolutions())
    with pytest.raises(ValueError, match="a PeleeNetBackbone, does not tell Darknet's order"):
        load_weights(PeleeNetBackbone(), path)
    with pytest.raises(ValueError, match='is of the flavour "timm"'):
        load_weights(mini_csp("residual", flavour="timm"), path)


@pytest.mark.parametrize(
    "preset,first",
    [
        # csresnext50.cfg and csdarknet53.cfg, from the top
        (
            "csp_resnext_50",
            [(64, 3, 7), (128, 64, 1), (64, 64, 1), (128, 64, 1), (128, 4, 3), (128, 128, 1)],
        ),
        (
            "csp_darknet_53",
            [(32, 3, 3), (64, 32, 3), (64, 64, 1), (64, 64, 1), (32, 64, 1), (64, 32, 3)],
        ),
    ],
)
def test_the_order_is_that_of_the_configurations(preset, first):
    backbone = CSPNetBackbone.from_preset(preset)
    shapes = []
    for name in backbone.darknet_order[: len(first)]:
        shape = backbone.get_layer(name).kernel.shape
        height, _, channels, filters = shape if len(shape) == 4 else (1, 1, *shape)
        shapes.append((filters, channels, height))
    assert shapes == first
    norms = [layer for layer in backbone.layers if layer.name.endswith("_norm")]
    assert len(set(backbone.darknet_order)) == len(backbone.darknet_order) == len(norms)
