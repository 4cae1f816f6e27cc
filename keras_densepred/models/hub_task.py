"""What our models on KerasHub's tasks share: presets of any family, training on any batches."""

from typing import TYPE_CHECKING, Any, Self

import keras
import keras_hub

from keras_densepred.backbones.backbone import PyramidBackbone
from keras_densepred.backbones.find import load_backbone
from keras_densepred.backbones.registry import built_in_preset
from keras_densepred.backbones.saved_preset import BackboneClass, any_backbone
from keras_densepred.models.compiling import CompiledAsSaved

if TYPE_CHECKING:
    from keras_hub.models import Task
else:
    Task = object  # as `KerasModel` of `models.compiling`


class HubTask(CompiledAsSaved, Task):
    """Mixin, before a class of KerasHub: takes backbones of every family, batches from everywhere.

    Where `keras_hub.models.Task` of keras-hub 0.32.0 differs: it maps its preprocessor over all
    inputs, also where there is none, and so `fit` takes arrays and datasets but no generator, and
    needs TensorFlow or Grain on every backend; `from_preset` takes backbones of one class only; a
    loaded model is not compiled as it was saved.
    """

    backbone_cls = BackboneClass(PyramidBackbone)

    @classmethod
    def from_preset(cls, preset: str, load_weights: bool = True, **kwargs: Any) -> Self:
        """Loads what `save_to_preset` wrote, or puts a new head on a backbone's preset.

        Args:
            preset: a built-in name of a backbone, or the directory or handle of a preset of this
                model's or of a backbone's (then give `num_classes`).
            load_weights: whether to load the weights of the preset.
            **kwargs: constructor arguments that replace the preset's.

        Returns:
            The model.

        Raises:
            ValueError: if there is no such preset.
        """
        if built_in_preset(preset) is not None:
            return cls(load_backbone(preset), **kwargs)
        with any_backbone(preset):
            return super().from_preset(preset, load_weights, **kwargs)

    def _trainer(self) -> type[keras.Model]:
        """Whose `fit` runs: Keras' own, unless there is a preprocessor to map over the inputs."""
        return keras.Model if self.preprocessor is None else keras_hub.models.Task

    def fit(self, *args: Any, **kwargs: Any) -> keras.callbacks.History:
        """As `keras.Model.fit`."""
        return self._trainer().fit(self, *args, **kwargs)

    def evaluate(self, *args: Any, **kwargs: Any) -> Any:
        """As `keras.Model.evaluate`."""
        return self._trainer().evaluate(self, *args, **kwargs)

    def predict(self, *args: Any, **kwargs: Any) -> Any:
        """As `keras.Model.predict`."""
        return self._trainer().predict(self, *args, **kwargs)

    def train_on_batch(self, *args: Any, **kwargs: Any) -> Any:
        """As `keras.Model.train_on_batch`; a preprocessor, if any, is not applied."""
        return keras.Model.train_on_batch(self, *args, **kwargs)

    def test_on_batch(self, *args: Any, **kwargs: Any) -> Any:
        """As `keras.Model.test_on_batch`; a preprocessor, if any, is not applied."""
        return keras.Model.test_on_batch(self, *args, **kwargs)

    def predict_on_batch(self, *args: Any, **kwargs: Any) -> Any:
        """As `keras.Model.predict_on_batch`; a preprocessor, if any, is not applied."""
        return keras.Model.predict_on_batch(self, *args, **kwargs)
