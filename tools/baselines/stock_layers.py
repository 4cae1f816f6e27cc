"""The same network of stock Keras layers: what our tuned layers are benchmarked against."""

import keras

from keras_densepred import layers as ours
from keras_densepred.layers.norm import Activation, ConvBatchNorm, SyncConvBatchNorm
from keras_densepred.layers.pooling import GlobalMean, MaxPool
from keras_densepred.layers.stateless import Add
from keras_densepred.layers.upsampling import BilinearUpsample, NearestUpsample

_CHANNELS_LAST = {"data_format": "channels_last"}


def with_stock_layers(model: keras.Model) -> keras.Model:
    """Rebuilds a functional model, each tuned layer replaced by Keras' own for the same purpose.

    Args:
        model: a functional model of CEDNet or BiCSNet, with images of a fixed size. BiCSNet's
            activation must be relu: its max-pooling is padded with zeros here.

    Returns:
        A functional model with the same inputs, outputs and weights.
    """
    pairs = []

    def replace(layer: keras.layers.Layer) -> keras.layers.Layer:
        pairs.append((layer, _stock_layer(layer)))
        return pairs[-1][1]

    plain = keras.Model(model.inputs, model.outputs)
    stock = keras.models.clone_model(plain, clone_function=replace, call_function=_call)
    for layer, copy in pairs:
        copy.set_weights(layer.get_weights())
    return stock


def _call(layer: keras.layers.Layer, *args, **kwargs):
    """Calls a stock layer with what the layer that it stands for is called with."""
    if isinstance(layer, keras.layers.Add):
        return layer(list(args))
    if isinstance(layer, keras.layers.UpSampling2D) and len(args) == 2:
        x, fine = layer(args[0]), args[1]
        sides = zip(x.shape[1:3], fine.shape[1:3], strict=True)
        surplus = [(0, large - side) for large, side in sides]
        if surplus == [(0, 0), (0, 0)]:
            return x
        return keras.layers.Cropping2D(surplus, dtype=layer.dtype_policy, **_CHANNELS_LAST)(x)
    return layer(*args, **kwargs)


def _stock_layer(layer: keras.layers.Layer) -> keras.layers.Layer:
    keep = {"name": layer.name, "dtype": layer.dtype_policy}
    if isinstance(layer, ours.DepthwiseConv):
        return keras.layers.DepthwiseConv2D(
            layer.kernel_size,
            dilation_rate=layer.dilation_rate,
            padding="same",
            use_bias=layer.use_bias,
            **_CHANNELS_LAST,
            **keep,
        )
    if isinstance(layer, ours.Conv):
        same = layer.strides == 1 and layer.kernel_size % 2 == 1
        conv = keras.layers.Conv2D(
            layer.filters,
            layer.kernel_size,
            layer.strides,
            padding="same" if same else "valid",
            use_bias=layer.use_bias,
            **_CHANNELS_LAST,
            **keep,
        )
        return conv if same else _padded(layer.padding, conv)
    if isinstance(layer, MaxPool):
        return _padded(1, keras.layers.MaxPooling2D(3, 2, **_CHANNELS_LAST, **keep))
    if isinstance(layer, ours.Pointwise):
        return keras.layers.Dense(layer.units, use_bias=layer.use_bias, **keep)
    if isinstance(layer, ours.LayerNorm):
        return keras.layers.LayerNormalization(epsilon=layer.epsilon, **keep)
    if isinstance(layer, ConvBatchNorm | SyncConvBatchNorm):
        return keras.layers.BatchNormalization(
            momentum=layer.momentum, epsilon=layer.epsilon, **keep
        )
    if isinstance(layer, ours.GELU):
        return keras.layers.Activation("gelu", **keep)
    if isinstance(layer, Activation):
        return keras.layers.Activation(layer.activation, **keep)
    if isinstance(layer, Add):
        return keras.layers.Add(**keep)
    if isinstance(layer, GlobalMean):
        return keras.layers.GlobalAveragePooling2D(keepdims=True, **_CHANNELS_LAST, **keep)
    if isinstance(layer, BilinearUpsample):
        return keras.layers.UpSampling2D(2, interpolation="bilinear", **_CHANNELS_LAST, **keep)
    if isinstance(layer, NearestUpsample):
        return keras.layers.UpSampling2D(layer.factor, **_CHANNELS_LAST, **keep)
    return layer.__class__.from_config(layer.get_config())


def _padded(padding: int, layer: keras.layers.Layer) -> keras.layers.Layer:
    """A layer after zeros on each side of its map."""
    if not padding:
        return layer
    pad = keras.layers.ZeroPadding2D(padding, dtype=layer.dtype_policy, **_CHANNELS_LAST)
    return keras.Sequential([pad, layer], name=f"{layer.name}_padded")
