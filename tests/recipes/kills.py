"""Kills runs of a recipe again and again, and compares what they end with.

A moment is an event of the run itself (a step, the middle of a file, a rename, a removal), at which
it kills its process group, or a line of its output, at which it is killed from outside: no test
depends on time. Each run is a fork of a process that has imported the recipe.
"""

import functools
import importlib
import multiprocessing
import os
import pathlib
import shutil
import signal
import zipfile

import numpy as np

from keras_densepred import training


class Moments:
    """Counts the moments of this process and kills its group at one of them; 0: at none."""

    def __init__(self, last):
        self.count = 0
        self.last = last

    def __call__(self):
        self.count += 1
        if self.count == self.last:
            os.killpg(0, signal.SIGKILL)

    def watch(self, owner, name):
        """Makes the beginning and the end of a function moments."""
        original = getattr(owner, name)

        @functools.wraps(original)
        def watched(*arguments, **options):
            self()
            result = original(*arguments, **options)
            self()
            return result

        setattr(owner, name, watched)

    def watch_all(self):
        for owner, name in (
            (os, "replace"),
            (os, "fsync"),
            (shutil, "rmtree"),
            (zipfile.ZipFile, "close"),
            (training.Progress, "on_train_batch_end"),
            (training.Progress, "on_epoch_end"),
        ):
            self.watch(owner, name)
        write = pathlib.Path.write_bytes

        def write_in_two(path, content):
            write(path, content[: len(content) // 2])
            self()
            return write(path, content)

        pathlib.Path.write_bytes = write_in_two


def _run_and_die(output, recipe, flags, moment):
    os.setsid()
    for stream in (1, 2):
        os.dup2(output.fileno(), stream)
    moments = Moments(moment)
    moments.watch_all()
    importlib.import_module(f"recipes.{recipe}").main(flags)
    print(f"moments {moments.count}", flush=True)


def run(recipe, flags, moment=0, line=0):
    """Runs a recipe, to be killed at a moment or at a line of its output, from 1.

    Returns:
        The exit code and the lines.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([f"recipes.{recipe}", __name__])
    reader, writer = context.Pipe(duplex=False)
    process = context.Process(target=_run_and_die, args=(writer, recipe, flags, moment))
    process.start()
    writer.close()
    lines = []
    with os.fdopen(os.dup(reader.fileno()), errors="replace") as text:
        for printed in text:
            lines.append(printed)
            if len(lines) == line:
                os.killpg(process.pid, signal.SIGKILL)
    process.join()
    return process.exitcode, lines


def assert_killed_at_random_continues_exactly(recipe, flags, directory, kills, seed):
    """Runs killed again and again, and started again, end as one that was left alone."""
    rng = np.random.default_rng(seed)
    flags = [*flags, "--checkpoint-minutes", "1e-6"]  # after every step
    whole = directory / "whole"
    code, printed = run(recipe, [*flags, "--output", str(whole)])
    assert code == 0, printed
    moments = int(printed[-1].split()[-1])
    done, seen = 0, []
    while done < kills:
        broken = directory / f"broken{done}"
        code = -signal.SIGKILL
        while code:
            where = {}
            if done < kills:
                from_outside = done % 4 == 3
                last = len(printed) - 1 if from_outside else moments
                where = {"line" if from_outside else "moment": int(rng.integers(1, last + 1))}
            code, lines = run(recipe, [*flags, "--output", str(broken)], **where)
            assert code in (0, -signal.SIGKILL), (where, lines)
            done += code != 0
            seen.append((where, code))
        assert_same_outputs(whole, broken, seen)
        shutil.rmtree(broken)


def assert_same_outputs(whole, broken, seen):
    """The same files, the same history and weights, and nothing unfinished."""
    names = sorted(str(path.relative_to(whole)) for path in whole.rglob("*"))
    found = sorted(str(path.relative_to(broken)) for path in broken.rglob("*"))
    assert found == names, (set(found) ^ set(names), seen)
    for name in names:
        ours, theirs = whole / name, broken / name
        if name.endswith((".csv", "settings.json", ".h5", "classes.json", ".png")):
            assert theirs.read_bytes() == ours.read_bytes(), (name, seen)
        elif name.endswith(".keras"):
            weights = [zipfile.ZipFile(path).read("model.weights.h5") for path in (ours, theirs)]
            assert weights[0] == weights[1], (name, seen)
        elif name.endswith(".npz"):
            with np.load(ours) as one, np.load(theirs) as other:
                for key in one.files:
                    np.testing.assert_array_equal(one[key], other[key], f"{name} {key} {seen}")
