"""The same network of stock Keras layers: what our tuned layers are benchmarked against."""

import keras

from keras_densepred import layers as ours
from keras_densepred.layers.upsampling import BilinearUpsample


def with_stock_layers(model: keras.Model) -> keras.Model:
    """Rebuilds a functional model, each tuned layer replaced by Keras' own for the same purpose.

    Args:
        model: a functional model of this package.

    Returns:
        A functional model with the same inputs, outputs and weights.
    """
    plain = keras.Model(model.inputs, model.outputs)
    stock = keras.models.clone_model(plain, clone_function=_stock_layer)
    for layer, copy in zip(plain.layers, stock.layers, strict=True):
        copy.set_weights(layer.get_weights())
    return stock


def _stock_layer(layer: keras.layers.Layer) -> keras.layers.Layer:
    keep = {"name": layer.name, "dtype": layer.dtype_policy}
    channels_last = {"data_format": "channels_last"}
    if isinstance(layer, ours.DepthwiseConv):
        return keras.layers.DepthwiseConv2D(
            layer.kernel_size,
            dilation_rate=layer.dilation_rate,
            padding="same",
            use_bias=layer.use_bias,
            **channels_last,
            **keep,
        )
    if isinstance(layer, ours.Conv):
        conv = keras.layers.Conv2D(
            layer.filters,
            layer.kernel_size,
            layer.strides,
            use_bias=layer.use_bias,
            **channels_last,
            **keep,
        )
        if not layer.padding:
            return conv
        pad = keras.layers.ZeroPadding2D(layer.padding, dtype=layer.dtype_policy, **channels_last)
        return keras.Sequential([pad, conv], name=f"{layer.name}_padded")
    if isinstance(layer, ours.Pointwise):
        return keras.layers.Dense(layer.units, use_bias=layer.use_bias, **keep)
    if isinstance(layer, ours.LayerNorm):
        return keras.layers.LayerNormalization(epsilon=layer.epsilon, **keep)
    if isinstance(layer, ours.GELU):
        return keras.layers.Activation("gelu", **keep)
    if isinstance(layer, BilinearUpsample):
        return keras.layers.UpSampling2D(2, interpolation="bilinear", **channels_last, **keep)
    return layer.__class__.from_config(layer.get_config())
