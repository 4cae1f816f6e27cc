"""A Darknet weights file, written by NumPy from the format's description alone."""

import struct

import numpy as np

from keras_densepred.backbones import CSPStage

NETWORK = dict(  # of a `CSPNetBackbone`
    stages=(
        CSPStage(1, width=8, bottleneck=4, parts=(8, 4), out=8),
        CSPStage(1, width=8, bottleneck=8, parts=(4, 8), out=8, down=8, linear_split=True),
        CSPStage(1, width=8, bottleneck=4, parts=(8, 8), out=12, down=8),
        CSPStage(1, width=8, bottleneck=4, parts=(8, 8), out=12, down=12),
    ),
    stem_width=8,
    groups=4,
)
CLASSES = 5


def convolutions():
    """The [convolutional] sections that a configuration of `NETWORK` would have.

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
