"""Darknet's weights files, written by NumPy from the format's description alone."""

import struct

import keras
import numpy as np
import pytest

from keras_densepred import CSPNetBackbone, CSPNetImageClassifier, PeleeNetBackbone
from keras_densepred.convert.darknet import DarknetHeader, load_weights, read_header
from tests.backbones.test_csp import mini

pytestmark = pytest.mark.backend_free

CLASSES = 5


def convolutions():
    """The [convolutional] sections that a configuration of `mini("residual")` would have.

    Written after the authors' csresnext50.cfg: name, input channels, filters, side, groups, norm.
    """
    stages = {1: (8, 4, 4, 8), 2: (4, 8, 8, 8), 3: (8, 8, 4, 12), 4: (8, 8, 4, 12)}
    yield "stem", 3, 8, 7, 1, True
    into = 8
    for stage, (bypass, branch, inside, out) in stages.items():
        if stage > 1:
            yield f"stage{stage}_down", into, into, 3, 4, True
        yield f"stage{stage}_bypass", into, bypass, 1, 1, True
        yield f"stage{stage}_branch", into, branch, 1, 1, True
        yield f"stage{stage}_block1_reduce", branch, inside, 1, 1, True
        yield f"stage{stage}_block1_spatial", inside, inside, 3, 4, True
        yield f"stage{stage}_block1_expand", inside, 8, 1, 1, True
        yield f"stage{stage}_transition", 8, 8, 1, 1, True
        yield f"stage{stage}_fuse", 8 + bypass, out, 1, 1, True
        into = out
    yield "head_logits", into, CLASSES, 1, 1, False


def write(path, sections, version=(0, 2, 5), seen=32_000_000):
    """Writes a file; returns name to the arrays that were written, in PyTorch's axis order."""
    generator = np.random.default_rng(3)
    written = {}
    with open(path, "wb") as file:
        file.write(struct.pack("<iii", *version))
        wide = version[0] * 10 + version[1] >= 2
        file.write(struct.pack("<Q" if wide else "<I", seen))
        for name, channels, filters, side, groups, norm in sections:
            arrays = {
                part: generator.normal(size=filters).astype("<f4")
                for part in (("beta", "gamma", "mean", "variance") if norm else ("bias",))
            }
            shape = (filters, channels // groups, side, side)
            arrays["weights"] = generator.normal(size=shape).astype("<f4")
            for array in arrays.values():
                file.write(array.tobytes())
            written[name] = arrays
    return written


def model():
    return CSPNetImageClassifier(mini("residual"), num_classes=CLASSES)


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
        load_weights(mini("residual", flavour="timm"), path)


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
