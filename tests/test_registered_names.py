"""A name that two classes are registered by loads the wrong one."""

import ast
import importlib
import pkgutil
from collections import defaultdict
from pathlib import Path

import keras
import pytest

import keras_densepred

pytestmark = pytest.mark.backend_free
PACKAGE = Path(keras_densepred.__file__).parent


def registered(source: str) -> list[tuple[str, str]]:
    """`(class or function, name that it is registered by)` of a module's text."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, (ast.ClassDef, ast.FunctionDef)):
            continue
        for decorator in node.decorator_list:
            call = decorator if isinstance(decorator, ast.Call) else ast.Call(decorator, [], [])
            function = ast.unparse(call.func).split(".")[-1]
            if function == "register_backbone":
                found.append((node.name, f"keras_densepred>{node.name}"))
            elif function == "register_keras_serializable":
                given = dict(zip(("package", "name"), call.args, strict=False))
                given |= {str(keyword.arg): keyword.value for keyword in call.keywords}
                values = {key: ast.literal_eval(value) for key, value in given.items()}
                name = values.get("name") or node.name
                found.append((node.name, f"{values.get('package', 'Custom')}>{name}"))
    return found


def duplicates(sources: dict[str, str]) -> dict[str, list[str]]:
    places = defaultdict(list)
    for path, source in sources.items():
        for owner, name in registered(source):
            places[name].append(f"{path}:{owner}")
    return {name: owners for name, owners in places.items() if len(owners) > 1}


def package_sources() -> dict[str, str]:
    return {
        str(path.relative_to(PACKAGE)): path.read_text(encoding="utf-8")
        for path in sorted(PACKAGE.rglob("*.py"))
    }


def test_the_check_finds_two_of_a_name():
    plain = '@keras.saving.register_keras_serializable(package="p")\nclass A: ...\n'
    named = '@register_keras_serializable("p", name="A")\nclass B: ...\n'
    assert duplicates({"x.py": plain, "y.py": named}) == {"p>A": ["x.py:A", "y.py:B"]}
    assert registered("@register_backbone\nclass C: ...") == [("C", "keras_densepred>C")]


def test_no_two_classes_share_a_registered_name():
    sources = package_sources()
    assert sum(len(registered(source)) for source in sources.values()) > 80
    assert not duplicates(sources)


def test_registered_names_give_their_classes():
    for module in pkgutil.walk_packages(keras_densepred.__path__, "keras_densepred."):
        if "__main__" not in module.name:
            try:
                importlib.import_module(module.name)
            except ImportError:  # of an optional package that is not installed
                continue
    for name, value in keras.saving.get_custom_objects().items():
        if name.startswith("keras_densepred>"):
            assert keras.saving.get_registered_name(value) == name
