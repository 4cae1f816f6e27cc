"""What is timed: our networks on the active backend, and those they are compared with.

Each candidate is a callable that computes one forward pass or one training step and returns when
the device is done. Images and labels are ready on the device; a training step is the cross entropy
of the heads of all stages, its gradient and an AdamW update.
"""

import importlib.metadata
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

import keras_densepred
from keras_densepred.analysis.multiply_adds import count_multiply_adds
from tools.baselines.stock_layers import with_stock_layers

NUM_CLASSES = 1000
LEARNING_RATE = 1e-4
POLICIES = {"float32": "float32", "bfloat16": "mixed_bfloat16", "float16": "mixed_float16"}
JIT_COMPILE = {"default": "auto", "on": True, "off": False}
TORCH_VARIANTS = {
    "cednet_next_tiny": "tiny",
    "cednet_next_small": "small",
    "cednet_next_base": "base",
}

# timm's ConvNeXt of the same size: a yardstick that others have tuned. Multiply-adds in 10^9 of one
# image of 224 px, from the paper (arXiv:2201.03545, table 1).
TIMM_VARIANTS = {
    "cednet_next_tiny": ("convnext_tiny", 4.5),
    "cednet_next_small": ("convnext_small", 8.7),
    "cednet_next_base": ("convnext_base", 15.4),
}

MODELS = ("classifier", "backbone", "pyramid", "segmenter")
SEGMENTER_CLASSES = 150  # ADE20K's

Call = Callable[[], object]


@dataclass(frozen=True)
class Task:
    """One row of work: which network, at what size, doing what.

    Attributes:
        preset: built-in preset of a backbone.
        model: of `MODELS`: the classifier, the backbone's levels, RetinaNet's P3..P7 or UperNet.
        mode: `"forward"` or `"train"`.
        precision: a key of `POLICIES`.
        image_size: side of the square images in pixels.
        batch: images at once.
        compile: a key of `JIT_COMPILE`; `"default"` is what Keras' `fit` and `predict` choose.
    """

    preset: str
    model: str
    mode: str
    precision: str
    image_size: int
    batch: int
    compile: str

    def images(self) -> np.ndarray:
        """`(batch, image_size, image_size, 3)` float32, as normalised images are distributed."""
        shape = (self.batch, self.image_size, self.image_size, 3)
        return np.random.default_rng(0).standard_normal(shape, dtype=np.float32)


def keras_model(task: Task) -> keras.Model:
    """Our network as a plain functional model; a classifier in training has all stages' heads."""
    options = {
        "image_shape": (task.image_size, task.image_size, 3),
        "dtype": POLICIES[task.precision],
    }
    if task.model == "classifier":
        classifier = keras_densepred.models.image_classifier(task.preset, NUM_CLASSES, **options)
        outputs = classifier.outputs if task.mode == "train" else classifier.outputs[-1]
        return keras.Model(classifier.inputs, outputs)
    backbone = keras_densepred.backbones.load_backbone(task.preset, **options)
    if task.model == "segmenter":
        model = keras_densepred.models.UperNet(backbone, SEGMENTER_CLASSES, auxiliary=None)
        return keras.Model(model.inputs, model.outputs)
    # BiCSNet gives RetinaNet's levels itself.
    if task.model == "pyramid" and not hasattr(backbone, "max_level"):
        backbone = keras_densepred.DetectionPyramid(backbone)
    return keras.Model(backbone.inputs, backbone.outputs)


def gflop(model: keras.Model, task: Task) -> float:
    """10^9 floating-point operations of one call: two a multiply-add, three times that to train."""
    passes = 3 if task.mode == "train" else 1
    return 2e-9 * count_multiply_adds(model) * task.batch * passes


def ours(model: keras.Model, task: Task) -> Call:
    """Our model on the active backend, with our optimizer."""
    return _call(model, task, keras_densepred.training.AdamW)


def _call(model: keras.Model, task: Task, optimizer: type[keras.optimizers.Optimizer]) -> Call:
    if task.mode == "train":
        return _train_step(model, task, optimizer(LEARNING_RATE))
    return _forward(model, task)


def stock(model: keras.Model, task: Task) -> Call:
    """The same network of stock Keras layers on the active backend, with Keras' optimizer."""
    return _call(with_stock_layers(model), task, keras.optimizers.AdamW)


def optimized(model: keras.Model, task: Task) -> Call:
    """Our model's inference form, see `models.optimize`."""
    images = keras.ops.convert_to_tensor(task.images())
    network = keras_densepred.models.optimize(model)
    if keras.config.backend() == "jax":
        import jax

        return lambda: jax.block_until_ready(network(images))
    if keras.config.backend() == "tensorflow":
        return lambda: [x.numpy() for x in keras.tree.flatten(network(images))]

    def call():
        network(images)
        _wait_for_torch()

    return call


def torch_baseline(task: Task, compiled: bool) -> Call:
    """The plain `torch.nn` network, channels-last, eager or by `torch.compile`."""
    from tools.baselines import cednet_torch, upernet_torch

    network = {
        "classifier": cednet_torch.CEDNetClassifier,
        "backbone": cednet_torch.CEDNet,
        "pyramid": cednet_torch.CEDNetPyramid,
        "segmenter": upernet_torch.CEDNetUperNet,
    }[task.model](TORCH_VARIANTS[task.preset])
    return _torch_call(network, task, compiled)


def timm_baseline(task: Task) -> Call:
    """timm's ConvNeXt of the task's size, channels-last, by `torch.compile`.

    Raises:
        ValueError: if timm is not installed.
    """
    try:
        import timm
    except ImportError as error:
        raise ValueError("--against timm needs timm: pip install timm.") from error
    name, _ = TIMM_VARIANTS[task.preset]
    network = timm.create_model(name, pretrained=False, num_classes=NUM_CLASSES)
    return _torch_call(network, task, compiled=True)


def timm_gflop(task: Task) -> float:
    """10^9 floating-point operations of one call of `timm_baseline`."""
    passes = 3 if task.mode == "train" else 1
    _, multiply_adds = TIMM_VARIANTS[task.preset]
    return 2 * multiply_adds * (task.image_size / 224) ** 2 * task.batch * passes


def _torch_call(network: Any, task: Task, compiled: bool) -> Call:
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    network = network.to(device=device, memory_format=torch.channels_last)
    network.train(task.mode == "train")
    run = torch.compile(network, fullgraph=True) if compiled else network
    images = torch.from_numpy(task.images()).to(device).permute(0, 3, 1, 2)
    autocast = torch.autocast(
        device, getattr(torch, task.precision), enabled=task.precision != "float32"
    )

    def forward():
        with torch.inference_mode(), autocast:
            run(images)
        _wait_for_torch()

    if task.mode == "forward":
        return forward
    optimizer = torch.optim.AdamW(network.parameters(), LEARNING_RATE)
    labels = torch.arange(task.batch, device=device)
    # As Keras does for mixed_float16; without effect in the other precisions.
    scaler = torch.amp.GradScaler(device, enabled=task.precision == "float16")

    def train_step():
        optimizer.zero_grad()
        with autocast:
            outputs = run(images)
            outputs = outputs if isinstance(outputs, (list, tuple)) else [outputs]
            losses = [torch.nn.functional.cross_entropy(x, labels) for x in outputs]
        scaler.scale(torch.stack(losses).mean()).backward()
        scaler.step(optimizer)
        scaler.update()
        _wait_for_torch()

    return train_step


def matrix_product(backend: str, precision: str, size: int) -> Call:
    """One product of two square matrices, for the peak of the machine."""
    values = np.random.default_rng(0).standard_normal((size, size), dtype=np.float32)
    if backend == "torch":
        import torch

        device = "cuda" if torch.cuda.is_available() else "cpu"
        matrix = torch.from_numpy(values).to(device, getattr(torch, precision))

        def multiply():
            torch.mm(matrix, matrix)
            _wait_for_torch()

        return multiply
    if backend == "jax":
        import jax

        matrix = jax.numpy.asarray(values, precision)
        product = jax.jit(jax.numpy.matmul)
        return lambda: product(matrix, matrix).block_until_ready()
    import tensorflow as tf

    matrix = tf.cast(values, precision)
    return lambda: tf.linalg.matmul(matrix, matrix)[:1, :1].numpy()


def device_name() -> str | None:
    """The accelerator's name, or None on a CPU."""
    backend = keras.config.backend()
    if backend == "torch":
        import torch

        return torch.cuda.get_device_name() if torch.cuda.is_available() else None
    if backend == "jax":
        import jax

        device = jax.devices()[0]
        return None if device.platform == "cpu" else device.device_kind
    import tensorflow as tf

    gpus = tf.config.list_physical_devices("GPU")
    return tf.config.experimental.get_device_details(gpus[0])["device_name"] if gpus else None


class DeviceMemory:
    """The rise of an accelerator's peak memory while a candidate runs, in MiB.

    Args:
        backend: whose allocator is asked: `"jax"`, `"tensorflow"` or `"torch"`.
    """

    def __init__(self, backend: str) -> None:
        self.backend = backend
        self.used, self.peak = self._now()
        if backend == "torch":
            import torch

            torch.cuda.reset_peak_memory_stats()

    def rise_mib(self) -> float | None:
        """MiB above what was in use before; None where an earlier peak of this process hides it."""
        _, peak = self._now()
        if self.backend == "jax" and peak <= self.peak:
            return None  # JAX's peak is the process's, and cannot be set back
        return (peak - self.used) / 2**20

    def _now(self) -> tuple[int, int]:
        if self.backend == "torch":
            import torch

            return torch.cuda.memory_allocated(), torch.cuda.max_memory_allocated()
        if self.backend == "jax":
            import jax

            stats = jax.devices()[0].memory_stats() or {}
            return stats.get("bytes_in_use", 0), stats.get("peak_bytes_in_use", 0)
        import tensorflow as tf

        info = tf.config.experimental.get_memory_info("GPU:0")
        tf.config.experimental.reset_memory_stats("GPU:0")
        return info["current"], info["peak"]


def versions() -> str:
    """Versions of Keras and the backend."""
    backend = keras.config.backend()
    return f"keras {keras.__version__}, {backend} {importlib.metadata.version(backend)}"


def _wait_for_torch() -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _forward(model: keras.Model, task: Task) -> Call:
    backend = keras.config.backend()
    if backend == "torch":
        return _forward_torch(model, task)
    images = keras.ops.convert_to_tensor(task.images())
    if backend == "jax":
        import jax

        state = (
            [variable.value for variable in model.trainable_variables],
            [variable.value for variable in model.non_trainable_variables],
        )
        call = jax.jit(lambda state, x: model.stateless_call(*state, x, training=False)[0])
        return lambda: jax.block_until_ready(call(state, images))
    import tensorflow as tf

    jit_compile = {"default": all(layer.supports_jit for layer in model.layers)}.get(
        task.compile, task.compile == "on"
    )
    call = tf.function(lambda x: model(x, training=False), jit_compile=jit_compile)
    return lambda: [x.numpy() for x in tf.nest.flatten(call(images))]


def _forward_torch(model: keras.Model, task: Task) -> Call:
    import torch

    images = keras.ops.convert_to_tensor(task.images())
    run = torch.compile(model) if task.compile == "on" else model

    def call():
        with torch.inference_mode():
            run(images, training=False)
        _wait_for_torch()

    return call


def _train_step(model: keras.Model, task: Task, optimizer: keras.optimizers.Optimizer) -> Call:
    heads = len(model.outputs)
    model.compile(
        optimizer=optimizer,
        loss=[keras.losses.SparseCategoricalCrossentropy(from_logits=True) for _ in range(heads)],
        loss_weights=[1 / heads] * heads,
        jit_compile=JIT_COMPILE[task.compile],
    )
    images = keras.ops.convert_to_tensor(task.images())
    labels = [keras.ops.convert_to_tensor(np.arange(task.batch, dtype="int32"))] * heads
    # The loss comes back as a number, so the step is done.
    return lambda: model.train_on_batch(images, labels)
