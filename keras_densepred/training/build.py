"""What recipes build from their settings: backbone, schedule, optimizer."""

from collections.abc import Mapping, Sequence
from typing import Any

import keras

from keras_densepred import backbones
from keras_densepred.faults import SettingsError
from keras_densepred.saved.preprocessing import Preprocessing
from keras_densepred.training import protocols
from keras_densepred.training.checks import require_size
from keras_densepred.training.devices.image_bytes import take_bytes
from keras_densepred.training.experiments import BACKBONE_OPTIONS
from keras_densepred.training.flags import source_of
from keras_densepred.training.layer_decay import layer_decay_rules, matrix_decay_rules
from keras_densepred.training.optim import AdamW, momentum_sgd
from keras_densepred.training.schedules import WarmupCosine, WarmupLinear, WarmupSteps


def build_for_training(recipe: Any, settings: Any, train: Any) -> keras.Model:
    """The model that a recipe trains: seeded, compiled, of a size that fits its images.

    Args:
        recipe: `Recipe`.
        settings: of the recipe, complete.
        train: the training split.

    Raises:
        SettingsError: if the model cannot divide the image size into its levels.
    """
    keras.utils.set_random_seed(settings.seed)
    model = recipe.build_model(settings, train)
    require_size(settings.image_size, model)
    recipe.pyramid_of(model).rematerialize(settings.rematerialize)
    prepared = recipe.preprocessing(settings)
    take_bytes(model, prepared.mean, prepared.std)
    return model


def is_pretrained(settings: Any) -> bool:
    """Whether the backbone starts from trained weights, by `--weights` or by its preset.

    Args:
        settings: `CommonSettings`, complete.
    """
    return source_of(settings).has_weights


def image_scaling(
    settings: Any,
    mean: tuple[float, ...] = protocols.IMAGENET_MEAN,
    std: tuple[float, ...] = protocols.IMAGENET_STD,
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of `Preprocessing`, as the backbone wants its images.

    Args:
        settings: `CommonSettings`, complete.
        mean: of backbones that were made for none in particular, RGB in 0..255.
        std: likewise.
    """
    return source_of(settings).normalization or (mean, std)


def build_backbone(settings: Any, **options: Any) -> backbones.PyramidBackbone:
    """The backbone of `--preset`, or with the weights of `--weights`.

    Args:
        settings: `CommonSettings`, complete.
        **options: more constructor arguments, where the family has them; None leaves one out. That
            of a run which is extended has them from its first start.

    Raises:
        ValueError: if there is no such backbone.
    """
    source = backbones.find_backbone(settings.weights or settings.preset)
    wanted: dict[str, Any] = {"dtype": settings.precision}
    for name, option in BACKBONE_OPTIONS.items():
        wanted[option] = getattr(settings, name, None)
    # As a flag: the stages are the papers'.
    wanted["deformable_stages"] = (3, 4, 5) if wanted["deformable_stages"] else None
    if not settings.extend:
        wanted |= {"sync_batch_norm": True, **options}
    chosen = {n: v for n, v in wanted.items() if v is not None and source.accepts(n)}
    backbone = source.build(**chosen)
    if settings.freeze_backbone:
        backbone.trainable = False
    return backbone


def detection_preprocessing(settings: Any, published: int | None) -> Preprocessing:
    """How the images of a detector's recipe are prepared for tests.

    Args:
        settings: `DetectionSettings`, complete.
        published: the `image_size` with which a paper's experiment is tested at 800/1333 px, and
            smaller runs of it at as much less; None fits images into their square.
    """
    frame: dict[str, Any] = {"image_size": settings.image_size}
    if published is not None:
        share = settings.image_size / published
        frame = {"short_side": round(800 * share), "long_side": round(1333 * share)}
    return Preprocessing("detection", *image_scaling(settings), **frame)


def make_schedule(
    settings: Any,
    drops: Sequence[float] = (),
    *,
    warmup_factor: float = 0.001,
    warmup_power: float = 1.0,
) -> keras.optimizers.schedules.LearningRateSchedule:
    """The learning rate over the steps of a run.

    Args:
        settings: `CommonSettings`, complete.
        drops: shares of the run after which `--schedule steps` takes a tenth of the rate.
        warmup_factor: share of the rate at which the warm-up starts.
        warmup_power: with steps, see `WarmupSteps`.

    Raises:
        SettingsError: if the settings do not go together.
    """
    total = settings.epochs * settings.steps_per_epoch
    rate, warmup = settings.learning_rate, settings.warmup_steps
    if settings.schedule == "steps":
        if not drops:
            raise SettingsError(
                f"The experiment {settings.experiment} does not say at which steps the rate "
                "drops: use --schedule cosine."
            )
        steps = sorted({round(total * share) for share in drops})
        return WarmupSteps(
            rate, warmup, steps, warmup_factor=warmup_factor, warmup_power=warmup_power
        )
    if settings.schedule == "cosine":
        return WarmupCosine(
            rate, warmup, max(total, warmup + 1), settings.floor, warmup_factor=warmup_factor
        )
    if settings.schedule == "linear":
        return WarmupLinear(rate, warmup, total, settings.floor, warmup_factor=warmup_factor)
    if warmup:
        raise SettingsError(
            "--schedule power4 has no warm-up: use --warmup-steps 0, or --schedule cosine."
        )
    return keras.optimizers.schedules.PolynomialDecay(rate, total, settings.floor, power=4)


def make_optimizer(
    settings: Any,
    model: keras.Model,
    schedule: keras.optimizers.schedules.LearningRateSchedule,
    *,
    head_decay: float | None = None,
    rules: Mapping[str, tuple[float, float]] | None = None,
    **options: Any,
) -> keras.optimizers.Optimizer:
    """SGD with momentum, or AdamW that decays matrices only.

    Args:
        settings: `CommonSettings`, complete.
        model: the model to train.
        schedule: of `make_schedule`.
        head_decay: with AdamW: the backbone, with its neck, learns at rates that fall with depth
            (`--layer-decay`), and everything else is decayed by this; None for the whole model at
            one rate.
        rules: with AdamW: of single variables, by path, as `AdamW` takes them.
        **options: more arguments of the optimizer.
    """
    options = {"use_ema": settings.ema > 0, "ema_momentum": settings.ema, **options}
    decay = settings.weight_decay
    if settings.optimizer == "sgd":
        return momentum_sgd(model, schedule, weight_decay=decay, **options)
    if head_decay is None:
        all_rules = matrix_decay_rules(model, decay)
    else:
        all_rules = layer_decay_rules(model.backbone, settings.layer_decay, decay)
        options["weight_decay"] = head_decay
    return AdamW(schedule, rules={**all_rules, **(rules or {})}, **options)
