"""The one way a recipe runs: settings, data, model, training, evaluation, what is written.

A recipe is a `Recipe` of its task: `tasks.detection.Detection` and its neighbours add how the
task's data are read, how a model is evaluated, and what is drawn and saved.
"""

import dataclasses
import functools
import pathlib
import sys
import time
from collections.abc import Callable, Collection, Generator, Mapping, Sequence
from typing import Any, ClassVar

import keras

from keras_densepred import command, data, plugins, start
from keras_densepred._optional import require
from keras_densepred.faults import SettingsError
from keras_densepred.memory import keep_freed_memory
from keras_densepred.saved.preprocessing import Preprocessing
from keras_densepred.training import identity
from keras_densepred.training.budget import plan_for_minutes, planned_before
from keras_densepred.training.build import build_for_training
from keras_densepred.training.checks import (
    require_evaluations,
    require_readable_images,
    require_trainable,
)
from keras_densepred.training.devices.cluster import Cluster, current_cluster
from keras_densepred.training.devices.distribute import distribute
from keras_densepred.training.devices.image_bytes import normalization
from keras_densepred.training.experiments import Experiment, complete, decided_by
from keras_densepred.training.extend import OF_THE_SCHEDULE, flags_of_run
from keras_densepred.training.flags import Number, Rule, check_flags
from keras_densepred.training.length import in_words
from keras_densepred.training.loop.in_output import (
    NO_EXTRAS,
    Batches,
    Extras,
    fit_in_output,
    tell_skipped,
)
from keras_densepred.training.loop.users import load_callbacks
from keras_densepred.training.loop.validation_loss import validation_loss
from keras_densepred.training.settings import (
    CommonSettings,
    check_numbers,
    flag_of,
    parse_flags,
    with_homes,
)
from keras_densepred.training.warm_start import go_on_from, start_from

# Flags of which one has a say.
_ALTERNATIVES = (("minutes", "epochs"), ("warmup_epochs", "warmup_steps"))


@dataclasses.dataclass(frozen=True)
class Recipe:
    """A script that trains one kind of model; subclasses are of a task.

    Args:
        name: of the recipe: its output is `runs/NAME` by default.
        description: the script's docstring, which `--help` shows.
        settings: the dataclass of its settings.
        experiments: published settings by name, the default one first; `"small"` is for few images.
        build_model: takes the settings and the training split, returns the compiled model.
        augmentation: takes the settings and the side of training images, returns the transforms.
        preprocessing: takes the settings, returns how evaluation prepares images.
        defaults: settings of all experiments that do not say otherwise.
        check: takes settings, training split and cluster, and raises what makes a run impossible.
        meaning: settings that mean something on some runs only, and what says on which; the
            flag of another is refused.
        numbers: what a number must be so that the model can be built of it.
        large: training images from which on a published experiment is the default.
        before: of settings that are newer than some runs, what those had.
    """

    name: str
    description: str
    settings: type[CommonSettings]
    experiments: Mapping[str, Experiment]
    build_model: Callable[[Any, Any], keras.Model]
    augmentation: Callable[[Any, int], list[Callable]]
    preprocessing: Callable[[Any], Preprocessing]
    defaults: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    check: Callable[[Any, Any, Cluster], None] = lambda *_: None
    meaning: Mapping[str, Rule] = dataclasses.field(default_factory=dict)
    numbers: Mapping[str, Number] = dataclasses.field(default_factory=dict)
    large: int = 20_000
    before: identity.Before = dataclasses.field(default_factory=dict)

    has_val_loss: ClassVar[bool] = True
    packages: ClassVar[tuple[str, ...]] = ()  # that the task needs besides those of all
    not_decisive: ClassVar[tuple[str, ...]] = ()  # settings that leave the weights as they are

    # --- what a task adds --------------------------------------------------------------------

    def open_data(self, settings: Any) -> tuple[Any, Any]:
        """Returns the training and the validation split."""
        raise NotImplementedError

    def open_stream(self, settings: Any, train: Any, **options: Any) -> data.BatchStream:
        """Returns the training batches, from the options that all tasks share."""
        raise NotImplementedError

    def open_evaluation(
        self, settings: Any, split: Any, shard: tuple[int, int], model: Any = None
    ) -> data.EvalBatches:
        """Returns the batches of an evaluation, as the model takes them; None: normalised."""
        raise NotImplementedError

    def example(self, batch: dict[str, Any], model: Any) -> tuple[Any, Any]:
        """Returns what the model learns from a batch: images, or its input, and targets."""
        raise NotImplementedError

    def train(self, run: "Run") -> dict[str, float]:
        """Fits the model, or goes on with it, evaluates, and writes what the task leaves behind."""
        raise NotImplementedError

    def pyramid_of(self, model: Any) -> Any:
        """Returns what `--rematerialize` is for: the backbone, with its neck."""
        return model.backbone

    # --- one run -----------------------------------------------------------------------------

    def main(
        self,
        argv: Sequence[str] | None = None,
        callbacks: Sequence[keras.callbacks.Callback] = (),
    ) -> dict[str, float]:
        """Trains, evaluates and writes everything to `--output`.

        Args:
            argv: flags; None for those of the process.
            callbacks: more callbacks of training, which see the evaluation's numbers in the logs;
                see `training.fit` on what a continued run asks of them.

        Returns:
            What the task's evaluation gives for the validation split.

        Raises:
            ValueError: for settings or data that cannot be trained; one sentence.
            TrainingDiverged: if the loss becomes NaN.
        """
        started = start.BEGAN if start.is_command() else time.monotonic()
        flags = tuple(sys.argv[1:] if argv is None else argv)
        said = parse_flags(self.settings, argv, self.description, self.experiments)
        for one, other in _ALTERNATIVES:
            if said.get(one) and said.get(other):
                raise SettingsError(f"Give {flag_of(one)} or {flag_of(other)}, not both.")
        by_user = set(said)
        left_open = {field.name for field in dataclasses.fields(self.settings)} - said.keys()
        if said.get("extend"):
            said = flags_of_run(self.settings, said, self.experiments, self.defaults, self.before)
            left_open -= said.keys() & set(OF_THE_SCHEDULE)  # those that someone asked for
        given = with_homes(self.settings(**said))
        check_numbers(given)
        for module in ("grain", "matplotlib.pyplot", "PIL.Image", "rich", *self.packages):
            require(module, "data")
        if given.logger:
            require(given.logger, "log")
        # Pictures and maps are channels-last here, whatever keras.json says.
        keras.config.set_image_data_format("channels_last")
        if given.imports:
            plugins.import_modules(name.strip() for name in given.imports.split(","))
        if given.callback:
            callbacks = [*callbacks, *load_callbacks(given.callback)]
        undecided = decided_by(self.experiments, self.defaults)
        self.check_flags(given, by_user, undecided)
        with distribute(
            given.devices, given.processes, given.process_id, given.coordinator, given.shard_weights
        ) as cluster:
            if given.batch_size is not None:
                cluster.rows(given.step_size)
            cluster.say("Reading what data there are ...")
            train, val = self.open_data(given)
            settings = self.complete(given, train, val, cluster.say)
            self.check_flags(settings, by_user)
            if given.steps is not None and settings.steps > given.steps:
                cluster.say(
                    f"--steps {given.steps} becomes {settings.steps}: epochs are whole, and one "
                    f"has {settings.steps_per_epoch} steps (--steps-per-epoch)."
                )
            require_trainable(train, settings.batch_size)
            if not given.minutes:
                require_evaluations(settings)
            self.check(settings, train, cluster)
            plan = None
            if given.minutes:
                before = planned_before(self, given, settings, train, val)
                plan = functools.partial(
                    plan_for_minutes, self, given, settings, cluster, train, val, started
                )
                settings, plan = (settings, plan) if before is None else (before, None)
            self.prepare_memory(settings)
            cluster.say(cluster.describe(settings.step_size))
            with identity.own_output(cluster, settings.output):
                return self.run(settings, cluster, train, val, left_open, callbacks, plan, flags)

    def check_flags(
        self, settings: Any, given: Collection[str], undecided: Collection[str] = ()
    ) -> None:
        """Refuses flags without effect and impossible numbers; see `flags.check_flags`."""
        check_flags(settings, given, self.meaning, self.numbers, undecided)

    def complete(
        self, settings: Any, train: Any, val: Any = (), say: Callable[[str], None] | None = None
    ) -> Any:
        """Fills in what the flags left open; see `experiments.complete`."""
        return complete(
            settings,
            self.experiments,
            train,
            large=self.large,
            defaults={"output": f"runs/{self.name}", **self.defaults},
            val=val,
            devices=current_cluster().devices,
            say=say,
        )

    def prepare_memory(self, settings: Any) -> None:
        """Makes small runs on a CPU faster."""
        keep_freed_memory()

    def run(
        self,
        settings: Any,
        cluster: Cluster,
        train: Any,
        val: Any,
        left_open: set[str],
        callbacks: Sequence[keras.callbacks.Callback] = (),
        plan: Callable[[], Any] | None = None,
        argv: Sequence[str] = (),
    ) -> dict[str, float]:
        """Does what `main` promises, with every setting decided; in all processes alike.

        With a plan the length is decided late: it gives the settings, once data were looked at.
        """
        decisive = identity.decisive_settings(settings, train, but=self.not_decisive)
        output = pathlib.Path(settings.output)
        cluster.run_on_main(
            lambda: identity.require_output(output, decisive, left_open, self.before)
        )
        if (output / identity.FILE_NAME).is_file():  # is this run, whatever it did not record
            left_open = left_open | self.before.keys()
        cluster.say("Looking through the data ...")
        summaries = train.summary(), val.summary()
        for summary in summaries:
            cluster.say(summary)
        for finding in data.require_trainable_data(*summaries):
            cluster.say(str(finding))
        cluster.run_on_main(lambda: require_readable_images(train, val, settings.on_bad_image))
        if plan is not None:
            settings = plan()
            decisive = identity.decisive_settings(settings, train, but=self.not_decisive)
        cluster.say(f"Building the model on {settings.weights or settings.preset} ...")
        model = build_for_training(self, settings, train)
        if settings.extend:
            cluster.say(go_on_from(model, settings.extend, train.class_names))
        elif settings.weights and settings.weights_of == "all":
            said = start_from(model, settings.weights, train.class_names)
            cluster.say(said or f"Starting from the backbone in {settings.weights}")
        cluster.say(
            f"{type(model).__name__} with {model.count_params():,} parameters; "
            f"{settings.optimizer}, learning rate {settings.learning_rate:g}"
        )
        rule = self.experiments[settings.experiment].settings.get("epochs")
        cluster.say(in_words(settings, left_open, rule, len(train)))
        val_loss = validation_loss(self, settings, model, val, cluster.shard)
        extras = Extras(settings.patience, settings.logger, tuple(callbacks), val_loss)
        return self.train(
            Run(self, settings, cluster, train, val, model, decisive, left_open, extras, argv)
        )

    def batches(
        self,
        settings: Any,
        train: Any,
        *,
        model: Any = None,
        streams: list[data.BatchStream] | None = None,
        shard: tuple[int, int] = (0, 1),
    ) -> Batches:
        """Makes what opens the training batches at a step, for `training.fit`.

        Args:
            settings: complete.
            train: the training split.
            model: that learns; None where normalised images are all that it is given.
            streams: takes every stream that is opened, which knows the images it passed over.
            shard: which process of how many this is.
        """
        streams = [] if streams is None else streams

        def batches_from(step: int) -> Generator[tuple[Any, Any], None, None]:
            with self.stream(settings, train, settings.image_size, shard, model) as stream:
                streams.append(stream)
                stream.set_state({**stream.get_state(), "next_batch": step})
                for batch in stream:
                    yield self.example(batch, model)

        return batches_from

    def stream(
        self, settings: Any, train: Any, size: int, shard: tuple[int, int], model: Any = None
    ) -> data.BatchStream:
        """The training batches, augmented as the recipe or `--augment` says."""
        augment = self.augmentation(settings, size)
        if settings.augment:
            augment = data.load_augmentation(settings.augment)(size, augment)
        return self.open_stream(
            settings,
            train,
            batch_size=settings.step_size,
            image_size=size,
            seed=settings.seed,
            **normalization(model, self.preprocessing(settings)),
            augment=augment,
            workers=settings.workers,
            on_bad_image=settings.on_bad_image,
            shard=shard,
        )

    def evaluation_options(
        self, settings: Any, shard: tuple[int, int], model: Any = None
    ) -> dict[str, Any]:
        """Arguments of the task's evaluation batches."""
        return {
            "batch_size": settings.step_size,
            "workers": settings.workers,
            "on_bad_image": settings.on_bad_image,
            "shard": shard,
            **self.preprocessing(settings).batch_options(),
            **normalization(model, self.preprocessing(settings)),
        }


@dataclasses.dataclass(frozen=True)
class Run:
    """A run that is about to train: a recipe, its settings, and what they came to.

    Attributes:
        decisive: what decides the run's result, see `decisive_settings`.
        left_open: names of settings that no flag gave.
        extras: loggers and the like.
        argv: the flags, for the model card.
    """

    recipe: Recipe
    settings: Any
    cluster: Cluster
    train: Any
    val: Any
    model: Any
    decisive: Mapping[str, Any]
    left_open: set[str]
    extras: Extras = NO_EXTRAS
    argv: Sequence[str] = ()

    @property
    def output(self) -> pathlib.Path:
        """Directory for everything written."""
        return pathlib.Path(self.settings.output)

    def fit(self, evaluation: keras.callbacks.Callback) -> None:
        """Trains the model, or goes on with it, and says which images could not be read."""
        settings = self.settings
        streams: list[data.BatchStream] = []
        batches_from = self.recipe.batches(
            settings,
            self.train,
            model=self.model,
            streams=streams,
            shard=self.cluster.shard,
        )
        fit_in_output(
            self.model,
            batches_from,
            evaluation,
            cluster=self.cluster,
            output=self.output,
            decisive=self.decisive,
            left_open=self.left_open,
            step_size=settings.step_size,
            epochs=settings.epochs,
            steps_per_epoch=settings.steps_per_epoch,
            checkpoint_minutes=settings.checkpoint_minutes,
            extras=self.extras,
        )
        tell_skipped(streams)


def run_script(main: Callable[[Sequence[str] | None], Any]) -> None:
    """Runs a recipe as a program: whatever goes wrong is one sentence and an exit code."""
    sys.exit(command.run(main))
