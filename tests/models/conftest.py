"""A pyramid backbone of a few thousand weights, for heads to stand on."""

import keras
import keras_hub
import pytest


@keras.saving.register_keras_serializable(package="keras_densepred_tests")
class ToyPyramid(keras_hub.models.FeaturePyramidBackbone):
    """Strided convolutions; P3 to P5 are its output, for an FPN or (`ready`) for the heads."""

    def __init__(self, ready=True, filters=8, dtype=None, **kwargs):
        image_shape = (None, None, 3)
        images = x = keras.Input(image_shape)
        outputs = {}
        for level in range(1, 6):
            x = keras.layers.Conv2D(
                filters, 3, 2, "same", activation="relu", name=f"level_{level}", dtype=dtype
            )(x)
            if level >= 3:
                outputs[f"P{level}"] = x
        super().__init__(inputs=images, outputs=outputs, dtype=dtype, **kwargs)
        self.ready = ready
        self.filters = filters
        self.image_shape = image_shape
        self.pyramid_outputs = outputs
        if ready:
            self.min_level, self.max_level = 3, 5

    @property
    def pyramid_level_inputs(self):
        return {k: v._keras_history.operation.name for k, v in self.pyramid_outputs.items()}

    def get_config(self):
        return {**super().get_config(), "ready": self.ready, "filters": self.filters}


@pytest.fixture(scope="module")
def toy_backbone():
    """P3 to P5, as a backbone gives them to an FPN."""
    keras.utils.set_random_seed(0)
    return ToyPyramid(ready=False)


@pytest.fixture(scope="module")
def toy_pyramid():
    """P3 to P5, as a detection pyramid gives them to heads."""
    keras.utils.set_random_seed(0)
    return ToyPyramid()
