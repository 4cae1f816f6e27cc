"""
Title: Bring official weights
Author: keras_densepred
Date created: 2026/11/21
Last modified: 2026/11/21
Description: Convert a PyTorch checkpoint, verify it, save it as a preset, and upload that.
"""

"""
## What this guide does

The authors of CEDNet, of CSPNet and of timm trained their networks with their own code. Where you
have such a checkpoint, its weights belong into the same networks here: same layers, same order,
other names and other axes. A conversion is only worth something if it is verified, so that is most
of this guide.

For the families that are known here the command line does all of it but the upload:

    python -m keras_densepred convert-weights cednet FILE.pth --preset cednet_next_t --output mine
    python -m keras_densepred convert-weights timm cspresnext50.safetensors --output mine
    python -m keras_densepred convert-weights darknet csresnext50.weights --preset csp_resnext_50

Installation, in a clone: `pip install ".[torch,convert,data]"`. Reading a `.pth` file needs
PyTorch, whatever the backend; `.safetensors` files do not.
"""

import os

os.environ.setdefault("KERAS_BACKEND", "torch")  # before Keras is imported; any backend will do

import argparse
from pathlib import Path

import keras
import numpy as np
import torch
import torch.nn.functional as F

from keras_densepred import CEDNetBackbone, CEDNetImageClassifier, training
from keras_densepred.convert import cednet

"""
## A checkpoint

CEDNet's weights were never published, so the guide writes a file as the authors' training code
does: key names of their modules, PyTorch's axis order (output channels first), everything wrapped
in a dictionary with the epoch and the command line. The values are random. **If you have a real
file, put its path here and leave the next cell out.**
"""

CHECKPOINT = Path("checkpoint.pth")
PRESET = "cednet_next_pico"

"""

"""


def authors_shape(key, weight):
    """The shape that a weight of ours has in the authors' file."""
    shape = tuple(weight.shape)
    if len(shape) == 4:  # (height, width, in, out); depthwise: (height, width, channels, 1)
        height, width, first, second = shape
        return (first, 1, height, width) if second == 1 else (second, first, height, width)
    if len(shape) == 2 and weight.name == "kernel":
        linear = "pwconv" in key or "heads" in key  # the others are 1x1 convolutions there
        return shape[::-1] if linear else (*shape[::-1], 1, 1)
    return shape


def authors_value(key, shape, rng):
    """Random values of the size that trained weights have."""
    if len(shape) > 1:
        return rng.normal(size=shape) / np.sqrt(np.prod(shape[1:]))
    offset = {"weight": 1.0, "gamma": 0.3}.get(key.rpartition(".")[2], 0.0)  # norms, layer scales
    return offset + 0.1 * rng.normal(size=shape)


rng = np.random.default_rng(0)
keys = cednet.authors_keys(CEDNetImageClassifier(CEDNetBackbone.from_preset(PRESET), 10))
state = {
    key: torch.tensor(authors_value(key, authors_shape(key, weight), rng), dtype=torch.float32)
    for key, weight in keys.items()
}
torch.save({"model": state, "epoch": 299, "args": argparse.Namespace(lr=4e-3)}, CHECKPOINT)
print(f"{len(state)} arrays, {CHECKPOINT.stat().st_size / 1e6:.1f} MB")

"""
## Read it

A `.pth` file is a pickle, and a pickle can run code. `read_checkpoint` lets PyTorch read tensors
and plain data only, takes off the wrappers (`model`, `state_dict`, `module.`, `backbone.`;
averaged weights with `ema=True`), and gives arrays. A file that wants to run something is refused.
"""

state = cednet.read_checkpoint(CHECKPOINT)
for key in list(state)[:6]:
    print(f"{key:32s} {state[key].shape}")


class Surprise:
    """What a hostile file may contain."""

    def __reduce__(self):
        return print, ("this code came with the weights",)


torch.save({"model": Surprise()}, "hostile.pth")
try:
    cednet.read_checkpoint("hostile.pth")
except ValueError as error:
    print("refused:", str(error)[:100], "...")

"""
## Convert

Each array goes to the weight that its key names, with its axes turned. Either everything fits or
nothing is assigned: a key that is missing, a key that nobody needs, and an array of another shape
are errors that name it. Heads may stay behind, and the report says which did.
"""

classifier = CEDNetImageClassifier(CEDNetBackbone.from_preset(PRESET), num_classes=10)
report = cednet.load_state(classifier, state)
print(f"classifier: {len(report.loaded)} arrays loaded, {len(report.skipped)} skipped")

backbone = CEDNetBackbone.from_preset(PRESET)
report = cednet.load_state(backbone, state)
print(f"backbone:   {len(report.loaded)} loaded, skipped: {', '.join(report.skipped[:4])}, ...")

try:
    cednet.load_state(CEDNetBackbone.from_preset("cednet_next_nano"), state)
except ValueError as error:
    print("another network:", str(error)[:150], "...")

"""
## Verify

That the shapes fit proves little: a transposed square matrix fits, and so does a norm in the place
of another. What counts is that the same image gives the same numbers. The best witness is the
original code; `tests/convert` in the repository does that for every variant. Without it, the first
layers are quickly written down with PyTorch's own functions straight from the file. They have one
of everything: a convolution with padding, a norm, exact GELU, a depthwise convolution, matrix
products and a layer scale.
"""


def original(images):
    """Stem and first block of the authors' network, from the checkpoint's arrays."""
    weights = {key: torch.from_numpy(value) for key, value in state.items()}

    def conv(x, key, **options):
        return F.conv2d(x, weights[f"{key}.weight"], weights[f"{key}.bias"], **options)

    def norm(x, key):
        x = x.permute(0, 2, 3, 1)
        x = F.layer_norm(x, x.shape[-1:], weights[f"{key}.weight"], weights[f"{key}.bias"], 1e-6)
        return x.permute(0, 3, 1, 2)

    x = torch.from_numpy(images).permute(0, 3, 1, 2)
    for convolution, norm_ in (("stem.0", "stem.1"), ("stem.3", "stem.4")):
        x = F.gelu(norm(conv(x, convolution, stride=2, padding=1), norm_))
    block = "stages.0.0"
    y = conv(x, f"{block}.dwconv", padding=3, groups=x.shape[1])
    y = norm(y, f"{block}.norm").permute(0, 2, 3, 1)
    for layer in ("pwconv1", "pwconv2"):
        y = F.linear(y, weights[f"{block}.{layer}.weight"], weights[f"{block}.{layer}.bias"])
        y = F.gelu(y) if layer == "pwconv1" else y
    y = weights[f"{block}.gamma"] * y
    return (x + y.permute(0, 3, 1, 2)).permute(0, 2, 3, 1).numpy()


images = rng.normal(size=(2, 64, 96, 3)).astype("float32")
ours = keras.ops.convert_to_numpy(backbone(images)["P2"])  # after one block: the pico has no more
expected = original(images)
print("shapes", ours.shape, expected.shape)
print(f"largest difference {np.abs(ours - expected).max():.1e} of {np.abs(expected).max():.1f}")
assert np.allclose(ours, expected, atol=5e-5)

"""
A check that cannot fail is none. With two norms of the stem exchanged everything still fits, and
the numbers say so:
"""

wrong = {**state, "stem.4.weight": state["stem.4.bias"], "stem.4.bias": state["stem.4.weight"]}
exchanged = CEDNetBackbone.from_preset(PRESET)
cednet.load_state(exchanged, wrong)
difference = np.abs(keras.ops.convert_to_numpy(exchanged(images)["P2"]) - expected).max()
print(f"largest difference {difference:.1e}")
assert difference > 1e-2

"""
The last word has the accuracy on the validation split, compared with the one that the authors
report: `recipes/imagenet_pretrain.py --preset DIRECTORY` evaluates with the paper's crop.

## Save it as a preset

A preset is a directory: configuration and weights, and for hubs a model card. It opens on every
backend, and where a preset's name is taken, its directory is taken too.
"""

classifier.save_to_preset("my_preset")
training.write_model_card(
    "my_preset",
    title="CEDNet-NeXt pico, converted",
    task="image-classification",
    data="ImageNet-1K, by the authors; converted from their checkpoint.",
    results={},  # what you measured, such as {"top1": 0.825}
    settings={"preset": PRESET, "checkpoint": CHECKPOINT.name},
    usage="import keras_densepred\n\n"
    'classifier = keras_densepred.CEDNetImageClassifier.from_preset("hf://USER/NAME")',
    parameters=classifier.count_params(),
)
for path in sorted(Path("my_preset").iterdir()):
    print(f"{path.name:28s} {path.stat().st_size:10,}")

"""

"""

again = CEDNetImageClassifier.from_preset("my_preset")
first, second = (model.predict(images, verbose=0) for model in (classifier, again))
print("the same logits:", np.array_equal(first, second))
body = CEDNetBackbone.from_preset("my_preset")  # the backbone of a classifier's preset
print("the same maps:  ", np.array_equal(keras.ops.convert_to_numpy(body(images)["P2"]), ours))

"""
## Upload it

The hubs are KerasHub's own doing; this package adds nothing. After `huggingface-cli login` (or
with Kaggle's token in place):

    import keras_hub

    keras_hub.upload_preset("hf://USER/cednet_next_tiny", "my_preset")
    keras_hub.upload_preset("kaggle://USER/cednet/keras/cednet_next_tiny", "my_preset")

and from then on, everywhere:

    keras_densepred.CEDNetBackbone.from_preset("hf://USER/cednet_next_tiny")

Weights belong to whoever trained them: upload only what their licence lets you, and name it in the
card.

## Weights of other code

`convert.timm`, `convert.darknet` and `convert.resnet` (KerasHub's or timm's ResNets) work alike.
For another code base, the way that has proved itself is: write down which of its modules is which
layer here; let `convert.state.to_keras_layout` turn the axes; refuse what is left over; and
compare outputs at the stem, after the first block and at the end, in this order, because the first
difference tells where to look.
"""
