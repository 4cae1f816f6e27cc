"""The network of both models: backbone, pixel decoder, queries."""

from typing import Any

import keras

from keras_densepred.faults import require_positive
from keras_densepred.layers.residual import ReplicaSeedGenerator
from keras_densepred.models.mask2former.decoder import MaskDecoder
from keras_densepred.models.mask2former.losses import layer_losses, match
from keras_densepred.models.mask2former.pixel_decoder import PixelDecoder
from keras_densepred.models.mask2former.targets import MaskTargets
from keras_densepred.models.pyramid import image_shape, levels_on

Tensor = Any

NUM_POINTS = 12544  # 112 x 112, of each mask, that costs and losses look at


class MaskNetwork:
    """Mixin, before `keras.Model`: builds the graph, and trains it on masks.

    Attributes:
        finest: the level that masks have the size of, 2 or, on backbones without P2, 3.
    """

    backbone: keras.Model
    finest: int
    num_points: int
    seed_generator: ReplicaSeedGenerator

    def _graph(
        self,
        backbone: keras.Model,
        num_classes: int,
        *,
        width: int,
        num_queries: int,
        encoder_layers: int,
        decoder_layers: int,
        num_heads: int,
        encoder_hidden: int,
        decoder_hidden: int,
        num_points: int,
        dtype: Any,
        query_selection: str = "learned",
    ) -> tuple[Any, dict[str, Any]]:
        """Symbolic images and what `MaskDecoder` predicts for them.

        Raises:
            ValueError: if a number is out of range.
        """
        require_positive(
            num_classes=num_classes,
            width=width,
            num_queries=num_queries,
            decoder_layers=decoder_layers,
            num_points=num_points,
        )
        if width % 4 or width % num_heads:
            raise ValueError(
                f"`width` is {width}; give a multiple of 4, for positions, and of `num_heads`, "
                f"{num_heads}."
            )
        images = keras.Input(image_shape(backbone), name="images")
        features = levels_on(backbone, images)
        finest = "P2" if "P2" in features else "P3"
        maps = PixelDecoder(
            *(width, encoder_layers, num_heads, encoder_hidden), name="pixel_decoder", dtype=dtype
        )([features[name] for name in (finest, "P3", "P4", "P5")])
        outputs = MaskDecoder(
            *(num_classes, num_queries, decoder_layers, num_heads, decoder_hidden, query_selection),
            name="mask_decoder",
            dtype=dtype,
        )(maps)
        return images, outputs

    def _set_network(self, num_points: int, **settings: Any) -> None:
        """Ends a constructor: arguments as attributes of their names, and the source of points."""
        self.finest = 2 if "P2" in self.backbone.pyramid_outputs else 3
        self.num_points = num_points
        for name, value in settings.items():
            setattr(self, name, value)
        self.seed_generator = ReplicaSeedGenerator()

    @property
    def stride(self) -> int:
        """Pixels of an image per position of a mask."""
        return 2**self.finest

    def default_optimizer(self) -> keras.optimizers.Optimizer:
        """AdamW with learning rate 1e-4, decay 0.05, gradients clipped to a norm of 0.01 in all.

        The paper's for batch 16, but for the backbone's rate, a tenth of it, and for norms and
        embeddings, which it does not decay.
        """
        return keras.optimizers.AdamW(1e-4, weight_decay=0.05, epsilon=1e-8, global_clipnorm=0.01)

    def mask_losses(self, outputs: dict[str, Tensor], targets: MaskTargets) -> dict[str, Tensor]:
        """The parts of the loss, each the sum over all predictions of the decoder.

        Args:
            outputs: of `MaskDecoder`.
            targets: of the batch.

        Returns:
            `"classification_loss"`, `"mask_loss"` and `"dice_loss"`.
        """
        assigned = match(outputs, targets, self.num_points, self._uniform)
        layers = [
            layer_losses(
                *(outputs, layer, assigned[:, layer], targets, self.num_points, self._uniform)
            )
            for layer in range(outputs["class_logits"].shape[1])
        ]
        return {
            "classification_loss": sum(layer.classification for layer in layers),
            "mask_loss": sum(layer.mask for layer in layers),
            "dice_loss": sum(layer.dice for layer in layers),
        }

    def _uniform(self, shape: tuple[Any, ...]) -> Tensor:
        return keras.random.uniform(shape, dtype="float32", seed=self.seed_generator)


def last_prediction(outputs: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Class logits (B, Q, C + 1), embeddings (B, Q, width) and features (B, h, w, width)."""
    return (
        outputs["class_logits"][:, -1],
        outputs["mask_embeddings"][:, -1],
        outputs["mask_features"],
    )
