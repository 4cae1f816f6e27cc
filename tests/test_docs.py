"""README and the pages of the site: their Python runs as it stands, their commands can be read."""

import argparse
import ast
import dataclasses
import json
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from PIL import Image

import keras_densepred
from keras_densepred import ResNetBackbone, cli, saved
from keras_densepred.cli import scripts
from keras_densepred.models import DeepLabV3, dense_detector
from keras_densepred.training.settings import flag_of
from tests.data.videos import write_video
from tests.weights import set_deterministic_weights
from tools import export

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
TEXTS = [*PAGES, *sorted((ROOT / "guides").glob("*.md"))]
_FENCE = re.compile(r"(<!-- downloads -->\n)?```python\n(.*?)```", re.DOTALL)
_COMMAND = re.compile(
    r"(?:python|torchrun|srun python)(?: --nproc-per-node \d+)? "
    r"((?:recipes|tools)/\w+\.py|-m keras_densepred)( [^\n`]*)?"
)
# Of torchrun, sbatch and Cloud TPU's tools.
_FOREIGN = {
    "--xla_cpu_prefer_vector_width",
    *("--nproc-per-node", "--nnodes", "--node-rank", "--rdzv-endpoint", "--rdzv-backend"),
    *("--node_rank", "--rdzv_endpoint", "--rdzv_backend", "--master-addr", "--master-port"),
    *("--nodes", "--ntasks-per-node", "--gpus-per-node", "--cpus-per-task", "--requeue"),
    *("--accelerator-type", "--version", "--worker", "--command"),
}


def snippets(page, downloads=False):
    """The Python of a page; what fetches weights only if asked for."""
    found = _FENCE.findall(page.read_text(encoding="utf-8"))
    return [code for marked, code in found if downloads or not marked]


def commands(page):
    """The command lines of ours, without `KERAS_BACKEND=...` before them."""
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    for file, rest in _COMMAND.findall(text):
        words = shlex.split(rest, comments=True)
        words = [word for word in words if word not in ("...", "…")]
        if file.startswith("recipes/"):
            words = ["train", Path(file).stem, *words]
        elif file.startswith("tools/"):
            words = [file, *words]
        if words:
            yield words


WITH_PYTHON = [page for page in PAGES if snippets(page)]
COMMANDS = sorted({(page.name, shlex.join(words)) for page in TEXTS for words in commands(page)})


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with what the snippets name: trained runs, photographs, an exported detector."""
    folder = tmp_path_factory.mktemp("place")
    keras.utils.set_random_seed(0)
    backbone = ResNetBackbone((1, 1, 1, 1), width=4)
    models = {  # of the package's own parts, which is all that a fresh interpreter has
        "mine/preset/detector": dense_detector("pico", 3),
        "masks/preset/segmenter": DeepLabV3(backbone, 3, width=8, atrous_rates=None),
    }
    classes = [{"id": label + 1, "name": name} for label, name in enumerate("abc")]
    for name, model in models.items():
        set_deterministic_weights(model)
        preset = (folder / "runs" / name).parent
        preset.mkdir(parents=True)
        model.save(folder / "runs" / f"{name}.keras")
        task = "segmentation" if "masks" in name else "detection"
        saved.Preprocessing(task, (120.0,) * 3, (60.0,) * 3, 64).write(preset)
        (preset / "classes.json").write_text(json.dumps(classes))
    rng = np.random.default_rng(0)
    for name, size in (("photo.jpg", (90, 60)), ("aerial.jpg", (800, 700))):
        Image.fromarray(rng.integers(0, 255, (*size, 3), np.uint8)).save(folder / name)
    write_video(folder / "film.mp4", list(rng.integers(0, 255, (2, 48, 64, 3), np.uint8)))
    if keras.config.backend() != "jax":
        run = str(folder / "runs" / "mine")
        for flags in (["detector.onnx"], ["whole.onnx", "--with-preprocessing"]):
            assert export.main([run, "--output", str(folder / flags[0]), *flags[1:]]) == 0
    return folder


@pytest.mark.backend_free
def test_readme_is_a_front_door_and_pages_are_found():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(readme.splitlines()) < 200
    for page in PAGES[1:]:
        assert f"docs/{page.name}" in readme, f"README does not name {page.name}"
    for target in re.findall(r"\]\(((?:docs|guides)/[^)]+)\)", readme):
        name, _, anchor = target.partition("#")
        text = (ROOT / name).read_bytes()
        headings = re.findall(r"^#+ (.*)$", text.decode("utf-8"), re.M) if anchor else []
        slugs = [re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings]
        assert not anchor or anchor in slugs, target


@pytest.mark.backend_free
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_names_what_is_there(page):
    """Quick: attributes of the package in all snippets, those that download included."""
    for code in snippets(page, downloads=True):
        for node in ast.walk(ast.parse(code)):
            if isinstance(node, ast.Attribute) and ast.unparse(node).startswith("keras_densepred."):
                value = keras_densepred
                for name in ast.unparse(node).split(".")[1:]:
                    if not name.isidentifier():
                        break  # behind a call
                    value = getattr(value, name)


@pytest.mark.skipif(keras.config.backend() == "jax", reason="writes no ONNX files")
@pytest.mark.slow
@pytest.mark.parametrize("page", WITH_PYTHON, ids=lambda page: page.name)
def test_python_runs_when_pasted_in_order(page, place):
    """In a fresh interpreter, as a reader would."""
    if page.name == "models.md":
        pytest.importorskip("keras_cv")
    code = "\n".join(snippets(page))
    done = subprocess.run(
        [sys.executable, "-c", f"import sys\nsys.path.insert(0, {str(ROOT)!r})\n{code}"],
        cwd=place,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


class Parsed(BaseException):
    """The command line was read, and nothing was done."""


@pytest.fixture
def only_parsing(monkeypatch):
    for name in ("parse_args", "parse_known_args"):
        parse = getattr(argparse.ArgumentParser, name)

        def parsed(self, *arguments, parse=parse, **options):
            parse(self, *arguments, **options)
            raise Parsed

        monkeypatch.setattr(argparse.ArgumentParser, name, parsed)


@pytest.mark.backend_free
@pytest.mark.parametrize("page, line", COMMANDS)
def test_commands_can_be_read(page, line, only_parsing, monkeypatch, capsys):
    words = shlex.split(line)
    monkeypatch.chdir(ROOT)
    tool = Path(words[0])
    try:
        if tool.suffix == ".py":
            monkeypatch.setitem(scripts._TOOLS, tool.stem, tool.name)
            code = scripts.run([tool.stem, *words[1:]])
        else:
            code = cli.main(words)
    except Parsed:
        return
    assert code == 0 and "--help" in words, capsys.readouterr().err


@pytest.mark.backend_free
@pytest.mark.parametrize("page", TEXTS, ids=lambda page: page.name)
def test_flags_in_the_text_exist(page, known_flags):
    text = page.read_text(encoding="utf-8")
    named = set(re.findall(r"(?<![\w-])--[a-z][\w-]*\w(?![\w.-])", text))
    assert named - known_flags - _FOREIGN == set()


@pytest.fixture(scope="module")
def known_flags():
    """All flags of our parsers, as `argparse` is told of them."""
    source = [*(ROOT / "tools").glob("*.py"), *(ROOT / "keras_densepred" / "cli").glob("*.py")]
    source += [ROOT / "keras_densepred" / "command.py"]
    found = {"--help"}
    for path in source:
        found |= set(re.findall(r'"(--[a-z][\w-]*)"', path.read_text(encoding="utf-8")))
    for recipe in scripts.recipes().values():
        found |= set(_flags_of(recipe))
    return found


def _flags_of(recipe):
    for field in dataclasses.fields(runpy.run_path(str(recipe))["Settings"]):
        flag = field.metadata["flag"] or flag_of(field.name)
        yield flag
        yield flag.replace("--", "--no-", 1)
