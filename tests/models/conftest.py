"""A pyramid backbone and a detection pyramid of a few thousand weights, for heads to stand on."""

import keras
import keras_hub
import pytest


@keras.saving.register_keras_serializable(package="keras_densepred_tests")
class ToyPyramid(keras_hub.models.FeaturePyramidBackbone):
    """Strided convolutions; levels `min_level` to `max_level` are its output."""

    def __init__(self, filters=8, max_level=5, image_shape=(None, None, 3), dtype=None, **kwargs):
        images = x = keras.Input(image_shape)
        outputs = {}
        for level in range(1, max_level + 1):
            x = keras.layers.Conv2D(
                filters, 3, 2, "same", activation="relu", name=f"level_{level}", dtype=dtype
            )(x)
            if level >= 3:
                outputs[f"P{level}"] = x
        super().__init__(inputs=images, outputs=outputs, dtype=dtype, **kwargs)
        self.filters = filters
        self.image_shape = image_shape
        self.pyramid_outputs = outputs
        if max_level > 5:
            self.min_level, self.max_level = 3, max_level

    @property
    def pyramid_level_inputs(self):
        return {k: v._keras_history.operation.name for k, v in self.pyramid_outputs.items()}

    def get_config(self):
        max_level = max(int(level[1]) for level in self.pyramid_outputs)
        return {
            **super().get_config(),
            "filters": self.filters,
            "max_level": max_level,
            "image_shape": self.image_shape,
        }


@pytest.fixture
def toy_backbone():
    """P3 to P5, as a backbone gives them to an FPN."""
    keras.utils.set_random_seed(0)
    return ToyPyramid(max_level=5)


@pytest.fixture
def toy_pyramid():
    """P3 to P7, as a detection pyramid gives them to heads."""
    keras.utils.set_random_seed(0)
    return ToyPyramid(max_level=7)
