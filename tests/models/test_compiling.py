"""A loaded model is compiled as it was, but as the backend in use does by default."""

import keras
import numpy as np
import pytest

from keras_densepred import ResNetBackbone, models
from keras_densepred.models.compiling import accept_other_orders
from tests.hosts import needs_keras_cv


def classifier():
    return models.CSPNetImageClassifier(ResNetBackbone((1, 1, 1, 1), width=2), 2)


MODELS = {
    "classifier": lambda backbone: classifier(),
    "yolo": lambda backbone: models.YOLOv3Detector(backbone, 2, "prn"),
    "faster": lambda backbone: models.FasterRCNN(backbone, 2, head_width=8),
    "segmenter": lambda backbone: models.DeepLabV3(backbone, num_classes=2),
    "retinanet": lambda backbone: models.RetinaNetKerasHub(backbone, num_classes=2, head_depth=1),
    "retinanet_keras_cv": lambda backbone: models.RetinaNetKerasCV(backbone, num_classes=2),
}
ON_PYRAMID = ("faster", "retinanet", "retinanet_keras_cv")


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=needs_keras_cv if n.endswith("keras_cv") else ()) for n in MODELS],
)
def test_the_backend_decides_again(name, toy_backbone, toy_pyramid, tmp_path):
    model = MODELS[name](toy_pyramid if name in ON_PYRAMID else toy_backbone)
    model.compile()
    default = model.jit_compile
    model.compile(jit_compile=not default)  # as it is after training on another backend
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert loaded.compiled
    assert loaded.jit_compile == default


@pytest.mark.slow_on("jax", "tensorflow")
def test_a_classifier_goes_on_as_it_was_compiled(tmp_path):
    """KerasHub's would begin anew with its own optimizer and loss."""
    model = classifier()
    model.compile(
        keras.optimizers.SGD(0.1, momentum=0.9),
        keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=0.1),
        metrics=["accuracy"],
    )
    images = np.random.default_rng(0).normal(size=(2, 32, 32, 3)).astype("float32")
    labels = np.eye(2, dtype="float32")
    model.train_on_batch(images, labels)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert int(loaded.optimizer.iterations) == 1
    again, expected = (m.train_on_batch(images, labels) for m in (loaded, model))
    np.testing.assert_allclose(again, expected, rtol=1e-4)
    for one, other in zip(loaded.trainable_weights, model.trainable_weights, strict=True):
        np.testing.assert_allclose(
            keras.ops.convert_to_numpy(one), keras.ops.convert_to_numpy(other), atol=1e-5
        )


@pytest.mark.slow_on("jax")
def test_a_model_compiled_with_an_optimizer_on_pytorch_goes_on_elsewhere(golden):
    """The file names PyTorch's own class of Adam."""
    model = keras.saving.load_model(golden / "saved" / "yolov3.keras")
    assert isinstance(model.optimizer, keras.optimizers.Adam)
    before = int(model.optimizer.iterations)
    weights = model.trainable_variables
    model.optimizer.apply([keras.ops.ones_like(weight) for weight in weights], weights)
    assert int(model.optimizer.iterations) == before + 1
    assert np.isfinite(keras.ops.convert_to_numpy(weights[0])).all()


@pytest.mark.slow_on("jax", "tensorflow")
def test_a_model_compiled_with_an_optimizer_on_pytorch_trains_elsewhere(golden):
    model = keras.saving.load_model(golden / "saved" / "yolov3.keras")
    if keras.config.backend() == "tensorflow":
        model.jit_compile = False  # XLA would take most of the time
    images = np.zeros((1, 64, 64, 3), "float32")
    targets = {
        "boxes": np.array([[[8, 8, 40, 40]]], "float32"),
        "labels": np.zeros((1, 1), "int32"),
    }
    assert np.isfinite(model.train_on_batch(images, targets)).all()


def _state(optimizer):
    return {v.path.partition("/")[2]: keras.ops.convert_to_numpy(v) for v in optimizer.variables}


@pytest.mark.parametrize("moved", ["first", "last"])
def test_an_optimizers_state_loads_from_a_backend_with_the_outermost_layer_elsewhere(moved):
    """keras-hub's DeepLabv3: its last layer comes first on JAX and TensorFlow, last on PyTorch."""

    def network():
        images = keras.Input((4,), name="images")
        x = keras.layers.Dense(3, name="one")(images)
        return keras.Model(images, keras.layers.Dense(5, name="two")(x))

    layers = [layer for layer in network().layers if layer.weights]
    other = keras.optimizers.Adam(1e-3)
    order = layers[-1:] + layers[:-1] if moved == "last" else layers[1:] + layers[:1]
    other.build([variable for layer in order for variable in layer.trainable_variables])
    for index, variable in enumerate(other.variables[2:]):
        variable.assign(np.full(variable.shape, index, "float32"))
    store = {str(i): keras.ops.convert_to_numpy(v) for i, v in enumerate(other.variables)}

    model = network()
    optimizer = keras.optimizers.Adam(1e-3)
    optimizer.build(model.trainable_variables)
    accept_other_orders(optimizer, model.layers)
    optimizer.load_own_variables(store)
    expected = _state(other)
    for name, value in _state(optimizer).items():
        np.testing.assert_array_equal(value, expected[name], err_msg=name)
    optimizer.load_own_variables({str(i): v for i, v in enumerate(optimizer.variables)})
    with pytest.raises(ValueError, match="shape"):
        optimizer.load_own_variables({str(i): np.zeros(7) for i in range(len(store))})
