"""Adds recipes and tools to a wheel, as `keras_densepred/scripts/`; the rest is pyproject.toml."""

from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

# Of the tools, what builds the site and the guides is of use in a clone only.
IN_A_CLONE = ("docs_", "execute_guide", "make_notebooks", "run_guides", "tutobook")


class BuildWithScripts(build_py):
    """An editable installation finds both folders beside the package."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            for source, target in self._scripts():
                self.mkpath(str(Path(target).parent))
                self.copy_file(source, target)

    def get_outputs(self, include_bytecode: bool = True) -> list[str]:
        scripts = [] if self.editable_mode else [target for _, target in self._scripts()]
        return [*super().get_outputs(include_bytecode), *scripts]

    def _scripts(self) -> list[tuple[str, str]]:
        target = Path(self.build_lib) / "keras_densepred" / "scripts"
        return [
            (str(path), str(target / path))
            for folder in ("recipes", "tools")
            for path in sorted(Path(folder).rglob("*.py"))
            if not path.name.startswith(IN_A_CLONE)
        ]


setup(cmdclass={"build_py": BuildWithScripts})
