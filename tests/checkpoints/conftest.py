"""A run that others go on from."""

import shutil
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory):
    return tmp_path_factory.mktemp("finished")


@pytest.fixture
def run(finished_run, cli, micro_recipe, tmp_path):
    """A folder `runs/micro` with checkpoints of steps 4 and 6, made once and copied."""
    if not (finished_run / "micro").exists():
        assert cli("fit", "--recipe", micro_recipe, "training.steps=6").code == 0
        shutil.copytree("runs/micro", finished_run / "micro")
    else:
        shutil.copytree(finished_run / "micro", tmp_path / "runs" / "micro")
    return Path("runs/micro")


def fit_shortly(cli, recipe, *arguments):
    """Six steps of the recipe."""
    return cli("fit", "--recipe", recipe, "training.steps=6", *arguments)


def content(folder):
    """All files but the lock, with their bytes."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != ".lock"}
