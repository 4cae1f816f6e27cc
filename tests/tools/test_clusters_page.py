"""guides/clusters.md: scripts are bash, manifests YAML, and recipes have all the flags."""

import importlib
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from keras_densepred.training.settings import parse_flags
from tools import ray_train

pytestmark = pytest.mark.backend_free

PAGE = (Path(__file__).resolve().parents[2] / "guides" / "clusters.md").read_text("utf-8")


def blocks(language):
    found = re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
    assert found
    return found


def manifests():
    return [yaml.safe_load(text) for text in blocks("yaml")]


def containers():
    for manifest in manifests():
        for job in manifest.get("spec", {}).get("replicatedJobs", ()):
            yield from job["template"]["spec"]["template"]["spec"]["containers"]


def scripts():
    tasks = [manifest for manifest in manifests() if "run" in manifest]
    return [*blocks("bash"), *(task[part] for task in tasks for part in ("setup", "run"))]


def commands():
    """Every command of the page, as words."""
    for script in scripts():
        for line in script.replace("\\\n", " ").splitlines():
            yield shlex.split(line, comments=True)
    for container in containers():
        yield [*container["command"], *container["args"]]


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_scripts_are_bash():
    for script in scripts():
        subprocess.run(["bash", "-n"], input=script, text=True, check=True, capture_output=True)


def test_manifests_have_what_their_readers_ask_for():
    jobs = [manifest for manifest in manifests() if manifest.get("kind") == "JobSet"]
    assert len(jobs) == 2
    for job in jobs:
        assert job["apiVersion"].startswith("jobset.x-k8s.io/")
        (replicated,) = job["spec"]["replicatedJobs"]
        spec = replicated["template"]["spec"]
        assert spec["parallelism"] == spec["completions"]  # all processes at once
        pod = spec["template"]["spec"]
        mounted = {m["name"] for c in pod["containers"] for m in c["volumeMounts"]}
        assert mounted == {volume["name"] for volume in pod["volumes"]}
    texts = [word for container in containers() for word in container["args"]]
    assert all(isinstance(word, str) for word in texts)  # Kubernetes takes no numbers there


def test_recipes_have_the_flags():
    """A flag that is not there, or a value of another type, ends in SystemExit."""
    seen = set()
    for words in commands():
        for name, flags in recipe_calls(words):
            recipe = importlib.import_module(f"recipes.{name}").RECIPE
            said = parse_flags(recipe.settings, flags, recipe.description, recipe.experiments)
            assert said["output"] and said["data_dir"]
            seen.add(name)
    assert seen == {"imagenet_pretrain", "coco_retinanet"}


def recipe_calls(words):
    for place, word in enumerate(words):
        match = re.fullmatch(r"recipes/(\w+)\.py", word)
        if match:
            yield match[1], words[place + 1 :]
        if word == "tools/ray_train.py":
            arguments, flags = ray_train.parse(words[place + 1 :])
            yield arguments.recipe, flags
