"""docs/recipes.md: every command is run, in order, and what it prints is what the page shows."""

import dataclasses
import os
import re
import shlex
import subprocess
import typing

import pytest

from dla_train.config.recipe import Recipe
from tests.docs.pages import DOCS, commands, matches, write_files

PAGE = "recipes.md"

pytestmark = pytest.mark.xdist_group("documented recipes")


def perform(cli, command, folder, monkeypatch):
    """Both outputs of a command; those of dla-train in this process, others in a shell."""
    words = shlex.split(command)
    with monkeypatch.context() as patch:
        while "=" in words[0]:
            patch.setenv(*words.pop(0).split("=", 1))
        if words[0] != "dla-train":
            return subprocess.run(command, shell=True, cwd=folder, capture_output=True, text=True, check=True).stdout
        target = None
        if ">" in words:
            words, (target,) = words[: words.index(">")], words[words.index(">") + 1 :]
        done = cli(*words[1:])
    if target is not None:
        assert done.code == 0, done.err
        (folder / target).write_text(done.out)
        return done.err
    return done.err + done.out


def test_every_command_prints_what_the_page_shows(cli, my_texts, tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    assert write_files(PAGE, tmp_path) == ["notes.yaml"]
    done = 0
    for command, shown in commands(PAGE):
        printed = perform(cli, command, tmp_path, monkeypatch)
        assert matches(shown, printed), f"{command}\n\nshown:\n{shown}\nprinted:\n{printed}"
        done += 1
    assert done >= 15


def _required(section):
    return [
        field.name
        for field in dataclasses.fields(section)
        if field.init and field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    ]


def _sections(section, place=""):
    """(place, kind, class) of every section that has keys without a default, for whatever kinds."""
    if _required(section):
        yield place or "(top level)", getattr(section, "kind", ""), section
    for name, annotation in typing.get_type_hints(section).items():
        for choice in typing.get_args(annotation) or (annotation,):
            if dataclasses.is_dataclass(choice):
                yield from _sections(choice, f"{place}.{name}".strip("."))


def test_the_table_has_the_keys_without_a_default():
    text = (DOCS / PAGE).read_text()
    table = text[text.index("| section | kind |") :].split("\n\n")[0].splitlines()[2:]
    rows = [[re.sub("`|each of ", "", cell).strip() for cell in row.strip("|").split("|")] for row in table]
    shown = [(place, *others) for places, *others in rows for place in places.split(", ")]
    expected = {(place, str(kind), ", ".join(_required(section))) for place, kind, section in _sections(Recipe)}
    assert set(shown) == expected
    assert len(shown) == len(expected)


@pytest.mark.parametrize(
    ("shown", "printed", "same"),
    [
        ("a\n", "a\n", True),
        ("a\n", "a\nb\n", False),
        ("a\n...\n", "a\nb\nc\n", True),
        ("loss ...\n", "loss 3.1\n", True),
        ("loss ... x\n", "loss 3.1\n", False),
        ("", "a\n", False),
    ],
)
def test_a_page_that_shows_something_else_is_noticed(shown, printed, same):
    assert matches(shown, printed) is same
