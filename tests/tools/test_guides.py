"""The guides: their notebooks and pages are up to date, and those that are quick run."""

import json

import pytest

from tools import execute_guide, make_notebooks, run_guides
from tools.tutobook import GUIDES, find_guides, read_guide

HEADER = '''"""
Title: A guide
Author: somebody
Date created: 2026/01/01
Last modified: 2026/01/02
Description: What it is about: this.
"""
'''
QUICK = (
    pytest.param("ten_minute_start", marks=pytest.mark.slow),
    pytest.param("new_token_mixer", marks=pytest.mark.slow),
    pytest.param("official_weights", marks=pytest.mark.slow),
)
guides = pytest.mark.parametrize("path", find_guides(), ids=lambda path: path.stem)


@pytest.fixture
def write(tmp_path):
    def write_guide(text):
        path = tmp_path / "small.py"
        path.write_text(HEADER + text)
        return path

    return write_guide


@pytest.mark.backend_free
@guides
def test_notebooks_and_pages_are_those_of_the_source(path):
    guide = read_guide(path)
    again = "run `make guides`"
    notebook = path.with_suffix(".ipynb").read_text(encoding="utf-8")
    assert notebook == make_notebooks.notebook_text(guide), again
    page = path.with_suffix(".md").read_text(encoding="utf-8")
    bare = execute_guide.page_text(guide, lambda cell: "")
    assert execute_guide.without_outputs(page) == bare, again
    for picture in (line for line in page.splitlines() if line.startswith("![")):
        assert (GUIDES / picture.rpartition("(")[2].rstrip(")")).is_file()


@pytest.mark.slow_on("jax", "tensorflow")
@pytest.mark.parametrize("name", QUICK)
def test_quick_guides_run(name):
    *_, code = run_guides.run_guide(GUIDES / f"{name}.py")
    assert code == 0


@pytest.mark.backend_free
def test_strings_at_the_outermost_level_are_text(write):
    code = 'x = """no\ntext"""\n\n\ndef f():\n    """Nor this."""\n'
    path = write(f'"""\n## Text\n"""\n\n{code}\n\n"""End."""\n')
    guide = read_guide(path)
    assert guide.header["Description"] == "What it is about: this."
    lines = [(cell.is_code, cell.line) for cell in guide.cells]
    assert lines == [(False, 8), (True, 12), (False, 20)]
    assert guide.cells[1].text.startswith('x = """no') and guide.cells[1].text.endswith('this."""')
    notebook = json.loads(make_notebooks.notebook_text(guide))
    kinds = [cell["cell_type"] for cell in notebook["cells"]]
    assert kinds == ["markdown", "markdown", "code", "markdown"]
    assert len({cell["id"] for cell in notebook["cells"]}) == 4
    assert "".join(notebook["cells"][2]["source"]) == guide.cells[1].text


@pytest.mark.backend_free
@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("x = 1\n", "Title, Author"),
        ('"""\nTitle: x\n"""\n', "Author, Date"),
        ("(\n", "is not Python"),
    ],
)
def test_what_is_no_guide_is_refused(tmp_path, source, message):
    path = tmp_path / "no_guide.py"
    path.write_text(source)
    with pytest.raises(ValueError, match=message):
        read_guide(path)


@pytest.mark.backend_free
def test_a_guide_is_executed_and_its_outputs_are_on_the_page(write, tmp_path, capfd):
    path = write(
        "import matplotlib.pyplot as plt\n\nprint('first', 1)\n"
        '"""\nText.\n"""\n'
        "plt.plot([1, 2])\nplt.show()\nprint(__name__)\n"
    )
    wall, processor, code = run_guides.run_guide(path, tmp_path / "pages")
    assert code == 0 and processor > 0 and wall > 0
    page = (tmp_path / "pages/small.md").read_text()
    assert "```text\nfirst 1\n```" in page and "```text\n__main__\n```" in page
    assert "(pictures/small_1.jpg)" in page
    assert (tmp_path / "pages/pictures/small_1.jpg").read_bytes()[:2] == b"\xff\xd8"
    bare = execute_guide.page_text(read_guide(path), lambda cell: "")
    assert execute_guide.without_outputs(page) == bare


@pytest.mark.slow
@pytest.mark.backend_free
def test_a_guide_that_fails_is_told_with_its_line(write, tmp_path, monkeypatch, capfd):
    path = write('"""\nText.\n"""\nx = 1\n\nx.y\n')
    monkeypatch.setattr(run_guides, "find_guides", lambda: [path])
    assert run_guides.main([]) == 1
    shown = capfd.readouterr()
    assert "small FAILED" in shown.out and "these guides failed: small" in shown.err
    assert 'small.py", line 13' in shown.err and "AttributeError" in shown.err
    with pytest.raises(SystemExit):
        run_guides.main(["other"])
    assert "there is no guide other; there are small" in capfd.readouterr().err
