"""What cannot be trained is refused before anything slow happens."""

from typing import Any

from keras_densepred import data
from keras_densepred.faults import SettingsError


def require_trainable(train: Any, batch_size: int) -> None:
    """Refuses what cannot be trained before anything slow happens.

    Args:
        train: the training split.
        batch_size: images per step.

    Raises:
        SettingsError: if there are too few images, or no class.
    """
    if len(train) < batch_size:
        raise SettingsError(
            f"There are {len(train)} training images and a batch takes {batch_size}: "
            f"use --batch-size {len(train)} or less."
        )
    if not train.class_names:
        raise SettingsError("The training data name no class, so there is nothing to learn.")


def require_evaluations(settings: Any) -> None:
    """Refuses a patience that no run of this length can lose.

    Raises:
        SettingsError: if there are not more evaluations.
    """
    evaluations = -(-settings.epochs // settings.evaluate_every)
    if settings.patience and settings.patience >= evaluations:
        less = "give less" if evaluations > 1 else "leave it out"
        raise SettingsError(
            f"--patience {settings.patience} never stops a run of {settings.epochs} epochs, which "
            f"is evaluated {evaluations} times: {less}, or give more --epochs"
            + (" or a smaller --evaluate-every." if settings.evaluate_every > 1 else ".")
        )


def require_readable_images(train: Any, val: Any, on_bad_image: Any) -> None:
    """Looks at the images before the first step, as far as that is cheap, and says what is wrong.

    Raises:
        data.ImageError: if one cannot be read and `on_bad_image` is `"raise"`.
    """
    for fault in data.require_readable(val, on_bad_image):
        print(f"passed over: {fault}")
    faults = data.require_readable(train, on_bad_image, decode=False)
    if faults:
        others = f", and {len(faults) - 1:,} more" if len(faults) > 1 else ""
        print(f"passed over in training{others}: {faults[0]}")


def require_size(image_size: int, model: Any) -> None:
    """Refuses an image size that a model cannot divide into its levels.

    Args:
        image_size: side of the training images in pixels.
        model: a detector, segmenter, classifier or backbone.

    Raises:
        SettingsError: if the size is no multiple of `model.size_divisor`.
    """
    divisor = model.size_divisor
    if image_size % divisor:
        nearest = max(divisor, round(image_size / divisor) * divisor)
        raise SettingsError(
            f"--image-size {image_size} is no multiple of {divisor}, which the backbone needs: use "
            f"{nearest}."
        )
