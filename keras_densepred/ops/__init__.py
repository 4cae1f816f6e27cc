"""Operations with tuned code per backend: the only place with per-backend code."""

from keras_densepred.ops.depthwise import depthwise_conv

__all__ = ["depthwise_conv"]
