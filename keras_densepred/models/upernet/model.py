"""UperNet, with which CEDNet and ConvNeXt segment ADE20K."""

import functools
from collections.abc import Sequence
from typing import Any

import keras

from keras_densepred.backbones.cednet import CEDNetBackbone
from keras_densepred.backbones.host_graph import shares_batch_norms
from keras_densepred.faults import require_positive
from keras_densepred.layers.conv_norm import ConvNorm
from keras_densepred.layers.initializers import FanOutNormal
from keras_densepred.layers.upsampling import UpsampleToImage
from keras_densepred.models.class_axis import ClassAxis, axes_of
from keras_densepred.models.pyramid import image_shape, levels_on
from keras_densepred.models.segmenter import IgnoreCrossentropy, Segmenter, check_backbone
from keras_densepred.models.upernet.heads import (
    EPSILON,
    MOMENTUM,
    ced_decoder,
    classify,
    uper_decoder,
)

UPERNET_HEADS = ("uper", "ced")
POOL_SIZES = (1, 2, 3, 6)
PAPER_LEARNING_RATE = 1e-4  # CEDNet on ADE20K, of batch 16


@keras.saving.register_keras_serializable(package="keras_densepred")
class UperNet(Segmenter, keras.Model):
    """Semantic segmentation by pooling pyramid and top-down path (CEDNet, Table 3).

    The head is that of Xiao et al., "Unified Perceptual Parsing for Scene Understanding" (2018), as
    MMSegmentation has it: a pooling pyramid on P5, 1x1 convolutions of the finer levels, to which
    the coarser ones are added, a 3x3 convolution for each, and one of them all at the finest size;
    each with batch norm and ReLU. Then dropout of channels and a 1x1 convolution to logits.

    In training an auxiliary head (3x3 convolution, dropout, 1x1 convolution) predicts as well, from
    an inner stage of the backbone. It is no part of the network otherwise. Its loss counts 0.4.

    Input: images `(batch, height, width, 3)` as the backbone wants them, of any size that it takes.
    Output: logits `(batch, height, width, num_classes)`, float32; called with `training=True`, a
    tuple of two such tensors, the second from the auxiliary head, if there is one.

    Trains on masks `(batch, height, width)` of integers, 255 where there is no class; by default
    the loss is averaged over all pixels, the ignored ones included.

    A pooling grid of one cell has one value for each image: a batch of one image on one device
    leaves its batch norm nothing to normalise in training.

    Args:
        backbone: with `pyramid_outputs` P3, P4 and P5, and P2 if it has one; without, everything is
            at P3's stride.
        num_classes: C, the background included where it is a class.
        width: channels of the head.
        pool_sizes: grids of the pooling pyramid, cells along an axis.
        auxiliary: what the auxiliary head reads: a level such as `"P4"`, or `"stage2"` for the
            C3 that the second stage of a `CEDNetBackbone` hands on; None for no such head. `"auto"`
            is the authors' choice: the last stage but one, P4 on other backbones (ConvNeXt's), P3
            with `head="ced"`.
        auxiliary_width: channels of the auxiliary head.
        auxiliary_weight: of its loss.
        dropout: probability with which a channel is dropped before the logits.
        head: `"uper"`, or `"ced"` for the CEDNet authors' `CEDHead` (in their code, not in the
            paper), on a `CEDNetBackbone` with `final_decoder=True`.
        sync_batch_norm: whether the devices share the statistics of a batch in training; None as in
            the backbone.
        dtype: dtype policy of the head; by default the backbone's. Logits are float32.
        **kwargs: arguments of `keras.Model`, such as `name`.

    Raises:
        ValueError: if `backbone` lacks a level or is channels_first, or an argument is out of
            range.

    Example:
        backbone = keras_densepred.CEDNetBackbone.from_preset("cednet_next_tiny")
        model = keras_densepred.models.UperNet(backbone, num_classes=150)
        model.compile()
        model.fit(images, masks)
    """

    def __init__(
        self,
        backbone: keras.Model,
        num_classes: int,
        width: int = 512,
        pool_sizes: Sequence[int] = POOL_SIZES,
        auxiliary: str | None = "auto",
        auxiliary_width: int = 256,
        auxiliary_weight: float = 0.4,
        dropout: float = 0.1,
        head: str = "uper",
        sync_batch_norm: bool | None = None,
        dtype: Any = None,
        **kwargs: Any,
    ):
        check_backbone(backbone, num_classes, ("P3", "P4", "P5"))
        _check_arguments(
            {"width": width, "auxiliary_width": auxiliary_width}, pool_sizes, dropout, head
        )
        if head == "ced":
            _check_ced_backbone(backbone)
        if auxiliary == "auto":
            auxiliary = _authors_choice(backbone, head)
        if sync_batch_norm is None:
            sync_batch_norm = shares_batch_norms(backbone)
        head_dtype = keras.dtype_policies.get(dtype or backbone.dtype_policy)
        kit = ConvNorm(
            "relu",
            momentum=MOMENTUM,
            epsilon=EPSILON,
            sync_batch_norm=sync_batch_norm,
            dtype=head_dtype,
            start=functools.partial(FanOutNormal, gain=2**0.5),
        )

        # === Functional model ===
        images = keras.Input(image_shape(backbone), name="images")
        inner = _inner_map(backbone, auxiliary)
        features = levels_on(backbone, images, inner)
        maps: dict[str, Any] = {
            name: features[name] for name in ("P2", "P3", "P4", "P5") if name in features
        }
        if head == "uper":
            x = uper_decoder(kit, maps, width, pool_sizes)
        else:
            x = ced_decoder(kit, backbone, maps, width, pool_sizes)
        logits = classify(kit, x, num_classes, dropout, "logits")
        outputs = _at_image_size(logits, images, min(maps), "upsampled_logits")
        super().__init__(inputs=images, outputs=outputs, **kwargs)
        self.backbone = backbone
        self._call_both = None
        if auxiliary is not None:
            source = keras.Input(features[auxiliary].shape[1:], name="auxiliary_map")
            x = kit.unit(source, auxiliary_width, 3, "auxiliary")
            x = classify(kit, x, num_classes, dropout, "auxiliary_logits")
            self.auxiliary_head = keras.Model(source, x, name="auxiliary_head")
            level = "P3" if auxiliary in inner else auxiliary
            beside = _at_image_size(
                self.auxiliary_head(features[auxiliary]),
                images,
                level,
                "upsampled_auxiliary_logits",
            )
            both = keras.Model(images, (outputs, beside))
            # Methods and not the model, whose layers are this model's already.
            self._call_both, self._spec_of_both = both.call, both.compute_output_spec

        # === Config ===
        self.num_classes = num_classes
        self.width = width
        self.pool_sizes = tuple(pool_sizes)
        self.auxiliary = auxiliary
        self.auxiliary_width = auxiliary_width
        self.auxiliary_weight = auxiliary_weight
        self.dropout = dropout
        self.head = head
        self.sync_batch_norm = sync_batch_norm
        self.head_dtype = head_dtype

    def call(self, inputs: Any, training: bool | None = None, mask: Any = None) -> Any:
        """(B, H, W, 3) -> logits (B, H, W, C), in training those of both heads."""
        if training and self._call_both is not None:
            return self._call_both(inputs, training=True)
        return super().call(inputs, training=training, mask=mask)

    def compute_output_spec(
        self, inputs: Any, training: bool | None = None, mask: Any = None
    ) -> Any:
        """As `call`."""
        if training and self._call_both is not None:
            return self._spec_of_both(inputs, training=True)
        return super().compute_output_spec(inputs, training=training, mask=mask)

    def class_axes(self) -> dict[str, ClassAxis]:
        """See `Segmenter.class_axes`."""
        layers = [self.get_layer("logits")]
        if self.auxiliary is not None:
            layers.append(self.auxiliary_head.get_layer("auxiliary_logits"))
        return axes_of([w for layer in layers for w in layer.weights], ClassAxis())

    def default_optimizer(self) -> keras.optimizers.Optimizer:
        """AdamW at CEDNet's rate; the recipe's leaves norms and biases undecayed."""
        return keras.optimizers.AdamW(PAPER_LEARNING_RATE, weight_decay=0.05)

    def default_loss(self) -> keras.losses.Loss:
        """The mean over all pixels, ignored ones included."""
        return IgnoreCrossentropy(average="all")

    def compute_loss(
        self,
        x: Any = None,
        y: Any = None,
        y_pred: Any = None,
        sample_weight: Any = None,
        training: bool = True,
    ) -> Any:
        """As `Segmenter.compute_loss`; of both heads where `y_pred` has the logits of both."""
        if not isinstance(y_pred, (list, tuple)):
            return super().compute_loss(x, y, y_pred, sample_weight, training)
        logits, beside = y_pred
        loss = super().compute_loss(x, y, logits, sample_weight, training)
        auxiliary = super().compute_loss(x, y, beside, sample_weight, training)
        # What layers add to the loss is in both.
        return loss + self.auxiliary_weight * (auxiliary - sum(self.losses))

    def compute_metrics(self, x: Any, y: Any, y_pred: Any, sample_weight: Any = None) -> Any:
        """As `keras.Model.compute_metrics`, of the logits that predict."""
        if isinstance(y_pred, (list, tuple)):
            y_pred = y_pred[0]
        return super().compute_metrics(x, y, y_pred, sample_weight)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "width": self.width,
            "pool_sizes": self.pool_sizes,
            "auxiliary": self.auxiliary,
            "auxiliary_width": self.auxiliary_width,
            "auxiliary_weight": self.auxiliary_weight,
            "dropout": self.dropout,
            "head": self.head,
            "sync_batch_norm": self.sync_batch_norm,
            "dtype": keras.saving.serialize_keras_object(self.head_dtype),
        }


def _at_image_size(logits: Any, images: Any, level: str, name: str) -> Any:
    return UpsampleToImage(2 ** int(level[1:]), name=name, dtype="float32")(logits, images)


def _authors_choice(backbone: keras.Model, head: str) -> str:
    """The map that their auxiliary head reads."""
    if head == "ced":
        return "P3"
    stages = len(getattr(backbone, "stage_outputs", ()))
    return f"stage{stages - 1}" if stages > 1 else "P4"


def _inner_map(backbone: keras.Model, auxiliary: str | None) -> dict[str, Any]:
    """The map of an inner stage by its name; nothing if `auxiliary` is a level or None.

    Raises:
        ValueError: if it is neither.
    """
    if auxiliary is None or auxiliary in backbone.pyramid_outputs:
        return {}
    stages = {
        f"stage{number}": maps["P3"]
        for number, maps in enumerate(getattr(backbone, "stage_outputs", ()), start=1)
    }
    if auxiliary not in stages:
        raise ValueError(
            f"`auxiliary` is {auxiliary!r}, and `backbone` {backbone.name!r} has "
            f"{', '.join([*backbone.pyramid_outputs, *stages])}: give one of these, or None."
        )
    return {auxiliary: stages[auxiliary]}


def _check_ced_backbone(backbone: keras.Model) -> None:
    if not isinstance(backbone, CEDNetBackbone) or not backbone.final_decoder:
        raise ValueError(
            f'`head="ced"` is one more stage of a CEDNet, and `backbone` {backbone.name!r} is none '
            "that ends in a decoder: give a CEDNetBackbone with `final_decoder=True`."
        )


def _check_arguments(
    widths: dict[str, int], pool_sizes: Sequence[int], dropout: float, head: str
) -> None:
    require_positive(**widths)
    if not pool_sizes or min(pool_sizes) < 1:
        raise ValueError(f"`pool_sizes` are {tuple(pool_sizes)}; give positive integers.")
    if not 0 <= dropout < 1:
        raise ValueError(f"`dropout` must be in [0, 1), and is {dropout}.")
    if head not in UPERNET_HEADS:
        raise ValueError(f"`head` must be one of {UPERNET_HEADS}, and is {head!r}.")
