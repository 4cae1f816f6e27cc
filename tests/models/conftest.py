"""A pyramid backbone of a few thousand weights, for heads to stand on."""

import keras
import pytest

from keras_densepred.backbones.backbone import PyramidBackbone


@keras.saving.register_keras_serializable(package="keras_densepred_tests")
class ToyPyramid(PyramidBackbone):
    """Strided convolutions; its P3 to P5 are equally wide, or (not `ready`) want an FPN."""

    def __init__(self, ready=True, filters=8, dtype=None, **kwargs):
        image_shape = (None, None, 3)
        images = x = keras.Input(image_shape)
        outputs = {}
        for level in range(1, 6):
            width = filters if ready or level < 5 else 2 * filters
            x = keras.layers.Conv2D(
                width, 3, 2, "same", activation="relu", name=f"level_{level}", dtype=dtype
            )(x)
            if level >= 3:
                outputs[f"P{level}"] = x
        super().__init__(
            inputs=images,
            pyramid_outputs=outputs,
            image_shape=image_shape,
            data_format="channels_last",
            dtype=dtype,
            **kwargs,
        )
        self.ready = ready
        self.filters = filters

    def get_config(self):
        config = super().get_config()
        for fixed in ("image_shape", "data_format"):
            config.pop(fixed, None)
        return {**config, "ready": self.ready, "filters": self.filters}


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
