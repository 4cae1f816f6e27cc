"""
Title: Pretraining, on one device and on many
Author: keras_densepred
Date created: 2026/11/21
Last modified: 2026/11/21
Description: Weights of one's own for a backbone, and the same training on more devices.
"""

"""
## Why pretrain

A detector from random weights has to learn edges, textures and forms from boxes alone. A
classifier learns them from labels, which are cheap, and hands its backbone on. This package has no
weights to download yet, so this is how to make some: from class folders, from ImageNet, here from
the built-in shapes in a minute.

The second half is about scale: what stays the same, and what does not, when the same training runs
in several processes. Figures for ImageNet (hours, images a second, cores that feed the devices,
memory) are on [their own page](scale.md), the commands for machines and clusters on
[another](clusters.md).

    pip install ".[torch,data]"        # in a clone; or jax, tensorflow
"""

import os

os.environ.setdefault("KERAS_BACKEND", "torch")  # before Keras is imported; any backend will do

import csv
import socket
import subprocess
import sys
from pathlib import Path

import keras
import matplotlib.pyplot as plt
import numpy as np

import keras_densepred
from keras_densepred import backbones, data, metrics, models, training
from keras_densepred.cli import scripts

keras.utils.set_random_seed(0)

"""
## The data

One shape a picture, with clutter around it. Half of the shapes have any colour, so that a network
has to look at forms. Your own pictures lie in `train/CLASS/*.jpg` and `val/CLASS/*.jpg`, and
`data.find_class_folders` opens them.

What matters most in pretraining is what the network never sees twice: random crops, flips,
RandAugment, random erasing, and two pictures mixed into one, with the labels mixed alike. The
first row are pictures, the second what the paper's setting makes of some.
"""

train = data.ShapesClassification(1200, 64, split="train")
val = data.ShapesClassification(192, 64, split="val")

strong = data.train_class_batches(
    train,
    batch_size=8,
    image_size=64,
    seed=0,
    mean=None,
    std=None,
    augment=data.imagenet_augmentation(64, rand_augment=True, erasing=0.25),
    mixing=data.Mixing(),
).batch(0)
_, axes = plt.subplots(2, 8, figsize=(14, 4.4))
for column in range(8):
    axes[0, column].imshow(train[column].image)
    axes[0, column].set_title(train.class_names[train[column].label], fontsize=9)
    axes[1, column].imshow(strong["images"][column].round().astype("uint8"))
    shares = sorted(zip(strong["targets"][column], train.class_names, strict=True))[::-1]
    text = "\n".join(f"{share:.2f} {name}" for share, name in shares[:2] if share >= 0.05)
    axes[1, column].set_title(text, fontsize=9)
for axis in axes.flat:
    axis.axis("off")
plt.tight_layout()
plt.show()

"""
## Train a classifier

`models.image_classifier` puts the head of the family on a preset: CEDNet's classifier has one head
for each stage, whose losses are averaged. In a short run strong augmentation only delays things,
so here it is crops and flips. `WarmupCosine`, decay of matrices only and averaged weights are the
paper's.

`training.fit` is `Model.fit` with checkpoints: killed at any moment and started again, the run
goes on exactly where it was. It asks for the batches from a step on, because a position in the
data is a number: batch `k` depends on the seed and on `k` alone.
"""

SIZE, BATCH = 32, 32  # pixels and pictures: small, so that it takes a minute
EPOCHS, STEPS = 4, 75
MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)  # of ImageNet, RGB

model = models.image_classifier(
    "cednet_next_pico",
    num_classes=len(train.class_names),
    layer_scale_init=0.2,  # 1e-6, the paper's, is for long schedules
)
model.compile(
    training.AdamW(
        training.WarmupCosine(1e-3, 50, EPOCHS * STEPS),
        rules=training.matrix_decay_rules(model, 0.05),
        use_ema=True,
        ema_momentum=0.98,
    ),
    keras.losses.CategoricalCrossentropy(from_logits=True),
    metrics=[],
)
options = dict(batch_size=BATCH, image_size=SIZE, mean=MEAN, std=STD)
evaluation = metrics.ClassificationEvaluation(
    data.eval_class_batches(val, crop_ratio=None, **options),
    len(val.class_names),
    averaged=lambda: training.averaged_weights(model),
    verbose=False,
)
augment = data.imagenet_augmentation(SIZE, scale=(0.4, 1.0), rand_augment=False, erasing=0.0)


def batches_from(step):
    """The training batches from a step on."""
    with data.train_class_batches(
        train, seed=0, augment=augment, label_smoothing=0.1, **options
    ) as stream:
        stream.set_state({**stream.get_state(), "next_batch": step})
        for batch in stream:
            yield batch["images"], batch["targets"]


log = training.MetricsLog("metrics.csv")
training.fit(
    model,
    batches_from,
    epochs=EPOCHS,
    steps_per_epoch=STEPS,
    checkpoint=training.ResumableCheckpoint("checkpoints", {"guide": "pretraining"}),
    callbacks=[evaluation, log],
)
for row in log.rows:
    names = ("loss", "val_top1", "ema_val_top1")
    print(f"epoch {row['epoch']}:", ", ".join(f"{name} {row[name]:.3f}" for name in names))

"""
Six classes, so chance is 0.167. The rows of the confusion are the true classes.
"""

shares = evaluation.confusion / evaluation.confusion.sum(axis=1, keepdims=True)
_, axis = plt.subplots(figsize=(4.6, 4.2))
axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
for (row, column), share in np.ndenumerate(shares):
    if share >= 0.005:
        ink = "white" if share > 0.5 else "black"
        axis.text(column, row, f"{share:.2f}", ha="center", va="center", color=ink, fontsize=9)
axis.set_xticks(range(6), val.class_names, rotation=45, ha="right")
axis.set_yticks(range(6), val.class_names)
axis.set(xlabel="predicted", ylabel="true")
plt.tight_layout()
plt.show()

"""
## Hand the backbone on

The backbone alone is a preset: a directory that everything here takes in the place of a name. The
classifier's heads stay behind.
"""

model.backbone.save_to_preset("my_backbone")
print(*sorted(path.name for path in Path("my_backbone").iterdir()), sep=", ")

backbone = backbones.load_backbone("my_backbone")
detector = models.RetinaNetKerasHub(
    keras_densepred.DetectionPyramid(backbone, width=64), num_classes=6, head_depth=1
)
images = np.random.default_rng(0).normal(size=(1, SIZE, SIZE, 3)).astype("float32")
first, second = (
    keras.ops.convert_to_numpy(b(images)["P3"])
    for b in (model.backbone, detector.backbone.backbone)
)
print("the detector begins with these weights:", np.array_equal(first, second))

"""
From the command line that is

    python recipes/imagenet_pretrain.py --data-dir MY_FOLDERS --output runs/classes
    python recipes/coco_retinanet.py --data-dir MY_IMAGES --weights runs/classes/preset

## More devices

Three rules make a run independent of the number of devices:

* `--batch-size` is the batch of one update over *all* devices, so the learning rate stays right;
* batch `k` depends on the seed and on `k`, and each process makes only its rows of it;
* gradients are summed, and losses divided, over the rows of all devices.

So two processes and one give the same training, but for rounding. Let us see: the recipe with six
updates in one process, and the same in two. On JAX they join through `keras.distribution`, on
TensorFlow through `MultiWorkerMirroredStrategy`, on PyTorch through DistributedDataParallel; the
flags are the same.
"""

RECIPE = scripts.recipes()["imagenet_pretrain"]  # the file, in a clone or in the package
FLAGS = "--preset cednet_next_pico --image-size 32 --batch-size 8 --epochs 2 --steps-per-epoch 3"


def free_ports(count):
    """Ports of this machine that nobody uses."""
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("localhost", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def run(processes):
    """Runs the recipe in this many processes; returns the rows of its metrics.csv."""
    addresses = [f"localhost:{port}" for port in free_ports(processes)]
    # TensorFlow wants the addresses of all, the others that of process 0.
    coordinator = ",".join(addresses) if keras.backend.backend() == "tensorflow" else addresses[0]
    output = Path(f"runs_{processes}")
    command = [sys.executable, str(RECIPE), *FLAGS.split(), "--ema", "0", "--output", str(output)]
    if processes > 1:
        command += ["--processes", str(processes), "--coordinator", coordinator]
    running = [
        subprocess.Popen(
            [*command, *(["--process-id", str(number)] if processes > 1 else [])],
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in range(processes)
    ]
    printed = [process.communicate()[0] for process in running]
    if any(process.returncode for process in running):
        raise RuntimeError(f"The recipe failed:\n{''.join(printed)}")
    print(next(line for line in printed[0].splitlines() if "global batch" in line))
    with (output / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


alone, together = run(1), run(2)
for epoch, rows in enumerate(zip(alone, together, strict=True), start=1):
    print(f"epoch {epoch}: loss", " and ".join(f"{float(row['loss']):.6f}" for row in rows))

"""
On GPUs it is less to type, because the engines find them:

    KERAS_BACKEND=jax python recipes/imagenet_pretrain.py --data-dir IMAGENET
    KERAS_BACKEND=torch torchrun --nproc-per-node 8 recipes/imagenet_pretrain.py --data-dir IMAGENET

And in a program of one's own, everything between building the model and saving it goes into one
block; `cluster.shard` tells the data which rows to make:

    with training.distribute() as cluster:
        model = ...
        stream = data.train_class_batches(..., shard=cluster.shard)
        training.fit(model, ..., checkpoint=training.ResumableCheckpoint("checkpoints", {}))

A killed run may continue on another number of devices. What 300 epochs of ImageNet take, and what
the hosts must deliver to keep the devices busy: [Pretraining at scale](scale.md).
"""
