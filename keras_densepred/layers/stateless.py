"""Layers that PyTorch runs without Keras' bookkeeping."""

from keras_densepred.runtime.eager import can_run_directly


class Direct:
    """Mixin, before the Keras class: a call that only computes skips `keras.layers.Layer.__call__`.

    For layers as `can_run_directly` wants them; it tells what this saves.
    """

    def __call__(self, *args, **kwargs):
        if can_run_directly(self, args, kwargs):
            return self.call(*args)
        return super().__call__(*args, **kwargs)
