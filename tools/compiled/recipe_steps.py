"""What a recipe compiles, without the data that it is for: its model and the shapes of a batch."""

import dataclasses
import importlib
from collections.abc import Sequence
from typing import Any

import keras

from keras_densepred import data
from keras_densepred.cli.scripts import find_recipe
from keras_densepred.training.build import build_for_training
from keras_densepred.training.settings import check_numbers, parse_flags
from tools.compiled.steps import with_rows


@dataclasses.dataclass(frozen=True)
class Data:
    """What of a data set decides the shapes of a step.

    Attributes:
        images: of the training split; with many a recipe takes its published settings.
        classes: to tell apart.
        objects: most of an image.
    """

    images: int
    classes: int
    objects: int = 0


# COCO's fullest training image has 93 objects that are not crowds.
DATA = {
    "imagenet": Data(1_281_167, 1000),
    "coco": Data(118_287, 80, 93),
    "voc": Data(10_582, 21),
    "ade20k": Data(20_210, 150),
}


class StandIn:
    """The built-in shapes in the form of another data set: its classes, its number of images."""

    def __init__(self, shapes: Any, of: Data, images: int):
        self._shapes = shapes
        self._images = images
        self.class_names = tuple(f"class {number}" for number in range(of.classes))
        self.max_objects = of.objects

    def __len__(self) -> int:
        return self._images

    def __getitem__(self, index: int) -> Any:
        return self._shapes[index % len(self._shapes)]

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self._shapes, name)


@dataclasses.dataclass(frozen=True)
class RecipeSteps:
    """A recipe's compiled model, and the shapes of its steps.

    Attributes:
        model: as it trains.
        batch: `(x, y)`, `jax.ShapeDtypeStruct` of a training batch.
        x: of a batch that is predicted.
        settings: complete.
    """

    model: keras.Model
    batch: tuple[Any, Any]
    x: Any
    settings: Any


def recipe_steps(name: str, flags: Sequence[str]) -> RecipeSteps:
    """Builds what a recipe trains on its data set, without the data set.

    Args:
        name: of the recipe, such as `"coco_retinanet"`.
        flags: of the recipe.

    Raises:
        ValueError: if there is no such recipe, or its flags do not go together.
    """
    name = find_recipe(name).stem
    recipe = importlib.import_module(f"recipes.{name}").RECIPE
    keras.config.set_image_data_format("channels_last")
    given = recipe.settings(
        **parse_flags(recipe.settings, flags, recipe.description, recipe.experiments)
    )
    check_numbers(given)
    of = DATA[name.split("_")[0]]
    train, val = recipe.open_data(given)
    train, val = StandIn(train, of, of.images), StandIn(val, of, len(val))
    settings = recipe.complete(given, train, val)
    model = build_for_training(recipe, settings, train)
    # Two rows are enough to see the shapes.
    few = dataclasses.replace(settings, batch_size=2, **_one_step(settings))
    batch = next(recipe.batches(few, train, model=model)(0))
    model._symbolic_build(data_batch=batch)  # makes what the optimizer and the metrics keep
    evaluated = next(iter(recipe.open_evaluation(few, val, (0, 1), model)))
    rows = settings.step_size
    return RecipeSteps(
        model,
        with_rows(batch, rows),
        with_rows(data.model_input(model, evaluated), rows),
        settings,
    )


def _one_step(settings: Any) -> dict[str, int]:
    return {"accumulate": 1} if hasattr(settings, "accumulate") else {}
