"""The house keeps its plan: arrows between rooms point one way, and no file outgrows its reader."""

import ast
import re
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

pytestmark = pytest.mark.backend_free

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "keras_densepred"
LONGEST = 400  # lines
# What each room may import, besides what stands alone at the bottom.
BOTTOM = {"_optional", "_version", "command", "faults", "files", "memory", "plugins", "start"}
NETWORKS = {"backbones", "layers", "ops", "runtime"}
ROOMS = {
    "runtime": set(),
    "ops": {"runtime"},
    "layers": {"ops", "runtime"},
    "backbones": {"layers", "ops", "runtime"},
    "necks": NETWORKS,
    "convert": NETWORKS,
    "data": set(),
    "metrics": {"data"},
    "report": {"data", "metrics"},
    "models": NETWORKS | {"necks"},
    "analysis": NETWORKS | {"necks", "models", "metrics", "data"},
    "saved": {"models", "data", "metrics"},
    "export": NETWORKS | {"models"},
    "training": NETWORKS | {"necks", "data", "metrics", "models", "report", "saved"},
    "cli": NETWORKS | {"necks", "data", "metrics", "models", "report", "saved", "analysis"},
    "command": set(),
    "files": set(),
    "memory": set(),
    "plugins": set(),
    "faults": set(),
    "start": set(),
    "_optional": set(),
    "_version": set(),
    "__main__": {"cli"},
    "__init__": NETWORKS | {"convert", "models", "necks", "saved", "training"},
}


def python_files(*folders):
    return [file for folder in folders for file in sorted((ROOT / folder).rglob("*.py"))]


def imports(file):
    """Modules that a file imports, inside of functions too; `from a import b` as `a.b`."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file} has a relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def statements(body):
    """What runs when a module is imported, not later inside of a function; types alone do not."""
    for node in body:
        if isinstance(node, ast.If) and ast.unparse(node.test) != "TYPE_CHECKING":
            yield from statements([*node.body, *node.orelse])
        else:
            yield node


def room_of(module):
    return module.split(".")[1]


def test_rooms_import_only_what_stands_below():
    for file in python_files("keras_densepred"):
        room = file.relative_to(PACKAGE).parts[0].removesuffix(".py")
        wrong = [
            module
            for module in imports(file)
            if module.startswith("keras_densepred.")
            and room_of(module) not in ROOMS[room] | BOTTOM | {room}
        ]
        assert not wrong, f"{file.relative_to(ROOT)} imports {', '.join(wrong)}"


@pytest.mark.parametrize("backend", ["jax", "tensorflow", "torch"])
def test_a_backend_is_imported_where_operations_and_the_runtime_are(backend):
    """Elsewhere what a backend is needed for is its own: a file's format, a cluster; `require`."""
    users = {
        file.relative_to(PACKAGE).parts[0]
        for file in python_files("keras_densepred")
        if any(module.split(".")[0] == backend for module in imports(file))
    }
    assert users == {"ops", "runtime"}


def test_no_arrow_hides_in_a_string():
    """Modules imported by name stand below as well."""
    for file in python_files("keras_densepred"):
        if file == PACKAGE / "backbones" / "__init__.py":
            continue  # gives necks, under their former address, to those who ask for them
        room = file.relative_to(PACKAGE).parts[0].removesuffix(".py")
        constants = (
            node.value
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
            if isinstance(node, ast.Constant) and isinstance(node.value, str)
        )
        modules = [text for text in constants if re.fullmatch(r"keras_densepred(\.\w+)+", text)]
        wrong = [m for m in modules if room_of(m) not in ROOMS[room] | BOTTOM | {room}]
        assert not wrong, f"{file.relative_to(ROOT)} names {', '.join(wrong)}"


def test_the_package_imports_neither_recipes_nor_tools_nor_tests():
    for file in python_files("keras_densepred"):
        outside = [m for m in imports(file) if m.split(".")[0] in ("recipes", "tools", "tests")]
        assert not outside, f"{file.relative_to(ROOT)} imports {', '.join(outside)}"


def test_no_modules_import_each_other_in_a_circle():
    modules = {}
    for file in python_files("keras_densepred"):
        parts = file.relative_to(ROOT).with_suffix("").parts
        modules[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file

    def imported(name):
        tree = ast.parse(modules[name].read_text(encoding="utf-8"))
        for node in statements(tree.body):
            if isinstance(node, ast.ImportFrom):
                for alias in node.names:
                    full = f"{node.module}.{alias.name}"
                    yield full if full in modules else node.module
            elif isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names)

    graph = {name: {m for m in imported(name) if m in modules} - {name} for name in modules}
    TopologicalSorter(graph).prepare()  # raises CycleError, which names the circle


def test_no_file_outgrows_its_reader():
    folders = ("keras_densepred", "recipes", "tools", "tests", "guides")
    long = {
        str(file.relative_to(ROOT)): lines
        for file in (*ROOT.glob("*.py"), *python_files(*folders))
        if (lines := len(file.read_text(encoding="utf-8").splitlines())) > LONGEST
    }
    assert not long


def test_recipes_stay_short():
    lengths = [len(f.read_text(encoding="utf-8").splitlines()) for f in python_files("recipes")]
    assert max(lengths) < 300 and sum(lengths) < 230 * len(lengths)


@pytest.mark.parametrize("operation, module", [("argmax", "argmax"), ("top_k", "rows")])
def test_operations_that_have_a_form_of_our_own(operation, module):
    """`keras.ops.argmax` on TensorFlow does not export; JAX's `top_k` gathers all rows."""
    found = [
        str(file.relative_to(ROOT))
        for file in python_files("keras_densepred")
        if re.search(rf"\bops\.{operation}\b(?! import)", file.read_text(encoding="utf-8"))
    ]
    assert found == [f"keras_densepred/ops/{module}.py"]


# What writes a file by itself; a temporary place that `files` gives, and memory, are no files.
WRITERS = {
    *("write_text", "write_bytes", "touch", "tofile", "imwrite", "to_csv", "dump"),
    *("save", "savefig", "savez", "savez_compressed", "save_weights", "save_to_preset"),
    *("copy", "copy2", "copyfile", "copytree", "move", "mkstemp", "NamedTemporaryFile"),
}
PLACES = {"replacing", "renewing"}
WRITERS_TOO = {
    "keras_densepred/files.py": "what all others write with",
    "keras_densepred/saved/other_classes.py": "weights in a temporary folder",
    "tools/convert_dataset.py": "a tree below the place that `files.replacing` gives",
    "tools/timing/measure.py": "a switch of Linux' in /proc",
    "tools/timing/pipeline.py": "pictures in a temporary folder",
    "tools/timing/reading.py": "a made-up tree in a temporary folder",
}


def writes(file):
    """Lines on which a file is written without `keras_densepred.files`."""

    def name_of(call):
        return getattr(call.func, "attr", getattr(call.func, "id", ""))

    def is_writing(call):
        name, arguments = name_of(call), call.args
        owner = getattr(getattr(call.func, "value", None), "id", "")
        if name == "open":
            modes = [*arguments, *(word.value for word in call.keywords)]
            texts = [mode.value for mode in modes if isinstance(mode, ast.Constant)]
            return any(isinstance(text, str) and set("wax+") & set(text[:2]) for text in texts)
        if name in ("replace", "rename"):
            return owner == "os"
        if name in ("copy", "copy2", "move"):
            return owner == "shutil"
        in_memory = arguments and getattr(arguments[0], "id", "") == "buffer"
        return name in WRITERS and owner != "self" and not in_memory

    def visit(node):
        if isinstance(node, ast.With):
            opened = (item.context_expr for item in node.items)
            if any(isinstance(call, ast.Call) and name_of(call) in PLACES for call in opened):
                return
        if isinstance(node, ast.Call) and is_writing(node):
            yield node.lineno
        for child in ast.iter_child_nodes(node):
            yield from visit(child)

    return list(visit(ast.parse(file.read_text(encoding="utf-8"))))


def test_files_are_written_by_one_module():
    found = {
        file.relative_to(ROOT).as_posix(): lines
        for file in python_files("keras_densepred", "recipes", "tools")
        if (lines := writes(file))
    }
    others = {name: lines for name, lines in found.items() if name not in WRITERS_TOO}
    assert not others, "write with keras_densepred/files.py"


@pytest.mark.parametrize(
    "line",
    [
        "open(name, 'w')",
        "path.open(mode='ab')",
        "path.write_text('x')",
        "figure.savefig(path)",
        "np.savez(path, a=1)",
        "os.replace(a, b)",
        "shutil.copy(a, b)",
        "json.dump(x, file)",
    ],
)
def test_a_file_written_by_the_way_is_found(tmp_path, line):
    (tmp_path / "module.py").write_text(f"def f():\n    {line}\n")
    assert writes(tmp_path / "module.py") == [2]


def test_tests_import_no_other_test():
    for file in python_files("tests"):
        wrong = [m for m in imports(file) if ".test_" in m]
        assert not wrong, f"{file.relative_to(ROOT)} imports {', '.join(wrong)}"
