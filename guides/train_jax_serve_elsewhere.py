"""
Title: Train on JAX, serve elsewhere
Author: keras_densepred
Date created: 2026/11/21
Last modified: 2026/11/21
Description: One .keras file on another backend, and one ONNX file without Keras at all.
"""

"""
## Why

Where a network is trained and where it runs are two decisions. JAX may be the fastest on your
accelerators, while the service is written around PyTorch, or has room for nothing but a runtime of
some megabytes. This guide trains a detector, opens the same file on another backend, exports it to
ONNX with the decoding of boxes and the suppression inside, and compares all three.

    pip install ".[jax,data]"        # in a clone, where it is trained
    pip install ".[torch,export]"    # likewise, where it is exported
    pip install onnxruntime          # where it is served: nothing else
"""

import os

TRAINED_ON = os.environ.setdefault("KERAS_BACKEND", "jax")  # before Keras is imported

import subprocess
import sys
import textwrap
from pathlib import Path

import keras
import matplotlib.pyplot as plt
import numpy as np

from keras_densepred import CEDNetBackbone, DetectionPyramid, data, models, training
from keras_densepred.data.drawing.objects import draw_objects

keras.utils.set_random_seed(0)

"""
## Train

What is trained does not matter here, so it is a small RetinaNet that learns eight pictures by
heart. (For a detector that finds things in pictures it has not seen: the guide
`finetune_detector`.)
"""

SIZE, STEPS = 96, 120
MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)  # of ImageNet, RGB

shapes = data.ShapesDataset(8, image_size=SIZE)
model = models.RetinaNetKerasHub(
    DetectionPyramid(
        CEDNetBackbone(
            p2_width=24,
            p2_depth=1,
            widths=(48, 96, 160),
            depths=(1, 1, 1),
            num_stages=2,
            stem_width=16,
            layer_scale_init=0.2,
        ),
        width=48,
    ),
    num_classes=len(shapes.class_names),
    head_depth=1,
    head_initializer="he_normal",
)
model.compile(training.AdamW(training.WarmupCosine(2e-3, 20, STEPS)))
with data.train_batches(
    shapes, batch_size=8, image_size=SIZE, seed=0, mean=MEAN, std=STD
) as stream:
    pairs = ((b["images"], {"boxes": b["boxes"], "labels": b["labels"]}) for b in stream)
    history = model.fit(pairs, steps_per_epoch=STEPS // 4, epochs=4, shuffle=False, verbose=0)
print(f"on {TRAINED_ON}: loss", *(f"{loss:.2f}" for loss in history.history["loss"]))

"""
One file, and the pictures to serve, prepared as in training. Whoever serves has to know the mean
and the standard deviation: they are part of the model, and of no file format.
"""

model.save("detector.keras")
pictures = np.stack([shapes[index].image for index in range(4)])
images = ((pictures - np.array(MEAN)) / STD).astype("float32")
np.save("images.npy", images)
found = {TRAINED_ON: model.predict(images, verbose=0)}
print({name: (x.shape, x.dtype.name) for name, x in found[TRAINED_ON].items()})

"""
## The same file on another backend

A process can have one backend, so the other one is another process. All that it needs is the file,
Keras and this package, whose import makes its classes known. No code is in the file, and nothing
is unpickled.
"""

SERVE = textwrap.dedent(
    """
    import sys

    import keras
    import keras_densepred
    import numpy as np

    detector = keras.saving.load_model(sys.argv[1], compile=False)
    np.savez(sys.argv[3], **detector.predict(np.load(sys.argv[2]), verbose=0))
    print("served on", keras.backend.backend())
    """
)
Path("serve.py").write_text(SERVE)


def on_backend(backend, *command):
    """Runs Python with another backend; returns what it prints."""
    environment = {**os.environ, "KERAS_BACKEND": backend}
    done = subprocess.run(
        [sys.executable, *command], env=environment, check=True, capture_output=True, text=True
    )
    return done.stdout.strip()


other = "torch" if TRAINED_ON != "torch" else "jax"
print(on_backend(other, "serve.py", "detector.keras", "images.npy", "found.npz"))
found[other] = dict(np.load("found.npz"))

"""
## Without Keras: ONNX

`export_onnx` writes one file from images to final boxes: norms folded where they can be,
suppression by ONNX's own operator. Keras writes ONNX from PyTorch and TensorFlow (from JAX with
the package `jax2onnx`), so this is done by the other process. In the shell it is

    KERAS_BACKEND=torch python tools/export.py detector.keras --image-size 96 --output detector.onnx

which with `--int8 MY_IMAGES` adds a file with 8-bit convolutions and a report of what that
changes.
"""

EXPORT = textwrap.dedent(
    """
    import keras
    from keras_densepred.export import export_onnx

    detector = keras.saving.load_model("detector.keras", compile=False)
    path = export_onnx(detector, "detector.onnx", image_size=96, batch_size=4)
    print(f"{path}: {path.stat().st_size / 1e6:.1f} MB")
    """
)
Path("export.py").write_text(EXPORT)
print(on_backend("torch", "export.py"))

"""
The file runs in a few lines, in any language that ONNX Runtime has an interface for.
"""

import onnxruntime

session = onnxruntime.InferenceSession("detector.onnx", providers=["CPUExecutionProvider"])
print("in: ", [(x.name, x.shape) for x in session.get_inputs()])
print("out:", [(x.name, x.shape) for x in session.get_outputs()])
names = [x.name for x in session.get_outputs()]
found["onnx"] = dict(zip(names, session.run(names, {"images": images}), strict=True))

"""
## Are they the same?

Trust, but compare: every number of every detection.
"""

reference = found[TRAINED_ON]
print(f"{TRAINED_ON}: {(reference['labels'] >= 0).sum()} detections")
for name, result in found.items():
    if name == TRAINED_ON:
        continue
    labels = np.array_equal(result["labels"], reference["labels"])
    boxes = np.abs(result["boxes"] - reference["boxes"]).max()
    confidence = np.abs(result["confidence"] - reference["confidence"]).max()
    print(
        f"{name:5s} labels equal: {labels}, boxes differ by {boxes:.1e} pixels at most, "
        f"confidence by {confidence:.1e}"
    )
    assert labels and boxes < 1e-2 and confidence < 1e-4

"""
And to the eye: where it was trained, on the other backend, and from ONNX.
"""

_, axes = plt.subplots(3, 4, figsize=(12, 9.4))
for row, (name, result) in zip(axes, found.items(), strict=True):
    for column, axis in enumerate(row):
        sure = result["confidence"][column] >= 0.3
        axis.imshow(
            draw_objects(
                pictures[column],
                result["boxes"][column][sure],
                result["labels"][column][sure],
                shapes.class_names,
                scores=result["confidence"][column][sure],
            )
        )
        axis.axis("off")
    row[0].set_title(name, loc="left")
plt.tight_layout()
plt.show()

"""
Where to go from here:

* from the command line: `python -m keras_densepred predict detector.keras IMAGES` draws boxes and
  writes COCO's JSON, on whichever backend is set;
* convolutional networks with batch norms (`YOLOv3Detector` on CSPNet) lose them in the exported
  file: that is where ONNX Runtime gains most;
* several sizes or batches: `export_onnx` fixes both in the file, so write one for each that you
  serve.
"""
