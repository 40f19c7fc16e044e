"""What pyproject.toml asks for, what constraints.txt pins and what the code imports agree."""

import ast
import sys
import tomllib
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

REPOSITORY = Path(__file__).parents[2]
SOURCES = ["dla_train", "kernels/dla_kernels", "data/dla_data", "recipes"]
OURS = {"dla_train", "dla_kernels", "dla_data", "dla_recipes"}
IMPORT_NAMES = {  # where not the distribution's
    "huggingface-hub": "huggingface_hub",
    "liger-kernel": "liger_kernel",
    "lm-eval": "lm_eval",
    "pyyaml": "yaml",
}

PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
EVERY = [Requirement(line) for line in chain(PROJECT["dependencies"], *EXTRAS.values())]
REQUIREMENTS = [one for one in EVERY if one.name != PROJECT["name"]]  # dev asks for the other extras


def pins() -> dict[str, Version]:
    """Version of each distribution that constraints.txt names; a line that is not one exact pin fails."""
    lines = (line.partition("#")[0].strip() for line in (REPOSITORY / "constraints.txt").read_text().splitlines())
    pinned = {}
    for line in filter(None, lines):
        requirement = Requirement(line)
        [specifier] = requirement.specifier
        assert specifier.operator == "==", f"{line}: a pin is exact"
        assert canonicalize_name(requirement.name) not in pinned, f"{line}: pinned twice"
        pinned[canonicalize_name(requirement.name)] = Version(specifier.version)
    return pinned


def imported_names(folder: Path) -> Iterator[tuple[str, Path]]:
    """Top-level name of every absolute import below a folder, lazy ones included, with the file that has it."""
    for path in sorted(folder.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                yield from ((alias.name.partition(".")[0], path) for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                yield node.module.partition(".")[0], path


@pytest.mark.parametrize("requirement", REQUIREMENTS, ids=str)
def test_pin_lies_in_the_range(requirement: Requirement) -> None:
    assert requirement.specifier.contains(pins()[canonicalize_name(requirement.name)])


def test_the_torch_pin_lets_pip_choose_the_build() -> None:
    assert pins()["torch"].local is None, "a local version such as +cpu would forbid the CUDA build of PyPI"


def test_the_project_itself_is_not_pinned() -> None:
    assert "dla-train" not in pins()


@pytest.mark.parametrize("version", ["2.6.2", "2.6.3"])
def test_compromised_lightning_releases_are_refused(version: str) -> None:
    [lightning] = [requirement for requirement in REQUIREMENTS if requirement.name == "lightning"]
    assert not lightning.specifier.contains(version)
    assert lightning.specifier.contains("2.6.1")
    assert lightning.specifier.contains("2.6.4")


def test_python_range() -> None:
    assert PROJECT["requires-python"] == ">=3.11"


@pytest.mark.parametrize("folder", SOURCES)
def test_every_import_is_a_declared_requirement(folder: str) -> None:
    extras = [lines for extra, lines in EXTRAS.items() if extra != "dev"]
    names = [Requirement(line).name for line in chain(PROJECT["dependencies"], *extras)]
    declared = {IMPORT_NAMES.get(name, name) for name in names}
    allowed = declared | OURS | set(sys.stdlib_module_names)
    undeclared = {(name, path.name) for name, path in imported_names(REPOSITORY / folder) if name not in allowed}
    assert not undeclared
