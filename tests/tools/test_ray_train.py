"""A recipe on Ray Train: its flags, what is refused, and a worker that dies."""

import importlib.util
import os
import subprocess
import sys
import textwrap

import keras
import pytest

from tests.recipes import kills, toy
from tools import ray_train

HAS_RAY = importlib.util.find_spec("ray") is not None
DEADLINE = 1800  # seconds for two runs that take two minutes


@pytest.mark.backend_free
def test_flags_behind_the_dashes_are_the_recipes():
    command = "coco_yolo --workers 2 --failures -1 -- --workers 4 --output x"
    arguments, flags = ray_train.parse(command.split())
    assert (arguments.recipe, arguments.workers, arguments.failures) == ("coco_yolo", 2, -1)
    assert flags == ["--workers", "4", "--output", "x"]
    assert ray_train.parse(["coco_yolo"])[1] == []


@pytest.mark.backend_free
@pytest.mark.parametrize("flag", ["--devices", "--processes=2", "--coordinator"])
def test_what_ray_decides(flag):
    name = flag.partition("=")[0]
    with pytest.raises(ValueError, match=f"Ray decides on processes and devices: leave {name} out"):
        ray_train.main(["coco_yolo", "--", flag, "2"])


@pytest.mark.backend_free
def test_without_ray(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ImportError, match=r'pip install "\.\[ray\]"'):
        ray_train.main(["coco_yolo"])


@pytest.mark.backend_free
def test_recipes_and_flags_are_checked_before_ray_starts(capsys):
    with pytest.raises(ValueError, match=r"There is no recipe 'yolo': did you mean coco_yolo\?"):
        ray_train.check_flags("yolo", [])
    with pytest.raises(SystemExit):
        ray_train.check_flags("coco_yolo", ["--no-such-flag"])
    assert "--no-such-flag" in capsys.readouterr().err
    with pytest.raises(ValueError, match="--batch-size 0 is too small"):
        ray_train.check_flags("coco_yolo", ["--batch-size", "0"])


@pytest.mark.backend_free
@pytest.mark.skipif(not HAS_RAY, reason="needs Ray")
@pytest.mark.slow
def test_each_backend_has_its_trainer():
    arguments, flags = ray_train.parse(["coco_yolo", "--workers", "2", "--", "--epochs", "1"])
    made = {
        backend: ray_train.make_trainer(arguments, flags, backend) for backend in ray_train.TRAINERS
    }
    names = {backend: type(trainer).__name__ for backend, trainer in made.items()}
    assert names == {
        "jax": "JaxTrainer",
        "tensorflow": "TensorflowTrainer",
        "torch": "TorchTrainer",
    }
    with pytest.raises(ValueError, match="takes a type and sides"):
        ray_train.make_trainer(ray_train.parse(["coco_yolo", "--tpu", "4x4"])[0], [], "jax")


@pytest.mark.slow
@pytest.mark.skipif(not HAS_RAY, reason="needs Ray")
def test_a_killed_worker_is_started_again_and_the_run_continues_exactly(tmp_path):
    flags = [*toy.detection(tmp_path / "toy"), *toy.RETINANET]
    for name in ("whole", "broken"):
        folder = tmp_path / name
        folder.mkdir()
        if name == "whole":  # where nobody dies
            (folder / "died").touch()
        (folder / "deadly.py").write_text(
            textwrap.dedent(
                """
                import os
                import pathlib
                import signal

                import keras

                from keras_densepred import training


                class Die(keras.callbacks.Callback):
                    def on_train_batch_end(self, batch, logs=None):
                        second = training.current_cluster().process_index == 1
                        if second and self.model.optimizer.iterations == 5:
                            mark = pathlib.Path("died")
                            if not mark.exists():
                                mark.touch()
                                os.kill(os.getpid(), signal.SIGKILL)
                """
            )
        )
        command = [sys.executable, ray_train.__file__, "coco_retinanet", "--workers", "2"]
        command += ["--storage", str(folder / "ray"), "--", *flags, "--callback", "deadly:Die"]
        command += ["--checkpoint-minutes", "1e-6", "--output", "out"]
        result = subprocess.run(
            command,
            cwd=folder,
            env={**os.environ, "KERAS_BACKEND": keras.config.backend(), "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=DEADLINE,
        )
        assert result.returncode == 0, result.stderr
        assert ("Continuing from" in result.stdout + result.stderr) == (name == "broken")
        assert "epoch 2" in result.stdout.splitlines()[-1]
    kills.assert_same_outputs(tmp_path / "whole" / "out", tmp_path / "broken" / "out", "one kill")
